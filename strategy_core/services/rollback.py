"""Rollback by an owner or an alert. It needs no evidence, no candles and no other service."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from functools import wraps
from typing import Any, ParamSpec, TypeVar
from uuid import UUID

import structlog
from sqlalchemy import Engine
from sqlmodel import Session

from strategy_core.domain.alerts import RollbackRequest
from strategy_core.domain.audit import Command, shown_actor, storable
from strategy_core.domain.errors import AlreadyDone, AlreadyRolledBack, NotAwaiting, NothingToRollBack
from strategy_core.domain.gates.on_slots import WATCH
from strategy_core.domain.lifecycle import Status, utc
from strategy_core.domain.ramp import ALERT, OWNER, State
from strategy_core.isolation.forkserver import end_worker
from strategy_core.services.transitions import (
    Change,
    ChangeAlert,
    abort_rollout,
    check_open,
    end_rollout,
    recorded_change,
    reinstate_control,
    replace_active,
    strategy_state,
    withdraw_canary,
)
from strategy_core.store import audit, release_times, rollouts, versions
from strategy_core.store.engine import (
    ROLLBACK_RETRY,
    LockHolder,
    lock_budget,
    reading,
    retry_transient,
    transaction,
)
from strategy_core.store.tables import Rollout

P = ParamSpec("P")
R = TypeVar("R")

log = structlog.get_logger(__name__)


def never_locked_out(seconds: float | None = None) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function wait for a locked SQLite database at most *seconds* (`LOCK_BUDGET_S`), and end workers holding it.

    A worker has no business with the database. Its version fails one decision, and the next one gets a new worker.

    Raises:
        DatabaseLocked: another process holds the lock. It is named.
    """

    def decorated(work: Callable[P, R]) -> Callable[P, R]:
        @wraps(work)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            with lock_budget(_end_worker, seconds):
                return work(*args, **kwargs)

        return run

    return decorated


def _end_worker(holder: LockHolder) -> bool:
    ended = end_worker(holder.pid)
    if ended:
        log.warning("rollback.worker_ended", holder=str(holder), why="it held a lock of the database")
    return ended


@never_locked_out()
@retry_transient(ROLLBACK_RETRY)
def roll_back(
    engine: Engine,
    command: Command,
    *,
    strategy_name: str,
    version: str | None = None,
    rollout_id: UUID | None = None,
    cause: str = OWNER,
) -> str:
    """Take users off a version, quarantine it, and return its name.

    An open rollout is rolled back in any state. Without one, the canary is withdrawn, or else a scheduled start is
    cancelled, unless the newest change of the strategy was a rollback and *version* does not name the scheduled one. An
    activation is undone if *version* names the active version: the previously active version is reinstated, and a
    canary that was measured against the named version is withdrawn. The name is required for that, so that a repeated
    call, or a call after an automatic rollback, leaves a healthy version in place. The command's generation and four
    eyes are not checked.

    Args:
        version: the version to take users off, by default the rollout's version or the canary.
        rollout_id: roll back this rollout only.
        cause: what the rollback is counted by: OWNER or ALERT. An ALERT rollback raises a critical alert.

    Raises:
        UnknownStrategy
        DatabaseLocked: another process locks the SQLite database.
        NotAwaiting: *rollout_id* has ended.
        AlreadyRolledBack: the newest change of the strategy was this rollback. Callers report success.
        NothingToRollBack: no such version serves users, or no version was active before it.
    """
    with transaction(engine) as session:
        versions.lock_strategy(session, strategy_name)
        if rollout_id is not None:
            _check_not_done(session, strategy_name, version, rollout_id)
        check_open(session, strategy_name, rollout_id, "roll back")
        return take_off(session, command, strategy_name, version, cause=cause)


def take_off(
    session: Session,
    command: Command,
    strategy_name: str,
    version: str | None,
    *,
    cause: str,
    facts: Mapping[str, Any] | None = None,
) -> str:
    """Do what `roll_back` does, within a transaction that has locked the strategy.

    Args:
        facts: further facts of the alert.
    """
    command = replace(command, reason=storable(command.reason))  # no text may stop a rollback
    reason = f"by {command.actor.shown}: {command.reason}"
    rollout = rollouts.open_rollout(session, strategy_name)
    with recorded_change(session, command, "roll_back", strategy_name, reason=command.reason, cause=cause) as change:
        if rollout is not None and version in (None, rollout.version):
            change.version, change.rollout_id = rollout.version, rollout.id
            reinstate_control(session, rollout, now=command.now)
            end_rollout(session, rollout, State.ROLLED_BACK, reason, command.now)
        else:
            _undo_by_hand(session, change, strategy_name, version, rollout, reason, command.now)
        change.alert = ChangeAlert(
            "rollout.rolled_back",
            f"{strategy_name} {change.version} rolled back {reason}",
            severity="critical" if cause in (ALERT, WATCH) else "warning",
            dedupe_key=f"rolled_back {strategy_name} {change.version} {command.now.isoformat()}",
            facts={"reason": command.reason, **(facts or {})},
            exposed_before=True,
        )
    return change.version


def _undo_by_hand(
    session: Session,
    change: Change,
    strategy_name: str,
    version: str | None,
    rollout: Rollout | None,
    why: str,
    now: datetime,
) -> None:
    canary = versions.with_status(session, strategy_name, Status.CANARY)
    if canary is not None and version in (None, canary.version):
        withdraw_canary(session, canary, quarantine=True, now=now)
        change.version = canary.version
        return
    active = versions.with_status(session, strategy_name, Status.ACTIVE)
    pending = release_times.pending_start(session, strategy_name)
    if pending is not None and version in (None, pending.version) and (active is None or active.version != version):
        if version is None:
            _check_not_done(session, strategy_name, version)  # a repeated rollback must not go on to another version
        release_times.end_start(session, pending, "cancelled", because=f"rolled back {why}", now=now)
        versions.get_version(session, strategy_name, pending.version).quarantined_at = now
        change.version = pending.version
        return
    predecessor = versions.previously_active(session, strategy_name)
    if active is None or predecessor is None or version != active.version:
        _check_not_done(session, strategy_name, version)
        raise NothingToRollBack(strategy_name, version, active.version if active else None)
    if rollout is not None:
        abort_rollout(session, rollout, f"{version}, its control, was rolled back {why}", now)
    elif canary is not None:
        withdraw_canary(session, canary, quarantine=False, now=now)
    active.quarantined_at = now
    replace_active(session, predecessor, outgoing_becomes=Status.SHADOW, now=now)  # it may manage open positions
    change.version = active.version
    change.after["outgoing"] = Status.SHADOW.value


def _check_not_done(session: Session, strategy_name: str, version: str | None, rollout_id: UUID | None = None) -> None:
    """Raise AlreadyRolledBack if the newest change of the strategy, or of the rollout, is the rollback asked for.

    Changes of users' exclusions are passed over: they may come at any time, and move no version.
    """
    last = audit.newest_event(session, strategy_name, rollout_id, of_users=False)
    if last is not None and last.action == "roll_back" and version in (None, last.version):
        active = versions.with_status(session, strategy_name, Status.ACTIVE)
        by = shown_actor(last.actor, last.source)
        raise AlreadyRolledBack(strategy_name, version, active.version if active else None, last.version, last.at, by)


class AlertRollback(StrEnum):
    ROLLED_BACK = "rolled_back"
    CAME_AGAIN = "came_again"  # this firing has already rolled back
    BEGAN_LATER = "began_later"  # the version in service started after the alert began to fire
    NOTHING_SERVES = "nothing_serves"  # it was already rolled back, or it is not in service


@dataclass(frozen=True, slots=True)
class _Serving:
    version: str
    rollout_id: UUID | None
    since: datetime | None


@never_locked_out()
def roll_back_on_alert(
    engine: Engine, command: Command, firing: RollbackRequest, *, fired_at: datetime
) -> tuple[AlertRollback, str | None]:
    """Roll back what a firing alert means. Return the outcome and the version that users were taken off.

    Args:
        command: the actor carries the firing's idempotency key, so that one firing rolls back once.
        fired_at: when the alert began to fire, by the same clock as the command's time.

    Raises:
        UnknownStrategy, UnknownVersion
        NothingToRollBack: the named version serves users, and no version was active before it.
    """
    fired_at, now = utc(fired_at, "fired_at"), utc(command.now, "now")
    command = replace(command, now=now, reason=firing.reason)
    found = _serving(engine, firing)
    while found is not None:
        if found.since is not None and fired_at < found.since <= now:  # a start in the future comes from a fast clock
            return AlertRollback.BEGAN_LATER, None
        try:
            version = roll_back(
                engine,
                command,
                strategy_name=firing.strategy_name,
                version=found.version,
                rollout_id=found.rollout_id,
                cause=ALERT,
            )
        except AlreadyDone:
            return AlertRollback.CAME_AGAIN, None
        except (NotAwaiting, NothingToRollBack):
            before, found = found, _serving(engine, firing)
            if found == before:  # else the state has changed: try again, a completed rollout is undone by name
                raise
        else:
            return AlertRollback.ROLLED_BACK, version
    return AlertRollback.NOTHING_SERVES, None


@retry_transient(ROLLBACK_RETRY)
def _serving(engine: Engine, firing: RollbackRequest) -> _Serving | None:
    """Return the version in service that the firing means, if there is one."""
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
