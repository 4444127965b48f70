"""Make months ahead and drop those that are older than what is kept; never what a running rollout rests on.

No audit event tells of it: the trail is of strategies, a month holds all of them, and an event in each would have every
owner's next change refused as one that lost a race. What goes is logged, and told by the command.
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
from strategy_core.store import decisions, partitions, rollouts, versions
from strategy_core.store.engine import analyze_tables, check_schema, reading
from strategy_core.store.integrity import missing_guards
from strategy_core.store.partitions import DEFAULT, Month
from strategy_core.store.tables import DecisionTally

AHEAD = 2  # months: a maintenance that never runs is not noticed before the second month
KEEP_AT_LEAST = LOOK_BACK.days  # what the start of a rollout measures; a tick and the nightly comparison look less far

_TOO_LARGE = (
    f"nor is any later one: searching the default partition for rows of it takes more than {partitions.HELD_WITHIN}"
)

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Kept:
    """A month that is old enough to go, and what it is needed for; or one that cannot be made, and why."""

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
    """What was done; of a dry run what would be.

    Attributes:
        partitioned: whether there are months at all: SQLite has none.
        before: candles older than this may go; None where all is kept.
        kept: old months that stay, and why.
        unmade: months that were wanted and are not there.
        busy: the tables were in use for as long as it tried: what is not told of as done is left for the next time.
    """

    partitioned: bool
    before: datetime | None = None
    made: list[str] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    unmade: list[Kept] = field(default_factory=list)
    busy: bool = False


def maintain(engine: Engine, *, now: datetime, keep_days: int | None = None, apply: bool = True) -> Maintained:
    """Make the months that are due, and drop those that lie more than *keep_days* back, if that is given.

    Each month is made in one transaction, all are dropped in another: killed, it is done the next time. Nobody ever
    waits behind it for a lock, and of two at once the second is told that the tables are in use.

    Raises:
        InvalidSetting: the database's role does not own the tables.
    """
    now = utc(now, "now")
    if engine.dialect.name != "postgresql":
        return Maintained(partitioned=False)
    done = Maintained(partitioned=True)
    with reading(engine) as session:
        if apply:
            partitions.check_owner(session)
        done.before = _keep_from(session, now, keep_days)
    try:
        _make(engine, done, now, apply=apply)
        _drop(engine, done, apply=apply)
        if apply:
            analyze_tables(engine, partitions.TABLES)
    except DBAPIError as error:
        if not partitions.is_busy(error):
            raise
        done.busy = True
        log.warning("maintain.busy", made=done.made)
    return done


def _keep_from(session: Session, now: datetime, keep_days: int | None) -> datetime | None:
    """Return the candle that all is kept from; a dead feed, or a clock that runs ahead, makes no evidence older."""
    newest = session.exec(select(func.max(DecisionTally.newest_candle_s))).one()
    if keep_days is None or newest is None:
        return None
    return min(now, datetime.fromtimestamp(newest, UTC)) - timedelta(days=max(keep_days, KEEP_AT_LEAST))


def _make(engine: Engine, done: Maintained, now: datetime, *, apply: bool) -> None:
    due = [partitions.month_at(now)]
    while len(due) <= AHEAD:
        due.append(partitions.month_at(due[-1].end or now))
    for month in due:
        try:
            made = _made(engine, month, apply=apply)
        except InvariantRefused:
            done.unmade.append(Kept(month.name, "rows of it stand in the default partition already, and stay"))
        except DBAPIError as error:
            if not partitions.is_timeout(error):
                raise
            done.unmade.append(Kept(month.name, _TOO_LARGE))
            return  # the next one would take as long
        else:
            done.made += [month.name] if made else []


def _made(engine: Engine, month: Month, *, apply: bool) -> bool:
    """Make a month that is not there, or look whether it can be; return whether there was anything to do.

    Raises:
        InvariantRefused: rows of it stand in the default partition, or came there in the last moment.
        DBAPIError: see `partitions.changing` and `partitions.is_timeout`.
    """
    with reading(engine) as session:  # where nobody waits for the search
        if _is_there(session, month):
            return False
        if partitions.default_holds(session, month):
            raise InvariantRefused(month.name)
    if apply:
        with partitions.changing(engine) as session:
            if _is_there(session, month):  # another maintenance was here meanwhile
                return False
            partitions.hold_tables(session)
            partitions.make(session, month)
        log.info("maintain.made", month=month.name)
    return True


def _is_there(session: Session, month: Month) -> bool:
    return month.start is None or partitions.month_of(month.start, partitions.months(session)).name != DEFAULT


def _drop(engine: Engine, done: Maintained, *, apply: bool) -> None:
    if done.before is None:
        return
    if not apply:
        with reading(engine) as session:
            old = _older(session, done.before)
            done.dropped += [_counted(session, month) for month in _let_go(session, old, done)]
        return
    with partitions.changing(engine) as session:
        old = _older(session, done.before)
        if not old:
            return
        partitions.block_writes(session, old)  # what is found of them from here on stays so
        still = [month for month in _older(session, done.before) if month.name in {each.name for each in old}]
        free = _let_go(session, still, done)
        going = [_counted(session, month) for month in free]
        if free:
            partitions.hold_tables(session, free)
        for month in free:
            partitions.drop(session, month)
    done.dropped += going
    for each in going:
        log.info(
            "maintain.dropped", month=each.month, decisions=each.decisions, outcomes=each.outcomes, marks=each.marks
        )


def _older(session: Session, before: datetime) -> list[Month]:
    """Return the months that end before then; the default partition too, as ending with its newest row."""
    known = [*partitions.months(session), Month(DEFAULT, end=partitions.newest_without_month(session))]
    return [month for month in known if month.end is not None and month.end <= before]


def _let_go(session: Session, old: Sequence[Month], done: Maintained) -> list[Month]:
    """Return those of *old* that nothing needs any more; note why the others stay."""
    known = partitions.months(session)
    needed = {partitions.month_of(moment, known).name: why for moment, why in _needed(session)}
    for started_at, why in _open(session):
        first = started_at - LOOK_BACK
        needed |= {month.name: why for month in old if month.end is not None and month.end >= first}
    done.kept += [Kept(month.name, needed[month.name]) for month in old if month.name in needed]
    return [month for month in old if month.name not in needed]


def _open(session: Session) -> Iterator[tuple[datetime, str]]:
    """Yield when each open rollout began: its gates read from there on, and what it was measured by before."""
    for one in rollouts.open_rollouts(session):
        since = f"{one.started_at:%Y-%m-%d}"
        yield one.started_at, f"{one.strategy_name} {one.version} has been in a rollout since {since}, and looks back"


def _needed(session: Session) -> Iterator[tuple[datetime, str]]:
    """Yield the candles that a run still goes on from: unbooked signals, and each version's newest decision."""
    for version in versions.list_versions(session):
        horizon = ScoringRule.model_validate(versions.get_strategy(session, version.strategy_name).scoring).horizon
        for symbol in version.symbols:
            name = f"{version.strategy_name} {version.version}"
            newest = decisions.newest_decided(session, version.strategy_name, version.version, symbol)
            if newest is not None and version.status != Status.RETIRED:
                yield newest, f"the newest decision of {name} on {symbol}"
            for signal, _ in decisions.signals_to_score(session, version, symbol, horizon=horizon):
                yield signal, f"a signal of {name} on {symbol} at {signal:%Y-%m-%d %H:%M} UTC is not booked"


def _counted(session: Session, month: Month) -> Dropped:
    rows = partitions.size(session, month)
    return Dropped(month.name, rows["shadow_decision_log"], rows["outcome"], rows["equity_mark"])


def said(done: Maintained, *, dry_run: bool = False) -> list[str]:
    """Return in lines what was done, or would be."""
    if not done.partitioned:
        return ["SQLite has no months: there is nothing to do, and nothing is ever dropped"]
    would = "would be " if dry_run else ""
    lines = [f"{month}: {would}made" for month in done.made]
    lines += [
        f"{each.month}: {would}dropped, {each.decisions:,} decisions, {each.outcomes:,} outcomes, {each.marks:,} marks"
        for each in done.dropped
    ]
    lines += [f"{each.month}: stays, {each.why}" for each in done.kept]
    lines += [f"{each.month}: not made, {each.why}" for each in done.unmade]
    if done.busy:
        lines.append("the tables are in use: what is not told of as done is left for the next time")
    if done.before is None:
        return [*lines, "all is kept: ROLLOUT_KEEP_DAYS is not set, or nothing is decided yet"]
    return [*lines, f"all is kept of candles from {done.before:%Y-%m-%d} on"]


@dataclass(frozen=True, slots=True)
class Wholeness:
    """What `check_database` found.

    Attributes:
        revision: of the schema, which is this release's.
        missing: in words, what guards the rows and is not there.
        trail: what the audit chains are.
    """

    revision: str
    missing: Sequence[str]
    trail: Verification

    @property
    def holds(self) -> bool:
        return not self.missing and self.trail.holds


def check_database(engine: Engine) -> Wholeness:
    """Look at all of it: after a restore, after an upgrade, and whenever somebody has been in the database by hand.

    Raises:
        SchemaOutdated: it is empty, or of another release.
    """
    return Wholeness(check_schema(engine), missing_guards(engine), verify_trail(engine))
