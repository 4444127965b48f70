"""Start a rollout: check what must hold before any user is touched, then send the first stage's share."""

from datetime import datetime

from sqlalchemy import Engine

from strategy_core.domain.audit import Actor
from strategy_core.domain.errors import Incomparable, RolloutOpen
from strategy_core.domain.history import measure
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan
from strategy_core.domain.ramp import State
from strategy_core.services.history import shadow_slots
from strategy_core.services.transition import exposed, make_canary, standing
from strategy_core.store import audit, rollouts, versions
from strategy_core.store.engine import transaction
from strategy_core.store.retry import tried_again
from strategy_core.store.rollout_tables import Rollout
from strategy_core.store.tables import StrategyVersion


@tried_again()
def start_rollout(
    engine: Engine,
    *,
    strategy_name: str,
    version: str,
    plan: Plan,
    actor: Actor,
    now: datetime,
    reason: str = "",
    override_reason: str = "",
    if_generation: int | None = None,
) -> Rollout:
    """Freeze *plan* and make *version*, from shadow or a canary moved by hand, the canary at its first stage.

    Raises:
        UnarmedPlan: no gate has a vote.
        UnknownStrategy, UnknownVersion, NoActiveVersion
        RolloutOpen: another rollout of the strategy has not ended.
        IllegalTransition: it is not in shadow, or another version is the canary.
        Quarantined: it was rolled back, and no override reason is given.
        Incomparable: it does not decide on the candles that the active version decides on.
        LostRace: the strategy is of another generation than *if_generation*, when that is given.
    """
    plan.check_armed()
    with transaction(engine) as session:
        strategy = versions.lock_strategy(session, strategy_name, if_generation)
        chosen = versions.get_version(session, strategy_name, version)
        open_one = rollouts.open_rollout(session, strategy_name)
        if open_one is not None:
            raise RolloutOpen(strategy_name, open_one.version, open_one.state, "let it end, or roll it back")
        before = standing(session, strategy_name)
        active = versions.active_version(session, strategy_name)
        check_comparable(chosen, active)
        first = plan.stages[0]
        if chosen.status == Status.CANARY:  # moved by hand so far: the plan takes it over
            rollouts.set_canary_share(session, strategy_name, first.percent_bp)
        else:
            share = first.percent_bp
            make_canary(session, strategy, chosen, percent_bp=share, override_reason=override_reason, now=now)
        rollout = Rollout(
            strategy_name=strategy_name,
            version=version,
            control_version=active.version,
            state=State.RUNNING.value,
            plan=plan.model_dump(mode="json"),
            started_at=now,
            stage_entered_at=now,
            stage_extended_at=now,
        )
        history = measure(*shadow_slots(session, chosen, active, now))
        rollouts.add_rollout(session, rollout, history.model_dump(mode="json"))
        why = override_reason or reason
        after = standing(session, strategy_name)
        audit.record(
            session,
            actor,
            "start_rollout",
            strategy_name=strategy_name,
            version=version,
            before=before,
            after=after,
            reason=why,
            now=now,
            rollout_id=rollout.id,
        )
        audit.raise_alert(
            session,
            "rollout.started",
            f"{strategy_name} {version} started at {first.percent:g} % against {active.version}",
            severity="info",
            strategy_name=strategy_name,
            dedupe_key=f"{rollout.id} started",
            facts={
                "version": version,
                "control_version": active.version,
                "exposed": exposed(session, strategy_name, version, after),
                "before": before,
                "after": after,
            },
            now=now,
            rollout_id=rollout.id,
        )
        return rollout


def check_comparable(version: StrategyVersion, active: StrategyVersion) -> None:
    """Raise Incomparable unless the two decide on some candles in common."""
    if version.timeframe != active.timeframe:
        difference = f"timeframe {version.timeframe} against {active.timeframe}"
        raise Incomparable(version.strategy_name, version.version, active.version, difference)
    if not set(version.symbols) & set(active.symbols):
        difference = f"symbols {', '.join(version.symbols)} against {', '.join(active.symbols)}"
        raise Incomparable(version.strategy_name, version.version, active.version, difference)
