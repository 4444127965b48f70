"""The database: how it is opened and what a transaction is; never what is in it."""

import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import wraps
from itertools import count
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

from strategy_core.domain.errors import InvalidSetting, InvariantRefused, MissingExtra, SchemaOutdated, Unsettled
from strategy_core.store.bulk_insert import send_rows

_BUSY_SECONDS = 30
_OVERFLOW = 25  # connections beside the pool's 5: those that wait for a lock must leave some to a rollback
IDLE_SECONDS = 30  # between two statements of a change: who takes longer is stuck, or is a machine that has gone
_GIVE_WAY = "SET LOCAL idle_in_transaction_session_timeout = '{}s'"
_ROWS_PER_STATEMENT = 5_000
_ONE_UPGRADE = 7_406_355_206_117_209  # any number, the same in every release: the lock that upgrades queue for
_LOCKS_WITHIN = "10s"  # what an upgrade waits for holds up every rollback behind it
_ADDRESSES = "sqlite:///FILE or postgresql://USER@HOST/NAME"
_SETTLED_WITHIN_S, _ASKED_EVERY_S = 10.0, 0.2
_ASK = "ask whether kept"
_UNDONE = {"40001", "40P01", "55P03", "57P03", "53300"}  # serialization, deadlock, lock, starting up, too many clients
_STOOD_STILL = "25P03"
_BUSY = {SQLITE_BUSY, SQLITE_LOCKED}
_AT_MOST = {  # for a server that is gone without a word: else a tick would wait a quarter of an hour for it
    "connect_timeout": 10,
    "tcp_user_timeout": 30_000,  # milliseconds
    "keepalives_idle": 20,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}
_PASSWORD = re.compile(r"(?<=//)([^:@]*):.*@")


def open_database(url: str) -> Engine:
    """Return an engine for `sqlite:///file.db` or `postgresql://…`; it connects when first used.

    Raises:
        InvalidSetting: not a database address, or of another kind.
        MissingExtra: PostgreSQL without its driver.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # ValueError: a port that is no number
        raise InvalidSetting("database_url", _PASSWORD.sub(r"\1:***@", url), _ADDRESSES) from None
    kind = parsed.get_backend_name()
    if kind == "sqlite":
        return _sqlite(parsed.set(drivername="sqlite+pysqlite"))
    if kind == "postgresql":
        try:
            return _postgresql(parsed.set(drivername="postgresql+psycopg"))
        except ModuleNotFoundError:
            raise MissingExtra("PostgreSQL", "postgres") from None
    raise InvalidSetting("database_url", parsed.render_as_string(hide_password=True), _ADDRESSES)


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Bring the schema to *revision*, the newest unless given, in one transaction; nothing when it is there already.

    Two at once queue. On PostgreSQL one that finds a table held by a long query gives up, and may be tried again.

    Raises:
        SchemaOutdated: the schema is of a newer release, or of another software.
    """
    config = _migrations()
    with engine.execution_options(sqlite_begin="IMMEDIATE").begin() as connection:
        if _on_postgresql(engine):
            connection.execute(text(f"SELECT pg_advisory_xact_lock({_ONE_UPGRADE})"))
            connection.execute(text(f"SET LOCAL lock_timeout = '{_LOCKS_WITHIN}'"))
            connection.execute(text(_GIVE_WAY.format(IDLE_SECONDS)))
        found = MigrationContext.configure(connection).get_current_revision()
        if not _knows(found):
            raise SchemaOutdated(address(engine), found, _newest(), ahead=True)
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    with suppress(DBAPIError):  # the schema stands; `rollout db maintain` does it each night
        count_anew(engine, config.attributes.get("uncounted", ()))


def count_anew(engine: Engine, tables: Sequence[str]) -> None:
    """Have PostgreSQL count anew what its plans rest on: of a partitioned table nothing else ever does."""
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        for table in tables:
            connection.execute(text(f"ANALYZE {table}"))


def check_schema(engine: Engine) -> str:
    """Return the schema's revision, which is the newest; create nothing, not even a file of SQLite.

    Raises:
        SchemaOutdated: the database is empty, not there, or of another release.
    """
    found = _revision(engine)
    if found != _newest():
        raise SchemaOutdated(address(engine), found, _newest(), ahead=not _knows(found))
    return found


def check_known(engine: Engine) -> str:
    """Return the schema's revision, which is of this release or an earlier one; create nothing.

    Raises:
        SchemaOutdated: the database is empty, not there, or not of this software.
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
    """Return what an owner is told of a database that could not be had, or refused to work: one line."""
    said = str(error.orig).strip() or type(error.orig).__name__
    return f"the database refuses to work: {' '.join(said.splitlines()[0].split())}"


def address(engine: Engine) -> str:
    """Return the database's address as an owner gives it, without the password."""
    return engine.url.set(drivername=engine.dialect.name).render_as_string(hide_password=True)


def _migrations() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


def _newest() -> str:
    return ScriptDirectory.from_config(_migrations()).get_current_head() or ""


def revisions() -> list[str]:
    """Return every revision of the schema that this release knows, the newest first."""
    return [script.revision for script in ScriptDirectory.from_config(_migrations()).walk_revisions()]


def _knows(revision: str | None) -> bool:
    """Return whether this release made *revision*, or can go on from it."""
    return revision is None or revision in revisions()


@contextmanager
def transaction(engine: Engine) -> Iterator[Session]:
    """Yield a session whose work is committed whole on leaving, or not at all.

    Raises:
        InvariantRefused: a constraint of the database refused the change.
        Unsettled: the database was lost while it committed, and cannot be asked what became of it.
    """
    writing = engine.execution_options(sqlite_begin="IMMEDIATE")  # a deferred one may fail after it has read
    try:
        with Session(writing, expire_on_commit=False) as session:
            yield session
            try:
                session.commit()
            except DBAPIError as error:
                if not error.connection_invalidated or not _was_kept(engine, session, error):
                    raise
                session.expunge_all()  # what it holds stands in the database: closing would expire it
    except IntegrityError as error:
        raise InvariantRefused(str(error.orig).strip().splitlines()[0]) from error


def ask_whether_kept(session: Session, ask: Callable[[Session], bool]) -> None:
    """Say how to find out whether this transaction was committed, should the answer to its commit be lost.

    One that does not say so writes rows that are passed over when they come again: it may be done again.
    """
    session.info[_ASK] = ask


def _was_kept(engine: Engine, lost: Session, error: DBAPIError) -> bool:
    ask = lost.info.get(_ASK)
    if ask is None:
        return False
    until = time.monotonic() + _SETTLED_WITHIN_S
    while time.monotonic() < until:
        try:
            with reading(engine) as session:
                return bool(ask(session))
        except DBAPIError:
            time.sleep(_ASKED_EVERY_S)
    raise Unsettled(failure(error)) from error


def is_transient(error: DBAPIError) -> bool:
    """Return whether the database undid a transaction, or never began it, for what may be gone at the next try."""
    state = getattr(error.orig, "sqlstate", None)
    if isinstance(error.orig, SqliteError):
        return getattr(error.orig, "sqlite_errorcode", 0) & 0xFF in _BUSY
    if state == _STOOD_STILL:
        return False  # what was wished is old by now: made again, it would hit what came since
    unconnected = isinstance(error, OperationalError) and state is None
    return state in _UNDONE or error.connection_invalidated or unconnected


def give_way_when_stuck(session: Session) -> None:
    """Let PostgreSQL undo this transaction once it has asked nothing for `IDLE_SECONDS`.

    For whoever takes a lock that a rollback waits for; not for those who write evidence, which may take their time.
    """
    if session.get_bind().dialect.name == "postgresql":
        session.connection().execute(text(_GIVE_WAY.format(IDLE_SECONDS)))


@contextmanager
def reading(engine: Engine) -> Iterator[Session]:
    """Yield a session for queries alone: it sees one moment on SQLite and blocks nobody."""
    with Session(engine, expire_on_commit=False) as session:
        yield session


@contextmanager
def snapshot(engine: Engine) -> Iterator[Session]:
    """Yield a session for queries alone that all see one moment, on both databases, however long they take."""
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
        connect_args={name: value for name, value in _AT_MOST.items() if name not in url.query},
    )
    event.listen(engine, "do_execute", send_rows)
    return engine


def _sqlite(url: Any) -> Engine:
    waiting = {} if "timeout" in url.query else {"timeout": _BUSY_SECONDS}
    engine = create_engine(url, connect_args=waiting)
    event.listen(engine, "do_execute", send_rows)

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver's own BEGIN comes too late for IMMEDIATE
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA recursive_triggers=ON")  # else INSERT OR REPLACE deletes past the triggers

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        mode = connection.get_execution_options().get("sqlite_begin", "DEFERRED")
        connection.exec_driver_sql(f"BEGIN {mode}")

    return engine


def insert_if_new(session: Session, table: type[SQLModel], rows: Sequence[Mapping[str, Any]]) -> int:
    """Insert *rows* whose natural keys are new, pass over the others, and return how many were new."""
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


P = ParamSpec("P")
R = TypeVar("R")

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.02, 1.0


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long work is tried: so often and so long at least, whichever comes last.

    Attributes:
        tries: of which each may have waited for a lock of SQLite as long as it waits.
        seconds: since the first try began.
    """

    tries: int
    seconds: float


DEFAULT_RETRY = RetryPolicy(tries=1, seconds=3.0)
ROLLBACK_RETRY = RetryPolicy(
    tries=3, seconds=10.0
)  # users lose money meanwhile; what else there is comes again by itself


def retry_transient(persistence: RetryPolicy = DEFAULT_RETRY) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Run a use case again after a deadlock, a lost connection or a busy database, with growing random waits."""

    def decorate(work: Callable[P, R]) -> Callable[P, R]:
        @wraps(work)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            until = time.monotonic() + persistence.seconds
            for tries in count(1):
                try:
                    return work(*args, **kwargs)
                except DBAPIError as error:
                    if not is_transient(error) or (tries >= persistence.tries and time.monotonic() >= until):
                        raise
                wait = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2 ** min(tries, 10))
                time.sleep(wait * random.uniform(0.5, 1.0))  # noqa: S311  so that two that met do not meet again
            raise AssertionError

        return run

    return decorate
