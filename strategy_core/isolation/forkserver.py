"""The fork server: one clean process that has imported numpy and pandas and forks workers from itself.

A forked worker starts in milliseconds, a new interpreter in a second. There are many versions, and a worker that hangs
or dies is replaced. The fork server does not import code of versions. It ends with this process, and its workers with
it.

Run as `python -P -m strategy_core.isolation.forkserver SOCKET` it is the process itself. Where the machine permits it,
it is the first process of a namespace of its own, so that its end is the end of all its workers.
"""

import atexit
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

from strategy_core.domain.errors import IsolationUnavailable
from strategy_core.isolation import sandbox
from strategy_core.isolation.sandbox import Available, Level

START_DEADLINE_S = 120.0
MESSAGE_BYTES = 4096
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


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
        chosen = os.environ.get("ROLLOUT_ISOLATION", "")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._popen = subprocess.Popen(  # noqa: S603  our own interpreter and module
                [sys.executable, "-P", "-m", "strategy_core.isolation.forkserver", str(theirs.fileno()), chosen],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=environment(),
                start_new_session=True,  # no controlling terminal, into which a version could type
            )
        ours.settimeout(START_DEADLINE_S)
        self._socket = ours
        self._lock = threading.Lock()
        self._owner = os.getpid()
        self._available: Available | None = None
        atexit.register(self.close)

    @property
    def usable(self) -> bool:
        return (
            self._owner == os.getpid() and self._popen.poll() is None
        )  # a forked child of this process needs another one

    def fork(self, inbox: int, outbox: int) -> int:
        """Start a worker that reads *inbox* and writes *outbox*, and return its number, for `end`.

        Raises:
            IsolationUnavailable: workers here would be confined less than ROLLOUT_ISOLATION_REQUIRED asks.
        """
        check_required(self.available())
        return self._request(b"fork", [inbox, outbox])

    def end(self, number: int) -> int:
        """Kill a worker if it runs, wait for its end and return its exit code, which is negative for a signal."""
        return self._request(b"end %d" % number, [])

    def available(self) -> Available:
        """Return what its workers are confined by."""
        with self._lock:
            if self._available is None:
                try:
                    self._available = sandbox.read_available(self._socket.recv(MESSAGE_BYTES).decode())
                except (OSError, ValueError):
                    raise ForkServerGone from None
            return self._available

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


def is_enough(found: Available) -> bool:
    """Return whether ROLLOUT_ISOLATION_REQUIRED is set, and *found* is at least that."""
    required = os.environ.get("ROLLOUT_ISOLATION_REQUIRED", "")
    return bool(required) and found.level.at_least(Level(required))


def check_required(found: Available) -> None:
    """Raise IsolationUnavailable if *found* is less than ROLLOUT_ISOLATION_REQUIRED asks."""
    required = os.environ.get("ROLLOUT_ISOLATION_REQUIRED", "")
    if required and not is_enough(found):
        raise IsolationUnavailable(required, str(found))


# The process


def main() -> None:  # pragma: no cover - the server may write no coverage file
    requests = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    found = sandbox.strongest(Level(sys.argv[2]) if sys.argv[2] else None)
    if "namespaces" not in found.missing:
        _become_first_process()
    requests.send(sandbox.as_json(found).encode()[:MESSAGE_BYTES])
    from strategy_core.isolation import worker  # its slow imports start threads, after which no user namespace is made

    worker.serve(requests, found)


def _become_first_process() -> None:  # pragma: no cover - the server may write no coverage file
    """Go on as the first process of a new namespace. This one waits for its end."""
    sandbox.enter_server_namespaces()
    pid = os.fork()
    if pid:
        os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) & 0xFF)
    sandbox.end_with_parent()


if __name__ == "__main__":  # pragma: no cover - the server may write no coverage file
    main()
