"""Performance of closed trades, equity and drawdown. Figures without a meaningful value are None."""

from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict

from strategy_core.domain.arrays import FloatArray, IntArray


class Performance(BaseModel):
    """Metrics of closed trades, and the drawdown of the equity with open trades.

    Attributes:
        trades: closed trades counted.
        win_rate: share with r > 0, 0..1. It can be above 0.5 with a negative mean.
        average_pnl: price units per trade. Symbols with higher prices have more weight.
        expectancy: mean R per trade.
        profit_factor: R won / R lost, as each trade risks the same share of equity, if there are losses.
        max_drawdown: largest loss from the running peak, as a fraction of that peak, if computed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    trades: int
    win_rate: float | None
    average_pnl: float | None
    expectancy: float | None
    profit_factor: float | None
    max_drawdown: float | None


@dataclass(frozen=True, slots=True)
class ClosedTrades:
    """Sums over closed trades. Sums over different trades can be added.

    Attributes:
        wins: trades with r > 0.
        won, lost: sum of gains and sum of losses, in R, both >= 0.
    """

    trades: int = 0
    wins: int = 0
    r: float = 0.0
    pnl: float = 0.0
    won: float = 0.0
    lost: float = 0.0

    @classmethod
    def of(cls, r_multiple: FloatArray, pnl: FloatArray) -> "ClosedTrades":
        gains, losses = r_multiple[r_multiple > 0], r_multiple[r_multiple < 0]
        return cls(
            trades=len(r_multiple),
            wins=len(gains),
            r=float(r_multiple.sum()),
            pnl=float(pnl.sum()),
            won=float(gains.sum()),
            lost=float(-losses.sum()),
        )

    def __add__(self, other: "ClosedTrades") -> "ClosedTrades":
        return ClosedTrades(
            self.trades + other.trades,
            self.wins + other.wins,
            self.r + other.r,
            self.pnl + other.pnl,
            self.won + other.won,
            self.lost + other.lost,
        )

    @property
    def profit_factor(self) -> float | None:
        """Sum of gains / sum of losses, >= 0. None if it is infinite."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            factor = float(np.divide(self.won, self.lost))
        return factor if np.isfinite(factor) else None

    def performance(self, max_drawdown: float | None = None) -> Performance:
        return Performance(
            trades=self.trades,
            win_rate=self.wins / self.trades if self.trades else None,
            average_pnl=self.pnl / self.trades if self.trades else None,
            expectancy=self.r / self.trades if self.trades else None,
            profit_factor=self.profit_factor,
            max_drawdown=max_drawdown,
        )


NO_TRADES = ClosedTrades()


def performance(
    r_multiple: FloatArray, pnl: FloatArray, *, marks: FloatArray | None = None, risk_fraction: float = 0.01
) -> Performance:
    """Return the metrics of closed trades. *marks* are changes of marked-to-market R by candle, oldest first."""
    return ClosedTrades.of(r_multiple, pnl).performance(None if marks is None else max_drawdown(marks, risk_fraction))


def equity(marks: FloatArray, risk_fraction: float) -> FloatArray:
    """Return the account value after each candle, 1 + risk_fraction × cumulative R, shape (candles,).

    The stake is not compounded, so that the curves of two versions differ only by their R.
    """
    return 1.0 + risk_fraction * np.cumsum(marks)


def drawdown(equity: FloatArray) -> FloatArray:
    """Return the loss from the running peak, as a fraction of that peak. The peak includes the start, 1.

    Returns:
        Shape (candles,): 0 at a peak, 0.08 when 8 % below it, above 1 when the account is negative.

    Source: Magdon-Ismail & Atiya (2004), "Maximum drawdown".
    """
    peak = np.maximum(np.maximum.accumulate(equity), 1.0)
    return (peak - equity) / peak


def deepest_so_far(marks: FloatArray, risk_fraction: float) -> tuple[IntArray, FloatArray]:
    """Return the positions of the candles whose drawdown exceeds all before, and their drawdowns, both ascending."""
    falls = drawdown(equity(marks, risk_fraction))
    before = np.concatenate([[0.0], np.maximum.accumulate(falls)[:-1]]) if len(falls) else falls
    found = np.flatnonzero(falls > before)
    return found, falls[found]


def max_drawdown(marks: FloatArray, risk_fraction: float) -> float | None:
    """Return the largest drawdown of the marked-to-market equity, or None without candles."""
    return float(drawdown(equity(marks, risk_fraction)).max()) if len(marks) else None
