"""What a version's code may not do, refused and reported from inside its own process; never undone once armed.

Two fences, so that one stops what the other cannot see:

- `Guard.arm`: a Python audit hook. It refuses sockets, processes, writing and changing files, signals to others,
  loading native code once the version is loaded, and reading other processes' memory and environment. It knows what
  was tried and says so; it sees what goes through Python.
- `kernel.limit`: the kernel's own (Linux). No new privileges, no file of more than 0 bytes, no core dump, a ceiling on
  memory, an end when the parent ends, and a filter of system calls, which native code meets as well.

What this does not stop: reading files that the product's user may read (so keep secrets out of its working directory),
burning CPU up to the deadline, and Python code written to defeat an audit hook, which then still meets the kernel, is
refused there, but is not reported. Where the kernel has no filter (not Linux, or another processor), native code is
held back by the empty environment alone.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
OTHERS_PROC = re.compile(r"/proc/(\d+)(/|$)")
REPORTS = 50  # a decision: a loop of tries must not flood the pipe; the rest are refused unreported

_TRIES: Mapping[str, tuple[str, ...]] = {
    "socket": (
        *("socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo"),
        *(
            "socket.getnameinfo",
            "socket.gethostbyname",
            "socket.gethostbyaddr",
            "urllib.Request",
            "http.client.connect",
        ),
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
}
REFUSED: Mapping[str, str] = {event: what for what, events in _TRIES.items() for event in events}


class Refusal(BaseException):
    """Raised inside a version's code at a try; no Exception, so that `except Exception` does not hide it from it."""


class Guard:
    """The audit hook's state: what was tried since the last `take`, and whether the version is still loading."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        self._tried: list[str] = []
        self.loading = True

    def arm(self) -> None:
        import _posixsubprocess

        def refuse_fork_exec(*_: object) -> int:
            raise self._refusal("process: fork_exec")

        # multiprocessing and joblib call it directly, and it raises no audit event of its own
        _posixsubprocess.fork_exec = refuse_fork_exec
        vars(subprocess)["_fork_exec"] = refuse_fork_exec
        sys.addaudithook(self._hook)

    def take(self) -> list[str]:
        """Return what was tried since last asked."""
        tried, self._tried = self._tried, []
        return tried

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        tried = self._what(event, args)
        if tried is not None:
            raise self._refusal(tried)

    def _refusal(self, tried: str) -> Refusal:
        if len(self._tried) < REPORTS:
            self._tried.append(tried)
            self._report(tried)
        return Refusal(tried)

    def _what(self, event: str, args: tuple[Any, ...]) -> str | None:
        """Return what *event* tries, or None when it is allowed."""
        if event == "open":
            return _file(*args[:3])
        if event in REFUSED or event.startswith("shutil."):
            return f"{REFUSED.get(event, 'changing files')}: {event}{_shown(args)}"
        if event == "socket.__new__" and args[1] != _AF_UNIX:  # asyncio's loop needs a pair of local ones
            return f"socket: {event}{_shown(args[1:])}"
        if event == "os.kill" and args[0] != os.getpid():
            return f"signal: {event}{_shown(args)}"
        if event == "ctypes.dlopen" and not self.loading:  # while loading, native libraries load their own parts so
            return f"native code: {event}{_shown(args)}"
        if event.startswith("ctypes.dlsym") and getattr(args[0], "_name", "") is None:  # any function of the process
            return f"native code: {event}{_shown(args[1:])}"
        return None


_AF_UNIX = 1


def _file(path: object, mode: object, flags: object) -> str | None:
    if (isinstance(mode, str) and set(mode) & set("wax+")) or (isinstance(flags, int) and flags & WRITES):
        return f"open for writing: {_text(path)}"
    if isinstance(path, str | bytes):
        other = OTHERS_PROC.match(os.path.realpath(os.fsdecode(path)))
        if other and int(other[1]) != os.getpid():
            return f"open of another process: {_text(path)}"
    return None


def _shown(args: tuple[Any, ...]) -> str:
    plain = [_text(value) for value in args if isinstance(value, str | bytes | int | tuple | list | PurePath)]
    return f"({', '.join(text for text in plain if text != '-1')})"  # -1: no folder descriptor given


def _text(value: object) -> str:
    return (os.fsdecode(value) if isinstance(value, bytes) else str(value))[:200]
