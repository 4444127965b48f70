"""The sandbox of a worker: kernel limits and a seccomp filter (Linux), and Python's audit hook.

The kernel part also binds native code: resource limits, no new privileges, an end with the parent, and a seccomp
filter. The filter answers "not permitted" to sockets, processes, debugging, and every call that writes, creates,
renames or removes files. It allows opening files to read, threads and memory.

The audit hook reports what a version tried, and raises inside its code.

System-call numbers: asm/unistd_64.h (x86_64) and asm-generic/unistd.h (aarch64) of Linux 6, which are stable.
Source: Linux Documentation/userspace-api/seccomp_filter.rst.
"""

import ctypes
import errno
import os
import platform
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC = 1, 1  # all threads, including those of BLAS
ALLOW, REFUSE, ABSENT = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
LOAD, JUMP_EQUAL, JUMP_AT_LEAST, JUMP_BITS, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER_AT, ARCH_AT, ARGUMENTS_AT = 0, 4, 16  # offsets in struct seccomp_data
CLONE_THREAD = 0x10000
X32 = 0x40000000
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
OTHERS_PROC = re.compile(r"/proc/(\d+)(/|$)")
REPORTS = 50  # per decision, so that a loop of tries does not flood the pipe. The rest are refused without a report
_AF_UNIX = 1


# Kernel: resource limits and the seccomp filter


@dataclass(frozen=True, slots=True)
class Calls:
    """System-call numbers of one processor family.

    Attributes:
        audit_arch: the kernel's name for the family.
        refused: not permitted.
        opens: call -> index of the argument with the flags. Permitted to read.
        signals: permitted to the process itself.
        clone: permitted for threads.
        limits: permitted to read limits.
        control: prctl. Refused where it would let the process outlive its parent.
        absent: answered with "no such call", because their arguments are behind a pointer that a filter cannot read.
            libc then uses an older call.
        seccomp: the call that installs the filter.
    """

    audit_arch: int
    refused: tuple[int, ...]
    opens: Mapping[int, int]
    signals: tuple[int, ...]
    clone: int
    limits: int
    control: int
    absent: tuple[int, ...]
    seccomp: int


# fmt: off
_BOTH = (424, 425, 428, 429, 430, 432, 434, 438, 452, 463, 466)  # pidfds, io_uring, new mounts, fchmodat2, *xattrat
CALLS: Mapping[str, Calls] = {
    "x86_64": Calls(
        audit_arch=0xC000003E,
        refused=(
            41, 42, 43, 49, 50, 288,                                    # sockets
            57, 58, 59, 322,                                            # fork, vfork, execve, execveat
            101, 310, 311, 129, 200, 297,                               # ptrace, process_vm_*, queued signals, tkill
            76, 77, 82, 83, 84, 85, 86, 87, 88, 90, 91, 92, 93, 94,     # truncate, rename, mkdir, unlink, chmod ...
            132, 133, 188, 189, 190, 197, 198, 199, 235, 261, 280, 285, # utime, mknod, xattr, fallocate
            258, 259, 260, 263, 264, 265, 266, 268, 316,                # the same by directory
            29, 64, 68, 240,                                            # shared memory, semaphores, queues
            103, 155, 161, 163, 164, 165, 166, 167, 168, 169, 170, 171, 175, 176, 246, 272, 308, 313,  # for admins
            159, 160, 227, 305, 248, 249, 250, 298, 304, 321, 323,      # clocks, setrlimit, keys, perf, bpf
            *_BOTH,
        ),
        opens={2: 1, 257: 2}, signals=(62, 234), clone=56, limits=302, control=157, absent=(435, 437), seccomp=317,
    ),
    "aarch64": Calls(
        audit_arch=0xC00000B7,
        refused=(
            198, 200, 201, 202, 203, 242,
            221, 281,
            117, 270, 271, 130, 138, 240,
            5, 6, 7, 14, 15, 16, 33, 34, 35, 36, 37, 38, 45, 46, 47, 52, 53, 54, 55, 88, 276,
            180, 186, 190, 194,
            39, 40, 41, 51, 89, 97, 104, 105, 106, 116, 142, 161, 162, 164, 170, 224, 225, 268, 273,
            112, 171, 217, 218, 219, 241, 265, 266, 280, 282,
            *_BOTH,
        ),
        opens={56: 2}, signals=(129, 131), clone=220, limits=261, control=167, absent=(435, 437), seccomp=277,
    ),
}
# fmt: on


class _Instruction(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint16), ("jt", ctypes.c_uint8), ("jf", ctypes.c_uint8), ("k", ctypes.c_uint32)]


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_uint16), ("instructions", ctypes.POINTER(_Instruction))]


def end_with_parent(parent_pid: int) -> None:  # pragma: no cover - a worker may write no coverage file
    """Make the kernel kill this process when its parent ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:  # the parent ended before the call
        os._exit(1)


def apply_limits(memory_bytes: int) -> bool:  # pragma: no cover - a worker may write no coverage file
    """Set the resource limits and the system-call filter, and return whether the filter is active.

    Args:
        memory_bytes: address space of this process, including code and libraries. A quarter of it may be private
            memory. If the machine runs out of memory, the kernel kills this process first.
    """
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform != "linux":
        return False
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes // 4, memory_bytes // 4))
    libc = ctypes.CDLL(None, use_errno=True)
    calls = CALLS.get(platform.machine())
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 or calls is None:
        return False
    steps = [_Instruction(*step) for step in _filter(calls, os.getpid())]
    program = _Program(len(steps), (_Instruction * len(steps))(*steps))
    done = libc.syscall(calls.seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, ctypes.byref(program))
    return bool(done == 0)


def _filter(calls: Calls, own_pid: int) -> list[tuple[int, int, int, int]]:
    """Return the filter as (code, skip when true, skip when false, value). The last step allows."""
    steps = [
        (LOAD, 0, 0, ARCH_AT),
        (JUMP_EQUAL, 1, 0, calls.audit_arch),
        (RETURN, 0, 0, REFUSE),  # other numbers (32-bit calls)
        (LOAD, 0, 0, NUMBER_AT),
        (JUMP_AT_LEAST, 0, 1, X32),
        (RETURN, 0, 0, REFUSE),
    ]
    for number in calls.refused:
        steps += [(JUMP_EQUAL, 0, 1, number), (RETURN, 0, 0, REFUSE)]
    for number in calls.absent:
        steps += [(JUMP_EQUAL, 0, 1, number), (RETURN, 0, 0, ABSENT)]
    tests = [(number, flags, (JUMP_BITS, 0, 1, WRITES)) for number, flags in calls.opens.items()]
    tests += [(number, 0, (JUMP_EQUAL, 1, 0, own_pid)) for number in calls.signals]
    tests += [(calls.clone, 0, (JUMP_BITS, 1, 0, CLONE_THREAD)), (calls.limits, 2, (JUMP_EQUAL, 1, 0, 0))]
    tests += [(calls.control, 0, (JUMP_EQUAL, 0, 1, PR_SET_PDEATHSIG))]
    for number, argument, test in tests:
        steps += [
            (JUMP_EQUAL, 0, 4, number),
            (LOAD, 0, 0, ARGUMENTS_AT + 8 * argument),
            test,  # skips the refusal or falls into it
            (RETURN, 0, 0, REFUSE),
            (RETURN, 0, 0, ALLOW),
        ]
    return [*steps, (RETURN, 0, 0, ALLOW)]


# Python: the audit hook


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
}
REFUSED: Mapping[str, str] = {event: what for what, events in _TRIES.items() for event in events}


class Refusal(BaseException):
    """Raised in a version's code at a try. A BaseException, so that `except Exception` does not catch it."""


class Guard:
    """The audit hook. It collects the tries since the last `take`, and is milder while the version loads."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        self._tried: list[str] = []
        self.loading = True

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
        if event == "os.kill" and args[0] != os.getpid():
            return f"signal: {event}{_format_args(args)}"
        if event == "ctypes.dlopen" and not self.loading:  # native libraries load their parts this way
            return f"native code: {event}{_format_args(args)}"
        if (
            event.startswith("ctypes.dlsym") and getattr(args[0], "_name", "") is None
        ):  # would give access to any function of the process
            return f"native code: {event}{_format_args(args[1:])}"
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
