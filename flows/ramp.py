"""Move rollouts: the scheduled tick and metric samples, and the owner's forms."""

from prefect import flow

from flows.artifacts import key_of, show_page, show_tick
from flows.events import follow_up
from flows.parameters import (
    DEFAULT,
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
from flows.runtime import one_line, open_runtime, owned_by, owner_flow, unattended
from strategy_core.domain.audit import Command
from strategy_core.domain.errors import RolloutError
from strategy_core.report.rollout import preview_markdown
from strategy_core.services import canary, rollouts, tick
from strategy_core.services.rollouts import show_plan
from strategy_core.services.sample_metrics import sample_metrics


@owner_flow("plan for {strategy_name} {version}")
def plan(strategy_name: Strategy, version: Version, plan: AnyPlan = DEFAULT) -> str:
    """Show what a rollout would take, and whom it would reach: users, slots and days by stage, and other canaries.

    Args:
        strategy_name: the strategy.
        version: the version in shadow that would become the canary.
        plan: the usual one; or stages, gates and limits of your own, which start from the usual ones.
    """
    with open_runtime() as runtime:
        frozen = chosen_plan(plan)
        found, reached = show_plan(
            runtime.engine, strategy_name=strategy_name, version=version, plan=frozen, now=runtime.now
        )
    shown = preview_markdown(found, reached)
    return found.verdict + show_page(key_of("plan", strategy_name, version), shown, f"{strategy_name} {version}")


@flow(flow_run_name="tick")
@one_line
def ramp_tick() -> str:
    """Read the evidence of every open rollout, and advance it, hold it or roll it back.

    It runs without candles too: then it is blind, which holds a rollout and, at the plan's limit, rolls it back. It
    fails at its end if some rollout could not be ruled on, or a setting is not valid; the others have been ruled on.
    """
    with open_runtime(database_alone=True) as runtime:
        source = runtime.candles_if_any()
        ticked = tick.tick(runtime.engine, source, now=runtime.now, actor=unattended())
        follow_up(runtime, source)
        show_tick(runtime.engine, ticked, now=runtime.now)
    line = "; ".join([*(map(_told, ticked) if ticked else ["no rollout is open"]), *runtime.wrong])
    if runtime.wrong or any(each.error for each in ticked):
        raise RolloutError(line)
    return line


@owner_flow("start {strategy_name} {version}")
def start_canary(
    strategy_name: Strategy,
    version: Version,
    owner: Owner,
    reason: Remark = "",
    override_reason: OverrideReason = "",
    plan: AnyPlan = DEFAULT,
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
    with open_runtime() as runtime:
        frozen = runtime.settings.in_replay(chosen_plan(plan))
        rollout = rollouts.start_rollout(
            runtime.engine,
            Command(owned_by(owner), runtime.now, reason, override_reason=override_reason),
            strategy_name=strategy_name,
            version=version,
            plan=frozen,
        )
    return f"{strategy_name} {version} serves {frozen.stages[0].percent:g} % against {rollout.control_version}"


@owner_flow("set the canary of {strategy_name} to {percent} %")
def set_canary_percent(strategy_name: Strategy, percent: Percent, owner: Owner, reason: Remark = "") -> str:
    """Set the canary's share of users by hand, where no rollout moves it or an owner has paused that.

    Args:
        strategy_name: the strategy.
        percent: of users, 0.00 to 100.00.
        owner: who sets it.
        reason: for the audit trail.
    """
    with open_runtime() as runtime:
        config = canary.update_canary_percent(
            runtime.engine,
            Command(owned_by(owner), runtime.now, reason, four_eyes=runtime.settings.four_eyes),
            strategy_name=strategy_name,
            percent=percent,
        )
    return f"{strategy_name} {config.version} serves {percent:g} %"


@owner_flow("approve {strategy_name}")
def approve_stage(strategy_name: Strategy, owner: Owner, reason: Remark = "") -> str:
    """Let a rollout enter the stage it waits for; the next tick takes the step, if every gate passes then too.

    Args:
        strategy_name: the strategy whose rollout waits.
        owner: who approves.
        reason: for the audit trail.
    """
    with open_runtime() as runtime:
        rollout = rollouts.approve(
            runtime.engine,
            Command(owned_by(owner), runtime.now, reason, four_eyes=runtime.settings.four_eyes),
            strategy_name=strategy_name,
        )
    return f"{strategy_name} {rollout.version} may enter stage {rollout.stage_index + 2}"


@owner_flow("decide {strategy_name}: {choice}")
def decide(strategy_name: Strategy, choice: Choice, owner: Owner, reason: Reason) -> str:
    """Answer a rollout whose stage ended without an answer of its gates.

    Args:
        strategy_name: the strategy whose rollout waits.
        choice: extend gives the stage its maximum time again, advance goes on without an answer, rollback takes users
            off the canary, at once and in every state.
        owner: who decides.
        reason: why; it stays in the audit trail.
    """
    with open_runtime() as runtime:
        rollout = rollouts.decide_rollout(
            runtime.engine,
            Command(owned_by(owner), runtime.now, reason, four_eyes=runtime.settings.four_eyes),
            strategy_name=strategy_name,
            choice=choice,
        )
    return f"{strategy_name} {rollout.version} is {rollout.state} at stage {rollout.stage_index + 1}"


@owner_flow("pause {strategy_name}")
def pause(strategy_name: Strategy, owner: Owner, reason: Remark = "") -> str:
    """Keep a rollout at its percent; every protection stays armed.

    Args:
        strategy_name: the strategy whose rollout runs.
        owner: who pauses it.
        reason: for the audit trail.
    """
    with open_runtime() as runtime:
        rollout = rollouts.pause(
            runtime.engine, Command(owned_by(owner), runtime.now, reason), strategy_name=strategy_name
        )
    return f"{strategy_name} {rollout.version} is {rollout.state}"


@owner_flow("resume {strategy_name}")
def resume(strategy_name: Strategy, owner: Owner, reason: Remark = "") -> str:
    """Let a paused rollout go on, at its stage's percent.

    Args:
        strategy_name: the strategy whose rollout is paused.
        owner: who resumes it.
        reason: for the audit trail.
    """
    with open_runtime() as runtime:
        rollout = rollouts.resume(
            runtime.engine, Command(owned_by(owner), runtime.now, reason), strategy_name=strategy_name
        )
    return f"{strategy_name} {rollout.version} is {rollout.state}"


def _told(ticked: tick.TickResult) -> str:
    name = f"{ticked.strategy_name} {ticked.version}"
    if ticked.ruling is None:
        return f"{name} could not be ruled on: {ticked.error}"
    return f"{name}: {ticked.ruling.step.replace('_', ' ')}, {ticked.ruling.reason}"


@flow(flow_run_name="sample metrics")
@one_line
def sample_run() -> str:
    """Take one sample for each metric gate of each open rollout.

    A flow of its own, so that no tick waits for an endpoint. It fails at its end if some metric gave no value; that
    gate is blind until one does.
    """
    with open_runtime() as runtime:
        sampled = sample_metrics(runtime.engine, runtime.settings.open_prometheus(), now=runtime.now)
    line = "; ".join(
        f"{each.strategy_name} {each.version} {each.gate}: {each.problem or f'{each.value:.6g}'}" for each in sampled
    )
    if any(each.problem for each in sampled):
        raise RolloutError(line)
    return line or "no open rollout has a metric gate"
