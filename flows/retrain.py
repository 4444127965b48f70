"""The flow that trains a model on past candles and registers it in shadow."""

from datetime import UTC, datetime, time

from prefect.context import FlowRunContext
from prefect.logging import get_logger, get_run_logger

from flows.artifacts import key_of, show_page
from flows.parameters import AnySymbol, Owner, Remark, Seed, Strategy, Until, Version
from flows.runtime import open_runtime, owned_by, owner_flow
from strategy_core.domain.audit import Command
from strategy_core.report.training import training_markdown
from strategy_core.services import retrain as service

LINES = 10  # of progress in the log of a run


@owner_flow("retrain {strategy_name} {version} until {until}")
def retrain(
    strategy_name: Strategy,
    version: Version,
    owner: Owner,
    until: Until,
    seed: Seed = service.SEED,
    symbol: AnySymbol = "",
    reason: Remark = "",
) -> str:
    """Train ppo_gold on the candles of the feed, and register the model as a new version in shadow.

    Takes minutes, with low priority. To send users to the version, start a canary. If the training or the
    registration is refused, nothing is stored.

    Args:
        strategy_name: Strategy name. It must have a version of ppo_gold.
        version: Name of the new version.
        owner: Your name.
        until: Train on candles before this day, in UTC. Later candles can show what the version is worth.
        seed: Random seed. The same seed and candles give the same model.
        symbol: Symbol to train on. Leave empty if the strategy has one.
        reason: Stored in the audit trail.
    """
    log = get_run_logger() if FlowRunContext.get() else get_logger(__name__)
    shown = 0

    def log_progress(done: int, total: int) -> None:
        nonlocal shown
        if done * LINES // total > shown:
            shown = done * LINES // total
            log.info("trained %d of %d updates", done, total)

    with open_runtime() as runtime:
        found = service.retrain(
            runtime.engine,
            Command(owned_by(owner), runtime.now, reason),
            runtime.candles(),
            strategy_name=strategy_name,
            version=version,
            until=datetime.combine(until, time(), UTC),
            models=runtime.settings.models,
            seed=seed,
            symbol=symbol or None,
            deadline_s=runtime.settings.decision_deadline_s,
            clock=runtime.settings.now,
            progress=log_progress,
        )
    page = training_markdown(strategy_name, version, found.training, found.years)
    where = show_page(
        key_of("training", strategy_name, version), page, f"{strategy_name} {version}: how it was trained"
    )
    return "; ".join([found.summary, *found.notes]) + where
