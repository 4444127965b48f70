"""Races as owners steer them: start one, enter and withdraw versions, close it."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Engine
from sqlmodel import Session

from strategy_core.domain import race
from strategy_core.domain.audit import Command
from strategy_core.domain.errors import (
    CannotRace,
    InvalidRace,
    RaceClosed,
    RaceOpen,
    UnknownRace,
)
from strategy_core.domain.lifecycle import Status, utc
from strategy_core.domain.plan import Plan
from strategy_core.services.evidence import LOOK_BACK
from strategy_core.services.rollouts import check_comparable, policy_of
from strategy_core.services.transitions import recorded_change
from strategy_core.store import races, versions
from strategy_core.store.engine import reading, retry_transient, transaction
from strategy_core.store.tables import Race, RaceEntry, RaceStanding, StrategyVersion

MOST_ENTRIES = 33  # with the active version


@dataclass(frozen=True, slots=True)
class RaceView:
    """A race as owners see it.

    Attributes:
        entries: in the order in which they entered. The first one was active at the start.
        standings: by day, those that were asked for.
    """

    race: Race
    entries: Sequence[RaceEntry]
    standings: Sequence[RaceStanding]

    @property
    def newest(self) -> RaceStanding | None:
        return self.standings[-1] if self.standings else None

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The newest standings: versions that are still in the race first, by their mean."""
        rows = [] if self.newest is None else self.newest.rows
        return sorted(rows, key=lambda row: (row["status"] not in ("running", "same"), -(row["mean"] or 0.0)))


@retry_transient()
def start_race(
    engine: Engine,
    command: Command,
    *,
    strategy_name: str,
    candidates: Sequence[str],
    plan: Plan,
    starts: bool = False,
) -> RaceView:
    """Set *candidates* against the active version. No user is moved by that.

    The race counts from the first day on which a candidate and the active version both decided, of the last 180. So a
    version that was watched for two months begins with two months of evidence.

    Args:
        plan: of the rollouts of its nominees.
        starts: whether it starts these rollouts itself. Otherwise it alerts, and an owner starts them.

    Raises:
        UnknownStrategy, UnknownVersion, NoActiveVersion
        RaceOpen: the strategy has an open race.
        InvalidRace: fewer than two candidates, more than 32, or one of them twice.
        CannotRace: a candidate is not in shadow or in canary.
        Incomparable: a candidate has no candles in common with the active version.
        PlanNotAllowed, UnarmedPlan: as in `start_rollout`.
        LostRace: the command's generation is outdated.
    """
    now = utc(command.now, "now")
    if not 2 <= len(candidates) < MOST_ENTRIES:
        raise InvalidRace(f"it needs 2 to {MOST_ENTRIES - 1} candidates, and has {len(candidates)}")
    if len(set(candidates)) != len(candidates):
        raise InvalidRace("a candidate is named twice")
    plan.check_armed()
    with transaction(engine) as session:
        versions.lock_strategy(session, strategy_name, command.if_generation)
        if (open_one := races.find_open_race(session, strategy_name)) is not None:
            raise RaceOpen(strategy_name, open_one.started_at)
        if not command.override_reason.strip():
            policy_of(session, strategy_name).check(strategy_name, plan)
        active = versions.active_version(session, strategy_name)
        chosen = [versions.get_version(session, strategy_name, name) for name in candidates]
        for each in chosen:
            _check_may_race(each, active)
        first_day = _first_day(active, chosen, now)
        begun = Race(
            strategy_name=strategy_name,
            plan=plan.model_dump(mode="json"),
            starts=starts,
            began=1 + len(chosen),
            tried=len(chosen),
            started_at=now,
            started_by=command.actor.shown,
            first_day=first_day,
            next_day=first_day,
            pairs=race.begin(1 + len(chosen)).stored(),
        )
        entries = [_entry(begun.id, place, each, now) for place, each in enumerate([active, *chosen])]
        with recorded_change(session, command, "start_race", strategy_name) as change:
            races.add_race(session, begun, entries)
            change.after["race"] = {"id": str(begun.id), "versions": [*candidates], "starts": starts}
        return RaceView(begun, entries, [])


@retry_transient()
def enter_race(
    engine: Engine, command: Command, *, strategy_name: str, version: str, race_id: UUID | None = None
) -> RaceView:
    """Enter a version into the open race of its strategy. Its evidence begins with the next day that is counted.

    Args:
        race_id: only into this race.

    Raises:
        UnknownStrategy, UnknownVersion, NoRace, UnknownRace
        RaceClosed: *race_id* was closed.
        CannotRace: it was entered before, is not in shadow or in canary, or the race has 32 candidates.
        Incomparable: it has no candles in common with the active version.
        LostRace: the command's generation is outdated.
    """
    with transaction(engine) as session:
        versions.lock_strategy(session, strategy_name, command.if_generation)
        found = _lock_race(session, strategy_name, race_id)
        chosen = versions.get_version(session, strategy_name, version)
        _check_may_race(chosen, versions.active_version(session, strategy_name))
        with recorded_change(session, command, "enter_race", strategy_name, version) as change:
            enter_version(session, found, chosen, command.now)
            change.after["race"] = {"id": str(found.id)}
        return _view(session, found.id)


@retry_transient()
def withdraw_from_race(
    engine: Engine, command: Command, *, strategy_name: str, version: str, race_id: UUID | None = None
) -> RaceView:
    """Withdraw a version from the open race of its strategy, for good. A rollout of it goes on.

    Args:
        race_id: only from this race.

    Raises:
        UnknownStrategy, NoRace, UnknownRace
        RaceClosed: *race_id* was closed.
        CannotRace: it is not in the race, is out already, or is the active version.
        LostRace: the command's generation is outdated.
    """
    with transaction(engine) as session:
        versions.lock_strategy(session, strategy_name, command.if_generation)
        found = _lock_race(session, strategy_name, race_id)
        entry = next((each for each in races.entries_of(session, found.id) if each.version == version), None)
        problem = _why_not_withdrawn(session, strategy_name, version, entry)
        if problem:
            raise CannotRace(strategy_name, version, problem)
        with recorded_change(session, command, "withdraw_from_race", strategy_name, version) as change:
            because = f"by {command.actor.shown}: {command.stated_reason}"
            races.change_entry(session, found.id, version, withdrawn=because)
            races.change_race(session, found)
            change.after["race"] = {"id": str(found.id)}
        return _view(session, found.id)


@retry_transient()
def close_race(engine: Engine, command: Command, *, strategy_name: str, race_id: UUID | None = None) -> RaceView:
    """Close the open race of a strategy. A rollout that it started goes on.

    Args:
        race_id: only this race.

    Raises:
        UnknownStrategy, NoRace, UnknownRace
        RaceClosed: *race_id* was closed before.
        LostRace: the command's generation is outdated.
    """
    with transaction(engine) as session:
        versions.lock_strategy(session, strategy_name, command.if_generation)
        found = _lock_race(session, strategy_name, race_id)
        with recorded_change(session, command, "close_race", strategy_name) as change:
            closed = {"closed_at": command.now, "closed_by": command.actor.shown}
            races.change_race(session, found, **closed, closed_because=command.stated_reason)
            change.after["race"] = {"id": str(found.id)}
        return _view(session, found.id)


def list_races(
    engine: Engine,
    strategy_name: str | None = None,
    *,
    strategies: Collection[str] | None = None,
    open_alone: bool = True,
    limit: int = 50,
) -> list[RaceView]:
    """Return races with their newest standings, newest race first.

    Args:
        strategies: only of these. None means all.

    Raises:
        UnknownStrategy
    """
    with reading(engine) as session:
        if strategy_name is not None:
            versions.get_strategy(session, strategy_name)
            strategies = {strategy_name}
        found = races.list_races(session, strategies, open_alone=open_alone, limit=limit)
        return [_view(session, each.id) for each in found]


def find_race(engine: Engine, race_id: UUID) -> RaceView:
    """Return a race with the standings of all days. Raise UnknownRace if there is none."""
    with reading(engine) as session:
        return _view(session, race_id, days=None)


def _lock_race(session: Session, strategy_name: str, race_id: UUID | None) -> Race:
    """Return the open race of a strategy, locked: *race_id* if it is given."""
    if race_id is not None:
        named = races.get_race(session, race_id)
        if named.strategy_name != strategy_name:
            raise UnknownRace(str(race_id))
        if named.closed_at is not None:
            raise RaceClosed(strategy_name, named.closed_at)
    return races.lock_open_race(session, strategy_name)


def _check_may_race(version: StrategyVersion, active: StrategyVersion) -> None:
    if version.version == active.version:
        raise CannotRace(version.strategy_name, version.version, "it is the active version, which always is in it")
    if version.status not in (Status.SHADOW, Status.CANARY):
        raise CannotRace(
            version.strategy_name, version.version, f"it is {version.status}. Allowed: a version in shadow"
        )
    check_comparable(version, active)


def _why_not_withdrawn(session: Session, strategy_name: str, version: str, entry: RaceEntry | None) -> str:
    if entry is None:
        return "it was not entered"
    if entry.withdrawn or entry.eliminated_by:
        return f"it is out already: {entry.withdrawn or f'eliminated by {entry.eliminated_by}'}"
    if versions.active_version(session, strategy_name).version == version:
        return "it is the active version, which stays in it"
    return ""


def _first_day(active: StrategyVersion, chosen: Sequence[StrategyVersion], now: datetime) -> datetime:
    together = max(active.created_at, min(each.created_at for each in chosen))
    return midnight(max(together, now - LOOK_BACK))


def enter_version(session: Session, found: Race, version: StrategyVersion, now: datetime) -> None:
    entries = races.entries_of(session, found.id)
    if version.version in {each.version for each in entries}:
        raise CannotRace(version.strategy_name, version.version, "it was entered before")
    if len(entries) >= MOST_ENTRIES:
        raise CannotRace(version.strategy_name, version.version, f"a race has at most {MOST_ENTRIES - 1} candidates")
    grown = race.enter(race.read_pairs(found.pairs), 1)
    races.change_race(session, found, pairs=grown.stored(), tried=found.tried + 1)
    races.add_entry(session, _entry(found.id, len(entries), version, now))


def _entry(race_id: UUID, position: int, version: StrategyVersion, now: datetime) -> RaceEntry:
    return RaceEntry(
        race_id=race_id,
        position=position,
        strategy_name=version.strategy_name,
        version=version.version,
        entered_at=now,
    )


def _view(session: Session, race_id: UUID, *, days: int | None = 1) -> RaceView:
    return RaceView(
        races.get_race(session, race_id),
        races.entries_of(session, race_id),
        races.standings_of(session, race_id, newest=days),
    )


def midnight(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
