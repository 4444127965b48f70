"""The steps that several use cases share inside their transaction, and the record of each change of a strategy."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlmodel import Session

from strategy_core.domain.audit import Command
from strategy_core.domain.errors import IllegalTransition, NotAwaiting, Quarantined, UnknownRollout
from strategy_core.domain.exclusions import excluded_names
from strategy_core.domain.lifecycle import MAY_FOLLOW, Status, check_move
from strategy_core.domain.policy import load_policy
from strategy_core.domain.ramp import ENDED, State
from strategy_core.domain.routing import as_percent
from strategy_core.store import alerts, audit, positions, rollouts, versions
from strategy_core.store.tables import CanaryConfig, Rollout, StrategyRow, StrategyVersion


@dataclass(frozen=True, slots=True)
class ChangeAlert:
    """The alert of a change. `recorded_change` adds the strategy's state to its facts.

    Attributes:
        exposed_before: whether the alert also shows who got the version before the change.
    """

    kind: str
    text: str
    severity: str
    dedupe_key: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    exposed_before: bool = False


@dataclass(slots=True)
class Change:
    """A change of a strategy while it is being made.

    Attributes:
        before: the strategy's state before the change.
        version, rollout_id: the subject of the audit event and the alert. The block may set them.
        after: facts that the audit event shows after the change, beside the strategy's state.
        alert: the alert to raise, if any.
    """

    before: dict[str, Any]
    version: str
    rollout_id: UUID | None
    after: dict[str, Any] = field(default_factory=dict)
    alert: ChangeAlert | None = None


@contextmanager
def recorded_change(
    session: Session,
    command: Command,
    action: str,
    strategy_name: str,
    version: str = "",
    *,
    rollout_id: UUID | None = None,
    reason: str | None = None,
    evidence: Sequence[str] = (),
    cause: str = "",
) -> Iterator[Change]:
    """Write the audit event, and the alert if the block asks for one, of the change that the block makes.

    The caller has locked the strategy. A block that raises writes neither.

    Args:
        reason: recorded in place of the command's own.
        evidence: ids of the verdicts that the change rests on.
        cause: what a rollback is counted by, "" for every other change.

    Raises:
        AlreadyDone: the actor has made a change under this idempotency key before.
    """
    change = Change(strategy_state(session, strategy_name), version, rollout_id)
    yield change
    after = strategy_state(session, strategy_name)
    audit.record(
        session,
        command.actor,
        action,
        strategy_name=strategy_name,
        version=change.version,
        before=change.before,
        after=after | change.after,
        reason=command.stated_reason if reason is None else reason,
        now=command.now,
        rollout_id=change.rollout_id,
        evidence=evidence,
        cause=cause,
    )
    if change.alert is not None:
        _raise_alert(session, strategy_name, change, change.alert, after, command.now)


def _raise_alert(
    session: Session, strategy_name: str, change: Change, alert: ChangeAlert, after: Mapping[str, Any], now: datetime
) -> None:
    facts: dict[str, Any] = {"version": change.version, **alert.facts}
    if alert.exposed_before:
        facts["exposed_before"] = exposure_of(session, strategy_name, change.version, change.before)
    facts |= {
        "exposed": exposure_of(session, strategy_name, change.version, after),
        "before": change.before,
        "after": after,
    }
    alerts.raise_alert(
        session,
        alert.kind,
        alert.text,
        severity=alert.severity,
        strategy_name=strategy_name,
        dedupe_key=alert.dedupe_key,
        facts=facts,
        now=now,
        rollout_id=change.rollout_id,
    )


def strategy_state(session: Session, strategy_name: str) -> dict[str, Any]:
    """Return which versions serve users now, as an audit event shows it before and after a change."""
    active = versions.with_status(session, strategy_name, Status.ACTIVE)
    canary = versions.with_status(session, strategy_name, Status.CANARY)
    config = rollouts.find_canary(session, strategy_name)
    rollout = rollouts.open_rollout(session, strategy_name)
    excluded = excluded_names(config.excluded_symbols) if canary and config else []
    asked = config.asked_percent if canary and config else 0.0
    percent = as_percent(config.rollout_bp) if canary and config else 0.0
    return {
        "active": active.version if active else None,
        "canary": canary.version if canary else None,
        "percent": percent,
        "rollout": {"state": rollout.state, "stage": rollout.stage_index} if rollout else None,
        **({"asked": asked} if asked > percent else {}),
        **({"excluded": excluded} if excluded else {}),
    }


def exposure_of(session: Session, strategy_name: str, version: str, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the version's role, its percent of users and since when, given the strategy's *state*."""
    if state["canary"] == version:
        config = rollouts.find_canary(session, strategy_name)
        since = config.started_at.isoformat() if config else None
        return {"role": Status.CANARY.value, "percent": state["percent"], "since": since}
    if state["active"] == version:
        activated_at = versions.get_version(session, strategy_name, version).activated_at
        since = activated_at.isoformat() if activated_at else None
        return {"role": Status.ACTIVE.value, "percent": round(100 - state["percent"], 2), "since": since}
    return {"role": Status.SHADOW.value, "percent": 0.0, "since": None}


def served_bp(session: Session, strategy_name: str, percent_bp: int) -> int:
    """Return the share that a canary serves where *percent_bp* is asked for: the policy's holdout is left out.

    Raises:
        InvalidPlan: this release cannot read the policy. It is not called by what takes users off a canary.
    """
    found = versions.find_policy(session, strategy_name)
    return percent_bp if found is None else load_policy(found.policy).served_bp(percent_bp)


def make_canary(
    session: Session,
    command: Command,
    strategy: StrategyRow,
    version: StrategyVersion,
    *,
    percent_bp: int,
    asked_bp: int | None = None,
) -> CanaryConfig:
    """Send *percent_bp* of users to a shadow version, without the policy's holdout.

    Args:
        asked_bp: as in `store.rollouts.point_canary`.

    Raises:
        NoActiveVersion: no version would serve the other users.
        IllegalTransition: the version is not in shadow, or another version is the canary.
        Quarantined: the version was rolled back, and the command has no override reason.
    """
    check_canary(session, command, version)
    versions.move(session, version, Status.CANARY, command.now)
    version.quarantined_at = None
    rollout_bp = served_bp(session, strategy.name, percent_bp)
    return rollouts.point_canary(
        session,
        strategy.name,
        version.version,
        rollout_bp=rollout_bp,
        asked_bp=asked_bp,
        salt=strategy.salt,
        now=command.now,
    )


def check_canary(session: Session, command: Command, version: StrategyVersion) -> None:
    """Raise the errors of `make_canary` unless *version* may become the canary."""
    name = version.strategy_name
    versions.active_version(session, name)
    other = versions.with_status(session, name, Status.CANARY)
    if other is not None and other.id != version.id:
        allowed = MAY_FOLLOW[Status.SHADOW] - {Status.CANARY}
        raise IllegalTransition(version.status, Status.CANARY, allowed, f"{other.version} is the canary")
    if version.quarantined_at is not None and not command.override_reason.strip():
        raise Quarantined(name, version.version, version.quarantined_at)
    check_move(Status(version.status), Status.CANARY)


def replace_active(
    session: Session, incoming: StrategyVersion, *, outgoing_becomes: Status, now: datetime
) -> StrategyVersion | None:
    """Make *incoming* the active version and return its predecessor, if there was one."""
    outgoing = versions.with_status(session, incoming.strategy_name, Status.ACTIVE)
    was_canary = incoming.status == Status.CANARY
    if outgoing is not None and outgoing.id != incoming.id:
        versions.move(session, outgoing, outgoing_becomes, now)  # first: the index is checked per statement
    versions.move(session, incoming, Status.ACTIVE, now)
    if was_canary:
        rollouts.set_canary_share(session, incoming.strategy_name, 0)
    return outgoing


def withdraw_canary(session: Session, canary: StrategyVersion, *, quarantine: bool, now: datetime) -> None:
    """Take all users off the canary and put it back into shadow."""
    rollouts.set_canary_share(session, canary.strategy_name, 0)
    if quarantine:
        canary.quarantined_at = now
    versions.move(session, canary, Status.SHADOW, now)


def reinstate_control(session: Session, rollout: Rollout, *, now: datetime) -> None:
    """Quarantine the rollout's version and take users off it. After promotion, reinstate its predecessor."""
    candidate = versions.get_version(session, rollout.strategy_name, rollout.version)
    if candidate.status == Status.CANARY:
        withdraw_canary(session, candidate, quarantine=True, now=now)
        return
    candidate.quarantined_at = now
    predecessor = versions.get_version(session, rollout.strategy_name, rollout.control_version)
    replace_active(session, predecessor, outgoing_becomes=Status.SHADOW, now=now)


def check_open(session: Session, strategy_name: str, rollout_id: UUID | None, what: str) -> None:
    """Raise NotAwaiting if *rollout_id* is given and has ended: a command for it is not meant for another rollout."""
    if rollout_id is None:
        return
    rollout = rollouts.get_rollout(session, rollout_id)
    if rollout.strategy_name != strategy_name:
        raise UnknownRollout(f"{rollout_id} of {strategy_name!r}")
    state = State(rollout.state)
    if state in ENDED:
        raise NotAwaiting(what, state, set(State) - ENDED)


def retire_predecessors(session: Session, rollout: Rollout, now: datetime, *, keep: bool) -> list[str]:
    """Retire the versions that the strategy's completed rollouts have replaced and that are still in shadow.

    A version that manages open positions stays in shadow: it decides when to leave them.

    Args:
        rollout: has just completed.
        keep: whether its own predecessor stays in shadow, to be watched against.

    Returns:
        The versions that were retired.
    """
    replaced = set(rollouts.completed_controls(session, rollout.strategy_name))
    leaving = [
        version
        for version in versions.list_versions(session, rollout.strategy_name, Status.SHADOW)
        if (not keep if version.version == rollout.control_version else version.version in replaced)
        and version.quarantined_at is None
        and not positions.count_managed(session, version.strategy_name, version.version)
    ]
    for version in leaving:
        versions.move(session, version, Status.RETIRED, now)
    return [version.version for version in leaving]


def why_unwatched(session: Session, rollout: Rollout) -> str:
    """Return why the version of a completed rollout is not watched, or an empty text.

    It is watched against the version that a rollback would reinstate, as long as that decides in shadow.
    """
    control = versions.get_version(session, rollout.strategy_name, rollout.control_version)
    previous = versions.previously_active(session, rollout.strategy_name)
    if rollout.plan.get("watch") == "off":
        return "its plan has no watch"
    if control.quarantined_at is not None:
        return f"its predecessor {control.version} is quarantined"
    if control.status != Status.SHADOW:
        return f"its predecessor {control.version} is {control.status}"
    if previous is None or previous.id != control.id:
        return f"{previous.version if previous else 'another version'} was active after {control.version}"
    return ""


def abort_rollout(session: Session, rollout: Rollout, why: str, now: datetime) -> None:
    """End a rollout whose control is no longer active. Its canary goes back to shadow without quarantine."""
    candidate = versions.get_version(session, rollout.strategy_name, rollout.version)
    if candidate.status == Status.CANARY:
        withdraw_canary(session, candidate, quarantine=False, now=now)
    end_rollout(session, rollout, State.ABORTED, why, now)


def end_rollout(session: Session, rollout: Rollout, state: State, reason: str, now: datetime) -> None:
    rollouts.change_rollout(session, rollout, state=state.value, ended_at=now, reason=reason)
