"""The command as a real process: fast help, confirmation at a terminal, Ctrl-C."""

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from strategy_core.domain.lifecycle import Status
from strategy_core.store import versions
from strategy_core.store.engine import open_database, reading
from tests.builders import put_version
from tests.conftest import SQLITE_FIRST

HEAVY = ["pandas", "numpy", "sqlalchemy", "sqlmodel", "alembic", "scipy", "prefect"]
COMMAND = [sys.executable, "-c", "import sys; from strategy_core.cli import main; sys.exit(main())"]
TAKE_TERMINAL = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "  # its Ctrl-C then is this process's
AT_TERMINAL = [sys.executable, "-c", TAKE_TERMINAL + COMMAND[-1]]
PROMPT = b"[y/N]"
PATIENCE_S = 60.0


def heavy_after(statement: str) -> list[str]:
    """Return which heavy modules a fresh interpreter has imported after *statement*."""
    code = f"import sys; {statement}; print('HEAVY', *[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()[1:]


@pytest.mark.parametrize(
    "statement",
    [
        "import strategy_core",
        "from strategy_core.cli import main; main(['--help'])",
        "from strategy_core.cli import main; main(['start', '--help'])",
        "from strategy_core.cli import main; main(['lst'])",
    ],
)
def test_nothing_heavy_is_imported_before_a_command_needs_it(statement: str) -> None:
    assert heavy_after(statement) == []


def test_every_public_name_can_be_had() -> None:
    import strategy_core

    found = {name: getattr(strategy_core, name) for name in strategy_core.__all__}

    assert {name: thing.__name__ for name, thing in found.items()} == {name: name for name in strategy_core.__all__}
    assert set(strategy_core.__all__) <= set(dir(strategy_core))
    with pytest.raises(AttributeError, match="has no attribute 'Manager'"):
        _ = strategy_core.Manager


@pytest.fixture(params=SQLITE_FIRST)
def pair(request: pytest.FixtureRequest) -> Engine:
    engine = open_database(request.getfixturevalue(f"{request.param}_url"))
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2")
    engine.dispose()
    return engine


def active(engine: Engine) -> str:
    with reading(engine) as session:
        return versions.active_version(session, "fib_rsi").version


def at_a_terminal(database: Engine, *arguments: str, typed: bytes, prompt: bytes = PROMPT) -> tuple[int, str]:
    """Run the command at a terminal of its own, type at *prompt*, and return its exit code and what was shown."""
    controller, terminal = pty.openpty()
    url = database.url.render_as_string(hide_password=False)
    process = subprocess.Popen(
        [*AT_TERMINAL, *arguments],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env={**os.environ, "ROLLOUT_DATABASE_URL": url},
        start_new_session=True,
        preexec_fn=_heed_ctrl_c,  # noqa: PLW1509  one signal, then exec
    )
    os.close(terminal)
    shown, deadline = b"", time.monotonic() + PATIENCE_S
    while process.poll() is None or select.select([controller], [], [], 0)[0]:
        assert time.monotonic() < deadline, shown
        if not select.select([controller], [], [], 5.0)[0]:
            lost = prompt in shown and b"interrupted" not in shown  # a Ctrl-C just before the read
            os.write(controller, typed if lost else b"")
            continue
        try:
            asked = prompt in shown
            shown += os.read(controller, 4096)
        except OSError:  # Linux's word for the other end being closed
            break
        if prompt in shown and not asked:
            os.write(controller, typed)
    os.close(controller)
    return process.wait(PATIENCE_S), shown.decode()


@pytest.mark.full
@pytest.mark.parametrize(
    ("typed", "code", "version", "said"),
    [
        (b"y\n", 0, "2", "fib_rsi 2 is active"),
        (b"n\n", 5, "1", "error: not confirmed, nothing was changed"),
        (b"\x03", 130, "1", "interrupted: no unfinished change was saved"),
    ],
)
def test_an_owner_is_asked_and_may_say_no(pair: Engine, typed: bytes, code: int, version: str, said: str) -> None:
    exited, shown = at_a_terminal(pair, "activate", "fib_rsi", "2", typed=typed)

    assert "2 becomes the version that users of fib_rsi get. Continue? [y/N]" in shown
    assert said in shown
    assert "Traceback" not in shown
    assert (exited, active(pair)) == (code, version)


@pytest.mark.full
def test_a_long_calibration_shows_how_far_it_is_and_ends_by_ctrl_c(sqlite_url: str) -> None:
    """Its worker processes ignore Ctrl-C: they print no traceback and end with it."""
    engine = open_database(sqlite_url)
    arguments = ("calibrate", "--ramps", "20000", "--scenario", "equivalent")

    exited, shown = at_a_terminal(engine, *arguments, typed=b"\x03", prompt=b"0/20000")

    assert exited == 130
    assert "interrupted: no unfinished change was saved" in shown
    assert "Traceback" not in shown
    engine.dispose()


@pytest.mark.full
def test_a_calibration_that_is_killed_leaves_no_process_behind() -> None:
    process = subprocess.Popen([*COMMAND, "calibrate", "--ramps", "20000", "--scenario", "equivalent"])
    _until(lambda: len(_children(process.pid)) > 1)  # one of them is multiprocessing's own
    children = _children(process.pid)

    process.kill()

    process.wait(PATIENCE_S)
    _until(lambda: not any(_runs(child) for child in children))


@pytest.mark.full
def test_ctrl_c_in_the_middle_changes_nothing_and_shows_no_traceback(postgresql_url: str) -> None:
    engine = open_database(postgresql_url)
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2")
    with engine.begin() as holding:
        holding.execute(text("SELECT name FROM strategy FOR UPDATE"))
        process = subprocess.Popen(
            [*COMMAND, "activate", "fib_rsi", "2", "--yes"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "ROLLOUT_DATABASE_URL": postgresql_url},
            preexec_fn=_heed_ctrl_c,  # noqa: PLW1509  one signal, then exec
        )
        _until(lambda: _waits_for_a_lock(engine))
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE_S)

    assert (process.returncode, out) == (130, "")
    assert err == "interrupted: no unfinished change was saved\n"
    assert active(engine) == "1"
    engine.dispose()


def _heed_ctrl_c() -> None:
    """Undo what a shell does to jobs in its background, whose children would ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def _runs(pid: str) -> bool:
    """Return whether the process runs and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


def _waits_for_a_lock(engine: Engine) -> bool:
    with engine.connect() as connection:
        return bool(connection.execute(text("SELECT count(*) FROM pg_locks WHERE NOT granted")).scalar_one())


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
