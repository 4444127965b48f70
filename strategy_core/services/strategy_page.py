"""What the page on one strategy shows: its versions, who registered them, and its rollouts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Engine

from strategy_core.domain.audit import shown_actor
from strategy_core.domain.errors import UnknownVersion
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.routing import as_percent
from strategy_core.store import audit, release_times, rollouts, versions
from strategy_core.store.engine import reading
from strategy_core.store.tables import Rollout, ScheduledStart, StrategyVersion

MOST_EVENTS = 1_000  # of registrations, the newest


@dataclass(frozen=True, slots=True)
class StrategyPage:
    """One strategy with its versions and rollouts, both newest first.

    Attributes:
        registered_by: by version, who registered it and why. Versions of old releases have no entry.
        percent: of users on the canary.
        scheduled: a start that waits for its time.
    """

    name: str
    generation: int
    versions: Sequence[StrategyVersion]
    registered_by: Mapping[str, tuple[str, str]]
    open_rollout: Rollout | None
    rollouts: Sequence[Rollout]
    percent: float
    scheduled: ScheduledStart | None

    def with_status(self, status: Status) -> list[StrategyVersion]:
        """Return the versions with this status, newest first."""
        return [each for each in self.versions if each.status == status]

    @property
    def active(self) -> StrategyVersion | None:
        return next(iter(self.with_status(Status.ACTIVE)), None)

    @property
    def canary(self) -> StrategyVersion | None:
        return next(iter(self.with_status(Status.CANARY)), None)

    @property
    def startable(self) -> list[StrategyVersion]:
        """The versions that a rollout can start with, newest first."""
        if self.open_rollout is not None or self.scheduled is not None or self.active is None:
            return []
        canary = self.with_status(Status.CANARY)
        return canary or self.with_status(Status.SHADOW)

    def version(self, name: str) -> StrategyVersion:
        """Return a version by its name. Raise UnknownVersion."""
        found = next((each for each in self.versions if each.version == name), None)
        if found is None:
            raise UnknownVersion(self.name, name, [each.version for each in self.versions])
        return found


def read_strategy(engine: Engine, strategy_name: str, *, most_rollouts: int = 50) -> StrategyPage:
    """Return what the page shows.

    Args:
        most_rollouts: that are shown, the newest.

    Raises:
        UnknownStrategy
    """
    with reading(engine) as session:
        strategy = versions.get_strategy(session, strategy_name)
        registrations = audit.find_events(
            session, limit=MOST_EVENTS, newest=True, strategy_name=strategy_name, action="register_version"
        )
        canary = rollouts.find_canary(session, strategy_name)
        return StrategyPage(
            name=strategy_name,
            generation=strategy.generation,
            versions=list(reversed(versions.list_versions(session, strategy_name))),
            registered_by={
                each.version: (shown_actor(each.actor, each.source), each.reason)
                for each in registrations
                if each.version is not None
            },
            open_rollout=rollouts.open_rollout(session, strategy_name),
            rollouts=rollouts.list_rollouts(session, strategy_name)[:most_rollouts],
            percent=0.0 if canary is None else as_percent(canary.rollout_bp),
            scheduled=release_times.pending_start(session, strategy_name),
        )
