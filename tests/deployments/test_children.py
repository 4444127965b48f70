"""Child processes: `stop` ends all that they started, and `check` reports how one ended."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deployments import processes
from deployments.processes import Child, ChildEnded
from tests.api import processes as api_processes

ROOT = Path(__file__).parents[2]
PARENT = """
import signal, subprocess, sys, time
if len(sys.argv) > 1:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(grandchild.pid, flush=True)
time.sleep(600)
"""


def start(tmp_path: Path, *arguments: str, program: str = PARENT) -> Child:
    command = [sys.executable, "-c", program, *arguments]
    return Child("worker", command, environment=dict(os.environ), log=tmp_path / "logs" / "worker.log")


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rsplit(") ", 1)[1][0] != "Z"


def wait_for(condition: object, seconds: float = 60.0) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)


def test_it_ends_with_its_parent_even_if_that_is_killed(tmp_path: Path) -> None:
    program = f"""
import os, time
from pathlib import Path
from deployments.processes import Child
command = [{sys.executable!r}, "-c", "import time; time.sleep(600)"]
print(Child("worker", command, environment=dict(os.environ), log=Path({str(tmp_path)!r}, "log")).pid, flush=True)
time.sleep(600)
"""
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    wait_for(lambda: "sleep" in Path(f"/proc/{child}/cmdline").read_text())  # the tether has become the command

    process.kill()
    process.communicate()

    wait_for(lambda: not lives(child))


@pytest.mark.parametrize("deaf", [[], ["deaf"]], ids=["obedient", "deaf to SIGTERM"])
def test_stopping_ends_a_process_and_what_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deaf: list[str]
) -> None:
    monkeypatch.setattr(processes, "PATIENCE_S", 0.5)
    child = start(tmp_path, *deaf)
    wait_for(child.tail)
    grandchild = int(child.tail())
    assert child.exit_code is None

    child.stop()

    assert child.exit_code is not None
    wait_for(lambda: not lives(grandchild))


def test_a_child_that_ended_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    child = start(tmp_path, program="for n in range(40): print('line', n)\nraise SystemExit(3)")
    wait_for(lambda: child.exit_code is not None)

    with pytest.raises(ChildEnded) as ended:
        child.check()

    child.stop()
    headline, *tail = str(ended.value).splitlines()
    assert headline == f"worker ended with exit code 3. The end of {child.log}:"
    assert tail[-1] == "line 39"
    assert "line 0" not in tail


def test_a_running_child_passes_the_check(tmp_path: Path) -> None:
    child = start(tmp_path)

    child.check()

    assert child.exit_code is None
    child.stop()


@pytest.mark.full
def test_the_servers_of_an_api_whose_parent_is_killed_give_its_port_back(tmp_path: Path, sqlite_url: str) -> None:
    port = api_processes.free_port()
    settings = {"ROLLOUT_DATABASE_URL": sqlite_url, "ROLLOUT_API_SECRET": api_processes.SECRET}
    command = [sys.executable, "-m", "strategy_core.cli", "api", "--port", str(port), "--workers", "2"]
    with (tmp_path / "api.log").open("w") as log:
        parent = subprocess.Popen(command, env=os.environ | settings, stdout=log, stderr=log)
    api_processes.wait_until_healthy(f"http://127.0.0.1:{port}")
    wait_for(lambda: (tmp_path / "api.log").read_text().count("api.ready") == 2)
    servers = [int(pid) for pid in re.findall(r'"pid": (\d+)', (tmp_path / "api.log").read_text())]

    parent.kill()
    parent.wait()

    try:
        assert len(servers) == 2
        wait_for(lambda: not any(map(lives, servers)))
    finally:
        for pid in filter(lives, servers):
            os.kill(pid, signal.SIGKILL)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", port))
