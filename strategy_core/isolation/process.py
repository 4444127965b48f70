"""The parent's side of one worker process: start it, exchange messages with deadlines, kill and reap it."""

import contextlib
import fcntl
import json
import os
import select
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from strategy_core.domain.errors import InvalidConfig, IsolationUnavailable
from strategy_core.isolation import protocol
from strategy_core.isolation.forkserver import ForkServerGone, fork_server
from strategy_core.isolation.sandbox import View

CHUNK_BYTES = 1 << 18
PIPE_BYTES = 1 << 20  # the limit for unprivileged processes, for fewer switches between the two ends


class Died(Exception):
    """The process has ended, or violated the protocol and was ended. The text gives the reason."""


class Overdue(Exception):
    """The deadline passed without an answer."""


class Process:
    """A running worker. Call `send`, then `hear` until all expected messages have arrived."""

    def __init__(self) -> None:
        its_inbox, self._to = os.pipe()
        self._from, its_outbox = os.pipe()
        try:
            self._fork_server = fork_server()
            self._number = self._fork_server.fork(its_inbox, its_outbox)
        except (ForkServerGone, OSError, IsolationUnavailable) as failed:
            os.close(self._to)
            os.close(self._from)
            if isinstance(failed, IsolationUnavailable):
                raise
            raise Died("no worker could be started") from None
        finally:
            os.close(its_inbox)
            os.close(its_outbox)
        self._exit_code: int | None = None
        for descriptor in (self._to, self._from):
            os.set_blocking(descriptor, False)
            _widen(descriptor)
        self._heard = bytearray()
        self._searched = 0

    @property
    def alive(self) -> bool:
        return self._fork_server.usable and not _ready(self._to, select.POLLERR, 0.0)  # POLLERR: the reader is gone

    def send(self, frame: bytes, deadline: float) -> None:
        """Write *frame*. Raise Died, or Overdue if the worker has not read it by *deadline* (monotonic seconds)."""
        rest = memoryview(frame)
        while rest:
            self._wait(self._to, select.POLLOUT, deadline)
            try:
                rest = rest[os.write(self._to, rest[:CHUNK_BYTES]) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise Died(self._end()) from None

    def hear(self, deadline: float, nap_s: float = 0.0) -> tuple[str, Any]:
        """Return the next message. Raise Died, or Overdue without a message by *deadline* (monotonic seconds).

        Sleeps *nap_s* first if the buffer is empty, so that several messages are read at once.
        """
        if nap_s > 0.0 and not self._heard:
            time.sleep(min(nap_s, max(0.0, deadline - time.monotonic())))
        while (end := self._heard.find(b"\n", self._searched)) < 0:
            self._searched = len(self._heard)
            if self._searched > protocol.MAX_LINE_BYTES:
                raise Died("its worker sent an endless line")
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
            return protocol.message_in(text)
        except protocol.ProtocolError as garbled:
            raise Died(f"its worker violated the protocol: {garbled}") from None

    def end(self) -> None:
        self._reap()
        os.close(self._to)
        os.close(self._from)

    def _reap(self) -> int | None:
        """Kill the process if it runs, reap it, and return its exit code (None: unknown)."""
        if self._exit_code is None and self._fork_server.usable:  # else the kernel has ended it with the fork server
            with contextlib.suppress(ForkServerGone):
                self._exit_code = self._fork_server.end(self._number)
        return self._exit_code

    def _wait(self, descriptor: int, event: int, deadline: float) -> None:
        if not _ready(descriptor, event, deadline - time.monotonic()):
            raise Overdue

    def _end(self) -> str:
        """Reap the process and return how it ended."""
        code = self._reap()
        if code == protocol.OUT_OF_MEMORY:
            return "its worker ran out of memory"
        if code is None:
            return "its worker has ended"
        return f"its worker was killed by signal {-code}" if code < 0 else f"its worker ended with exit code {code}"


def _widen(pipe: int) -> None:
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # the user has too many large pipes, and this one stays small
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def _ready(descriptor: int, event: int, seconds: float) -> bool:
    """Return whether *event* occurs in time. Even with 0 s left, an event that has occurred counts."""
    poll = select.poll()
    poll.register(descriptor, event)
    return bool(poll.poll(max(0.0, seconds * 1e3)))


def checked_config(config: Mapping[str, Any], entry_point: str) -> dict[str, Any]:
    """Return the config. Raise InvalidConfig if it is not JSON."""
    try:
        json.dumps(dict(config))
    except (TypeError, ValueError) as error:
        raise InvalidConfig(entry_point, [f"it must be JSON: {error}"]) from None
    return dict(config)


def start_frame(header: Mapping[str, Any], view: View, engine: bytes | None) -> bytes:
    """Return the first frame for a worker."""
    files = {
        "search_path": [str(Path(entry).absolute()) for entry in sys.path],
        "folder": str(view.folder),
        "modules": {name: str(file) for name, file in view.modules.items()},
        "model_files": [str(file) for file in view.files],
    }
    return protocol.frame({**header, **files}, [] if engine is None else [engine])
