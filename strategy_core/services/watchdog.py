"""Watchdog: alert on overdue ticks and shadow runs, on stale feeds and blind rollouts, once per incident.

It runs outside the ticks and shadow runs that it watches, and writes only alerts and incidents.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pandas as pd
from sqlalchemy import Engine
from sqlmodel import Session

from strategy_core.domain.alerts import (
    ABSENT,
    BLIND,
    CLOCKS_DISAGREE,
    QUIET,
    SHADOW_OVERDUE,
    STALE,
    SURE,
    TICK_OVERDUE,
    ClockCheck,
    Fault,
    Severity,
    affected_text,
    few_of,
)
from strategy_core.domain.candles import timeframe_delta
from strategy_core.domain.gates.base import Errors, Freshness, Silence
from strategy_core.domain.lifecycle import Status, utc
from strategy_core.market.source import CandleSource, why_held_back
from strategy_core.services.alerts import (
    BLINDNESS,
    FEED,
    GROWN_AFTER,
    HOST,
    SHADOW,
    TICK,
    open_incidents,
    report_faults,
)
from strategy_core.services.evidence import in_a_line
from strategy_core.services.transitions import exposure_of, strategy_state
from strategy_core.store import alerts, decisions, rollouts, versions
from strategy_core.store.engine import reading, retry_transient, transaction
from strategy_core.store.tables import Incident, Rollout, StrategyVersion

LATE_ALLOWED = 2  # candles that a vendor may be late
EXPLAINED_BY = (FEED, SHADOW, HOST)  # incidents that explain why a rollout has no new decisions
EXPLAINED = {gate.name for gate in (Freshness(), Errors(), Silence())}  # gates that are blind for that reason


@retry_transient()
def watch_ticks(
    engine: Engine, *, now: datetime, overdue: timedelta, quiet: timedelta = QUIET, clock: ClockCheck = SURE
) -> list[str]:
    """Alert on open rollouts whose last tick is *overdue* long ago. Return them, one line each.

    A last tick equally far in the future raises another alert: one of the two clocks is wrong, and missing ticks cannot
    be seen.

    Args:
        clock: whether *now* can be compared with the times in the database. If not, no alert is raised.
    """
    now = utc(now, "now")
    if clock.problem:
        return []
    with reading(engine) as session:
        found = [one for one in rollouts.open_rollouts(session) if abs(now - _last_tick(one)) >= overdue]
        late = [one for one in found if not clock.doubt(_last_tick(one), now)]
        faults = [_tick_fault(session, late, now, clock)] if late else []
    report_faults(engine, TICK, faults, now=now, quiet=quiet)
    if len(late) < len(found):
        with transaction(engine) as session:
            for rollout in found:
                if rollout not in late:
                    _alert_clock(session, rollout, now, clock)
    return [_overdue_line(rollout, now, clock) for rollout in found]


def find_overdue(
    engine: Engine, strategy_name: str | None = None, *, now: datetime, overdue: timedelta, clock: ClockCheck = SURE
) -> list[str]:
    """Return what `watch_ticks` would alert on, one line each, without writing."""
    now = utc(now, "now")
    if clock.problem:
        return []
    with reading(engine) as session:
        found = rollouts.open_rollouts(session)
    return [
        _overdue_line(one, now, clock)
        for one in found
        if strategy_name in (None, one.strategy_name) and abs(now - _last_tick(one)) >= overdue
    ]


def watch_shadow(
    engine: Engine, source: CandleSource, *, now: datetime, overdue: timedelta, quiet: timedelta = QUIET
) -> list[str]:
    """Alert on strategies without a decision on a candle that closed *overdue* ago or earlier.

    Returns:
        One line each. Strategies with unavailable candles are left to `watch_feed`.
    """
    now = utc(now, "now")
    asked, decided = _newest_decisions(engine)
    newest = _NewestCandles(source, now - overdue)
    found: dict[str, str] = {}
    symbols: dict[str, None] = {}
    for name, group in asked.items():
        undecided = _find_undecided(newest, group, decided[name])
        if undecided:
            found[name] = _undecided_line(name, *undecided[0], decided[name])
            symbols |= dict.fromkeys(symbol for symbol, _ in undecided)
    faults = [_shadow_fault(engine, found, list(symbols))] if found else []
    report_faults(engine, SHADOW, faults, now=now, quiet=quiet)
    return list(found.values())


def watch_feed(engine: Engine, source: CandleSource, *, now: datetime, quiet: timedelta = QUIET) -> list[str]:
    """Alert on a feed whose newest candles are too old or unavailable. Return the symbols, one line each.

    A stale feed is a warning: an unknown holiday looks the same, and a rollout that is blind for too long is rolled
    back automatically. An unavailable one is critical, since no version decides anything.
    """
    now = utc(now, "now")
    needed = _needed_symbols(engine)
    stale = [found for symbol, timeframe in needed if (found := _find_stale(source, symbol, timeframe, now))]
    report_faults(engine, FEED, feed_faults(engine, stale, needed), now=now, quiet=quiet)
    return [f"{', '.join(needed[each.symbol, each.timeframe])}: {each.line}" for each in stale]


@dataclass(frozen=True, slots=True)
class StaleSymbol:
    """A symbol without the candles that are due. *absent* means that the feed cannot be read for it."""

    symbol: str
    timeframe: str
    line: str
    absent: bool = False


def feed_faults(
    engine: Engine, stale: Sequence[StaleSymbol], needed: Mapping[tuple[str, str], Sequence[str]]
) -> list[Fault]:
    """Return the fault of the feed, or an empty list.

    Args:
        needed: the strategies that need a symbol, by symbol and timeframe.
    """
    if not stale:
        return []
    strategies = sorted({name for each in stale for name in needed[each.symbol, each.timeframe]})
    symbols = list(dict.fromkeys(each.symbol for each in stale))
    worst = next((each for each in stale if each.absent), stale[0])
    text = worst.line
    if len(symbols) > 1 or len(strategies) > 1:
        text = f"the feed has no new candles of {affected_text(strategies, symbols)}: {worst.line}"
    return [
        Fault(
            cause=FEED,
            kind=ABSENT if worst.absent else STALE,
            severity=Severity.CRITICAL if worst.absent else Severity.WARNING,
            text=text,
            strategies=strategies,
            symbols=symbols,
            facts=serving_facts(engine, strategies),
        )
    ]


@dataclass(frozen=True, slots=True)
class BlindRollout:
    """A rollout that a tick holds without evidence, and the gate that has none."""

    rollout_id: UUID
    strategy_name: str
    version: str
    gate: str
    reason: str


def watch_blindness(engine: Engine, blind: Sequence[BlindRollout], *, now: datetime, quiet: timedelta = QUIET) -> None:
    """Alert on rollouts that are blind after a tick: one alert per gate, unless a recent alert explains it.

    An alert explains it if it named the strategy less than an hour ago (at the default *quiet*): an incident that has
    lasted for weeks must not hide a rollout that turns blind.

    Args:
        blind: every open rollout that is blind now.
    """
    by_gate: dict[str, list[BlindRollout]] = defaultdict(list)
    for each in blind:
        by_gate[each.gate].append(each)
    recent = [each for each in open_incidents(engine, *EXPLAINED_BY) if now - each.alerted_at < GROWN_AFTER * quiet]
    explained = {name for each in recent for name in each.alerted["strategies"]}
    known = {each.cause for each in open_incidents(engine, BLINDNESS)}
    faults = []
    for gate, group in by_gate.items():
        may_be_known = gate in EXPLAINED and f"{BLINDNESS} {gate}" not in known
        told = [each for each in group if not (may_be_known and each.strategy_name in explained)]
        if told:
            faults.append(_blind_fault(engine, gate, told))
    report_faults(engine, BLINDNESS, faults, now=now, quiet=quiet, is_news=_sees_again)


def _sees_again(session: Session, incident: Incident) -> bool:
    """Return whether to alert that a blindness is over: not if another incident told it, or all rollouts have ended."""
    if alerts.was_open(session, EXPLAINED_BY, incident.started_at):
        return False
    return any(rollouts.open_rollout(session, name) for name in incident.affected["strategies"])


def serving_facts(engine: Engine, strategies: Sequence[str], version: str | None = None) -> dict[str, Any]:
    """Return the version that serves users and their share, for an alert about one strategy, else nothing.

    Args:
        version: the default is the canary, or else the active version.
    """
    if len(strategies) != 1:
        return {}
    with reading(engine) as session:
        return _serving(session, strategies[0], version)


def _serving(session: Session, name: str, version: str | None) -> dict[str, Any]:
    state = strategy_state(session, name)
    shown = version or state["canary"] or state["active"]
    return {"version": shown, "exposed": exposure_of(session, name, shown, state)} if shown else {}


def _last_tick(rollout: Rollout) -> datetime:
    return rollout.last_tick_at or rollout.started_at


def _overdue_line(rollout: Rollout, now: datetime, clock: ClockCheck) -> str:
    name, since = f"{rollout.strategy_name} {rollout.version}", _last_tick(rollout)
    if doubt := clock.doubt(since, now):
        return f"whether {name} is ticked cannot be seen: {doubt}"
    return f"{name} was last ticked at {since:%Y-%m-%d %H:%M} UTC: its gates do not run"


def _alert_clock(session: Session, rollout: Rollout, now: datetime, clock: ClockCheck) -> None:
    name, since = rollout.strategy_name, _last_tick(rollout)
    alerts.raise_alert(
        session,
        CLOCKS_DISAGREE,
        _overdue_line(rollout, now, clock),
        severity=Severity.CRITICAL.value,
        strategy_name=name,
        dedupe_key=f"{rollout.id} {CLOCKS_DISAGREE} {since.isoformat()}",
        facts={
            "control_version": rollout.control_version,
            "ticked_at": since.isoformat(),
            **_serving(session, name, rollout.version),
        },
        now=now,
        rollout_id=rollout.id,
    )


def _tick_fault(session: Session, found: Sequence[Rollout], now: datetime, clock: ClockCheck) -> Fault:
    strategies = [rollout.strategy_name for rollout in found]
    oldest = min(found, key=_last_tick)
    facts: dict[str, Any] = {"ticked_at": _last_tick(oldest).isoformat()}
    if len(found) == 1:
        facts |= {"version": oldest.version, "control_version": oldest.control_version}
        facts |= _serving(session, oldest.strategy_name, oldest.version)
        text = _overdue_line(oldest, now, clock)
    else:
        names = few_of([f"{rollout.strategy_name} {rollout.version}" for rollout in found])
        text = f"the gates of {len(found)} rollouts do not run ({names}): {_overdue_line(oldest, now, clock)}"
    return Fault(
        cause=TICK,
        kind=TICK_OVERDUE,
        severity=Severity.CRITICAL,
        text=text,
        strategies=strategies,
        facts=facts,
        rollout_id=oldest.id if len(found) == 1 else None,
    )


def _newest_decisions(
    engine: Engine,
) -> tuple[dict[str, list[StrategyVersion]], dict[str, dict[str, datetime | None]]]:
    """Return by strategy the versions that decide, and by symbol the newest candle that any of them has decided on."""
    asked: dict[str, list[StrategyVersion]] = defaultdict(list)
    decided: dict[str, dict[str, datetime | None]] = {}
    with reading(engine) as session:
        for version in versions.list_versions(session):
            if version.status != Status.RETIRED:
                asked[version.strategy_name].append(version)
        for name, group in asked.items():
            newest: dict[str, datetime | None] = {symbol: None for version in group for symbol in version.symbols}
            for version in group:
                for symbol, at in decisions.newest_candles(session, name, version.version).items():
                    if symbol in newest:
                        newest[symbol] = max(at, newest[symbol] or at)
            decided[name] = newest
    return asked, decided


class _NewestCandles:
    """The newest candle of each symbol that has closed by a moment. Each symbol is read once."""

    def __init__(self, source: CandleSource, closed_by: datetime) -> None:
        self._source = source
        self._closed_by = closed_by
        self._known: dict[str, datetime | None] = {}

    def of(self, symbol: str) -> datetime | None:
        """Return its open time. None without one, or if the source fails: `watch_feed` alerts on that."""
        if symbol not in self._known:
            try:
                self._known[symbol] = _newest_of(self._source, symbol, self._closed_by)
            except Exception:  # noqa: BLE001  see above
                self._known[symbol] = None
        return self._known[symbol]


def _newest_of(source: CandleSource, symbol: str, closed_by: datetime) -> datetime | None:
    candles = source.candles(symbol, closed_by=closed_by, bars=1)
    return pd.DatetimeIndex(candles.index)[-1].to_pydatetime() if len(candles) else None


def _find_undecided(
    newest_candles: _NewestCandles, group: Iterable[StrategyVersion], decided: Mapping[str, datetime | None]
) -> list[tuple[str, datetime]]:
    """Return the symbols with an undecided candle that closed after the first version was registered."""
    first = min(group, key=lambda version: version.created_at)
    found: list[tuple[str, datetime]] = []
    for symbol, last in sorted(decided.items()):
        newest = newest_candles.of(symbol)
        if newest is None or newest + timeframe_delta(first.timeframe) <= first.created_at:
            continue
        if last is None or last < newest:
            found.append((symbol, newest))
    return found


def _undecided_line(name: str, symbol: str, candle: datetime, decided: Mapping[str, datetime | None]) -> str:
    newest = max((last for last in decided.values() if last is not None), default=None)
    seen = f"the newest decision is on {newest:%Y-%m-%d %H:%M}" if newest else "there is no decision yet"
    return f"no version of {name} has decided on the {symbol} candle {candle:%Y-%m-%d %H:%M} UTC: {seen}"


def _shadow_fault(engine: Engine, found: Mapping[str, str], symbols: Sequence[str]) -> Fault:
    strategies = list(found)
    text = next(iter(found.values()))
    if len(found) > 1:
        text = f"new candles are not decided, {affected_text(strategies, symbols)}: {text}"
    facts = serving_facts(engine, strategies)
    return Fault(SHADOW, SHADOW_OVERDUE, Severity.WARNING, text, strategies, symbols, facts)


def _needed_symbols(engine: Engine) -> dict[tuple[str, str], list[str]]:
    """Return the strategies that need a symbol, by symbol and timeframe."""
    needed: dict[tuple[str, str], set[str]] = defaultdict(set)
    with reading(engine) as session:
        for version in versions.list_versions(session):
            if version.status != Status.RETIRED:
                for symbol in version.symbols:
                    needed[symbol, version.timeframe].add(version.strategy_name)
    return {key: sorted(needed[key]) for key in sorted(needed)}


def _find_stale(source: CandleSource, symbol: str, timeframe: str, now: datetime) -> StaleSymbol | None:
    """Return why the symbol's candles are too old, or None."""
    try:
        expected = source.expected_at(symbol, now - LATE_ALLOWED * timeframe_delta(timeframe))
        newest = _newest_of(source, symbol, now)
        held = why_held_back(source, symbol)
    except Exception as error:  # noqa: BLE001  a failing source must not block the delivery of alerts
        return StaleSymbol(symbol, timeframe, f"{symbol} is unavailable: {in_a_line(error)}", absent=True)
    if expected is None or (newest is not None and newest >= expected):
        return None
    seen = f"its newest is {newest:%Y-%m-%d %H:%M}" if newest else "it has none"
    waits = f"; the next one waits: {held}" if held else ""
    return StaleSymbol(symbol, timeframe, f"the {symbol} candle {expected:%Y-%m-%d %H:%M} UTC is due, {seen}{waits}")


def _blind_fault(engine: Engine, gate: str, group: Sequence[BlindRollout]) -> Fault:
    first = group[0]
    text = f"{first.strategy_name} {first.version} blind: {first.reason}"
    facts: dict[str, Any] = {}
    if len(group) == 1:
        with reading(engine) as session:
            rollout = rollouts.get_rollout(session, first.rollout_id)
            facts = {**strategy_state(session, first.strategy_name), "control_version": rollout.control_version}
            facts |= _serving(session, first.strategy_name, first.version)
    else:
        names = few_of([f"{each.strategy_name} {each.version}" for each in group])
        text = f"{len(group)} rollouts are blind ({names}): {text}"
    return Fault(
        cause=f"{BLINDNESS} {gate}",
        kind=BLIND,
        severity=Severity.WARNING,
        text=text,
        strategies=[each.strategy_name for each in group],
        facts=facts,
        rollout_id=first.rollout_id if len(group) == 1 else None,
    )
