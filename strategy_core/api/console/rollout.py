"""The page on one rollout: verdict, stages, gates, evidence, history, results."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from fastapi import Path, Response
from fastapi.responses import HTMLResponse, JSONResponse
from markupsafe import Markup

from strategy_core.api.console.gate_bar import GateBar, gate_bar
from strategy_core.api.console.page import Visited, console_router, redirect
from strategy_core.api.console.rollout_acts import BUTTONS, rollout_path
from strategy_core.api.console.words import percent, plural
from strategy_core.api.dependencies import HEAVY
from strategy_core.api.routes.reports import show_report
from strategy_core.api.schemas import RolloutId, StrategyName
from strategy_core.domain.comparison import Comparison
from strategy_core.domain.errors import InvalidPlan, UnknownRollout
from strategy_core.domain.gates.base import Verdict, format_duration, format_r
from strategy_core.domain.gates.on_slots import Harm, NotWorse
from strategy_core.domain.preview import STAKE
from strategy_core.domain.ramp import State
from strategy_core.domain.readings import NO_DATA, GateReading, gates_of
from strategy_core.domain.rollout_verdict import VerdictKind
from strategy_core.report import charts
from strategy_core.report.html import HEADERS, html_page
from strategy_core.report.rollout import FOLDED, page_title, progress_commands, rollout_markdown
from strategy_core.services import queries, reports
from strategy_core.services.rollout_page import (
    OwnerChoice,
    RolloutPage,
    newest_rollout,
    possible_choices,
    read_rollout_page,
)
from strategy_core.services.status import stale_remark
from strategy_core.store.tables import AuditEvent

Strategy = Annotated[StrategyName, Path(description="Name of the strategy.")]

_TONES = {
    VerdictKind.HARM_PROVEN: "bad",
    VerdictKind.HARM_LIKELY: "bad",
    VerdictKind.ROLLED_BACK: "bad",
    VerdictKind.BLIND: "warn",
    VerdictKind.HELD: "warn",
    VerdictKind.AWAITING_DECISION: "warn",
    VerdictKind.AWAITING_APPROVAL: "warn",
    VerdictKind.PAUSED: "warn",
    VerdictKind.UNCLEAR: "warn",
    VerdictKind.SAFE: "good",
    VerdictKind.READY: "good",
    VerdictKind.BAKING: "good",
    VerdictKind.PROMOTED: "good",
}
_GATE_TONES = {"breach": "bad", "fail": "bad", "blind": "bad", "inconclusive": "warn", "pass": "good"}
_RANKS = (*(verdict.value for verdict in Verdict if verdict is not Verdict.PASS), NO_DATA, Verdict.PASS.value)

_EVENTS = {
    "start_rollout": "started",
    "advance": "advanced",
    "await_approval": "waits for an approval",
    "await_decision": "waits for a decision",
    "approve": "approved",
    "lapse": "approval lapsed",
    "extend": "more time",
    "pause": "paused",
    "resume": "resumed",
    "promote": "promoted",
    "complete": "completed",
    "roll_back": "rolled back",
    "exclude_symbol": "symbol excluded",
    "update_canary_percent": "share set by hand",
}

router = console_router()


@router.get("/strategies/{strategy_name}/rollout")
def show_newest(visit: Visited, strategy_name: Strategy) -> Response:
    """Lead to the open rollout, or to the newest one."""
    visit.reads(strategy_name)
    return redirect(rollout_path(strategy_name, newest_rollout(visit.engine, strategy_name)))


@router.get("/rollouts/{rollout_id}")
def show_by_id(visit: Visited, rollout_id: RolloutId) -> Response:
    """Lead to the page on a rollout."""
    return redirect(rollout_path(visit.reads(queries.find_rollout(visit.engine, rollout_id).strategy_name), rollout_id))


@router.get("/strategies/{strategy_name}/rollouts/{rollout_id}")
def show_rollout(visit: Visited, strategy_name: Strategy, rollout_id: RolloutId) -> Response:
    visit.reads(strategy_name)
    settings = visit.backend.settings
    try:
        page = _read_page(visit, strategy_name, rollout_id)
    except InvalidPlan as error:
        path = rollout_path(strategy_name, rollout_id)
        return visit.render("rollout_unreadable.html", strategy_name=strategy_name, problem=str(error), path=path)
    choices: dict[OwnerChoice, str] = {}
    if visit.can_change(strategy_name):
        choices = possible_choices(
            page,
            owner=visit.principal.name,
            four_eyes=settings.four_eyes,
            routes_by_symbol=settings.routes_by_symbol,
        )
    rollout, reach, tone = page.status.rollout, page.reach, _TONES.get(page.status.verdict.kind, "quiet")
    gates = _gates(page)
    return visit.render(
        "rollout.html",
        page=page,
        rollout=rollout,
        verdict=page.status.verdict,
        tone=tone,
        state="baking" if rollout.promoted_at and reach.is_open else rollout.state.replace("_", " "),
        is_open=reach.is_open,
        choices=choices,
        buttons=_buttons(page, choices, urgent=tone == "bad"),
        refused=[(BUTTONS[choice], why) for choice, why in choices.items() if why],
        outcome=_outcome(page),
        stale=stale_remark(page.status, visit.now, settings.tick_overdue),
        gates=[each for each in gates if each.in_front],
        other_gates=[each for each in gates if not each.in_front],
        others=_summary([each.reading.verdict for each in gates if not each.in_front]),
        harm=_harm_chart(page),
        difference=_difference_chart(page),
        events=[_event(each) for each in page.events],
        event_words=_EVENTS,
        commands=progress_commands(rollout),
        path=rollout_path(strategy_name, rollout_id),
    )


@router.get("/strategies/{strategy_name}/rollouts/{rollout_id}/results", dependencies=[HEAVY])
def show_results(visit: Visited, strategy_name: Strategy, rollout_id: RolloutId) -> Response:
    """Equity, days, regimes and live orders: what takes longer the more slots and orders there are."""
    report = _read_report(visit, strategy_name, rollout_id)
    progress, nightly = report.progress, None
    if report.comparison is not None:
        nightly = Comparison.model_validate(report.comparison.report.report)
    return visit.render(
        "rollout_results.html",
        rollout=progress.status.rollout,
        cost=report.cost,
        equity=_equity_chart(report),
        bound=_bound_chart(_read_page(visit, strategy_name, rollout_id)),
        divergence=_divergence_chart(report),
        regimes=_regime_chart(nightly),
        nightly=nightly,
        live=progress.status.live,
        path=rollout_path(strategy_name, rollout_id),
    )


@router.get("/strategies/{strategy_name}/rollouts/{rollout_id}/report", dependencies=[HEAVY])
def show_report_page(visit: Visited, strategy_name: Strategy, rollout_id: RolloutId) -> Response:
    """The full report as one page that can be kept."""
    report = _read_report(visit, strategy_name, rollout_id)
    return HTMLResponse(html_page(page_title(report), rollout_markdown(report), folded=FOLDED), headers=HEADERS)


@router.get("/strategies/{strategy_name}/rollouts/{rollout_id}/report.json", dependencies=[HEAVY])
def show_report_data(visit: Visited, strategy_name: Strategy, rollout_id: RolloutId, response: Response) -> Response:
    """The full report as the API returns it."""
    visit.reads(strategy_name)
    return JSONResponse(show_report(visit, rollout_id, response).model_dump(mode="json"))


def _read_page(visit: Visited, strategy_name: str, rollout_id: RolloutId) -> RolloutPage:
    clock = visit.backend.settings.clock_check
    return read_rollout_page(visit.engine, strategy_name, rollout_id, now=visit.now, clock=clock)


def _read_report(visit: Visited, strategy_name: str, rollout_id: RolloutId) -> reports.RolloutReport:
    visit.reads(strategy_name)
    if queries.find_rollout(visit.engine, rollout_id).strategy_name != strategy_name:
        raise UnknownRollout(f"{rollout_id} of {strategy_name!r}")
    report, _ = reports.read_report(visit.engine, rollout_id, now=visit.now, clock=visit.backend.settings.clock_check)
    return report


def _buttons(page: RolloutPage, choices: Mapping[OwnerChoice, str], *, urgent: bool) -> list[tuple[str, str, str]]:
    """Return (act, word, class) of each button. A rollback stands first where harm is likely, else last."""
    words, following = dict(BUTTONS), page.reach.following if page.reach.is_open else None
    if following is not None:
        words[OwnerChoice.APPROVE] = f"Approve {percent(following)}"
        words[OwnerChoice.ADVANCE] = f"Advance to {percent(following)} anyway"
    elif OwnerChoice.ADVANCE in choices:
        words[OwnerChoice.ADVANCE] = "Promote anyway"
    if page.reach.previous is not None:
        words[OwnerChoice.ROLL_BACK] = f"Roll back to {page.reach.previous}"
    classes = dict.fromkeys((OwnerChoice.APPROVE, OwnerChoice.EXTEND, OwnerChoice.RESUME), "")
    classes[OwnerChoice.ROLL_BACK] = "danger"
    found = [
        (choice.value, words[choice], classes.get(choice, "plain"))
        for choice, why in choices.items()
        if not why and choice is not OwnerChoice.ACKNOWLEDGE
    ]
    return sorted(found, key=lambda button: button[2] != "danger") if urgent else found


def _outcome(page: RolloutPage) -> list[tuple[str, str]]:
    """Return which users an ended rollout reached, what it cost, and what to do now. Empty for an open one."""
    rollout, reach = page.status.rollout, page.reach
    if reach.is_open or rollout.ended_at is None:
        return []
    entered = [each for each in page.passages if each.entered is not None and each.percent is not None]
    most = max(each.percent if each.served is None else each.served for each in entered if each.percent is not None)
    narrowed = most not in [each.percent for each in entered]  # no count is kept of the users at such a share
    users, everyone = None if narrowed else reach.users(most), reach.everyone
    counted = "" if users is None or everyone is None else f": {users:,} of {everyone:,}"
    lasted = format_duration(rollout.ended_at - rollout.started_at)
    return [
        ("Users", f"At most {percent(most)} of users{counted}. It lasted {lasted}."),
        ("What it cost", _cost(page)),
        ("What to do now", _after(page)),
    ]


def _cost(page: RolloutPage) -> str:
    cost, rollout = page.cost, page.status.rollout
    if not cost.slots:
        return "No slot has closed, so there are no results."
    money = cost.difference_r * cost.risk_fraction
    return (
        f"A user who copied every signal had {format_r(cost.canary_r)} with {rollout.version} and "
        f"{format_r(cost.control_r)} with {rollout.control_version} in {plural(cost.slots, 'slot')}: a difference of "
        f"{format_r(cost.difference_r)}, "
        f"{money * STAKE:+,.0f} on an account of {STAKE:,}."
    )


def _after(page: RolloutPage) -> str:
    rollout, reach = page.status.rollout, page.reach
    version, active = rollout.version, reach.active
    serves = f"{active} serves {'all' if reach.percent in (0, 100) else 'the other'} users." if active else ""
    if rollout.state == State.ROLLED_BACK:
        again = f"Version {version} is quarantined: a new rollout of it needs an override reason."
        return f"{serves} {again} Register the corrected strategy as a new version.".strip()
    if rollout.state == State.ABORTED:
        return f"{serves} {version} is in shadow, and its rollout can start again.".strip()
    if reach.previous is not None:
        return f"Nothing. {serves} A rollback would bring {reach.previous} back."
    return f"Nothing. {serves}".strip()


@dataclass(frozen=True, slots=True)
class GateLine:
    """A gate on the page: its reading, the tone of its verdict, a bar if its value can be drawn, and since when.

    *in_front*: it does not pass, or it judges the results. The others are folded.
    """

    reading: GateReading
    tone: str
    bar: GateBar | None
    since: datetime
    in_front: bool


def _gates(page: RolloutPage) -> list[GateLine]:
    """Return the gates from worst to best. Those without a vote stand behind those with one."""
    gates = gates_of(page.reach.plan)
    lines = [
        GateLine(
            reading=reading,
            tone=_GATE_TONES.get(reading.verdict, "quiet"),
            bar=gate_bar(gates[row.gate], row) if reading.verdict != NO_DATA else None,
            since=page.status.since[row.gate],
            in_front=row.verdict != Verdict.PASS or isinstance(gates[row.gate], Harm | NotWorse),
        )
        for row, reading in zip(page.status.verdicts, page.status.readings, strict=True)
    ]
    return sorted(lines, key=lambda line: (not line.reading.armed, _RANKS.index(line.reading.verdict)))


def _summary(verdicts: Sequence[str]) -> str:
    """Return how many gates are folded, and how many of them pass and have no data."""
    empty = verdicts.count(NO_DATA)
    counts = [f"{len(verdicts) - empty} pass"] * (len(verdicts) > empty)
    counts += [f"{empty} without data"] * (empty > 0)
    return f"{plural(len(verdicts), 'more gate')}: {', '.join(counts)}"


def _harm_chart(page: RolloutPage) -> Markup | None:
    path, start = page.harm, page.status.rollout.started_at
    if path is None:
        return None
    return _drawn(charts.harm_svg("Evidence of harm, E", path, start=start, end=max(page.at, path.at[-1])))


def _difference_chart(page: RolloutPage) -> Markup | None:
    if not page.days:
        return None
    rollout = page.status.rollout
    title = f"Difference in R a slot, {rollout.version} less {rollout.control_version}, with its 95 % interval"
    return _drawn(charts.difference_svg(title, page.days))


def _bound_chart(page: RolloutPage) -> Markup | None:
    path, rollout = page.bound, page.status.rollout
    if path is None:
        return None
    stages = [
        (each.entered, f"{each.percent:g} %")
        for each in page.passages
        if each.entered is not None and each.percent is not None
    ]
    ended = rollout.state.replace("_", " ") if rollout.state in (State.ROLLED_BACK, State.ABORTED) else ""
    end = max(page.at, path.at[-1])
    title = "Difference in R a slot, and its lower bound as the gate measures it"
    return _drawn(charts.bound_svg(title, path, stages, start=rollout.started_at, end=end, ended=ended))


def _equity_chart(report: reports.RolloutReport) -> Markup | None:
    rollout, equity = report.progress.status.rollout, report.equity
    if len(equity.at) < 2:
        return None
    curves = (
        charts.Curve(rollout.version, equity.at, equity.canary),
        charts.Curve(rollout.control_version, equity.at, equity.control),
    )
    end = max(report.progress.at, equity.at[-1])
    return _drawn(charts.equity_svg("Equity, open trades included", *curves, start=rollout.started_at, end=end))


def _divergence_chart(report: reports.RolloutReport) -> Markup | None:
    if not report.days:
        return None
    return _drawn(charts.divergence_svg("Slots on which the versions differ", report.days, report.usual_unlike))


def _regime_chart(nightly: Comparison | None) -> Markup | None:
    if nightly is None or not any(each.difference.mean is not None for each in nightly.by_regime.values()):
        return None
    return _drawn(charts.regimes_svg("Difference by regime, with its 95 % interval", nightly.by_regime))


def _drawn(svg: str) -> Markup:
    """Mark a chart as safe: it is rendered from an XML tree, which escapes all texts."""
    return Markup(svg)  # noqa: S704


@dataclass(frozen=True, slots=True)
class EventLine:
    """An audit event on the page: what was done, and what it changed."""

    event: AuditEvent
    words: str
    changed: str


def _event(event: AuditEvent) -> EventLine:
    before, after = event.before, event.after
    changed = []
    if before.get("active") != after.get("active"):
        changed.append(f"active {before.get('active') or 'none'} → {after.get('active') or 'none'}")
    elif before.get("percent", 0) != after.get("percent", 0):
        changed.append(f"{before.get('percent', 0):g} % → {after.get('percent', 0):g} % of users")
    if "symbol" in after:
        changed.append(f"without {after['symbol']}")
    return EventLine(event, _EVENTS.get(event.action, event.action.replace("_", " ")), ", ".join(changed))
