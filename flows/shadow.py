"""The flow that logs all versions' decisions and the outcomes of closed trades, also split by symbol over Dask."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from prefect import flow, task
from sqlalchemy.exc import DBAPIError

from flows.parameters import Candles
from flows.runtime import Runtime, one_line, open_runtime
from strategy_core.domain.errors import MissingExtra, RolloutError, reason_of
from strategy_core.domain.lifecycle import Status
from strategy_core.isolation.pool import WorkerPool, own_cores
from strategy_core.services.database import failure
from strategy_core.services.queries import all_versions
from strategy_core.services.score import score_outcomes
from strategy_core.services.shadow import ShadowRun, run_shadow

if TYPE_CHECKING:
    from distributed import Client
    from prefect_dask.task_runners import DaskTaskRunner, PrefectDaskFuture

LOCAL = "local"
SHARDS_TIMEOUT_S = 900.0  # for all shards together: a stuck one must not block later runs
CONNECT_TIMEOUT_S = 10.0  # to the scheduler: without the cluster the run must still be in time
CLUSTER_TIMEOUT_S = 30.0  # without a worker or an answer of the scheduler. A killed worker starts again by then
_LOOK_EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class ShardResult:
    """The result of one shard, or of all shards merged.

    Attributes:
        problems: why a shard or the cluster failed. The next run catches up on missing decisions.
    """

    runs: Sequence[ShadowRun]
    problems: Sequence[str] = ()


@flow(flow_run_name="shadow run")
@one_line
def shadow_run(catch_up: Candles = 1_000) -> str:
    """Log one decision per version, symbol and closed candle, then record the outcomes of closed trades.

    The run fails if a version or a group of symbols gave no decisions, after all others are logged.

    Args:
        catch_up: maximum number of missed candles to process, per version and symbol.
    """
    with open_runtime() as runtime:
        run = run_on_dask if runtime.settings.shadow_dask else run_local
        result = run(runtime, catch_up=catch_up)
        scored = score_outcomes(runtime.engine, runtime.candles(), now=runtime.now)
    line = "; ".join(
        [*map(_summary_line, result.runs), f"{scored.booked:,} outcomes recorded, {scored.pending:,} trades open"]
    )
    if any(run.error for run in result.runs) or result.problems or scored.refused:
        raise RolloutError("; ".join([line, *result.problems, *scored.refused]))
    return line


def run_local(
    runtime: Runtime, *, catch_up: int, symbols: Sequence[str] | None = None, at_once: int | None = None
) -> ShardResult:
    """Run on this machine, for all symbols or for *symbols*."""
    settings = runtime.settings
    with WorkerPool(deadline_s=settings.decision_deadline_s, at_once=at_once or settings.shadow_workers) as workers:
        source, quiet = runtime.candles(), settings.alert_pace.quiet
        runs = run_shadow(
            runtime.engine, source, workers, now=runtime.now, catch_up=catch_up, symbols=symbols, quiet=quiet
        )
    return ShardResult(runs)


def run_on_dask(runtime: Runtime, *, catch_up: int) -> ShardResult:
    """Run on the Dask cluster of the settings, or on this machine if the cluster cannot be reached.

    A shard that is late, or lost with its worker, is repeated on this machine, and so are all if the cluster is lost.
    Each decision is logged once.

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
            shards = _split_symbols(runtime, len(runner.client.nthreads()))
            futures = [runner.submit(shadow_shard, {"symbols": symbols, **asked}) for symbols in shards]
            _await_shards(futures, runner.client)
            results = [_shard_result(future) for future in futures]
    except OSError as error:  # includes timeouts
        why = f"the Dask cluster at {address} cannot be reached, ran on this machine instead: {reason_of(error)}"
        return replace(run_local(runtime, catch_up=catch_up), problems=[why])
    asked["at_once"] = None
    lost = [symbol for symbols, (_, ended) in zip(shards, results, strict=True) if not ended for symbol in symbols]
    repeated = [shadow_shard.fn(lost, **asked)] if lost else []
    return merge_shards([*(result for result, _ in results), *repeated])


@task(name="shadow shard")
def shadow_shard(symbols: list[str], now: datetime, catch_up: int, at_once: int | None) -> ShardResult:
    """Run for some symbols, with the settings of the machine that executes it."""
    try:
        with open_runtime() as runtime:
            return run_local(replace(runtime, now=now), catch_up=catch_up, symbols=symbols, at_once=at_once)
    except RolloutError as error:
        return ShardResult([], [reason_of(error)])
    except DBAPIError as error:
        return ShardResult([], [failure(error)])


def merge_shards(shards: Sequence[ShardResult]) -> ShardResult:
    """Merge shards into one result, version by version."""
    by_version: dict[tuple[str, str, str], list[ShadowRun]] = {}
    for shard in shards:
        for run in shard.runs:
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
    return ShardResult(runs, list(dict.fromkeys(problem for shard in shards for problem in shard.problems)))


def _runner(address: str, workers: int | None) -> "DaskTaskRunner":
    try:
        from prefect_dask.task_runners import DaskTaskRunner
    except ModuleNotFoundError:
        raise MissingExtra("a candle run on a Dask cluster", "dask") from None
    if address != LOCAL:
        return DaskTaskRunner(address=address, client_kwargs={"timeout": CONNECT_TIMEOUT_S})
    local = {"n_workers": workers or own_cores(), "threads_per_worker": 1, "dashboard_address": None}
    return DaskTaskRunner(cluster_kwargs=local)


def _split_symbols(runtime: Runtime, count: int) -> list[list[str]]:
    """Split the symbols into *count* groups, so that all versions decide on a symbol in the same shard."""
    if count == 0:
        raise ConnectionError("it has no workers")
    running = [version for version in all_versions(runtime.engine) if version.status != Status.RETIRED]
    symbols = sorted({symbol for version in running for symbol in version.symbols})
    return [group for group in (symbols[start::count] for start in range(count)) if group]


def _await_shards(futures: "Sequence[PrefectDaskFuture[ShardResult]]", client: "Client") -> None:
    """Wait until all shards have ended or are late, or the cluster has had no worker for CLUSTER_TIMEOUT_S.

    Raises:
        OSError: the scheduler does not answer.
    """
    seen = time.monotonic()  # a worker
    deadline = seen + SHARDS_TIMEOUT_S
    while waiting := [future for future in futures if future.wrapped_future.status == "pending"]:
        if client.nthreads(callback_timeout=CLUSTER_TIMEOUT_S):  # type: ignore[no-untyped-call]
            seen = time.monotonic()
        left = min(deadline, seen + CLUSTER_TIMEOUT_S) - time.monotonic()
        if left <= 0:
            return
        waiting[0].wait(min(left, _LOOK_EVERY_S))


def _shard_result(future: "PrefectDaskFuture[ShardResult]") -> tuple[ShardResult, bool]:
    """Return a shard's result, and whether it has finished. Any other is cancelled.

    Raises:
        TimeoutError: it has finished, and its worker does not hand the result over.
    """
    status = future.wrapped_future.status
    if status == "finished":
        future.wait(CLUSTER_TIMEOUT_S)  # for the result itself
        status = future.wrapped_future.status
    if status != "finished":
        future.wrapped_future.cancel()  # type: ignore[no-untyped-call]
        return ShardResult(
            [], [f"a shard was late or lost with its worker, and was repeated on this machine: {status}"]
        ), False
    result = future.result(timeout=0.1, raise_on_failure=False)
    return result if isinstance(result, ShardResult) else ShardResult([], [f"a shard failed: {result}"]), True


def _summary_line(run: ShadowRun) -> str:
    name = f"{run.strategy_name} {run.version} ({run.role})"
    counts = f"{name}: {run.logged} decisions, {run.signals} signals, {run.errors} errors"
    return f"{counts}, failed: {run.error}" if run.error else counts
