"""Each misbehaviour of a version is one answer, and the next decision is right."""

from pathlib import Path

import pandas as pd
import pytest

from strategy_core.domain.strategy import Action
from strategy_core.isolation.client import IsolatedStrategy
from tests.isolation.asking import between_honest_ones

BREACHES = [
    "write", "append", "os.open", "touch", "remove", "rename", "mkdir", "rmdir", "symlink", "chmod",
    "truncate", "copy", "tempfile", "sqlite", "socket", "connect", "lookup", "subprocess", "system",
    "fork", "exec", "posix_spawn", "multiprocessing", "kill", "parent's secrets", "raise limits",
    "swallow", "swallow exceptions", "swallow a thousand", "thread",
]  # fmt: skip
NONSENSE = {
    "nan": "confidence nan is not within 0..1",
    "confidence 2": "confidence 2.0 is not within 0..1",
    "string": "returned str, not a Decision",
    "list": "returned list, not a Decision",
    "odd action": "action 'buyy' is not one of buy, sell, hold",
    "nan feature": "feature 'rsi' is nan",
    "frame feature": "feature 'frame' is DataFrame",
    "features of no kind": "features is int, not a dict",
    "many features": "101 features; allowed: at most 100",
    "long text": "'text': a text may have at most 500 characters",
    "half a character": "'text': a text may have at most 500 characters of valid Unicode",
    "huge number": "feature 'n' does not fit 64 bits",
    "reason of no kind": "reason is int, not str",
}
RAISED = {
    "ValueError": "ValueError: boom in two lines (strategies_under_test.py, line ",
    "SystemExit": "SystemExit: 0",
    "KeyboardInterrupt": "KeyboardInterrupt",
    "RecursionError": "RecursionError: maximum recursion depth exceeded",
    "unreadable": "_Unreadable: (its text cannot be read)",
    "to_csv": "OSError: Cannot save file into a non-existent directory",  # the folder is not in its file system
}
DEATHS = {
    "_exit": "ended with exit code 3",
    "crash": "was killed by signal 11",
    "memory": "ran out of memory",
    "garbage": "violated the protocol: not JSON",
    "forged": "violated the protocol: not an answer: confidence 7 is not within 0..1",
    "another message": "sent an unexpected message",
    "endless line": "sent an endless line",
}
NATIVE = ["native write", "native mkdir", "native unlink", "native socket", "native fork", "native kill"]


@pytest.mark.parametrize("trick", BREACHES)
def test_touching_the_outside_is_refused_and_reported(
    version: IsolatedStrategy, candles: pd.DataFrame, outside: Path, trick: str
) -> None:
    answer = between_honest_ones(version, candles, trick)

    assert answer.kind == "breach"
    assert answer.decision is None
    assert answer.error in version.breaches
    assert [path.name for path in outside.iterdir()] == ["kept.txt"]
    assert (outside / "kept.txt").read_text() == "kept"
    assert (outside / "kept.txt").stat().st_mode & 0o777 != 0o777


@pytest.mark.parametrize(("trick", "error"), NONSENSE.items())
def test_nonsense_is_an_invalid_answer(
    version: IsolatedStrategy, candles: pd.DataFrame, trick: str, error: str
) -> None:
    answer = between_honest_ones(version, candles, trick)

    assert (answer.kind, answer.decision) == ("invalid", None)
    assert error in str(answer.error)


@pytest.mark.parametrize(("trick", "error"), RAISED.items())
def test_what_a_version_raises_is_its_answer(
    version: IsolatedStrategy, candles: pd.DataFrame, trick: str, error: str
) -> None:
    answer = between_honest_ones(version, candles, trick)

    assert answer.kind == "raised"
    assert str(answer.error).startswith(error)
    assert "\n" not in str(answer.error)


@pytest.mark.parametrize(("trick", "error"), DEATHS.items())
def test_a_dead_or_lying_worker_is_replaced(
    version: IsolatedStrategy, candles: pd.DataFrame, trick: str, error: str
) -> None:
    answer = between_honest_ones(version, candles, trick)

    assert answer.kind == "died"
    assert error in str(answer.error)


@pytest.mark.parametrize("trick", NATIVE)
def test_native_code_meets_the_kernel(
    version: IsolatedStrategy, candles: pd.DataFrame, outside: Path, trick: str
) -> None:
    """The audit hook does not see it, but the system-call filter answers "not permitted" (errno 1)."""
    answer = between_honest_ones(version, candles, trick)

    assert answer.decision is not None
    assert answer.decision.features == {"returned": -1, "errno": 1}
    assert [path.name for path in outside.iterdir()] == ["kept.txt"]


def test_a_local_socket_is_refused_by_the_kernel(version: IsolatedStrategy, candles: pd.DataFrame) -> None:
    """The audit hook lets it pass, because asyncio's loop wants a connected pair of them."""
    answer = between_honest_ones(version, candles, "unix socket")

    assert str(answer.error).startswith("PermissionError: [Errno 1] Operation not permitted")


@pytest.mark.parametrize("trick", ["print", "asyncio", "dlopen", "pythonapi"])
def test_printing_and_asyncio_are_harmless(version: IsolatedStrategy, candles: pd.DataFrame, trick: str) -> None:
    answer = between_honest_ones(version, candles, trick)

    assert answer.decision is not None
    assert answer.decision.action is Action.BUY
