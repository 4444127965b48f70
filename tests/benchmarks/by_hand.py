"""A comparison in hand-written SQL, as short as its answer allows; what `services.compare` is measured against.

It knows what the service has to ask for: that both versions are on all symbols, and the period is all of the log.
"""

from collections.abc import Callable, Sequence
from typing import Any

from scipy.special import stdtrit

Run = Callable[[str], Sequence[Any]]
_KEY = "{0}.symbol = {1}.symbol AND {0}.timestamp = {1}.timestamp"
_ARM = "{0}.strategy_name = 'fib_rsi' AND {0}.version = '{1}'"
_SIGNAL = "{0}.decision IN ('buy', 'sell')"
_SUMS = (
    "sum({0}.r_multiple) FILTER (WHERE {1}), count({0}.r_multiple) FILTER (WHERE {1}), "
    "sum({0}.pnl) FILTER (WHERE {1}), count(*) FILTER (WHERE {1} AND {0}.r_multiple > 0), "
    "sum({0}.r_multiple) FILTER (WHERE {1} AND {0}.r_multiple > 0)"
)


def answer(run: Run, *, day: str, risk_fraction: float = 0.01) -> dict[str, Any]:
    """Return version 2 against version 1 over the whole log; *day* is the database's word for the day of `a`."""
    rows = {
        version: run(f"SELECT count(*) FROM shadow_decision_log a WHERE {_arm('a', version)}")[0][0] for version in "12"
    }
    slots = run(_slots(day))
    alone = sum(row[3] for row in slots if row[2] is None)
    both = [row for row in slots if _said(row[1]) and _said(row[2])]
    held = rows["2"] - sum(row[3] for row in slots)
    compared = held + sum(row[3] for row in both)
    ours, theirs = (_performance([row[5 + shift : 10 + shift] for row in both]) for shift in (0, 5))
    return {
        "candles_compared": compared,
        "candles_excluded": rows["1"] + alone - compared,
        "slots": compared - held,
        "differing": sum(row[3] for row in both if row[1] != row[2]),
        "pending_slots": compared - held - sum(row[4] for row in both),
        "shadow": {**ours, "max_drawdown": run(_drawdown("2", risk_fraction))[0][0]},
        "active": {**theirs, "max_drawdown": run(_drawdown("1", risk_fraction))[0][0]},
        "difference": _interval(both),
    }


def _slots(day: str) -> str:
    """Return the query of all candles that not both held, by day and by what was said."""
    closed = " AND ".join(f"({log}.decision = 'hold' OR {trade}.r_multiple IS NOT NULL)" for log, trade in ("ac", "bd"))
    said = [f"CASE {log}.reason WHEN 'insufficient_history' THEN 'error' ELSE {log}.decision END" for log in "ab"]
    held = " AND ".join(f"({log}.decision = 'hold' AND {log}.reason <> 'insufficient_history')" for log in "ab")
    return (
        f"SELECT {day}, {said[0]}, {said[1]}, count(*), count(*) FILTER (WHERE {closed}), "
        f"{_SUMS.format('c', closed)}, {_SUMS.format('d', closed)} FROM shadow_decision_log a "
        f"LEFT JOIN shadow_decision_log b ON {_KEY.format('b', 'a')} AND {_arm('b', '1')} "
        f"LEFT JOIN outcome c ON {_SIGNAL.format('a')} AND {_KEY.format('c', 'a')} AND {_arm('c', '2')} "
        f"LEFT JOIN outcome d ON {_SIGNAL.format('b')} AND {_KEY.format('d', 'b')} AND {_arm('d', '1')} "
        f"WHERE {_arm('a', '2')} AND (b.decision IS NULL OR NOT ({held})) GROUP BY 1, 2, 3"
    )


def _drawdown(version: str, risk_fraction: float) -> str:
    marks = f"SELECT timestamp AS at, sum(r) AS r FROM equity_mark m WHERE {_arm('m', version)} GROUP BY timestamp"
    worth = (
        f"SELECT at, 1 + {risk_fraction} * sum(r) OVER (ORDER BY at ROWS UNBOUNDED PRECEDING) AS worth FROM ({marks}) m"
    )
    so_far = f"SELECT worth, max(worth) OVER (ORDER BY at ROWS UNBOUNDED PRECEDING) AS peak FROM ({worth}) w"
    peak = "CASE WHEN peak < 1 THEN 1 ELSE peak END"
    return f"SELECT max(({peak} - worth) / ({peak})) FROM ({so_far}) s"


def _arm(table: str, version: str) -> str:
    return _ARM.format(table, version)


def _said(decision: str | None) -> bool:
    return decision not in (None, "error")


def _performance(sums: list[Any]) -> dict[str, Any]:
    r, trades, pnl, wins, won = (sum(each or 0 for each in column) for column in zip(*sums, strict=True))
    return {
        "trades": trades,
        "win_rate": wins / trades,
        "average_pnl": pnl / trades,
        "expectancy": r / trades,
        "profit_factor": won / (won - r),
    }


def _interval(both: list[Any]) -> dict[str, Any]:
    days: dict[Any, list[float]] = {}
    for row in both:
        if row[4]:
            day = days.setdefault(row[0], [0, 0.0])
            day[0], day[1] = day[0] + row[4], day[1] + (row[5] or 0.0) - (row[10] or 0.0)
    n, count = sum(day[0] for day in days.values()), len(days)
    mean = sum(day[1] for day in days.values()) / n
    spread = sum((day[1] - mean * day[0]) ** 2 for day in days.values())
    reach = float(stdtrit(count - 1, 0.975)) * (count / (count - 1) * spread) ** 0.5 / n
    return {"mean": mean, "low": mean - reach, "high": mean + reach, "n": n, "days": count}
