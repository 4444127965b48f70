"""How an arm's closed trades and marked equity did; None wherever a number would be a lie."""

import numpy as np
from pydantic import BaseModel, ConfigDict

from strategy_core.domain.arrays import FloatArray


class Performance(BaseModel):
    """Metrics of closed trades, and the drawdown of the equity they and the open ones made.

    Attributes:
        trades: closed trades counted.
        win_rate: share with r > 0, 0..1. Beware: it can be 0.54 with a losing mean.
        average_pnl: price units a trade; symbols of other prices weigh as they are priced.
        expectancy: mean R a trade.
        profit_factor: R won / R lost, since each trade risks the same share of equity; None without losses.
        max_drawdown: largest loss from the running peak, as a fraction of that peak; None when not asked for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    trades: int
    win_rate: float | None
    average_pnl: float | None
    expectancy: float | None
    profit_factor: float | None
    max_drawdown: float | None


def performance(
    r_multiple: FloatArray, pnl: FloatArray, *, marks: FloatArray | None = None, risk_fraction: float = 0.01
) -> Performance:
    """Return the metrics of closed trades; *marks* are the candles' changes of marked-to-market R, oldest first."""
    return Performance(
        trades=len(r_multiple),
        win_rate=win_rate(r_multiple),
        average_pnl=_mean(pnl),
        expectancy=_mean(r_multiple),
        profit_factor=profit_factor(r_multiple),
        max_drawdown=None if marks is None else max_drawdown(marks, risk_fraction),
    )


def win_rate(results: FloatArray) -> float | None:
    """Return the share of results above 0, in 0..1; None without any."""
    return _mean((results > 0).astype(np.float64))


def profit_factor(results: FloatArray) -> float | None:
    """Return the sum of gains / the sum of losses, >= 0; None without losses to speak of, where it is infinite."""
    won, lost = results[results > 0].sum(), -results[results < 0].sum()
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        factor = float(np.divide(won, lost))
    return factor if np.isfinite(factor) else None


def equity(marks: FloatArray, risk_fraction: float) -> FloatArray:
    """Return the account's value after each candle: 1 + risk_fraction × cumulative R; shape (candles,).

    The stake is not compounded, so that two arms' curves differ by their R alone.
    """
    return 1.0 + risk_fraction * np.cumsum(marks)


def drawdown(equity: FloatArray) -> FloatArray:
    """Return the loss from the running peak, as a fraction of that peak; the peak includes the start, 1.

    Returns:
        Shape (candles,): 0 at a peak, 0.08 when 8 % below it, above 1 when more than everything is lost.

    Source: Magdon-Ismail & Atiya (2004), "Maximum drawdown".
    """
    peak = np.maximum(np.maximum.accumulate(equity), 1.0)
    return (peak - equity) / peak


def max_drawdown(marks: FloatArray, risk_fraction: float) -> float | None:
    """Return the largest drawdown of the marked-to-market equity; None without candles."""
    return float(drawdown(equity(marks, risk_fraction)).max()) if len(marks) else None


def _mean(values: FloatArray) -> float | None:
    return float(values.mean()) if len(values) else None
