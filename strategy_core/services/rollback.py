"""Take users off a version, now: by an owner's call. It needs no evidence, no candles and no other service."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from sqlalchemy import Engine
from sqlmodel import Session

from strategy_core.domain.alerts import RollbackRequest
from strategy_core.domain.audit import Actor, storable
from strategy_core.domain.errors import AlreadyDone, NotAwaiting, NothingToRollBack
from strategy_core.domain.lifecycle import Status, utc
from strategy_core.domain.ramp import ALERT, OWNER, State
from strategy_core.services.transitions import (
    abort_rollout,
    check_open,
    end_rollout,
    exposure_of,
    reinstate_control,
    replace_active,
    strategy_state,
    withdraw_canary,
)
from strategy_core.store import alerts, audit, rollouts, versions
from strategy_core.store.engine import ROLLBACK_RETRY, reading, retry_transient, transaction
from strategy_core.store.tables import Rollout


@retry_transient(ROLLBACK_RETRY)
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
        before = strategy_state(session, strategy_name)
        rollout = rollouts.open_rollout(session, strategy_name)
        if rollout is not None and version in (None, rollout.version):
            taken_off = rollout.version
            reinstate_control(session, rollout, now=now)
            end_rollout(session, rollout, State.ROLLED_BACK, f"by {actor.name}: {reason}", now)
        else:
            taken_off = _undo_by_hand(session, strategy_name, version, rollout, f"by {actor.name}: {reason}", now)
            rollout = None
        after = strategy_state(session, strategy_name)
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
        alerts.raise_alert(
            session,
            "rollout.rolled_back",
            f"{strategy_name} {taken_off} rolled back by {actor.name}: {reason}",
            severity="critical" if cause == ALERT else "warning",
            strategy_name=strategy_name,
            dedupe_key=f"rolled_back {strategy_name} {taken_off} {now.isoformat()}",
            facts={
                "version": taken_off,
                "exposed_before": exposure_of(session, strategy_name, taken_off, before),
                "exposed": exposure_of(session, strategy_name, taken_off, after),
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
        abort_rollout(session, rollout, f"{version}, its control, was rolled back {why}", now)
    elif canary is not None:
        withdraw_canary(session, canary, quarantine=False, now=now)
    active.quarantined_at = now
    replace_active(session, predecessor, outgoing_becomes=Status.RETIRED, now=now)
    return active.version


class AlertRollback(StrEnum):
    ROLLED_BACK = "rolled_back"
    CAME_AGAIN = "came_again"  # this firing has rolled back already
    BEGAN_LATER = "began_later"  # what serves now did not when the alert began to fire
    NOTHING_SERVES = "nothing_serves"  # it was rolled back by others, or has never begun


@dataclass(frozen=True, slots=True)
class _Serving:
    version: str
    rollout_id: UUID | None
    since: datetime | None


def roll_back_on_alert(
    engine: Engine, firing: RollbackRequest, *, fired_at: datetime, actor: Actor, now: datetime
) -> tuple[AlertRollback, str | None]:
    """Return what became of it, and the version that users were taken off.

    Args:
        fired_at: when the alert began to fire, by the clock that *now* is of.
        actor: with the firing's key: under it the database rolls back once.

    Raises:
        UnknownStrategy, UnknownVersion
        NothingToRollBack: what is named serves, and nothing was active before it.
    """
    fired_at, now = utc(fired_at, "fired_at"), utc(now, "now")
    found = _serving(engine, firing)
    while found is not None:
        if found.since is not None and fired_at < found.since <= now:  # beyond now a clock that ran ahead has put it
            return AlertRollback.BEGAN_LATER, None
        try:
            version = roll_back(
                engine,
                strategy_name=firing.strategy_name,
                version=found.version,
                rollout_id=found.rollout_id,
                actor=actor,
                now=now,
                reason=firing.reason,
                cause=ALERT,
            )
        except AlreadyDone:
            return AlertRollback.CAME_AGAIN, None
        except (NotAwaiting, NothingToRollBack):
            before, found = found, _serving(engine, firing)
            if found == before:  # else it has changed meanwhile: a rollout that was completed is undone by its name
                raise
        else:
            return AlertRollback.ROLLED_BACK, version
    return AlertRollback.NOTHING_SERVES, None


@retry_transient(ROLLBACK_RETRY)
def _serving(engine: Engine, firing: RollbackRequest) -> _Serving | None:
    """Return what the firing means of all that serves users now."""
    name, wanted = firing.strategy_name, firing.version
    with reading(engine) as session:
        versions.get_strategy(session, name)
        if wanted is not None:
            versions.get_version(session, name, wanted)
        rollout = rollouts.open_rollout(session, name)
        if rollout is not None and wanted in (None, rollout.version):
            return _Serving(rollout.version, rollout.id, rollout.started_at)
        stands = strategy_state(session, name)
        if stands["canary"] is not None and wanted in (None, stands["canary"]):
            canary = rollouts.get_canary(session, name)
            return _Serving(canary.version, None, canary.started_at)
        if wanted is not None and wanted == stands["active"]:
            return _Serving(wanted, None, versions.get_version(session, name, wanted).activated_at)
    return None
