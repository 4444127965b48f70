"""What else holds the next stage of a rollout: open positions without a manager that decides or with too much risk, and
a race in which its version has lately fallen behind.

Nothing here is read before a rollback.
"""

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

from sqlmodel import Session

from strategy_core.domain.alerts import few_of
from strategy_core.domain.errors import InvalidPlan, reason_of
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan, load_plan
from strategy_core.services.evidence import Feed
from strategy_core.services.risk import read_open_risk
from strategy_core.store import alerts, decisions, positions, races, rollouts, versions
from strategy_core.store.engine import is_disconnected
from strategy_core.store.tables import Rollout, StrategyVersion

ORPHANS = "orphans"  # topic of incidents


def find_orphans(
    session: Session,
    first_of_last: Callable[[str], datetime | None],
    *,
    candles: int,
    strategy_name: str | None = None,
) -> dict[str, str]:
    """Return by strategy a line on positions whose manager is retired, or has missed the last *candles* candles.

    Args:
        first_of_last: the open time of the first of the last *candles* closed candles of a symbol. None: not known.
        strategy_name: only this strategy.
    """
    managed = positions.managed_symbols(session, strategy_name)
    found: dict[str, list[str]] = {}
    for (name, manager), counts in managed.items():
        version, total = versions.get_version(session, name, manager), sum(counts.values())
        if version.status == Status.RETIRED:
            why = f"{manager} is retired"
        elif silent := [symbol for symbol in counts if _is_silent(session, first_of_last, version, symbol)]:
            why = f"{manager} has not decided on {few_of(silent)} for {candles} candles"
            total = sum(counts[symbol] for symbol in silent)
        else:
            continue
        found.setdefault(name, []).append(f"{total} open positions of {name} have no manager that decides: {why}")
    return {name: "; ".join(lines) for name, lines in found.items()}


def _is_silent(
    session: Session, first_of_last: Callable[[str], datetime | None], version: StrategyVersion, symbol: str
) -> bool:
    first = first_of_last(symbol)
    if first is None or first < max(version.created_at, version.retired_at or version.created_at):
        return False
    newest = decisions.newest_answered(session, version.strategy_name, version.version, symbol)
    return newest is None or newest < first


def positions_problem(session: Session, rollout: Rollout, plan: Plan, feed: Feed) -> str:
    """Return why open positions or a race hold the next stage, or an empty text. A failure holds it too.

    Orphans are found on the candles that are due in this tick, and by the open incident of the drain, which knows the
    other symbols too.
    """
    try:
        with session.begin_nested():
            return _problem(session, rollout, plan, feed)
    except Exception as error:
        if is_disconnected(error):
            raise  # the whole tick is retried
        return f"the open positions cannot be read: {reason_of(error)}"


def _problem(session: Session, rollout: Rollout, plan: Plan, feed: Feed) -> str:
    name = rollout.strategy_name
    if held := _held_by_race(session, rollout):
        return held
    lines = find_orphans(session, feed.due.get, candles=plan.late_candles + 1, strategy_name=name)
    if name in lines:
        return lines[name]
    if any(each.cause == f"{ORPHANS} {name}" for each in alerts.open_incidents(session, ORPHANS)):
        return f"open positions of {name} had no manager that decides a short while ago"
    if plan.open_risk_percent is None:
        return ""
    found = read_open_risk(session, name, rollout.version)
    return found.problem(plan.open_risk_percent, plan.stages[rollout.stage_index].percent)


def _held_by_race(session: Session, rollout: Rollout) -> str:
    """Return why the open race of the strategy holds the rollout. It is ruled on every hour, by `race_tick`."""
    found = races.find_open_race(session, rollout.strategy_name)
    if found is None or not found.ruling.get("hold") or found.ruling["version"] != rollout.version:
        return ""
    return str(found.ruling["reason"])


def find_exceeded(session: Session) -> dict[str, str]:
    """Return by strategy a line on a canary with more open risk than its plan allows."""
    found = {}
    for rollout in rollouts.open_rollouts(session):
        with suppress(InvalidPlan):  # its ticks say so
            plan = load_plan(rollout.plan)
            if plan.open_risk_percent is None or rollout.promoted_at is not None:
                continue
            held = read_open_risk(session, rollout.strategy_name, rollout.version)
            if line := held.problem(plan.open_risk_percent, plan.stages[rollout.stage_index].percent):
                found[rollout.strategy_name] = f"{rollout.strategy_name} {rollout.version}: {line}"
    return found
