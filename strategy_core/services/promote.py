"""An owner decides which version serves: activate and retire."""

from datetime import datetime

from sqlalchemy import Engine
from sqlmodel import Session

from strategy_core.domain.audit import Actor
from strategy_core.domain.errors import IllegalTransition, Quarantined, RolloutOpen
from strategy_core.domain.lifecycle import MAY_FOLLOW, Status, check_move
from strategy_core.domain.ramp import State
from strategy_core.services.four_eyes import check_second_owner
from strategy_core.services.transition import abandon, end_rollout, replace_active, standing, undo
from strategy_core.store import audit, rollouts, versions
from strategy_core.store.engine import transaction
from strategy_core.store.retry import tried_again
from strategy_core.store.rollout_tables import Rollout
from strategy_core.store.tables import StrategyVersion


@tried_again()
def activate_version(
    engine: Engine,
    *,
    strategy_name: str,
    version: str,
    actor: Actor,
    now: datetime,
    reason: str = "",
    override_reason: str = "",
    if_generation: int | None = None,
    four_eyes: bool = False,
) -> StrategyVersion:
    """Make *version* the active one and retire its predecessor, in one step.

    A running rollout of it ends as completed; one that bakes is undone when its predecessor is activated; one of any
    other version is aborted, since what it was measured against is active no more.

    Raises:
        UnknownStrategy, UnknownVersion
        IllegalTransition: it is active already.
        Quarantined: it was rolled back, and no override reason is given.
        LostRace: the strategy is of another generation than *if_generation*, when that is given.
        FourEyes: the actor started the version's open rollout, and *four_eyes* are demanded.
    """
    with transaction(engine) as session:
        versions.lock_strategy(session, strategy_name, if_generation)
        incoming = versions.get_version(session, strategy_name, version)
        check_move(Status(incoming.status), Status.ACTIVE)
        if incoming.quarantined_at is not None and not override_reason.strip():
            raise Quarantined(strategy_name, version, incoming.quarantined_at)
        open_one = rollouts.open_rollout(session, strategy_name)
        if open_one is not None and open_one.version == version:
            check_second_owner(session, open_one, actor, four_eyes=four_eyes)
        reason = override_reason or reason
        before = standing(session, strategy_name)
        why = f"{version} activated by {actor.name}" + (f": {reason}" if reason else "")
        rollout = activate(session, incoming, why=why, now=now)
        audit.record(
            session,
            actor,
            "activate_version",
            strategy_name=strategy_name,
            version=version,
            before=before,
            after=standing(session, strategy_name),
            reason=reason,
            now=now,
            rollout_id=rollout.id if rollout else None,
        )
        return incoming


def activate(session: Session, incoming: StrategyVersion, *, why: str, now: datetime) -> Rollout | None:
    """Make *incoming* active within a transaction and return the rollout that this ended, if one was open."""
    rollout = rollouts.open_rollout(session, incoming.strategy_name)
    if rollout is not None and rollout.promoted_at is not None and rollout.control_version == incoming.version:
        undo(session, rollout, now=now)
        end_rollout(session, rollout, State.ROLLED_BACK, why, now)
        return rollout
    if rollout is not None:
        _end_for(session, rollout, incoming.version, why, now)
    incoming.quarantined_at = None
    replace_active(session, incoming, outgoing_becomes=Status.RETIRED, now=now)
    return rollout


@tried_again()
def retire_version(
    engine: Engine,
    *,
    strategy_name: str,
    version: str,
    actor: Actor,
    now: datetime,
    reason: str = "",
    if_generation: int | None = None,
) -> StrategyVersion:
    """Retire a shadow version, or a canary that no rollout moves; it decides nothing more.

    Raises:
        IllegalTransition: it is the active version (its successor retires it), or retired already.
        RolloutOpen: a rollout moves it, or measures against it.
        LostRace: as in `activate_version`.
    """
    with transaction(engine) as session:
        versions.lock_strategy(session, strategy_name, if_generation)
        leaving = versions.get_version(session, strategy_name, version)
        check_move(Status(leaving.status), Status.RETIRED)
        if leaving.status == Status.ACTIVE:
            others = MAY_FOLLOW[Status.ACTIVE] - {Status.RETIRED, Status.SHADOW}
            raise IllegalTransition(Status.ACTIVE, Status.RETIRED, others, "activate another version: it retires this")
        rollout = rollouts.open_rollout(session, strategy_name)
        if rollout is not None and version in (rollout.version, rollout.control_version):
            raise RolloutOpen(strategy_name, rollout.version, rollout.state, "roll it back or let it end first")
        before = standing(session, strategy_name)
        if leaving.status == Status.CANARY:
            rollouts.set_canary_share(session, strategy_name, 0)
        versions.move(session, leaving, Status.RETIRED, now)
        audit.record(
            session,
            actor,
            "retire_version",
            strategy_name=strategy_name,
            version=version,
            before=before,
            after=standing(session, strategy_name),
            reason=reason,
            now=now,
        )
        return leaving


def _end_for(session: Session, rollout: Rollout, version: str, why: str, now: datetime) -> None:
    """End a rollout that the activation of *version* decides, and leave nobody with its canary."""
    if rollout.version == version:
        end_rollout(session, rollout, State.COMPLETED, why, now)
        return
    abandon(session, rollout, why, now)
