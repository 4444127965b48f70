"""What an owner says to a rollout: approve, decide, pause, resume. None of it can delay a rollback."""

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import Engine
from sqlmodel import Session

from strategy_core.domain.audit import Actor
from strategy_core.domain.candles import timeframe_delta
from strategy_core.domain.errors import NotAwaiting, UnknownRollout
from strategy_core.domain.gates import SEVERITY, Freshness, Verdict
from strategy_core.domain.plan import Plan, read_plan
from strategy_core.domain.ramp import Ruling, State, Step
from strategy_core.services.four_eyes import check_second_owner
from strategy_core.services.gather import Feed, judge
from strategy_core.services.ramp import take
from strategy_core.services.rollback import roll_back
from strategy_core.services.transition import check_open, standing
from strategy_core.store import audit, rollouts, versions
from strategy_core.store.engine import reading, transaction
from strategy_core.store.retry import tried_again
from strategy_core.store.rollout_tables import Rollout


class Choice(StrEnum):
    EXTEND = "extend"  # the stage's maximum time starts anew
    ADVANCE = "advance"  # on to the next stage without an answer: the owner's own responsibility
    ROLL_BACK = "rollback"  # users off the canary, now


@tried_again()
def approve(
    engine: Engine,
    *,
    strategy_name: str,
    actor: Actor,
    now: datetime,
    reason: str = "",
    rollout_id: UUID | None = None,
    if_generation: int | None = None,
    four_eyes: bool = False,
) -> Rollout:
    """Let the rollout enter the stage it waits for; the next tick takes the step, if every gate passes then too.

    Args:
        rollout_id: the rollout that is meant; whichever is open, unless given.

    Raises:
        UnknownStrategy, UnknownRollout: nothing is open.
        NotAwaiting: it does not wait for an approval: not every gate has passed yet; or the one meant has ended.
        LostRace: the strategy is of another generation than *if_generation*, when that is given.
        FourEyes: the actor started it, and *four_eyes* are demanded.
    """
    with transaction(engine) as session:
        rollout = _open(session, strategy_name, rollout_id, if_generation, "approve", State.AWAITING_APPROVAL)
        _check_passing(session, rollout)
        check_second_owner(session, rollout, actor, four_eyes=four_eyes)
        following = rollout.stage_index + 1
        changes = {"state": State.RUNNING.value, "approved_stage": following}
        return _set(session, rollout, "approve", changes, actor=actor, now=now, reason=reason)


@tried_again()
def decide_rollout(
    engine: Engine,
    *,
    strategy_name: str,
    choice: Choice,
    actor: Actor,
    now: datetime,
    reason: str,
    rollout_id: UUID | None = None,
    if_generation: int | None = None,
    four_eyes: bool = False,
) -> Rollout:
    """Answer a rollout that waits for a decision: give the stage its maximum time again, advance it, or roll it back.

    To roll back needs no waiting: that answer is taken in every state and generation, as by `services.rollback`.

    Raises:
        UnknownStrategy, UnknownRollout: nothing is open.
        NotAwaiting: it does not wait for a decision; or to advance it would be blind or harmful: some gate breaks or
            is blind now, or no tick has looked lately.
        LostRace: as in `approve`.
        FourEyes: the actor started it, and would advance it where *four_eyes* are demanded.
    """
    if choice is Choice.ROLL_BACK:
        return _roll_back(engine, strategy_name, rollout_id, actor=actor, now=now, reason=reason)
    with transaction(engine) as session:
        rollout = _open(session, strategy_name, rollout_id, if_generation, "decide", State.AWAITING_DECISION)
        if choice is Choice.EXTEND:
            changes = {"state": State.RUNNING.value, "stage_extended_at": now}
            return _set(session, rollout, "extend", changes, actor=actor, now=now, reason=reason)
        check_second_owner(session, rollout, actor, four_eyes=four_eyes)
        plan = read_plan(rollout.plan)
        _check_harmless(session, rollout, plan, now)
        last = rollout.stage_index + 1 == len(plan.stages)
        ruling = Ruling(Step.PROMOTE if last else Step.ADVANCE, f"by {actor.name}: {reason}")
        take(session, rollout, plan, ruling, actor=actor, now=now)
        return rollout


@tried_again()
def pause(
    engine: Engine,
    *,
    strategy_name: str,
    actor: Actor,
    now: datetime,
    reason: str = "",
    rollout_id: UUID | None = None,
    if_generation: int | None = None,
) -> Rollout:
    """Keep the rollout at its percent, whether it runs or waits for an owner; every protection stays armed.

    An approval that no tick has taken yet is none any more.
    """
    with transaction(engine) as session:
        waiting = (State.AWAITING_APPROVAL, State.AWAITING_DECISION)
        rollout = _open(session, strategy_name, rollout_id, if_generation, "pause", State.RUNNING, *waiting)
        changes = {"state": State.PAUSED.value, "approved_stage": None}
        return _set(session, rollout, "pause", changes, actor=actor, now=now, reason=reason)


@tried_again()
def resume(
    engine: Engine,
    *,
    strategy_name: str,
    actor: Actor,
    now: datetime,
    reason: str = "",
    rollout_id: UUID | None = None,
    if_generation: int | None = None,
) -> Rollout:
    """Let a paused rollout go on: at its stage's percent, whatever was set by hand, and with its times anew.

    What it had waited for is asked for again when it comes to that.
    While it is blind no user is added: then a lower percent that was set by hand stays.
    """
    with transaction(engine) as session:
        rollout = _open(session, strategy_name, rollout_id, if_generation, "resume", State.PAUSED)
        changes: dict[str, Any] = {"state": State.RUNNING.value, "stage_entered_at": now, "stage_extended_at": now}
        share = None
        if rollout.promoted_at is None:
            stage = read_plan(rollout.plan).stages[rollout.stage_index]
            present = rollouts.get_canary(session, strategy_name).rollout_bp
            share = stage.percent_bp if rollout.blind_since is None else min(present, stage.percent_bp)
        return _set(session, rollout, "resume", changes, actor=actor, now=now, reason=reason, share=share)


def _roll_back(
    engine: Engine, strategy_name: str, rollout_id: UUID | None, *, actor: Actor, now: datetime, reason: str
) -> Rollout:
    """Roll back the open rollout, by its id: if it has ended meanwhile, no other one is meant."""
    if rollout_id is None:
        with reading(engine) as session:
            versions.get_strategy(session, strategy_name)
            rollout_id = _the_open(session, strategy_name).id
    roll_back(engine, strategy_name=strategy_name, rollout_id=rollout_id, actor=actor, now=now, reason=reason)
    with reading(engine) as session:
        return rollouts.get_rollout(session, rollout_id)


def _open(
    session: Session,
    strategy_name: str,
    rollout_id: UUID | None,
    if_generation: int | None,
    what: str,
    *needed: State,
) -> Rollout:
    """Return the open rollout, its strategy locked; with *rollout_id* that one, or NotAwaiting."""
    versions.lock_strategy(session, strategy_name, if_generation)
    check_open(session, strategy_name, rollout_id, what)
    rollout = _the_open(session, strategy_name)
    if rollout.state not in needed:
        raise NotAwaiting(what, rollout.state, needed)
    return rollout


def _the_open(session: Session, strategy_name: str) -> Rollout:
    rollout = rollouts.open_rollout(session, strategy_name)
    if rollout is None:
        raise UnknownRollout(f"of {strategy_name!r} is open")
    return rollout


def _check_passing(session: Session, rollout: Rollout) -> None:
    """Raise NotAwaiting unless every armed gate passed when it last spoke: an approval is of evidence."""
    armed = {gate.name for gate in read_plan(rollout.plan).gates if not gate.dry_run} | {Freshness().name}
    failing = [
        f"{row.gate} is {row.verdict}"
        for row in rollouts.last_verdicts(session, rollout.id).values()
        if row.gate in armed and row.verdict != Verdict.PASS
    ]
    if failing or rollout.blind_since is not None:
        raise NotAwaiting("approve", ", ".join(failing) or "blind", ["every gate passes"])


def _check_harmless(session: Session, rollout: Rollout, plan: Plan, now: datetime) -> None:
    """Raise NotAwaiting when an owner's advance would be into harm, or into the dark."""
    version = versions.get_version(session, rollout.strategy_name, rollout.version)
    since = rollout.last_tick_at or rollout.started_at
    if rollout.blind_since is not None or abs(now - since) > plan.late_candles * timeframe_delta(version.timeframe):
        raise NotAwaiting("advance", f"without sight since {since:%Y-%m-%d %H:%M} UTC", ["a tick sees evidence again"])
    findings = judge(session, rollout, plan, Feed({}), now)
    worst = min((f for f in findings if f.armed), key=lambda finding: SEVERITY[finding.verdict])
    if worst.verdict in (Verdict.BREACH, Verdict.FAIL, Verdict.BLIND):
        raise NotAwaiting("advance", f"in {worst.verdict}: {worst.gate}: {worst.reason}", ["no gate breaks"])


def _set(
    session: Session,
    rollout: Rollout,
    action: str,
    changes: dict[str, Any],
    *,
    actor: Actor,
    now: datetime,
    reason: str,
    share: int | None = None,
) -> Rollout:
    """Set *changes* of the rollout and, if it is given, the canary's *share* of users in basis points."""
    before = standing(session, rollout.strategy_name)
    if share is not None:
        rollouts.set_canary_share(session, rollout.strategy_name, share)
    rollouts.change_rollout(session, rollout, **changes)
    audit.record(
        session,
        actor,
        action,
        strategy_name=rollout.strategy_name,
        version=rollout.version,
        before=before,
        after=standing(session, rollout.strategy_name),
        reason=reason,
        now=now,
        rollout_id=rollout.id,
        evidence=rollouts.verdict_ids(session, rollout.id),
    )
    return rollout
