"""A candle run on a cluster of two workers, with Prefect between: it leaves the log that one process leaves."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import LocalCluster
from prefect.testing.utilities import prefect_test_harness
from sqlalchemy import Engine

from flows.register import register_version
from flows.runtime import opened
from flows.shadow import shadow_run
from flows.shares import run_alone
from strategy_core.domain.lifecycle import Status
from strategy_core.store import decisions
from strategy_core.store.engine import reading
from tests.builders import HOUR, MONDAY, put_version
from tests.flows.conftest import Clock

SYMBOLS = ["GOLD", "SILVER", "BRENT", "COPPER", "ZINC"]
HOURS = 30


def register(at: Clock) -> None:
    """Put two versions on five symbols, and a third whose build is not what was registered, thirty hours ago."""
    at(MONDAY)
    for version, period in (("1", 14), ("2", 10)):
        status = Status.ACTIVE if version == "1" else Status.SHADOW
        config = {"rsi_period": period}
        state = register_version.fn("fib_rsi", version, owner="ana", symbols=SYMBOLS, config=config, status=status)
        assert state.is_completed(), state.message
    with opened() as runtime:
        put_version(runtime.engine, "3", at=MONDAY, symbols=SYMBOLS)
    at(MONDAY + HOURS * HOUR)


@pytest.fixture
def registered(engine: Engine, at: Clock, monkeypatch: pytest.MonkeyPatch) -> Engine:
    monkeypatch.setenv("ROLLOUT_FEED", "synthetic:?symbols=12&start=2026-01-01&days=300")
    register(at)
    return engine


@pytest.fixture
def cluster(registered: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalCluster]:
    """Two worker processes that find their settings in their environment, as those of other machines do."""
    with (
        prefect_test_harness(server_startup_timeout=120),
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1") as cluster,  # type: ignore[no-untyped-call]
    ):
        monkeypatch.setenv("ROLLOUT_SHADOW_DASK", cluster.scheduler_address)
        yield cluster


def logged(engine: Engine) -> list[dict[str, Any]]:
    """Return the log but for how long each decision took."""
    with reading(engine) as session:
        rows = [row for version in ("1", "2", "3") for row in decisions.find_decisions(session, "fib_rsi", version)]
    return [row.model_dump(exclude={"duration_ms"}) for row in rows]


@pytest.mark.machine_suite
def test_a_cluster_of_two_leaves_the_log_that_one_process_leaves(
    registered: Engine,
    cluster: LocalCluster,
    at: Clock,
    sqlite_template: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state = shadow_run(return_state=True)
    again = shadow_run(return_state=True)

    assert state.is_failed()
    assert again.is_failed()
    assert "fib_rsi 1 (active): 145 decisions" in (state.message or "")
    assert (state.message or "").count("is not the build that was registered") == 1
    assert "fib_rsi 1 (active): 0 decisions" in (again.message or "")
    shutil.copy(sqlite_template, tmp_path / "plain.db")
    monkeypatch.setenv("ROLLOUT_DATABASE_URL", f"sqlite:///{tmp_path / 'plain.db'}")
    register(at)
    with opened() as runtime:
        run_alone(runtime, catch_up=1_000)
        assert logged(runtime.engine) == logged(registered)
