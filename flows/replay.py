"""The flow that lets a version decide on past candles."""

from datetime import timedelta

from flows.parameters import Again, Days, Strategy, Version
from flows.runtime import open_runtime, owner_flow
from strategy_core.domain.errors import RolloutError
from strategy_core.isolation.pool import WorkerPool
from strategy_core.services.replay import replay_version


@owner_flow("replay {strategy_name} {version}, {days} days")
def replay(strategy_name: Strategy, version: Version, days: Days = 180, again: Again = False) -> str:
    """Let a version and the active one decide on the newest past candles of the feed.

    The decisions and their results are kept apart from the log of live decisions. Comparisons and previews of plans use
    them where there is too little live evidence. No gate of a rollout counts them. Candles that were replayed before
    are left out.

    Args:
        strategy_name: Strategy name.
        version: The version whose past you want to see.
        days: Length of the period, up to the newest candle.
        again: Delete what was replayed in this period, and decide again. Use it after candles were revised.
    """
    with open_runtime() as runtime:
        settings = runtime.settings
        with WorkerPool(deadline_s=settings.decision_deadline_s, at_once=settings.shadow_workers) as workers:
            found = replay_version(
                runtime.engine,
                runtime.candles(),
                workers,
                strategy_name=strategy_name,
                version=version,
                now=runtime.now,
                length=timedelta(days=days),
                again=again,
            )
    line = "; ".join([*(each.summary for each in found), *(note for each in found for note in each.notes)])
    if any(each.errors for each in found):
        raise RolloutError(line)
    return line
