"""Decisions one at a time, as scripts ask for them: the same rows that the scheduled shadow run writes."""

from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from sqlalchemy import Engine

from strategy_core.domain.errors import (
    FingerprintMismatch,
    InvalidCandles,
    InvalidEntryPoint,
    InvalidSetting,
    NaiveTime,
    NoActiveVersion,
    RetiredVersion,
    RolloutError,
    UnknownVersion,
)
from strategy_core.domain.lifecycle import Status
from strategy_core.isolation.pool import WorkerPool
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.registry import VersionRegistry
from strategy_core.services.shadow import run_shadow
from strategy_core.shadow_executor import ShadowExecutor
from strategy_core.store.engine import open_database
from strategy_core.store.tables import ShadowDecisionLog
from tests.builders import DAY, GOLD, HOUR, MONDAY, decision_row, outcome_row, put_decisions, put_outcomes, put_version
from tests.conftest import SQLITE_FIRST
from tests.engines import Broken, Follower

LATER = MONDAY + 10 * HOUR
AT = MONDAY + 8 * HOUR


@pytest.fixture(scope="module")
def market() -> SyntheticSource:
    return SyntheticSource((GOLD,), start=MONDAY - 60 * DAY, days=90)


@pytest.fixture(scope="module")
def candles(market: SyntheticSource) -> pd.DataFrame:
    """Candles up to a day after LATER: more than may be known then."""
    return market.candles(GOLD, closed_by=LATER + DAY)


@pytest.fixture(params=SQLITE_FIRST)
def database_url(request: pytest.FixtureRequest) -> str:
    """Use SQLite by default and PostgreSQL with `-m full`: what differs between them is tested with the services."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
def executor(engine: Engine) -> ShadowExecutor:
    """At LATER, beside an active version 1 and a version 2 in shadow."""
    put_version(engine, "1", Status.ACTIVE, warmup_bars=3)
    put_version(engine, "2", warmup_bars=3)
    return ShadowExecutor(engine, deadline_s=0.5, clock=lambda: LATER)


def execute(
    executor: ShadowExecutor, candles: pd.DataFrame, engine: object = None, *, version: str = "2", at: datetime = AT
) -> ShadowDecisionLog:
    return executor.execute_shadow(version, "fib_rsi", engine or Follower(), candles, GOLD, at)


def comparable(row: ShadowDecisionLog) -> dict[str, Any]:
    return row.model_dump(exclude={"duration_ms", "logged_at"})


def test_a_ready_engine_decides_on_the_candle_and_the_row_is_logged(
    executor: ShadowExecutor, candles: pd.DataFrame
) -> None:
    row = execute(executor, candles)

    close, opened = candles["close"].loc[AT], candles["open"].loc[AT - 2 * HOUR]
    assert (row.timestamp, row.decision) == (AT, "buy" if close > opened else "sell")
    assert (row.role, row.confidence, row.error_kind) == ("shadow", 0.7, "")
    assert row.features == {"candles": 3, "symbol": GOLD}
    assert executor.get_shadow_decisions("fib_rsi", "2") == [row]


def test_asked_again_it_returns_the_row_that_stands(executor: ShadowExecutor, candles: pd.DataFrame) -> None:
    first = execute(executor, candles)
    again = execute(executor, candles, Broken("raise"))

    assert again == first
    assert len(executor.get_shadow_decisions("fib_rsi", "2")) == 1


def test_what_comes_after_the_candle_changes_nothing(executor: ShadowExecutor, candles: pd.DataFrame) -> None:
    changed = candles.copy()
    changed.loc[changed.index > AT] *= 1.5

    one = execute(executor, candles, version="1")
    other = execute(executor, changed)

    assert (one.decision, one.features, one.window_hash) == (other.decision, other.features, other.window_hash)


def test_it_writes_the_row_that_the_shadow_run_writes(
    tmp_path: Path, market: SyntheticSource, candles: pd.DataFrame
) -> None:
    engines = [open_database(f"sqlite:///{tmp_path / name}.db") for name in ("run", "single")]
    for engine in engines:
        VersionRegistry(engine, source=market, clock=lambda: MONDAY).register_version("fib_rsi", "1", {})
    with WorkerPool() as workers:
        for hour in (0, 1, 2):  # a candle a run from AT on: several at once go to decide_many, to the last digit
            run_shadow(engines[0], market, workers, now=AT + hour * HOUR)
    executor = ShadowExecutor(engines[1], clock=lambda: LATER)

    singly = [execute(executor, candles, "fib_rsi", version="1", at=at) for at in (AT, AT + HOUR)]

    at_once = ShadowExecutor(engines[0]).get_shadow_decisions("fib_rsi", "1", GOLD, start=AT)
    assert [comparable(row) for row in singly] == [comparable(row) for row in at_once]
    for engine in engines:
        engine.dispose()


@pytest.mark.parametrize(
    ("trick", "kind", "error"),
    [
        ("raise", "raised", "ValueError: no model"),
        ("sleep", "deadline", "no answer within 0.5 s"),
        ("write", "breach", "open for writing: "),
        ("nonsense", "invalid", "confidence nan is not within 0..1"),
    ],
)
def test_a_broken_engine_gets_an_error_row(
    executor: ShadowExecutor, candles: pd.DataFrame, tmp_path: Path, trick: str, kind: str, error: str
) -> None:
    row = execute(executor, candles, Broken(trick, str(tmp_path / "written.txt")))

    assert (row.decision, row.error_kind, row.confidence) == ("error", kind, 0.0)
    assert error in str(row.error)
    assert not (tmp_path / "written.txt").exists()


def test_too_little_history_is_a_hold(executor: ShadowExecutor, candles: pd.DataFrame) -> None:
    row = execute(executor, candles.loc[AT - HOUR :])

    assert (row.decision, row.reason) == ("hold", "insufficient_history")


@pytest.mark.parametrize(
    ("changes", "refusal", "facts"),
    [
        ({"at": LATER}, InvalidCandles, "no 1h candle opened at 2026-03-02 10:00"),  # it closes an hour later
        ({"at": AT + HOUR / 2}, InvalidCandles, "no 1h candle opened at 2026-03-02 08:30"),
        ({"at": AT.replace(tzinfo=None)}, NaiveTime, "timestamp has no time zone"),
        ({"version": "9"}, UnknownVersion, "known versions: 0, 1, 2"),
        ({"version": "0"}, RetiredVersion, "'0' is retired and makes no decisions"),
        ({"engine": "ppo_gold"}, InvalidEntryPoint, "'2' was registered with 'fib_rsi'"),
        ({"engine": "fib_rsi"}, FingerprintMismatch, "is not the build that was registered"),
        ({"engine": lambda: None}, InvalidEntryPoint, "cannot be sent to a worker"),
        ({"candles": pd.DataFrame()}, InvalidCandles, "candles of GOLD: has no column timestamp"),
    ],
)
def test_what_cannot_be_asked_is_refused_and_leaves_no_row(
    executor: ShadowExecutor,
    candles: pd.DataFrame,
    changes: dict[str, Any],
    refusal: type[RolloutError],
    facts: str,
) -> None:
    put_version(executor.engine, "0", Status.RETIRED)

    with pytest.raises(refusal) as refused:
        execute(executor, **{"candles": candles, **changes})

    assert facts in str(refused.value)
    assert executor.get_shadow_decisions("fib_rsi", "2") == []


def test_decisions_are_read_by_symbol_period_and_number(executor: ShadowExecutor) -> None:
    hours = [MONDAY + hour * HOUR for hour in range(6)]
    put_decisions(executor.engine, *(decision_row("2", at, symbol=s) for at in hours for s in (GOLD, "SILVER")))

    def read(**chosen: Any) -> list[tuple[str, int]]:
        return [(row.symbol, row.timestamp.hour) for row in executor.get_shadow_decisions("fib_rsi", "2", **chosen)]

    assert read(symbol=GOLD, limit=2) == [(GOLD, 4), (GOLD, 5)]
    assert read(symbol=GOLD, start=hours[1], end=hours[3]) == [(GOLD, 1), (GOLD, 2)]
    assert len(read()) == 12
    with pytest.raises(UnknownVersion):
        executor.get_shadow_decisions("fib_rsi", "9")


def test_a_comparison_has_the_keys_that_scripts_know(executor: ShadowExecutor) -> None:
    for day in (1, 2, 3):
        at = MONDAY - day * DAY + 9 * HOUR
        put_decisions(executor.engine, decision_row("1", at, "sell"), decision_row("2", at, "buy"))
        put_decisions(executor.engine, decision_row("1", at + HOUR), decision_row("2", at + HOUR))
        put_outcomes(executor.engine, outcome_row("1", at, -1.0), outcome_row("2", at, 1.0))

    month = executor.compare_shadow_vs_active("2", "fib_rsi")
    days = executor.compare_shadow_vs_active("2", "fib_rsi", GOLD, days=3)
    chosen = executor.compare_shadow_vs_active("2", "fib_rsi", start=MONDAY - 3 * DAY, end=MONDAY - 2 * DAY)

    assert (month["shadow_signal_count"], month["active_signal_count"]) == (3, 3)
    assert (month["divergence_rate"], month["divergence_rate_all_candles"]) == (100.0, 50.0)
    assert month["shadow"]["win_rate"] == 1.0
    assert (days["shadow_signal_count"], chosen["shadow_signal_count"]) == (2, 1)
    with pytest.raises(InvalidSetting):
        executor.compare_shadow_vs_active("2", "fib_rsi", days=2, start=MONDAY)
    with pytest.raises(InvalidSetting):
        executor.compare_shadow_vs_active("2", "fib_rsi", end=MONDAY)


def test_a_comparison_needs_an_active_version(engine: Engine) -> None:
    put_version(engine, "2")

    with pytest.raises(NoActiveVersion):
        ShadowExecutor(engine).compare_shadow_vs_active("2", "fib_rsi")


def test_isolation_is_proved_and_a_versions_own_breaches_are_told(
    tmp_path: Path, market: SyntheticSource, candles: pd.DataFrame
) -> None:
    engine = open_database(f"sqlite:///{tmp_path / 'rollout.db'}")
    VersionRegistry(engine, source=market, clock=lambda: MONDAY).register_version("fib_rsi", "1", {})
    executor = ShadowExecutor(engine, clock=lambda: LATER)
    clean = executor.validate_shadow_isolation("fib_rsi", "1")
    execute(executor, candles, Broken("write", str(tmp_path / "written.txt")), version="1")

    found = executor.validate_shadow_isolation("fib_rsi", "1")

    assert clean["isolated"]
    assert clean["breaches"] == []
    assert {"write a file", "open a socket", "run a program", "find a secret"} <= {t["what"] for t in found["tried"]}
    assert all(attempt["refused"] for attempt in found["tried"])
    (breach,) = found["breaches"]
    assert (breach["symbol"], breach["timestamp"]) == (GOLD, "2026-03-02T08:00:00+00:00")
    assert breach["tried"].startswith("open for writing: ")
    with pytest.raises(UnknownVersion):
        executor.validate_shadow_isolation("fib_rsi", "9")
    engine.dispose()


def test_a_version_that_breaks_out_while_loading_is_told_too(engine: Engine) -> None:
    put_version(engine, "1", entry_point="tests.isolation.strategies_under_test:BreachOnLoad", config={})

    found = ShadowExecutor(engine).validate_shadow_isolation("fib_rsi", "1")

    assert found["isolated"]
    assert found["breaches"] == [{"symbol": None, "timestamp": None, "tried": found["breaches"][0]["tried"]}]
    assert found["breaches"][0]["tried"].startswith("process: ")
