"""The months in which PostgreSQL keeps evidence: which there are, made and dropped whole; never which may be dropped.

A month is one partition of each table, under one name: made and dropped together, and never seen by halves. Whoever
changes them asks for his locks without waiting in their queue, where ticks and runs would wait behind him.
"""

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError
from sqlmodel import Session

from strategy_core.domain.errors import InvalidSetting
from strategy_core.store.engine import address, cancel_when_idle, transaction

TABLES = ("shadow_decision_log", "outcome", "equity_mark")
DEFAULT = "default"
LOCKS_WITHIN_S = 30.0  # then it gives up: the next night is soon enough
_POLL_S = 0.05
_ONE_CHANGE = 2_118_903_774_650_331  # any number, the same in every release: the lock that one change at a time has
HELD_WITHIN = "5s"  # by one statement, once it has them: a default partition is searched when a month is made
_BUSY = ("55P03", "25P03")  # a lock that was not to be had, a process that was stuck
_TOO_LONG = "57014"
_AS = "%Y-%m-%d 00:00:00+00"
_BOUNDS = re.compile(r"FROM \((?:'(?P<start>[^']+)'|MINVALUE)\) TO \('(?P<end>[^']+)'\)")
_PARTITIONS = """
SELECT part.relname, pg_get_expr(part.relpartbound, part.oid) FROM pg_inherits
JOIN pg_class AS whole ON whole.oid = inhparent JOIN pg_class AS part ON part.oid = inhrelid
WHERE whole.relname = :table AND whole.relnamespace = current_schema()::regnamespace
"""
_OWNED = """
SELECT bool_and(pg_has_role(relowner, 'USAGE')) FROM pg_class
WHERE relname = ANY(:tables) AND relnamespace = current_schema()::regnamespace
"""
_AS_OWNER = """
SELECT set_config('search_path', quote_ident(current_schema()), true),
    set_config('role', pg_get_userbyid(relowner), true)
FROM pg_class WHERE relname = :table AND relnamespace = current_schema()::regnamespace
"""
_GRANTED = """
SELECT privilege_type, CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END, is_grantable
FROM pg_class, aclexplode(relacl)
WHERE relname = :table AND relnamespace = current_schema()::regnamespace AND grantee <> relowner
"""
_KEYS = {
    "shadow_decision_log": ("PRIMARY KEY (id)",),
    "outcome": (
        "PRIMARY KEY (decision_id)",
        "FOREIGN KEY (decision_id) REFERENCES shadow_decision_log_{month} (id)",
    ),
    "equity_mark": (),
}


@dataclass(frozen=True, slots=True)
class Month:
    """One partition of each table, of candles in [start, end); None is without an end, both is what no other takes."""

    name: str
    start: datetime | None = None
    end: datetime | None = None

    def covers(self, moment: datetime) -> bool:
        return self.end is not None and moment < self.end and (self.start is None or moment >= self.start)


def month_at(moment: datetime) -> Month:
    """Return the month of *moment* as `make` makes it."""
    start = moment.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return Month(f"{start:%Y_%m}", start, (start + timedelta(days=31)).replace(day=1))


def months(session: Session) -> list[Month]:
    """Return the months that are there, oldest first, the default last."""
    session.connection().execute(text("SET LOCAL datestyle = 'ISO'"))
    found = []
    for name, bounds in session.connection().execute(text(_PARTITIONS), {"table": TABLES[0]}):
        within = _BOUNDS.search(bounds)
        start, end = (within["start"], within["end"]) if within else (None, None)
        found.append(Month(name.removeprefix(f"{TABLES[0]}_"), _moment(start), _moment(end)))
    beginning, ending = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
    return sorted(found, key=lambda each: (each.end or ending, each.start or beginning))


def month_of(moment: datetime, known: Sequence[Month]) -> Month:
    """Return where a row of that candle stands."""
    return next((each for each in known if each.covers(moment)), Month(DEFAULT))


def check_owner(session: Session) -> None:
    """Raise InvalidSetting unless this role owns the tables: nobody else may make a month, or drop one."""
    if not session.connection().execute(text(_OWNED), {"tables": list(TABLES)}).scalar():
        database = address(session.get_bind().engine)
        raise InvalidSetting("ROLLOUT_DATABASE_URL", database, "a role that owns the tables, as db upgrade has")


def size(session: Session, month: Month) -> dict[str, int]:
    """Return how many rows of each table stand in the month."""
    counted = ((table, f"SELECT count(*) FROM {table}_{month.name}") for table in TABLES)  # noqa: S608  our own names
    return {table: session.connection().execute(text(query)).scalar_one() for table, query in counted}


def newest_without_month(session: Session) -> datetime | None:
    """Return the newest candle of a decision that no month was there for."""
    newest: datetime | None = (
        session.connection().execute(text(f"SELECT max(timestamp) FROM {TABLES[0]}_{DEFAULT}")).scalar()  # noqa: S608
    )
    return newest


def stand_without_month(session: Session, month: Month) -> bool:
    """Return whether rows of *month*, which is not there, stand in the default partition: it can be made no more.

    Raises:
        DBAPIError: it takes longer to search than it may when the month is made; see `took_too_long`.
    """
    session.connection().execute(text(f"SET LOCAL statement_timeout = '{HELD_WITHIN}'"))
    within = {"start": month.start, "end": month.end}
    asked = (
        f"SELECT EXISTS (SELECT FROM {table} WHERE timestamp >= :start AND timestamp < :end)"  # noqa: S608
        for table in TABLES
    )
    return any(session.connection().execute(text(query), within).scalar() for query in asked)


@contextmanager
def changing(engine: Engine) -> Iterator[Session]:
    """Yield a transaction of the tables' owner, the one of its kind, which waits for no lock and ends if it is stuck.

    Raises:
        DBAPIError: something that it needs is in use; see `is_busy`.
    """
    with transaction(engine) as session:
        cancel_when_idle(session)  # it is about to hold what every rollback waits for
        session.connection().execute(text("SET LOCAL statement_timeout = 0"))  # until it holds the tables
        session.connection().execute(text("SET LOCAL lock_timeout = '1ms'"))
        session.connection().execute(text(f"SELECT pg_advisory_xact_lock({_ONE_CHANGE})"))
        session.connection().execute(text(_AS_OWNER), {"table": TABLES[0]})  # whose a new month is, whoever makes it
        yield session


def is_busy(error: DBAPIError) -> bool:
    return getattr(error.orig, "sqlstate", None) in _BUSY


def took_too_long(error: DBAPIError) -> bool:
    return getattr(error.orig, "sqlstate", None) == _TOO_LONG


def let_nobody_write(session: Session, chosen: Sequence[Month]) -> None:
    """Have whoever writes into these months wait until this transaction has ended; readers go on."""
    names = ", ".join(f"{table}_{month.name}" for month in chosen for table in TABLES)
    session.connection().execute(text(f"LOCK TABLE {names} IN SHARE MODE NOWAIT"))


def hold_tables(session: Session, chosen: Sequence[Month] = ()) -> None:
    """Have everybody wait until this transaction has ended, once nobody is in the tables; ask until then."""
    months_too = [f"{table}_{name}" for name in (*(month.name for month in chosen), DEFAULT) for table in TABLES]
    wanted = ", ".join([*(f"ONLY {table}" for table in TABLES), *dict.fromkeys(months_too)])
    deadline = time.monotonic() + LOCKS_WITHIN_S
    while True:
        try:
            with session.begin_nested():
                session.connection().execute(text("LOCK TABLE strategy_version IN SHARE ROW EXCLUSIVE MODE NOWAIT"))
                session.connection().execute(text(f"LOCK TABLE {wanted} IN ACCESS EXCLUSIVE MODE NOWAIT"))
        except DBAPIError as error:
            if not is_busy(error) or time.monotonic() > deadline:
                raise
            time.sleep(_POLL_S)
        else:
            session.connection().execute(text(f"SET LOCAL statement_timeout = '{HELD_WITHIN}'"))
            return


def make(session: Session, month: Month) -> None:
    """Make a month, guarded as the others; the caller holds the tables.

    Raises:
        IntegrityError: rows of it stand in the default partition.
        DBAPIError: that one is so large that it takes too long to search; see `took_too_long`.
    """
    within = "DEFAULT" if month.end is None else f"FOR VALUES FROM ('{month.start:{_AS}}') TO ('{month.end:{_AS}}')"
    run = session.connection().execute
    for table in TABLES:
        partition = f"{table}_{month.name}"
        run(text(f"CREATE TABLE {partition} PARTITION OF {table} {within}"))
        for key in _KEYS[table]:
            run(text(f"ALTER TABLE {partition} ADD {key.format(month=month.name)}"))
        run(
            text(
                f"CREATE TRIGGER refuse_truncate_{table} BEFORE TRUNCATE ON {partition} FOR EACH STATEMENT "
                f"EXECUTE FUNCTION refuse_change('{table} is never emptied')"
            )
        )
        for privilege, grantee, grantable in run(text(_GRANTED), {"table": table}).all():
            passed_on = " WITH GRANT OPTION" if grantable else ""
            run(text(f"GRANT {privilege} ON {partition} TO {grantee}{passed_on}"))


def drop(session: Session, month: Month) -> None:
    """Drop a month with all that stands in it, outcomes before their decisions; the caller holds the tables."""
    for table in reversed(TABLES):
        session.connection().execute(text(f"DROP TABLE {table}_{month.name}"))
    if month.name == DEFAULT:
        make(session, Month(DEFAULT))


def _moment(bound: str | None) -> datetime | None:
    return datetime.fromisoformat(bound).astimezone(UTC) if bound else None
