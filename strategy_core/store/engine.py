"""Open the database, upgrade its schema, run transactions, and retry them after transient errors."""

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from sqlite3 import SQLITE_BUSY, SQLITE_LOCKED
from sqlite3 import Error as SqliteError
from typing import Any, ParamSpec, TypeVar

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, OperationalError
from sqlmodel import Session, SQLModel
from tenacity import retry, retry_if_exception, stop_after_attempt, stop_after_delay, stop_all, wait_random_exponential

from strategy_core.domain.errors import InvalidSetting, InvariantRefused, SchemaOutdated, Unsettled
from strategy_core.store.bulk_insert import send_rows

P = ParamSpec("P")
R = TypeVar("R")

IDLE_SECONDS = 30  # between two statements of a change. After that the client is stuck or its machine is gone
_BUSY_SECONDS = 30  # how long SQLite waits for another writer
_OVERFLOW = 25  # connections beyond the pool's 5: requests that wait for a lock must leave some for a rollback
_SET_IDLE_TIMEOUT = "SET LOCAL idle_in_transaction_session_timeout = '{}s'"
_ROWS_PER_STATEMENT = 5_000
_UPGRADE_LOCK = 7_406_355_206_117_209  # an arbitrary advisory-lock id, which must be the same in every release
_LOCKS_WITHIN = "10s"  # a rollback queues behind the lock that an upgrade waits for
_ADDRESSES = "sqlite:///FILE or postgresql://USER@HOST/NAME"
_COMMIT_CHECK = "commit check"  # key in `Session.info`
_COMMIT_CHECK_WITHIN_S, _COMMIT_CHECK_EVERY_S = 10.0, 0.2
_TRANSIENT_STATES = {  # SQLSTATE
    "40001",  # serialization failure
    "40P01",  # deadlock
    "55P03",  # lock not available
    "57P03",  # the server is starting up
    "53300",  # too many connections
}
_IDLE_TIMEOUT_STATE = "25P03"
_SQLITE_BUSY = {SQLITE_BUSY, SQLITE_LOCKED}
_SHORTEST_WAIT_S, _FIRST_WAIT_S, _LONGEST_WAIT_S = 0.02, 0.04, 1.0  # the first wait is at most 0.04 s
_CONNECT_TIMEOUTS = {  # without these a tick would wait 15 minutes for a server that vanished
    "connect_timeout": 10,
    "tcp_user_timeout": 30_000,  # milliseconds
    "keepalives_idle": 20,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}
_PASSWORD = re.compile(r"(?<=//)([^:@]*):.*@")


def open_database(url: str) -> Engine:
    """Return an engine for `sqlite:///file.db` or `postgresql://…`. It connects when first used.

    Raises:
        InvalidSetting: *url* is not an address of SQLite or PostgreSQL.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # ValueError: the port is not a number
        raise InvalidSetting("database_url", _PASSWORD.sub(r"\1:***@", url), _ADDRESSES) from None
    kind = parsed.get_backend_name()
    if kind == "sqlite":
        return _sqlite(parsed.set(drivername="sqlite+pysqlite"))
    if kind == "postgresql":
        return _postgresql(parsed.set(drivername="postgresql+psycopg"))
    raise InvalidSetting("database_url", parsed.render_as_string(hide_password=True), _ADDRESSES)


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Migrate the schema to *revision* in one transaction.

    Concurrent upgrades queue. On PostgreSQL an upgrade gives up after 10 s when a long query holds a table. It can
    then be run again.

    Raises:
        SchemaOutdated: the schema belongs to a newer release or to other software.
    """
    config = _migrations()
    with engine.execution_options(sqlite_begin="IMMEDIATE").begin() as connection:
        if _on_postgresql(engine):
            connection.execute(text(f"SELECT pg_advisory_xact_lock({_UPGRADE_LOCK})"))
            connection.execute(text(f"SET LOCAL lock_timeout = '{_LOCKS_WITHIN}'"))
            connection.execute(text(_SET_IDLE_TIMEOUT.format(IDLE_SECONDS)))
        found = MigrationContext.configure(connection).get_current_revision()
        if not _knows(found):
            raise SchemaOutdated(address(engine), found, _newest(), ahead=True)
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    with suppress(DBAPIError):  # the schema is upgraded, and `rollout db maintain` analyzes every night
        analyze_tables(engine, config.attributes.get("uncounted", ()))


def analyze_tables(engine: Engine, tables: Sequence[str]) -> None:
    """Refresh PostgreSQL's planner statistics, which autovacuum does not do for partitioned parent tables."""
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        for table in tables:
            connection.execute(text(f"ANALYZE {table}"))


def check_schema(engine: Engine) -> str:
    """Check that the schema is at the newest revision, and return it. Does not create a SQLite file.

    Raises:
        SchemaOutdated: the database is missing, empty or at another revision.
    """
    found = _revision(engine)
    if found != _newest():
        raise SchemaOutdated(address(engine), found, _newest(), ahead=not _knows(found))
    return found


def check_known(engine: Engine) -> str:
    """Check that the schema belongs to this release or an earlier one, and return its revision. Creates no file.

    Raises:
        SchemaOutdated: the database is missing, empty or belongs to other software.
    """
    found = _revision(engine)
    if found is None or not _knows(found):
        raise SchemaOutdated(address(engine), found, _newest(), ahead=not _knows(found))
    return found


def _revision(engine: Engine) -> str | None:
    file = engine.url.database if engine.dialect.name == "sqlite" else None
    if file is not None and not Path(file).exists():
        return None
    with engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def failure(error: DBAPIError) -> str:
    """Return a database error as one line for owners."""
    message = str(error.orig).strip() or type(error.orig).__name__
    return f"the database refuses to work: {' '.join(message.splitlines()[0].split())}"


def address(engine: Engine) -> str:
    """Return the database's address in the form of the setting, without the password."""
    return engine.url.set(drivername=engine.dialect.name).render_as_string(hide_password=True)


def _migrations() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


def _newest() -> str:
    return ScriptDirectory.from_config(_migrations()).get_current_head() or ""


def revisions() -> list[str]:
    """Return all schema revisions known to this release, newest first."""
    return [script.revision for script in ScriptDirectory.from_config(_migrations()).walk_revisions()]


def _knows(revision: str | None) -> bool:
    """Return whether this release can upgrade from *revision* (None: an empty database)."""
    return revision is None or revision in revisions()


@contextmanager
def transaction(engine: Engine) -> Iterator[Session]:
    """Yield a session that commits on exit and rolls back on an error.

    Raises:
        InvariantRefused: a database constraint refused the change.
        Unsettled: the connection was lost during the commit, and its result cannot be looked up.
    """
    writing = engine.execution_options(sqlite_begin="IMMEDIATE")  # a deferred transaction may fail after its first read
    try:
        with Session(writing, expire_on_commit=False) as session:
            yield session
            try:
                session.commit()
            except DBAPIError as error:
                if not error.connection_invalidated or not _was_committed(engine, session, error):
                    raise
                session.expunge_all()  # the rows are committed, and closing the session would expire them
    except IntegrityError as error:
        raise InvariantRefused(str(error.orig).strip().splitlines()[0]) from error


def set_commit_check(session: Session, check: Callable[[Session], bool]) -> None:
    """Set how to find out whether this transaction was committed, in case the connection is lost during the commit.

    A transaction without a check must be idempotent, because it may be retried after a commit.
    """
    session.info[_COMMIT_CHECK] = check


def _was_committed(engine: Engine, lost: Session, error: DBAPIError) -> bool:
    check = lost.info.get(_COMMIT_CHECK)
    if check is None:
        return False
    until = time.monotonic() + _COMMIT_CHECK_WITHIN_S
    while time.monotonic() < until:
        try:
            with reading(engine) as session:
                return bool(check(session))
        except DBAPIError:
            time.sleep(_COMMIT_CHECK_EVERY_S)
    raise Unsettled(failure(error)) from error


def is_transient(error: DBAPIError) -> bool:
    """Return whether the transaction failed for a reason that may be gone at the next try."""
    state = getattr(error.orig, "sqlstate", None)
    if isinstance(error.orig, SqliteError):
        return getattr(error.orig, "sqlite_errorcode", 0) & 0xFF in _SQLITE_BUSY
    if state == _IDLE_TIMEOUT_STATE:
        return False  # the change is stale: retried, it would apply to what happened in between
    unconnected = isinstance(error, OperationalError) and state is None
    return state in _TRANSIENT_STATES or error.connection_invalidated or unconnected


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Stop after *tries* tries and *seconds* seconds, when both have been reached.

    Attributes:
        tries: each may itself have waited `_BUSY_SECONDS` for SQLite.
        seconds: counted from the start of the first try.
    """

    tries: int
    seconds: float


DEFAULT_RETRY = RetryPolicy(tries=1, seconds=3.0)
ROLLBACK_RETRY = RetryPolicy(tries=3, seconds=10.0)  # users lose money while it waits. Other work runs again anyway


def retry_transient(policy: RetryPolicy = DEFAULT_RETRY) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Retry a use case after deadlocks, serialization failures, lost connections and a busy database.

    Waits are random and grow from 0.02 s to 1 s, so that two transactions that collided do not collide again.
    The last error is raised unchanged.
    """
    return retry(
        retry=retry_if_exception(lambda error: isinstance(error, DBAPIError) and is_transient(error)),
        stop=stop_all(stop_after_attempt(policy.tries), stop_after_delay(policy.seconds)),
        wait=wait_random_exponential(multiplier=_FIRST_WAIT_S, min=_SHORTEST_WAIT_S, max=_LONGEST_WAIT_S),
        reraise=True,
    )


def cancel_when_idle(session: Session) -> None:
    """Let PostgreSQL cancel this transaction after `IDLE_SECONDS` without a statement.

    Call it before taking a lock that a rollback may wait for. Transactions that only write evidence do not need it.
    """
    if session.get_bind().dialect.name == "postgresql":
        session.connection().execute(text(_SET_IDLE_TIMEOUT.format(IDLE_SECONDS)))


@contextmanager
def reading(engine: Engine) -> Iterator[Session]:
    """Yield a read-only session. It blocks no writer. On SQLite all its queries see one moment."""
    with Session(engine, expire_on_commit=False) as session:
        yield session


@contextmanager
def snapshot(engine: Engine) -> Iterator[Session]:
    """Yield a read-only session in which all queries see the same moment, on both databases."""
    moment = engine.execution_options(isolation_level="REPEATABLE READ") if _on_postgresql(engine) else engine
    with reading(moment) as session:
        yield session


def _on_postgresql(engine: Engine) -> bool:
    return engine.dialect.name == "postgresql"


def _postgresql(url: Any) -> Engine:
    engine = create_engine(
        url,
        pool_pre_ping=True,
        max_overflow=_OVERFLOW,
        connect_args={name: value for name, value in _CONNECT_TIMEOUTS.items() if name not in url.query},
    )
    event.listen(engine, "do_execute", send_rows)
    return engine


def _sqlite(url: Any) -> Engine:
    waiting = {} if "timeout" in url.query else {"timeout": _BUSY_SECONDS}
    engine = create_engine(url, connect_args=waiting)
    event.listen(engine, "do_execute", send_rows)

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver issues BEGIN too late for IMMEDIATE
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA recursive_triggers=ON")  # without it INSERT OR REPLACE bypasses the delete triggers

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        mode = connection.get_execution_options().get("sqlite_begin", "DEFERRED")
        connection.exec_driver_sql(f"BEGIN {mode}")

    return engine


def insert_if_new(session: Session, table: type[SQLModel], rows: Sequence[Mapping[str, Any]]) -> int:
    """Insert the rows with a new key, skip the others, and return the number inserted."""
    if not rows:
        return 0
    statement = _insert_if_new(session, table).execution_options(preserve_rowcount=True)
    done = 0
    for start in range(0, len(rows), _ROWS_PER_STATEMENT):
        batch = [dict(row) for row in rows[start : start + _ROWS_PER_STATEMENT]]
        done += session.connection().execute(statement, batch).rowcount
    return done


def _insert_if_new(session: Session, table: type[SQLModel]) -> Any:
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    return insert(table).on_conflict_do_nothing()
