"""An owner moves a canary by hand: no plan, no gates, so only where no rollout runs."""

from datetime import datetime

from sqlalchemy import Engine
from sqlmodel import Session

from strategy_core.domain.audit import Actor
from strategy_core.domain.errors import IllegalTransition, NoCanary, RolloutOpen
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.ramp import State
from strategy_core.domain.routing import basis_points
from strategy_core.services.rollouts import check_second_owner
from strategy_core.services.transitions import make_canary, strategy_state
from strategy_core.store import audit, rollouts, versions
from strategy_core.store.engine import retry_transient, transaction
from strategy_core.store.tables import CanaryConfig, StrategyRow, StrategyVersion


@retry_transient()
def activate_canary(
    engine: Engine,
    *,
    strategy_name: str,
    version: str,
    rollout_percent: float,
    actor: Actor,
    now: datetime,
    reason: str = "",
    override_reason: str = "",
    if_generation: int | None = None,
) -> tuple[StrategyVersion, CanaryConfig]:
    """Send *rollout_percent* of users to a shadow version, outside any rollout.

    Raises:
        InvalidPercent: not within 0..100, or more than two decimals.
        NoActiveVersion: the other users would have no version.
        IllegalTransition: it is not in shadow, or another version is the canary.
        RolloutOpen: a rollout moves this strategy.
        Quarantined: it was rolled back, and no override reason is given.
        LostRace: the strategy is of another generation than *if_generation*, when that is given.
    """
    percent_bp = basis_points(rollout_percent)
    with transaction(engine) as session:
        strategy = versions.lock_strategy(session, strategy_name, if_generation)
        chosen = versions.get_version(session, strategy_name, version)
        canary = _begin(
            session, strategy, chosen, percent_bp, actor=actor, now=now, reason=reason, override_reason=override_reason
        )
        return chosen, canary


@retry_transient()
def update_canary_percent(
    engine: Engine,
    *,
    strategy_name: str,
    percent: float,
    actor: Actor,
    now: datetime,
    reason: str = "",
    version: str | None = None,
    if_generation: int | None = None,
    four_eyes: bool = False,
) -> CanaryConfig:
    """Set the canary's share of users by hand; while a rollout moves it, only when an owner has paused that.

    Args:
        version: the canary that is meant; whichever it is, unless given.

    Raises:
        InvalidPercent, UnknownStrategy, NoCanary, RolloutOpen, LostRace
        IllegalTransition: another version than *version* is the canary.
    """
    percent_bp = basis_points(percent)
    with transaction(engine) as session:
        versions.lock_strategy(session, strategy_name, if_generation)
        canary = versions.with_status(session, strategy_name, Status.CANARY)
        if canary is None:
            raise NoCanary(strategy_name)
        if version not in (None, canary.version):
            raise IllegalTransition(Status.SHADOW, Status.CANARY, [], f"{canary.version} is the canary")
        return _change(session, canary, percent_bp, actor=actor, now=now, reason=reason, four_eyes=four_eyes)


@retry_transient()
def set_share(
    engine: Engine,
    *,
    strategy_name: str,
    version: str,
    percent: float,
    actor: Actor,
    now: datetime,
    reason: str = "",
    override_reason: str = "",
    if_generation: int | None = None,
    four_eyes: bool = False,
) -> CanaryConfig:
    """Make it so that *version* serves *percent* of users: as a new canary, or as the canary that it is.

    Raises:
        whatever `activate_canary` and `update_canary_percent` raise.
    """
    percent_bp = basis_points(percent)
    with transaction(engine) as session:  # one: else whoever loses a race to a rollback would act on what is no more
        strategy = versions.lock_strategy(session, strategy_name, if_generation)
        chosen = versions.get_version(session, strategy_name, version)
        if chosen.status == Status.CANARY:
            return _change(session, chosen, percent_bp, actor=actor, now=now, reason=reason, four_eyes=four_eyes)
        return _begin(
            session, strategy, chosen, percent_bp, actor=actor, now=now, reason=reason, override_reason=override_reason
        )


def _begin(
    session: Session,
    strategy: StrategyRow,
    chosen: StrategyVersion,
    percent_bp: int,
    *,
    actor: Actor,
    now: datetime,
    reason: str,
    override_reason: str,
) -> CanaryConfig:
    rollout = rollouts.open_rollout(session, strategy.name)
    if rollout is not None:
        raise RolloutOpen(strategy.name, rollout.version, rollout.state, "let it end, or roll it back")
    before = strategy_state(session, strategy.name)
    config = make_canary(session, strategy, chosen, percent_bp=percent_bp, override_reason=override_reason, now=now)
    audit.record(
        session,
        actor,
        "activate_canary",
        strategy_name=strategy.name,
        version=chosen.version,
        before=before,
        after=strategy_state(session, strategy.name),
        reason=override_reason or reason,
        now=now,
    )
    return config


def _change(
    session: Session,
    canary: StrategyVersion,
    percent_bp: int,
    *,
    actor: Actor,
    now: datetime,
    reason: str,
    four_eyes: bool,
) -> CanaryConfig:
    rollout = rollouts.open_rollout(session, canary.strategy_name)
    if rollout is not None and rollout.state != State.PAUSED:
        raise RolloutOpen(canary.strategy_name, rollout.version, rollout.state, "pause it, then set the percent")
    if rollout is not None and percent_bp > rollouts.get_canary(session, canary.strategy_name).rollout_bp:
        check_second_owner(session, rollout, actor, four_eyes=four_eyes)  # else a pause would be a way around it
    before = strategy_state(session, canary.strategy_name)
    config = rollouts.set_canary_share(session, canary.strategy_name, percent_bp)
    audit.record(
        session,
        actor,
        "update_canary_percent",
        strategy_name=canary.strategy_name,
        version=canary.version,
        before=before,
        after=strategy_state(session, canary.strategy_name),
        reason=reason,
        now=now,
        rollout_id=rollout.id if rollout else None,
    )
    return config
