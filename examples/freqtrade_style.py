"""A strategy of freqtrade, as it is: RSI and Bollinger bands. It needs freqtrade in the same environment.

    cd examples
    export ROLLOUT_SYMBOL=GOLD
    uv run rollout db upgrade
    uv run rollout register bands 1.0.0 --entry-point freqtrade_style:Bands --status active --yes
    uv run rollout route user_123 bands

The entries of the last candle decide. `oversold` and `overbought` are the config: `--config '{"oversold": 25}'`.
`stoploss` and `minimal_roi` are reported and not followed: each trade ends by the strategy's scoring rule.
"""

import talib.abstract as ta
from freqtrade.strategy import IntParameter, IStrategy
from pandas import DataFrame


class Bands(IStrategy):
    INTERFACE_VERSION = 3
    timeframe = "1h"
    can_short = True
    stoploss = -0.10
    minimal_roi = {"0": 0.04}
    startup_candle_count = 50

    oversold = IntParameter(10, 40, default=30, space="buy")
    overbought = IntParameter(60, 90, default=70, space="sell")

    def populate_indicators(self, dataframe: DataFrame, metadata: dict) -> DataFrame:
        dataframe["rsi"] = ta.RSI(dataframe, timeperiod=14)
        bands = ta.BBANDS(dataframe, timeperiod=20, nbdevup=2.0, nbdevdn=2.0)
        dataframe["lower"], dataframe["upper"] = bands["lowerband"], bands["upperband"]
        return dataframe

    def populate_entry_trend(self, dataframe: DataFrame, metadata: dict) -> DataFrame:
        low = (dataframe["rsi"] < self.oversold.value) & (dataframe["close"] < dataframe["lower"])
        high = (dataframe["rsi"] > self.overbought.value) & (dataframe["close"] > dataframe["upper"])
        dataframe.loc[low, ["enter_long", "enter_tag"]] = (1, "below the band")
        dataframe.loc[high, ["enter_short", "enter_tag"]] = (1, "above the band")
        return dataframe

    def populate_exit_trend(self, dataframe: DataFrame, metadata: dict) -> DataFrame:
        dataframe.loc[dataframe["rsi"] > 50, "exit_long"] = 1
        dataframe.loc[dataframe["rsi"] < 50, "exit_short"] = 1
        return dataframe
