"""Drain: announce to the platform which positions to leave, and alert on positions that nobody manages or closes.

It runs after the shadow run and writes no row that a rollback waits for, apart from a user's loss limit that is hit.
What a rollback leaves to be done, such as flattening, is done here.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby

import pandas as pd
import structlog
from sqlalchemy import Engine
from sqlmodel import Session

from strategy_core.domain.alerts import OPEN_RISK_EXCEEDED, ORPHANED, POSITIONS_OVERDUE, QUIET, Fault, Severity
from strategy_core.domain.audit import DRAIN, Command
from strategy_core.domain.candles import timeframe_delta
from strategy_core.domain.errors import NoPositions
from strategy_core.domain.lifecycle import Status, utc
from strategy_core.domain.positions import Decided, Exit, OpenPosition, SimulatedExit, exit_of, signal_of
from strategy_core.domain.ramp import State
from strategy_core.domain.scoring import ScoringRule
from strategy_core.market.source import CandleSource
from strategy_core.services.alerts import report_faults
from strategy_core.services.evidence import in_a_line
from strategy_core.services.loss_limits import guard_open_trades
from strategy_core.services.position_holds import ORPHANS, find_exceeded, find_orphans
from strategy_core.services.positions import flatten, keep_managers, read_held
from strategy_core.store import decisions, outcomes, positions, rollouts, versions
from strategy_core.store.engine import reading, retry_transient, transaction
from strategy_core.store.tables import Position, Rollout

UNCLOSED, OVER_LIMIT = "unclosed", "open_risk"  # topics of incidents
LATE_CANDLES = 3  # without a decision of the manager, or without a close after an exit was announced
LEFT_BY_ROLLBACK = "as the plan of the rollout that was rolled back has it"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Drained:
    """The result of a drain.

    Attributes:
        announced: exits that were announced now.
        returned: retired versions that are back in shadow, because they manage positions.
        flattened: positions that are to be closed because of a rollback.
        draining: open positions by strategy and version that serves no users.
        orphaned, overdue: one line each.
        failed: why exits of a strategy could not be announced, one line each. The next drain does it.
        exceeded: canaries with more open risk than their plan allows, one line each.
        unknown: open trades that count as 0 in a loss limit, a line for each strategy.
    """

    announced: int
    returned: Sequence[tuple[str, str]]
    flattened: int
    draining: Mapping[tuple[str, str], int]
    orphaned: Sequence[str]
    overdue: Sequence[str]
    failed: Sequence[str] = ()
    exceeded: Sequence[str] = ()
    unknown: Sequence[str] = ()


def drain(engine: Engine, source: CandleSource, *, now: datetime, quiet: timedelta = QUIET) -> Drained:
    """Announce the exits that are due by *now*, and alert on positions that are not left.

    Each is announced once. A flatten is announced even if an exit was before, which the platform may have missed.

    Then the loss limits of users count what their open trades have lost.

    A strategy that fails does not stop the others.

    Args:
        quiet: how long a fault must be gone until its incident is over, for alerts.
    """
    now = utc(now, "now")
    returned = keep_managers(engine, now=now)
    with reading(engine) as session:
        names = positions.strategies_with_open(session)
    announced = flattened = 0
    failed: list[str] = []
    unknown: list[str] = []
    draining: dict[tuple[str, str], int] = {}
    for name in names:
        try:
            flattened += _flatten_rolled_back(engine, name, now)
        except Exception as error:  # noqa: BLE001  exits that are due do not wait for it
            log.warning("drain.not_flattened", strategy=name, error=in_a_line(error))
            failed.append(f"{name}: {in_a_line(error)}")
        try:
            announced += announce_due(engine, name, now=now)
            guarded = guard_open_trades(engine, source, name, now=now)
        except Exception as error:  # noqa: BLE001  see above
            log.warning("drain.failed", strategy=name, error=in_a_line(error))
            failed.append(f"{name}: {in_a_line(error)}")
        else:
            unknown += [line] if (line := guarded.line(name)) else []
        with reading(engine) as session:
            held = read_held(session, name)
        draining |= {(name, version): count for version, count in held.draining.items()}
    with reading(engine) as session:
        orphaned = find_orphans(session, _Feed(source, now).first_of_last, candles=LATE_CANDLES)
        exceeded = find_exceeded(session)
    overdue = _find_overdue(engine, source, now)
    _report(engine, ORPHANS, ORPHANED, Severity.CRITICAL, orphaned, now, quiet)
    _report(engine, UNCLOSED, POSITIONS_OVERDUE, Severity.WARNING, overdue, now, quiet)
    _report(engine, OVER_LIMIT, OPEN_RISK_EXCEEDED, Severity.WARNING, exceeded, now, quiet)
    found = (list(orphaned.values()), list(overdue.values()))
    return Drained(announced, returned, flattened, draining, *found, failed, list(exceeded.values()), unknown)


@retry_transient()
def announce_due(engine: Engine, strategy_name: str, *, now: datetime) -> int:
    """Announce the exits of one strategy that are due by *now*, the oldest candle first. Return their number."""
    with reading(engine) as session:
        due = _find_due(session, strategy_name, now)
    if not due:
        return 0
    with transaction(engine) as session:
        return positions.announce_exits(session, strategy_name, due, now)


def _find_due(session: Session, strategy_name: str, now: datetime) -> list[tuple[Exit, str]]:
    waiting = [_facts(row) for row in positions.positions_to_announce(session, strategy_name, now)]
    if not waiting:
        return []
    rule = ScoringRule.model_validate(versions.get_strategy(session, strategy_name).scoring)
    frames = {each.version: timeframe_delta(each.timeframe) for each in versions.list_versions(session, strategy_name)}
    known = _read_decisions(session, strategy_name, waiting)
    signals = {
        each.trade_id: signal_of(each, known[each.opened_by, each.symbol], frames[each.opened_by]) for each in waiting
    }
    ended = _read_ends(session, strategy_name, waiting, signals, frames)
    due: list[tuple[Exit, str]] = []
    for each in waiting:
        signal = signals[each.trade_id]
        found = exit_of(
            each,
            managed=[] if each.manager is None else known[each.manager, each.symbol],
            simulated=None if signal is None else ended.get((each.opened_by, each.symbol, signal)),
            horizon=rule.horizon,
            timeframe=frames[each.opened_by],
            now=now,
        )
        if found is not None:
            due.append((found, each.symbol))
    return sorted(due, key=lambda pair: (pair[0].candle or now, pair[0].trade_id))


def _facts(row: Position) -> OpenPosition:
    return OpenPosition(
        row.trade_id,
        row.symbol,
        row.side,
        row.opened_by,
        row.manager,
        row.opened_at,
        row.managed_since,
        row.flatten_at,
    )


def _read_decisions(
    session: Session, strategy_name: str, waiting: Sequence[OpenPosition]
) -> dict[tuple[str, str], list[Decided]]:
    """Return the decisions around and after the openings, by version and symbol, oldest first."""
    first: dict[tuple[str, str], datetime] = {}
    for each in waiting:
        for version in {each.opened_by, each.manager} - {None}:
            key = (str(version), each.symbol)
            first[key] = min(each.opened_at, first.get(key, each.opened_at))
    return {
        (version, symbol): [
            Decided(*row) for row in decisions.rows_around(session, strategy_name, version, symbol, since=since)
        ]
        for (version, symbol), since in first.items()
    }


def _read_ends(
    session: Session,
    strategy_name: str,
    waiting: Sequence[OpenPosition],
    signals: Mapping[str, datetime | None],
    frames: Mapping[str, timedelta],
) -> dict[tuple[str, str, datetime], SimulatedExit]:
    """Return how the simulated trades of these signals ended, by version, symbol and candle of the signal."""
    wanted: dict[tuple[str, str], list[datetime]] = {}
    for each in waiting:
        if (signal := signals[each.trade_id]) is not None:
            wanted.setdefault((each.opened_by, each.symbol), []).append(signal)
    return {
        (version, symbol, candle): SimulatedExit(reason, closed_at - frames[version])
        for (version, symbol), candles in wanted.items()
        for candle, reason, closed_at in outcomes.find_ends(
            session, strategy_name, version, symbol, since=min(candles), until=max(candles)
        )
    }


def _flatten_rolled_back(engine: Engine, strategy_name: str, now: datetime) -> int:
    """Flatten the positions of versions whose newest rollout was rolled back under a plan that asks for it."""
    with reading(engine) as session:
        managers = {name for name in positions.managers(session, strategy_name, unflattened=True) if name}
        newest: dict[str, Rollout] = {}
        for rollout in rollouts.list_rollouts(session, strategy_name):
            newest.setdefault(rollout.version, rollout)
        serving = {
            each.version
            for each in versions.list_versions(session, strategy_name)
            if each.status in (Status.ACTIVE, Status.CANARY)
        }
    chosen = [
        name
        for name in sorted(managers - serving)
        if name in newest
        and newest[name].state == State.ROLLED_BACK
        and newest[name].plan.get("on_rollback") == "flatten"
    ]
    command = Command(DRAIN, now, LEFT_BY_ROLLBACK)
    count = 0
    for name in chosen:
        with suppress(NoPositions):  # they were closed, or another drain was here meanwhile
            count += flatten(engine, command, strategy_name=strategy_name, version=name)
    return count


def _find_overdue(engine: Engine, source: CandleSource, now: datetime) -> dict[str, str]:
    """Return by strategy a line on positions that are open LATE_CANDLES candles after their exit was announced."""
    with reading(engine) as session:
        announced = positions.unclosed_exits(session)
    feed = _Feed(source, now)
    late = [
        each
        for each in announced
        if (first := feed.first_of_last(each.symbol)) is not None and first >= each.announced_at
    ]
    found = {}
    for name, group in groupby(late, key=lambda each: each.strategy_name):
        mine = list(group)
        oldest, count = mine[0], len({each.trade_id for each in mine})
        since = f"{oldest.why}, announced {oldest.announced_at:%Y-%m-%d %H:%M} UTC"
        found[name] = (
            f"{count} positions of {name} are open {LATE_CANDLES} candles after their exit was announced, "
            f"the oldest trade {oldest.trade_id} on {oldest.symbol} ({since})"
        )
    return found


class _Feed:
    """The open time of the first of the last LATE_CANDLES closed candles of a symbol. Each symbol is read once."""

    def __init__(self, source: CandleSource, now: datetime) -> None:
        self._source = source
        self._now = now
        self._known: dict[str, datetime | None] = {}

    def first_of_last(self, symbol: str) -> datetime | None:
        """Return it, or None if there are fewer candles or the source fails: `watch_feed` alerts on that."""
        if symbol not in self._known:
            try:
                candles = self._source.candles(symbol, closed_by=self._now, bars=LATE_CANDLES)
            except Exception:  # noqa: BLE001  see above
                self._known[symbol] = None
            else:
                enough = len(candles) >= LATE_CANDLES
                self._known[symbol] = pd.DatetimeIndex(candles.index)[0].to_pydatetime() if enough else None
        return self._known[symbol]


def _report(
    engine: Engine,
    topic: str,
    kind: str,
    severity: Severity,
    lines: Mapping[str, str],
    now: datetime,
    quiet: timedelta,
) -> None:
    """Open, extend or end the incident of each strategy."""
    faults = [Fault(f"{topic} {name}", kind, severity, text, [name]) for name, text in lines.items()]
    report_faults(engine, topic, faults, now=now, quiet=quiet)
