"""Move rollouts: the tick on its schedule, and what an owner starts, approves, decides, pauses and resumes."""

from prefect import flow

from flows.artifacts import show_tick
from flows.events import follow_up
from flows.form import form
from flows.parameters import (
    USUAL,
    AnyPlan,
    Choice,
    OverrideReason,
    Owner,
    Percent,
    Reason,
    Remark,
    Strategy,
    Version,
    chosen_plan,
)
from flows.runtime import by_itself, one_line, opened, owned_by
from strategy_core.domain.errors import RolloutError
from strategy_core.services import approve, canary, ramp, start


@flow(flow_run_name="tick")
@one_line
def ramp_tick() -> str:
    """Read the evidence of every open rollout, and advance it, hold it or roll it back.

    It runs without candles too: then it is blind, which holds a rollout and, at the plan's limit, rolls it back. It
    fails at its end if some rollout could not be ruled on, or a setting is not valid; the others have been ruled on.
    """
    with opened(database_alone=True) as runtime:
        source = runtime.candles_if_any()
        ticked = ramp.tick(runtime.engine, source, now=runtime.now, actor=by_itself())
        follow_up(runtime, source)
        show_tick(runtime.engine, ticked, now=runtime.now)
    line = "; ".join([*(map(_told, ticked) if ticked else ["no rollout is open"]), *runtime.wrong])
    if runtime.wrong or any(each.error for each in ticked):
        raise RolloutError(line)
    return line


@form("start {strategy_name} {version}")
def start_canary(
    strategy_name: Strategy,
    version: Version,
    owner: Owner,
    reason: Remark = "",
    override_reason: OverrideReason = "",
    plan: AnyPlan = USUAL,
) -> str:
    """Freeze a plan and send its first stage's share of users to a shadow version.

    What it would take, and whom it would reach, is shown beforehand by `plan`. In a replay, which may play days between
    two runs, the plan's limits of what is late and blind are widened to that.

    Args:
        strategy_name: the strategy.
        version: the version in shadow that becomes the canary.
        owner: who starts it.
        reason: for the audit trail.
        override_reason: why a version that was rolled back may be ramped again; empty for any other.
        plan: the usual one; or stages, gates and limits of your own, which start from the usual ones.
    """
    with opened() as runtime:
        frozen = runtime.settings.in_replay(chosen_plan(plan))
        rollout = start.start_rollout(
            runtime.engine,
            strategy_name=strategy_name,
            version=version,
            plan=frozen,
            actor=owned_by(owner),
            now=runtime.now,
            reason=reason,
            override_reason=override_reason,
        )
    return f"{strategy_name} {version} serves {frozen.stages[0].percent:g} % against {rollout.control_version}"


@form("set the canary of {strategy_name} to {percent} %")
def set_canary_percent(strategy_name: Strategy, percent: Percent, owner: Owner, reason: Remark = "") -> str:
    """Set the canary's share of users by hand, where no rollout moves it or an owner has paused that.

    Args:
        strategy_name: the strategy.
        percent: of users, 0.00 to 100.00.
        owner: who sets it.
        reason: for the audit trail.
    """
    with opened() as runtime:
        config = canary.update_canary_percent(
            runtime.engine,
            strategy_name=strategy_name,
            percent=percent,
            actor=owned_by(owner),
            now=runtime.now,
            reason=reason,
            four_eyes=runtime.settings.four_eyes,
        )
    return f"{strategy_name} {config.version} serves {percent:g} %"


@form("approve {strategy_name}")
def approve_stage(strategy_name: Strategy, owner: Owner, reason: Remark = "") -> str:
    """Let a rollout enter the stage it waits for; the next tick takes the step, if every gate passes then too.

    Args:
        strategy_name: the strategy whose rollout waits.
        owner: who approves.
        reason: for the audit trail.
    """
    with opened() as runtime:
        rollout = approve.approve(
            runtime.engine,
            strategy_name=strategy_name,
            actor=owned_by(owner),
            now=runtime.now,
            reason=reason,
            four_eyes=runtime.settings.four_eyes,
        )
    return f"{strategy_name} {rollout.version} may enter stage {rollout.stage_index + 2}"


@form("decide {strategy_name}: {choice}")
def decide(strategy_name: Strategy, choice: Choice, owner: Owner, reason: Reason) -> str:
    """Answer a rollout whose stage ended without an answer of its gates.

    Args:
        strategy_name: the strategy whose rollout waits.
        choice: extend gives the stage its maximum time again, advance goes on without an answer, rollback takes users
            off the canary, at once and in every state.
        owner: who decides.
        reason: why; it stays in the audit trail.
    """
    with opened() as runtime:
        rollout = approve.decide_rollout(
            runtime.engine,
            strategy_name=strategy_name,
            choice=choice,
            actor=owned_by(owner),
            now=runtime.now,
            reason=reason,
            four_eyes=runtime.settings.four_eyes,
        )
    return f"{strategy_name} {rollout.version} is {rollout.state} at stage {rollout.stage_index + 1}"


@form("pause {strategy_name}")
def pause(strategy_name: Strategy, owner: Owner, reason: Remark = "") -> str:
    """Keep a rollout at its percent; every protection stays armed.

    Args:
        strategy_name: the strategy whose rollout runs.
        owner: who pauses it.
        reason: for the audit trail.
    """
    with opened() as runtime:
        rollout = approve.pause(
            runtime.engine, strategy_name=strategy_name, actor=owned_by(owner), now=runtime.now, reason=reason
        )
    return f"{strategy_name} {rollout.version} is {rollout.state}"


@form("resume {strategy_name}")
def resume(strategy_name: Strategy, owner: Owner, reason: Remark = "") -> str:
    """Let a paused rollout go on, at its stage's percent.

    Args:
        strategy_name: the strategy whose rollout is paused.
        owner: who resumes it.
        reason: for the audit trail.
    """
    with opened() as runtime:
        rollout = approve.resume(
            runtime.engine, strategy_name=strategy_name, actor=owned_by(owner), now=runtime.now, reason=reason
        )
    return f"{strategy_name} {rollout.version} is {rollout.state}"


def _told(ticked: ramp.Ticked) -> str:
    name = f"{ticked.strategy_name} {ticked.version}"
    if ticked.ruling is None:
        return f"{name} could not be ruled on: {ticked.error}"
    return f"{name}: {ticked.ruling.step.replace('_', ' ')}, {ticked.ruling.reason}"
