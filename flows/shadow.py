"""The flow that logs the decisions of all versions and records the outcomes of closed trades."""

from prefect import flow

from flows.dask import run_local, run_on_dask
from flows.parameters import Candles
from flows.runtime import one_line, open_runtime
from strategy_core.domain.errors import RolloutError
from strategy_core.services.score import score_outcomes
from strategy_core.services.shadow import ShadowRun


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
        [*map(_summary_line, result.runs), f"{scored.booked} outcomes recorded, {scored.pending} trades open"]
    )
    if any(run.error for run in result.runs) or result.problems or scored.refused:
        raise RolloutError("; ".join([line, *result.problems, *scored.refused]))
    return line


def _summary_line(run: ShadowRun) -> str:
    name = f"{run.strategy_name} {run.version} ({run.role})"
    counts = f"{name}: {run.logged} decisions, {run.signals} signals, {run.errors} errors"
    return f"{counts}, failed: {run.error}" if run.error else counts
