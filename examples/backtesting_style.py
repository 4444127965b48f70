"""A strategy of backtesting.py, as it is: two moving averages that cross. It needs backtesting in the same environment.

    cd examples
    export ROLLOUT_SYMBOL=GOLD
    uv run rollout db upgrade
    uv run rollout register sma_cross 1.0.0 --entry-point backtesting_style:SmaCross --status active --yes
    uv run rollout register sma_cross 1.1.0 --entry-point backtesting_style:SmaCross --config '{"slow": 50}'
    uv run rollout route user_123 sma_cross

The market orders of the last candle decide. The class variables are the config.
"""

from backtesting import Strategy
from backtesting.lib import crossover
from backtesting.test import SMA


class SmaCross(Strategy):
    fast = 10
    slow = 20

    def init(self):
        self.quick = self.I(SMA, self.data.Close, self.fast)
        self.calm = self.I(SMA, self.data.Close, self.slow)

    def next(self):
        if crossover(self.quick, self.calm):
            self.position.close()
            self.buy()
        elif crossover(self.calm, self.quick):
            self.position.close()
            self.sell()
