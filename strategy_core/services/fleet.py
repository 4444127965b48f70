"""The overview of all strategies: what each does now, what needs an owner, and whether the machinery runs.

It is built from a fixed number of statements, whatever the number of strategies and the length of the logs.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pandas as pd
from sqlalchemy import Engine

from strategy_core.domain.alerts import SHADOW_OVERDUE, SURE, ClockCheck, Severity, few_of
from strategy_core.domain.candles import timeframe_delta
from strategy_core.domain.capital import Reach
from strategy_core.domain.fleet import Need, OpenAlerts, Urgency, needs_of
from strategy_core.domain.gates.base import SEVERITY, Finding, Gate, format_duration
from strategy_core.domain.lifecycle import Status, utc
from strategy_core.domain.overlap import overlap_line
from strategy_core.domain.ramp import State
from strategy_core.domain.readings import ALL_PASS, GateReading, gates_of, read_finding
from strategy_core.domain.release_times import ReleaseTimes
from strategy_core.domain.rollout_verdict import RolloutVerdict, rollout_verdict
from strategy_core.domain.routing import as_percent
from strategy_core.market.calendars import Calendar
from strategy_core.services.alerts import CHANNEL, SHADOW
from strategy_core.services.release_times import all_freezes, times_of
from strategy_core.store import alerts, fleet
from strategy_core.store.canary_reach import read_canary_reach
from strategy_core.store.engine import reading
from strategy_core.store.metrics import Rows, read_gates, read_outbox, read_subject, unpack_finding
from strategy_core.store.rollouts import serving_canaries

_NOBODY = Reach(0, 0)


@dataclass(frozen=True, slots=True)
class FleetRollout:
    """An open rollout in the overview.

    Attributes:
        percent: of users at its stage.
        stage, stages: number of the stage from 1, and how many there are.
        stage_days, minimum_days: since the stage began, and at least, in days.
        verdict: one sentence, with the slots it has and about how many it needs.
        worst: the reading of the worst gate that has a vote. `ALL_PASS` if none of them holds the rollout, and None
            before the first tick.
        ticked_at: when its gates last ran. None before the first tick.
        is_baking: it is promoted.
    """

    id: UUID
    version: str
    state: State
    percent: float
    stage: int
    stages: int
    stage_days: float
    minimum_days: float
    verdict: RolloutVerdict
    worst: GateReading | None
    ticked_at: datetime | None
    is_baking: bool


@dataclass(frozen=True, slots=True)
class FleetRow:
    """One strategy in the overview.

    Attributes:
        draining: number of open positions by version in shadow that manages some.
        percent: of users on the canary.
        asked: percent that its stage asks for. More than *percent* where the cap on capital leaves users out.
        users_exposed: on the canary, by the user directory. None without a directory or a canary.
        capital_share: of all capital, on the canary. None if no capital is known.
        open_alerts: warnings and critical alerts without an acknowledgement.
        newest_candle: open time of the newest candle that a version has decided on.
        candles_behind: closed candles without a decision, beyond the usual delay.
        needs: why it needs an owner, the most urgent first.
    """

    strategy_name: str
    active: str | None
    canary: str | None
    shadows: tuple[str, ...]
    draining: Mapping[str, int]
    percent: float
    asked: float
    users_exposed: int | None
    capital_share: float | None
    rollout: FleetRollout | None
    open_alerts: int
    newest_candle: datetime | None
    candles_behind: int
    needs: tuple[Need, ...]

    @property
    def urgency(self) -> Urgency:
        return self.needs[0].urgency if self.needs else Urgency.CALM


@dataclass(frozen=True, slots=True)
class Fleet:
    """All strategies, those that need an owner first, and what has stopped: one line each.

    Attributes:
        overlap: how many users are on several canaries. Empty without two canaries.
    """

    rows: Sequence[FleetRow]
    stopped: Sequence[str]
    overlap: str = ""


def read_fleet(
    engine: Engine,
    strategies: frozenset[str] | None = None,
    *,
    now: datetime,
    overdue: timedelta,
    calendar: Calendar,
    clock: ClockCheck = SURE,
) -> Fleet:
    """Return the overview.

    Args:
        strategies: only these.
        overdue: from when on a tick, a candle run or a delivery is too late.
        calendar: the trading hours of the feed's market.
        clock: whether *now* can be compared with the times in the database. If not, nothing is late.
    """
    now = utc(now, "now")
    with reading(engine) as session:
        names = fleet.read_strategies(session, strategies)
        reached = read_canary_reach(session, strategies, now)
        known = fleet.read_versions(session, strategies)
        candles = fleet.read_newest_candles(session, strategies)
        rollouts = {row.strategy_name: row for row in fleet.read_rollouts(session, strategies)}
        verdicts = read_gates(session, strategies)
        raised = fleet.read_open_alerts(session, strategies)
        incidents = alerts.open_incidents(session, SHADOW, CHANNEL)
        waiting = read_outbox(session, strategies, now=now - overdue)
        unsent = fleet.oldest_without_channel(session, now - overdue)
        freezes = all_freezes(session, now)
        overlap = overlap_line(serving_canaries(session, strategies))
    excluded = {name: tuple(symbols or ()) for name, symbols in names}
    found = {
        name: _rollout(row, verdicts.get(row.id, []), excluded.get(name, ()), times_of(freezes, name), now, clock)
        for name, row in rollouts.items()
    }
    late = {} if clock.problem else _late_ticks(found.values(), rollouts.values(), now, overdue, clock)
    expected = _Expected(calendar, now - overdue)
    rows = _rows(names, reached, known, candles, raised, found, late, expected, is_sure=not clock.problem)
    stopped = [*_stopped_ticks(rows, late), *_stopped_candles(rows, [each.kind for each in incidents], clock)]
    stopped += _stopped_alerts(waiting, unsent, [each.cause for each in incidents])
    return Fleet(sorted(rows, key=lambda row: (row.urgency, row.strategy_name)), stopped, overlap)


def _rows(
    names: Rows,
    reached: Mapping[str, Reach],
    known: Rows,
    candles: Rows,
    raised: Rows,
    found: Mapping[str, FleetRollout],
    late: Mapping[UUID, str],
    expected: "_Expected",
    *,
    is_sure: bool,
) -> list[FleetRow]:
    versions: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    timeframes: dict[str, str] = {}
    draining: dict[str, dict[str, int]] = defaultdict(dict)
    for name, version, status, timeframe, positions in known:
        versions[name][status].append(version)
        if positions and status == Status.SHADOW:
            draining[name][version] = positions
        timeframes.setdefault(name, timeframe)
    decided: dict[str, list[int]] = defaultdict(list)
    for name, _, seconds in candles:
        decided[name].append(seconds)
    open_alerts: dict[str, list[OpenAlerts]] = defaultdict(list)
    for name, kind, severity, number in raised:
        open_alerts[name].append(OpenAlerts(kind, Severity(severity), number))
    rows = []
    for name, _ in names:
        of = {status: versions[name][status.value] for status in (Status.ACTIVE, Status.CANARY, Status.SHADOW)}
        active, canary = next(iter(of[Status.ACTIVE]), None), next(iter(of[Status.CANARY]), None)
        rollout, times = found.get(name), decided[name]
        reach = reached.get(name, _NOBODY) if canary else _NOBODY
        behind = expected.behind(min(times), timeframes[name]) if times and name in timeframes and is_sure else 0
        rows.append(
            FleetRow(
                strategy_name=name,
                active=active,
                canary=canary,
                shadows=tuple(of[Status.SHADOW]),
                draining=draining[name],
                percent=as_percent(reach.percent_bp),
                asked=as_percent(reach.asked_bp),
                users_exposed=reach.users,
                capital_share=reach.capital_share,
                rollout=rollout,
                open_alerts=sum(each.count for each in open_alerts[name]),
                newest_candle=datetime.fromtimestamp(max(times), UTC) if times else None,
                candles_behind=behind,
                needs=needs_of(
                    verdict=rollout.verdict.kind if rollout else None,
                    tick_overdue=late.get(rollout.id, "") if rollout else "",
                    candles_behind=behind,
                    is_served=active is not None,
                    is_judged=rollout is not None or not reach.percent_bp,
                    alerts=open_alerts[name],
                ),
            )
        )
    return rows


def _rollout(
    row: Any,
    packed: Sequence[tuple[str, str]],
    excluded: Sequence[str],
    times: ReleaseTimes,
    now: datetime,
    clock: ClockCheck,
) -> FleetRollout:
    paused_by = f"{row.paused_by}: {row.paused_because or 'no reason given'}" if row.paused_by else "an owner"
    subject = read_subject(row, paused_by=paused_by, excluded=excluded)
    plan, gates = subject.plan, gates_of(subject.plan)
    subject = replace(subject, closed=times.closed(plan.advance_windows, now))
    findings = [unpack_finding(gate, text) for gate, text in packed if gate in gates]
    doubt = clock.doubt(max(row.stage_entered_at, row.last_tick_at or row.started_at), now)
    verdict = rollout_verdict(subject, findings, now, doubt=doubt)
    armed = sorted((each for each in findings if each.armed), key=lambda each: (SEVERITY[each.verdict], each.gate))
    stage, day = plan.stages[row.stage_index], timedelta(days=1)
    return FleetRollout(
        id=row.id,
        version=row.version,
        state=subject.at.state,
        percent=100.0 if row.promoted_at else stage.percent,
        stage=row.stage_index + 1,
        stages=len(plan.stages),
        stage_days=max(0.0, (now - row.stage_entered_at) / day),
        minimum_days=stage.minimum_time / day,
        verdict=verdict,
        worst=_worst_reading(gates, armed),
        ticked_at=row.last_tick_at,
        is_baking=row.promoted_at is not None,
    )


def _worst_reading(gates: Mapping[str, Gate], armed: Sequence[Finding]) -> GateReading | None:
    """Return the reading of the worst gate, or one of all gates together if none of them holds the rollout."""
    if not armed:
        return None
    worst = read_finding(gates[armed[0].gate], armed[0])
    return worst if worst.holds else ALL_PASS


class _Expected:
    """The newest candle that should be decided by a moment. Each pair of times is counted once."""

    def __init__(self, calendar: Calendar, closed_by: datetime) -> None:
        self._calendar = calendar
        self._closed_by = closed_by
        self._newest: dict[str, datetime] = {}
        self._counted: dict[tuple[int, str], int] = {}

    def behind(self, newest_s: int, timeframe: str) -> int:
        """Return how many open candles after the one at *newest_s* have closed by then."""
        key = newest_s, timeframe
        if key not in self._counted:
            self._counted[key] = self._count(datetime.fromtimestamp(newest_s, UTC), timeframe)
        return self._counted[key]

    def _count(self, newest: datetime, timeframe: str) -> int:
        delta = timeframe_delta(timeframe)
        if timeframe not in self._newest:
            self._newest[timeframe] = self._calendar.last_open_candle(self._closed_by, delta)
        last = self._newest[timeframe]
        if last <= newest:
            return 0
        opens = pd.date_range(newest + delta, last, freq=delta)
        return int(self._calendar.open_candles(opens, delta).sum())


def _late_ticks(
    found: Iterable[FleetRollout], rows: Iterable[Any], now: datetime, overdue: timedelta, clock: ClockCheck
) -> dict[UUID, str]:
    """Return, by rollout, how long its gates have not run, for those that are overdue."""
    started = {row.id: row.started_at for row in rows}
    late = {}
    for each in found:
        since = each.ticked_at or started[each.id]
        if now - since >= overdue and not clock.doubt(since, now):
            late[each.id] = format_duration(now - since)
    return late


def _stopped_ticks(rows: Sequence[FleetRow], late: Mapping[UUID, str]) -> list[str]:
    names = [
        f"{row.strategy_name} {row.rollout.version} for {late[row.rollout.id]}"
        for row in rows
        if row.rollout and row.rollout.id in late
    ]
    return [f"Gates do not run, so the users of these canaries are not protected: {few_of(names)}."] if names else []


def _stopped_candles(rows: Sequence[FleetRow], kinds: Sequence[str], clock: ClockCheck) -> list[str]:
    if clock.problem:
        return []
    asked = [row for row in rows if row.newest_candle is not None]
    behind = [row for row in asked if row.candles_behind]
    if behind and (len(behind) == len(asked) or SHADOW_OVERDUE in kinds):
        newest = max(row.newest_candle for row in behind if row.newest_candle is not None)
        names = few_of([row.strategy_name for row in behind])
        return [f"Candle runs have stopped: no decision after the candle of {newest:%Y-%m-%d %H:%M} UTC ({names})."]
    return []


def _stopped_alerts(waiting: Rows, unsent: datetime | None, causes: Sequence[str]) -> list[str]:
    lines = [
        f"Alerts are not delivered: {number} to {channel} since {since:%Y-%m-%d %H:%M} UTC."
        for channel, number, since in waiting
        if number
    ]
    if unsent is not None and not lines:
        lines.append(f"Alerts are not delivered: a critical alert of {unsent:%Y-%m-%d %H:%M} UTC waits.")
    failed = [cause.partition(" ")[2] for cause in causes if cause.partition(" ")[0] == CHANNEL]
    return [*lines, *(f"The alert channel {name} fails." for name in failed)]
