"""One worker process as its parent sees it: started clean, heard with a deadline, ended for certain; never trusted."""

import contextlib
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from strategy_core.isolation import wire

CHUNK_BYTES = 1 << 18
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class Died(Exception):
    """The process has ended, or said what it must not and was ended; the text says which."""


class Overdue(Exception):
    """The deadline passed without an answer."""


def environment() -> dict[str, str]:
    """Return all that a worker gets of this process's environment: no database address, no credential, no home."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "LANG": os.environ.get("LANG", "C.UTF-8"),
        "TZ": "UTC",  # the same answers on every machine
        "PYTHONPATH": os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path),
        "PYTHONDONTWRITEBYTECODE": "1",
        **dict.fromkeys(THREADS, "1"),  # as many threads as versions is enough, and sums keep their order
    }


class Process:
    """A running worker. `send`, then `hear` until the lines that were asked for have come."""

    def __init__(self) -> None:
        command = [sys.executable, "-P", "-m", "strategy_core.isolation.worker", str(os.getpid())]
        self._popen = subprocess.Popen(  # noqa: S603  our own interpreter and module
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment(),
            bufsize=0,
        )
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self._to, self._from = self._popen.stdin.fileno(), self._popen.stdout.fileno()
        os.set_blocking(self._to, False)
        os.set_blocking(self._from, False)
        self._heard = bytearray()
        self._searched = 0

    @property
    def alive(self) -> bool:
        return self._popen.poll() is None

    def send(self, frame: bytes, deadline: float) -> None:
        """Write *frame*; raise Died or Overdue when the worker does not take it by *deadline* (monotonic seconds)."""
        rest = memoryview(frame)
        while rest:
            self._wait(self._to, select.POLLOUT, deadline)
            try:
                rest = rest[os.write(self._to, rest[:CHUNK_BYTES]) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise Died(self._end()) from None

    def hear(self, deadline: float) -> tuple[str, Any]:
        """Return the next message; raise Died, or Overdue when none is complete by *deadline* (monotonic seconds)."""
        while (end := self._heard.find(b"\n", self._searched)) < 0:
            self._searched = len(self._heard)
            if self._searched > wire.MAX_LINE_BYTES:
                raise Died("its worker sent a line without end")
            self._wait(self._from, select.POLLIN, deadline)
            with contextlib.suppress(BlockingIOError):
                chunk = os.read(self._from, CHUNK_BYTES)
                if not chunk:
                    raise Died(self._end())
                self._heard += chunk
        text = bytes(self._heard[:end])
        del self._heard[: end + 1]
        self._searched = 0
        try:
            return wire.message_in(text)
        except wire.Garbled as garbled:
            raise Died(f"its worker sent what was not agreed: {garbled}") from None

    def end(self) -> None:
        self._popen.kill()
        self._popen.wait()
        for pipe in (self._popen.stdin, self._popen.stdout):
            if pipe is not None:
                pipe.close()

    def _wait(self, descriptor: int, event: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(descriptor, event)
        left_ms = max(0.0, (deadline - time.monotonic()) * 1e3)
        if not poll.poll(left_ms):  # at 0 it still takes what is there: a slow parent is not a slow version
            raise Overdue

    def _end(self) -> str:
        try:
            code = self._popen.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            return "its worker closed its pipe"
        if code == wire.OUT_OF_MEMORY:
            return "its worker ran out of memory"
        return f"its worker was killed by signal {-code}" if code < 0 else f"its worker ended with exit code {code}"


def start_frame(entry_point: str, config: Mapping[str, Any], memory_bytes: int, engine: bytes | None) -> bytes:
    header = {"entry_point": entry_point, "config": dict(config), "memory_bytes": memory_bytes}
    return wire.frame(header, [] if engine is None else [engine])
