"""Python's audit hook in a worker. It names what a version tried, and raises inside the version's code.

It is no protection of its own, because native code passes it and Python code can disarm it: that is the sandbox's part.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any

from strategy_core.isolation.sandbox import FCNTL, IOCTL, WRITES

OTHERS_PROC = re.compile(r"/proc/(\d+)(/|$)")
REPORTS = 50  # per decision, so that a loop of tries does not flood the pipe. The rest are refused without a report
_AF_UNIX = 1

_TRIES: Mapping[str, tuple[str, ...]] = {
    "socket": (
        *("socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo"),
        *("socket.getnameinfo", "socket.gethostbyname", "socket.gethostbyaddr"),
        *("urllib.Request", "http.client.connect"),
    ),
    "process": (
        *("subprocess.Popen", "os.system", "os.exec", "os.spawn", "os.posix_spawn", "os.fork", "os.forkpty"),
        "pty.spawn",
    ),
    "changing files": (
        *("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"),
        *("os.chown", "os.utime", "os.setxattr", "os.removexattr", "os.chflags", "os.lockf"),
        *("tempfile.mkstemp", "tempfile.mkdtemp"),
    ),
    "database": ("sqlite3.connect", "sqlite3.connect/handle"),
    "signal": ("os.killpg", "signal.pidfd_send_signal"),
    "system log": ("syslog.openlog", "syslog.syslog"),
    "own limits": ("resource.setrlimit", "resource.prlimit"),
    "file locks": ("fcntl.lockf", "fcntl.flock"),
}
REFUSED: Mapping[str, str] = {event: what for what, events in _TRIES.items() for event in events}


HARMLESS_CONTROLS = {"fcntl.fcntl": frozenset(FCNTL), "fcntl.ioctl": frozenset(IOCTL)}


class Refusal(BaseException):
    """Raised in a version's code at a try. A BaseException, so that `except Exception` does not catch it."""


class Guard:
    """The audit hook. It collects the tries since the last `take`.

    Loading native code is no try: the libraries of models do it, and the kernel binds what they call.
    """

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        self._tried: list[str] = []

    def arm(self) -> None:
        import _posixsubprocess

        def refuse_fork_exec(*_: object) -> int:
            raise self._refusal("process: fork_exec")

        # multiprocessing and joblib call it directly, which raises no audit event
        _posixsubprocess.fork_exec = refuse_fork_exec
        vars(subprocess)["_fork_exec"] = refuse_fork_exec
        sys.addaudithook(self._hook)

    def take(self) -> list[str]:
        """Return the tries since the last call."""
        tried, self._tried = self._tried, []
        return tried

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        tried = self._refused_try(event, args)
        if tried is not None:
            raise self._refusal(tried)

    def _refusal(self, tried: str) -> Refusal:
        if len(self._tried) < REPORTS:
            self._tried.append(tried)
            self._report(tried)
        return Refusal(tried)

    def _refused_try(self, event: str, args: tuple[Any, ...]) -> str | None:
        """Return a description of the try, or None if the event is allowed."""
        if event == "open":
            return _refused_open(*args[:3])
        if event in REFUSED or event.startswith("shutil."):
            return f"{REFUSED.get(event, 'changing files')}: {event}{_format_args(args)}"
        if event == "socket.__new__" and args[1] != _AF_UNIX:  # asyncio needs a local socket pair
            return f"socket: {event}{_format_args(args[1:])}"
        if event in ("fcntl.fcntl", "fcntl.ioctl") and args[1] not in HARMLESS_CONTROLS[event]:
            return f"device or lock: {event}{_format_args(args[1:2])}"
        if event == "os.kill" and args[0] != os.getpid():
            return f"signal: {event}{_format_args(args)}"
        return None


def _refused_open(path: object, mode: object, flags: object) -> str | None:
    if (isinstance(mode, str) and set(mode) & set("wax+")) or (isinstance(flags, int) and flags & WRITES):
        return f"open for writing: {_text(path)}"
    if isinstance(path, str | bytes):
        other = OTHERS_PROC.match(os.path.realpath(os.fsdecode(path)))
        if other and int(other[1]) != os.getpid():
            return f"open of another process: {_text(path)}"
    return None


def _format_args(args: tuple[Any, ...]) -> str:
    plain = [_text(value) for value in args if isinstance(value, str | bytes | int | tuple | list | PurePath)]
    return f"({', '.join(text for text in plain if text != '-1')})"  # -1: no folder descriptor given


def _text(value: object) -> str:
    return (os.fsdecode(value) if isinstance(value, bytes) else str(value))[:200]
