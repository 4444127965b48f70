"""One comparison in a process of its own, then its curves: `comparing.py URL START END [regimes]`.

Prints the seconds of both, and megabytes.
"""

import json
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from strategy_core.market.source import window
from strategy_core.services import compare
from strategy_core.services.history import comparison_curves
from strategy_core.store.engine import open_database, reading
from strategy_core.store.tables import ComparisonReport
from tests.builders import MONDAY

_BEFORE = timedelta(days=1)


class Minutes:
    """A made-up walk of each symbol, made anew for each question: a source that holds nothing."""

    name, timeframe = "made up", "1m"

    def __init__(self, end: datetime) -> None:
        self._end = end
        self.seconds = 0.0

    def symbols(self) -> tuple[str, ...]:
        return ()

    def candles(
        self, symbol: str, *, closed_by: datetime, since: datetime | None = None, bars: int | None = None
    ) -> pd.DataFrame:
        began = time.perf_counter()
        opens = pd.date_range(MONDAY - _BEFORE, self._end, freq="1min", inclusive="left")
        walk = np.random.default_rng(len(symbol) + int(symbol[3:])).normal(0, 1, (3, len(opens)))
        close = 2_000 + walk[0].cumsum()
        opened = close - walk[0]
        high, low = np.maximum(opened, close) + abs(walk[1]), np.minimum(opened, close) - abs(walk[2])
        prices = {"open": opened, "high": high, "low": low, "close": close, "volume": abs(walk[1])}
        found = window(pd.DataFrame(prices, opens), "1m", closed_by=closed_by, since=since, bars=bars)
        self.seconds += time.perf_counter() - began
        return found

    def expected_at(self, symbol: str, now: datetime) -> datetime | None:
        return None


def megabytes(name: str) -> float:
    """Return VmRSS or VmHWM; getrusage() would tell the peak of the process that started this one too."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[name].split()[0]) / 1024


if __name__ == "__main__":
    url, start, end = sys.argv[1], *map(datetime.fromisoformat, sys.argv[2:4])
    engine = open_database(url)
    source = Minutes(end) if "regimes" in sys.argv else None
    asked: dict[str, Any] = {"strategy_name": "fib_rsi", "shadow_version": "2"}
    compare.compare_versions(engine, **asked, over=compare.period(start, start + timedelta(minutes=1)))
    before, began = megabytes("VmRSS"), time.perf_counter()
    found = compare.compare_versions(engine, **asked, over=compare.period(start, end), source=source)
    seconds, compared = time.perf_counter() - began, megabytes("VmHWM")
    report = ComparisonReport(
        strategy_name="fib_rsi",
        shadow_version="2",
        active_version="1",
        period_start=start,
        period_end=end,
        report=found.model_dump(mode="json"),
        created_at=end,
    )
    began = time.perf_counter()
    with reading(engine) as session:
        comparison_curves(session, report)
    told = {
        "seconds": seconds,
        "labelling": source.seconds if source else 0.0,
        "before_mb": before,
        "peak_mb": compared,
        "curves": time.perf_counter() - began,
        "with_curves_mb": megabytes("VmHWM"),
    }
    print(json.dumps(told))  # noqa: T201
