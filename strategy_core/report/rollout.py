"""The whole report of one rollout as Markdown, from which its page is made; it decides nothing."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from strategy_core.domain.alerts import WHY
from strategy_core.domain.gates.base import format_duration
from strategy_core.domain.preview import ESTIMATE, Audience, Preview
from strategy_core.domain.ramp import ENDED, State
from strategy_core.report import markdown
from strategy_core.report import markdown as markdown_report
from strategy_core.report.comparison import comparison_markdown
from strategy_core.report.markdown import Markdown, argument, commands, facts, plain, points, sections, table
from strategy_core.services.live_trades import LiveSummary
from strategy_core.services.reports import Progress, RollbackFacts, RolloutReport
from strategy_core.store.tables import AuditEvent, Rollout

_FACTS = {"active": "active version", "canary": "canary", "percent": "users of the canary", "rollout": "rollout"}


def change_markdown(event: AuditEvent, *, also: str = "") -> str:
    """Return what an audit event says; *also* is Markdown that stands at its end."""
    name = f"{plain(event.strategy_name)} {plain(event.version)}"
    return sections(
        f"# {name}: {plain(event.action.replace('_', ' '))}",
        facts(
            [
                ("by", f"{event.actor} ({event.role}, {event.source})"),
                ("at", event.at),
                ("why", event.reason or "no reason was given"),
                ("generation", event.position),
            ]
        ),
        table(["what", "before", "after"], changes(event)),
        also,
    )


def changes(event: AuditEvent) -> list[tuple[str, object, object]]:
    """Return each fact before and after, what has changed in bold."""
    return [
        (said, *_pair(_value(name, event.before), _value(name, event.after)))
        for name, said in _FACTS.items()
        if name in event.before or name in event.after
    ]


def _pair(before: str, after: str) -> tuple[Markdown, Markdown]:
    old, new = Markdown(plain(before)), plain(after)
    return old, Markdown(new if before == after else f"**{new}**")


def _value(name: str, facts_of: Mapping[str, Any]) -> str:
    value = facts_of.get(name)
    match name, value:
        case _, None:
            return "none"
        case "percent", int() | float():
            return f"{value:g} %"
        case "rollout", {"state": state, "stage": int(stage)}:
            return f"{str(state).replace('_', ' ')}, stage {stage + 1}"
        case _:
            return str(value)


def preview_markdown(found: Preview, reached: Audience) -> str:
    """Return the verdict on a plan, a row per stage, and what other canaries share of its users."""
    counted = f"shares of users are {ESTIMATE}" if reached.estimated else f"of {reached.users:,} users"
    columns = ["stage", "users", "share", "capital", "slots needed", "days expected", ""]
    rows = [
        (
            Markdown(f"{stage.percent:g} %"),
            who.users,
            Markdown(f"{who.share:.2%}"),
            None if who.capital is None else Markdown(f"{who.capital:,.0f}"),
            stage.slots_needed,
            None if stage.days_expected is None else Markdown(f"{stage.days_expected:.1f}"),
            "too long" if stage.underpowered and stage.days_expected is not None else "",
        )
        for stage, who in zip(found.stages, reached.stages, strict=True)
    ]
    shared = [
        f"- also in the {each.percent:g} % canary of {plain(each.strategy_name)} {plain(each.version)}: "
        + " → ".join(f"{share:.2%}" for share in each.shares)
        + " of users"
        for each in reached.overlaps
    ]
    return sections(f"**{plain(found.verdict)}**; {counted}", table(columns, rows), "\n".join(shared))


def headline(progress: Progress) -> str:
    """Return, as Markdown, what stands above everything else."""
    rollout = progress.status.rollout
    name = f"{plain(rollout.strategy_name)} {plain(rollout.version)} against {plain(rollout.control_version)}"
    state = rollout.state.replace("_", " ")
    return (
        f"{name}: {state}" if State(rollout.state) in ENDED else f"{name}: {state} at {progress.percent:g} % of users"
    )


def progress_markdown(progress: Progress, *, also: str = "") -> str:
    """Return the whole of it; *also* is Markdown that stands at its end."""
    rollout = progress.status.rollout
    return sections(
        f"# {headline(progress)}",
        standing(progress),
        needs(progress),
        "## Gates",
        gates(progress),
        markdown.harm_picture(progress.harm, start=rollout.started_at, end=progress.at),
        markdown.share_picture(progress.served, start=rollout.started_at, end=progress.at, ended=_ended(rollout)),
        "## What an owner can do",
        commands(progress_commands(rollout)),
        also,
    )


def standing(progress: Progress) -> str:
    """Return where it stands, a fact a line."""
    rollout, outlook = progress.status.rollout, progress.status.outlook
    users = markdown.users(progress.users, progress.directory)
    return facts(
        [
            ("stages", stages(progress)),
            ("users", f"{progress.percent:g} %" + (f", {users}" if users else "")),
            ("in this stage since", rollout.stage_entered_at),
            ("minimum time left", _left(outlook.minimum_left)),
            ("maximum time left", _left(outlook.maximum_left)),
            ("blind since", rollout.blind_since),
            ("promoted", rollout.promoted_at),
            ("started", _started(progress)),
            ("ended", rollout.ended_at),
            ("last tick", rollout.last_tick_at),
            ("why it stands so", rollout.reason or None),
        ]
    )


def needs(progress: Progress) -> str:
    lines = progress.status.outlook.needs
    return sections("**Before it goes on:**", points(lines)).rstrip() if lines else ""


def gates(progress: Progress, *, wide: bool = False) -> str:
    return markdown.gates(progress.status.verdicts, progress.status.since.get, wide=wide)


def stages(progress: Progress) -> Markdown:
    """Return the plan's percents, the present one bold."""
    at = progress.status.rollout.stage_index
    percents = [
        f"**{percent:g}**" if at == place else f"{percent:g}" for place, percent in enumerate(_stage_percents(progress))
    ]
    return Markdown(f"{' → '.join(percents)} % (stage {at + 1} of {len(percents)})")


def progress_commands(rollout: Rollout) -> list[str]:
    """Return the commands that act on it now, the likeliest first."""
    strategy = argument(rollout.strategy_name)
    undo, look = f"rollout rollback {strategy} {WHY}", f"rollout report {rollout.id}"
    match State(rollout.state):
        case State.AWAITING_APPROVAL:
            return [f"rollout approve {strategy} {WHY}", undo, look]
        case State.AWAITING_DECISION:
            return [*(f"rollout decide {strategy} {choice} {WHY}" for choice in ("extend", "advance")), undo, look]
        case State.PAUSED:
            return [f"rollout resume {strategy} {WHY}", undo, look]
        case State.RUNNING:
            pause = [] if rollout.promoted_at else [f"rollout pause {strategy} {WHY}"]
            return [undo, *pause, look]
        case State.ROLLED_BACK | State.ABORTED:
            return [look, f"rollout verdicts {strategy} --rollout {rollout.id}"]
        case State.COMPLETED:
            return [f"rollout rollback {strategy} --version {argument(rollout.version)} {WHY}", look]


def _stage_percents(progress: Progress) -> tuple[float, ...]:
    return progress.status.stages


def _started(progress: Progress) -> str:
    by = f" by {progress.started_by}" if progress.started_by else ""
    return f"{progress.status.rollout.started_at:%Y-%m-%d %H:%M}{by}"


def _left(span: timedelta | None) -> str | None:
    if span is None:
        return None
    return format_duration(span) if span else "none"


def _ended(rollout: Rollout) -> str:
    return rollout.state.replace("_", " ") if rollout.state in (State.ROLLED_BACK, State.ABORTED) else ""


def rollback_markdown(found: RollbackFacts, *, also: str = "") -> str:
    """Return the whole of it; *also* is Markdown that stands at its end."""
    event = found.event
    return sections(
        f"# {plain(event.strategy_name)} {plain(event.version)} was rolled back",
        rollback_sections(found),
        "## What next",
        next_words(found),
        commands(rollback_commands(found)),
        also,
    )


def rollback_sections(found: RollbackFacts, *, with_cost: bool = True, wide: bool = False) -> str:
    """Return it without the headline and what comes next."""
    return sections(
        _seen(found),
        "## What every gate said",
        markdown.gates(found.verdicts, wide=wide) if found.verdicts else "No gate had spoken.",
        "## Whom it had reached",
        markdown.reached(found.served, found.directory),
        _picture(found),
        *(["## What it cost", _cost(found)] if found.cost and with_cost else []),
        "## The newest rows it rests on",
        _rows(found),
    ).rstrip()


def next_words(found: RollbackFacts) -> str:
    version, active = plain(found.event.version), found.now_active
    serves = f"{plain(active)} serves every user who has no canary. " if active else ""
    return (
        f"{serves}{version} is quarantined: it is ramped again only with a reason that overrides this. Its mended "
        "successor is registered as a version of its own."
    )


def rollback_commands(found: RollbackFacts) -> list[str]:
    """Return the commands that act next, the likeliest first."""
    event = found.event
    strategy, version = argument(event.strategy_name), argument(event.version)
    look = [f"rollout report {event.rollout_id}", f"rollout verdicts {strategy} --rollout {event.rollout_id}"]
    return [
        *(look if event.rollout_id else [f"rollout audit log {strategy}"]),
        f'rollout start {strategy} {version} --override-reason "..." {WHY}',
        f"rollout retire {strategy} {version} {WHY}",
    ]


def _seen(found: RollbackFacts) -> str:
    event, gate = found.event, found.gate
    last = found.served[-1] if found.served else None
    seen: list[tuple[str, object]] = [
        ("when", event.at),
        ("by", f"{event.actor} ({event.source})"),
        ("why", event.reason),
    ]
    if gate is not None:
        seen += [
            ("gate", Markdown(f"{plain(gate.gate)}: **{gate.verdict}**")),
            ("value", gate.value),
            ("limit", gate.limit),
            ("interval", markdown.interval(gate.low, gate.high)),
            ("n", gate.n),
        ]
    users = markdown.users(last.users, found.directory) if last else ""
    seen += [
        ("users at that time", f"{last.percent:g} %" + (f", {users}" if users else "") if last else "nobody"),
        (
            "exposed for",
            format_duration(sum((one.until - one.since for one in found.served), timedelta())) if last else None,
        ),
        ("active now", found.now_active),
    ]
    if event.request_id:
        seen.append(("request", event.request_id))
    return facts(seen)


def _picture(found: RollbackFacts) -> str:
    if not found.served:
        return ""
    return markdown.share_picture(found.served, start=found.served[0].since, end=found.event.at, ended="rolled back")


def _cost(found: RollbackFacts) -> str:
    assert found.cost is not None
    return markdown.cost(found.cost, found.event.version, "its control")


def _rows(found: RollbackFacts) -> str:
    slots = [
        (
            slot.timestamp,
            slot.symbol,
            _side(slot.canary_side),
            markdown.signed(slot.canary_r),
            _side(slot.active_side),
            markdown.signed(slot.active_r),
            markdown.signed(slot.canary_r - slot.active_r),
        )
        for slot in found.slots
    ]
    said = [
        (row.timestamp, row.symbol, row.decision, f"{row.error_kind}: {row.error}" if row.error else row.reason)
        for row in found.decisions
    ]
    ids = [(row.gate, str(row.id), row.ticked_at) for row in found.verdicts] if found.event.evidence else []
    return sections(
        "**Slots that were booked last**" if slots else "",
        table(["candle", "symbol", "it", "R", "control", "its R", "difference"], slots) if slots else "",
        "**What it decided last**" if said else "",
        table(["candle", "symbol", "decision", "reason"], said) if said else "",
        "**Verdicts that the audit event names**" if ids else "",
        table(["gate", "id", "at"], ids) if ids else "",
    ).rstrip()


def _side(side: int) -> str:
    return {1: "buy", -1: "sell"}.get(side, "hold")


def title(report: RolloutReport) -> str:
    """Return the page's title, as plain text."""
    rollout = report.progress.status.rollout
    return f"{rollout.strategy_name} {rollout.version} against {rollout.control_version}: {rollout.state}"


def rollout_markdown(report: RolloutReport) -> str:
    """Return everything: what an owner must know first stands first."""
    going = report.progress
    rollout = going.status.rollout
    canary, control = rollout.version, rollout.control_version
    start, end = rollout.started_at, going.at
    undone = report.rolled_back
    return sections(
        f"# {headline(going)}",
        standing(going),
        needs(going),
        *(
            ["## Why it was rolled back", _lowered(rollback_sections(undone, with_cost=False, wide=True))]
            if undone
            else []
        ),
        *([] if undone else ["## Gates", gates(going, wide=True)]),
        "## Evidence of harm" if going.harm else "",
        markdown_report.harm_picture(going.harm, start=start, end=end),
        *([] if undone else ["## Whom it has reached", markdown_report.reached(going.served, going.directory)]),
        "" if undone else markdown_report.share_picture(going.served, start=start, end=end),
        "## What it cost" if undone else "## What it came to",
        markdown_report.cost(report.cost, canary, control),
        markdown_report.equity_picture(report.equity, canary, control, start=start, end=end),
        markdown_report.day_pictures(report.days, report.usual_unlike),
        *(["## What users' trades came to", _live(going.status.live)] if going.status.live else []),
        *(
            ["## The newest nightly comparison", _lowered(comparison_markdown(report.comparison))]
            if report.comparison
            else []
        ),
        "## What was changed",
        _changes(report),
        "## What next",
        next_words(undone) if undone else "",
        commands(rollback_commands(undone) if undone else progress_commands(rollout)),
        f"Rollout {rollout.id}, as of {end:%Y-%m-%d %H:%M} UTC. The same as data: "
        f"`rollout report {argument(str(rollout.id))} --json`",
    )


def _lowered(markdown: str) -> str:
    """Return *markdown* with its headlines a level lower; a line of people's words never begins with a bare #."""
    return "\n".join(f"#{line}" if line.startswith("#") else line for line in markdown.splitlines())


def _live(live: Mapping[str, LiveSummary]) -> str:
    columns = ["version", "from", "trades", "win rate", "average PnL", "R a trade", "drawdown", "fidelity"]
    rows: list[tuple[object, ...]] = []
    for version, summary in live.items():
        fidelity = None if summary.fidelity is None else summary.fidelity.concordance
        for source, done in (("users", summary.live), ("shadow", summary.shadow)):
            trades = summary.trades if source == "users" else done.trades
            measured = (done.win_rate, done.average_pnl, done.expectancy, done.max_drawdown)
            rows.append((version, source, trades, *measured, fidelity if source == "users" else None))
    return table(columns, rows)


def _changes(report: RolloutReport) -> str:
    rows = [
        (
            event.at,
            f"{event.actor} ({event.source})",
            event.action.replace("_", " "),
            Markdown(
                "; ".join(
                    f"{plain(said)} {before} → {after}" for said, before, after in changes(event) if before != after
                )
            ),
            event.reason,
        )
        for event in report.changes
    ]
    return table(["at", "by", "action", "what", "why"], rows) if rows else "Nothing was written down of it."
