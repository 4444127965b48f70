"""Watchdog: alert on overdue ticks and shadow runs and on stale feeds, once per incident.

It runs outside the ticks and shadow runs that it watches, and writes only to the outbox.
"""

from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime, timedelta

import pandas as pd
from sqlalchemy import Engine
from sqlmodel import Session

from strategy_core.domain.alerts import (
    CLOCKS_DISAGREE,
    SHADOW_OVERDUE,
    STALE,
    SURE,
    TICK_OVERDUE,
    ClockCheck,
    Severity,
)
from strategy_core.domain.candles import timeframe_delta
from strategy_core.domain.lifecycle import Status, utc
from strategy_core.market.source import CandleSource
from strategy_core.services.evidence import in_a_line
from strategy_core.services.transitions import exposure_of, strategy_state
from strategy_core.store import alerts, decisions, rollouts, versions
from strategy_core.store.engine import reading, retry_transient, transaction
from strategy_core.store.tables import Rollout, StrategyVersion

LATE_ALLOWED = 2  # candles that a vendor may be late


@retry_transient()
def watch_ticks(engine: Engine, *, now: datetime, overdue: timedelta, clock: ClockCheck = SURE) -> list[str]:
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
    if not found:
        return []
    with transaction(engine) as session:
        return [_alert_overdue(session, rollout, now, clock) for rollout in found]


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


@retry_transient()
def watch_shadow(engine: Engine, source: CandleSource, *, now: datetime, overdue: timedelta) -> list[str]:
    """Alert on strategies without a decision on a candle that closed *overdue* ago or earlier.

    Returns:
        One line each. Strategies with unavailable candles are left to `watch_feed`.
    """
    now = utc(now, "now")
    with reading(engine) as session:
        asked: dict[str, list[StrategyVersion]] = defaultdict(list)
        for version in versions.list_versions(session):
            if version.status != Status.RETIRED:
                asked[version.strategy_name].append(version)
        decided = {name: _newest_decided(session, group) for name, group in asked.items()}
    found = [
        (name, symbol, candle, decided[name])
        for name, group in asked.items()
        for symbol, candle in _find_undecided(source, group, decided[name], now - overdue)[:1]
    ]
    if not found:
        return []
    with transaction(engine) as session:
        return [_alert_undecided(session, name, symbol, candle, last, now) for name, symbol, candle, last in found]


@retry_transient()
def watch_feed(engine: Engine, source: CandleSource, *, now: datetime) -> list[str]:
    """Alert on symbols whose newest candle is too old, once per candle. Return them, one line each.

    The severity is warning: an unknown holiday looks the same, and a rollout that is blind for too long is rolled back
    automatically.
    """
    now = utc(now, "now")
    with reading(engine) as session:
        needed = sorted(
            {
                (version.strategy_name, symbol, version.timeframe)
                for version in versions.list_versions(session)
                if version.status != Status.RETIRED
                for symbol in version.symbols
            }
        )
    found = [
        (name, line, key)
        for name, symbol, timeframe in needed
        for line, key in _find_stale(source, symbol, timeframe, now)
    ]
    if not found:
        return []
    with transaction(engine) as session:
        for name, line, key in found:
            _alert(session, STALE, name, line, key, now)
    return [f"{name}: {line}" for name, line, _ in found]


def _last_tick(rollout: Rollout) -> datetime:
    return rollout.last_tick_at or rollout.started_at


def _overdue_line(rollout: Rollout, now: datetime, clock: ClockCheck) -> str:
    name, since = f"{rollout.strategy_name} {rollout.version}", _last_tick(rollout)
    if doubt := clock.doubt(since, now):
        return f"whether {name} is ticked cannot be seen: {doubt}"
    return f"{name} was last ticked at {since:%Y-%m-%d %H:%M} UTC: its gates do not run"


def _alert_overdue(session: Session, rollout: Rollout, now: datetime, clock: ClockCheck) -> str:
    name, since, text = rollout.strategy_name, _last_tick(rollout), _overdue_line(rollout, now, clock)
    kind = CLOCKS_DISAGREE if clock.doubt(since, now) else TICK_OVERDUE
    alerts.raise_alert(
        session,
        kind,
        text,
        severity=Severity.CRITICAL.value,
        strategy_name=name,
        dedupe_key=f"{rollout.id} {kind} {since.isoformat()}",
        facts={
            "version": rollout.version,
            "control_version": rollout.control_version,
            "exposed": exposure_of(session, name, rollout.version, strategy_state(session, name)),
            "ticked_at": since.isoformat(),
        },
        now=now,
        rollout_id=rollout.id,
    )
    return text


def _newest_decided(session: Session, group: Iterable[StrategyVersion]) -> dict[str, datetime | None]:
    """Return by symbol the newest candle that any of the strategy's versions has decided on."""
    newest: dict[str, datetime | None] = {}
    for version in group:
        for symbol in version.symbols:
            last = decisions.newest_decided(session, version.strategy_name, version.version, symbol)
            known = newest.get(symbol)
            newest[symbol] = last if known is None else max(known, last or known)
    return newest


def _find_undecided(
    source: CandleSource, group: Iterable[StrategyVersion], decided: dict[str, datetime | None], due: datetime
) -> list[tuple[str, datetime]]:
    """Return the symbols with an undecided candle that closed by *due*, after the first version was registered."""
    first = min(group, key=lambda version: version.created_at)
    found: list[tuple[str, datetime]] = []
    for symbol, last in sorted(decided.items()):
        try:
            candles = source.candles(symbol, closed_by=due, bars=1)
        except Exception:  # noqa: BLE001, S112  `watch_feed` alerts on a failing source
            continue
        newest = pd.DatetimeIndex(candles.index)[-1].to_pydatetime() if len(candles) else None
        if newest is None or newest + timeframe_delta(first.timeframe) <= first.created_at:
            continue
        if last is None or last < newest:
            found.append((symbol, newest))
    return found


def _alert_undecided(
    session: Session, name: str, symbol: str, candle: datetime, decided: dict[str, datetime | None], now: datetime
) -> str:
    newest = max((last for last in decided.values() if last is not None), default=None)
    seen = f"the newest decision is on {newest:%Y-%m-%d %H:%M}" if newest else "there is no decision yet"
    text = f"no version of {name} has decided on the {symbol} candle {candle:%Y-%m-%d %H:%M} UTC: {seen}"
    _alert(session, SHADOW_OVERDUE, name, text, f"{symbol} {decided[symbol]}", now)
    return text


def _find_stale(source: CandleSource, symbol: str, timeframe: str, now: datetime) -> Iterable[tuple[str, str]]:
    """Yield why the symbol's candles are too old, and the key of the incident."""
    try:
        expected = source.expected_at(symbol, now - LATE_ALLOWED * timeframe_delta(timeframe))
        candles = source.candles(symbol, closed_by=now, bars=1)
        newest = pd.DatetimeIndex(candles.index)[-1].to_pydatetime() if len(candles) else None
    except Exception as error:  # noqa: BLE001  a failing source must not block the delivery of alerts
        yield f"{symbol} is unavailable: {in_a_line(error)}", f"{symbol} {now:%Y-%m-%d}"
        return
    if expected is not None and (newest is None or newest < expected):
        seen = f"its newest is {newest:%Y-%m-%d %H:%M}" if newest else "it has none"
        yield f"the {symbol} candle {expected:%Y-%m-%d %H:%M} UTC is due, {seen}", f"{symbol} {newest}"


def _alert(session: Session, kind: str, name: str, line: str, key: str, now: datetime) -> None:
    state = strategy_state(session, name)
    version = state["canary"] or state["active"]
    facts = {"version": version, "exposed": exposure_of(session, name, version, state)} if version else {}
    alerts.raise_alert(
        session,
        kind,
        line,
        severity=Severity.WARNING.value,
        strategy_name=name,
        dedupe_key=f"{name} {kind} {key}",
        facts=facts,
        now=now,
    )
