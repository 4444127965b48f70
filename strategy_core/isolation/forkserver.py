"""Where workers come from: one clean process that has imported numpy and pandas once, and forks a worker when asked.

A worker then starts in milliseconds where an interpreter takes a second: versions are many, and one that hangs or dies
is replaced at every decision. The nursery never imports a version's code, and ends when this process does, its workers
with it.
"""

import atexit
import contextlib
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

START_DEADLINE_S = 120.0
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class ForkServerGone(Exception):
    """The nursery has ended; the next worker starts another."""


def environment() -> dict[str, str]:
    """Return all that a worker gets of this process's environment: no database address, no credential, no home."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "LANG": os.environ.get("LANG", "C.UTF-8"),
        "TZ": "UTC",  # the same answers on every machine,
        "PYTHONHASHSEED": "0",  # and in every process, whatever order a set has
        "PYTHONPATH": search_path(),
        "PYTHONDONTWRITEBYTECODE": "1",
        **dict.fromkeys(THREADS, "1"),  # the nursery forks, and a version's sums keep their order
    }


def search_path() -> str:
    return os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)


class ForkServer:
    """The process that forks workers, and the socket to it. Safe to use from several threads."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._popen = subprocess.Popen(  # noqa: S603  our own interpreter and module
                [sys.executable, "-P", "-m", "strategy_core.isolation.worker", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=environment(),
            )
        ours.settimeout(START_DEADLINE_S)
        self._socket = ours
        self._lock = threading.Lock()
        self._owner = os.getpid()
        atexit.register(self.close)

    @property
    def usable(self) -> bool:
        return self._owner == os.getpid() and self._popen.poll() is None  # a forked child of ours needs its own

    def fork(self, inbox: int, outbox: int) -> int:
        """Start a worker that reads *inbox* and writes *outbox*; return its process id."""
        pid = self._asked(b"fork", [inbox, outbox])
        if pid <= 1:
            raise ForkServerGone  # to kill such a one is to kill a group, or all
        return pid

    def reap(self, pid: int) -> int:
        """Wait until a worker has ended, killed or by itself; return its exit code, negative for a signal."""
        return self._asked(b"reap %d" % pid, [])

    def close(self) -> None:
        if self._owner == os.getpid():
            self._socket.close()
            self._popen.kill()  # a forked child of ours may hold the socket open: waiting for its end could be for ever
            self._popen.wait()

    def _asked(self, request: bytes, descriptors: list[int]) -> int:
        with self._lock:
            try:
                socket.send_fds(self._socket, [request], descriptors)
                answer = self._socket.recv(64)
            except OSError:
                answer = b""
                self._popen.kill()  # an answer that comes late would be taken for that to the next request
                self._popen.wait()
        if not answer:
            raise ForkServerGone
        return int(answer)


_current: list[ForkServer] = []
_starting = threading.Lock()


def fork_server() -> ForkServer:
    """Return this process's nursery, started when there is none that works."""
    with _starting:
        if not _current or not _current[0].usable:
            for gone in _current:
                with contextlib.suppress(OSError):
                    gone.close()
                atexit.unregister(gone.close)
            _current[:] = [ForkServer()]
        return _current[0]
