"""The moves that several use cases share, inside their transaction: who serves whom, and how a rollout ends."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlmodel import Session

from strategy_core.domain.errors import IllegalTransition, NotAwaiting, Quarantined, UnknownRollout
from strategy_core.domain.lifecycle import MAY_FOLLOW, Status
from strategy_core.domain.ramp import ENDED, State
from strategy_core.domain.routing import as_percent
from strategy_core.store import rollouts, versions
from strategy_core.store.tables import CanaryConfig, Rollout, StrategyRow, StrategyVersion


def strategy_state(session: Session, strategy_name: str) -> dict[str, Any]:
    """Return who serves whom now: what an audit event shows before and after a change."""
    active = versions.with_status(session, strategy_name, Status.ACTIVE)
    canary = versions.with_status(session, strategy_name, Status.CANARY)
    config = rollouts.find_canary(session, strategy_name)
    rollout = rollouts.open_rollout(session, strategy_name)
    return {
        "active": active.version if active else None,
        "canary": canary.version if canary else None,
        "percent": as_percent(config.rollout_bp) if canary and config else 0.0,
        "rollout": {"state": rollout.state, "stage": rollout.stage_index} if rollout else None,
    }


def exposure_of(session: Session, strategy_name: str, version: str, stands: Mapping[str, Any]) -> dict[str, Any]:
    """Return who gets the version when the strategy *stands* so, and since when: what an alert about it tells."""
    if stands["canary"] == version:
        config = rollouts.find_canary(session, strategy_name)
        since = config.started_at.isoformat() if config else None
        return {"role": Status.CANARY.value, "percent": stands["percent"], "since": since}
    if stands["active"] == version:
        activated_at = versions.get_version(session, strategy_name, version).activated_at
        since = activated_at.isoformat() if activated_at else None
        return {"role": Status.ACTIVE.value, "percent": round(100 - stands["percent"], 2), "since": since}
    return {"role": Status.SHADOW.value, "percent": 0.0, "since": None}


def make_canary(
    session: Session,
    strategy: StrategyRow,
    version: StrategyVersion,
    *,
    percent_bp: int,
    override_reason: str,
    now: datetime,
) -> CanaryConfig:
    """Send *percent_bp* of users to a shadow version.

    Raises:
        NoActiveVersion: the other users would have no version.
        IllegalTransition: it is not in shadow, or another version is the canary.
        Quarantined: it was rolled back, and no override reason is given.
    """
    versions.active_version(session, strategy.name)
    other = versions.with_status(session, strategy.name, Status.CANARY)
    if other is not None and other.id != version.id:
        allowed = MAY_FOLLOW[Status.SHADOW] - {Status.CANARY}
        raise IllegalTransition(version.status, Status.CANARY, allowed, f"{other.version} is the canary")
    if version.quarantined_at is not None and not override_reason.strip():
        raise Quarantined(strategy.name, version.version, version.quarantined_at)
    versions.move(session, version, Status.CANARY, now)
    version.quarantined_at = None
    return rollouts.point_canary(
        session, strategy.name, version.version, rollout_bp=percent_bp, salt=strategy.salt, now=now
    )


def replace_active(
    session: Session, incoming: StrategyVersion, *, outgoing_becomes: Status, now: datetime
) -> StrategyVersion | None:
    """Make *incoming* the active version and return the one it replaces, if there was one."""
    outgoing = versions.with_status(session, incoming.strategy_name, Status.ACTIVE)
    was_canary = incoming.status == Status.CANARY
    if outgoing is not None and outgoing.id != incoming.id:
        versions.move(session, outgoing, outgoing_becomes, now)  # first: one active is checked after each statement
    versions.move(session, incoming, Status.ACTIVE, now)
    if was_canary:
        rollouts.set_canary_share(session, incoming.strategy_name, 0)
    return outgoing


def withdraw_canary(session: Session, canary: StrategyVersion, *, quarantine: bool, now: datetime) -> None:
    """Send nobody to the canary any more and put it back into shadow."""
    rollouts.set_canary_share(session, canary.strategy_name, 0)
    if quarantine:
        canary.quarantined_at = now
    versions.move(session, canary, Status.SHADOW, now)


def reinstate_control(session: Session, rollout: Rollout, *, now: datetime) -> None:
    """Take the users off the rollout's version and quarantine it; after its promotion, reinstate its predecessor."""
    candidate = versions.get_version(session, rollout.strategy_name, rollout.version)
    if candidate.status == Status.CANARY:
        withdraw_canary(session, candidate, quarantine=True, now=now)
        return
    candidate.quarantined_at = now
    predecessor = versions.get_version(session, rollout.strategy_name, rollout.control_version)
    replace_active(session, predecessor, outgoing_becomes=Status.SHADOW, now=now)


def check_open(session: Session, strategy_name: str, rollout_id: UUID | None, what: str) -> None:
    """Raise NotAwaiting if a rollout is named that has ended: what was meant for it is not meant for another one."""
    if rollout_id is None:
        return
    rollout = rollouts.get_rollout(session, rollout_id)
    if rollout.strategy_name != strategy_name:
        raise UnknownRollout(f"{rollout_id} of {strategy_name!r}")
    state = State(rollout.state)
    if state in ENDED:
        raise NotAwaiting(what, state, set(State) - ENDED)


def abort_rollout(session: Session, rollout: Rollout, why: str, now: datetime) -> None:
    """End a rollout whose control is active no more, and leave nobody with its canary, which did nothing wrong."""
    candidate = versions.get_version(session, rollout.strategy_name, rollout.version)
    if candidate.status == Status.CANARY:
        withdraw_canary(session, candidate, quarantine=False, now=now)
    end_rollout(session, rollout, State.ABORTED, why, now)


def end_rollout(session: Session, rollout: Rollout, state: State, reason: str, now: datetime) -> None:
    rollouts.change_rollout(session, rollout, state=state.value, ended_at=now, reason=reason)
