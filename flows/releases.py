"""Flows of freezes and of scheduled starts."""

from flows.parameters import AnyStrategyOrAll, End, FreezeNumber, Owner, Reason, Remark, Start, Strategy
from flows.runtime import open_runtime, owned_by, owner_flow
from strategy_core.domain.audit import Command
from strategy_core.domain.parsing import owners_time
from strategy_core.services.release_times import lift_freeze, set_freeze
from strategy_core.services.scheduled_starts import cancel_start


@owner_flow("freeze {strategy_name}")
def freeze(strategy_name: AnyStrategyOrAll, end: End, owner: Owner, reason: Reason, start: Start = "") -> str:
    """Freeze a strategy: no rollout starts, advances or is promoted. Rollbacks go on.

    Args:
        strategy_name: Strategy name, or * for all strategies.
        end: When it ends: 2026-01-31 or 2026-01-31T12:00Z.
        owner: Your name.
        reason: Stored in the audit trail and shown where the freeze holds a rollout.
        start: When it starts. Leave empty for now.
    """
    ends_at, starts_at = owners_time(end, "end"), owners_time(start or None, "start")
    with open_runtime() as runtime:
        frozen = set_freeze(
            runtime.engine,
            Command(owned_by(owner), runtime.now, reason),
            strategy_name=strategy_name,
            starts_at=starts_at,
            ends_at=ends_at,
        )
    return f"freeze {frozen.id} of {frozen.shown_strategy}: {frozen.span}"


@owner_flow("lift freeze {freeze}")
def unfreeze(freeze: FreezeNumber, owner: Owner, reason: Reason) -> str:
    """Lift a freeze before it ends. The next tick may advance what it held.

    Args:
        freeze: Number of the freeze, as `rollout freezes` shows it.
        owner: Your name.
        reason: Stored in the audit trail.
    """
    with open_runtime() as runtime:
        lifted = lift_freeze(runtime.engine, Command(owned_by(owner), runtime.now, reason), freeze)
    return f"freeze {lifted.id} of {lifted.shown_strategy} is lifted"


@owner_flow("cancel the start of {strategy_name}")
def cancel_scheduled_start(strategy_name: Strategy, owner: Owner, reason: Remark = "") -> str:
    """Cancel the scheduled start of a rollout. Its version stays in shadow.

    Args:
        strategy_name: Strategy name.
        owner: Your name.
        reason: Stored in the audit trail.
    """
    with open_runtime() as runtime:
        cancelled = cancel_start(
            runtime.engine, Command(owned_by(owner), runtime.now, reason), strategy_name=strategy_name
        )
    return f"the start of {strategy_name} {cancelled.version} is cancelled"
