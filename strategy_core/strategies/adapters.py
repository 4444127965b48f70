"""Strategies written for freqtrade and for backtesting.py, adapted to the strategy interface.

Neither package is imported here, except backtesting.py in the worker of a version that is written for it. Both are the
owner's own install. What decides is the entry: a trade ends by the strategy's scoring rule, as every other trade does.
"""

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, create_model

from strategy_core.domain.arrays import BoolArray
from strategy_core.domain.errors import InvalidDecision, InvalidEntryPoint
from strategy_core.domain.strategy import Action, Context, Decision

LEAST_BARS = 400  # of warm-up, unless the config says otherwise: recursive indicators forget slowly
_MOST_FEATURES = 64
_SETTINGS = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, protected_namespaces=())
_WARMUP = "candles of each decision"
_GIVEN = ("date", "open", "high", "low", "close", "volume")
_ENTRIES = ("enter_long", "enter_short")
_SIGNALS = (*_ENTRIES, "exit_long", "exit_short", "enter_tag", "exit_tag")
_CONSTANTS = int | float | str | bool


def adapted(found: Any, entry_point: str) -> "Freqtrade | Backtesting | None":
    """Return the adapter of a class that is written for another package, or None for any other object.

    Raises:
        InvalidEntryPoint: the class uses a part of its package that is not supported.
    """
    if not isinstance(found, type):
        return None
    if callable(getattr(found, "populate_indicators", None)):
        return Freqtrade(found, entry_point)
    if any(
        base.__module__.partition(".")[0] == "backtesting" and base.__name__ == "Strategy" for base in found.__mro__
    ):
        return Backtesting(found)
    return None


class Freqtrade:
    """A strategy of freqtrade: `populate_indicators`, `populate_entry_trend` and `populate_exit_trend`.

    The methods get the window as freqtrade gives it, with a column `date`. The last row decides as in freqtrade:
    `enter_long` without `enter_short` and `exit_long` buys, `enter_short` without `enter_long` and `exit_short` sells
    if the strategy can short. Its parameters (`IntParameter` and so on) are the config. Stop loss, ROI and trailing
    stop are not followed, since the scoring rule ends a trade.

    Attributes:
        notes: one line with the values that are not followed, if there are any.
    """

    # Each changes which signals become trades, or when trades end, and needs an open trade or another pair's candles.
    UNSUPPORTED = (
        *("populate_buy_trend", "populate_sell_trend", "informative_pairs", "bot_start", "bot_loop_start"),
        *("confirm_trade_entry", "confirm_trade_exit", "custom_exit", "custom_sell", "custom_stoploss", "custom_roi"),
        *("adjust_trade_position", "adjust_entry_price", "adjust_order_price", "adjust_exit_price"),
    )

    def __init__(self, found: type, entry_point: str) -> None:
        _check_supported(found, self.UNSUPPORTED, entry_point)
        self._class = found
        self.notes = list(_unfollowed(found))
        self._parameters = {name: value for name, value in _attributes(found) if _is_parameter(value)}
        least = max(getattr(found, "startup_candle_count", 0), LEAST_BARS)
        fields: dict[str, Any] = {
            name: (type(parameter.value), parameter.value) for name, parameter in self._parameters.items()
        }
        self.Params = create_model(
            f"{found.__name__}Params",
            __config__=_SETTINGS,
            **fields,
            warmup_bars=(int, Field(default=least, ge=1, description=_WARMUP)),
        )
        self._made: tuple[BaseModel, Any] | None = None

    def warmup_bars(self, params: Any) -> int:
        return int(params.warmup_bars)

    def decide(self, candles: pd.DataFrame, params: BaseModel, context: Context) -> Decision:
        strategy = self._strategy(params)
        timeframe = getattr(strategy, "timeframe", None) or context.timeframe
        if timeframe != context.timeframe:
            raise InvalidDecision(f"its timeframe is {timeframe}: register it with this timeframe")
        frame = _populated(strategy, candles, context.symbol)
        if len(candles) > self.warmup_bars(params):  # as registration asks, and nothing else
            _check_past(_populated(strategy, candles.iloc[:-1], context.symbol), frame)
        last: dict[str, Any] = {str(name): value for name, value in frame.iloc[-1].items()}
        longs, shorts = _is_set(last, "enter_long"), _is_set(last, "enter_short")
        shorts = shorts and bool(getattr(strategy, "can_short", False))
        features = dict(_features(last))
        exits = {name: True for name in ("exit_long", "exit_short") if _is_set(last, name)}
        tag = last.get("enter_tag")
        reason = tag if isinstance(tag, str) else ""
        if longs and not shorts and "exit_long" not in exits:
            return Decision(Action.BUY, 1.0, features | exits, reason)
        if shorts and not longs and "exit_short" not in exits:
            return Decision(Action.SELL, 1.0, features | exits, reason)
        return Decision(Action.HOLD, 0.0, features | exits)

    def _strategy(self, params: BaseModel) -> Any:
        if self._made is None or self._made[0] != params:
            takes_config = self._class.__init__ is not object.__init__  # type: ignore[misc]
            strategy = self._class({}) if takes_config else self._class()
            for name, parameter in self._parameters.items():
                own = copy.copy(parameter)
                own.value = getattr(params, name)
                setattr(strategy, name, own)
            self._made = params, strategy
        return self._made[1]


class Backtesting:
    """A strategy of backtesting.py: `init` and `next`.

    It runs over the window, and the market orders that it places on the last candle decide. So what it remembers, such
    as an open position, begins with the window. Its class variables are the config.
    """

    notes: Sequence[str] = ()

    def __init__(self, found: type) -> None:
        self._class = found
        constants = {
            name: value for name, value in _attributes(found) if isinstance(value, _CONSTANTS) and name[0] != "_"
        }
        fields: dict[str, Any] = {name: (type(value), value) for name, value in constants.items()}
        fields.setdefault("warmup_bars", (int, Field(default=LEAST_BARS, ge=1, description=_WARMUP)))
        self._own = list(constants)
        self.Params = create_model(f"{found.__name__}Params", __config__=_SETTINGS, **fields)

    def warmup_bars(self, params: Any) -> int:
        return int(params.warmup_bars)

    def decide(self, candles: pd.DataFrame, params: BaseModel, context: Context) -> Decision:
        from backtesting import Backtest

        last = _last_orders(self._class, len(candles))
        frame = candles[["open", "high", "low", "close", "volume"]].rename(columns=str.capitalize)
        given = {name: getattr(params, name) for name in self._own}
        with warnings.catch_warnings(action="ignore"):  # of money that the run does not have: orders decide, not fills
            test = Backtest(frame, last, cash=1e12, finalize_trades=True)
            try:
                test.run(**given)
            except _LastCandle as seen:
                return seen.decision
        return Decision(Action.HOLD, reason="no candle to trade on")  # indicators have no value yet


class _LastCandle(Exception):
    """Ends a run before its statistics, which would take most of the time."""

    def __init__(self, decision: Decision) -> None:
        super().__init__("the last candle")
        self.decision = decision


def _last_orders(found: Any, bars: int) -> type:
    """Return a subclass that ends the run on the last of *bars* candles with the decision of its orders."""

    class OnLastCandle(found):  # type: ignore[misc]
        def next(self) -> None:
            self._placed: list[tuple[Action, dict[str, Any]]] = []
            super().next()
            if len(self.data) == bars:
                raise _LastCandle(_decision_of(self._placed))

        def buy(self, **order: Any) -> Any:
            self._placed.append((Action.BUY, order))
            return super().buy(**order)

        def sell(self, **order: Any) -> Any:
            self._placed.append((Action.SELL, order))
            return super().sell(**order)

    return OnLastCandle


def _decision_of(placed: list[tuple[Action, dict[str, Any]]]) -> Decision:
    sides = {action for action, _ in placed}
    if pending := sorted({name for _, order in placed for name in ("limit", "stop") if order.get(name) is not None}):
        raise InvalidDecision(f"it places a {' and '.join(pending)} order; allowed: market orders")
    if len(sides) != 1:
        return Decision(Action.HOLD, reason="orders on both sides" if sides else "")
    action, order = placed[-1]
    features = {name: float(order[name]) for name in ("sl", "tp") if order.get(name) is not None}
    return Decision(action, 1.0, features)


def _check_supported(found: type, unsupported: tuple[str, ...], entry_point: str) -> None:
    """Raise InvalidEntryPoint if the class has a method that cannot be followed. The base class's own do nothing."""
    if not callable(getattr(found, "populate_entry_trend", None)):
        raise InvalidEntryPoint(entry_point, "it has populate_indicators, but no populate_entry_trend")
    for base in found.__mro__:
        if base.__module__.partition(".")[0] == "freqtrade":
            continue
        if named := [name for name in unsupported if name in vars(base)]:
            what = f"{', '.join(named)} of freqtrade cannot be followed: only entries by populate_entry_trend count"
            raise InvalidEntryPoint(entry_point, what)
        if informative := [name for name, value in vars(base).items() if hasattr(value, "_ft_informative")]:
            what = (
                f"{', '.join(informative)} needs candles of another pair or timeframe; a version sees its symbol's only"
            )
            raise InvalidEntryPoint(entry_point, what)


def _populated(strategy: Any, candles: pd.DataFrame, symbol: str) -> pd.DataFrame:
    """Return the frame of a freqtrade strategy with its indicators and signals, one row for each candle."""
    frame = candles[[*_GIVEN[1:]]].reset_index(names="date")
    for name in ("populate_indicators", "populate_entry_trend", "populate_exit_trend"):
        populate: Callable[..., Any] | None = getattr(strategy, name, None)
        if populate is None:
            continue
        frame = populate(frame, {"pair": symbol})
        if not isinstance(frame, pd.DataFrame) or len(frame) != len(candles):
            raise InvalidDecision(f"{name} returned {_shape(frame)}, not a frame of {len(candles)} rows")
    return frame


def _check_past(before: pd.DataFrame, after: pd.DataFrame) -> None:
    """Raise InvalidDecision if *after*, which has one candle more, has another entry on a candle of *before*.

    The last row alone decides, so such a strategy uses no later candle here. But it does not signal as in its backtest.
    """
    for entry in _ENTRIES:
        was, became = _entries(before, entry), _entries(after, entry)[: len(before)]
        if len(rows := np.flatnonzero(was != became)):
            row = int(rows[-1])
            columns = [name for name in before if name not in _SIGNALS and not _same(before[name], after[name], row)]
            because = f", as {columns[0]} changes" if columns else ""
            at, word = f"{before['date'].iloc[row]:%Y-%m-%d %H:%M}", "set" if became[row] else "not set"
            raise InvalidDecision(f"it looks ahead: {entry} on {at} is {word} once the next candle is known{because}")


def _entries(frame: pd.DataFrame, entry: str) -> BoolArray:
    found: BoolArray = frame[entry].eq(1).to_numpy(np.bool_) if entry in frame else np.zeros(len(frame), np.bool_)
    return found


def _same(before: "pd.Series[Any]", after: "pd.Series[Any]", row: int) -> bool:
    first, then = before.iloc[row], after.iloc[row]
    return bool(first == then) or (pd.isna(first) and pd.isna(then))


def _unfollowed(found: type) -> Iterator[str]:
    """Yield one line about the static exits of a freqtrade class."""
    exits = {name: getattr(found, name, None) for name in ("stoploss", "minimal_roi", "trailing_stop")}
    if stated := [f"{name} {value}" for name, value in exits.items() if value]:
        yield f"not followed: {', '.join(stated)}; the strategy's scoring rule ends each trade"


def _attributes(found: type) -> Iterator[tuple[str, Any]]:
    """Yield the class variables, those of base classes first, without the ones of the package itself."""
    seen: dict[str, Any] = {}
    for base in reversed(found.__mro__):
        if base.__module__.partition(".")[0] not in ("freqtrade", "backtesting", "builtins", "abc"):
            seen |= vars(base)
    return iter(seen.items())


def _is_parameter(value: Any) -> bool:
    return any(base.__name__ == "BaseParameter" for base in type(value).__mro__)


def _is_set(row: Mapping[str, Any], name: str) -> bool:
    value = row.get(name)
    return isinstance(value, int | float | np.number) and value == 1


def _features(row: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the indicators of a row that are numbers or text. A number that is not finite is null."""
    names = [name for name in row if name not in {*_GIVEN, *_SIGNALS}][:_MOST_FEATURES]
    for name in names:
        value = row[name]
        value = value.item() if isinstance(value, np.generic) else value
        if isinstance(value, float) and not math.isfinite(value):
            value = None
        if value is None or isinstance(value, _CONSTANTS):
            yield str(name), value


def _shape(frame: object) -> str:
    return f"{len(frame)} rows" if isinstance(frame, pd.DataFrame) else type(frame).__name__
