"""Self-test of the sandbox on this machine: a version whose decisions try to break out of it.

Every try aims at something real that the self-test has made: a file, a local socket, its own process. One that
succeeds does no harm, because it asks for what is the case already or touches what is removed afterwards.
"""

import ctypes
import errno
import fcntl
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
from pydantic import BaseModel

from strategy_core.domain.strategy import Action, Context, Decision
from strategy_core.isolation.client import DecisionRequest, IsolatedStrategy
from strategy_core.isolation.forkserver import fork_server, is_enough
from strategy_core.isolation.protocol import Answer

PROBE = "strategy_core.isolation.probe:Probe"
SECRETS = "find a secret"
REFUSALS = {
    errno.EPERM,
    errno.EACCES,
    errno.EROFS,
    errno.ENOENT,
    errno.ESRCH,
    errno.ENXIO,
}  # the last three: nothing is there
PTRACE_ATTACH, TIOCSTI, CLONE_NEWUSER = 16, 0x5412, 0x10000000
_OWN = {"PATH", "LANG", "LC_CTYPE", "TZ", "PYTHONHASHSEED", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE"}


class ProbeParams(BaseModel):
    """What the self-test has made.

    Attributes:
        parent: process id of the self-test.
        folder: with the file `private`, the local datagram socket `service`, and nothing else.
    """

    parent: int
    folder: str


class Targets:
    """The same as paths and texts for system calls."""

    def __init__(self, params: ProbeParams) -> None:
        self.parent = params.parent
        self.private = Path(params.folder) / "private"
        self.service = Path(params.folder) / "service"
        self.new = Path(params.folder) / "new"
        self.environ = f"/proc/{params.parent}/environ"


def _libc(name: str, *arguments: object) -> int:  # pragma: no cover - a worker may write no coverage file
    """Call the C library, which bypasses Python's audit hook. Raise OSError when the kernel refuses."""
    result: int = getattr(_LIBC, name)(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _fork_natively(_: Targets) -> None:  # pragma: no cover - a worker may write no coverage file
    if _libc("fork") == 0:
        os._exit(0)  # it would answer the next questions too


def _read_by_descriptor(to: Targets) -> None:  # pragma: no cover - a worker may write no coverage file
    folder = os.open("/proc", os.O_RDONLY)
    os.read(os.open(f"{to.parent}/environ", os.O_RDONLY, dir_fd=folder), 1)


def _read_other_pipes(_: Targets) -> None:  # pragma: no cover - a worker may write no coverage file
    """Open a pipe of another process that this one can see, without reading from it."""
    for process in (entry for entry in Path("/proc").iterdir() if entry.name.isdigit()):
        for opened in (process / "fd").iterdir() if process.name != str(os.getpid()) else ():
            if str(opened.readlink()).startswith("pipe:"):
                os.close(os.open(opened, os.O_RDONLY | os.O_NONBLOCK))
                return
    raise PermissionError(errno.EPERM, "no pipe of another process can be seen")


def _lock(to: Targets, *, natively: bool) -> None:  # pragma: no cover - a worker may write no coverage file
    opened = os.open(to.private, os.O_RDONLY)
    if natively:
        _libc("flock", opened, fcntl.LOCK_SH)
    else:
        fcntl.flock(opened, fcntl.LOCK_SH)


def _signal_owner(to: Targets, *, natively: bool) -> None:  # pragma: no cover - a worker may write no coverage file
    ours, _ = socket.socketpair()
    if natively:
        _libc("fcntl", ours.fileno(), fcntl.F_SETOWN, to.parent)
    else:
        fcntl.fcntl(ours, fcntl.F_SETOWN, to.parent)


def _send_datagram(to: Targets) -> None:  # pragma: no cover - a worker may write no coverage file
    ours, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    path = bytes(to.service)
    address = socket.AF_UNIX.to_bytes(2, sys.byteorder) + path + b"\0"
    _libc("sendto", ours.fileno(), b"data", 4, 0, address, len(address))


def _connect_locally(to: Targets) -> None:  # pragma: no cover - a worker may write no coverage file
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ours:
        ours.connect(str(to.service))


TRIES: Mapping[str, Callable[[Targets], object]] = {
    "open a socket": lambda _: socket.socket(socket.AF_INET),
    "connect to a server": lambda _: socket.create_connection(("127.0.0.1", 9), timeout=1.0),
    "look up a host": lambda _: socket.getaddrinfo("localhost", 80),
    "connect to a local service": _connect_locally,
    "open a database": lambda to: sqlite3.connect(to.private),
    "run a program": lambda _: subprocess.run(["true"], check=False),  # noqa: S607
    "run a shell": lambda _: os.system("true"),  # noqa: S605, S607
    "fork": lambda _: os.fork() or os._exit(0),
    "become another program": lambda _: os.execv("/bin/true", ["true"]),  # noqa: S606
    "write a file": lambda to: to.new.write_text(""),
    "append to a file": lambda to: os.open(to.private, os.O_WRONLY | os.O_APPEND),
    "make a temporary file": lambda _: tempfile.mkstemp(),
    "make a folder": lambda to: to.new.mkdir(),
    "remove a file": lambda to: to.new.unlink(),
    "rename a file": lambda to: to.private.rename(to.private),
    "copy a file": lambda to: shutil.copy(__file__, to.new),
    "change a file's mode": lambda to: to.private.chmod(0o600),
    "make a link": lambda to: to.new.symlink_to(__file__),
    "lock a file": lambda to: _lock(to, natively=False),
    "read a private file": lambda to: to.private.read_bytes(),
    "signal another process": lambda to: os.kill(to.parent, 0),
    "let a file signal another process": lambda to: _signal_owner(to, natively=False),
    "change another process's priority": lambda to: os.setpriority(
        os.PRIO_PROCESS, to.parent, os.getpriority(os.PRIO_PROCESS, to.parent)
    ),
    "change another process's cores": lambda to: os.sched_setaffinity(to.parent, os.sched_getaffinity(to.parent)),
    "change another process's scheduler": lambda to: os.sched_setscheduler(
        to.parent, os.SCHED_OTHER, os.sched_param(0)
    ),
    "read the parent's environment": lambda to: Path(to.environ).read_bytes(),
    "read the parent's environment by a folder's descriptor": _read_by_descriptor,
    "open another process's pipe": _read_other_pipes,
    "open the terminal": lambda _: os.open("/dev/tty", os.O_RDONLY),
    "write a file by native code": lambda to: _libc("creat", bytes(to.new), 0o600),
    "read a private file by native code": lambda to: _libc("open", bytes(to.private), os.O_RDONLY),
    "read the parent's environment by native code": lambda to: _libc("open", to.environ.encode(), os.O_RDONLY),
    "lock a file by native code": lambda to: _lock(to, natively=True),
    "open a socket by native code": lambda _: _libc("socket", socket.AF_INET, socket.SOCK_STREAM, 0),
    "send a datagram by native code": _send_datagram,
    "fork by native code": _fork_natively,
    "signal a process by native code": lambda to: _libc("kill", to.parent, 0),
    "let a file signal another process by native code": lambda to: _signal_owner(to, natively=True),
    "change another process's priority by native code": lambda to: _libc("setpriority", 0, to.parent, 0),
    "debug another process by native code": lambda to: _libc("ptrace", PTRACE_ATTACH, to.parent, 0, 0),
    "type into a terminal by native code": lambda _: _libc("ioctl", 0, TIOCSTI, b"\0"),
    "make a namespace by native code": lambda _: _libc("unshare", CLONE_NEWUSER),
    "make a file in memory by native code": lambda _: _libc("memfd_create", b"probe", 0),
}
_LIBC = ctypes.CDLL("libc.so.6" if sys.platform == "linux" else "libSystem.dylib", use_errno=True)


class Probe:
    """Runs the try named by the symbol. Returns hold with a reason if it was not stopped, else raises the error."""

    Params = ProbeParams
    warmup_bars = 1

    def decide(
        self, candles: pd.DataFrame, params: ProbeParams, context: Context
    ) -> Decision:  # pragma: no cover - a worker may write no coverage file
        if context.symbol == SECRETS:
            found = [name for name in os.environ if name not in _OWN and not name.endswith("_NUM_THREADS")]
            return Decision(Action.HOLD, reason=f"found {', '.join(found)}" if found else "refused: there is no secret")
        try:
            TRIES[context.symbol](Targets(params))
        except OSError as error:
            if error.errno in REFUSALS:
                return Decision(Action.HOLD, reason=f"refused: {error}"[:200])
            raise
        return Decision(Action.HOLD, reason="it was not stopped")


# In the product's process


@dataclass(frozen=True, slots=True)
class Attempt:
    """The result of one try, or of a look at one layer. *reported* means that it was recorded as a breach."""

    what: str
    refused: bool
    reported: bool
    detail: str


def prove_isolation(*, deadline_s: float = 5.0) -> list[Attempt]:
    """Run the probe in a worker like any version and return the result of each try, after the state of each layer.

    Tries by native code are refused by the kernel and not reported. A missing layer counts as refused only where
    ROLLOUT_ISOLATION_REQUIRED says that the rest is enough.

    Raises:
        IsolationUnavailable: the workers would be confined less than is required.
        StrategyFailed: the worker could not be started.
    """
    names = [*TRIES, SECRETS]
    candle = pd.DataFrame({"close": [1.0]}, index=pd.DatetimeIndex([datetime(2026, 1, 5, tzinfo=UTC)]))
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as service:
        (Path(folder) / "private").write_text("private")
        service.bind(str(Path(folder) / "service"))
        config = {"parent": os.getpid(), "folder": folder}
        with IsolatedStrategy(PROBE, config, deadline_s=deadline_s) as probe:
            probe.describe()
            answers = probe.decide([DecisionRequest(name, "1h", candle, [0], 1) for name in names])
    return [*_layers(), *(_attempt(name, answer) for name, (answer,) in zip(names, answers, strict=True))]


def _layers() -> list[Attempt]:
    found = fork_server().available()
    enough = is_enough(found)
    return [
        Attempt(
            f"do without {layer}", layer not in found.missing or enough, False, found.missing.get(layer, "in force")
        )
        for layer in ("namespaces", "landlock", "seccomp")
    ]


def _attempt(name: str, answer: Answer) -> Attempt:
    if answer.decision is not None:
        return Attempt(name, answer.decision.reason.startswith("refused"), False, answer.decision.reason)
    return Attempt(name, answer.kind == "breach", answer.kind == "breach", answer.error or "")
