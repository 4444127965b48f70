"""Which audit events the guard refuses. The workers' tests check that the armed hook stops them."""

import os
from pathlib import Path
from typing import Any

import pytest

from strategy_core.isolation.guard import REPORTS, Guard, Refusal

REFUSED: list[tuple[str, tuple[Any, ...], str]] = [
    ("open", ("a.txt", "w", 0), "open for writing: a.txt"),
    ("open", (b"a.txt", "r+", 0), "open for writing: a.txt"),
    ("open", ("a.txt", None, os.O_RDWR), "open for writing: a.txt"),
    ("open", ("/proc/1/environ", "r", 0), "open of another process: /proc/1/environ"),
    ("socket.__new__", (None, 2, 1, 0), "socket: socket.__new__(2, 1, 0)"),
    ("socket.connect", (None, ("127.0.0.1", 9)), "socket: socket.connect(('127.0.0.1', 9))"),
    ("subprocess.Popen", ("true", ["true"], None, None), "process: subprocess.Popen(true, ['true'])"),
    ("os.remove", (b"kept", -1), "changing files: os.remove(kept)"),
    ("shutil.move", ("a", "b"), "changing files: shutil.move(a, b)"),
    ("sqlite3.connect", (Path("a.db"),), "database: sqlite3.connect(a.db)"),
    ("os.kill", (1, 9), "signal: os.kill(1, 9)"),
    ("fcntl.flock", (3, 1), "file locks: fcntl.flock(3, 1)"),
    ("fcntl.fcntl", (3, 8, 1), "device or lock: fcntl.fcntl(8)"),
]
ALLOWED: list[tuple[str, tuple[Any, ...]]] = [
    ("open", ("a.txt", "rb", os.O_RDONLY)),
    ("open", ("/proc/self/status", "r", 0)),
    ("open", (3, "r", 0)),
    ("socket.__new__", (None, 1, 1, 0)),
    ("os.kill", (os.getpid(), 9)),
    ("ctypes.dlopen", ("libtorch.so",)),
    ("ctypes.dlsym", (None, "predict")),
    ("fcntl.fcntl", (3, 1, 0)),
    ("import", ("json", None, None, None, None)),
    ("compile", (None, None)),
]


@pytest.fixture
def reported() -> list[str]:
    return []


@pytest.fixture
def guard(reported: list[str]) -> Guard:
    return Guard(reported.append)


@pytest.mark.parametrize(("event", "args", "tried"), REFUSED)
def test_a_try_is_refused_reported_and_remembered_until_taken(
    guard: Guard, reported: list[str], event: str, args: tuple[Any, ...], tried: str
) -> None:
    with pytest.raises(Refusal):
        guard._hook(event, args)

    assert reported == [tried]
    assert guard.take() == [tried]
    assert guard.take() == []


@pytest.mark.parametrize(("event", "args"), ALLOWED)
def test_reading_and_computing_are_free(guard: Guard, reported: list[str], event: str, args: tuple[Any, ...]) -> None:
    guard._hook(event, args)

    assert reported == guard.take() == []


def test_a_loop_of_tries_is_refused_each_time_and_reported_so_often(guard: Guard, reported: list[str]) -> None:
    refused = 0
    for _ in range(1000):
        with pytest.raises(Refusal):
            guard._hook("os.fork", ())
        refused += 1

    assert refused == 1000
    assert len(reported) == len(guard.take()) == REPORTS


def test_except_exception_does_not_hide_a_refusal() -> None:
    assert not issubclass(Refusal, Exception)
