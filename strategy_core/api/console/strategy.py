"""The page on one strategy: its versions, what differs between them, comparisons, replays and past rollouts."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Annotated, Any

from fastapi import Path, Query
from markupsafe import Markup
from starlette.responses import Response

from strategy_core.api.console.page import FormField, OwnerAct, Visit, Visited, console_router
from strategy_core.api.console.plan_form import read_fields, whole_form
from strategy_core.api.console.session import SentForm
from strategy_core.api.console.start import OVERRIDE, Strategy, asked_form, strategy_path
from strategy_core.api.console.words import percent, stamp
from strategy_core.api.dependencies import HEAVY
from strategy_core.api.problems import status_of
from strategy_core.api.routes.reports import MOST_CANDLES
from strategy_core.api.schemas import NAME, VersionName
from strategy_core.domain.audit import Command
from strategy_core.domain.errors import (
    EvidenceUnavailable,
    InvalidPlan,
    PlanNotAllowed,
    Quarantined,
    ReleaseClosed,
    RolloutError,
)
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.parsing import owners_time
from strategy_core.domain.ramp import State
from strategy_core.isolation.pool import WorkerPool
from strategy_core.market.source import CandleSource
from strategy_core.report.comparison import comparison_markdown
from strategy_core.report.html import html_body
from strategy_core.report.whatif import whatif_markdown
from strategy_core.services import versions
from strategy_core.services.compare import chosen_period, compare_with_curves, why_empty
from strategy_core.services.owner_reports import list_owner_reports
from strategy_core.services.positions import FLATTEN, held_positions, list_draining
from strategy_core.services.races import list_races
from strategy_core.services.release_times import closed_at
from strategy_core.services.replay import replay_version
from strategy_core.services.status import read_endings
from strategy_core.services.strategy_page import StrategyPage, read_strategy
from strategy_core.services.toggles import list_toggles
from strategy_core.services.user_exclusions import list_exclusions
from strategy_core.services.whatif import what_if
from strategy_core.store.tables import StrategyVersion

Version = Annotated[VersionName, Path(description="Name of the version.")]
_Name = Annotated[str, Query(max_length=64, pattern=rf"^$|{NAME}")]
_Moment = Annotated[str, Query(max_length=32)]

SHOWN_VERSIONS = 50
SHOWN_REPORTS = 10
SHOWN_EXCLUSIONS = 20
ACTIVATE_ALL_THE_SAME = replace(OVERRIDE, label="Activate it all the same, because")
_TONES = {Status.ACTIVE: "good", Status.CANARY: "warn"}
_ENDS = {State.ROLLED_BACK: "bad", State.COMPLETED: "good", State.ABORTED: "quiet"}
_DAY = 10  # characters of a day, such as 2026-03-02

router = console_router()


@router.get("/strategies/{strategy_name}")
def show_strategy(
    visit: Visited,
    strategy_name: Strategy,
    one: _Name = "",
    other: _Name = "",
    all_versions: Annotated[bool, Query(alias="all")] = False,
) -> Response:
    """Show the strategy. *one* and *other* are the versions whose difference is shown."""
    page = read_strategy(visit.engine, visit.reads(strategy_name))
    left, right = _pair(page, one, other)
    kept = [each for each in page.versions if each.status != Status.RETIRED]
    retired = [each for each in page.versions if each.status == Status.RETIRED]
    shown = list(page.versions) if all_versions else [*kept, *retired[: max(0, SHOWN_VERSIONS - len(kept))]]
    return visit.render(
        "strategy.html",
        page=page,
        versions=shown,
        tones=_TONES,
        ends=_ENDS,
        endings=read_endings(visit.engine, page.rollouts),
        path=strategy_path(strategy_name),
        one=left,
        other=right,
        differences=[] if left is None or right is None else differences(left, right),
        report_of=_report_of,
        can_start=[each.version for each in page.startable],
        exclusions=list_exclusions(
            visit.engine, strategy_name, counting_at=visit.now, limit=SHOWN_EXCLUSIONS, newest=True
        ),
        reports=list_owner_reports(visit.engine, visit.lists(strategy_name), limit=SHOWN_REPORTS),
        held=held_positions(visit.engine, strategy_name, now=visit.now),
        races=list_races(visit.engine, strategy_name),
        toggles=list_toggles(visit.engine, strategy_name).toggles,
        draining={each.version: each for each in list_draining(visit.engine, strategy_name, now=visit.now)},
    )


def _pair(page: StrategyPage, one: str, other: str) -> tuple[StrategyVersion | None, StrategyVersion | None]:
    """Return the two named versions, by default the active one and the newest other one. Raises UnknownVersion."""
    left = page.version(one) if one else page.active
    rest = [each for each in page.versions if left is None or each.version != left.version]
    right = page.version(other) if other else next(iter(rest), None)
    return left or next(iter(rest[1:]), None), right


def differences(one: StrategyVersion, other: StrategyVersion) -> list[tuple[str, str, str]]:
    """Return (what, in *one*, in *other*) of each part of two versions that differs."""
    facts = [
        *_config_facts(one.config, other.config, "config"),
        ("entry point", one.entry_point, other.entry_point),
        ("symbols", ", ".join(one.symbols), ", ".join(other.symbols)),
        ("timeframe", one.timeframe, other.timeframe),
        ("candles to warm up", str(one.warmup_bars), str(other.warmup_bars)),
    ]
    known = {"config", "symbols", "timeframe", "warmup_bars"}
    parts = [part for part in dict.fromkeys([*one.fingerprint_parts, *other.fingerprint_parts]) if part not in known]
    facts += [
        (f"build: {part}", _digest(one.fingerprint_parts.get(part)), _digest(other.fingerprint_parts.get(part)))
        for part in parts
    ]
    return [each for each in facts if each[1] != each[2]]


def _config_facts(one: Any, other: Any, name: str) -> list[tuple[str, str, str]]:
    if all(isinstance(each, dict | None) for each in (one, other)) and (one or other):
        left, right = one or {}, other or {}
        keys = dict.fromkeys([*left, *right])
        return [fact for key in keys for fact in _config_facts(left.get(key), right.get(key), f"{name}.{key}")]
    return [(name, _shown(one), _shown(other))]


def _shown(value: Any) -> str:
    if value is None:
        return "—"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _digest(part: str | None) -> str:
    """Return a part of the fingerprint. A digest is cut to twelve digits."""
    if part is None:
        return "—"
    return f"{part[:12]}…" if len(part) == 64 else part


def _report_of(version: StrategyVersion) -> list[tuple[str, str]]:
    """Return the facts of a registration report, as names and texts. Old reports lack some of them."""
    report = version.registration_report
    checks = [each for each in report.get("checks") or [] if isinstance(each, dict)]
    facts = [("code", version.entry_point), ("candles to warm up", str(version.warmup_bars))]
    facts += [(name, _shown(report[name])) for name in ("decisions", "signals") if name in report]
    if report.get("trained_until"):
        facts.append(("trained until", _shown(report["trained_until"])))
    facts += [(str(each.get("name", "check")).replace("_", " "), _check_line(each)) for each in checks]
    return [*facts, *(("warning", _shown(each)) for each in report.get("warnings") or [])]


def _check_line(check: Mapping[str, Any]) -> str:
    detail = check.get("detail")
    return f"{'passed' if check.get('passed') else 'failed'}{f': {_shown(detail)}' if detail else ''}"


# Acts


@router.get("/strategies/{strategy_name}/versions/{version}/activate")
@router.post("/strategies/{strategy_name}/versions/{version}/activate")
def activate(visit: Visited, strategy_name: Strategy, version: Version) -> Response:
    """Make a version the active one."""
    refused: list[RolloutError] = []

    def describe() -> OwnerAct:
        page = read_strategy(visit.engine, visit.reads(strategy_name))
        chosen, active, rollout = page.version(version), page.active, page.open_rollout
        effects = [f"all users of {strategy_name} get {version} from their next signal on"]
        if active is not None and active.version != version:
            held = held_positions(visit.engine, strategy_name).by_manager.get(active.version)
            effects.append(
                f"{active.version} stays in shadow until its {held} open positions are closed"
                if held
                else f"{active.version} is retired and makes no more decisions"
            )
        notes = [
            "no gate protects the users of a version that is activated by hand. A rollout gives it to them in stages"
        ]
        if closed := closed_at(visit.engine, strategy_name, visit.now):
            notes.append(f"not possible now without a reason of an admin: {closed}")
        if page.scheduled is not None:
            notes.append(f"a start of {page.scheduled.version} is scheduled for {stamp(page.scheduled.start_at)}")
        if rollout is not None:
            own = rollout.version == version
            effects.append(
                "its open rollout ends as completed" if own else f"the open rollout of {rollout.version} ends"
            )
        if chosen.quarantined_at is not None:
            notes.append(f"it was rolled back at {chosen.quarantined_at:%Y-%m-%d %H:%M} UTC, so this needs a reason")
        return OwnerAct(
            f"Activate {strategy_name} {version}",
            effects,
            "Activate for all users",
            dangerous=True,
            fields=[ACTIVATE_ALL_THE_SAME] if refused or chosen.quarantined_at is not None else [],
            generation=page.generation,
            notes=notes,
        )

    def perform(_form: SentForm) -> str:
        command = Command(
            visit.changes(strategy_name),
            visit.now,
            visit.reason(),
            override_reason=visit.override_reason(),
            if_generation=visit.generation,
            four_eyes=visit.backend.settings.four_eyes,
        )
        try:
            versions.activate_version(visit.engine, command, strategy_name=strategy_name, version=version)
        except (PlanNotAllowed, Quarantined, ReleaseClosed) as error:
            refused.append(error)
            raise
        return f"{strategy_name} {version} is active"

    return visit.act(describe, perform, back=strategy_path(strategy_name))


@router.get("/strategies/{strategy_name}/versions/{version}/retire")
@router.post("/strategies/{strategy_name}/versions/{version}/retire")
def retire(visit: Visited, strategy_name: Strategy, version: Version) -> Response:
    """Retire a version, or close the strategy if it is the active one."""

    def describe() -> OwnerAct:
        page = read_strategy(visit.engine, visit.reads(strategy_name))
        closes = page.version(version).status == Status.ACTIVE
        effects = [f"{version} makes no more decisions. It can be activated again"]
        held = held_positions(visit.engine, strategy_name).by_manager.get(version)
        if closes:
            effects.append(f"{strategy_name} is closed: its users get no version")
        elif page.version(version).status == Status.CANARY:
            effects.append(f"{percent(page.percent)} of users return to the active version")
        else:
            effects.append("no user gets another version")
        return OwnerAct(
            f"Close {strategy_name}" if closes else f"Retire {strategy_name} {version}",
            effects,
            "Close the strategy" if closes else "Retire",
            dangerous=closes,
            generation=page.generation,
            fields=[_orphans_field(page, version)] if held else [],
            notes=[f"it manages {held} open positions. Let them drain, or choose where they go, and why"]
            if held
            else [],
        )

    def perform(form: SentForm) -> str:
        command = Command(visit.changes(strategy_name), visit.now, visit.reason(), if_generation=visit.generation)
        closes = read_strategy(visit.engine, strategy_name).version(version).status == Status.ACTIVE
        versions.retire_version(
            visit.engine,
            command,
            strategy_name=strategy_name,
            version=version,
            close=closes,
            orphans_to=form.get("orphans_to", ""),
        )
        return f"{strategy_name} {version} is retired"

    return visit.act(describe, perform, back=strategy_path(strategy_name))


def _orphans_field(page: StrategyPage, version: str) -> FormField:
    others = [each.version for each in page.versions if each.version != version and each.status != Status.RETIRED]
    options = [("", "nowhere: let them drain first"), (FLATTEN, "the platform closes them")]
    options += [(other, f"{other} decides on them") for other in others]
    return FormField("orphans_to", "Its open positions", kind="choice", options=options)


@router.get("/strategies/{strategy_name}/replay")
@router.post("/strategies/{strategy_name}/replay", dependencies=[HEAVY])
def replay(visit: Visited, strategy_name: Strategy, version: _Name = "") -> Response:
    """Let a version decide on past candles."""

    def describe() -> OwnerAct:
        page = read_strategy(visit.engine, visit.reads(strategy_name))
        chosen = page.version(version).version if version else next((each.version for each in page.versions), "")
        options = [(each.version, f"{each.version} ({each.status})") for each in page.versions]
        effects = [
            "the version and the active one decide on the same past candles. This takes seconds to minutes",
            "comparisons and previews use these decisions. No gate of a rollout counts them, and no user gets them",
        ]
        return OwnerAct(
            f"Replay a version of {strategy_name}",
            effects,
            "Replay",
            reason="none",
            fields=[
                FormField("version", "Version", kind="choice", value=chosen, options=options),
                FormField("start", "From (UTC)", hint="A day such as 2026-01-31. Empty: 180 days before the end."),
                FormField("end", "To (UTC)", hint="A day, which is left out. Empty: the newest candle."),
                FormField("again", "Decide again on candles that were replayed before", kind="checkbox"),
            ],
        )

    def perform(form: SentForm) -> str:
        visit.changes(strategy_name)
        settings = visit.backend.settings
        with WorkerPool(deadline_s=settings.decision_deadline_s, at_once=settings.shadow_workers) as workers:
            found = replay_version(
                visit.engine,
                visit.backend.candles(visit.now),
                workers,
                strategy_name=strategy_name,
                version=form.get("version", ""),
                now=visit.now,
                start=owners_time(form.get("start", "").strip() or None, "start"),
                end=owners_time(form.get("end", "").strip() or None, "end"),
                again=bool(form.get("again")),
            )
        return ". ".join([*(each.summary for each in found), *found[0].notes])

    return visit.act(describe, perform, back=strategy_path(strategy_name))


# Results


@router.get("/strategies/{strategy_name}/compare", dependencies=[HEAVY])
def show_comparison(
    visit: Visited,
    strategy_name: Strategy,
    one: _Name = "",
    other: _Name = "",
    start: Annotated[_Moment, Query(alias="from")] = "",
    end: Annotated[_Moment, Query(alias="to")] = "",
) -> Response:
    """Compare two versions over a period, by default the last 30 days."""
    page = read_strategy(visit.engine, visit.reads(strategy_name))
    control, chosen = _pair(page, one, other)
    problem, status, report = "", 200, Markup("")
    if control is None or chosen is None:
        problem, status = "there are no two versions to compare", 409
    else:
        try:
            report = _compared(visit, strategy_name, control, chosen, start, end)
        except RolloutError as refused:
            problem, status = str(refused), status_of(refused)
    return visit.render(
        "strategy_result.html",
        status,
        page=page,
        path=strategy_path(strategy_name),
        title=f"Compare versions of {strategy_name}",
        form="compare",
        one=control,
        other=chosen,
        start=start,
        end=end,
        problem=problem,
        report=report,
        plan=[],
    )


def _compared(
    visit: Visit, strategy_name: str, control: StrategyVersion, chosen: StrategyVersion, start: str, end: str
) -> Markup:
    since, until = owners_time(start.strip() or None, "from"), _end_of(end.strip())
    over = chosen_period(None, since, until, visit.now)
    found, curves = compare_with_curves(
        visit.engine,
        strategy_name=strategy_name,
        shadow_version=chosen.version,
        active_version=control.version,
        over=over,
        symbol=None,
        source=_candles(visit),
        now=visit.now,
    )
    empty: Sequence[str] = ()
    if not found.candles_compared and control.status == Status.ACTIVE:
        lines = why_empty(visit.engine, strategy_name=strategy_name, version=chosen.version, over=over)
        empty = [line for line in lines if not line.startswith("Next: ")]
    return Markup(html_body(comparison_markdown(curves, level=2, why_empty=empty)))  # noqa: S704  it escapes texts


def _end_of(text: str) -> datetime | None:
    """Return the end of a period. A day is part of it."""
    found = owners_time(text or None, "to")
    return found + timedelta(days=1) if found is not None and len(text) == _DAY else found


def _candles(visit: Visit) -> CandleSource | None:
    """Return the feed for market regimes, or None while it is away: the comparison stands without them."""
    try:
        return visit.backend.candles(visit.now)
    except EvidenceUnavailable:
        return None


@router.get("/strategies/{strategy_name}/whatif", dependencies=[HEAVY])
def show_whatif(
    visit: Visited,
    strategy_name: Strategy,
    version: _Name = "",
    start: Annotated[_Moment, Query(alias="from")] = "",
    end: Annotated[_Moment, Query(alias="to")] = "",
) -> Response:
    """Let a rollout of the plan in the address, or of the standard plan, run on replayed candles."""
    page = read_strategy(visit.engine, visit.reads(strategy_name))
    asked = asked_form(visit)
    read = read_fields(whole_form(asked))
    rest = [each for each in page.versions if each.status != Status.ACTIVE]
    chosen = page.version(version) if version else next(iter(rest), None)
    problem, status, report = "", 200, Markup("")
    if chosen is None:
        problem, status = "there is no version beside the active one", 409
    else:
        try:
            if read.plan is None:
                raise InvalidPlan(f"{name}: {text}" for name, text in read.problems.items())
            found = what_if(
                visit.engine,
                strategy_name=strategy_name,
                version=chosen.version,
                plan=read.plan,
                start=owners_time(start.strip() or None, "from"),
                end=_end_of(end.strip()),
                most_candles=MOST_CANDLES,
            )
            report = Markup(html_body(whatif_markdown(found)))  # noqa: S704  it escapes texts
        except RolloutError as refused:
            problem, status = str(refused), status_of(refused)
    plan = [(name, text) for name, text in asked.items() if name not in ("version", "from", "to")]
    return visit.render(
        "strategy_result.html",
        status,
        page=page,
        path=strategy_path(strategy_name),
        title=f"What if {strategy_name} {chosen.version} had been rolled out" if chosen else "What if",
        form="whatif",
        one=None,
        other=chosen,
        start=start,
        end=end,
        problem=problem,
        report=report,
        plan=plan,
    )
