"""What becomes of strategies as owners write them: each runs as it was vetted, or is refused with its cause."""

import re
from datetime import timedelta
from typing import Any

import pandas as pd
import pytest
from sqlalchemy import Engine
from sqlmodel import select

from strategy_core.domain.audit import Command
from strategy_core.domain.errors import GateRefused, InvalidConfig, RolloutError
from strategy_core.isolation.client import DecisionRequest, IsolatedStrategy
from strategy_core.isolation.pool import WorkerPool
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services.shadow import run_shadow
from strategy_core.services.versions import register_version
from strategy_core.store.engine import reading
from strategy_core.store.tables import ShadowDecisionLog, StrategyVersion
from tests.builders import GOLD, HOUR, MONDAY, OWNER

CODE = "tests.services.written_by_owners"
REMEMBERS = r"it remembers something between candles: \d+ of \d+ decisions differ, the first on GOLD 2026-"


def register(engine: Engine, market: SyntheticSource, name: str, config: dict[str, Any]) -> StrategyVersion:
    return register_version(
        engine,
        Command(OWNER, MONDAY),
        market,
        strategy_name="owners",
        version="1",
        config=config,
        entry_point=f"{CODE}:{name}",
        symbols=[GOLD],
        timeframe="1h",
    )


@pytest.mark.parametrize(
    ("name", "error", "cause"),
    [
        ("OnceOnSelf", GateRefused, REMEMBERS),
        ("OnceOnTheClass", GateRefused, REMEMBERS),
        ("OnceInTheModule", GateRefused, REMEMBERS),
        (
            "CrossFromTheCandleBefore",
            GateRefused,
            rf"memory: {REMEMBERS}.* \(asked after GOLD 2026-.*, then after GOLD 2026-.*\)",
        ),
        ("QuietTimes", GateRefused, "clock: it reads the clock: "),
        ("MeanOfTheFrame", GateRefused, "window: it depends on .*, as a mean over the whole frame does"),
        ("WrongColumn", GateRefused, r"KeyError: .*yesterday.* \(written_by_owners.py, line "),
        (
            "RsiEngine",
            InvalidConfig,
            r"params: .* required .*; an argument that is an object .*: register it as module:make",
        ),
        ("SecretConfig", InvalidConfig, "key: a version's config is stored and shown; it is no place for a secret"),
    ],
)
def test_what_would_not_run_as_vetted_is_refused_with_its_cause(
    engine: Engine, market: SyntheticSource, name: str, error: type[RolloutError], cause: str
) -> None:
    with pytest.raises(error) as refused:
        register(engine, market, name, {})

    assert re.search(cause, str(refused.value)), str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "config", "seen"),
    [
        ("PercentConfig", {"stop_percent": 3}, 0.03),
        ("PercentConfig", {}, 2.0),  # no validator runs on a default
        ("AliasConfig", {"rsiPeriod": 21}, 21),
    ],
)
def test_a_version_runs_with_the_params_that_were_vetted(
    engine: Engine, market: SyntheticSource, name: str, config: dict[str, Any], seen: float
) -> None:
    register(engine, market, name, config)

    with WorkerPool() as workers:
        (run,) = run_shadow(engine, market, workers, now=MONDAY + 2 * HOUR)

    with reading(engine) as session:
        logged = session.exec(select(ShadowDecisionLog)).all()
    assert (run.error, run.errors, run.logged) == ("", 0, len(logged))
    assert {row.features["seen"] for row in logged} == {seen}


def test_an_engine_of_two_objects_runs_by_a_function_that_makes_it(engine: Engine, market: SyntheticSource) -> None:
    version = register(engine, market, "make", {"rsi_period": 10})

    with WorkerPool() as workers:
        (run,) = run_shadow(engine, market, workers, now=MONDAY + 40 * HOUR)

    with reading(engine) as session:
        signals = [row for row in session.exec(select(ShadowDecisionLog)) if row.decision != "hold"]
    assert version.config == {"rsi_period": 10}
    assert version.registration_report["signals"] > 0
    assert (run.errors, run.signals) == (0, len(signals))
    assert {row.confidence for row in signals} <= {0.7}


def test_every_clock_that_python_code_reads_is_moved(market: SyntheticSource) -> None:
    candles = market.candles(GOLD, closed_by=MONDAY, bars=150)
    request = DecisionRequest(GOLD, "1h", candles, [149], 150)
    moved_by = timedelta(days=400, hours=13)

    with IsolatedStrategy(f"{CODE}:Clocks", {}) as version, version.under_clock(moved_by) as moved:
        ((before,),), ((after,),) = version.decide([request]), moved.decide([request])

    assert before.decision is not None
    assert after.decision is not None
    seen = pd.Series(dict(after.decision.features)) - pd.Series(dict(before.decision.features))
    off = (seen - moved_by.total_seconds()).drop("date.today")
    assert len(off) == 11
    assert off.between(0, 60).all(), off.to_dict()
    assert seen["date.today"] // timedelta(days=1).total_seconds() in (400, 401)
