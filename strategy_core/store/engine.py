"""Open the database, upgrade its schema, run transactions, and retry them after transient errors."""

import os
import pwd
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from sqlite3 import SQLITE_BUSY, SQLITE_LOCKED, SQLITE_PROTOCOL
from sqlite3 import Error as SqliteError
from typing import Any, ParamSpec, TypeVar

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import ExceptionContext, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, OperationalError
from sqlmodel import Session, SQLModel
from tenacity import retry, retry_if_exception, stop_after_attempt, stop_after_delay, stop_all, wait_random_exponential

from strategy_core.domain.errors import DatabaseLocked, InvalidSetting, InvariantRefused, SchemaOutdated, Unsettled
from strategy_core.store.bulk_insert import send_rows

P = ParamSpec("P")
R = TypeVar("R")

IDLE_SECONDS = 30  # between two statements of a change. After that the client is stuck or its machine is gone
BUSY_SECONDS = 30  # how long SQLite waits for another writer
LOCK_BUDGET_S = 3.0  # all waits of one rollback for SQLite's locks: the whole command then takes less than 10 s
_OVERFLOW = 25  # connections beyond the pool's 5: requests that wait for a lock must leave some for a rollback
_SET_IDLE_TIMEOUT = "SET LOCAL idle_in_transaction_session_timeout = '{}s'"
_ROWS_PER_STATEMENT = 5_000
_READ_ONLY = "ro"
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
_SQLITE_BUSY = {SQLITE_BUSY, SQLITE_LOCKED, SQLITE_PROTOCOL}
_HOLDERS = "rollout_lock_holders"  # attribute of the driver's error
_WAIT_MS = "lock_wait_ms"  # key in the `info` of a connection
_PROCESSES, _LOCK_TABLE = Path("/proc"), Path("/proc/locks")
_LOCK_COLUMNS, _END_OF_FILE = 8, 2**63  # a lock that still waits has a ninth column
_LONGEST_COMMAND = 200
_LOOK_EVERY_S = 0.05
_budget: ContextVar["_LockBudget | None"] = ContextVar("lock_budget", default=None)
_SHORTEST_WAIT_S, _FIRST_WAIT_S, _LONGEST_WAIT_S = 0.02, 0.04, 1.0  # the first wait is at most 0.04 s
_CONNECT_TIMEOUTS = {  # without these a tick would wait 15 minutes for a server that vanished
    "connect_timeout": 10,
    "tcp_user_timeout": 30_000,  # milliseconds
    "keepalives_idle": 20,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}
_SERVER_TIMEOUTS = {  # a server keeps the locks of a client that vanished, by default for up to two hours
    "tcp_user_timeout": 30_000,  # milliseconds
    "tcp_keepalives_idle": 20,
    "tcp_keepalives_interval": 5,
    "tcp_keepalives_count": 3,
}
_PASSWORD = re.compile(r"(?<=//)([^:@]*):.*@")


def open_database(url: str) -> Engine:
    """Return an engine for `sqlite:///file.db` or `postgresql://…`. It connects when first used.

    `?mode=ro` opens a SQLite file only for reading. For PostgreSQL use
    `?options=-c%20default_transaction_read_only=on`, or a role that may only read.

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
    """Return a database error as one line for owners. For a locked SQLite database it names the process."""
    if (locked := as_locked(error)) is not None:
        return str(locked)
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


def is_disconnected(error: BaseException) -> bool:
    """Return whether the connection was lost, so that the whole transaction has to be retried."""
    return isinstance(error, DBAPIError) and error.connection_invalidated


def is_locked(error: BaseException) -> bool:
    """Return whether another connection holds a lock of a SQLite database."""
    found = getattr(error, "orig", None)
    return isinstance(found, SqliteError) and getattr(found, "sqlite_errorcode", 0) & 0xFF in _SQLITE_BUSY


def as_locked(error: BaseException) -> DatabaseLocked | None:
    """Return the error that names the processes that hold the lock, or None for any other error."""
    if not is_locked(error):
        return None
    return _locked_by(getattr(getattr(error, "orig", None), _HOLDERS, ()))


def _locked_by(holders: Sequence["LockHolder"]) -> DatabaseLocked:
    return DatabaseLocked(holders=[str(each) for each in holders], pids=[each.pid for each in holders])


@dataclass(frozen=True, slots=True)
class LockHolder:
    """A process that holds a lock of a SQLite database. *command* and *user* are empty where they are not visible."""

    pid: int
    command: str
    user: str

    def __str__(self) -> str:
        facts = [self.command, f"user {self.user}" if self.user else ""]
        shown = ", ".join(each for each in facts if each)
        return f"process {self.pid} ({shown})" if shown else f"process {self.pid}"


@dataclass(frozen=True, slots=True)
class _LockBudget:
    deadline: float  # monotonic seconds
    end: Callable[["LockHolder"], bool]

    @property
    def left(self) -> float:
        return self.deadline - time.monotonic()


@contextmanager
def lock_budget(end: Callable[["LockHolder"], bool], seconds: float | None = None) -> Iterator[None]:
    """Wait for locks of SQLite databases at most *seconds* together. A block inside another one has its budget.

    On Linux this looks who holds a lock, and waits before SQLite is asked: if SQLite also has to recover its shared
    memory, it waits ten seconds, whatever its busy timeout.

    Args:
        end: is called with each holder, and returns whether it has ended the holder.
        seconds: by default `LOCK_BUDGET_S`.

    Raises:
        DatabaseLocked: the budget is used up.
    """
    if _budget.get() is not None:
        yield
        return
    begun = _budget.set(_LockBudget(time.monotonic() + (LOCK_BUDGET_S if seconds is None else seconds), end))
    try:
        yield
    except DBAPIError as error:
        locked = as_locked(error)
        if locked is None:
            raise
        raise locked from error
    finally:
        _budget.reset(begun)


def _await_unlocked(database: Path) -> None:
    """Wait for the holders of locks, or end them, if there is a `lock_budget`."""
    budget = _budget.get()
    while budget is not None and (holders := lock_holders(database)):
        if sum(map(budget.end, holders)):  # each of them
            continue
        if budget.left <= 0.0:
            raise _locked_by(holders)
        time.sleep(_LOOK_EVERY_S)


def _lock_wait_ms(usual_s: float) -> int:
    budget = _budget.get()
    return int(1_000 * (usual_s if budget is None else min(usual_s, max(0.0, budget.left))))


def lock_holders(database: Path) -> list[LockHolder]:
    """Return the processes whose file locks keep others from writing to the SQLite database. Linux only, else empty.

    The files are not opened: closing a file releases all of the process's own locks on it, also SQLite's.
    """
    found: dict[int, None] = {}
    with suppress(OSError):
        table = [line.split() for line in _LOCK_TABLE.read_text().splitlines()]
        for file, blocking in ((Path(f"{database}-shm"), _blocks_wal), (database, _blocks_database)):
            with suppress(FileNotFoundError):
                place = file.stat()
                found |= dict.fromkeys(_pids(table, place, blocking))
    return [_describe(pid) for pid in found]


def _pids(table: list[list[str]], place: os.stat_result, blocking: Callable[[str, int, int], bool]) -> Iterator[int]:
    device = f"{os.major(place.st_dev):02x}:{os.minor(place.st_dev):02x}"
    for _, family, _, kind, pid, where, first, last in (row for row in table if len(row) == _LOCK_COLUMNS):
        found, _, inode = where.rpartition(":")
        end = _END_OF_FILE if last == "EOF" else int(last)
        if family not in ("POSIX", "OFDLCK") or int(inode) != place.st_ino or not blocking(kind, int(first), end):
            continue
        holders = [int(pid)] if family == "POSIX" else [each for each in _processes() if _has_lock(each, where)]
        # Some file systems, such as btrfs, show another device there than in stat.
        yield from (each for each in holders if found == device or _has_open(each, place))


def _blocks_wal(kind: str, first: int, last: int) -> bool:
    """A reader of the database holds a read lock on one of the bytes 123 to 128, which blocks nobody."""
    exclusive, shared = (120, 122), (123, 128)
    return _overlap(first, last, *exclusive) or (kind == "WRITE" and _overlap(first, last, *shared))


def _blocks_database(kind: str, first: int, last: int) -> bool:
    """Every connection holds a read lock on the 510 bytes after the first two."""
    pending = 0x4000_0000
    return _overlap(first, last, pending, pending) or (
        kind == "WRITE" and _overlap(first, last, pending, pending + 511)
    )


def _overlap(first: int, last: int, start: int, end: int) -> bool:
    return first <= end and last >= start


def _processes() -> list[int]:
    return [int(each.name) for each in _PROCESSES.iterdir() if each.name.isdecimal()]


def _has_lock(pid: int, where: str) -> bool:
    """Return whether the process has an open file with a lock on *where*: an OFD lock belongs to no process."""
    with suppress(OSError):
        for info in (_PROCESSES / str(pid) / "fdinfo").iterdir():
            with suppress(OSError):
                if any(line.startswith("lock:") and where in line.split() for line in info.read_text().splitlines()):
                    return True
    return False


def _has_open(pid: int, place: os.stat_result) -> bool:
    with suppress(OSError):
        for descriptor in (_PROCESSES / str(pid) / "fd").iterdir():
            with suppress(OSError):
                if os.path.samestat(descriptor.stat(), place):
                    return True
    return False


def _describe(pid: int) -> LockHolder:
    command_line = user = ""
    with suppress(OSError):
        arguments = (_PROCESSES / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        command_line = " ".join(arguments.split())[:_LONGEST_COMMAND]
        status = (_PROCESSES / str(pid) / "status").read_text()
        uid = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("Uid:"))
        user = str(uid)
        with suppress(KeyError):
            user = pwd.getpwuid(uid).pw_name
    return LockHolder(pid, "".join(each if each.isprintable() else "?" for each in command_line), user)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Stop after *tries* tries and *seconds* seconds, when both have been reached.

    Attributes:
        tries: each may itself have waited `BUSY_SECONDS` for SQLite.
        seconds: counted from the start of the first try.
        locks: also retry when SQLite is locked.
    """

    tries: int
    seconds: float
    locks: bool = True


DEFAULT_RETRY = RetryPolicy(tries=1, seconds=3.0)
ROLLBACK_RETRY = RetryPolicy(  # users lose money while it waits. Other work runs again anyway
    tries=3,
    seconds=10.0,
    locks=False,  # they have a `lock_budget`
)


def retry_transient(policy: RetryPolicy = DEFAULT_RETRY) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Retry a use case after deadlocks, serialization failures, lost connections and a busy database.

    Waits are random and grow from 0.02 s to 1 s, so that two transactions that collided do not collide again.
    The last error is raised unchanged.
    """

    def again(error: BaseException) -> bool:
        return isinstance(error, DBAPIError) and is_transient(error) and (policy.locks or not is_locked(error))

    return retry(
        retry=retry_if_exception(again),
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
    given = str(url.query.get("options", ""))
    timeouts = [
        f"set_config('{name}', '{value}', false)" for name, value in _SERVER_TIMEOUTS.items() if name not in given
    ]

    @event.listens_for(engine, "connect")
    def set_timeouts(connection: Any, _record: Any) -> None:
        """Not with the startup packet: PgBouncer refuses options there."""
        if timeouts:
            connection.autocommit = True  # or a rollback would undo it
            connection.execute(f"SELECT {', '.join(timeouts)}")
            connection.autocommit = False

    return engine


def _sqlite(url: Any) -> Engine:
    try:
        usual_s = float(url.query.get("timeout", BUSY_SECONDS))
    except (TypeError, ValueError):  # TypeError: it is given twice
        raise InvalidSetting("database_url", str(url), "a number of seconds as timeout") from None
    mode, url = url.query.get("mode", ""), url.difference_update_query(["mode"])
    if mode not in ("", _READ_ONLY):
        raise InvalidSetting("database_url", f"{url}?mode={mode}", f"mode={_READ_ONLY}, or no mode")
    engine = create_engine(url, connect_args={} if "timeout" in url.query else {"timeout": usual_s})
    event.listen(engine, "do_execute", send_rows)

    @event.listens_for(engine, "do_connect")
    def await_others(_dialect: Any, _record: Any, arguments: list[Any], options: dict[str, Any]) -> None:
        _await_unlocked(Path(url.database or ""))
        if mode == _READ_ONLY:
            arguments[0] = f"{Path(url.database or '').absolute().as_uri()}?mode={mode}"
            options["uri"] = True

    @event.listens_for(engine, "connect")
    def configure(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # the driver issues BEGIN too late for IMMEDIATE
        record.info[_WAIT_MS] = _lock_wait_ms(usual_s)
        connection.execute(f"PRAGMA busy_timeout={record.info[_WAIT_MS]}")
        if mode != _READ_ONLY:
            connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA recursive_triggers=ON")  # without it INSERT OR REPLACE bypasses the delete triggers

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        _await_unlocked(Path(url.database or ""))
        if connection.info.get(_WAIT_MS) != (wait_ms := _lock_wait_ms(usual_s)):
            connection.exec_driver_sql(f"PRAGMA busy_timeout={wait_ms}")
            connection.info[_WAIT_MS] = wait_ms
        mode = connection.get_execution_options().get("sqlite_begin", "DEFERRED")
        connection.exec_driver_sql(f"BEGIN {mode}")

    @event.listens_for(engine, "handle_error")
    def note_holders(context: ExceptionContext) -> None:
        error = context.sqlalchemy_exception
        if url.database and error is not None and is_locked(error):  # look now: the lock may be free in a moment
            setattr(context.original_exception, _HOLDERS, lock_holders(Path(url.database)))

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
