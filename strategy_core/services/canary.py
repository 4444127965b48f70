"""Make a version the canary or change its share by hand, outside a rollout or while one is paused."""

from sqlalchemy import Engine
from sqlmodel import Session

from strategy_core.domain.audit import Command
from strategy_core.domain.errors import IllegalTransition, NoCanary, RolloutOpen
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import load_plan
from strategy_core.domain.ramp import State
from strategy_core.domain.routing import basis_points
from strategy_core.services.canary_capital import release_large
from strategy_core.services.release_times import check_release
from strategy_core.services.rollouts import check_second_owner, policy_of
from strategy_core.services.transitions import make_canary, recorded_change, served_bp
from strategy_core.store import rollouts, versions
from strategy_core.store.engine import retry_transient, transaction
from strategy_core.store.tables import CanaryConfig, StrategyRow, StrategyVersion


@retry_transient()
def activate_canary(
    engine: Engine,
    command: Command,
    *,
    strategy_name: str,
    version: str,
    rollout_percent: float,
) -> tuple[StrategyVersion, CanaryConfig]:
    """Send *rollout_percent* of users to a shadow version, outside any rollout.

    Raises:
        InvalidPercent: not within 0..100, or more than two decimals.
        NoActiveVersion: no version would serve the other users.
        IllegalTransition: the version is not in shadow, or another version is the canary.
        RolloutOpen: the strategy has an open rollout.
        Quarantined: the version was rolled back, and the command has no override reason.
        ReleaseClosed: the strategy is frozen, and the command has no override reason.
        PlanNotAllowed: the strategy's policy demands a plan, and the command has no override reason.
        LostRace: the command's generation is outdated.
    """
    percent_bp = basis_points(rollout_percent)
    with transaction(engine) as session:
        strategy = versions.lock_strategy(session, strategy_name, command.if_generation)
        chosen = versions.get_version(session, strategy_name, version)
        return chosen, _add_canary(session, command, strategy, chosen, percent_bp)


@retry_transient()
def update_canary_percent(
    engine: Engine,
    command: Command,
    *,
    strategy_name: str,
    percent: float,
    version: str | None = None,
) -> CanaryConfig:
    """Set the canary's share of users by hand. If a rollout is open, it must be paused.

    Args:
        version: the expected canary, by default any.

    Raises:
        InvalidPercent, UnknownStrategy, NoCanary, RolloutOpen, LostRace
        FourEyes: the actor started the paused rollout and would raise the share.
        ReleaseClosed: to raise the share in a freeze, or outside the plan's release windows.
        IllegalTransition: another version than *version* is the canary.
    """
    percent_bp = basis_points(percent)
    with transaction(engine) as session:
        versions.lock_strategy(session, strategy_name, command.if_generation)
        canary = versions.with_status(session, strategy_name, Status.CANARY)
        if canary is None:
            raise NoCanary(strategy_name)
        if version not in (None, canary.version):
            raise IllegalTransition(Status.SHADOW, Status.CANARY, [], f"{canary.version} is the canary")
        return _change_share(session, command, canary, percent_bp)


@retry_transient()
def set_share(
    engine: Engine,
    command: Command,
    *,
    strategy_name: str,
    version: str,
    percent: float,
) -> CanaryConfig:
    """Make *version* serve *percent* of users, as a new canary or as the present one.

    Raises:
        The errors of `activate_canary` and `update_canary_percent`.
    """
    percent_bp = basis_points(percent)
    with transaction(engine) as session:  # one transaction: a rollback must not come between the check and the change
        strategy = versions.lock_strategy(session, strategy_name, command.if_generation)
        chosen = versions.get_version(session, strategy_name, version)
        if chosen.status == Status.CANARY:
            return _change_share(session, command, chosen, percent_bp)
        return _add_canary(session, command, strategy, chosen, percent_bp)


def _add_canary(
    session: Session, command: Command, strategy: StrategyRow, chosen: StrategyVersion, percent_bp: int
) -> CanaryConfig:
    rollout = rollouts.open_rollout(session, strategy.name)
    if rollout is not None:
        raise RolloutOpen(strategy.name, rollout.version, rollout.state, "let it end, or roll it back")
    if percent_bp > 0:
        check_release(session, command, "send users to a canary of", strategy.name)
    if not command.override_reason.strip():
        policy_of(session, strategy.name).check(strategy.name, None)
    with recorded_change(session, command, "activate_canary", strategy.name, chosen.version):
        release_large(session, strategy.name, command.now)  # they waited for an earlier rollout
        return make_canary(session, command, strategy, chosen, percent_bp=percent_bp)


def _change_share(session: Session, command: Command, canary: StrategyVersion, percent_bp: int) -> CanaryConfig:
    name = canary.strategy_name
    rollout = rollouts.open_rollout(session, name)
    if rollout is not None and rollout.state != State.PAUSED:
        raise RolloutOpen(name, rollout.version, rollout.state, "pause it, then set the percent")
    if percent_bp > rollouts.get_canary(session, name).rollout_bp:
        windows = () if rollout is None else load_plan(rollout.plan).advance_windows
        check_release(session, command, "raise the share of the canary of", name, windows)
        if rollout is not None:
            check_second_owner(session, rollout, command)  # else a pause would bypass four eyes
        percent_bp = served_bp(session, name, percent_bp)
    rollout_id = rollout.id if rollout else None
    with recorded_change(
        session,
        command,
        "update_canary_percent",
        name,
        canary.version,
        rollout_id=rollout_id,
    ):
        return rollouts.set_canary_share(session, name, percent_bp)
