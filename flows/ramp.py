"""Flows that move rollouts: the scheduled tick and metric samples, and the owners' forms."""

from typing import Any

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
    Start,
    Strategy,
    Symbol,
    Version,
    chosen_plan,
)
from flows.runtime import one_line, open_runtime, owned_by, owner_flow, unattended
from strategy_core.domain.audit import Command
from strategy_core.domain.errors import RolloutError
from strategy_core.domain.parsing import owners_time
from strategy_core.report.owner import owner_report_page
from strategy_core.report.rollout import preview_markdown
from strategy_core.services import canary, rollouts, tick
from strategy_core.services.owner_reports import write_final_reports
from strategy_core.services.rollouts import show_plan
from strategy_core.services.sample_metrics import sample_metrics
from strategy_core.services.scheduled_starts import schedule_start, start_due

FINAL_REPORTS = 3  # at a tick


@owner_flow("plan for {strategy_name} {version}")
def plan(strategy_name: Strategy, version: Version, plan: AnyPlan = DEFAULT) -> str:
    """Preview a rollout: users, slots and days needed per stage, and overlaps with other canaries.

    Args:
        strategy_name: Strategy name.
        version: The shadow version that would become the canary.
        plan: The standard plan, the name of one in the strategy's policy, or your own stages, gates and limits.
    """
    with open_runtime() as runtime:
        frozen = chosen_plan(runtime.engine, strategy_name, plan)
        found, reached = show_plan(
            runtime.engine, strategy_name=strategy_name, version=version, plan=frozen, now=runtime.now
        )
    shown = preview_markdown(found, reached)
    return found.verdict + show_page(key_of("plan", strategy_name, version), shown, f"{strategy_name} {version}")


@flow(flow_run_name="tick")
@one_line
def ramp_tick() -> str:
    """Judge the evidence of every open rollout, and advance, hold or roll back each. Then start those that are due.

    Without candles a rollout is blind: it is held, and rolled back at its plan's blind limit. The run fails if a
    rollout could not be judged or a setting is invalid, after all other rollouts are judged.
    """
    with open_runtime(tolerate_bad_settings=True) as runtime:
        source = runtime.candles_if_any()
        quiet = runtime.settings.alert_pace.quiet
        ticked = tick.tick(runtime.engine, source, now=runtime.now, actor=unattended(), quiet=quiet)
        due = start_due(runtime.engine, now=runtime.now, in_replay=runtime.settings.in_replay)
        follow_up(runtime, source)
        show_tick(runtime.engine, ticked, now=runtime.now, settings=runtime.settings)
        # last, and few: it is slow, and what it leaves the next tick or the flow `reports` writes
        clock = runtime.settings.clock_check
        write_final_reports(runtime.engine, owner_report_page, now=runtime.now, clock=clock, most=FINAL_REPORTS)
    judged = map(_summary_line, ticked) if ticked else ["no rollout is open"]
    line = "; ".join([*judged, *(each.summary for each in due), *runtime.wrong])
    if runtime.wrong or any(each.error for each in ticked):
        raise RolloutError(line)
    return line


@flow(flow_run_name="sample metrics")
@one_line
def sample_run() -> str:
    """Take one sample for each metric gate of each open rollout.

    The run fails if a metric has no value. Its gate is blind until it has one.
    """
    with open_runtime() as runtime:
        sampled = sample_metrics(runtime.engine, runtime.settings.open_prometheus(), now=runtime.now)
    line = "; ".join(
        f"{each.strategy_name} {each.version} {each.gate}: {each.problem or f'{each.value:.6g}'}" for each in sampled
    )
    if any(each.problem for each in sampled):
        raise RolloutError(line)
    return line or "no open rollout has a metric gate"


@owner_flow("start {strategy_name} {version}")
def start_canary(
    strategy_name: Strategy,
    version: Version,
    owner: Owner,
    reason: Remark = "",
    override_reason: OverrideReason = "",
    plan: AnyPlan = DEFAULT,
    start_at: Start = "",
) -> str:
    """Start a rollout: the version becomes the canary, at the first stage of the plan.

    Use the deployment `plan` for a preview. In a replay the limits for late and missing evidence are widened, because
    days can pass between two runs.

    Args:
        strategy_name: Strategy name.
        version: The shadow version that becomes the canary.
        owner: Your name.
        reason: Stored in the audit trail.
        override_reason: Reason for using a quarantined version again, or for a start in a freeze. Or empty.
        plan: The standard plan, the name of one in the strategy's policy, or your own stages, gates and limits.
        start_at: Start it at this time: 2026-01-31 or 2026-01-31T12:00Z. Leave empty to start it now.
    """
    at = owners_time(start_at or None, "start_at")
    with open_runtime() as runtime:
        chosen = chosen_plan(runtime.engine, strategy_name, plan)
        command = Command(owned_by(owner), runtime.now, reason, override_reason=override_reason)
        asked: dict[str, Any] = {"strategy_name": strategy_name, "version": version, "plan": chosen}
        warnings = (
            rollouts.start_warning(runtime.engine, strategy_name=strategy_name, version=version, now=runtime.now),
            rollouts.overlap_warning(runtime.engine, strategy_name=strategy_name, plan=chosen),
        )
        if at is not None:
            scheduled = schedule_start(runtime.engine, command, **asked, start_at=at)
            return f"{strategy_name} {version} starts at {scheduled.start_at:%Y-%m-%d %H:%M} UTC"
        rollout = rollouts.start_rollout(runtime.engine, command, **asked, in_replay=runtime.settings.in_replay)
        serves = rollouts.served_share(runtime.engine, strategy_name)
    started = f"{strategy_name} {version} serves {serves} against {rollout.control_version}"
    return ". Warning: ".join([started, *filter(None, warnings)])


@owner_flow("set the canary of {strategy_name} to {percent} %")
def set_canary_percent(strategy_name: Strategy, percent: Percent, owner: Owner, reason: Remark = "") -> str:
    """Set the canary's percent by hand. Allowed without an open rollout, or while the rollout is paused.

    Args:
        strategy_name: Strategy name.
        percent: Percent of users, 0.00 to 100.00.
        owner: Your name.
        reason: Stored in the audit trail.
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
    """Approve the next stage of a rollout. The next tick enters it if the gates still pass.

    Args:
        strategy_name: Strategy name.
        owner: Your name.
        reason: Stored in the audit trail. The last stage, which serves all users, needs one.
    """
    with open_runtime() as runtime:
        rollout = rollouts.approve(
            runtime.engine,
            Command(owned_by(owner), runtime.now, reason, four_eyes=runtime.settings.four_eyes),
            strategy_name=strategy_name,
        )
    return f"{strategy_name} {rollout.version} may enter stage {rollout.stage_index + 2}"


@owner_flow("decide {strategy_name}: {choice}")
def decide(
    strategy_name: Strategy, choice: Choice, owner: Owner, reason: Reason, override_reason: OverrideReason = ""
) -> str:
    """Decide about a rollout whose stage ran out of time without a clear result.

    Args:
        strategy_name: Strategy name.
        choice: extend: restart the stage's time limit. advance: next stage. rollback: roll back now (accepted in every
            state).
        owner: Your name.
        reason: Stored in the audit trail.
        override_reason: Reason for advancing in a freeze or outside the release windows. Leave empty otherwise.
    """
    with open_runtime() as runtime:
        rollout = rollouts.decide_rollout(
            runtime.engine,
            Command(
                owned_by(owner),
                runtime.now,
                reason,
                override_reason=override_reason,
                four_eyes=runtime.settings.four_eyes,
            ),
            strategy_name=strategy_name,
            choice=choice,
        )
    return f"{strategy_name} {rollout.version} is {rollout.state} at stage {rollout.stage_index + 1}"


@owner_flow("pause {strategy_name}")
def pause(strategy_name: Strategy, owner: Owner, reason: Remark = "") -> str:
    """Pause a rollout at its current percent. Its gates can still roll it back.

    Args:
        strategy_name: Strategy name.
        owner: Your name.
        reason: Stored in the audit trail.
    """
    with open_runtime() as runtime:
        rollout = rollouts.pause(
            runtime.engine, Command(owned_by(owner), runtime.now, reason), strategy_name=strategy_name
        )
    return f"{strategy_name} {rollout.version} is {rollout.state}"


@owner_flow("resume {strategy_name}")
def resume(strategy_name: Strategy, owner: Owner, reason: Remark = "") -> str:
    """Resume a paused rollout, at the percent of its stage.

    Args:
        strategy_name: Strategy name.
        owner: Your name.
        reason: Stored in the audit trail.
    """
    with open_runtime() as runtime:
        rollout = rollouts.resume(
            runtime.engine, Command(owned_by(owner), runtime.now, reason), strategy_name=strategy_name
        )
    return f"{strategy_name} {rollout.version} is {rollout.state}"


@owner_flow("exclude {symbol} from {strategy_name}")
def exclude(strategy_name: Strategy, symbol: Symbol, owner: Owner, reason: Reason) -> str:
    """Take one symbol off the canary for the rest of the rollout: every user gets the active version on it.

    The rollout goes on with the other symbols, and is not promoted. The platform must route by symbol
    (ROLLOUT_ROUTES_BY_SYMBOL=1).

    Args:
        strategy_name: Strategy name.
        symbol: The symbol to exclude.
        owner: Your name.
        reason: Stored in the audit trail.
    """
    with open_runtime() as runtime:
        rollout = rollouts.exclude_symbol(
            runtime.engine,
            Command(owned_by(owner), runtime.now, reason),
            strategy_name=strategy_name,
            symbol=symbol,
            routes_by_symbol=runtime.settings.routes_by_symbol,
        )
    return f"{strategy_name} {rollout.version} no longer serves {symbol}"


def _summary_line(ticked: tick.TickResult) -> str:
    name = f"{ticked.strategy_name} {ticked.version}"
    if ticked.ruling is None:
        return f"{name} could not be judged: {ticked.error}"
    return f"{name}: {ticked.ruling.step.replace('_', ' ')}, {ticked.ruling.reason}"
