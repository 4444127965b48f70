"""Positions: when the version that manages an open trade wants to leave it, and who may take trades over.

A position follows the exits of its manager, which is the version that opened it. A change of routing gives its user
another version for the next entry and leaves the position where it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from types import MappingProxyType

import numpy as np

from strategy_core.domain.arrays import FloatArray
from strategy_core.domain.live_trades import CLOCK_SKEW, Serving, serving_at
from strategy_core.domain.routing import BUCKETS, buckets_of
from strategy_core.domain.scoring import ExitReason
from strategy_core.domain.strategy import Action, Intent
from strategy_core.domain.user_exclusions import UserExclusion, standings

ENTRY_CANDLES = 3  # closed candles before an entry, among which its signal is looked for
_SIGNALS = frozenset({Action.BUY, Action.SELL})


class Why(StrEnum):
    """Why a position is to be left."""

    CLOSE = "close"  # its manager decided so
    STOP = "stop"  # of the scoring rule, from the opener's signal
    TARGET = "target"
    HORIZON = "horizon"
    FLATTEN = "flatten"  # an owner, or the plan of a rollout that was rolled back


_OF_THE_RULE = {ExitReason.STOP: Why.STOP, ExitReason.TARGET: Why.TARGET, ExitReason.HORIZON: Why.HORIZON}


@dataclass(frozen=True, slots=True)
class OpenPosition:
    """The facts of an open position that its exit depends on.

    Attributes:
        side: buy or sell, or None if the platform does not report it.
        manager: None if no version decides on it any more, because an owner flattens it.
        managed_since: the manager's decisions on candles that closed by then do not count.
        flatten_at: from when on it is to be closed, or None.
    """

    trade_id: str
    symbol: str
    side: str | None
    opened_by: str
    manager: str | None
    opened_at: datetime
    managed_since: datetime
    flatten_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Decided:
    """A version's decision on the candle that opened at *candle*."""

    candle: datetime
    decision: str
    intent: str = Intent.OPEN


@dataclass(frozen=True, slots=True)
class SimulatedExit:
    """How the simulated trade of a signal ended: a `scoring.ExitReason`, and the candle, by its open time."""

    reason: str
    candle: datetime


@dataclass(frozen=True, slots=True)
class Exit:
    """A position that is to be left.

    Attributes:
        candle: open time of the candle that gave the reason, or None if an owner gave it.
    """

    trade_id: str
    manager: str | None
    why: Why
    candle: datetime | None


def signal_of(position: OpenPosition, decided: Sequence[Decided], timeframe: timedelta) -> datetime | None:
    """Return the candle of the signal that the position follows, or None if there is none.

    It is the newest signal of the position's side on one of the last ENTRY_CANDLES candles that had closed when the
    position was opened: an order may be filled late.

    Args:
        decided: the opener's decisions on the symbol, oldest first.
    """
    known = [each for each in decided if each.candle + timeframe <= position.opened_at + CLOCK_SKEW]
    for each in reversed(known[-ENTRY_CANDLES:]):
        if each.decision in _SIGNALS and position.side in (None, each.decision):
            return each.candle
    return None


def exit_of(
    position: OpenPosition,
    *,
    managed: Sequence[Decided],
    simulated: SimulatedExit | None,
    horizon: int,
    timeframe: timedelta,
    now: datetime,
) -> Exit | None:
    """Return why the position is to be left by *now*, the earliest reason first, or None if it may stay open.

    The scoring rule's stop, target and horizon are those of the simulated trade of the opener's signal. A position
    without a signal, or whose simulated trade ended by the opener's own close after a hand-over, has no stop and no
    target here: it is left once *horizon* candles have closed since its entry, or when its manager decides so.

    Args:
        managed: the manager's decisions on the symbol, oldest first.
        simulated: how the trade of the opener's signal ended, if it has one and that has ended.
        horizon: of the scoring rule, in candles.
    """
    if position.flatten_at is not None and position.flatten_at <= now:
        return Exit(position.trade_id, position.manager, Why.FLATTEN, None)
    found: list[tuple[datetime, Why]] = []
    if simulated is not None and simulated.reason in _OF_THE_RULE:
        found.append((simulated.candle, _OF_THE_RULE[ExitReason(simulated.reason)]))
    since = max(position.opened_at, position.managed_since)
    closes = (each.candle for each in managed if each.intent == Intent.CLOSE and each.candle + timeframe > since)
    if (candle := next(closes, None)) is not None:
        found.append((candle, Why.CLOSE))
    if simulated is None or simulated.reason not in _OF_THE_RULE:
        held = [each.candle for each in managed if each.candle + timeframe > position.opened_at]
        if len(held) >= horizon:
            found.append((held[horizon - 1], Why.HORIZON))
    if not found:
        return None
    candle, why = min(found, key=lambda each: each[0])  # of one candle the rule comes first: it acted within it
    return Exit(position.trade_id, position.manager, why, candle)


@dataclass(frozen=True, slots=True)
class Holding:
    """A position that a user had for a while, opened by another version than the one whose entries are counted."""

    user_id: str
    symbol: str
    opened_at: datetime
    closed_at: datetime | None


def count_suppressed(
    version: str,
    signals: Sequence[tuple[str, datetime]],
    held: Sequence[Holding],
    history: Sequence[Serving],
    salt: str,
    exclusions: Mapping[str, Sequence[UserExclusion]] = MappingProxyType({}),
) -> int:
    """Return how many entries of *version* its users could not take, because another version's position was open.

    A user has one such entry for each signal on a symbol on which the user has a position, if routing gives the user
    this version then. It is counted from positions and routing: an order that is not placed is not reported.

    Args:
        signals: (symbol, close of the candle) of the version's signals.
        held: positions that other versions have opened.
        history: which versions served users, sorted by time.
        salt: of user bucketing.
        exclusions: by user, of the time of the signals.
    """
    users = sorted({each.user_id for each in held})
    place = {user: number for number, user in enumerate(users)}
    buckets = buckets_of(users, salt)
    special = np.array([bool(exclusions.get(user)) for user in users], bool)
    by_symbol: dict[str, list[Holding]] = {}
    for each in held:
        by_symbol.setdefault(each.symbol, []).append(each)
    spans = {symbol: _spans(those) for symbol, those in by_symbol.items()}
    owners = {symbol: np.array([place[each.user_id] for each in those]) for symbol, those in by_symbol.items()}
    count = 0
    for symbol, at in signals:
        serving = serving_at(history, at)
        if symbol not in spans or serving is None or version not in (serving.active, serving.canary):
            continue
        opened, closed = spans[symbol]
        holds = np.zeros(len(users), bool)
        holds[owners[symbol][(opened <= at.timestamp()) & (closed > at.timestamp())]] = True
        by_bucket, below = holds & ~special, buckets < serving.canary_bp
        if serving.version_of(0, symbol) == version:
            count += int((by_bucket & below).sum())
        if serving.version_of(BUCKETS, symbol) == version:
            count += int((by_bucket & ~below).sum())
        for number in np.flatnonzero(holds & special).tolist():
            (standing,) = standings(exclusions[users[number]], at, at)
            count += serving.version_of(int(buckets[number]), symbol, standing) == version
    return count


def _spans(held: Sequence[Holding]) -> tuple[FloatArray, FloatArray]:
    """Return when each position was opened and closed, in seconds since 1970. Infinite: it is open."""
    opened = np.array([each.opened_at.timestamp() for each in held], np.float64)
    closed = [np.inf if each.closed_at is None else each.closed_at.timestamp() for each in held]
    return opened, np.array(closed, np.float64)


def hand_over_problem(
    *, status: str, quarantined: bool, timeframes: tuple[str, str], symbols: Sequence[str], missing: Sequence[str]
) -> str:
    """Return why a version cannot take positions over, or an empty text.

    All versions of a strategy share one scoring rule, so that stops, targets and horizons stay as they are.

    Args:
        status, quarantined: of the version that would take them over.
        timeframes: of both versions.
        symbols: that the receiving version decides on.
        missing: symbols of the positions that it does not decide on.
    """
    if status == "retired":
        return "it is retired and decides no more"
    if quarantined:
        return "it was rolled back"
    if timeframes[0] != timeframes[1]:
        return f"it decides on {timeframes[1]} candles, and the positions follow {timeframes[0]} candles"
    if missing:
        return f"it does not decide on {', '.join(missing)}; it decides on {', '.join(symbols)}"
    return ""


def share_by(managers: Mapping[str | None, int]) -> dict[str, int]:
    """Return the number of open positions by manager, by name. Positions without one are under ""."""
    return {name or "": managers[name] for name in sorted(managers, key=lambda each: each or "")}
