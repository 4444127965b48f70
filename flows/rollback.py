"""What an owner does with a version without evidence: let it serve everybody, retire it, or take users off it."""

from flows.parameters import AnyVersion, OverrideReason, Owner, Reason, Remark, Strategy, Version
from flows.runtime import open_runtime, owned_by, owner_flow
from strategy_core.domain.audit import Command
from strategy_core.services.rollback import roll_back
from strategy_core.services.versions import activate_version, retire_version


@owner_flow("promote {strategy_name} {version}")
def promote(
    strategy_name: Strategy, version: Version, owner: Owner, reason: Reason, override_reason: OverrideReason = ""
) -> str:
    """Make a version the active one and retire its predecessor, in one step; an open rollout ends.

    Args:
        strategy_name: the strategy.
        version: the version that serves everybody from now on.
        owner: who promotes it.
        reason: why; it stays in the audit trail.
        override_reason: why a version that was rolled back may serve again; empty for any other.
    """
    with open_runtime() as runtime:
        activate_version(
            runtime.engine,
            Command(
                owned_by(owner),
                runtime.now,
                reason,
                override_reason=override_reason,
                four_eyes=runtime.settings.four_eyes,
            ),
            strategy_name=strategy_name,
            version=version,
        )
    return f"{strategy_name} {version} is active"


@owner_flow("retire {strategy_name} {version}")
def retire(strategy_name: Strategy, version: Version, owner: Owner, reason: Remark = "") -> str:
    """Retire a shadow version, or a canary that no rollout moves: it decides nothing more.

    The active version is retired by its successor alone: promote that.

    Args:
        strategy_name: the strategy.
        version: the version that is no longer wanted.
        owner: who retires it.
        reason: for the audit trail.
    """
    with open_runtime() as runtime:
        retire_version(
            runtime.engine, Command(owned_by(owner), runtime.now, reason), strategy_name=strategy_name, version=version
        )
    return f"{strategy_name} {version} is retired"


@owner_flow("roll {strategy_name} back")
def rollback(strategy_name: Strategy, owner: Owner, reason: Reason, version: AnyVersion = "") -> str:
    """Take users off a version, now: undo its rollout, else its canary, else, when it is named, its activation.

    It asks for no evidence and waits for nothing. Users go back to the version they had before.

    Args:
        strategy_name: the strategy.
        owner: who rolls it back.
        reason: why; it stays in the audit trail and in the alert.
        version: the one to take users off; empty, the rollout's or the canary.
    """
    with open_runtime(database_alone=True) as runtime:
        taken_off = roll_back(
            runtime.engine,
            Command(owned_by(owner), runtime.now, reason),
            strategy_name=strategy_name,
            version=version or None,
        )
    return f"users of {strategy_name} were taken off {taken_off}"
