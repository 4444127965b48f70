"""A rollback while another process holds a lock of the SQLite database."""

import getpass
import os
import signal
import sys
from pathlib import Path

import pytest
from sqlalchemy import Engine, event

from strategy_core.domain.lifecycle import Status
from strategy_core.isolation.forkserver import end_worker
from strategy_core.store import engine as store
from strategy_core.store.engine import lock_holders
from tests import holding
from tests.builders import put_version
from tests.cli.conftest import Rollout, contents
from tests.cli.test_rollback import CALLS
from tests.holding import shm_of, stranger

HOLD_ALL = (0x4000_0000, 512)  # of the database itself, as a connection in exclusive mode
_PLACES = [("-shm", "READ", holding.WAL_LOCKS), ("", "WRITE", HOLD_ALL)]


@pytest.fixture
def ramping(database: Engine, rollout: Rollout) -> Engine:
    put_version(database, "1", Status.ACTIVE)
    put_version(database, "2")
    assert rollout("start", "fib_rsi", "2", "--yes").code == 0
    return database


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (CALLS[0], "POSIX"),
        (CALLS[1], "OFD"),
        pytest.param(CALLS[0], "OFD", marks=pytest.mark.full),
        pytest.param(CALLS[1], "POSIX", marks=pytest.mark.full),
    ],
)
def test_a_worker_that_locks_the_database_is_ended_and_the_rollback_is_done(
    rollout: Rollout, ramping: Engine, monkeypatch: pytest.MonkeyPatch, call: str, kind: holding.Kind
) -> None:
    with holding.worker(shm_of(ramping), kind) as worker:
        assert rollout("pause", "fib_rsi", "--database-url", f"{ramping.url}?timeout=0.1").code == 1

        done = rollout(*call.split(), "--reason", "odd fills")

        assert done.code == 0, done.err
        assert worker.wait() == -signal.SIGKILL
    assert f"process {worker.pid} (" in done.err + done.out
    assert rollout("route", "user_1", "fib_rsi", "--json").data["version"] == "1"
    assert rollout("start", "fib_rsi", "2", "--yes", "--override-reason", "a hostile neighbour").code == 0


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(("suffix", "kind", "locks"), _PLACES)
def test_any_other_process_is_named_and_left_alone(
    rollout: Rollout,
    ramping: Engine,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    suffix: str,
    kind: str,
    locks: tuple[int, int],
) -> None:
    monkeypatch.setattr(store, "LOCK_BUDGET_S", 0.3)
    before, file = contents(ramping), f"{ramping.url.database}{suffix}"
    shm_of(ramping)
    if not suffix:
        ramping.dispose()  # its own connection would refuse the exclusive lock
    with stranger(Path(file), kind, locks) as pid:
        refused = rollout(*call.split(), "--reason", "odd fills")

        assert refused.code == 1
        assert f"the database is locked by process {pid} ({sys.executable}" in refused.err
        assert f"user {getpass.getuser()}); end it, or wait until it is done, and repeat" in refused.err
        os.kill(pid, 0)
    assert contents(ramping) == before
    assert rollout(*call.split(), "--reason", "odd fills").code == 0


def test_a_tick_ends_such_a_worker_too(rollout: Rollout, ramping: Engine) -> None:
    """The tick may be the one that rolls back."""
    with holding.worker(shm_of(ramping), "POSIX") as worker:
        ticked = rollout("tick")

        assert ticked.code == 0, ticked.err
        assert worker.wait() == -signal.SIGKILL


def test_every_other_command_names_the_process_too(rollout: Rollout, ramping: Engine, sqlite_url: str) -> None:
    with stranger(shm_of(ramping)) as pid:
        refused = rollout("pause", "fib_rsi", "--database-url", f"{sqlite_url}?timeout=0.1")

    assert (refused.code, f"the database is locked by process {pid} (" in refused.err) == (1, True)


def test_a_reader_and_an_idle_connection_hold_nothing_that_blocks(ramping: Engine) -> None:
    with ramping.connect() as connection:
        connection.exec_driver_sql("SELECT count(*) FROM strategy").scalar()

        assert lock_holders(Path(str(ramping.url.database))) == []


def test_a_process_that_is_no_worker_is_never_ended(ramping: Engine) -> None:
    with stranger(shm_of(ramping)) as pid:
        assert not end_worker(pid)
        assert not end_worker(os.getpid())


def test_the_waits_of_a_rollback_have_one_budget(
    rollout: Rollout, ramping: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody can be seen, as on macOS, SQLite itself waits, on each connection for what is left."""
    assert store.LOCK_BUDGET_S == 3.0
    monkeypatch.setattr(store, "LOCK_BUDGET_S", 0.3)
    monkeypatch.setattr(store, "_LOCK_TABLE", Path("/nowhere"))
    waits: list[int] = []

    def note(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        if statement.startswith("PRAGMA busy_timeout"):
            waits.append(int(statement.partition("=")[2]))

    event.listen(Engine, "before_cursor_execute", note)
    try:
        with stranger(shm_of(ramping)):
            refused = rollout("rollback", "fib_rsi", "--reason", "odd fills")
    finally:
        event.remove(Engine, "before_cursor_execute", note)

    assert (refused.code, "locked by a process that cannot be seen from here" in refused.err) == (1, True)
    assert waits
    assert max(waits) <= 300


@pytest.mark.parametrize("kind", ["POSIX", "OFD"])
def test_a_lock_taken_before_anybody_opened_the_database_is_found_too(
    rollout: Rollout, ramping: Engine, kind: holding.Kind
) -> None:
    """SQLite then has to recover its shared memory, and would wait ten seconds for that lock."""
    file = shm_of(ramping)
    ramping.dispose()
    file.touch()
    with holding.worker(file, kind) as worker:
        assert rollout("rollback", "fib_rsi", "--reason", "odd fills").code == 0
        assert worker.wait() == -signal.SIGKILL
