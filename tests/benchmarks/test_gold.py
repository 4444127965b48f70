"""What the default plan does to `fib_rsi` on real candles, from a new start each month. See docs/explanation/gold.md.

ROLLOUT_BENCH_CANDLES names a file of hourly candles; without it they are the made-up market's.
"""

import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from strategy_core.domain.arrays import FloatArray
from strategy_core.domain.calibration import RampResult
from strategy_core.domain.pair_noise import deviation
from strategy_core.domain.plan import Plan
from strategy_core.market.files import read_candles
from strategy_core.market.synthetic import FIRST_CANDLE, SyntheticSource
from strategy_core.strategies.fib_rsi import FibRsiParams
from tests.benchmarks import signals
from tests.benchmarks.rolling import Arm, Pair, arm, exchanged, monthly_starts, pair, ramps

pytestmark = pytest.mark.benchmark_suite
DAYS = 365  # of each ramp: one symbol makes half a slot a day
DRAWS = 4  # of which days two arms are exchanged on
SYNTHETIC_DAYS = 900


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one version's ramps; `live` is every pair that it ran as, over the whole data."""

    active: str
    version: str
    shadow: str
    live: Sequence[Pair]
    results: Sequence[RampResult]


def test_what_the_default_plan_does_to_a_version_on_gold(capsys: pytest.CaptureFixture[str]) -> None:
    """The figures are for reading; what holds on any candles is asserted: a version is never worse than itself."""
    candles = _candles()
    starts = monthly_starts(candles, DAYS)

    rows = list(_rows(candles, starts))

    with capsys.disabled():
        sys.stdout.write(f"\n{len(candles)} candles, {len(starts)} starts, {DAYS} days each\n{_table(rows)}\n")
    itself = [row for row in rows if row.version == "itself"]
    assert len(starts) > 0
    assert [result.gate for row in itself for result in row.results] == [None] * len(itself) * len(starts)
    assert all(result.promoted_on is not None for row in itself for result in row.results)


def _candles() -> pd.DataFrame:
    path = os.environ.get("ROLLOUT_BENCH_CANDLES")
    if path:
        return read_candles(Path(path), timeframe="1h")
    source = SyntheticSource(("GOLD",), days=SYNTHETIC_DAYS)
    return source.candles("GOLD", closed_by=FIRST_CANDLE + timedelta(days=SYNTHETIC_DAYS))


def _rows(candles: pd.DataFrame, starts: FloatArray) -> Iterator[Row]:
    plan = Plan()
    as_it_is = arm(candles, signals.signals(candles, FibRsiParams()))
    lent = arm(candles, signals.with_hindsight(candles, as_it_is.side, as_it_is.r))
    for name, active in (("as it is", as_it_is), ("with hindsight", lent)):
        healthy = pair(candles, active, active)
        yield Row(name, "itself", "the same", [healthy], ramps(plan, healthy, healthy, starts, DAYS))
        if active is as_it_is:
            yield from _equals(plan, candles, active, starts)
        for fault in signals.FAULTS:
            faulty = pair(candles, arm(candles, fault(candles, active.side)), active)
            version = fault.__name__.replace("_", " ")
            yield Row(name, version, "healthy", [faulty], ramps(plan, healthy, faulty, starts, DAYS))
            yield Row(name, version, "the same", [faulty], ramps(plan, faulty, faulty, starts, DAYS))


def _equals(plan: Plan, candles: pd.DataFrame, active: Arm, starts: FloatArray) -> Iterator[Row]:
    """Yield twins of other settings: as they are, and with days exchanged, where neither can be the better one."""
    for period in (15, 10):
        twin = arm(candles, signals.signals(candles, FibRsiParams(rsi_period=period)))
        plain = pair(candles, twin, active)
        mixed = [
            pair(candles, *exchanged(twin, active, signals.exchanged_days(candles, draw))) for draw in range(DRAWS)
        ]
        results = [result for each in mixed for result in ramps(plan, each, each, starts, DAYS)]
        yield Row("as it is", f"rsi_period {period}", "the same", [plain], ramps(plan, plain, plain, starts, DAYS))
        yield Row("as it is", f"rsi_period {period}, days exchanged", "the same", mixed, results)


def _table(rows: Sequence[Row]) -> str:
    heads = (
        "`fib_rsi`",
        "version",
        "in shadow",
        "mean d",
        "mean w",
        "alike",
        "frozen",
        "slots until then, median / p95",
        "rolled back",
        "by",
        "slots until then, median / p95",
        "days until then, median / p95",
        "promoted",
    )
    lines = [heads, ("---",) * len(heads), *(_told(row) for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _told(row: Row) -> tuple[str, ...]:
    n = len(row.results)
    back = [result for result in row.results if result.rolled_back_after is not None]
    frozen = [result.frozen_after for result in row.results if result.frozen_after is not None]
    promoted = sum(result.promoted_on is not None for result in row.results)
    gates = Counter(result.gate or "" for result in back)
    return (
        row.active,
        row.version,
        row.shadow,
        _mean(row.live, "pnl_difference"),
        _mean(row.live, "win_difference"),
        f"{np.mean([np.mean(each.slots.canary_side == each.slots.active_side) for each in row.live]):.0%}",
        f"{len(frozen)} of {n}",
        _quantiles([float(after) for after in frozen]),
        f"{len(back)} of {n}",
        ", ".join(f"{gate} {count}" for gate, count in gates.most_common()) or "-",
        _quantiles([float(result.rolled_back_after or 0) for result in back]),
        _quantiles([result.days or 0.0 for result in back]),
        f"{promoted} of {n}",
    )


def _mean(live: Sequence[Pair], of: str) -> str:
    """Tell the mean over the whole data, with its day-clustered standard error."""
    means = [float(getattr(each.slots, of).mean()) for each in live]
    errors = [(deviation(getattr(each.slots, of), each.slots.day) or 0.0) / len(each.slots) ** 0.5 for each in live]
    return f"{np.mean(means):+.3f} ± {np.mean(errors):.3f}"


def _quantiles(found: Sequence[float]) -> str:
    """Tell the median and the 95 % quantile of those that came."""
    told = [float(np.quantile(found, share, method="higher")) for share in (0.5, 0.95)] if found else []
    return " / ".join(f"{value:.0f}" for value in told) or "-"
