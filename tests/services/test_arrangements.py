"""However a candle run is arranged, the log is the same, and no arrangement harms a version that is sound."""

import json
import shutil
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from sqlalchemy import Engine

from strategy_core.domain.lifecycle import Status
from strategy_core.isolation import pool
from strategy_core.isolation.client import IsolatedStrategy
from strategy_core.isolation.fingerprint import Fingerprint
from strategy_core.isolation.pool import WorkerPool, build_of
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services.shadow import log_candle, run_shadow
from strategy_core.store import decisions, evidence
from strategy_core.store.engine import open_database, reading
from strategy_core.store.tables import StrategyVersion
from tests.builders import DAY, HOUR, MONDAY, put_version
from tests.observe.scraping import scrape

CODE = "tests.services.versions_under_test"
SYMBOLS = ("BRENT", "COPPER", "GOLD", "SILVER", "ZINC")
NOW = MONDAY + 30 * HOUR


@pytest.fixture(scope="module")
def many() -> SyntheticSource:
    return SyntheticSource(SYMBOLS, start=MONDAY.replace(month=1, day=1), days=300)


@cache
def installed(entry_point: str, config: str, symbols: Sequence[str]) -> tuple[Fingerprint, int]:
    with IsolatedStrategy(entry_point, json.loads(config)) as strategy:
        described = strategy.describe()
    return build_of(entry_point, described, symbols, "1h"), described.warmup_bars


def put(
    engine: Engine,
    version: str,
    config: dict[str, Any],
    *,
    code: str = "Clockwork",
    status: Status = Status.SHADOW,
    symbols: Sequence[str] = SYMBOLS,
    **facts: Any,
) -> StrategyVersion:
    """Put a version whose build is the one that is installed, without the registration's long trial."""
    entry_point = f"{CODE}:{code}"
    build, warmup_bars = installed(entry_point, json.dumps(config), tuple(symbols))
    facts |= {"fingerprint": build.digest, "fingerprint_parts": build.parts, "warmup_bars": warmup_bars}
    return put_version(
        engine, version, status, at=MONDAY, entry_point=entry_point, config=config, symbols=symbols, **facts
    )


def put_three(engine: Engine) -> None:
    put(engine, "1", {"hours": 6}, status=Status.ACTIVE)
    put(engine, "2", {"hours": 4, "buy": False})
    put(engine, "3", {"hours": 5}, symbols=SYMBOLS[1:4])


def log(engine: Engine, *versions: str) -> list[dict[str, Any]]:
    """Return the rows but for how long a decision took, and when it was logged."""
    with reading(engine) as session:
        rows = [row for version in versions for row in decisions.find_decisions(session, "fib_rsi", version)]
    return [row.model_dump(exclude={"duration_ms", "logged_at"}) for row in rows]


def one_worker(engine: Engine, source: SyntheticSource) -> None:
    with WorkerPool(at_once=1) as workers:
        run_shadow(engine, source, workers, now=NOW)


def three_workers(engine: Engine, source: SyntheticSource) -> None:
    with WorkerPool(at_once=3) as workers:
        run_shadow(engine, source, workers, now=NOW)


def shares_one_after_another(engine: Engine, source: SyntheticSource) -> None:
    for share in (SYMBOLS[1::2], SYMBOLS[::2]):
        with WorkerPool(at_once=1) as workers:
            run_shadow(engine, source, workers, now=NOW, symbols=share)


def hour_by_hour_then_late(engine: Engine, source: SyntheticSource) -> None:
    with WorkerPool(at_once=2) as workers:
        for hour in (1, 2, 3):
            run_shadow(engine, source, workers, now=MONDAY + hour * HOUR)
        while sum(run.logged for run in run_shadow(engine, source, workers, now=NOW, catch_up=10)):
            pass


@pytest.mark.parametrize("arranged", [three_workers, shares_one_after_another, hour_by_hour_then_late])
def test_the_log_is_the_same_however_a_run_is_arranged(
    engine: Engine,
    many: SyntheticSource,
    sqlite_template: Path,
    tmp_path: Path,
    arranged: Callable[[Engine, SyntheticSource], None],
) -> None:
    """On another database, too: the log of one worker on SQLite is what all others are held against."""
    plain = open_database(f"sqlite:///{shutil.copy(sqlite_template, tmp_path / 'plain.db')}")
    for each in (plain, engine):
        put_three(each)

    one_worker(plain, many)
    arranged(engine, many)

    rows = log(engine, "1", "2", "3")
    assert len(rows) == 29 * (5 + 5 + 3)  # of 30 hours, one is the market's daily break
    assert rows == log(plain, "1", "2", "3")
    plain.dispose()


def test_a_version_brought_back_when_its_rows_are_gone_decides_from_its_retirement_on(
    engine: Engine, many: SyntheticSource
) -> None:
    """Its earlier decisions were dropped with their months: decided again, they would be counted twice."""
    put(engine, "1", {"hours": 6}, retired_at=MONDAY + 25 * HOUR)

    with WorkerPool() as workers:
        (run,) = run_shadow(engine, many, workers, now=NOW)

    assert run.logged == 5 * len(SYMBOLS)


def test_a_tick_between_two_shares_finds_nobody_silent(engine: Engine, many: SyntheticSource) -> None:
    """All versions of a symbol are in one share: where one arm has spoken, so has the other."""
    put(engine, "1", {"hours": 6}, status=Status.ACTIVE)
    put(engine, "2", {"hours": 4})
    with WorkerPool() as workers:
        for share in (SYMBOLS[:2], SYMBOLS[2:]):
            run_shadow(engine, many, workers, now=NOW, symbols=share)

            with reading(engine) as session:
                spoken = evidence.newest_spoken(session, "fib_rsi", ("1", "2"), MONDAY)
                asked: dict[str, Any] = {"symbols": SYMBOLS, "since": MONDAY, "spoken": spoken}
                canary = evidence.read_record(session, "fib_rsi", "2", "1", **asked)
                active = evidence.read_record(session, "fib_rsi", "1", "2", **asked)
            assert (canary.silent_candles, active.silent_candles) == (0, 0)
            assert canary.decided == active.decided > 0


def test_a_late_run_catches_up_in_order_and_the_lag_says_how_far_it_is(engine: Engine, many: SyntheticSource) -> None:
    put(engine, "1", {"hours": 6}, symbols=("GOLD", "ZINC"))
    opened = {symbol: many.candles(symbol, closed_by=NOW, since=MONDAY).index for symbol in ("GOLD", "ZINC")}
    lags = []
    with WorkerPool() as workers:
        for decided in (10, 20, 29):
            for share in (["GOLD"], ["ZINC"]):
                run_shadow(engine, many, workers, now=NOW, catch_up=10, symbols=share)
                lags.append(scrape(engine, now=NOW)["shadow_lag_seconds strategy=fib_rsi version=1"] / 3600)

            with reading(engine) as session:
                for symbol, candles in opened.items():
                    rows = decisions.find_decisions(session, "fib_rsi", "1", symbol)
                    assert [pd.Timestamp(row.timestamp) for row in rows] == list(candles[:decided])

    assert lags == [30, 20, 20, 10, 10, 0]  # of the symbol that lags most


def test_a_candle_that_comes_late_into_a_long_log_is_caught_up(engine: Engine, many: SyntheticSource) -> None:
    """Though as many rows as are looked at stand there: what counts is that the source has a candle more."""
    version = put(engine, "1", {"hours": 6}, symbols=("GOLD",))
    late = pd.Timestamp(MONDAY + 27 * HOUR)
    with WorkerPool() as workers:
        run_shadow(engine, Without(late), workers, now=NOW)
        (run,) = run_shadow(engine, many, workers, now=NOW)

        candles = many.candles("GOLD", closed_by=NOW + 3 * HOUR)
        ahead = NOW + 2 * HOUR  # of the run
        worker = workers.dedicated(version, lambda _: None)
        log_candle(engine, worker, version, candles, symbol="GOLD", timestamp=ahead, now=NOW + 3 * HOUR)
        (behind,) = run_shadow(engine, many, workers, now=NOW + 3 * HOUR)

    assert (run.logged, behind.logged) == (1, 2)
    assert [row["timestamp"] for row in log(engine, "1")] == [
        at.to_pydatetime() for at in many.candles("GOLD", closed_by=NOW + 3 * HOUR, since=MONDAY).index
    ]


class Without(SyntheticSource):
    """The same market with a candle that its vendor has not delivered yet."""

    def __init__(self, late: pd.Timestamp) -> None:
        super().__init__(SYMBOLS, start=MONDAY.replace(month=1, day=1), days=300)
        self._late = late

    def candles(self, symbol: str, **period: Any) -> pd.DataFrame:
        candles = super().candles(symbol, **period)
        return candles[candles.index != self._late]


def test_after_weeks_of_silence_a_version_goes_on_where_it_stopped(engine: Engine, many: SyntheticSource) -> None:
    put(engine, "1", {"hours": 6}, symbols=("GOLD",))
    with WorkerPool() as workers:
        run_shadow(engine, many, workers, now=NOW)
        run_shadow(engine, many, workers, now=MONDAY + 30 * DAY)

    assert [row["timestamp"] for row in log(engine, "1")] == [
        at.to_pydatetime() for at in many.candles("GOLD", closed_by=MONDAY + 30 * DAY, since=MONDAY).index
    ]


def test_a_version_that_hangs_costs_a_run_no_more_workers_however_many_serve_it(
    engine: Engine, many: SyntheticSource
) -> None:
    put(engine, "1", {"hours": 6}, status=Status.ACTIVE)
    put(engine, "2", {"how": "sleep", "after": MONDAY.isoformat()}, code="Failing")
    with WorkerPool(deadline_s=1.0, at_once=3) as workers:
        sound, hanging = run_shadow(engine, many, workers, now=MONDAY + 10 * HOUR)

    assert (sound.logged, sound.errors) == (50, 0)
    assert hanging.errors == hanging.logged == 50
    errors = [str(row["error"]) for row in log(engine, "2")]
    assert sum("no answer within" in error and "not asked" not in error for error in errors) <= 3 + 2  # two at work
    assert sum(error.startswith("not asked: ") for error in errors) >= 45


def test_a_pool_keeps_few_workers_however_many_versions_there_are(
    engine: Engine, many: SyntheticSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes memory of its own."""
    monkeypatch.setattr(pool, "IDLE", 1)
    put_three(engine)
    with WorkerPool(at_once=1) as workers:
        run_shadow(engine, many, workers, now=NOW)
        run_shadow(engine, many, workers, now=NOW + HOUR)

        assert len(workers._idle) == 1
    assert len(log(engine, "1", "2", "3")) == 30 * 13
