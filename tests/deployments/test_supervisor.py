"""What dies is started again, ever later; what cannot live is named, and ends the rest."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployments.processes import SHORT_S, ChildDied, Supervisor
from tests.deployments.test_children import lives, wait_for

SLEEP = [sys.executable, "-c", "import time; print('hello', flush=True); time.sleep(600)"]


class Watched:
    """A supervisor with one child, on a clock that a test moves."""

    def __init__(self, folder: Path) -> None:
        self.now, self.well, self.said = 0.0, True, list[str]()
        self.supervisor = Supervisor(self.said.append, clock=lambda: self.now)
        self.log = folder / "worker.log"
        self.supervisor.start("worker", SLEEP, environment=dict(os.environ), log=self.log, may_start=lambda: self.well)

    @property
    def pid(self) -> int:
        return self.supervisor.children[0].pid

    def die(self) -> int:
        """Kill the child once it has spoken, have it noticed, and return its pid."""
        child = self.supervisor.children[0]
        lives_so_far = 1 + len([line for line in self.said if "runs again" in line])
        wait_for(lambda: self.log.read_text().count("hello") == lives_so_far)
        os.kill(child.pid, signal.SIGKILL)
        wait_for(lambda: child.exit_code is not None)
        self.supervisor.look()
        return child.pid

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.supervisor.look()


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    found = Watched(tmp_path)
    yield found
    found.supervisor.stop()


def test_what_dies_is_started_again_after_a_while_and_both_are_said(watched: Watched) -> None:
    dead = watched.die()
    assert watched.pid == dead
    watched.pass_time(1)

    assert lives(watched.pid)
    assert watched.said == [
        f"worker ended with exit code -9; it is started again in 1 s, its log is {watched.log}",
        f"worker runs again (pid {watched.pid})",
    ]


def test_it_waits_for_what_it_needs(watched: Watched) -> None:
    watched.well = False
    dead = watched.die()
    watched.pass_time(30)
    assert watched.pid == dead
    watched.well = True

    watched.pass_time(1)

    assert watched.pid != dead


def test_what_dies_again_and_again_ends_the_rest_with_its_last_words(watched: Watched) -> None:
    watched.die()
    watched.pass_time(1)
    watched.die()
    watched.pass_time(2)

    with pytest.raises(ChildDied, match=r"worker ended with exit code -9; the end of .*:\nhello\nhello\nhello"):
        watched.die()


def test_what_has_lived_for_long_may_die_once_more(watched: Watched) -> None:
    for _ in range(4):
        watched.pass_time(SHORT_S)
        watched.die()
        watched.pass_time(1)

    assert lives(watched.pid)
