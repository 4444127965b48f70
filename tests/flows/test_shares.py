"""A candle run on a Dask cluster of two workers gives the same log as one process."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine

from flows import shadow
from flows.register import register_version
from flows.runtime import open_runtime
from flows.shadow import ShardResult, merge_shards, run_local, shadow_run
from strategy_core.domain.errors import InvalidSetting
from strategy_core.domain.lifecycle import Status
from strategy_core.services.shadow import ShadowRun
from strategy_core.settings import read_settings
from strategy_core.store import decisions
from strategy_core.store.engine import reading
from tests.builders import HOUR, MONDAY, put_version
from tests.flows.conftest import Clock

if TYPE_CHECKING:
    from distributed import LocalCluster

pytestmark = pytest.mark.xdist_group("prefect")  # imports of seconds, which wait until a test needs them
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
    with open_runtime() as runtime:
        put_version(runtime.engine, "3", at=MONDAY, symbols=SYMBOLS)
    at(MONDAY + HOURS * HOUR)


@pytest.fixture
def registered(engine: Engine, at: Clock, monkeypatch: pytest.MonkeyPatch) -> Engine:
    monkeypatch.setenv("ROLLOUT_FEED", "synthetic:?symbols=12&start=2026-01-01&days=300")
    register(at)
    return engine


@pytest.fixture
def cluster(registered: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator["LocalCluster"]:
    """Two worker processes with settings from their environment, like workers on other machines."""
    from distributed import LocalCluster
    from prefect.testing.utilities import prefect_test_harness

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


@pytest.fixture
def misled(cluster: "LocalCluster") -> Iterator[None]:
    """A third worker without candles, which Dask uses like the others."""
    from distributed import Client

    command = [sys.executable, "-m", "distributed.cli.dask_worker", cluster.scheduler_address]
    worker = subprocess.Popen(
        [*command, "--nthreads", "1", "--no-dashboard", "--no-nanny"], env={**os.environ, "ROLLOUT_FEED": "/nowhere"}
    )
    with Client(cluster.scheduler_address) as client:  # type: ignore[no-untyped-call]
        client.wait_for_workers(3, timeout=60)
    yield
    worker.kill()
    worker.wait()


@pytest.mark.full
@pytest.mark.usefixtures("misled")
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_share_that_fails_is_told_at_the_end_and_keeps_no_other_from_the_log(registered: Engine) -> None:
    state = shadow_run(return_state=True)

    assert state.is_failed()
    assert (state.message or "").endswith("; /nowhere: no such file or folder")
    decided = {row["symbol"] for row in logged(registered)}
    assert decided < set(SYMBOLS)
    assert len(decided) >= 3  # each of the two others had its share, of two symbols or one


@pytest.mark.full
def test_a_cluster_of_two_leaves_the_log_that_one_process_leaves(
    registered: Engine,
    cluster: "LocalCluster",
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
    with open_runtime() as runtime:
        run_local(runtime, catch_up=1_000)
        assert logged(runtime.engine) == logged(registered)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_cluster_that_is_away_is_told_and_the_run_goes_on_here(
    engine: Engine, at: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_version(engine, "1", at=MONDAY)  # its fingerprint is no build's
    at(MONDAY + HOUR)
    monkeypatch.setattr(shadow, "CONNECT_TIMEOUT_S", 0.2)
    monkeypatch.setenv("ROLLOUT_SHADOW_DASK", "tcp://127.0.0.1:1")

    told = shadow_run.fn().message or ""

    assert "fib_rsi 1 (shadow): 0 decisions, 0 signals, 0 errors, failed: 'fib_rsi' '1' is not the build" in told
    assert "; the Dask cluster at tcp://127.0.0.1:1 cannot be reached, ran on this machine instead: " in told


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_without_the_extra_it_says_which(engine: Engine, at: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROLLOUT_SHADOW_DASK", "local")
    monkeypatch.setitem(sys.modules, "prefect_dask.task_runners", None)

    assert "pip install 'strategy-rollout[dask]'" in (shadow_run.fn().message or "")


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [("SHARDS_TIMEOUT_S", 0.2), pytest.param("CLUSTER_TIMEOUT_S", 3.0, marks=pytest.mark.full)],
)
def test_a_share_that_no_worker_takes_is_given_up(limit: str, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a cluster that loses its workers would hold up every later run."""
    from distributed import Client, LocalCluster
    from prefect_dask.task_runners import PrefectDaskFuture

    monkeypatch.setattr(shadow, limit, seconds)
    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address=None) as empty,  # type: ignore[no-untyped-call]
        Client(empty) as client,  # type: ignore[no-untyped-call]
    ):
        waiting = client.submit(len, "share")
        future = PrefectDaskFuture[ShardResult](uuid4(), waiting)
        shadow._await_shards([future], client)
        share, ended = shadow._shard_result(future)

        assert not ended
        assert share.problems == ["a shard was late or lost with its worker, and was repeated on this machine: pending"]
        assert waiting.cancelled()


def test_shares_are_merged_into_what_one_run_would_have_told() -> None:
    refused = "it cannot be loaded"
    one = ShardResult([ShadowRun("s", "1", "active", 3, 1, 0), ShadowRun("s", "2", "shadow", error=refused)])
    other = ShardResult([ShadowRun("s", "1", "active", 2, 0, 1), ShadowRun("s", "2", "shadow", error=refused)])

    together = merge_shards([one, other, ShardResult([], ["no feed"])])

    assert together == ShardResult(
        [ShadowRun("s", "1", "active", 5, 1, 1), ShadowRun("s", "2", "shadow", error=refused)], ["no feed"]
    )


@pytest.mark.parametrize("address", ["scheduler", "http://dask:8786", "tcp://dask", "tcp://ana:word@dask:8786"])
def test_what_is_no_address_of_a_scheduler_is_refused(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("ROLLOUT_SHADOW_DASK", address)

    with pytest.raises(InvalidSetting, match="ROLLOUT_SHADOW_DASK = "):
        read_settings()
