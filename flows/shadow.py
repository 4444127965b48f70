"""Let every version decide on the newest candles, and book what earlier decisions were worth."""

from prefect import flow

import flows._prestart  # noqa: F401  before what takes long to import
from flows.dask import run_local, run_on_dask
from flows.parameters import Candles
from flows.runtime import one_line, open_runtime
from strategy_core.domain.errors import RolloutError
from strategy_core.services.score import score_outcomes
from strategy_core.services.shadow import ShadowRun


@flow(flow_run_name="shadow run")
@one_line
def shadow_run(catch_up: Candles = 1_000) -> str:
    """Log one decision per version, symbol and closed candle, then book the outcomes that have closed since.

    One flow for the two: booking reads what the decisions just wrote, and a run of its own would cost a process more a
    minute. A version, or a share of the symbols, that could not be asked fails the run at its end, when the others are
    logged and booked.

    Args:
        catch_up: how many missed candles are made up for, per version and symbol.
    """
    with open_runtime() as runtime:
        run = run_on_dask if runtime.settings.shadow_dask else run_local
        shared = run(runtime, catch_up=catch_up)
        scored = score_outcomes(runtime.engine, runtime.candles(), now=runtime.now)
    line = "; ".join([*map(_told, shared.runs), f"{scored.booked} outcomes booked, {scored.pending} trades open"])
    if any(run.error for run in shared.runs) or shared.problems or scored.refused:
        raise RolloutError("; ".join([line, *shared.problems, *scored.refused]))
    return line


def _told(run: ShadowRun) -> str:
    name = f"{run.strategy_name} {run.version} ({run.role})"
    told = f"{name}: {run.logged} decisions, {run.signals} signals, {run.errors} errors"
    return f"{told}; not asked: {run.error}" if run.error else told
