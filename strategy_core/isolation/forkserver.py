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
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path

import structlog

from strategy_core.domain.errors import IsolationUnavailable
from strategy_core.isolation import sandbox
from strategy_core.isolation.sandbox import MESSAGE_BYTES, Available, Level

START_DEADLINE_S = 120.0
SO_PEERCRED = getattr(socket, "SO_PEERCRED", None)  # Linux
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


log = structlog.get_logger(__name__)
ENDED_WITHIN_S = 2.0
_MODULE = "strategy_core.isolation.forkserver"


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
    """The process that forks workers, and the socket to it. Thread-safe.

    Args:
        sidecar: path of the socket of a process that runs under another user (`listen`). Without one it starts its own.
    """

    def __init__(self, sidecar: str = "") -> None:
        self._popen = None
        if sidecar:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._socket.connect(sidecar)
        else:
            self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                self._popen = _start(theirs)
        self._socket.settimeout(START_DEADLINE_S)
        self._lock = threading.Lock()
        self._owner = os.getpid()
        self._gone = False
        self._available: Available | None = None
        atexit.register(self.close)

    @property
    def usable(self) -> bool:
        mine = self._owner == os.getpid()  # a forked child of this process needs another one
        return mine and not self._gone and (self._popen is None or self._popen.poll() is None)

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
                if self._available.level is Level.NONE:
                    log.warning("isolation.none", missing=dict(self._available.missing), hint="run trusted code only")
            return self._available

    def close(self) -> None:
        if self._owner == os.getpid():
            self._kill()
            self._socket.close()

    def _request(self, request: bytes, descriptors: list[int]) -> int:
        with self._lock:
            try:
                socket.send_fds(self._socket, [request], descriptors)
                answer = self._socket.recv(64)
            except OSError:
                answer = b""  # a late one would be taken for the answer to the next request
            if not answer:
                self._kill()
                raise ForkServerGone
        return int(answer)

    def _kill(self) -> None:
        self._gone = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # also where a forked child holds the socket
        if self._popen is not None:
            self._popen.kill()
            self._popen.wait()


def _start(theirs: socket.socket) -> subprocess.Popen[bytes]:
    chosen = os.environ.get("ROLLOUT_ISOLATION", "")
    command = [sys.executable, "-P", "-m", "strategy_core.isolation.forkserver", str(theirs.fileno()), chosen]
    return subprocess.Popen(  # noqa: S603  our own interpreter and module
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=[theirs.fileno()],
        env=environment(),
        start_new_session=True,  # no controlling terminal, into which a version could type
    )


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
            _current[:] = [ForkServer(os.environ.get("ROLLOUT_ISOLATION_SOCKET", ""))]
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
    """Serve the parent's socket, or as `… forkserver --listen PATH` every process that connects to PATH."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    if sys.argv[1] == "--listen":
        listen(sys.argv[2])
    serve(socket.socket(fileno=int(sys.argv[1])), Level(sys.argv[2]) if sys.argv[2] else None)


def listen(path: str) -> None:  # pragma: no cover - the server may write no coverage file
    """Serve each process that connects to the socket at *path*, which is made, in a child process."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children need no reaping
    chosen = os.environ.get("ROLLOUT_ISOLATION", "")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(path)
        listening.listen()
        os.environ.clear()
        os.environ.update(environment())
        while True:
            requests, _ = listening.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                listening.close()
                os.setsid()  # no controlling terminal, into which a version could type
                sandbox.end_with_parent()
                serve(requests, Level(chosen) if chosen else None)
            requests.close()


def serve(requests: socket.socket, wanted: Level | None) -> None:  # pragma: no cover - it may write no coverage file
    user = struct.unpack("3i", requests.getsockopt(socket.SOL_SOCKET, SO_PEERCRED, 12))[1] if SO_PEERCRED else -1
    found = sandbox.strongest(wanted, other_user=user not in (-1, os.geteuid()))
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
