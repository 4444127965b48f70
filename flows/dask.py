"""A candle run split by symbol over the workers of a Dask cluster."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from prefect import task
from sqlalchemy.exc import DBAPIError

from flows.runtime import Runtime, open_runtime
from strategy_core.domain.errors import MissingExtra, RolloutError
from strategy_core.domain.lifecycle import Status
from strategy_core.isolation.pool import WorkerPool, own_cores
from strategy_core.services.database import failure
from strategy_core.services.queries import all_versions
from strategy_core.services.shadow import ShadowRun, run_shadow

if TYPE_CHECKING:
    from prefect_dask.task_runners import DaskTaskRunner, PrefectDaskFuture

LOCAL = "local"
SHARES_S = 900.0  # for all shares: one that never ends holds up every later run
CONNECT_S = 10.0  # to the scheduler: a cluster that is away must not make the run late


@dataclass(frozen=True, slots=True)
class ShardResult:
    """What came of the shares, as if one run had done it all.

    Attributes:
        problems: why a share, or the cluster, failed; what is still undecided the next run catches up.
    """

    runs: Sequence[ShadowRun]
    problems: Sequence[str] = ()


def run_local(
    runtime: Runtime, *, catch_up: int, symbols: Sequence[str] | None = None, at_once: int | None = None
) -> ShardResult:
    """Run on this machine: all symbols, or a share of them."""
    settings = runtime.settings
    with WorkerPool(deadline_s=settings.decision_deadline_s, at_once=at_once or settings.shadow_workers) as workers:
        source = runtime.candles()
        runs = run_shadow(runtime.engine, source, workers, now=runtime.now, catch_up=catch_up, symbols=symbols)
    return ShardResult(runs)


def run_on_dask(runtime: Runtime, *, catch_up: int) -> ShardResult:
    """Run on the cluster that the settings name; here, if it cannot be reached: evidence must not wait for its mending.

    A share that is lost with its worker, or late, is run here too: what both decide is logged once.

    Raises:
        MissingExtra: Dask is not installed.
    """
    address = runtime.settings.shadow_dask
    assert address is not None
    try:
        with _runner(address, runtime.settings.shadow_workers) as runner:
            asked: dict[str, Any] = {
                "now": runtime.now,
                "catch_up": catch_up,
                "at_once": 1 if address == LOCAL else None,
            }
            shares = _shares(runtime, len(runner.client.nthreads()))
            futures = [runner.submit(shadow_shard, {"symbols": symbols, **asked}) for symbols in shares]
            deadline = time.monotonic() + SHARES_S
            told = [_told(future, deadline) for future in futures]
    except OSError as error:  # a timeout is one too
        why = f"the Dask cluster at {address} cannot be reached, so this machine ran alone: {error}"
        return replace(run_local(runtime, catch_up=catch_up), problems=[why])
    asked["at_once"] = None
    lost = [symbol for symbols, (_, ended) in zip(shares, told, strict=True) if not ended for symbol in symbols]
    here = [shadow_shard.fn(lost, **asked)] if lost else []
    return merge_shards([*(share for share, _ in told), *here])


@task(name="shadow share")
def shadow_shard(symbols: list[str], now: datetime, catch_up: int, at_once: int | None) -> ShardResult:
    """Run on some symbols, with the database, the feed and the workers of the machine that this comes to."""
    try:
        with open_runtime() as runtime:
            return run_local(replace(runtime, now=now), catch_up=catch_up, symbols=symbols, at_once=at_once)
    except RolloutError as error:
        return ShardResult([], [str(error)])
    except DBAPIError as error:
        return ShardResult([], [failure(error)])


def merge_shards(shares: Sequence[ShardResult]) -> ShardResult:
    """Return the shares as one, versions in the order of the log."""
    by_version: dict[tuple[str, str, str], list[ShadowRun]] = {}
    for share in shares:
        for run in share.runs:
            by_version.setdefault((run.strategy_name, run.version, run.role), []).append(run)
    runs = [
        ShadowRun(
            *name,
            logged=sum(run.logged for run in parts),
            signals=sum(run.signals for run in parts),
            errors=sum(run.errors for run in parts),
            error="; ".join(dict.fromkeys(run.error for run in parts if run.error)),
        )
        for name, parts in by_version.items()
    ]
    return ShardResult(runs, list(dict.fromkeys(problem for share in shares for problem in share.problems)))


def _runner(address: str, workers: int | None) -> "DaskTaskRunner":
    try:
        from prefect_dask.task_runners import DaskTaskRunner
    except ModuleNotFoundError:
        raise MissingExtra("a candle run on a Dask cluster", "dask") from None
    if address != LOCAL:
        return DaskTaskRunner(address=address, client_kwargs={"timeout": CONNECT_S})
    here = {"n_workers": workers or own_cores(), "threads_per_worker": 1, "dashboard_address": None}
    return DaskTaskRunner(cluster_kwargs=here)


def _shares(runtime: Runtime, count: int) -> list[list[str]]:
    """Return as many shares as there are machines: all versions of a symbol are in one, so that no arm seems silent."""
    if count == 0:
        raise ConnectionError("it has no workers")
    running = [version for version in all_versions(runtime.engine) if version.status != Status.RETIRED]
    symbols = sorted({symbol for version in running for symbol in version.symbols})
    return [share for share in (symbols[start::count] for start in range(count)) if share]


def _told(future: "PrefectDaskFuture[ShardResult]", deadline: float) -> tuple[ShardResult, bool]:
    """Return what a share says by *deadline* (monotonic seconds), and whether it has ended; else it is cancelled."""
    future.wait(max(0.1, deadline - time.monotonic()))
    status = future.wrapped_future.status
    if status != "finished":
        future.wrapped_future.cancel()  # type: ignore[no-untyped-call]
        return ShardResult([], [f"a share was lost with its worker, or late, and ran here: {status}"]), False
    said = future.result(raise_on_failure=False)
    return said if isinstance(said, ShardResult) else ShardResult([], [f"a share failed: {said}"]), True
