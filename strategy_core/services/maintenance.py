"""Database maintenance: create upcoming monthly partitions, drop what has expired, and check the database.

Maintenance writes no audit event. A month holds all strategies, and an event in each trail would raise their
generations, so that the owners' next changes would be refused. Dropped months are logged and reported instead.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import structlog
from sqlalchemy import Engine, func
from sqlalchemy.exc import DBAPIError
from sqlmodel import Session, select

from strategy_core.domain.errors import InvariantRefused
from strategy_core.domain.lifecycle import Status, utc
from strategy_core.domain.scoring import ScoringRule
from strategy_core.services.audit import Verification, verify_trail
from strategy_core.services.evidence import LOOK_BACK
from strategy_core.services.signals import drop_signals
from strategy_core.store import agents, decisions, partitions, rollouts, versions
from strategy_core.store.engine import analyze_tables, check_schema, reading, transaction
from strategy_core.store.integrity import missing_guards
from strategy_core.store.partitions import DEFAULT, Month
from strategy_core.store.tables import DecisionTally

AHEAD = 2  # months: a failing maintenance has to be noticed within two months
KEEP_AT_LEAST = LOOK_BACK.days  # a rollout's start looks back this far, ticks and nightly comparisons less

CALLS_AT_ONCE = 10_000  # calls of assistants in one transaction: SQLite's other writers wait for it

_TOO_LARGE = f"nor any later one: searching the default partition for its rows takes more than {partitions.HELD_WITHIN}"

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Kept:
    """A month that was not dropped or not created, and why."""

    month: str
    why: str


@dataclass(frozen=True, slots=True)
class Dropped:
    month: str
    decisions: int
    outcomes: int
    marks: int


@dataclass(slots=True)
class Maintained:
    """The result of `maintain`, or in a dry run the expected result.

    Attributes:
        partitioned: whether the database has monthly partitions. SQLite does not.
        before: candles older than this may be dropped, if retention is set.
        kept: expired months that are still needed.
        unmade: months that could not be created.
        signals: number of expired signals that were dropped, as far as they were handed out before all that are kept.
        busy: the tables were in use. The remaining work is left for the next run.
        calls: deleted calls of assistants.
    """

    partitioned: bool
    before: datetime | None = None
    made: list[str] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    unmade: list[Kept] = field(default_factory=list)
    signals: int = 0
    busy: bool = False
    calls: int = 0


def maintain(engine: Engine, *, now: datetime, keep_days: int | None = None, apply: bool = True) -> Maintained:
    """Create the upcoming months, drop months older than *keep_days* if that is given, and delete expired calls.

    Calls of assistants expire `agents.KEPT` before the newest, on SQLite too.
    Each month is created in one transaction, and all drops are in another, so an interrupted run is completed by the
    next. Locks are not waited for: a second concurrent run reports that the tables are in use.

    Raises:
        InvalidSetting: the database role does not own the tables.
    """
    now = utc(now, "now")
    if engine.dialect.name != "postgresql":
        return Maintained(partitioned=False, calls=_delete_calls(engine, now, apply=apply))
    done = Maintained(partitioned=True)
    with reading(engine) as session:
        if apply:
            partitions.check_owner(session)
        done.before = _keep_from(session, now, keep_days)
    try:
        _create_months(engine, done, now, apply=apply)
        _drop_months(engine, done, apply=apply)
        if apply and done.before is not None:
            done.signals = drop_signals(engine, done.before)
        if apply:
            analyze_tables(engine, partitions.TABLES)
    except DBAPIError as error:
        if not partitions.is_busy(error):
            raise
        done.busy = True
        log.warning("maintain.busy", made=done.made)
    done.calls = _delete_calls(engine, now, apply=apply)
    return done


def _delete_calls(engine: Engine, now: datetime, *, apply: bool) -> int:
    """Delete the expired calls of assistants, and return how many. In a dry run at most CALLS_AT_ONCE are counted."""
    if not apply:
        with reading(engine) as session:
            return len(agents.expired_calls(session, now, CALLS_AT_ONCE))
    deleted = 0
    while True:
        with transaction(engine) as session:
            expired = agents.expired_calls(session, now, CALLS_AT_ONCE)
            agents.delete_calls(session, expired)
        deleted += len(expired)
        if len(expired) < CALLS_AT_ONCE:
            break
    if deleted:
        log.info("maintain.calls_deleted", calls=deleted)
    return deleted


def _keep_from(session: Session, now: datetime, keep_days: int | None) -> datetime | None:
    """Return the first candle to keep. It counts from the newest data: a dead feed makes no evidence expire."""
    newest = session.exec(select(func.max(DecisionTally.newest_candle_s))).one()
    if keep_days is None or newest is None:
        return None
    return min(now, datetime.fromtimestamp(newest, UTC)) - timedelta(days=max(keep_days, KEEP_AT_LEAST))


def _create_months(engine: Engine, done: Maintained, now: datetime, *, apply: bool) -> None:
    due = [partitions.month_at(now)]
    while len(due) <= AHEAD:
        due.append(partitions.month_at(due[-1].end or now))
    for month in due:
        try:
            made = _create_month(engine, month, apply=apply)
        except InvariantRefused:
            done.unmade.append(Kept(month.name, "the default partition already has rows of it, which stay there"))
        except DBAPIError as error:
            if not partitions.is_timeout(error):
                raise
            done.unmade.append(Kept(month.name, _TOO_LARGE))
            return  # the next month would take as long
        else:
            done.made += [month.name] if made else []


def _create_month(engine: Engine, month: Month, *, apply: bool) -> bool:
    """Create a missing month, or check that it can be created. Return whether it was missing.

    Raises:
        InvariantRefused: the default partition has rows of it.
        DBAPIError: see `partitions.changing` and `partitions.is_timeout`.
    """
    with reading(engine) as session:  # search outside the locks
        if _exists(session, month):
            return False
        if partitions.default_holds(session, month):
            raise InvariantRefused(month.name)
    if apply:
        with partitions.changing(engine) as session:
            if _exists(session, month):  # another run has created it meanwhile
                return False
            partitions.hold_tables(session)
            partitions.make(session, month)
        log.info("maintain.made", month=month.name)
    return True


def _exists(session: Session, month: Month) -> bool:
    return month.start is None or partitions.month_of(month.start, partitions.months(session)).name != DEFAULT


def _drop_months(engine: Engine, done: Maintained, *, apply: bool) -> None:
    if done.before is None:
        return
    if not apply:
        with reading(engine) as session:
            old = _expired_months(session, done.before)
            done.dropped += [_measure(session, month) for month in _droppable(session, old, done)]
        return
    with partitions.changing(engine) as session:
        old = _expired_months(session, done.before)
        if not old:
            return
        partitions.block_writes(session, old)  # their rows no longer change from here on
        still = [month for month in _expired_months(session, done.before) if month.name in {each.name for each in old}]
        free = _droppable(session, still, done)
        going = [_measure(session, month) for month in free]
        if free:
            partitions.hold_tables(session, free)
        for month in free:
            partitions.drop(session, month)
    done.dropped += going
    for each in going:
        log.info(
            "maintain.dropped", month=each.month, decisions=each.decisions, outcomes=each.outcomes, marks=each.marks
        )


def _expired_months(session: Session, before: datetime) -> list[Month]:
    """Return the months that end before then. The default partition ends with its newest row."""
    known = [*partitions.months(session), Month(DEFAULT, end=partitions.newest_without_month(session))]
    return [month for month in known if month.end is not None and month.end <= before]


def _droppable(session: Session, old: Sequence[Month], done: Maintained) -> list[Month]:
    """Return the months of *old* that are no longer needed, and note why the others stay."""
    known = partitions.months(session)
    needed = {partitions.month_of(moment, known).name: why for moment, why in _needed_candles(session)}
    for started_at, why in _open_rollouts(session):
        first = started_at - LOOK_BACK
        needed |= {month.name: why for month in old if month.end is not None and month.end >= first}
    done.kept += [Kept(month.name, needed[month.name]) for month in old if month.name in needed]
    return [month for month in old if month.name not in needed]


def _open_rollouts(session: Session) -> Iterator[tuple[datetime, str]]:
    """Yield the start of each open rollout. Its gates read from there, and its history reaches further back."""
    for one in rollouts.open_rollouts(session):
        since = f"{one.started_at:%Y-%m-%d}"
        yield one.started_at, f"{one.strategy_name} {one.version} has been in a rollout since {since}, and looks back"


def _needed_candles(session: Session) -> Iterator[tuple[datetime, str]]:
    """Yield the candles that runs still need: unscored signals, and each version's newest decision."""
    for version in versions.list_versions(session):
        horizon = ScoringRule.model_validate(versions.get_strategy(session, version.strategy_name).scoring).horizon
        for symbol in version.symbols:
            name = f"{version.strategy_name} {version.version}"
            newest = decisions.newest_decided(session, version.strategy_name, version.version, symbol)
            if newest is not None and version.status != Status.RETIRED:
                yield newest, f"the newest decision of {name} on {symbol}"
            for signal, _ in decisions.signals_to_score(session, version, symbol, horizon=horizon):
                yield signal, f"a signal of {name} on {symbol} at {signal:%Y-%m-%d %H:%M} UTC is not booked"


def _measure(session: Session, month: Month) -> Dropped:
    rows = partitions.size(session, month)
    return Dropped(month.name, rows["shadow_decision_log"], rows["outcome"], rows["equity_mark"])


def summary_lines(done: Maintained, *, dry_run: bool = False) -> list[str]:
    """Return lines that report what was done, or what would be done."""
    would = "would be " if dry_run else ""
    calls = [f"{done.calls:,} calls of assistants {would}deleted"] if done.calls else []
    if not done.partitioned:
        return calls or ["SQLite has no monthly partitions: no work to do"]
    lines = [*calls]
    lines += [f"{month}: {would}made" for month in done.made]
    lines += [
        f"{each.month}: {would}dropped, {each.decisions:,} decisions, {each.outcomes:,} outcomes, {each.marks:,} marks"
        for each in done.dropped
    ]
    lines += [f"{each.month}: stays, {each.why}" for each in done.kept]
    lines += [f"{each.month}: not made, {each.why}" for each in done.unmade]
    lines += [f"signals: {done.signals:,} dropped"] if done.signals else []
    if done.busy:
        lines.append("the tables are in use: the remaining work is left for the next run")
    if done.before is None:
        return [*lines, "all months are kept: ROLLOUT_KEEP_DAYS is not set, or there are no decisions yet"]
    return [*lines, f"all candles from {done.before:%Y-%m-%d} on are kept"]


@dataclass(frozen=True, slots=True)
class Wholeness:
    """The result of `check_database`.

    Attributes:
        revision: the schema revision, which is this release's.
        missing: descriptions of missing constraints and triggers.
        trail: the verification of the audit trail.
    """

    revision: str
    missing: Sequence[str]
    trail: Verification

    @property
    def holds(self) -> bool:
        return not self.missing and self.trail.holds


def check_database(engine: Engine) -> Wholeness:
    """Check the whole database: after a restore, an upgrade, or a change by hand.

    Raises:
        SchemaOutdated: the database is empty or of another release.
    """
    return Wholeness(check_schema(engine), missing_guards(engine), verify_trail(engine))
