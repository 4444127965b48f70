"""An owner moves a canary by hand: no plan, no gates, so only where no rollout runs."""

from datetime import datetime
from typing import Any

from sqlalchemy import Engine

from strategy_core.domain.audit import Actor
from strategy_core.domain.errors import IllegalTransition, NoCanary, RolloutOpen
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.ramp import State
from strategy_core.domain.routing import basis_points
from strategy_core.services.four_eyes import check_second_owner
from strategy_core.services.transition import make_canary, standing
from strategy_core.store import audit, rollouts, versions
from strategy_core.store.engine import reading, transaction
from strategy_core.store.tables import CanaryConfig, StrategyVersion


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
        rollout = rollouts.open_rollout(session, strategy_name)
        if rollout is not None:
            raise RolloutOpen(strategy_name, rollout.version, rollout.state, "let it end, or roll it back")
        before = standing(session, strategy_name)
        canary = make_canary(session, strategy, chosen, percent_bp=percent_bp, override_reason=override_reason, now=now)
        audit.record(
            session,
            actor,
            "activate_canary",
            strategy_name=strategy_name,
            version=version,
            before=before,
            after=standing(session, strategy_name),
            reason=override_reason or reason,
            now=now,
        )
        return chosen, canary


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
        rollout = rollouts.open_rollout(session, strategy_name)
        if rollout is not None and rollout.state != State.PAUSED:
            raise RolloutOpen(strategy_name, rollout.version, rollout.state, "pause it, then set the percent")
        if rollout is not None and percent_bp > rollouts.get_canary(session, strategy_name).rollout_bp:
            check_second_owner(session, rollout, actor, four_eyes=four_eyes)  # else a pause would be a way around it
        before = standing(session, strategy_name)
        config = rollouts.set_canary_share(session, strategy_name, percent_bp)
        audit.record(
            session,
            actor,
            "update_canary_percent",
            strategy_name=strategy_name,
            version=canary.version,
            before=before,
            after=standing(session, strategy_name),
            reason=reason,
            now=now,
            rollout_id=rollout.id if rollout else None,
        )
        return config


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
    with reading(engine) as session:
        status = versions.get_version(session, strategy_name, version).status
    wish: dict[str, Any] = {"strategy_name": strategy_name, "version": version, "actor": actor, "now": now}
    wish |= {"reason": reason, "if_generation": if_generation}
    if status == Status.CANARY:
        return update_canary_percent(engine, percent=percent, four_eyes=four_eyes, **wish)
    return activate_canary(engine, rollout_percent=percent, override_reason=override_reason, **wish)[1]
