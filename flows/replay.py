"""Flows on past candles: let a version decide on them, and show how a rollout would have gone on them."""

from datetime import timedelta

from flows.artifacts import key_of, show_page
from flows.parameters import DEFAULT, Again, AnyPlan, Days, End, Start, Strategy, Version, chosen_plan
from flows.runtime import open_runtime, owner_flow
from strategy_core.domain.errors import RolloutError
from strategy_core.domain.parsing import owners_time
from strategy_core.isolation.pool import WorkerPool
from strategy_core.report.whatif import whatif_markdown
from strategy_core.services.replay import replay_version
from strategy_core.services.whatif import what_if


@owner_flow("replay {strategy_name} {version}")
def replay(
    strategy_name: Strategy, version: Version, days: Days = 180, again: Again = False, start: Start = "", end: End = ""
) -> str:
    """Let a version and the active one decide on past candles of the feed.

    The decisions and their results are kept apart from the log of live decisions. Comparisons and previews of plans use
    them where there is too little live evidence. No gate of a rollout counts them. Candles that were replayed before
    are left out.

    Args:
        strategy_name: Strategy name.
        version: The version whose past you want to see.
        days: Length of the period, if no start is given.
        again: Delete what was replayed in this period, and decide again. Use it after candles were revised.
        start: First candle: 2026-01-31 or 2026-01-31T12:00Z. Leave empty for the days above, before the end.
        end: Only candles before this time. Leave empty for all up to the newest.
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
                start=owners_time(start or None, "start"),
                end=owners_time(end or None, "end"),
                length=timedelta(days=days),
                again=again,
            )
    line = "; ".join([*(each.summary for each in found), *(note for each in found for note in each.notes)])
    if any(each.errors for each in found):
        raise RolloutError(line)
    return line


@owner_flow("what if {strategy_name} {version}")
def whatif(strategy_name: Strategy, version: Version, start: Start = "", end: End = "", plan: AnyPlan = DEFAULT) -> str:
    """Show how a rollout would have gone on replayed candles, as a report with pictures.

    Every candle is a tick with the gates of the plan. Owners approve at once. Nothing is changed. Replay the version
    and the 180 days before the start first.

    Args:
        strategy_name: Strategy name.
        version: The version that would become the canary.
        start: Start of the rollout: 2026-01-31 or 2026-01-31T12:00Z. Leave empty for 180 days after the first replay.
        end: Only candles before this time. Leave empty for all that are replayed.
        plan: The standard plan, or your own stages, gates and limits.
    """
    with open_runtime() as runtime:
        found = what_if(
            runtime.engine,
            strategy_name=strategy_name,
            version=version,
            plan=chosen_plan(runtime.engine, strategy_name, plan),
            start=owners_time(start or None, "start"),
            end=owners_time(end or None, "end"),
        )
    key = key_of("whatif", strategy_name, version)
    return f"{found.verdict}{show_page(key, whatif_markdown(found), f'{strategy_name} {version}')}"
