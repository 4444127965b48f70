"""Versions that misbehave, imported by workers only. The symbol of a request chooses the trick."""

import asyncio
import contextlib
import ctypes
import io
import multiprocessing
import os
import random
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel

from strategy_core.domain.strategy import Action, Context, Decision

LIBC = ctypes.CDLL("libc.so.6", use_errno=True)
BUY = Decision(Action.BUY, 0.5)
float32: Any = np.float32  # numpy's numbers are taken as Python's


class Target(BaseModel):
    target: str = "nowhere"


class Tricks:
    """Buys. On a symbol that names a trick, does that first."""

    Params = Target
    warmup_bars = 5

    def decide(self, candles: pd.DataFrame, params: Target, context: Context) -> Any:
        trick: Callable[[Path], Any] | None = TRICKS.get(context.symbol)
        if trick is None:
            seen = {"rows": len(candles), "close": candles["close"].iloc[-1], "sum": candles["close"].to_numpy().sum()}
            return Decision(Action.BUY, float32(0.5), {**seen, "now": context.now.isoformat()})
        if context.symbol.startswith("mutate"):
            candles.iloc[:, :] = 0.0
        answer = trick(Path(params.target))
        return BUY if answer is None else answer


class Many(Tricks):
    """The same by decide_many, which is asked on whole slices."""

    def decide_many(self, candles: pd.DataFrame, params: Target, context: Context) -> Any:
        windows = len(candles) - self.warmup_bars + 1
        if context.symbol == "too few":
            return [BUY] * (windows - 1)
        if context.symbol == "one bad":
            return [Decision(Action.BUY, 2.0), *[BUY] * (windows - 1)]
        return [self.decide(candles.iloc[i : i + self.warmup_bars], params, context) for i in range(windows)]


def _raise(error: BaseException) -> Callable[[Path], None]:
    def trick(_: Path) -> None:
        raise error

    return trick


def _recurse(target: Path) -> None:
    _recurse(target)


def _write(target: Path) -> None:
    (target / "written.txt").write_text("x")


def _swallow(target: Path) -> None:
    with contextlib.suppress(BaseException):
        _write(target)


def _swallow_exceptions(target: Path) -> None:
    with contextlib.suppress(Exception):
        _write(target)


def _swallow_a_thousand(target: Path) -> None:
    for _ in range(1000):
        _swallow(target)


def _breach_then_sleep(target: Path) -> None:
    _swallow(target)
    time.sleep(3600)


def _from_a_thread(target: Path) -> None:
    thread = threading.Thread(target=_swallow, args=(target,))
    thread.start()
    thread.join()


def _private_pipe(text: bytes) -> Callable[[Path], None]:
    def trick(_: Path) -> None:
        for descriptor in range(3, 20):
            with contextlib.suppress(OSError):
                os.write(descriptor, text)

    return trick


def _print_megabytes(_: Path) -> None:
    sys.stdout.write("x" * 5_000_000)
    sys.stderr.write("x" * 5_000_000)
    os.write(1, b"x" * 1_000_000)


def _libc(name: str, *arguments: Any) -> Callable[[Path], Decision]:
    def trick(target: Path) -> Decision:
        given = [str(target / "written.txt").encode() if a == "path" else a for a in arguments]
        said = getattr(LIBC, name)(*given)
        return Decision(Action.HOLD, 0.0, {"returned": said, "errno": ctypes.get_errno()})

    return trick


def _environment(_: Path) -> Decision:
    return Decision(Action.HOLD, 0.0, dict.fromkeys(os.environ, True))


def _luck(_: Path) -> Decision:
    return Decision(Action.HOLD, 0.0, {"random": random.random(), "numpy": np.random.rand()})


def _spawn_by_multiprocessing(_: Path) -> None:
    multiprocessing.get_context("spawn").Process(target=print).start()


class _Unreadable(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


TRICKS: dict[str, Callable[[Path], Any]] = {
    # touches the outside
    "write": _write,
    "append": lambda target: io.open(target / "written.txt", "a"),  # noqa: SIM115, UP020
    "os.open": lambda target: os.open(target / "written.txt", os.O_CREAT),
    "touch": lambda target: (target / "written.txt").touch(),
    "to_csv": lambda target: pd.DataFrame({"a": [1]}).to_csv(target / "written.txt"),
    "remove": lambda target: (target / "kept.txt").unlink(),
    "rename": lambda target: (target / "kept.txt").rename(target / "written.txt"),
    "mkdir": lambda target: (target / "made").mkdir(),
    "rmdir": lambda target: target.rmdir(),
    "symlink": lambda target: (target / "written.txt").symlink_to("x"),
    "chmod": lambda target: (target / "kept.txt").chmod(0o777),
    "truncate": lambda target: os.truncate(target / "kept.txt", 0),
    "copy": lambda target: shutil.copy(target / "kept.txt", target / "written.txt"),
    "tempfile": lambda _: tempfile.NamedTemporaryFile(),  # noqa: SIM115
    "sqlite": lambda target: sqlite3.connect(target / "written.txt"),
    "socket": lambda _: socket.socket(),
    "connect": lambda _: socket.create_connection(("127.0.0.1", 9), timeout=0.1),
    "lookup": lambda _: socket.getaddrinfo("localhost", 80),
    "unix socket": lambda _: socket.socket(socket.AF_UNIX).connect("/tmp/none.sock"),
    "subprocess": lambda _: subprocess.run(["true"], check=False),
    "system": lambda _: os.system("true"),
    "fork": lambda _: os.fork(),
    "exec": lambda _: os.execv("/bin/true", ["true"]),
    "posix_spawn": lambda _: os.posix_spawn("/bin/true", ["true"], {}),
    "multiprocessing": _spawn_by_multiprocessing,
    "kill": lambda _: os.kill(os.getppid(), 0),
    "parent's secrets": lambda _: Path(f"/proc/{os.getppid()}/environ").read_bytes(),
    "dlopen": lambda _: ctypes.CDLL("libc.so.6") and None,
    "pythonapi": lambda _: ctypes.pythonapi.Py_IsInitialized() and None,
    "raise limits": lambda _: __import__("resource").setrlimit(1, (10, 10)),
    "swallow": _swallow,
    "swallow exceptions": _swallow_exceptions,
    "swallow a thousand": _swallow_a_thousand,
    "thread": _from_a_thread,
    # answers nonsense
    "nan": lambda _: Decision(Action.BUY, float("nan")),
    "confidence 2": lambda _: Decision(Action.BUY, 2.0),
    "string": lambda _: "buy",
    "list": lambda _: [1, 2],
    "odd action": lambda _: Decision("buyy", 0.5),  # type: ignore[arg-type]
    "nan feature": lambda _: Decision(Action.BUY, 0.5, {"rsi": np.float64("nan")}),
    "frame feature": lambda _: Decision(Action.BUY, 0.5, {"frame": pd.DataFrame()}),  # type: ignore[dict-item]
    "features of no kind": lambda _: Decision(Action.BUY, 0.5, 7),  # type: ignore[arg-type]
    "many features": lambda _: Decision(Action.BUY, 0.5, {str(i): i for i in range(101)}),
    "long text": lambda _: Decision(Action.BUY, 0.5, {"text": "x" * 501}),
    "half a character": lambda _: Decision(Action.BUY, 0.5, {"text": "\ud800"}),
    "huge number": lambda _: Decision(Action.BUY, 0.5, {"n": 2**70}),
    "reason of no kind": lambda _: Decision(Action.BUY, 0.5, reason=7),  # type: ignore[arg-type]
    # raises
    "ValueError": _raise(ValueError("boom\nin two lines")),
    "SystemExit": _raise(SystemExit(0)),
    "KeyboardInterrupt": _raise(KeyboardInterrupt()),
    "RecursionError": _recurse,
    "unreadable": _raise(_Unreadable()),
    # ends or fools its worker
    "_exit": lambda _: os._exit(3),
    "crash": lambda _: ctypes.string_at(8),
    "memory": lambda _: np.ones(1 << 45, dtype=np.float64),
    "garbage": _private_pipe(b"not JSON\n"),
    "forged": _private_pipe(b'{"rows":[["",null,["buy",7,{},"","open"],1.0]]}\n'),
    "another message": _private_pipe(b'{"ready":1}\n'),
    "endless line": lambda _: _private_pipe(b"x" * 9_000_000)(Path()),
    # does not answer
    "sleep": lambda _: time.sleep(3600),
    "swallow and sleep": _breach_then_sleep,
    # may
    "print": _print_megabytes,
    "mutate": lambda _: None,
    "asyncio": lambda _: asyncio.run(asyncio.sleep(0, BUY)),
    "environment": _environment,
    "luck": _luck,
    # native code, past the audit hook
    "native write": _libc("open", "path", os.O_WRONLY | os.O_CREAT, 0o600),
    "native mkdir": _libc("mkdir", "path", 0o700),
    "native unlink": _libc("unlink", "path"),
    "native socket": _libc("socket", 2, 1, 0),
    "native fork": _libc("fork"),
    "native kill": _libc("kill", 2, 0),
}


class BreachOnLoad:
    Params = Target
    warmup_bars = 5

    def __init__(self) -> None:
        with contextlib.suppress(BaseException):
            subprocess.run(["true"], check=False)

    def decide(self, candles: pd.DataFrame, params: Target, context: Context) -> Decision:
        return BUY


class SlowToLoad(BreachOnLoad):
    def __init__(self) -> None:
        time.sleep(3600)


class ExitOnLoad(BreachOnLoad):
    def __init__(self) -> None:
        os._exit(5)


class RaiseOnLoad(BreachOnLoad):
    def __init__(self) -> None:
        raise ValueError("no model")


class NoWarmup(Tricks):
    warmup_bars = 0


class WithModelFiles(Tricks):
    def model_files(self, params: Target) -> list[Path]:
        return [Path(params.target) / "model.bin"]


class Engine:
    """An async engine of the platform, which sleeps and remembers."""

    warmup_bars = 3

    def __init__(self, threshold: float, side: str = "BUY") -> None:
        self.threshold = threshold
        self.side = side

    async def generate_signal(self, df: pd.DataFrame, symbol: str, timestamp: pd.Timestamp) -> dict[str, Any] | None:
        await asyncio.sleep(0.001)
        if df["close"].iloc[-1] < self.threshold:
            return None
        return {"signal": self.side, "confidence": 0.7, "features": {"at": timestamp.isoformat()}}
