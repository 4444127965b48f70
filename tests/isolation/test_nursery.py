"""The fork server starts workers with a clean environment, and workers end with their parent."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pandas as pd
import pytest

from strategy_core.isolation import process, sandbox
from strategy_core.isolation.client import DecisionRequest, IsolatedStrategy
from strategy_core.isolation.forkserver import ForkServer, ForkServerGone, environment, fork_server
from strategy_core.isolation.sandbox import Level
from tests.isolation.conftest import UNDER_TEST


def test_the_environment_of_workers_is_made_not_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://owner:secret@db/rollout")
    monkeypatch.setenv("HOME", "/home/owner")

    given = environment()

    assert not {"DATABASE_URL", "HOME"} & given.keys()
    assert "secret" not in "".join(given.values())


def test_workers_of_one_process_share_a_fork_server() -> None:
    assert fork_server() is fork_server()


def test_a_killed_fork_server_is_replaced(candles: pd.DataFrame) -> None:
    ask = DecisionRequest("GOLD", "1h", candles, [20], 5)
    with IsolatedStrategy(f"{UNDER_TEST}:Tricks", {}) as isolated:
        ((before,),) = isolated.decide([ask])
        gone = fork_server()
        assert gone._popen is not None
        gone._popen.kill()
        gone._popen.wait()
        ((after,),) = isolated.decide([ask])

    assert before.decision == after.decision
    assert fork_server() is not gone


def test_a_fork_server_that_answers_late_is_replaced() -> None:
    """An exit code of -9 taken for the next worker's id would make the parent kill a process group."""
    late = fork_server()
    assert late._popen is not None
    late._popen.send_signal(signal.SIGSTOP)
    late._socket.settimeout(0.05)

    with pytest.raises(ForkServerGone):
        late.end(1)

    assert not late.usable
    assert fork_server() is not late


def test_a_fork_server_that_cannot_start_leaves_no_pipe_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused() -> NoReturn:
        raise OSError(errno.EAGAIN, "no more processes")

    monkeypatch.setattr(process, "fork_server", refused)
    before = set(Path("/proc/self/fd").iterdir())

    with pytest.raises(process.Died, match="no worker could be started"):
        process.Process()

    assert set(Path("/proc/self/fd").iterdir()) == before


@pytest.fixture
def sidecar(tmp_path: Path) -> Iterator[Path]:
    """The socket of a fork server that was started beside the product."""
    path = tmp_path / "worker.sock"
    command = [sys.executable, "-P", "-m", "strategy_core.isolation.forkserver", "--listen", str(path)]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "ROLLOUT_ISOLATION": "sidecar"}
    with subprocess.Popen(command, env=environ) as started:
        while not path.exists() and started.poll() is None:
            time.sleep(0.01)
        yield path
        started.kill()


def test_a_sidecar_serves_those_who_connect_and_says_what_it_offers(sidecar: Path, candles: pd.DataFrame) -> None:
    """Under the same user as here it isolates little, and says so."""
    one, another = ForkServer(str(sidecar)), ForkServer(str(sidecar))
    try:
        found = one.available()
        number = one.fork(*os.pipe())
        ended = one.end(number)
    finally:
        one.close()
        another.close()

    assert found.level is Level.NONE
    assert found.missing == dict.fromkeys(("namespaces", "landlock"), "ROLLOUT_ISOLATION is sidecar")
    assert ended == -signal.SIGKILL
    assert not one.usable


def test_seccomp_under_another_user_is_what_a_sidecar_offers() -> None:
    assert sandbox.strongest(Level.SIDECAR, other_user=True).level is Level.SIDECAR
    assert sandbox.strongest(Level.SIDECAR, other_user=False).level is Level.NONE


def test_two_workers_do_not_share_their_luck(candles: pd.DataFrame) -> None:
    """Forks of one process would draw the same random numbers."""
    asks = [DecisionRequest("luck", "1h", candles, [20], 5)]
    drawn = []
    for _ in range(2):
        with IsolatedStrategy(f"{UNDER_TEST}:Tricks", {}) as isolated:
            ((answer,),) = isolated.decide(asks)
            assert answer.decision is not None
            drawn.append(answer.decision.features)

    assert drawn[0]["random"] != drawn[1]["random"]
    assert drawn[0]["numpy"] != drawn[1]["numpy"]


@pytest.mark.full
def test_a_hanging_worker_ends_with_a_killed_parent(tmp_path: Path) -> None:
    """SIGKILL gives the parent no chance to clean up: the kernel does."""
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent(f"""
            import pandas as pd
            from strategy_core.isolation.client import DecisionRequest, IsolatedStrategy
            from tests.isolation.asking import worker_pids

            isolated = IsolatedStrategy("{UNDER_TEST}:Tricks", {{}}, deadline_s=600.0)
            isolated.describe()
            print(*worker_pids(), flush=True)
            index = pd.date_range("2026-01-05", periods=9, freq="h", tz="UTC")
            isolated.decide([DecisionRequest("sleep", "1h", pd.DataFrame({{"close": 1.0}}, index=index), [8], 5)])
        """)
    )
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, env=environ, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        alive_before = runs(worker)
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 60.0
    while runs(worker) and time.monotonic() < deadline:
        time.sleep(0.05)

    assert alive_before
    assert not runs(worker)


def runs(pid: int) -> bool:
    """Return whether the process exists and is more than an unreaped entry in the table."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
