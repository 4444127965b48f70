"""Markdown reports of rollouts: plan preview, progress, change, rollback, and the full report."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from strategy_core.domain.alerts import HEADLINES, WHY, clipped
from strategy_core.domain.gates.base import Verdict, format_duration, format_r
from strategy_core.domain.preview import ESTIMATE, STAKE, Audience, Preview
from strategy_core.domain.ramp import ENDED, State
from strategy_core.domain.readings import GateReading
from strategy_core.report.charts import harm_svg, rollback_svg, share_svg
from strategy_core.report.comparison import comparison_markdown, day_charts, equity_chart
from strategy_core.report.markdown import (
    Markdown,
    bullet_list,
    fact_list,
    image,
    percent,
    plain,
    sections,
    shell_argument,
    shell_block,
    signed,
    table,
)
from strategy_core.services.history import ServedSpan
from strategy_core.services.live_trades import LiveSummary
from strategy_core.services.reports import HarmPath, Progress, RollbackCost, RollbackFacts, RolloutReport
from strategy_core.store.tables import AuditEvent, Rollout

_STATE_FIELDS = {
    "active": "active version",
    "canary": "canary",
    "percent": "users of the canary",
    "rollout": "rollout",
    "excluded": "excluded symbols",
}
_SPOKEN = (Verdict.BREACH, Verdict.FAIL, Verdict.BLIND, Verdict.INCONCLUSIVE)
_BOLD_VERDICTS = (Verdict.BREACH, Verdict.FAIL, Verdict.BLIND)
ERROR_WORDS = {
    "raised": "its code raised",
    "invalid": "not a valid decision",
    "deadline": "not in time",
    "died": "its worker died",
    "breach": "tried to reach outside",
    "overload": "not in time on a host that was too slow, not counted",
}
FOLDED = (  # sections of the full report that a page shows when they are opened
    *("Stage and times", "Facts", "Errors and open alerts", "Every gate", "Evidence of harm", "Users reached"),
    *("Latest evidence", "Latest nightly comparison", "Change history"),
)
_SIDES = {1: "buy", -1: "sell"}


def preview_markdown(preview: Preview, audience: Audience) -> str:
    """Return the verdict on a plan, one row per stage, and the overlap with canaries of other strategies."""
    base = f"shares of users are {ESTIMATE}" if audience.estimated else f"of {audience.users:,} users"
    columns = ["stage", "served", "users", "share", "capital", "slots needed", "days expected", "note"]
    rows = [
        (
            percent(stage.percent),
            percent(reached.effective_percent),
            reached.users,
            Markdown(f"{reached.share:.2%}"),
            None if reached.capital is None else Markdown(f"{reached.capital:,.0f}"),
            stage.slots_needed,
            None if stage.days_expected is None else Markdown(f"{stage.days_expected:.1f}"),
            "longer than its maximum time" if stage.underpowered and stage.days_expected is not None else None,
        )
        for stage, reached in zip(preview.stages, audience.stages, strict=True)
    ]
    overlaps = [
        f"- also in the {percent(overlap.percent)} canary of {plain(overlap.strategy_name)} {plain(overlap.version)}: "
        + " → ".join(f"{share:.2%}" for share in overlap.shares)
        + " of users"
        for overlap in audience.overlaps
    ]
    notes = [f"- {plain(note)}" for note in [*audience.notes, *preview.notes]]
    return sections(f"**{plain(preview.verdict)}**, {base}", table(columns, rows), "\n".join([*notes, *overlaps]))


def progress_markdown(progress: Progress, *, footer: str = "") -> str:
    """Return where a rollout stands: facts, gates, charts and the commands to run next.

    Args:
        footer: trusted Markdown for the end.
    """
    rollout = progress.status.rollout
    return sections(
        f"# {_headline(progress)}",
        f"**{plain(progress.status.verdict.sentence)}**",
        _requirements(progress),
        shell_block(progress_commands(rollout)),
        "## Gates",
        _gate_table(progress.status.readings, progress.status.since),
        _harm_chart(progress.harm, start=rollout.started_at, end=progress.at),
        "## Stage and users",
        _progress_facts(progress),
        _share_chart(progress.served, start=rollout.started_at, end=progress.at, ended=_ended_as(rollout)),
        footer,
    )


def change_markdown(event: AuditEvent, *, footer: str = "") -> str:
    """Return what one audit event changed, its actor and its reason.

    Args:
        footer: trusted Markdown for the end.
    """
    rows = [
        (name, Markdown(before), Markdown(before if before == after else f"**{after}**"))
        for name, before, after in _state_fields(event)
    ]
    return sections(
        f"# {plain(event.strategy_name)} {plain(event.version)}: {plain(event.action.replace('_', ' '))}",
        fact_list(
            [
                ("by", f"{event.actor} ({event.role}, {event.source})"),
                ("at", event.at),
                ("reason", event.reason or "no reason given"),
                ("generation", event.position),
            ]
        ),
        table(["what", "before", "after"], rows),
        footer,
    )


def rollback_markdown(rollback: RollbackFacts) -> str:
    """Return what happened, to whom, and what it cost, a picture of it, the gates that spoke, and then all the rest."""
    return sections(
        f"# {plain(rollback.event.strategy_name)} {plain(rollback.event.version)} was rolled back",
        _rollback_summary(rollback),
        _rollback_chart(rollback),
        "## Gates that spoke",
        _spoken_gates(rollback),
        "## Next steps",
        shell_block(_rollback_commands(rollback)),
        "## Facts",
        _rollback_facts(rollback),
        "## Errors and open alerts",
        _rollback_causes(rollback),
        "## Every gate",
        _every_gate(rollback),
        "## Users reached",
        _reach(rollback),
        *(["## Cost", _cost_table(rollback.cost, rollback.event.version, "the control")] if rollback.cost else []),
        "## Latest evidence",
        _evidence_tables(rollback),
    )


def rollout_markdown(report: RolloutReport) -> str:
    """Return the full report of a rollout, the most urgent facts first. A page folds the sections in `FOLDED`."""
    progress, rollback = report.progress, report.rolled_back
    status = progress.status
    rollout = status.rollout
    canary, control = rollout.version, rollout.control_version
    start, end = rollout.started_at, progress.at
    live, nightly = status.live, report.comparison
    results = [
        "## Cost" if rollback else "## Results",
        _cost_table(report.cost, canary, control),
        equity_chart(report.equity, canary, control, start=start, end=end),
        day_charts(report.days, report.usual_unlike),
    ]
    about = (
        f"Rollout {rollout.id}, as of {end:%Y-%m-%d %H:%M} UTC. For the same data as JSON: "
        f"`rollout report {shell_argument(str(rollout.id))} --json`"
    )
    if rollback:
        parts = [
            _rollback_summary(rollback),
            _rollback_chart(rollback),
            "## Gates that spoke",
            _spoken_gates(rollback, wide=True),
            "## Next steps",
            shell_block(_rollback_commands(rollback)),
            about,
            *results,
            "## Stage and times",
            _progress_facts(progress),
            "## Facts",
            _rollback_facts(rollback),
            "## Errors and open alerts",
            _rollback_causes(rollback),
            "## Every gate",
            _every_gate(rollback, wide=True),
            "## Evidence of harm",
            _harm_chart(progress.harm, start=start, end=end),
            "## Users reached",
            _reach(rollback),
            "## Latest evidence",
            _evidence_tables(rollback),
        ]
    else:
        parts = [
            f"**{plain(status.verdict.sentence)}**",
            _requirements(progress),
            shell_block(progress_commands(rollout)),
            about,
            "## Gates",
            _gate_table(status.readings, status.since, wide=True),
            *(["## Evidence of harm", _harm_chart(progress.harm, start=start, end=end)] if progress.harm else []),
            *results,
            "## Stage and users",
            _progress_facts(progress),
            _served_table(progress.served, progress.directory),
            _share_chart(progress.served, start=start, end=end),
        ]
    return sections(
        f"# {_headline(progress)}",
        *parts,
        *(["## Live trades", _live_table(live)] if live else []),
        *(["## Latest nightly comparison", comparison_markdown(nightly, level=3)] if nightly else []),
        "## Change history",
        _change_table(report.changes),
    )


def page_title(report: RolloutReport) -> str:
    """Return the title of the full report, as plain text."""
    rollout = report.progress.status.rollout
    return f"{rollout.strategy_name} {rollout.version} against {rollout.control_version}: {rollout.state}"


def _headline(progress: Progress) -> str:
    rollout = progress.status.rollout
    versions = f"{plain(rollout.strategy_name)} {plain(rollout.version)} against {plain(rollout.control_version)}"
    users = "" if State(rollout.state) in ENDED else f" at {percent(progress.percent)} of users"
    return f"{versions}: {rollout.state.replace('_', ' ')}{users}"


def _progress_facts(progress: Progress) -> str:
    rollout, outlook = progress.status.rollout, progress.status.outlook
    started_by = f" by {progress.started_by}" if progress.started_by else ""
    return fact_list(
        [
            ("stages", _stage_list(progress)),
            ("users", _user_share(progress.percent, progress.users, progress.directory)),
            ("in this stage since", rollout.stage_entered_at),
            ("minimum time left", _time_left(outlook.minimum_left)),
            ("maximum time left", _time_left(outlook.maximum_left)),
            ("blind since", rollout.blind_since),
            ("promoted", rollout.promoted_at),
            ("started", f"{rollout.started_at:%Y-%m-%d %H:%M}{started_by}"),
            ("ended", rollout.ended_at),
            ("last tick", rollout.last_tick_at),
            ("reason", rollout.reason or None),
            ("excluded", _excluded(progress.excluded)),
        ]
    )


def _excluded(excluded: Mapping[str, datetime]) -> Markdown | None:
    """Return which symbols the canary does not serve, and since when, or None."""
    symbols = [f"{plain(symbol)} since {since:%Y-%m-%d %H:%M}" for symbol, since in sorted(excluded.items())]
    return Markdown(f"{', '.join(symbols)}. Later candles are left out of all figures and lists") if symbols else None


def _stage_list(progress: Progress) -> Markdown:
    current, stages = progress.status.rollout.stage_index, progress.status.stages
    percents = [f"**{stage:g}**" if number == current else f"{stage:g}" for number, stage in enumerate(stages)]
    return Markdown(f"{' → '.join(percents)} % (stage {current + 1} of {len(percents)})")


def _time_left(left: timedelta | None) -> str | None:
    if left is None:
        return None
    return format_duration(left) if left else "none"


def _requirements(progress: Progress) -> str:
    lines = progress.status.outlook.needs
    return f"**Required for the next step:**\n\n{bullet_list(lines)}" if lines else ""


def _ended_as(rollout: Rollout) -> str:
    return rollout.state.replace("_", " ") if rollout.state in (State.ROLLED_BACK, State.ABORTED) else ""


def progress_commands(rollout: Rollout) -> list[str]:
    return rollout_commands(
        rollout.strategy_name,
        rollout.version,
        rollout.id,
        State(rollout.state),
        is_promoted=rollout.promoted_at is not None,
    )


def rollout_commands(
    strategy_name: str, version: str, rollout_id: UUID, state: State, *, is_promoted: bool
) -> list[str]:
    """Return the commands that fit a rollout's state, the most likely one first."""
    strategy = shell_argument(strategy_name)
    rollback, report = f"rollout rollback {strategy} {WHY}", f"rollout report {rollout_id}"
    match state:
        case State.AWAITING_APPROVAL:
            return [f"rollout approve {strategy} {WHY}", rollback, report]
        case State.AWAITING_DECISION:
            decisions = [f"rollout decide {strategy} {decision} {WHY}" for decision in ("extend", "advance")]
            return [*decisions, rollback, report]
        case State.PAUSED:
            return [f"rollout resume {strategy} {WHY}", rollback, report]
        case State.RUNNING:
            pause = [] if is_promoted else [f"rollout pause {strategy} {WHY}"]
            return [rollback, *pause, report]
        case State.ROLLED_BACK | State.ABORTED:
            return [report, f"rollout verdicts {strategy} --rollout {rollout_id}"]
        case State.COMPLETED:
            return [f"rollout rollback {strategy} --version {shell_argument(version)} {WHY}", report]


def _rollback_summary(rollback: RollbackFacts) -> str:
    """Return three lines: what happened, to whom, and what it cost with what to do now."""
    event, served, cost = rollback.event, rollback.served, rollback.cost
    version, last = event.version, served[-1] if served else None
    stage = f" at {rollback.percent:g} % of users" if rollback.percent is not None else ""
    by_gate = rollback.gate is not None
    reason = event.reason or "no reason given"
    reading = rollback.readings.get(rollback.gate.gate) if rollback.gate is not None else None
    if reading is not None:
        reason = reason.replace(f"{reading.gate}: ", f"{reading.title}: ", 1)
    who = "by its gates" if by_gate else f"by {event.actor}"
    happened = f"rolled back{stage} on {event.at:%Y-%m-%d %H:%M} UTC, {who}: {reason}"
    exposed_for = sum((span.until - span.since for span in served), timedelta())
    users = "it reached no users"
    if last is not None:
        share = _user_share(last.percent, last.users, rollback.directory)
        users = f"{share} at the end, for {format_duration(exposed_for)} in all"
    serving = f"Version {rollback.now_active} serves them now" if rollback.now_active else "No version serves them now"
    paid = "no slot had closed, so nothing is booked"
    if cost is not None and cost.slots:
        money = cost.difference_r * cost.risk_fraction
        paid = (
            f"{format_r(cost.difference_r)} in {cost.slots:,} slots against the other users: {money:+.1%} of equity, "
            f"{money * STAKE:+,.0f} on an account of {STAKE:,}"
        )
    return fact_list(
        [
            ("what happened", f"{happened}."),
            ("to whom", f"{users}. {serving}."),
            ("cost, and what to do", f"{paid}. {_after_rollback(version)}."),
        ]
    )


def _rollback_chart(rollback: RollbackFacts) -> str:
    """Return the picture of the difference, the evidence with its limit, and the moment of the rollback."""
    found = rollback.equity
    if found is None or len(found.at) < 2:
        return ""
    difference = found.canary[-1] - found.control[-1]
    title = f"Difference of {rollback.event.version} to the other users, until it was rolled back: {difference:+.1f} R"
    gate = rollback.readings.get(rollback.gate.gate) if rollback.gate is not None else None
    ended = f"rolled back: {gate.title} {gate.value}, limit {gate.limit}" if gate is not None else "rolled back"
    svg = rollback_svg(title, found, rollback.harm, start=found.at[0], end=rollback.event.at, ended=ended)
    return image(svg, "difference until the rollback")


def _spoken_gates(rollback: RollbackFacts, *, wide: bool = False) -> str:
    """Return the gates that did not pass, the worst first."""
    readings = [rollback.readings[row.gate] for row in rollback.verdicts if row.gate in rollback.readings]
    spoke = [reading for reading in readings if reading.holds and reading.verdict in _SPOKEN]
    if not spoke:
        return "No gate found harm: a person rolled it back." if readings else _gate_table([])
    return _gate_table(spoke, {row.gate: row.ticked_at for row in rollback.verdicts}, wide=wide)


def _every_gate(rollback: RollbackFacts, *, wide: bool = False) -> str:
    readings = [rollback.readings[row.gate] for row in rollback.verdicts if row.gate in rollback.readings]
    return _gate_table(readings, {row.gate: row.ticked_at for row in rollback.verdicts}, wide=wide)


def _reach(rollback: RollbackFacts) -> str:
    served = rollback.served
    return sections(
        _served_table(served, rollback.directory),
        _share_chart(served, start=served[0].since, end=rollback.event.at, ended="rolled back") if served else "",
    ).rstrip()


def _rollback_facts(rollback: RollbackFacts) -> str:
    event, gate, served = rollback.event, rollback.gate, rollback.served
    facts: list[tuple[str, object]] = [
        ("at", event.at),
        ("by", f"{event.actor} ({event.source})"),
        ("reason", event.reason),
    ]
    if gate is not None:
        facts += [
            ("gate", Markdown(f"{plain(gate.gate)}: **{gate.verdict}**")),
        ]
    exposed_for = sum((span.until - span.since for span in served), timedelta())
    last = served[-1] if served else None
    facts += [
        (
            "users before the rollback",
            _user_share(last.percent, last.users, rollback.directory) if last else "no users",
        ),
        ("exposed for", format_duration(exposed_for) if served else None),
        ("active version now", rollback.now_active),
        ("request", event.request_id or None),
        ("excluded", _excluded(rollback.excluded)),
    ]
    return fact_list(facts)


def _rollback_causes(rollback: RollbackFacts) -> str:
    """Return the newest errors of the version and the alerts about it that were open, in plain words."""
    errors = [
        f"{row.timestamp:%Y-%m-%d %H:%M} {row.symbol}: {ERROR_WORDS.get(row.error_kind, row.error_kind)}: {row.error}"
        for row in rollback.errors
    ]
    if rollback.failed_run is not None:
        failed = rollback.failed_run
        host = f" (the host is at fault: {failed.host_fault})" if failed.host_fault else ""
        errors.insert(0, f"{failed.at:%Y-%m-%d %H:%M}: the version could not be run: {failed.reason}{host}")
    alerts = [
        f"{alert.at:%Y-%m-%d %H:%M} {alert.severity}, {HEADLINES.get(alert.kind, alert.kind)}: {clipped(alert.text)}"
        for alert in rollback.alerts
    ]
    return sections(
        "**Newest errors**" if errors else "The version had no errors.",
        bullet_list(errors) if errors else "",
        "**Open alerts**" if alerts else "No alert about the version was open.",
        bullet_list(alerts) if alerts else "",
    ).rstrip()


def _evidence_tables(rollback: RollbackFacts) -> str:
    """Return the latest slots and decisions, and the ids of the verdicts that the audit event cites."""
    slots = [
        (
            slot.timestamp,
            slot.symbol,
            _SIDES.get(slot.canary_side, "hold"),
            signed(slot.canary_r),
            _SIDES.get(slot.active_side, "hold"),
            signed(slot.active_r),
            signed(slot.canary_r - slot.active_r),
        )
        for slot in rollback.slots
    ]
    decisions = [
        (row.timestamp, row.symbol, row.decision, f"{row.error_kind}: {row.error}" if row.error else row.reason)
        for row in rollback.decisions
    ]
    verdicts = [(row.gate, str(row.id), row.ticked_at) for row in rollback.verdicts] if rollback.event.evidence else []
    slot_columns = ["candle", "symbol", "canary", "canary R", "control", "control R", "difference"]
    return sections(
        *(["**Latest booked slots**", table(slot_columns, slots)] if slots else []),
        *(["**Latest decisions**", table(["candle", "symbol", "decision", "reason"], decisions)] if decisions else []),
        *(["**Verdicts in the audit event**", table(["gate", "id", "at"], verdicts)] if verdicts else []),
    ).rstrip()


def _after_rollback(version: str) -> str:
    return f"Register a corrected version: {version} is quarantined, and starts again only with an override reason"


def _rollback_commands(rollback: RollbackFacts) -> list[str]:
    """Return the commands to run next, the most likely one first."""
    event = rollback.event
    strategy, version = shell_argument(event.strategy_name), shell_argument(event.version)
    if event.rollout_id:
        inspect = [f"rollout report {event.rollout_id}", f"rollout verdicts {strategy} --rollout {event.rollout_id}"]
    else:
        inspect = [f"rollout audit log {strategy}"]
    return [
        *inspect,
        f'rollout start {strategy} {version} --override-reason "..." {WHY}',
        f"rollout retire {strategy} {version} {WHY}",
    ]


def _gate_table(
    readings: Sequence[GateReading], at: Mapping[str, datetime] | None = None, *, wide: bool = False
) -> str:
    """Return gates in the given order, each value beside the limit at which the verdict changes.

    Args:
        at: by gate, since when it has this verdict.
        wide: put reasons into the table. Prefect's pages do not wrap table cells, so there they form a list below.
    """
    if not readings:
        return "No gate has given a verdict."
    since = at or {}
    columns = ["gate", "verdict", "value", "limit", "seen", "since", "reason"]
    rows = [
        (
            each.title,
            _verdict(each),
            Markdown(plain(each.value)),
            Markdown(plain(each.limit)),
            Markdown(plain(each.count)),
            since.get(each.gate),
            each.reason,
        )
        for each in readings
    ]
    if wide:
        return table(columns, rows)
    narrow = table(columns[:-1], [row[:-1] for row in rows])
    return f"{narrow}\n\n{fact_list([(plain(each.title), each.reason) for each in readings])}"


def _verdict(reading: GateReading) -> Markdown:
    verdict = f"**{reading.verdict}**" if reading.verdict in _BOLD_VERDICTS else reading.verdict
    return Markdown(verdict if reading.armed else f"{verdict} (no vote)")


def _user_share(share: float, users: int | None, directory: int | None) -> str:
    """Return the share in percent, and how many users it is when a user directory is loaded."""
    counted = "" if users is None or directory is None else f", {users:,} of {directory:,} users"
    return f"{percent(share)}{counted}"


def _served_table(shares: Sequence[ServedSpan], directory: int | None) -> str:
    if not shares:
        return "It served no users."
    columns = ["from", "to", "duration", "percent"]
    rows = [
        (span.since, span.until, format_duration(span.until - span.since), percent(span.percent)) for span in shares
    ]
    if directory is None:
        return table(columns, rows)
    counted = [(*row, span.users, directory) for row, span in zip(rows, shares, strict=True)]
    return table([*columns, "users", "of all"], counted)


def _share_chart(shares: Sequence[ServedSpan], *, start: datetime, end: datetime, ended: str = "") -> str:
    if not shares or end <= start:
        return ""
    svg = share_svg("Share of users over time", shares, start=start, end=end, ended=ended)
    return image(svg, "share of users")


def _harm_chart(path: HarmPath | None, *, start: datetime, end: datetime) -> str:
    if path is None:
        return ""
    svg = harm_svg("Evidence of harm over time", path, start=start, end=max(end, path.at[-1]))
    return image(svg, "evidence of harm")


def _cost_table(cost: RollbackCost, canary: str, control: str) -> str:
    """Return what a user gained or lost with each of the two versions."""
    if cost.slots == 0:
        return "No slot has closed yet, so there are no results."
    columns = ["slots", f"R with {plain(canary)}", f"R with {plain(control)}", "difference"]
    row = (cost.slots, signed(cost.canary_r), signed(cost.control_r), signed(cost.canary_r - cost.control_r))
    note = (
        "R is the risk of one trade. The table is for a user who copied every signal since the rollout began. Both "
        "versions are counted over the same closed slots, by the strategy's scoring rule."
    )
    return sections(table(columns, [row]), note).rstrip()


def _live_table(live: Mapping[str, LiveSummary]) -> str:
    columns = [
        "version",
        "from",
        "trades",
        "win rate",
        "R per trade",
        "profit factor",
        "drawdown",
        "fidelity",
        "suppressed",
    ]
    rows: list[tuple[object, ...]] = []
    for version, summary in live.items():
        fidelity = None if summary.fidelity is None else summary.fidelity.concordance
        for source, performance in (("users", summary.live), ("shadow", summary.shadow)):
            trades = summary.trades if source == "users" else performance.trades
            measured = (performance.expectancy, performance.profit_factor, performance.max_drawdown)
            of_users = (fidelity, summary.suppressed) if source == "users" else (None, None)
            rows.append((version, source, trades, performance.win_rate, *measured, *of_users))
    return table(columns, rows)


def _change_table(events: Sequence[AuditEvent]) -> str:
    if not events:
        return "No changes are recorded."
    rows = []
    for event in events:
        changed = [
            f"{plain(name)} {before} → **{after}**" for name, before, after in _state_fields(event) if before != after
        ]
        action = event.action.replace("_", " ")
        rows.append((event.at, f"{event.actor} ({event.source})", action, Markdown("; ".join(changed)), event.reason))
    return table(["at", "by", "action", "changed", "reason"], rows)


def _state_fields(event: AuditEvent) -> list[tuple[str, str, str]]:
    """Return the name of each recorded field, with its value before and after as Markdown."""
    return [
        (name, plain(_state_value(field, event.before)), plain(_state_value(field, event.after)))
        for field, name in _STATE_FIELDS.items()
        if field in event.before or field in event.after
    ]


def _state_value(field: str, state: Mapping[str, Any]) -> str:
    match field, state.get(field):
        case _, None:
            return "none"
        case "percent", int() | float() as value:
            return f"{value:g} %"
        case "rollout", {"state": name, "stage": int(stage)}:
            return f"{str(name).replace('_', ' ')}, stage {stage + 1}"
        case "excluded", list(symbols):
            return ", ".join(map(str, symbols))
        case _, value:
            return str(value)
