"""How long a comparison takes from the database; run by the command in CONTRIBUTING."""

from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from strategy_core.domain.lifecycle import Status
from strategy_core.services.compare import compare_versions, period
from strategy_core.store.engine import open_database
from tests.builders import HOUR, MONDAY, decision_row, outcome_row, put_decisions, put_outcomes, put_version

pytestmark = pytest.mark.benchmark_suite
CANDLES = 40_000  # about seven years of hours


def test_seven_years_of_hourly_decisions(sqlite_url: str, tmp_path: Path, benchmark: BenchmarkFixture) -> None:
    engine = open_database(sqlite_url)
    rng = np.random.default_rng(7)
    for version, status in (("1", Status.ACTIVE), ("2", Status.SHADOW)):
        put_version(engine, version, status)
        signals = rng.random(CANDLES) < 0.04
        moments = [MONDAY + i * HOUR for i in range(CANDLES)]
        said = ["buy" if signal else "hold" for signal in signals]
        put_decisions(engine, *(decision_row(version, at, action) for at, action in zip(moments, said, strict=True)))
        traded = [at for at, signal in zip(moments, signals, strict=True) if signal]
        put_outcomes(engine, *(outcome_row(version, at, float(rng.normal(0.1, 1.0))) for at in traded))

    found = benchmark.pedantic(  # type: ignore[no-untyped-call]
        compare_versions,
        args=(engine,),
        kwargs={
            "strategy_name": "fib_rsi",
            "shadow_version": "2",
            "over": period(MONDAY, MONDAY + timedelta(hours=CANDLES)),
        },
        rounds=3,
    )

    assert found.candles_compared == CANDLES
    engine.dispose()
