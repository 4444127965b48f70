"""Strategies in the style of those that people publish for freqtrade and backtesting.py, fit and biased ones.

They import freqtrade, or its stand-in (`stand_ins`). `.ci/packages` registers them with the real packages.
"""

from typing import Any

import numpy as np
import pandas as pd
import talib.abstract as ta
from backtesting import Strategy
from backtesting.lib import crossover
from backtesting.test import SMA
from freqtrade.strategy import IntParameter, IStrategy

Metadata = dict[str, Any]


class Hourly(IStrategy):  # type: ignore[misc]
    """What most of them share."""

    INTERFACE_VERSION = 3
    timeframe = "1h"
    can_short = True
    stoploss = -0.10
    minimal_roi = {"0": 0.04, "60": 0.01}
    startup_candle_count = 200

    def populate_exit_trend(self, dataframe: pd.DataFrame, metadata: Metadata) -> pd.DataFrame:
        return dataframe


class RsiBands(Hourly):
    """RSI and Bollinger bands."""

    oversold = IntParameter(10, 50, default=35, space="buy")

    def populate_indicators(self, dataframe: pd.DataFrame, metadata: Metadata) -> pd.DataFrame:
        dataframe["rsi"] = ta.RSI(dataframe, timeperiod=14)
        bands = ta.BBANDS(dataframe, timeperiod=20)
        dataframe["lower"], dataframe["upper"] = bands["lowerband"], bands["upperband"]
        return dataframe

    def populate_entry_trend(self, dataframe: pd.DataFrame, metadata: Metadata) -> pd.DataFrame:
        dataframe.loc[
            (dataframe["rsi"] < self.oversold.value) & (dataframe["close"] < dataframe["lower"]), "enter_long"
        ] = 1
        dataframe.loc[(dataframe["rsi"] > 65) & (dataframe["close"] > dataframe["upper"]), "enter_short"] = 1
        return dataframe


class EmaCross(Hourly):
    """Two exponential averages that cross, with a tag."""

    def populate_indicators(self, dataframe: pd.DataFrame, metadata: Metadata) -> pd.DataFrame:
        dataframe["fast"], dataframe["slow"] = (ta.EMA(dataframe, timeperiod=n) for n in (9, 21))
        return dataframe

    def populate_entry_trend(self, dataframe: pd.DataFrame, metadata: Metadata) -> pd.DataFrame:
        above = dataframe["fast"] > dataframe["slow"]
        before = above.shift(1, fill_value=False)
        dataframe.loc[above & ~before, ["enter_long", "enter_tag"]] = (1, "golden cross")
        dataframe.loc[~above & before, ["enter_short", "enter_tag"]] = (1, "death cross")
        return dataframe


class Macd(Hourly):
    """MACD with a filter of trend and volume, entries only."""

    can_short = False

    def populate_indicators(self, dataframe: pd.DataFrame, metadata: Metadata) -> pd.DataFrame:
        macd = ta.MACD(dataframe)
        dataframe["macd"], dataframe["signal"] = macd["macd"], macd["macdsignal"]
        dataframe["adx"] = ta.ADX(dataframe)
        return dataframe

    def populate_entry_trend(self, dataframe: pd.DataFrame, metadata: Metadata) -> pd.DataFrame:
        rising = (dataframe["macd"] > dataframe["signal"]) & (dataframe["adx"] > 20)
        dataframe["enter_long"] = np.where(rising, 1, 0)
        return dataframe


class FourHours(Hourly):
    """A higher timeframe of its own candles, of which it uses only finished ones."""

    def populate_indicators(self, dataframe: pd.DataFrame, metadata: Metadata) -> pd.DataFrame:
        closes = dataframe.set_index("date")["close"].resample("4h").last().dropna()
        finished = closes.rolling(10).mean().shift(1)
        dataframe["trend"] = finished.reindex(dataframe["date"], method="ffill").to_numpy()
        return dataframe

    def populate_entry_trend(self, dataframe: pd.DataFrame, metadata: Metadata) -> pd.DataFrame:
        dataframe.loc[dataframe["close"] > dataframe["trend"], "enter_long"] = 1
        dataframe.loc[dataframe["close"] < dataframe["trend"], "enter_short"] = 1
        return dataframe


class SmaCross(Strategy):  # type: ignore[misc]
    n1 = 10
    n2 = 20

    def init(self) -> None:
        self.fast = self.I(SMA, self.data.Close, self.n1)
        self.slow = self.I(SMA, self.data.Close, self.n2)

    def next(self) -> None:
        if crossover(self.fast, self.slow):
            self.position.close()
            self.buy()
        elif crossover(self.slow, self.fast):
            self.position.close()
            self.sell()


class Sma4Cross(SmaCross):
    """A cross within a trend, with stops, and exits by two averages more."""

    trend = 50
    leaves = 15

    def init(self) -> None:
        super().init()
        self.calm = self.I(SMA, self.data.Close, self.trend)
        self.out = self.I(SMA, self.data.Close, self.leaves)

    def next(self) -> None:
        price = self.data.Close[-1]
        if price > self.calm[-1] and crossover(self.fast, self.slow):
            self.buy(sl=price * 0.97)
        elif price < self.calm[-1] and crossover(self.slow, self.fast):
            self.sell(sl=price * 1.03)
        elif self.position and crossover(self.out, self.data.Close):
            self.position.close()


class NextClose(RsiBands):
    """Compares with the next close."""

    def populate_indicators(self, dataframe: pd.DataFrame, metadata: Metadata) -> pd.DataFrame:
        dataframe["next_return"] = dataframe["close"].shift(-1) / dataframe["close"] - 1
        return dataframe

    def populate_entry_trend(self, dataframe: pd.DataFrame, metadata: Metadata) -> pd.DataFrame:
        dataframe.loc[dataframe["next_return"] > 0.001, "enter_long"] = 1
        return dataframe


class WholeFrame(NextClose):
    """Measures the close against the mean of all candles that it gets."""

    def populate_indicators(self, dataframe: pd.DataFrame, metadata: Metadata) -> pd.DataFrame:
        dataframe["next_return"] = (dataframe["close"] - dataframe["close"].mean()) / dataframe["close"].std()
        return dataframe


class OpenDay(FourHours):
    """Uses the day's close on each of its hours."""

    def populate_indicators(self, dataframe: pd.DataFrame, metadata: Metadata) -> pd.DataFrame:
        closes = dataframe.set_index("date")["close"].resample("1D").last().dropna()
        dataframe["trend"] = 2 * dataframe["close"] - closes.reindex(dataframe["date"], method="ffill").to_numpy()
        return dataframe
