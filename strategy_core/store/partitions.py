"""Monthly partitions of the evidence tables on PostgreSQL: list, create and drop them.

A month is one partition of each table, created and dropped in one transaction. Changes poll for their locks instead of
waiting in the lock queue, because ticks and runs would wait behind them there.
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
LOCKS_WITHIN_S = 30.0  # then give up until the next night
_POLL_S = 0.05
_CHANGE_LOCK = 2_118_903_774_650_331  # an arbitrary advisory-lock id, which must be the same in every release
HELD_WITHIN = "5s"  # per statement under lock: creating a month searches the default partition
_BUSY = ("55P03", "25P03")  # lock not available, idle-in-transaction timeout
_TIMEOUT = "57014"
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
    """One partition of each table, for candles in [start, end). Both are None for the default partition."""

    name: str
    start: datetime | None = None
    end: datetime | None = None

    def covers(self, moment: datetime) -> bool:
        return self.end is not None and moment < self.end and (self.start is None or moment >= self.start)


def month_at(moment: datetime) -> Month:
    """Return the calendar month of *moment*, for `make`."""
    start = moment.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return Month(f"{start:%Y_%m}", start, (start + timedelta(days=31)).replace(day=1))


def months(session: Session) -> list[Month]:
    """Return the existing months, oldest first, the default partition last."""
    session.connection().execute(text("SET LOCAL datestyle = 'ISO'"))
    found = []
    for name, bounds in session.connection().execute(text(_PARTITIONS), {"table": TABLES[0]}):
        within = _BOUNDS.search(bounds)
        start, end = (within["start"], within["end"]) if within else (None, None)
        found.append(Month(name.removeprefix(f"{TABLES[0]}_"), _moment(start), _moment(end)))
    beginning, ending = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
    return sorted(found, key=lambda each: (each.end or ending, each.start or beginning))


def month_of(moment: datetime, known: Sequence[Month]) -> Month:
    """Return the month that holds the rows of that candle."""
    return next((each for each in known if each.covers(moment)), Month(DEFAULT))


def check_owner(session: Session) -> None:
    """Raise InvalidSetting unless this role owns the tables, as creating and dropping months requires."""
    if not session.connection().execute(text(_OWNED), {"tables": list(TABLES)}).scalar():
        database = address(session.get_bind().engine)
        raise InvalidSetting("ROLLOUT_DATABASE_URL", database, "a role that owns the tables, as db upgrade has")


def size(session: Session, month: Month) -> dict[str, int]:
    """Return the number of rows of each table in the month."""
    counted = ((table, f"SELECT count(*) FROM {table}_{month.name}") for table in TABLES)  # noqa: S608  our own names
    return {table: session.connection().execute(text(query)).scalar_one() for table, query in counted}


def newest_without_month(session: Session) -> datetime | None:
    """Return the newest candle in the default partition of the decision log."""
    newest: datetime | None = (
        session.connection().execute(text(f"SELECT max(timestamp) FROM {TABLES[0]}_{DEFAULT}")).scalar()  # noqa: S608
    )
    return newest


def default_holds(session: Session, month: Month) -> bool:
    """Return whether the default partition has rows of the missing *month*, which then cannot be created.

    Raises:
        DBAPIError: the search exceeds the time it has when the month is created (see `is_timeout`).
    """
    session.connection().execute(text(f"SET LOCAL statement_timeout = '{HELD_WITHIN}'"))
    within = {"start": month.start, "end": month.end}
    queries = (
        f"SELECT EXISTS (SELECT FROM {table} WHERE timestamp >= :start AND timestamp < :end)"  # noqa: S608
        for table in TABLES
    )
    return any(session.connection().execute(text(query), within).scalar() for query in queries)


@contextmanager
def changing(engine: Engine) -> Iterator[Session]:
    """Yield a transaction as the tables' owner, one at a time, that does not wait for locks.

    Raises:
        DBAPIError: a lock is not available (see `is_busy`).
    """
    with transaction(engine) as session:
        cancel_when_idle(session)  # it takes locks that every rollback waits for
        session.connection().execute(text("SET LOCAL statement_timeout = 0"))  # `hold_tables` sets one
        session.connection().execute(text("SET LOCAL lock_timeout = '1ms'"))
        session.connection().execute(text(f"SELECT pg_advisory_xact_lock({_CHANGE_LOCK})"))
        session.connection().execute(text(_AS_OWNER), {"table": TABLES[0]})  # the owner of new months
        yield session


def is_busy(error: DBAPIError) -> bool:
    return getattr(error.orig, "sqlstate", None) in _BUSY


def is_timeout(error: DBAPIError) -> bool:
    return getattr(error.orig, "sqlstate", None) == _TIMEOUT


def block_writes(session: Session, chosen: Sequence[Month]) -> None:
    """Block writes into these months until the transaction ends. Reads continue."""
    names = ", ".join(f"{table}_{month.name}" for month in chosen for table in TABLES)
    session.connection().execute(text(f"LOCK TABLE {names} IN SHARE MODE NOWAIT"))


def hold_tables(session: Session, chosen: Sequence[Month] = ()) -> None:
    """Lock the tables exclusively until the transaction ends, polling for up to `LOCKS_WITHIN_S`."""
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
    """Create a month with keys, triggers and privileges. The caller has called `hold_tables`.

    Raises:
        IntegrityError: the default partition has rows of this month.
        DBAPIError: searching the default partition takes too long (see `is_timeout`).
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
    """Drop a month with its rows, outcomes before their decisions. The caller has called `hold_tables`."""
    for table in reversed(TABLES):
        session.connection().execute(text(f"DROP TABLE {table}_{month.name}"))
    if month.name == DEFAULT:
        make(session, Month(DEFAULT))


def _moment(bound: str | None) -> datetime | None:
    return datetime.fromisoformat(bound).astimezone(UTC) if bound else None
