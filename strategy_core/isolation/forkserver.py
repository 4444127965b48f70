"""The fork server: one clean process that has imported numpy and pandas and forks workers from itself.

A forked worker starts in milliseconds, a new interpreter in a second. There are many versions, and a worker that hangs
or dies is replaced. The fork server does not import code of versions. It ends with this process, and its workers with
it.
"""

import atexit
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path

START_DEADLINE_S = 120.0
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


ENDED_WITHIN_S = 2.0
_MODULE = "strategy_core.isolation.worker"


class ForkServerGone(Exception):
    """The fork server has ended. The next worker starts another."""


def environment() -> dict[str, str]:
    """Return the environment of workers. It contains no credentials, database address or home folder."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "LANG": os.environ.get("LANG", "C.UTF-8"),
        "TZ": "UTC",  # the same answers on every machine
        "PYTHONHASHSEED": "0",  # the same order of sets in every process
        "PYTHONPATH": search_path(),
        "PYTHONDONTWRITEBYTECODE": "1",
        **dict.fromkeys(THREADS, "1"),  # forking needs a single thread, and sums must keep their order
    }


def search_path() -> str:
    return os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)


class ForkServer:
    """The process that forks workers, and the socket to it. Thread-safe."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._popen = subprocess.Popen(  # noqa: S603  our own interpreter and module
                [sys.executable, "-P", "-m", _MODULE, str(theirs.fileno())],
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
        return (
            self._owner == os.getpid() and self._popen.poll() is None
        )  # a forked child of this process needs another one

    def fork(self, inbox: int, outbox: int) -> int:
        """Start a worker that reads *inbox* and writes *outbox*, and return its process id."""
        pid = self._request(b"fork", [inbox, outbox])
        if pid <= 1:
            raise ForkServerGone  # killing such an id would kill a process group or all processes
        return pid

    def reap(self, pid: int) -> int:
        """Wait until a worker has ended and return its exit code, which is negative for a signal."""
        return self._request(b"reap %d" % pid, [])

    def close(self) -> None:
        if self._owner == os.getpid():
            self._socket.close()
            self._popen.kill()  # without the kill a forked child that holds the socket could keep it alive
            self._popen.wait()

    def _request(self, request: bytes, descriptors: list[int]) -> int:
        with self._lock:
            try:
                socket.send_fds(self._socket, [request], descriptors)
                answer = self._socket.recv(64)
            except OSError:
                answer = b""
                self._popen.kill()  # a late answer would be taken for the answer to the next request
                self._popen.wait()
        if not answer:
            raise ForkServerGone
        return int(answer)


_current: list[ForkServer] = []
_starting = threading.Lock()


def fork_server() -> ForkServer:
    """Return this process's fork server, started if necessary."""
    with _starting:
        if not _current or not _current[0].usable:
            for gone in _current:
                with contextlib.suppress(OSError):
                    gone.close()
                atexit.unregister(gone.close)
            _current[:] = [ForkServer()]
        return _current[0]


def end_worker(pid: int) -> bool:
    """Kill a worker of this user and wait until it has ended. Return False for any other process, and without Linux."""
    if sys.platform != "linux":
        return False
    try:
        process = os.pidfd_open(pid)  # first, so that the signal cannot reach another process that gets the same id
    except OSError:
        return False
    try:
        if not _is_worker(pid):
            return False
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(process, signal.SIGKILL)
        ended = select.poll()
        ended.register(process, select.POLLIN)
        return bool(ended.poll(ENDED_WITHIN_S * 1_000))
    except OSError:
        return False
    finally:
        os.close(process)


def _is_worker(pid: int) -> bool:
    arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    uids = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("Uid:"))
    same_user = set(uids.split()[1:]) == {str(os.getuid())}
    return same_user and (b"-m", _MODULE.encode()) in pairwise(arguments)
