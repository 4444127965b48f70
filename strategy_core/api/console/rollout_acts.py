"""What an owner does to a rollout. Each act first shows what it will do to how many users."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Annotated, Literal
from uuid import UUID

from fastapi import Path, Response
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as NoConnection

from strategy_core.api.console.page import FormField, OwnerAct, Visit, Visited, console_router, protecting_router
from strategy_core.api.console.session import HOME, SentForm
from strategy_core.api.console.words import percent, plural
from strategy_core.api.schemas import RolloutId, StrategyName
from strategy_core.domain.audit import Actor, Command
from strategy_core.domain.errors import AlreadyRolledBack, InvalidName, NotAwaiting
from strategy_core.domain.gates.base import format_duration
from strategy_core.domain.plan import load_plan
from strategy_core.domain.ramp import State
from strategy_core.services import alerts, rollouts
from strategy_core.services.release_times import closed_at
from strategy_core.services.rollback import roll_back
from strategy_core.services.rollout_page import OwnerChoice, read_open_alerts
from strategy_core.services.rollout_reach import RolloutReach, read_reach
from strategy_core.services.rollouts import Choice
from strategy_core.store.tables import Rollout

Strategy = Annotated[StrategyName, Path(description="Name of the strategy.")]

BUTTONS = {
    OwnerChoice.APPROVE: "Approve the next stage",
    OwnerChoice.EXTEND: "Give it more time",
    OwnerChoice.ADVANCE: "Advance anyway",
    OwnerChoice.RESUME: "Resume",
    OwnerChoice.PAUSE: "Pause",
    OwnerChoice.EXCLUDE: "Exclude a symbol",
    OwnerChoice.ACKNOWLEDGE: "Acknowledge alerts",
    OwnerChoice.ROLL_BACK: "Roll back",
}
_ALERT = "alert-"  # start of the names of the fields for alerts
_MOST_EXCLUSIONS = 5_000  # counted before a rollback is confirmed. With more, the number of users is about right

protecting, router = protecting_router(), console_router()


def rollout_path(strategy_name: str, rollout_id: UUID) -> str:
    """Return the path of the page on a rollout."""
    return f"{HOME}/strategies/{strategy_name}/rollouts/{rollout_id}"


_PATH = "/strategies/{strategy_name}/rollouts/{rollout_id}"


@protecting.get(f"{_PATH}/rollback")
@protecting.post(f"{_PATH}/rollback")
def ask_rollback(visit: Visited, strategy_name: Strategy, rollout_id: RolloutId) -> Response:
    """Take users off the version, in every state and generation of the strategy.

    A version that the rollout has promoted is undone by its name: the wish is the same.
    """

    def describe() -> OwnerAct:
        visit.principal.check(strategy_name)
        with suppress(DBAPIError, NoConnection):
            reach = read_reach(visit.engine, strategy_name, rollout_id, now=visit.now, most_exclusions=_MOST_EXCLUSIONS)
            return _describe_rollback(reach)
        unknown = "The database cannot be read now. Users return to the version that was active before."
        return OwnerAct(f"Roll back {strategy_name}", [unknown], "Roll back now", reason="required", dangerous=True)

    def perform(_form: SentForm) -> str:
        reason = visit.reason(required=True)

        def run(actor: Actor) -> str:
            command = Command(actor, visit.now, reason)
            try:
                return roll_back(visit.engine, command, strategy_name=strategy_name, rollout_id=rollout_id)
            except NotAwaiting as ended:
                if ended.state != State.COMPLETED:
                    raise
            reach = read_reach(visit.engine, strategy_name, rollout_id, now=visit.now, most_exclusions=0)
            version = reach.rollout.version
            return roll_back(visit.engine, command, strategy_name=strategy_name, version=version)

        try:
            version = visit.rolls_back(strategy_name, run)
        except AlreadyRolledBack as done:
            return str(done)
        return f"{strategy_name} {version} is rolled back. No user gets it from the next signal on"

    return visit.act(describe, perform, back=rollout_path(strategy_name, rollout_id))


@router.get(f"{_PATH}/acknowledge")
@router.post(f"{_PATH}/acknowledge")
def ask_acknowledge(visit: Visited, strategy_name: Strategy, rollout_id: RolloutId) -> Response:
    """Acknowledge open alerts of the rollout."""

    def describe() -> OwnerAct:
        visit.reads(strategy_name)
        open_ones = read_open_alerts(visit.engine, strategy_name, rollout_id)
        fields = [
            FormField(f"{_ALERT}{each.id}", f"{each.severity}: {each.text}", kind="checkbox", value="on")
            for each in open_ones
        ]
        effects = ["The chosen alerts are not sent again. No user gets another version."]
        if not fields:
            effects = ["No alert of this rollout is open."]
        return OwnerAct(f"Acknowledge alerts of {strategy_name}", effects, "Acknowledge", fields=fields)

    def perform(form: SentForm) -> str:
        command = Command(visit.acknowledges(strategy_name), visit.now, visit.reason())
        chosen = [name.removeprefix(_ALERT) for name in form if name.startswith(_ALERT)]
        known = {str(each.id): each.id for each in read_open_alerts(visit.engine, strategy_name, rollout_id)}
        ids = [found for each in chosen if (found := known.get(each)) is not None]
        if not chosen:
            raise InvalidName("alert", "none", "one alert or more")
        alerts.acknowledge(visit.engine, command, ids)
        return f"{plural(len(chosen), 'alert')} acknowledged"

    return visit.act(describe, perform, back=rollout_path(strategy_name, rollout_id))


@router.get(f"{_PATH}/{{choice}}")
@router.post(f"{_PATH}/{{choice}}")
def ask_change(visit: Visited, strategy_name: Strategy, rollout_id: RolloutId, choice: OwnerChoice) -> Response:
    """Approve, extend, advance, pause or resume a rollout, or exclude a symbol."""
    description, change = _ACTS[choice]

    def describe() -> OwnerAct:
        visit.reads(strategy_name)
        reach = read_reach(visit.engine, strategy_name, rollout_id, now=visit.now)
        allowed = _POSSIBLE.get(choice)
        is_first = visit.request.method == "GET"  # later the page keeps what was typed beside the refusal
        if is_first and allowed is not None and reach.rollout.state not in allowed:
            state = _state(reach.rollout)
            raise NotAwaiting(choice.value, state, [each.value.replace("_", " ") for each in allowed])
        act = description(reach)
        if choice is not OwnerChoice.APPROVE:
            return act
        closed = closed_at(visit.engine, strategy_name, visit.now, reach.plan.advance_windows)
        return replace(act, notes=[f"The step waits: {closed}."]) if closed else act

    def perform(_form: SentForm) -> str:
        reason = visit.reason(required=choice in _NEED_REASON)
        command = Command(
            visit.changes(strategy_name),
            visit.now,
            reason,
            if_generation=visit.generation,
            four_eyes=visit.backend.settings.four_eyes,
        )
        return change(visit, command, strategy_name, rollout_id)

    return visit.act(describe, perform, back=rollout_path(strategy_name, rollout_id))


_POSSIBLE = {
    OwnerChoice.APPROVE: (State.AWAITING_APPROVAL,),
    OwnerChoice.EXTEND: (State.AWAITING_DECISION,),
    OwnerChoice.ADVANCE: (State.AWAITING_DECISION,),
    OwnerChoice.PAUSE: (State.RUNNING, State.AWAITING_APPROVAL, State.AWAITING_DECISION),
    OwnerChoice.RESUME: (State.PAUSED,),
}
_NEED_REASON = (OwnerChoice.EXTEND, OwnerChoice.ADVANCE, OwnerChoice.EXCLUDE)


def _describe_rollback(reach: RolloutReach) -> OwnerAct:
    rollout = reach.rollout
    name, version = rollout.strategy_name, rollout.version
    title = f"Roll back {name} {version}"
    if reach.previous is None:
        effects = [f"No user gets {version} now: the rollout is {_state(rollout)}. This changes nothing."]
        return OwnerAct(title, effects, "Roll back", reason="required", dangerous=True)
    effects = [
        f"{_people(reach, reach.percent)} return to {reach.previous} at their next signal.",
        "Open trades are not closed by this.",
        f"Version {version} is quarantined: it serves users again only with an override reason.",
    ]
    return OwnerAct(title, effects, "Roll back now", reason="required", dangerous=True)


def _describe_approve(reach: RolloutReach) -> OwnerAct:
    rollout, following = reach.rollout, reach.following
    title = f"Approve {rollout.strategy_name} {rollout.version}"
    if following is None:
        return OwnerAct(title, ["The last stage needs no approval."], "Approve", generation=reach.generation)
    effects = [
        f"At the next tick the share of users rises from {percent(reach.percent)} to {percent(following)}, if every "
        "gate still passes and no freeze or release window holds it.",
        f"{_more(reach, following)} get {rollout.version} at their next signal.",
        *_cap_lines(reach),
        "If a tick finds a gate that does not pass, your approval lapses and is asked for again.",
    ]
    reason: Literal["required", "optional"] = "required" if following == 100 else "optional"
    act = f"{title} for {percent(following)}"
    return OwnerAct(act, effects, "Approve", reason=reason, generation=reach.generation)


def _describe_advance(reach: RolloutReach) -> OwnerAct:
    rollout, following = reach.rollout, reach.following
    version = rollout.version
    if following is None:
        effects = [
            f"{version} becomes the active version now, without an answer from the gates.",
            f"{_people(reach, 100.0)} get it at their next signal.",
            f"{rollout.control_version} stays in shadow for {format_duration(reach.plan.bake)}, ready to come back.",
        ]
        title = f"Promote {rollout.strategy_name} {version}"
    else:
        effects = [
            f"The share of users rises from {percent(reach.percent)} to {percent(following)} now, without an answer "
            "from the gates.",
            f"{_more(reach, following)} get {version} at their next signal.",
            *_cap_lines(reach),
            "Every gate keeps protecting them.",
        ]
        title = f"Advance {rollout.strategy_name} {version} to {percent(following)}"
    return OwnerAct(title, effects, "Advance", reason="required", generation=reach.generation)


def _describe_extend(reach: RolloutReach) -> OwnerAct:
    rollout = reach.rollout
    effects = [
        f"The stage at {percent(reach.percent)} gets {format_duration(reach.plan.maximum_stage_time)} more, from now.",
        f"{_people(reach, reach.percent)} stay on {rollout.version}. No user changes.",
    ]
    title = f"Give {rollout.strategy_name} {rollout.version} more time"
    return OwnerAct(title, effects, "Extend", reason="required", generation=reach.generation)


def _describe_pause(reach: RolloutReach) -> OwnerAct:
    rollout = reach.rollout
    effects = [
        f"{_people(reach, reach.percent)} stay on {rollout.version} until you resume. No user changes.",
        "Every gate keeps protecting them: proven harm still rolls it back.",
    ]
    if rollout.approved_stage is not None and rollout.approved_stage > rollout.stage_index:
        effects.append("The approval of the next stage is dropped.")
    title = f"Pause {rollout.strategy_name} {rollout.version}"
    return OwnerAct(title, effects, "Pause", generation=reach.generation)


def _describe_resume(reach: RolloutReach) -> OwnerAct:
    rollout, stage = reach.rollout, reach.plan.stages[reach.rollout.stage_index]
    title = f"Resume {rollout.strategy_name} {rollout.version}"
    if rollout.promoted_at is not None or rollout.blind_since is not None or stage.percent == reach.percent:
        effects = [f"{_people(reach, reach.percent)} stay on {rollout.version}. No user changes."]
    else:
        effects = [f"The share of users goes from {percent(reach.percent)} to {percent(stage.percent)}, its stage's."]
    effects.append(f"The stage's minimum time of {format_duration(stage.minimum_time)} starts again.")
    return OwnerAct(title, effects, "Resume", generation=reach.generation)


def _describe_exclude(reach: RolloutReach) -> OwnerAct:
    rollout = reach.rollout
    symbol = FormField("symbol", "Symbol", kind="choice", options=[(each, each) for each in reach.serves])
    effects = [
        f"{_people(reach, reach.percent)} get {reach.active} on this symbol from their next signal on.",
        "It stays so for the rest of the rollout, which goes on with the other symbols and is not promoted.",
    ]
    title = f"Exclude a symbol from {rollout.strategy_name} {rollout.version}"
    return OwnerAct(title, effects, "Exclude", reason="required", fields=[symbol], generation=reach.generation)


def _approve(visit: Visit, command: Command, name: str, rollout_id: UUID) -> str:
    found = rollouts.approve(visit.engine, command, strategy_name=name, rollout_id=rollout_id)
    plan = load_plan(found.plan)
    closed = closed_at(visit.engine, name, visit.now, plan.advance_windows)
    then = f"The step waits: {closed}" if closed else "The next tick takes the step if every gate still passes"
    return f"{name} {found.version} is approved for {percent(plan.stages[found.stage_index + 1].percent)}. {then}"


def _extend(visit: Visit, command: Command, name: str, rollout_id: UUID) -> str:
    found = rollouts.decide_rollout(
        visit.engine, command, strategy_name=name, rollout_id=rollout_id, choice=Choice.EXTEND
    )
    return f"{name} {found.version} has more time at its stage"


def _advance(visit: Visit, command: Command, name: str, rollout_id: UUID) -> str:
    found = rollouts.decide_rollout(
        visit.engine, command, strategy_name=name, rollout_id=rollout_id, choice=Choice.ADVANCE
    )
    if found.promoted_at is not None:
        return f"{name} {found.version} is the active version"
    return f"{name} {found.version} serves {percent(load_plan(found.plan).stages[found.stage_index].percent)}"


def _pause(visit: Visit, command: Command, name: str, rollout_id: UUID) -> str:
    found = rollouts.pause(visit.engine, command, strategy_name=name, rollout_id=rollout_id)
    return f"{name} {found.version} is paused"


def _resume(visit: Visit, command: Command, name: str, rollout_id: UUID) -> str:
    found = rollouts.resume(visit.engine, command, strategy_name=name, rollout_id=rollout_id)
    return f"{name} {found.version} is running again"


def _exclude(visit: Visit, command: Command, name: str, rollout_id: UUID) -> str:
    symbol = visit.form.get("symbol", "")
    found = rollouts.exclude_symbol(
        visit.engine,
        command,
        strategy_name=name,
        rollout_id=rollout_id,
        symbol=symbol,
        routes_by_symbol=visit.backend.settings.routes_by_symbol,
    )
    return f"{name} {found.version} no longer serves {symbol}"


_Description = Callable[[RolloutReach], OwnerAct]
_Change = Callable[[Visit, Command, str, UUID], str]
_ACTS: dict[OwnerChoice, tuple[_Description, _Change]] = {
    OwnerChoice.APPROVE: (_describe_approve, _approve),
    OwnerChoice.EXTEND: (_describe_extend, _extend),
    OwnerChoice.ADVANCE: (_describe_advance, _advance),
    OwnerChoice.PAUSE: (_describe_pause, _pause),
    OwnerChoice.RESUME: (_describe_resume, _resume),
    OwnerChoice.EXCLUDE: (_describe_exclude, _exclude),
}


def _cap_lines(reach: RolloutReach) -> list[str]:
    """Return what may make the users of the next stage fewer. Its cap is computed when it is entered."""
    stage = reach.plan.stages[reach.rollout.stage_index + 1]
    if stage.capital_percent is None:
        return []
    return [f"They may be fewer, so that they hold at most {percent(stage.capital_percent)} of all capital."]


def _people(reach: RolloutReach, share: float) -> str:
    """Return the users of a share as the start of a sentence."""
    users, everyone = reach.users(share), reach.everyone
    if users is None or everyone is None:
        return "All users" if share == 100 else f"{percent(share)} of users"
    if users == everyone:
        return f"All {plural(users, 'user')}"
    about = "" if reach.is_exact else "About "
    return f"{about}{plural(users, 'user')} of {everyone:,}"


def _more(reach: RolloutReach, share: float) -> str:
    """Return the users who are added, as the start of a sentence."""
    now, then = reach.users(reach.percent), reach.users(share)
    if now is None or then is None:
        return f"{percent(share - reach.percent)} more of the users"
    return f"{plural(max(0, then - now), 'more user', 'more users')}"


def _state(rollout: Rollout) -> str:
    return rollout.state.replace("_", " ")
