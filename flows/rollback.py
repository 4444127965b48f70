"""Flows that activate, retire and roll back versions by hand."""

from flows.parameters import AnyVersion, Close, OrphansTo, OverrideReason, Owner, Reason, Remark, Strategy, Version
from flows.runtime import open_runtime, owned_by, owner_flow
from strategy_core.domain.audit import Command
from strategy_core.domain.errors import AlreadyRolledBack
from strategy_core.services.rollback import never_locked_out, roll_back
from strategy_core.services.versions import activate_version, retire_version


@owner_flow("activate {strategy_name} {version}")
def activate(
    strategy_name: Strategy, version: Version, owner: Owner, reason: Reason, override_reason: OverrideReason = ""
) -> str:
    """Make a version active for all users and retire its predecessor. Ends an open rollout.

    Args:
        strategy_name: Strategy name.
        version: The version that all users get.
        owner: Your name.
        reason: Stored in the audit trail.
        override_reason: Reason for using a quarantined version again. Leave empty otherwise.
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
def retire(
    strategy_name: Strategy,
    version: Version,
    owner: Owner,
    reason: Remark = "",
    close: Close = False,
    orphans_to: OrphansTo = "",
) -> str:
    """Retire a shadow version, or a canary without an open rollout. It makes no more decisions.

    To retire the active version, activate another one, or close the strategy if it is the last one.

    Args:
        strategy_name: Strategy name.
        version: The version to retire.
        owner: Your name.
        reason: Stored in the audit trail.
        close: Retire the active version too, if it is the last. Its users then get no version.
        orphans_to: The version that takes over its open positions, or flatten. Leave empty if it has none.
    """
    with open_runtime() as runtime:
        retire_version(
            runtime.engine,
            Command(owned_by(owner), runtime.now, reason),
            strategy_name=strategy_name,
            version=version,
            close=close,
            orphans_to=orphans_to,
        )
    return f"{strategy_name} {version} is retired"


@owner_flow("roll {strategy_name} back")
def rollback(strategy_name: Strategy, owner: Owner, reason: Reason, version: AnyVersion = "") -> str:
    """Roll back now.

    Ends the open rollout, or withdraws the canary. To undo the activation of the active version, name that version.
    Users return to the version that they had before.

    Args:
        strategy_name: Strategy name.
        owner: Your name.
        reason: Stored in the audit trail and shown in the alert.
        version: Version to roll back. Leave empty for the rollout or canary.
    """

    @never_locked_out()
    def run() -> str:
        with open_runtime(tolerate_bad_settings=True) as runtime:
            return roll_back(
                runtime.engine,
                Command(owned_by(owner), runtime.now, reason),
                strategy_name=strategy_name,
                version=version or None,
            )

    try:
        return f"{strategy_name} {run()} is rolled back, no user gets it"
    except AlreadyRolledBack as done:
        return str(done)
