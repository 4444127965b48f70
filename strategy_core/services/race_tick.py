"""The tick of races: count the days that have closed, rule on each race, and act on the ruling.

Days are counted without the strategy's lock, so that no rollback waits for it: a tick reads, computes, and then writes
only if nobody has changed the race meanwhile. Only starting and ending a rollout takes the lock.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import Engine
from sqlmodel import Session

from strategy_core.domain import race
from strategy_core.domain.alerts import LEAD_LOST, NOMINATED
from strategy_core.domain.audit import RACE, Actor, Command
from strategy_core.domain.candles import timeframe_delta
from strategy_core.domain.errors import (
    HarmfulInShadow,
    Incomparable,
    NotFound,
    Quarantined,
    Refused,
    ReleaseClosed,
    reason_of,
)
from strategy_core.domain.lifecycle import Status, utc
from strategy_core.domain.plan import Plan, load_plan
from strategy_core.domain.race import Canary, Entry, Pairs, Ruling, Standing, Standings, Step
from strategy_core.domain.race_days import Decided, day_of
from strategy_core.domain.scoring import ScoringRule
from strategy_core.services.races import enter_version, midnight
from strategy_core.services.rollouts import open_new_rollout
from strategy_core.services.transitions import abort_rollout, recorded_change
from strategy_core.services.users import count_missing
from strategy_core.store import alerts, races, rollouts, versions
from strategy_core.store.engine import reading, retry_transient, transaction
from strategy_core.store.tables import Race, RaceEntry, Rollout, StrategyVersion

LATE = timedelta(days=3)  # after a day's end: decisions that come later do not count
_DAYS_AT_ONCE = 14  # of one read
_DAY = timedelta(days=1)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RaceTick:
    """What a tick did with one race.

    Attributes:
        days: that it counted.
        line: what the race asks for, or what was done.
        error: why the race could not be counted or acted on.
    """

    race_id: UUID
    strategy_name: str
    days: int
    line: str
    error: str = ""


def tick_races(
    engine: Engine, *, now: datetime, actor: Actor = RACE, in_replay: Callable[[Plan], Plan] | None = None
) -> list[RaceTick]:
    """Count the days of every open race that have closed, and act on its ruling. One failure stops no other race.

    Args:
        in_replay: widens the limits of a plan for a replay.
    """
    now = utc(now, "now")
    with reading(engine) as session:
        found = races.list_races(session, open_alone=True)
    ticked = []
    for each in found:
        days = 0
        try:
            days = _count_days(engine, each.id, now)
            line = _act(engine, each.id, Command(actor, now), in_replay)
            ticked.append(RaceTick(each.id, each.strategy_name, days, line))
        except Exception as error:  # noqa: BLE001  the other races go on, and the next tick tries again
            log.warning("race.failed", strategy=each.strategy_name, error=reason_of(error))
            ticked.append(RaceTick(each.id, each.strategy_name, days, "", reason_of(error)))
    return ticked


def _count_days(engine: Engine, race_id: UUID, now: datetime) -> int:
    """Count the days that have closed, and return their number."""
    counted = 0
    while True:
        done = _count_some(engine, race_id, now)
        counted += done
        if done < _DAYS_AT_ONCE:
            return counted


@retry_transient()
def _count_some(engine: Engine, race_id: UUID, now: datetime) -> int:
    with reading(engine) as session:
        found = races.get_race(session, race_id)
        entries = list(races.entries_of(session, race_id))
        active = versions.active_version(session, found.strategy_name)
        if active.version not in {each.version for each in entries}:
            return _enter_active(engine, found, active, now)
        run = _Run(found, entries, active.version, versions.list_versions(session, found.strategy_name))
        if not run.read(session, now):
            return 0
    with transaction(engine) as session:
        if not races.change_race(session, found, next_day=run.next_day, pairs=run.pairs.stored(), tried=run.tried):
            return 0  # another tick has counted them, or the race has changed: the next tick goes on
        races.add_standings(session, run.standings)
        for each in run.entries:
            out = {name: text for name in ("eliminated_by", "withdrawn") if (text := getattr(each, name))}
            races.change_entry(session, race_id, each.version, candles=each.candles, errors=each.errors, **out)
    return len(run.standings)


def _enter_active(engine: Engine, found: Race, active: StrategyVersion, now: datetime) -> int:
    """Enter a version that has become active without being in the race: all others are set against it."""
    with transaction(engine) as session:
        current = races.lock_race(session, found.id)
        if current.closed_at is not None or current.generation != found.generation:
            return 0
        enter_version(session, current, active, now)
    return _DAYS_AT_ONCE  # go on counting


class _Run:
    """The next days of a race, counted in memory."""

    def __init__(
        self, found: Race, entries: Sequence[RaceEntry], active: str, known: Sequence[StrategyVersion]
    ) -> None:
        self.race, self.entries, self.active = found, list(entries), active
        self.next_day, self.pairs = found.next_day, race.read_pairs(found.pairs)
        self.known = {each.version: each for each in known}
        since = [each for each in known if each.created_at >= found.first_day and each.version != active]
        self.tried = max(found.tried, len(entries) - 1, len(since))
        self.standings: list[dict[str, Any]] = []

    def read(self, session: Session, now: datetime) -> bool:
        """Count the days that have closed, 14 at most, and return whether there was one."""
        name, running = self.race.strategy_name, self._running()
        start, end = self.next_day, min(self.next_day + _DAYS_AT_ONCE * _DAY, now)
        decided = races.read_decided(session, name, running, start=start, end=end)
        newest = races.newest_decided(session, name, running, start=start)
        by_day: dict[datetime, list[Decided]] = {}
        for each in decided:
            by_day.setdefault(midnight(each.candle), []).append(each)
        patience = self._patience(versions.get_strategy(session, name).scoring)
        while self.next_day < end and len(self.standings) < _DAYS_AT_ONCE:
            day = by_day.get(self.next_day, [])
            if self._waits(day, newest, now, patience):
                break
            errors = races.count_errors(session, name, running, start=self.next_day, end=self.next_day + _DAY)
            self._add(day, errors)
        return bool(self.standings)

    def _running(self) -> list[str]:
        return [each.version for each in self.entries if not self._out(each)]

    def _patience(self, scoring: Mapping[str, Any]) -> timedelta:
        """How long after a day's end its open trades are waited for: twice their horizon and a week."""
        horizon = ScoringRule.model_validate(scoring).horizon
        return 2 * horizon * timeframe_delta(self.known[self.active].timeframe) + 7 * _DAY

    def _waits(
        self,
        day: Sequence[Decided],
        newest: Mapping[tuple[str, str], datetime],
        now: datetime,
        patience: timedelta,
    ) -> str:
        """Return what the next day waits for, or an empty text: decisions up to its end, and the end of its trades."""
        end = self.next_day + _DAY
        if now < end:
            return f"the end of {self.next_day:%Y-%m-%d}"
        if now < end + LATE:
            for version in self._running():
                for symbol in self.known[version].symbols:
                    if newest.get((version, symbol), self.next_day) < end:
                        return f"decisions of {version} on {symbol} after {self.next_day:%Y-%m-%d}"
        unclosed = next((each for each in day if each.r is None), None)
        if unclosed is not None and now < end + patience:
            return (
                f"the end of the trade of {unclosed.version} on {unclosed.symbol} at {unclosed.candle:%Y-%m-%d %H:%M}"
            )
        return ""

    def _add(self, day: Sequence[Decided], errors: Mapping[str, tuple[int, int]]) -> None:
        names = [each.version for each in self.entries]
        self.pairs = race.add_day(self.pairs, day_of(day, names))
        for each in self.entries:
            candles, failed = errors.get(each.version, (0, 0))
            each.candles, each.errors = each.candles + candles, each.errors + failed
        at = self.judge()
        for row, entry in zip(self.entries, at.entries, strict=True):
            row.eliminated_by = row.eliminated_by or entry.eliminated_by or ""
            row.withdrawn = row.withdrawn or entry.withdrawn
        rows = [stored_row(each) for each in at.rows]
        self.standings.append({"race_id": self.race.id, "day": self.next_day, "active": self.active, "rows": rows})
        self.next_day += _DAY

    def judge(self) -> Standings:
        """Return how the versions stand after the days that are counted."""
        rates = {each.version: each.errors / each.candles for each in self.entries if each.candles}
        known = [Entry(each.version, self._out(each), each.eliminated_by or None) for each in self.entries]
        at = race.standings(self.pairs, known, active=self.active, began=self.race.began, errors=rates)
        return replace(at, tried=max(at.tried, self.tried))

    def _out(self, entry: RaceEntry) -> str:
        retired = self.known[entry.version].status == Status.RETIRED
        return entry.withdrawn or ("retired" if retired else "")


def _act(engine: Engine, race_id: UUID, command: Command, in_replay: Callable[[Plan], Plan] | None) -> str:
    """Rule on the race, do what the ruling says, and return a line on it."""
    with reading(engine) as session:
        found, active, ruling = _rule(session, race_id, command.now)
    if ruling is None:
        return ""
    line = ruling.reason
    if ruling.step is Step.NOMINATE and found.starts:
        line = _start_rollout(engine, found, ruling, command, in_replay)
    elif ruling.step in (Step.SUPERSEDE, Step.WITHDRAW) and found.starts and _is_own(engine, found):
        line = _end_rollout(engine, found, ruling, command)
    elif ruling.step is not Step.WAIT:
        _ask_owner(engine, found, ruling, active, command.now)
    _note(engine, found.id, replace(ruling, reason=line))
    return line


def _rule(session: Session, race_id: UUID, now: datetime) -> tuple[Race, str, Ruling | None]:
    """Return the race, the active version, and the ruling on the days counted (None: on no day yet)."""
    found = races.get_race(session, race_id)
    entries = races.entries_of(session, race_id)
    active = versions.active_version(session, found.strategy_name).version
    names = [each.version for each in entries]
    if active not in names or found.next_day == found.first_day:
        return found, active, None
    run = _Run(found, entries, active, versions.list_versions(session, found.strategy_name))
    rollout = rollouts.open_rollout(session, found.strategy_name)
    if rollout is not None and rollout.version not in names:
        return found, active, Ruling(Step.WAIT, rollout.version, f"{rollout.version} is in a rollout")
    refused = [each.version for each in entries if each.refused or run.known[each.version].quarantined_at is not None]
    since = math.inf if found.withdrew_at is None else (now - found.withdrew_at) / _DAY
    canary = None if rollout is None else _canary(session, rollout, run.pairs, names)
    before = versions.previously_active(session, found.strategy_name)
    ruling = race.rule(
        run.judge(),
        canary,
        refused=refused,
        days_since_superseded=since,
        predecessor=None if before is None else before.version,
    )
    return found, active, ruling


def _canary(session: Session, rollout: Rollout, pairs: Pairs, names: Sequence[str]) -> Canary:
    against = pairs.log_e[:, names.index(rollout.version)] / math.log(10)
    percent = 100.0
    if rollout.promoted_at is None:
        percent = rollouts.get_canary(session, rollout.strategy_name).rollout_percent
    return Canary(rollout.version, percent, dict(zip(names, against.tolist(), strict=True)))


def _is_own(engine: Engine, found: Race) -> bool:
    """Return whether the open rollout is one that the race started."""
    with reading(engine) as session:
        rollout = rollouts.open_rollout(session, found.strategy_name)
        return rollout is not None and rollout.id == found.rollout_id


@retry_transient()
def _start_rollout(
    engine: Engine, found: Race, ruling: Ruling, command: Command, in_replay: Callable[[Plan], Plan] | None
) -> str:
    name, version = found.strategy_name, ruling.version or ""
    count_missing(engine)
    try:
        with transaction(engine) as session:
            versions.lock_strategy(session, name)
            current = races.lock_race(session, found.id)
            if current.closed_at is not None or rollouts.open_rollout(session, name) is not None:
                return "the race or its strategy has changed meanwhile"
            rollout = open_new_rollout(
                session,
                replace(command, reason=f"nominated by the race: {ruling.reason}"),
                strategy_name=name,
                version=version,
                plan=load_plan(found.plan),
                in_replay=in_replay,
            )
            races.change_race(session, current, rollout_id=rollout.id)
            facts = {"version": version, "race": str(found.id), "started": True}
            _alert(
                session,
                found,
                NOMINATED,
                f"{name}: {ruling.reason}. Its rollout is started",
                "info",
                facts,
                command.now,
            )
    except ReleaseClosed as error:
        return f"{ruling.reason}; it waits: {error}"
    except (HarmfulInShadow, Quarantined, Incomparable) as error:
        with transaction(engine) as session:
            races.change_entry(session, found.id, version, refused=str(error))
        return f"{version} is refused: {error}"
    except (NotFound, Refused) as error:
        with transaction(engine) as session:
            facts = {"version": version, "race": str(found.id), "started": False}
            text = f"{name}: {ruling.reason}. Its rollout could not be started: {error}"
            _alert(session, found, NOMINATED, text, "warning", facts, command.now)
        return f"{ruling.reason}; its rollout could not be started: {error}"
    return f"{ruling.reason}; its rollout is started"


@retry_transient()
def _end_rollout(engine: Engine, found: Race, ruling: Ruling, command: Command) -> str:
    """End the rollout that the race started, without quarantine. Its users get the active version again."""
    with transaction(engine) as session:
        versions.lock_strategy(session, found.strategy_name)
        current = races.lock_race(session, found.id)
        rollout = rollouts.open_rollout(session, found.strategy_name)
        if rollout is None or rollout.id != current.rollout_id or rollout.promoted_at is not None:
            return "the rollout has changed meanwhile"
        reason = f"by the race: {ruling.reason}"
        name, version = rollout.strategy_name, rollout.version
        with recorded_change(session, command, "withdraw_nominee", name, version, rollout_id=rollout.id, reason=reason):
            abort_rollout(session, rollout, reason, command.now)
        races.change_race(session, current, withdrew_at=command.now)
        facts = {"version": version, "race": str(found.id), "ended": True}
        _alert(
            session, found, LEAD_LOST, f"{name}: {ruling.reason}. Its rollout is ended", "warning", facts, command.now
        )
    return f"{ruling.reason}; the rollout of {version} is ended"


@retry_transient()
def _ask_owner(engine: Engine, found: Race, ruling: Ruling, active: str, now: datetime) -> None:
    """Alert on a ruling that an owner has to act on, once for each version against each active version."""
    name, kind, version = found.strategy_name, LEAD_LOST, active
    facts: dict[str, Any] = {"ended": False}
    with transaction(engine) as session:
        if ruling.step is Step.NOMINATE:
            kind, version, facts = NOMINATED, ruling.version or "", {"started": False}
        elif ruling.step is not Step.RETURN:
            rollout = rollouts.open_rollout(session, name)
            if rollout is None:
                return
            version = rollout.version
        facts |= {"version": version, "race": str(found.id), "control_version": active}
        _alert(session, found, kind, f"{name}: {ruling.reason}", "warning", facts, now)


def _alert(
    session: Session,
    found: Race,
    kind: str,
    text: str,
    severity: str,
    facts: Mapping[str, Any],
    now: datetime,
) -> None:
    key = f"{found.id} {kind} {facts['version']} {facts.get('control_version', found.rollout_id)} {severity}"
    alerts.raise_alert(
        session, kind, text, severity=severity, strategy_name=found.strategy_name, dedupe_key=key, facts=facts, now=now
    )


@retry_transient()
def _note(engine: Engine, race_id: UUID, ruling: Ruling) -> None:
    """Store the newest ruling, for owners to read."""
    noted = {"step": ruling.step.value, "version": ruling.version, "reason": ruling.reason, "hold": ruling.hold}
    with transaction(engine) as session:
        current = races.lock_race(session, race_id)
        if current.closed_at is None and current.ruling != noted:
            current.ruling = noted  # the generation stays: neither sums nor entries have changed
            session.add(current)


def stored_row(row: Standing) -> dict[str, Any]:
    """Return a standing as JSON: a bound that is infinite becomes null."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in (asdict(row) | {"status": row.status.value}).items()
    }
