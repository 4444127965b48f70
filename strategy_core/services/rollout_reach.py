"""The users that an act on a rollout reaches. No evidence is read, so that a rollback can be confirmed at any time."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Engine
from sqlmodel import Session

from strategy_core.domain.errors import InvalidPlan, UnknownRollout
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan, load_plan
from strategy_core.domain.ramp import ENDED, State
from strategy_core.domain.routing import BUCKETS, as_percent, basis_points
from strategy_core.domain.user_exclusions import ExclusionKind
from strategy_core.services.transitions import served_bp, strategy_state
from strategy_core.store import pagination, versions
from strategy_core.store.engine import reading
from strategy_core.store.served_users import ServedUsers, read_served_users
from strategy_core.store.tables import Rollout


@dataclass(frozen=True, slots=True)
class RolloutReach:
    """A rollout, and how many users get its version now and at each stage.

    Attributes:
        generation: of its strategy.
        active: the version that serves the users who do not get the canary.
        percent: share of users who get the rollout's version now.
        everyone: users of the directory. None if none is loaded.
        users_now: users who get the rollout's version now.
        by_stage: users by a stage's percent, with the present exclusions and holdout.
        is_exact: whether all exclusions of users were counted.
        serves: symbols on which the canary's users get it, and the gates judge it.
        excluded: symbols on which every user gets the active version.
        previous: the version that a rollback reinstates: the control, or what was active before.
    """

    rollout: Rollout
    generation: int
    active: str | None
    percent: float
    everyone: int | None
    users_now: int | None
    by_stage: Mapping[float, int]
    is_exact: bool
    serves: tuple[str, ...]
    excluded: tuple[str, ...]
    previous: str | None

    @property
    def plan(self) -> Plan:
        return load_plan(self.rollout.plan)

    @property
    def is_open(self) -> bool:
        return State(self.rollout.state) not in ENDED

    @property
    def following(self) -> float | None:
        """The percent of the next stage, or None at the last one."""
        stages, following = self.plan.stages, self.rollout.stage_index + 1
        return stages[following].percent if following < len(stages) else None

    def users(self, percent: float) -> int | None:
        """Return the number of users at the present share, or at a stage's. None if no directory is loaded."""
        return self.users_now if percent == self.percent else self.by_stage.get(percent)


def read_reach(
    engine: Engine, strategy_name: str, rollout_id: UUID, *, now: datetime, most_exclusions: int | None = None
) -> RolloutReach:
    """Return a rollout of the strategy with the users that it reaches.

    Args:
        most_exclusions: count at most so many, so that the time does not grow with them.

    Raises:
        UnknownRollout: there is none with this id, or it is of another strategy.
    """
    with reading(engine) as session:
        rollout, generation = pagination.rollout_at(session, rollout_id)
        if rollout.strategy_name != strategy_name:
            raise UnknownRollout(f"{rollout_id} of {strategy_name!r}")
        return reach_of(session, rollout, generation, now=now, most_exclusions=most_exclusions)


def reach_of(
    session: Session, rollout: Rollout, generation: int, *, now: datetime, most_exclusions: int | None = None
) -> RolloutReach:
    """Return `read_reach` within the open transaction."""
    state = strategy_state(session, rollout.strategy_name)
    percent = _share(state, rollout.version)
    stages: dict[float, int] = {}
    with suppress(InvalidPlan):  # of an earlier release: a rollback is shown all the same
        found = [stage.percent_bp for stage in load_plan(rollout.plan).stages]
        stages = {as_percent(each): served_bp(session, rollout.strategy_name, each) for each in found}
    on_canary_bp = basis_points(float(str(state["percent"]))) if state["canary"] is not None else 0
    known = read_served_users(
        session,
        rollout.strategy_name,
        versions.get_strategy(session, rollout.strategy_name).salt,
        [on_canary_bp, *stages.values()],
        since=now,
        until=now,
        most=most_exclusions,
    )
    users_now = known.on_canary(on_canary_bp, now) if known is not None else None
    if known is not None and users_now is not None and state["canary"] != rollout.version:
        users_now = known.everyone - users_now if state["active"] == rollout.version else 0
    excluded = tuple(state.get("excluded", ())) if state["canary"] == rollout.version else ()
    canary, control = (
        versions.get_version(session, rollout.strategy_name, name)
        for name in (rollout.version, rollout.control_version)
    )
    return RolloutReach(
        rollout=rollout,
        generation=generation,
        active=state["active"],
        percent=percent,
        everyone=None if known is None else known.everyone,
        users_now=users_now,
        by_stage={} if known is None else {stage: _at_stage(known, stage, bp, now) for stage, bp in stages.items()},
        is_exact=known is None or known.is_exact,
        serves=tuple(each for each in canary.symbols if each in control.symbols and each not in excluded),
        excluded=excluded,
        previous=_previous(session, rollout),
    )


def _at_stage(known: ServedUsers, stage: float, percent_bp: int, now: datetime) -> int:
    """Return the users of a stage. At 100 % the large accounts are let go, the holdout is not."""
    without = [ExclusionKind.LARGE_ACCOUNT] if stage == 100 else []
    return known.on_canary(percent_bp, now, without=without)


def _share(state: Mapping[str, object], version: str) -> float:
    """Return the share of users who get the version, in percent."""
    canary = float(str(state["percent"])) if state["canary"] is not None else 0.0
    if state["canary"] == version:
        return canary
    return as_percent(BUCKETS - basis_points(canary)) if state["active"] == version else 0.0


def _previous(session: Session, rollout: Rollout) -> str | None:
    if State(rollout.state) not in ENDED:
        return rollout.control_version
    active = versions.with_status(session, rollout.strategy_name, Status.ACTIVE)
    if rollout.state != State.COMPLETED or active is None or active.version != rollout.version:
        return None
    previous = versions.previously_active(session, rollout.strategy_name)
    return None if previous is None else previous.version
