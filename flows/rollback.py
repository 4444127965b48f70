"""An owner's two shortest ways: make a version serve everybody, or take users off one. Both need no evidence."""

from prefect import flow

from flows.parameters import Name, OverrideReason, Owner, Reason
from flows.runtime import one_line, opened, owned_by
from strategy_core.services.promote import activate_version
from strategy_core.services.rollback import roll_back


@flow(flow_run_name="promote {strategy_name} {version}")
@one_line
def promote(
    strategy_name: Name, version: Name, owner: Owner, reason: Reason, override_reason: OverrideReason = ""
) -> str:
    """Make a version the active one and retire its predecessor, in one step; an open rollout ends.

    Args:
        strategy_name: the strategy.
        version: the version that serves everybody from now on.
        owner: who promotes it.
        reason: why; it stays in the audit trail.
        override_reason: why a version that was rolled back may serve again.
    """
    with opened() as runtime:
        activate_version(
            runtime.engine,
            strategy_name=strategy_name,
            version=version,
            actor=owned_by(owner),
            now=runtime.now,
            reason=reason,
            override_reason=override_reason,
            four_eyes=runtime.settings.four_eyes,
        )
    return f"{strategy_name} {version} is active"


@flow(flow_run_name="roll {strategy_name} back")
@one_line
def rollback(strategy_name: Name, owner: Owner, reason: Reason, version: Name | None = None) -> str:
    """Take users off a version, now: undo its rollout, else its canary, else, when it is named, its activation.

    Args:
        strategy_name: the strategy.
        version: the one to take users off; the rollout's or the canary, unless given.
        owner: who rolls it back.
        reason: why; it stays in the audit trail and in the alert.
    """
    with opened(database_alone=True) as runtime:
        taken_off = roll_back(
            runtime.engine,
            strategy_name=strategy_name,
            version=version,
            actor=owned_by(owner),
            now=runtime.now,
            reason=reason,
        )
    return f"users of {strategy_name} were taken off {taken_off}"
