"""Flows of races: count their days each hour, start and close one."""

from prefect import flow

from flows.parameters import DEFAULT, AnyPlan, Candidates, Owner, Remark, StartRollouts, Strategy, chosen_plan
from flows.runtime import one_line, open_runtime, owned_by, owner_flow
from strategy_core.domain.audit import Command
from strategy_core.domain.errors import RolloutError
from strategy_core.services import races
from strategy_core.services.race_tick import tick_races


@flow(flow_run_name="race-tick")
@one_line
def race_tick() -> str:
    """Count the days of all races that have closed, nominate leaders, and end rollouts whose lead is gone."""
    with open_runtime() as runtime:
        done = tick_races(runtime.engine, now=runtime.now, in_replay=runtime.settings.in_replay)
    line = "; ".join(
        f"{each.strategy_name}: {each.days} days counted, {each.error or each.line or 'waits for its first day'}"
        for each in done
    )
    if any(each.error for each in done):
        raise RolloutError(line)
    return line or "no open race"


@owner_flow("start a race of {strategy_name}")
def start_race(
    strategy_name: Strategy,
    candidates: Candidates,
    owner: Owner,
    reason: Remark = "",
    plan: AnyPlan = DEFAULT,
    start_rollouts: StartRollouts = False,
) -> str:
    """Set versions in shadow against the active version. No user is moved by that.

    Args:
        strategy_name: Strategy name.
        candidates: Two or more versions in shadow.
        owner: Your name.
        reason: Stored in the audit trail.
        plan: Of the rollouts of the leaders: the standard plan, the name of one in the policy, or your own.
        start_rollouts: Start the rollout of a leader. Otherwise you get an alert and start it yourself.
    """
    with open_runtime() as runtime:
        begun = races.start_race(
            runtime.engine,
            Command(owned_by(owner), runtime.now, reason),
            strategy_name=strategy_name,
            candidates=candidates,
            plan=chosen_plan(runtime.engine, strategy_name, plan),
            starts=start_rollouts,
        )
    return f"{strategy_name}: {', '.join(candidates)} race against {begun.entries[0].version}"


@owner_flow("close the race of {strategy_name}")
def close_race(strategy_name: Strategy, owner: Owner, reason: Remark = "") -> str:
    """Close the race of a strategy. A rollout that it has started goes on.

    Args:
        strategy_name: Strategy name.
        owner: Your name.
        reason: Stored in the audit trail.
    """
    with open_runtime() as runtime:
        races.close_race(runtime.engine, Command(owned_by(owner), runtime.now, reason), strategy_name=strategy_name)
    return f"the race of {strategy_name} is closed"
