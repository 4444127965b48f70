"""What an owner says to a rollout: approve, decide, pause, resume. None of it can delay a rollback."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Engine
from sqlmodel import Session

from strategy_core.domain.audit import Actor
from strategy_core.domain.errors import NotAwaiting, UnknownRollout
from strategy_core.domain.plan import read_plan
from strategy_core.domain.ramp import Ruling, State, Step
from strategy_core.services.ramp import take
from strategy_core.services.transition import standing
from strategy_core.store import audit, rollouts, versions
from strategy_core.store.engine import transaction
from strategy_core.store.rollout_tables import Rollout


class Choice(StrEnum):
    EXTEND = "extend"  # the stage's maximum time starts anew
    ADVANCE = "advance"  # on to the next stage without an answer: the owner's own responsibility


def approve(engine: Engine, *, strategy_name: str, actor: Actor, now: datetime, reason: str = "") -> Rollout:
    """Let the rollout enter the stage it waits for; the next tick takes the step, if every gate passes then too.

    Raises:
        UnknownStrategy, UnknownRollout: nothing is open.
        NotAwaiting: it does not wait for an approval: not every gate has passed yet.
    """
    with transaction(engine) as session:
        rollout = _open(session, strategy_name, "approve", State.AWAITING_APPROVAL)
        following = rollout.stage_index + 1
        changes = {"state": State.RUNNING.value, "approved_stage": following}
        return _set(session, rollout, "approve", changes, actor=actor, now=now, reason=reason)


def decide_rollout(
    engine: Engine, *, strategy_name: str, choice: Choice, actor: Actor, now: datetime, reason: str
) -> Rollout:
    """Answer a rollout that waits for a decision: give the stage its maximum time again, or advance it.

    To roll back needs no waiting: see `services.rollback`.

    Raises:
        UnknownStrategy, UnknownRollout: nothing is open.
        NotAwaiting: it does not wait for a decision, or is blind now: then nobody knows what an advance would do.
    """
    with transaction(engine) as session:
        rollout = _open(session, strategy_name, "decide", State.AWAITING_DECISION)
        if choice is Choice.EXTEND:
            changes = {"state": State.RUNNING.value, "stage_extended_at": now}
            return _set(session, rollout, "extend", changes, actor=actor, now=now, reason=reason)
        if rollout.blind_since is not None:
            raise NotAwaiting("advance", "blind", ["there is evidence again"])
        plan = read_plan(rollout.plan)
        last = rollout.stage_index + 1 == len(plan.stages)
        ruling = Ruling(Step.PROMOTE if last else Step.ADVANCE, f"by {actor.name}: {reason}")
        take(session, rollout, plan, ruling, actor=actor, now=now)
        return rollout


def pause(engine: Engine, *, strategy_name: str, actor: Actor, now: datetime, reason: str = "") -> Rollout:
    """Keep the rollout at its percent; every protection stays armed."""
    with transaction(engine) as session:
        rollout = _open(session, strategy_name, "pause", State.RUNNING)
        return _set(session, rollout, "pause", {"state": State.PAUSED.value}, actor=actor, now=now, reason=reason)


def resume(engine: Engine, *, strategy_name: str, actor: Actor, now: datetime, reason: str = "") -> Rollout:
    """Let a paused rollout go on, at its stage's percent, whatever was set by hand meanwhile."""
    with transaction(engine) as session:
        rollout = _open(session, strategy_name, "resume", State.PAUSED)
        if rollout.promoted_at is None:
            stage = read_plan(rollout.plan).stages[rollout.stage_index]
            rollouts.set_canary_share(session, strategy_name, stage.percent_bp)
        return _set(session, rollout, "resume", {"state": State.RUNNING.value}, actor=actor, now=now, reason=reason)


def _open(session: Session, strategy_name: str, what: str, needed: State) -> Rollout:
    versions.lock_strategy(session, strategy_name)
    rollout = rollouts.open_rollout(session, strategy_name)
    if rollout is None:
        raise UnknownRollout(f"of {strategy_name!r} is open")
    if rollout.state != needed:
        raise NotAwaiting(what, rollout.state, [needed])
    return rollout


def _set(
    session: Session,
    rollout: Rollout,
    action: str,
    changes: dict[str, Any],
    *,
    actor: Actor,
    now: datetime,
    reason: str,
) -> Rollout:
    before = standing(session, rollout.strategy_name)
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
    )
    return rollout
