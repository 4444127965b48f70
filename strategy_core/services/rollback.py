"""Take users off a version, now: by an owner's call. It needs no evidence, no candles and no other service."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import Engine
from sqlmodel import Session

from strategy_core.domain.audit import Actor, storable
from strategy_core.domain.errors import NothingToRollBack
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.ramp import ALERT, OWNER, State
from strategy_core.services.transition import (
    abandon,
    check_open,
    end_rollout,
    exposed,
    replace_active,
    standing,
    undo,
    withdraw_canary,
)
from strategy_core.store import audit, rollouts, versions
from strategy_core.store.engine import transaction
from strategy_core.store.retry import OF_A_ROLLBACK, tried_again
from strategy_core.store.rollout_tables import Rollout


@tried_again(OF_A_ROLLBACK)
def roll_back(
    engine: Engine,
    *,
    strategy_name: str,
    actor: Actor,
    now: datetime,
    reason: str,
    version: str | None = None,
    rollout_id: UUID | None = None,
    cause: str = OWNER,
) -> str:
    """Take users off a version and return which; it is quarantined.

    An open rollout is rolled back, whatever its state; else a canary is withdrawn. An activation is undone when
    *version* names the active one: the version that was active before is reinstated, and a canary that was measured
    against the other is withdrawn. It needs the name, so that a call that comes twice, or after an automatic rollback,
    takes nobody off a healthy version.

    Args:
        version: the one users shall be taken off; the rollout's or the canary, unless given.
        rollout_id: undo this rollout, and nothing else.
        cause: by which it is counted, OWNER or ALERT; what no person did is told until one knows.

    Raises:
        UnknownStrategy
        NotAwaiting: *rollout_id* has ended.
        NothingToRollBack: no such version serves anybody, or nothing was active before it.
    """
    reason = storable(reason)
    with transaction(engine) as session:
        versions.lock_strategy(session, strategy_name)
        check_open(session, strategy_name, rollout_id, "roll back")
        before = standing(session, strategy_name)
        rollout = rollouts.open_rollout(session, strategy_name)
        if rollout is not None and version in (None, rollout.version):
            taken_off = rollout.version
            undo(session, rollout, now=now)
            end_rollout(session, rollout, State.ROLLED_BACK, f"by {actor.name}: {reason}", now)
        else:
            taken_off = _undo_by_hand(session, strategy_name, version, rollout, f"by {actor.name}: {reason}", now)
            rollout = None
        after = standing(session, strategy_name)
        audit.record(
            session,
            actor,
            "roll_back",
            strategy_name=strategy_name,
            version=taken_off,
            before=before,
            after=after,
            reason=reason,
            now=now,
            rollout_id=rollout.id if rollout else None,
            cause=cause,
        )
        audit.raise_alert(
            session,
            "rollout.rolled_back",
            f"{strategy_name} {taken_off} rolled back by {actor.name}: {reason}",
            severity="critical" if cause == ALERT else "warning",
            strategy_name=strategy_name,
            dedupe_key=f"rolled_back {strategy_name} {taken_off} {now.isoformat()}",
            facts={
                "version": taken_off,
                "exposed_before": exposed(session, strategy_name, taken_off, before),
                "exposed": exposed(session, strategy_name, taken_off, after),
                "before": before,
                "after": after,
                "reason": reason,
            },
            now=now,
            rollout_id=rollout.id if rollout else None,
        )
        return taken_off


def _undo_by_hand(
    session: Session, strategy_name: str, version: str | None, rollout: Rollout | None, why: str, now: datetime
) -> str:
    canary = versions.with_status(session, strategy_name, Status.CANARY)
    if canary is not None and version in (None, canary.version):
        withdraw_canary(session, canary, quarantine=True, now=now)
        return canary.version
    active = versions.with_status(session, strategy_name, Status.ACTIVE)
    predecessor = versions.previously_active(session, strategy_name)
    if active is None or predecessor is None or version != active.version:
        raise NothingToRollBack(strategy_name, version, active.version if active else None)
    if rollout is not None:
        abandon(session, rollout, f"{version}, its control, was rolled back {why}", now)
    elif canary is not None:
        withdraw_canary(session, canary, quarantine=False, now=now)
    active.quarantined_at = now
    replace_active(session, predecessor, outgoing_becomes=Status.RETIRED, now=now)
    return active.version
