"""A hostile version, imported by workers only. The symbol of a request chooses the attack."""

import contextlib
import ctypes
import itertools
import mmap
import os
import re
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel

from strategy_core.domain.strategy import Action, Context, Decision
from strategy_core.isolation import protocol

LIBC = ctypes.CDLL("libc.so.6", use_errno=True)
PTRACE_ATTACH, PR_SET_PDEATHSIG = 16, 1
BREACH = b'{"breach":"again"}\n' * 1_000
ROW = b'{"rows":[["",null,["buy",0.5,{},"","open"],1.0]]}\n' * 1_000


class Nothing(BaseModel):
    pass


class Endless(Mapping[str, int]):
    """Endless features."""

    def __getitem__(self, name: str) -> int:
        return 1

    def __iter__(self) -> Iterator[str]:
        return map(str, itertools.count())

    def __len__(self) -> int:
        return 1


class Hostile:
    """Buys. On a symbol that names an attack, tries that first."""

    Params = Nothing
    warmup_bars = 5

    def decide(self, candles: pd.DataFrame, params: Nothing, context: Context) -> Any:
        attack = ATTACKS.get(context.symbol)
        said = attack() if attack else None
        return Decision(Action.BUY, 0.5, {"close": float(candles["close"].iloc[-1])}) if said is None else said


def _hoard() -> None:
    kept = []
    while True:
        kept.append(bytearray(b"x") * 8_000_000)


def _hoard_shared() -> None:
    kept = []
    while True:
        kept.append(mmap.mmap(-1, 8_000_000))
        kept[-1].write(b"x" * 8_000_000)


def _fork_on() -> None:
    for _ in range(2_000):
        with contextlib.suppress(BaseException):
            os.fork()


def _native(name: str, *arguments: int) -> Callable[[], Decision]:
    def attack() -> Decision:
        said = {getattr(LIBC, name)(*arguments) for _ in range(100)}
        return Decision(Action.HOLD, 0.0, {"returned": said.pop(), "errno": ctypes.get_errno()})

    return attack


def _print_a_gigabyte() -> None:
    for _ in range(100):
        os.write(1, b"x" * 10_000_000)
        sys.stderr.write("x" * 1_000_000)


def _flood(text: bytes) -> Callable[[], None]:
    def attack() -> None:
        while True:
            for descriptor in range(3, 20):
                with contextlib.suppress(OSError):
                    os.write(descriptor, text)

    return attack


def _ignore_signals() -> None:
    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_IGN)
    time.sleep(3600)


def _alarm() -> None:
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    time.sleep(3600)


def _many_threads() -> None:
    for _ in range(10_000):
        threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()


def _spin_on() -> None:
    """Leave a thread behind that goes on when the decision is made."""
    threading.Thread(target=lambda: [None for _ in itertools.count() if False], daemon=True).start()


def _recurse_in_c() -> None:
    sys.setrecursionlimit(10**9)
    nested: Any = []
    for _ in range(10**5):
        nested = [nested]
    repr(nested)


def _replace_the_wire() -> None:
    vars(protocol)["line"] = lambda _: b"\x00\xff not what was agreed\n"


def _tell() -> Decision:
    limits = {name: resource.getrlimit(getattr(resource, name))[1] for name in ("RLIMIT_AS", "RLIMIT_DATA")}
    return Decision(Action.HOLD, 0.0, limits)


ATTACKS: dict[str, Callable[[], Any]] = {
    "hoard": _hoard,
    "hoard shared memory": _hoard_shared,
    "fork on and on": _fork_on,
    "native fork": _native("fork"),
    "debug its parent": _native("ptrace", PTRACE_ATTACH, os.getppid(), 0, 0),
    "outlive its parent": _native("prctl", PR_SET_PDEATHSIG, 0, 0, 0, 0),
    "print a gigabyte": _print_a_gigabyte,
    "close the pipes": lambda: os.closerange(3, 64),
    "flood with breaches": _flood(BREACH),
    "flood with answers": _flood(ROW),
    "ignore signals": _ignore_signals,
    "stop itself": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "alarm": _alarm,
    "many threads": _many_threads,
    "spin on": _spin_on,
    "recurse in C": _recurse_in_c,
    "hold the interpreter": lambda: re.match(r"(a+)+$", "a" * 60 + "b"),
    "compute for ever": lambda: Decision(Action.BUY, float(pow(3, 10**9) > 0)),
    "replace the wire": _replace_the_wire,
    "endless features": lambda: Decision(Action.BUY, 0.5, Endless()),
    "large features": lambda: Decision(Action.BUY, 0.5, {str(n): "x" * 10**6 for n in range(90)}),
    "write its own memory": lambda: Path("/proc/self/mem").open("r+b").close(),
    "write shared memory": lambda: Path("/dev/shm/rollout").write_text("x"),
    "tell": _tell,
}


class FloodsOnLoad(Hostile):
    def __init__(self) -> None:
        _flood(BREACH)()
