"""Start a rollout: the plan as a form for people, its preview as one types, and the page that confirms the start."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from annotated_types import Ge, Le
from fastapi import Path
from starlette.responses import Response

from strategy_core.api.console.page import FormField, OwnerAct, Visit, Visited, console_router
from strategy_core.api.console.plan_form import (
    GATES,
    INFORMATIONAL,
    MODE,
    OFF,
    ON,
    PLAN_SETTINGS,
    SPARE_METRICS,
    SPARE_STAGES,
    SPARE_WINDOWS,
    STAGE_SETTINGS,
    WINDOW_SETTINGS,
    ReadPlan,
    Setting,
    fields_of,
    gate_keys,
    read_fields,
    settings_of,
    stage_rows,
    whole_form,
    window_rows,
)
from strategy_core.api.console.session import FORM, HOME, SentForm, read_form
from strategy_core.api.console.words import count, plural, stamp
from strategy_core.api.dependencies import HEAVY
from strategy_core.api.routes.rollouts import show_visible_plan
from strategy_core.api.schemas import StrategyName
from strategy_core.domain.audit import Command
from strategy_core.domain.errors import (
    CapitalUnknown,
    HarmfulInShadow,
    InvalidPlan,
    PlanNotAllowed,
    Quarantined,
    ReleaseClosed,
    RolloutError,
    UnarmedPlan,
)
from strategy_core.domain.gates.base import Verdict, format_duration
from strategy_core.domain.parsing import owners_time
from strategy_core.domain.plan import Plan
from strategy_core.domain.preview import Audience, Preview, StageAudience, StagePreview
from strategy_core.domain.readings import gate_title, gate_words
from strategy_core.domain.release_times import ReleaseWindow
from strategy_core.services.release_times import closed_at
from strategy_core.services.rollouts import read_policy, served_share, start_rollout, start_warning
from strategy_core.services.scheduled_starts import check_start_time, schedule_start
from strategy_core.services.strategy_page import StrategyPage, read_strategy
from strategy_core.store.tables import StrategyVersion

Strategy = Annotated[StrategyName, Path(description="Name of the strategy.")]

START_AT = "start_at"  # field of the form
OVERRIDE = FormField(
    "override_reason", "Start it all the same, because", kind="long", hint="Kept in the audit trail, as the reason is."
)
_START_HINT = "2026-12-24T12:00Z, or a day: at 00:00 UTC. Empty: now"
_ANSWERS = {
    "on_inconclusive": (("hold", "hold it and ask an owner"), ("rollback", "roll back")),
    "watch": (("alert", "alert the owners"), ("rollback", "roll back"), ("off", "do not watch")),
    "risk_scale": (("on", "send its users a smaller size"), ("off", "send them the full size")),
    "on_rollback": (("pin", "stay with it until they are closed"), ("flatten", "are closed")),
}
_HINTS = {
    "maximum_stage_time": "A stage that has no clear answer by then ends.",
    "bake": "The previous version stays in shadow, ready to come back at once.",
    "watch": "As long as it is watched, the previous version stays in shadow.",
    "on_rollback": "New entries stop at once. It decides in shadow when to leave what is open.",
    "blind_limit": "No candles, no decisions or no outcomes: the gates cannot protect users.",
    "largest_account_percent": "If it is also more than four times the mean. Empty: no such rule.",
    "risk_scale": "As measured in shadow when it starts, 0.5 to 1 of the size. The platform multiplies by it.",
    "open_risk_percent": "It counts at stages of at most this percent of users. Empty: no limit.",
    "late_candles": "Later than that, the rollout is without evidence.",
}
_WINDOW_HINTS = {
    "days": "Some of mon, tue, wed, thu, fri, sat and sun.",
    "opens": "HH:MM, such as 09:00.",
    "closes": "HH:MM, such as 17:30. 24:00 is the end of the day.",
    "time_zone": "UTC, or a place such as Europe/Berlin.",
    "market_open": "Also asks that this market trades.",
}
_MAIN = ("maximum_stage_time", "on_inconclusive", "bake", "watch", "on_rollback")
_MODES = ((ON, "on"), (INFORMATIONAL, "informational: no vote"), (OFF, "off"))

router = console_router()


def strategy_path(strategy_name: str, *, below: str = "") -> str:
    """Return the path of a strategy's page, or of one below it."""
    return f"{HOME}/strategies/{strategy_name}{below}"


def asked_form(visit: Visit) -> SentForm:
    """Return the form in the page's address. Raise BadBody for a character that cannot be stored."""
    return read_form(FORM, visit.request.url.query.encode())


# The form


@dataclass(frozen=True, slots=True)
class GateFields:
    """One gate of the form. *is_spare*: an empty row for a metric."""

    key: str
    title: str
    help: str
    mode: FormField
    settings: Sequence[FormField]
    is_wrong: bool
    is_spare: bool = False


@dataclass(frozen=True, slots=True)
class PlanFields:
    """The whole form. Each stage is a row: its fields by the names of STAGE_SETTINGS. So is each release window."""

    stages: Sequence[Mapping[str, FormField]]
    main: Sequence[FormField]
    more: Sequence[FormField]
    gates: Sequence[GateFields]
    metrics: Sequence[GateFields]
    windows: Sequence[Mapping[str, FormField]]
    problem: str


def plan_form(given: Mapping[str, str], problems: Mapping[str, str]) -> PlanFields:
    """Return the form with the texts in *given* and the *problems* beside their fields."""

    def shown(name: str, setting: Setting, **more: str) -> FormField:
        return _form_field(name, setting, given.get(name, ""), problems.get(name, ""), **more)

    rows = stage_rows(given)
    free = [number for number in range(100) if number not in rows]
    stages = [
        {short: shown(f"stage-{row}-{short}", one) for short, one in STAGE_SETTINGS.items()}
        for row in [*rows, *free[:SPARE_STAGES]]
    ]
    general = {name: shown(name, one, hint=_HINTS.get(name, "")) for name, one in PLAN_SETTINGS.items()}
    keys = gate_keys(given)
    metrics = [key for key in keys if key.startswith("metric-")]
    spare = [key for number in range(100) if (key := f"metric-{number}") not in metrics][:SPARE_METRICS]
    return PlanFields(
        stages=stages,
        main=[general[name] for name in _MAIN],
        more=[one for name, one in general.items() if name not in _MAIN],
        gates=[_gate_fields(key, given, problems) for key in keys if key not in metrics],
        metrics=[_gate_fields(key, given, problems, is_spare=key in spare) for key in [*metrics, *spare]],
        windows=[_window_fields(row, given, problems) for row in _window_rows(given)],
        problem=problems.get("plan", ""),
    )


def _window_rows(given: Mapping[str, str]) -> list[int]:
    rows = window_rows(given)
    return [*rows, *[number for number in range(100) if number not in rows][:SPARE_WINDOWS]]


def _window_fields(row: int, given: Mapping[str, str], problems: Mapping[str, str]) -> dict[str, FormField]:
    usual = ReleaseWindow()
    empty = {"days": ", ".join(usual.days), "time_zone": usual.time_zone}
    found = {}
    for short, one in WINDOW_SETTINGS.items():
        name = f"window-{row}-{short}"
        found[short] = FormField(
            name,
            one.label,
            value=given.get(name, empty.get(short, "")),
            hint=_WINDOW_HINTS[short],
            problem=problems.get(name, ""),
        )
    markets = (("", "at any time"), ("metals", "metals"))
    found["market_open"] = replace(found["market_open"], kind="choice", options=markets)
    return found


def _gate_fields(
    key: str, given: Mapping[str, str], problems: Mapping[str, str], *, is_spare: bool = False
) -> GateFields:
    title, explained = gate_words()["metric" if key.startswith("metric-") else key]
    name = f"gate-{key}-{MODE}"
    mode = FormField(
        name, title, kind="choice", value=given.get(name, ON), options=_MODES, problem=problems.get(name, "")
    )
    settings = []
    for short, one in settings_of(key).items():
        field_name = f"gate-{key}-{short}"
        text = given.get(field_name, _usual(key, short, one) if is_spare else "")
        settings.append(_form_field(field_name, one, text, problems.get(field_name, "")))
    wrong = bool(mode.problem) or any(one.problem for one in settings)
    return GateFields(key, title, explained, mode, settings, wrong, is_spare)


def _usual(key: str, short: str, setting: Setting) -> str:
    found = GATES["metric" if key.startswith("metric-") else key].model_fields[short]
    return "" if found.is_required() else setting.show(found.default)


def _form_field(name: str, setting: Setting, text: str, problem: str, *, hint: str = "") -> FormField:
    made = FormField(name, setting.label, value=text, hint=hint or setting.hint, problem=problem, unit=setting.unit)
    if name in _ANSWERS:
        return replace(made, kind="choice", options=_ANSWERS[name])
    if setting.kind is bool:
        return replace(made, kind="checkbox")
    if setting.kind is str or setting.many:
        return made
    lowest, highest = setting.limit(Ge), setting.limit(Le)
    step = 1 if setting.kind is int else None
    return replace(made, kind="number", minimum=lowest, maximum=highest, step=step)


# The preview


@dataclass(frozen=True, slots=True)
class ShownStage:
    """One stage of the preview."""

    needs: StagePreview
    reaches: StageAudience


@dataclass(frozen=True, slots=True)
class ShownPlan:
    """The preview as the page shows it.

    Attributes:
        tone: of the verdict: good, warn or bad.
        warnings: what an owner should know before the start, a line each.
        notes: the rest, a line each.
    """

    tone: str
    verdict: str
    stages: Sequence[ShownStage]
    audience: Audience
    warnings: Sequence[str]
    notes: Sequence[str]
    is_harmful: bool


def shown_plan(
    visit: Visit, strategy_name: str, chosen: StrategyVersion, plan: Plan, start_at: datetime | None
) -> ShownPlan:
    """Return the preview of *plan*, without the names of strategies that the token does not cover.

    Args:
        start_at: when it is to start. None: now.
    """
    version = chosen.version
    preview, audience = show_visible_plan(visit, strategy_name=strategy_name, version=version, plan=plan)
    lacks = start_warning(
        visit.engine, strategy_name=strategy_name, version=version, now=visit.now, with_commands=False
    )
    warned = [note.removeprefix("warning: ") for note in preview.notes if note.startswith("warning: ")]
    first = [*_was_rolled_back(chosen), *_closed(visit, strategy_name, plan, start_at)]
    first += filter(None, (lacks, audience.blind))
    tone = "bad" if _is_harmful(preview) else "warn" if preview.underpowered or first else "good"
    later = [] if start_at is None else [f"it starts at {stamp(start_at)}, {_until(visit, start_at)}"]
    return ShownPlan(
        tone=tone,
        verdict=preview.verdict,
        stages=[ShownStage(*both) for both in zip(preview.stages, audience.stages, strict=True)],
        audience=audience,
        warnings=[*first, *warned, *_overlaps(plan, audience), *weakened(plan)],
        notes=[
            *later,
            *(note for note in audience.notes if note != audience.blind),
            *(note for note in preview.notes if not note.startswith("warning: ")),
        ],
        is_harmful=_is_harmful(preview),
    )


def _was_rolled_back(chosen: StrategyVersion) -> list[str]:
    """Return the warning for a version that was rolled back, in one line, or none."""
    if chosen.quarantined_at is None:
        return []
    return [f"{chosen.version} was rolled back at {stamp(chosen.quarantined_at)}, and needs a reason to start again"]


def _closed(visit: Visit, strategy_name: str, plan: Plan, start_at: datetime | None) -> list[str]:
    """Return what keeps the rollout from starting at its time: a freeze or a closed window. One line, or none."""
    closed = closed_at(visit.engine, strategy_name, start_at or visit.now, plan.advance_windows)
    if not closed:
        return []
    return [f"not possible now: {closed}" if start_at is None else f"at its time it would wait: {closed}"]


def _until(visit: Visit, start_at: datetime) -> str:
    return f"in {format_duration(start_at - visit.now)}"


def asked_start(visit: Visit, asked: Mapping[str, str]) -> datetime | None:
    """Return the time of the start in a form. None: now.

    Raises:
        InvalidName, NaiveTime, TimeOutOfRange: it is no time.
        InvalidStartTime: it is not in the future, or too far away.
    """
    found = owners_time(asked.get(START_AT, "").strip() or None, START_AT)
    return None if found is None else check_start_time(found, visit.now)


def _read(visit: Visit, asked: Mapping[str, str], given: Mapping[str, str]) -> ReadPlan:
    """Return the plan of a form, or its problems. A wrong time of the start is one of them."""
    read = read_fields(given)
    try:
        asked_start(visit, asked)
    except RolloutError as wrong:
        return ReadPlan(None, {START_AT: str(wrong), **read.problems})
    return read


def _is_harmful(preview: Preview) -> bool:
    return preview.harm is not None and preview.harm.verdict is Verdict.FAIL


def _overlaps(plan: Plan, audience: Audience) -> list[str]:
    """Return which of the first users other canaries reach too, in one line, or none."""
    if not audience.overlaps:
        return []
    parts = []
    for each in audience.overlaps:
        users = f"{plural(each.users[0], 'user')}, " if each.users is not None else ""
        chance = "" if each.same_salt else ", by chance"
        parts.append(f"{each.strategy_name} {each.version} ({users}{each.shares[0] * 100:.1f} %{chance})")
    return [
        f"at {plan.stages[0].percent:g} % of users, other canaries reach some of the same users: {', '.join(parts)}"
    ]


def weakened(plan: Plan) -> list[str]:
    """Return which gates of the standard plan have no vote in *plan*, a line each."""
    voting = {gate.kind for gate in plan.gates if not gate.dry_run}
    lost = [gate_title(gate) for gate in Plan().gates if not gate.dry_run and gate.kind not in voting]
    return [f"no vote in this plan: {', '.join(lost)}"] if lost else []


# The pages


@router.get("/strategies/{strategy_name}/start")
def show_start(visit: Visited, strategy_name: Strategy) -> Response:
    """Show the form: the standard plan, or what the address describes."""
    return _show(visit, strategy_name, with_preview=False)


@router.get("/strategies/{strategy_name}/start/preview", dependencies=[HEAVY])
def show_preview(visit: Visited, strategy_name: Strategy) -> Response:
    """Show the form with the preview of its plan. The script takes the preview from this page as an owner types."""
    return _show(visit, strategy_name, with_preview=True)


def _show(
    visit: Visit, strategy_name: str, *, with_preview: bool, read: ReadPlan | None = None, problem: str = ""
) -> Response:
    visit.principal.check_change(strategy_name)
    page = read_strategy(visit.engine, visit.reads(strategy_name))
    asked = asked_form(visit)
    policy = read_policy(visit.engine, strategy_name)
    named = asked.get("plan", "")
    given = fields_of(policy.named(strategy_name, named)) if named else whole_form(asked)
    version = _chosen(page, asked)
    if read is None:
        read = _read(visit, asked, given) if with_preview else ReadPlan(None)
    shown = None
    if with_preview and read.plan is not None and version:
        try:
            shown = shown_plan(visit, strategy_name, page.version(version), read.plan, asked_start(visit, asked))
        except UnarmedPlan:
            read = ReadPlan(None, {"plan": "no gate has a vote: set one gate or more to on"})
        except RolloutError as refused:
            problem = str(refused)
    path = strategy_path(strategy_name, below="/start")
    return visit.render(
        "start.html",
        422 if read.problems else 409 if problem else 200,
        page=page,
        version=FormField(
            "version",
            "Version",
            kind="choice",
            value=version,
            options=[(each.version, _option(each)) for each in page.startable],
        ),
        rolled_back=next(
            (line for each in page.startable if each.version == version for line in _was_rolled_back(each)), ""
        ),
        start_at=FormField(
            START_AT,
            "Starts at",
            value=asked.get(START_AT, ""),
            hint=_START_HINT,
            problem=read.problems.get(START_AT, ""),
        ),
        form=plan_form(given, read.problems),
        labels=_labels(read.problems),
        plans=sorted(policy.plans),
        problem=problem,
        shown=shown,
        path=path,
        back=strategy_path(strategy_name),
    )


def _option(version: StrategyVersion) -> str:
    rolled_back = ", was rolled back" if version.quarantined_at is not None else ""
    return f"{version.version} ({version.status}{rolled_back})"


def _chosen(page: StrategyPage, asked: Mapping[str, str]) -> str:
    names = [each.version for each in page.startable]
    wanted = asked.get("version", "")
    return wanted if wanted in names else next(iter(names), "")


def _labels(problems: Mapping[str, str]) -> Sequence[tuple[str, str, str]]:
    """Return (field, what it is, problem) of each problem, for the list above the form."""
    return [(name, _place(name), text) for name, text in problems.items()]


def _place(name: str) -> str:
    if name == START_AT:
        return "starts at"
    words = name.split("-")
    if words[0] == "stage":
        return f"stage in row {int(words[1]) + 1}, {STAGE_SETTINGS[words[2]].label.lower()}"
    if words[0] == "gate":
        key = "-".join(words[1:-1])
        title = gate_words()["metric" if key.startswith("metric-") else key][0]
        return title if words[-1] == MODE else f"{title}, {settings_of(key)[words[-1]].label.lower()}"
    if words[0] == "window":
        return f"release window in row {int(words[1]) + 1}, {WINDOW_SETTINGS[words[2]].label.lower()}"
    return PLAN_SETTINGS[name].label.lower() if name in PLAN_SETTINGS else "plan"


# The act


@router.get("/strategies/{strategy_name}/start/confirm", dependencies=[HEAVY])
def ask_start(visit: Visited, strategy_name: Strategy) -> Response:
    """Show what the start does to how many users, or the form again with its problems."""
    visit.principal.check_change(strategy_name)
    asked = asked_form(visit)
    read = _read(visit, asked, whole_form(asked))
    if read.plan is None:
        return _show(visit, strategy_name, with_preview=False, read=read)
    return _start(visit, strategy_name, previews=True)


@router.post("/strategies/{strategy_name}/start/confirm")
def start(visit: Visited, strategy_name: Strategy) -> Response:
    """Start the rollout of the plan in the page's address."""
    return _start(visit, strategy_name, previews=False)


def _start(visit: Visit, strategy_name: str, *, previews: bool) -> Response:
    asked = asked_form(visit)
    read, version = read_fields(whole_form(asked)), asked.get("version", "")
    needs_override: list[str] = []
    started: list[UUID] = []

    def describe() -> OwnerAct:
        page = read_strategy(visit.engine, visit.reads(strategy_name))
        plan, start_at = _plan_of(read), asked_start(visit, asked)
        return _describe(visit, page, version, plan, start_at, previews=previews, needs_override=bool(needs_override))

    def perform(_form: SentForm) -> str:
        command = Command(
            visit.changes(strategy_name),
            visit.now,
            visit.reason(),
            override_reason=visit.override_reason(),
            if_generation=visit.generation,
        )
        plan, start_at = _plan_of(read), asked_start(visit, asked)
        wanted: dict[str, Any] = {"strategy_name": strategy_name, "version": version, "plan": plan}
        try:
            if start_at is not None:
                schedule_start(visit.engine, command, **wanted, start_at=start_at)
                return f"{strategy_name} {version} is scheduled to start at {stamp(start_at)}"
            rollout = start_rollout(
                visit.engine,
                command,
                **wanted,
                in_replay=visit.backend.settings.in_replay,
            )
        except (CapitalUnknown, HarmfulInShadow, PlanNotAllowed, Quarantined, ReleaseClosed):
            needs_override.append(version)
            raise
        started.append(rollout.id)
        return f"{strategy_name} {version} has started at {served_share(visit.engine, strategy_name)}"

    def after() -> str:
        return strategy_path(strategy_name, below=f"/rollouts/{started[0]}" if started else "")

    change = f"{strategy_path(strategy_name, below='/start')}?{visit.request.url.query}"
    return visit.act(describe, perform, back=change, after=after)


def _plan_of(read: ReadPlan) -> Plan:
    if read.plan is None:
        raise InvalidPlan(f"{name}: {text}" for name, text in read.problems.items())
    return read.plan


def _describe(
    visit: Visit,
    page: StrategyPage,
    version: str,
    plan: Plan,
    start_at: datetime | None,
    *,
    previews: bool,
    needs_override: bool,
) -> OwnerAct:
    chosen = page.version(version)
    notes, users = _was_rolled_back(chosen), None
    verdict = ""
    if previews:
        shown = shown_plan(visit, page.name, chosen, plan, start_at)
        users, verdict = shown.audience, shown.verdict
        notes = list(shown.warnings)
        needs_override = needs_override or shown.is_harmful
    active = "no version" if page.active is None else page.active.version
    waits = [] if start_at is None else _while_waiting(visit, version, start_at)
    effects = [
        *waits,
        f"{'at its start ' if start_at else ''}{version} becomes the canary against {active}, the active version",
        _first_users(plan, users),
        _later_stages(plan),
        *([f"what to expect: {verdict}"] if verdict else []),
    ]
    fields = [OVERRIDE] if needs_override or chosen.quarantined_at is not None else []
    return OwnerAct(
        f"{'Schedule' if start_at else 'Start'} a rollout of {page.name} {version}",
        effects,
        "Schedule the start" if start_at else "Start the rollout",
        fields=fields,
        generation=page.generation,
        notes=notes,
    )


def _while_waiting(visit: Visit, version: str, start_at: datetime) -> list[str]:
    return [
        f"nothing changes now: {version} stays in shadow until {stamp(start_at)}, {_until(visit, start_at)}",
        "all checks of a start are made now, and again then. In a freeze or outside a release window it waits. An "
        "owner can cancel it until then, and a rollback cancels it",
    ]


def _first_users(plan: Plan, audience: Audience | None) -> str:
    first = plan.stages[0]
    reached = None if audience is None else audience.stages[0]
    if audience is None or reached is None or reached.users is None or audience.users is None:
        unknown = "Their number is unknown without a user list"
        return f"{first.percent:g} % of users get it from their next signal on. {unknown}"
    capital = "" if reached.capital is None else f", with a capital of {count(reached.capital)}"
    return (
        f"{count(reached.users)} of {plural(audience.users, 'user')} get it from their next signal on{capital}. "
        f"This is the stage of {first.percent:g} %"
    )


def _later_stages(plan: Plan) -> str:
    later = ", ".join(f"{stage.percent:g} %" for stage in plan.stages[1:])
    approved = ", ".join(f"{each:g} %" for each in plan.approve_before)
    asks = f"An owner approves before {approved}" if approved else "No stage asks for an approval"
    return f"then {later} as the gates pass. {asks}" if later else f"it is the only stage. {asks}"
