"""Strategies as people write them for freqtrade and backtesting.py. The classes of freqtrade are stand-ins."""

from typing import Any

import pandas as pd
from backtesting import Strategy
from backtesting.lib import crossover
from backtesting.test import SMA


class SmaCross(Strategy):  # type: ignore[misc]
    n1 = 3
    n2 = 6

    def init(self) -> None:
        self.fast = self.I(SMA, self.data.Close, self.n1)
        self.slow = self.I(SMA, self.data.Close, self.n2)

    def next(self) -> None:
        if crossover(self.fast, self.slow):
            self.position.close()
            self.buy(sl=float(self.data.Close[-1]) * 0.9)
        elif crossover(self.slow, self.fast):
            self.position.close()
            self.sell()


class Limits(Strategy):  # type: ignore[misc]
    warmup_bars = 9

    def init(self) -> None: ...

    def next(self) -> None:
        self.buy(limit=float(self.data.Close[-1]))


class Undecided(Limits):
    def next(self) -> None:
        self.buy()
        self.sell()


class NeverReady(Limits):
    def init(self) -> None:
        self.mean = self.I(SMA, self.data.Close, len(self.data))


class BaseParameter:
    def __init__(self, default: Any) -> None:
        self.value = default


class IntParameter(BaseParameter): ...


class Turns:
    """Buys where the close fell to a new low of *lookback* candles, and sells at a new high."""

    timeframe = "1h"
    startup_candle_count = 30
    can_short = True
    stoploss = -0.1
    minimal_roi = {"0": 0.04}
    lookback = IntParameter(5)

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def populate_indicators(self, dataframe: pd.DataFrame, metadata: dict[str, Any]) -> pd.DataFrame:
        rolling = dataframe["close"].rolling(self.lookback.value)
        dataframe["low_of"], dataframe["high_of"] = rolling.min(), rolling.max()
        dataframe["undefined"] = float("nan")
        dataframe["of"] = metadata["pair"]
        return dataframe

    def populate_entry_trend(self, dataframe: pd.DataFrame, metadata: dict[str, Any]) -> pd.DataFrame:
        dataframe.loc[dataframe["close"] <= dataframe["low_of"], ["enter_long", "enter_tag"]] = (1, "new low")
        dataframe.loc[dataframe["close"] >= dataframe["high_of"], "enter_short"] = 1
        return dataframe


class LongOnly(Turns):
    can_short = False


class Leaves(Turns):
    def populate_exit_trend(self, dataframe: pd.DataFrame, metadata: dict[str, Any]) -> pd.DataFrame:
        dataframe[["exit_long", "exit_short"]] = 1
        return dataframe


class NextClose(Turns):
    def populate_indicators(self, dataframe: pd.DataFrame, metadata: dict[str, Any]) -> pd.DataFrame:
        dataframe["next"] = dataframe["close"].shift(-1)
        return dataframe

    def populate_entry_trend(self, dataframe: pd.DataFrame, metadata: dict[str, Any]) -> pd.DataFrame:
        dataframe.loc[dataframe["next"] > dataframe["close"], "enter_long"] = 1
        return dataframe


class DropsRows(Turns):
    def populate_indicators(self, dataframe: pd.DataFrame, metadata: dict[str, Any]) -> pd.DataFrame:
        return super().populate_indicators(dataframe, metadata).dropna(subset=["low_of"])


class ReturnsNothing(Turns):
    def populate_entry_trend(self, dataframe: pd.DataFrame, metadata: dict[str, Any]) -> Any:
        return None


class NoEntry:
    def populate_indicators(self, dataframe: pd.DataFrame, metadata: dict[str, Any]) -> pd.DataFrame:
        return dataframe


class MovesItsStop(Turns):
    def custom_stoploss(self, *_: Any, **__: Any) -> float:
        return -0.05


class Informed(Turns):
    def populate_indicators_1d(self, dataframe: pd.DataFrame, metadata: dict[str, Any]) -> pd.DataFrame:
        return dataframe

    populate_indicators_1d._ft_informative = [object()]  # type: ignore[attr-defined]
