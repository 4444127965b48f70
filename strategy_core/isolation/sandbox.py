"""Confine a worker process: what it sees, what it may call, and how much it may use.

Three layers of the Linux kernel, which also bind native code:

- namespaces: the worker has its own process, user, network, IPC, host name and mount namespaces. Its file system holds
  the interpreter, the installed libraries and the version's declared files, all read-only. It sees no other process.
- Landlock: files outside that list cannot be opened, signals and TCP do not leave the worker.
- seccomp: only the system calls of reading, computing and threads are allowed.

`Level` orders what a machine offers. `available` finds the strongest level by a trial in a child process. A worker
that cannot reach the chosen level ends before it loads any of the version's code.

Sources: namespaces(7), mount_setattr(2), landlock(7), seccomp(2) of the Linux manual pages. Constants: the kernel's
`include/uapi/linux` (`sched.h`, `mount.h`, `prctl.h`), which are stable.
"""

import ctypes
import errno
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG, PR_SET_NAME, PR_GET_NAME, PR_SET_NO_NEW_PRIVS, PR_SET_VMA = 1, 15, 16, 38, 0x53564D41
PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
NEW_MOUNTS, NEW_CGROUP, NEW_HOST_NAME, NEW_IPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
NEW_USER, NEW_PROCESSES, NEW_NETWORK, CLONE_THREAD = 0x10000000, 0x20000000, 0x40000000, 0x10000
NEW_ANY = NEW_MOUNTS | NEW_CGROUP | NEW_HOST_NAME | NEW_IPC | NEW_USER | NEW_PROCESSES | NEW_NETWORK
MS_NOSUID, MS_BIND, MS_RECURSIVE, MS_PRIVATE, MNT_DETACH = 2, 4096, 16384, 1 << 18, 2
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, AT_FDCWD, AT_RECURSIVE, MOUNT_SETATTR = 1, 2, -100, 0x8000, 442
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
COPIED_BYTES = 1 << 20  # larger modules, which are native, are mounted
TRIAL_S = 60.0
MESSAGE_BYTES = 4096
PRODUCT = Path(__file__).parents[1]
_OLD_ROOT = "/.host"


class Level(StrEnum):
    """How a worker is confined, from the strongest to the weakest.

    Attributes:
        NAMESPACES: namespaces and seccomp, and Landlock where the kernel has it.
        LANDLOCK: Landlock and seccomp. Other processes stay visible, but not their memory or files.
        SIDECAR: workers run under another user, in a process that the operator started, with seccomp.
        NONE: for trusted code only. Resource limits, the audit hook, and seccomp where the kernel has it.
    """

    NAMESPACES = "namespaces"
    LANDLOCK = "landlock"
    SIDECAR = "sidecar"
    NONE = "none"

    def at_least(self, other: "Level") -> bool:
        order = list(Level)
        return order.index(self) <= order.index(other)


@dataclass(frozen=True, slots=True)
class Available:
    """The level of this machine. *missing* has the reason for each layer that could not be used."""

    level: Level
    missing: Mapping[str, str]

    def __str__(self) -> str:
        reasons = "; ".join(f"no {layer}: {why}" for layer, why in self.missing.items())
        text = f"{self.level} (trusted code only)" if self.level is Level.NONE else str(self.level)
        return f"{text} ({reasons})" if reasons else text


@dataclass(frozen=True, slots=True)
class View:
    """The files that one worker can read, apart from the interpreter and the libraries.

    Attributes:
        modules: module name -> file, of the version's own code.
        files: model files that the version declares.
        folder: working directory, which is empty but for the above.
    """

    modules: Mapping[str, Path] = field(default_factory=dict)
    files: Sequence[Path] = ()
    folder: Path = Path("/")

    def top_folders(self) -> set[Path]:
        """Return the folders of the version's packages."""
        tops = ((name.partition(".")[0], name, file) for name, file in self.modules.items())
        return {_base(name, file) / top for top, name, file in tops if name != top or file.stem == "__init__"}


def _base(name: str, file: Path) -> Path:
    """Return the folder that would be on the search path for this module."""
    return file.parents[name.count(".") + (file.stem == "__init__")]


def libraries(search_path: Iterable[str]) -> list[Path]:
    """Return the files and folders of the interpreter, its libraries and the system's, which all versions may read."""
    installed = [Path(entry) for entry in search_path if {"site-packages", "dist-packages"} & set(Path(entry).parts)]
    paths = [
        *(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
        *(Path(prefix) / folder for prefix in (sys.base_prefix, sys.prefix) for folder in ("lib", "lib64")),
        *(Path(entry) for entry in search_path if entry.endswith(".zip")),
        *installed,
        PRODUCT,
        *map(Path, ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache")),
        *map(Path, ("/usr/share/zoneinfo", "/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")),
        *map(Path, ("/proc/cpuinfo", "/proc/meminfo", "/sys/devices/system/cpu")),  # BLAS and others tune by them
    ]
    present = sorted({path for path in paths if path.exists()})
    return [path for path in present if not any(path.is_relative_to(other) for other in present if other != path)]


# Namespaces


def enter_server_namespaces() -> None:
    """Move the calling process into a user namespace of its own, and its next children into a process namespace.

    Raises:
        OSError: the machine does not permit it.
    """
    user, group = os.geteuid(), os.getegid()
    _checked(_libc().unshare(NEW_USER | NEW_PROCESSES))
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")


def fork_into_new_namespace(own_namespace: int) -> int:  # pragma: no cover - runs in the fork server
    """Fork a child that is the only process it can see, and return like `os.fork`.

    Args:
        own_namespace: open file of the caller's `/proc/self/ns/pid_for_children`, to which it returns.
    """
    _checked(_libc().unshare(NEW_PROCESSES))
    pid = os.fork()
    if pid:
        _checked(_libc().setns(own_namespace, NEW_PROCESSES))
    return pid


def _enter_namespaces(view: View, libraries: Sequence[Path]) -> None:  # pragma: no cover - runs in a worker
    """Give the calling process its own namespaces, and a read-only file system with the view and the libraries."""
    sources = {path: Path(os.path.realpath(path)) for path in (*libraries, *view.files)}
    tops = view.top_folders() - {PRODUCT}
    hidden = [folder for folder in tops if any(folder.is_relative_to(path) for path in libraries)]
    copies, mounts = _contents(view)
    sources |= mounts
    _checked(_libc().unshare(NEW_MOUNTS | NEW_NETWORK | NEW_IPC | NEW_HOST_NAME | NEW_CGROUP))
    _mount("none", "/", None, MS_RECURSIVE | MS_PRIVATE)
    _mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID)  # noqa: S108  any folder would do: it becomes the root
    Path(f"/tmp{_OLD_ROOT}").mkdir()  # noqa: S108
    _checked(_libc().syscall(PIVOT_ROOT[os.uname().machine], b"/tmp", f"/tmp{_OLD_ROOT}".encode()))  # noqa: S108
    os.chdir("/")
    for path, real in sources.items():
        for target in {path, real}:
            _show(target, real)
    for folder in hidden:  # an installed package: only its modules and declared files remain
        _mount("tmpfs", str(folder), "tmpfs", MS_NOSUID)
    for folder in {path.parent for path in copies}:
        if any(folder.is_relative_to(top) for top in hidden) or not folder.exists():
            folder.mkdir(parents=True, exist_ok=True)
    for path, content in copies.items():
        with suppress(FileExistsError), path.open("xb") as file:  # it exists where a library folder shows it
            file.write(content)
    for path, real in sources.items():
        if any(path.is_relative_to(folder) for folder in hidden):
            _show(path, real)
    view.folder.mkdir(parents=True, exist_ok=True)
    _checked(_libc().umount2(_OLD_ROOT.encode(), MNT_DETACH))
    Path(_OLD_ROOT).rmdir()
    _make_read_only("/")
    _drop_capabilities()


def _contents(view: View) -> tuple[dict[Path, bytes], dict[Path, Path]]:
    """Return the modules to copy, so that a worker runs what was there at its start, and the ones to mount."""
    copies, mounts = {}, {}
    for file in view.modules.values():
        if file.suffix == ".py" or file.stat().st_size <= COPIED_BYTES:
            copies[file] = file.read_bytes()
        else:
            mounts[file] = Path(os.path.realpath(file))
    return copies, mounts


def _show(target: Path, real: Path) -> None:  # pragma: no cover - runs in a worker
    """Mount a file or folder of the old root at *target*, unless it is visible through a folder already."""
    source = Path(f"{_OLD_ROOT}{real}")
    if target.is_symlink():
        return
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
    elif not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    _mount(str(source), str(target), None, MS_BIND | MS_RECURSIVE)
    _make_read_only(str(target))


def _make_read_only(target: str) -> None:  # pragma: no cover - runs in a worker
    attributes = (ctypes.c_uint64 * 4)(MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID, 0, 0, 0)
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    _checked(_libc().syscall(MOUNT_SETATTR, AT_FDCWD, target.encode(), AT_RECURSIVE, attributes, size))


def _drop_capabilities() -> None:  # pragma: no cover - runs in a worker
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3 of the interface, this thread
    _checked(_libc().capset(header, (ctypes.c_uint32 * 6)()))


def _mount(source: str, target: str, kind: str | None, flags: int) -> None:  # pragma: no cover - runs in a worker
    try:
        _checked(_libc().mount(source.encode(), target.encode(), kind.encode() if kind else None, flags, None))
    except OSError as refused:
        raise OSError(refused.errno, f"mount of {target}: {refused.strerror}") from None


# Landlock and seccomp


def _enter_landlock(paths: Iterable[Path], listed: Iterable[Path]) -> None:  # pragma: no cover - runs in a worker
    """Allow reading *paths*, and the names of the files in the folders *listed*."""
    from py_landlock import AccessFs, Landlock

    rules = Landlock(strict=False).allow_read(*(path for path in paths if path.is_dir()))
    rules.add_path_rule(*(path for path in paths if not path.is_dir()), access=AccessFs.READ_FILE)
    rules.add_path_rule(*(path for path in listed if path.is_dir()), access=AccessFs.READ_DIR)
    rules.apply()


# Reading, memory, time, threads, and what asyncio needs for its loop. Everything else is "not permitted".
_ALLOWED = """
    read readv pread64 preadv preadv2 write writev pwrite64 close close_range lseek dup dup2 dup3 pipe pipe2
    stat lstat fstat newfstatat statx access faccessat faccessat2 readlink readlinkat getdents64 statfs fstatfs
    getcwd chdir fchdir umask fadvise64
    mmap munmap mprotect mremap madvise mincore brk membarrier
    futex futex_waitv set_robust_list get_robust_list rseq set_tid_address exit exit_group restart_syscall arch_prctl
    rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait rt_sigsuspend sigaltstack pause
    alarm setitimer getitimer nanosleep clock_nanosleep clock_gettime clock_getres gettimeofday time times
    timerfd_create timerfd_settime timerfd_gettime
    getpid getppid gettid getuid geteuid getgid getegid getresuid getresgid getgroups getpgrp getpgid getsid
    capget getrusage getrlimit getpriority uname sysinfo getcpu getrandom wait4 waitid
    sched_yield sched_getaffinity sched_getscheduler sched_getparam sched_get_priority_max sched_get_priority_min
    select pselect6 poll ppoll epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 eventfd eventfd2
    recvfrom recvmsg shutdown getsockname getpeername getsockopt setsockopt
""".split()  # noqa: SIM905  read as a table
FCNTL = (0, 1, 2, 3, 4, 1030, 1032)  # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC, F_GETPIPE_SZ
IOCTL = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
_F_SETFL, _O_ASYNC, _AF_UNIX, _SOCK_STREAM, _SOCK_TYPES = 4, 0x2000, 1, 1, 0xF


def call_filter(own_pid: int) -> Any:
    """Return the system-call filter, a `pyseccomp.SyscallFilter` that refuses what is not listed.

    Raises:
        RuntimeError, OSError: libseccomp is not installed, or does not know this processor.
    """
    import pyseccomp
    from pyseccomp import ALLOW, EQ, ERRNO, MASKED_EQ, Arg, Attr

    calls = pyseccomp.SyscallFilter(ERRNO(errno.EPERM))
    calls.set_attr(Attr.ACT_BADARCH, ERRNO(errno.EPERM))
    known = {name: pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name) for name in _ALLOWED}
    for number in (number for number in known.values() if number >= 0):
        calls.add_rule(ALLOW, number)
    for name, flags in (("open", 1), ("openat", 2)):
        if pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name) >= 0:
            calls.add_rule(ALLOW, name, Arg(flags, MASKED_EQ, WRITES, 0))
    for name in ("openat2", "clone3"):  # their arguments lie behind a pointer: libc then uses the older call
        calls.add_rule(ERRNO(errno.ENOSYS), name)
    calls.add_rule(ALLOW, "clone", Arg(0, MASKED_EQ, CLONE_THREAD | NEW_ANY, CLONE_THREAD))
    for name in ("kill", "tgkill"):
        calls.add_rule(ALLOW, name, Arg(0, EQ, own_pid))
    calls.add_rule(ALLOW, "prlimit64", Arg(0, EQ, 0), Arg(2, EQ, 0))  # reading its own limits
    for option in (PR_SET_NAME, PR_GET_NAME, PR_SET_VMA):
        calls.add_rule(ALLOW, "prctl", Arg(0, EQ, option))
    for command in FCNTL:
        no_signals = [Arg(2, MASKED_EQ, _O_ASYNC, 0)] if command == _F_SETFL else []
        calls.add_rule(ALLOW, "fcntl", Arg(1, EQ, command), *no_signals)
    for request in IOCTL:
        calls.add_rule(ALLOW, "ioctl", Arg(1, MASKED_EQ, 0xFFFFFFFF, request))
    calls.add_rule(ALLOW, "socketpair", Arg(0, EQ, _AF_UNIX), Arg(1, MASKED_EQ, _SOCK_TYPES, _SOCK_STREAM))
    calls.add_rule(ALLOW, "sendto", Arg(4, EQ, 0))  # no address: only over a connected pair
    return calls


def compiled_filter(own_pid: int) -> bytes:
    """Return `call_filter` as the kernel takes it."""
    with os.fdopen(os.memfd_create("filter"), "w+b") as exported:
        call_filter(own_pid).export_bpf(exported)
        exported.seek(0)
        return exported.read()


class _Program(ctypes.Structure):
    """`struct sock_fprog`: the number of 8-byte instructions and where they are."""

    _fields_ = [("length", ctypes.c_uint16), ("instructions", ctypes.c_char_p)]

    @classmethod
    def of(cls, compiled: bytes) -> "_Program":
        return cls(len(compiled) // 8, compiled)


# The whole


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the workers of one fork server share.

    Attributes:
        found: the level, and the layers that are missing. All others are used, whatever the level.
        search_path: of the fork server.
        libraries: files and folders that all versions with this search path may read.
        program: compiled system-call filter, or None where each worker needs its own, with its process id.
    """

    found: Available
    search_path: frozenset[str]
    libraries: Sequence[Path]
    program: bytes | None


def prepare(found: Available) -> Prepared:
    """Import and compute what is out of reach, or slow, once a worker has its own file system."""
    if "landlock" not in found.missing:
        from py_landlock import Landlock

        assert Landlock().abi_version  # finds the C library at its first use
    first_process = 1  # as which each worker sees itself
    alone = not {"namespaces", "seccomp"} & found.missing.keys()
    return Prepared(found, frozenset(sys.path), libraries(sys.path), compiled_filter(first_process) if alone else None)


def end_with_parent() -> None:
    """Make the kernel kill this process when its parent ends."""
    if sys.platform == "linux":
        _libc().prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def confine(
    prepared: Prepared, view: View, search_path: Sequence[str], memory_bytes: int
) -> None:  # pragma: no cover - a worker may write no coverage file
    """Confine the calling process for good.

    Args:
        prepared: the layers to use. If one fails, so does this.
        view: what it may read.
        search_path: of this process, whose installed libraries it may read too.
        memory_bytes: address space of this process, including code and libraries. A quarter of it may be private
            memory. If the machine runs out of memory, the kernel kills this process first.

    Raises:
        OSError, RuntimeError: a layer failed.
    """
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    missing = prepared.found.missing
    shared = prepared.libraries if {*search_path} <= prepared.search_path else libraries(search_path)
    program = prepared.program or (b"" if "seccomp" in missing else compiled_filter(os.getpid()))
    if "namespaces" not in missing:
        _enter_namespaces(view, shared)
        readable, listed = [Path("/")], set[Path]()
    else:
        own = [*view.modules.values(), *view.files]
        readable, listed = [*shared, *own], {file.parent for file in own} | view.top_folders()
    if "landlock" not in missing:
        _enter_landlock(readable, listed)
    os.chdir(view.folder)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes // 4, memory_bytes // 4))
        _checked(_libc().prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    if program:
        _checked(_libc().prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(_Program.of(program)), 0, 0))


def strongest(wanted: Level | None = None, *, other_user: bool = False) -> Available:
    """Return the strongest level that works for the calling process, which must be small and have one thread.

    Each layer is tried in a child process. With *wanted*, the layers of a stronger level are left out. *other_user*
    says that the product runs under another user.
    """
    missing: dict[str, str] = {}
    if sys.platform != "linux":
        return Available(Level.NONE, dict.fromkeys(_TRIALS, f"not on {sys.platform}"))
    for layer, attempt in _TRIALS.items():
        if why := _tried(attempt):
            missing[layer] = why
    left_out = {None: (), Level.NAMESPACES: (), Level.LANDLOCK: ("namespaces",)}.get(wanted, ("namespaces", "landlock"))
    missing |= dict.fromkeys(left_out, f"ROLLOUT_ISOLATION is {wanted}")
    usable = [Level(layer) for layer in ("namespaces", "landlock") if not {layer, "seccomp"} & missing.keys()]
    if other_user and "seccomp" not in missing:
        usable.append(Level.SIDECAR)
    return Available(usable[0] if usable else Level.NONE, missing)


def _try_namespaces() -> None:  # pragma: no cover - runs in a child process
    enter_server_namespaces()
    pid = os.fork()
    if pid == 0:
        os._exit(_as_exit_code(lambda: _enter_namespaces(View(), libraries(sys.path))))
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise OSError(code, os.strerror(code))


def _try_landlock() -> None:  # pragma: no cover - runs in a child process
    _enter_landlock([Path("/usr")], [])


def _try_seccomp() -> None:  # pragma: no cover - runs in a child process
    _checked(_libc().prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    call_filter(os.getpid()).load()


_TRIALS: Mapping[str, Callable[[], None]] = {
    "namespaces": _try_namespaces,
    "landlock": _try_landlock,
    "seccomp": _try_seccomp,
}


def _as_exit_code(attempt: Callable[[], None]) -> int:  # pragma: no cover - runs in a child process
    try:
        attempt()
    except OSError as refused:
        return refused.errno or errno.EPERM
    return 0


def _reason(failed: BaseException) -> str:
    return str(failed) or type(failed).__name__


def _tried(attempt: Callable[[], None]) -> str:
    """Run *attempt* in a child process and return why it failed, or an empty text."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:  # pragma: no cover - runs in a child process
        try:
            attempt()
        except BaseException as failed:  # noqa: BLE001  a child must not go on as its parent
            os.write(writer, _reason(failed).encode()[:500])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as told:
        why = told.read().decode(errors="replace")
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return why or ("" if code == 0 else f"the trial ended with {code}")


@cache
def available() -> Available:
    """Return what workers started here are confined by. Takes about 0.2 s, once per process."""
    if sidecar := os.environ.get("ROLLOUT_ISOLATION_SOCKET"):
        return _of_sidecar(sidecar)
    command = [sys.executable, "-P", "-m", "strategy_core.isolation.sandbox"]
    try:
        done = subprocess.run(  # noqa: S603  our own interpreter and module
            command, capture_output=True, text=True, timeout=TRIAL_S, check=True, env=_small_environment()
        )
    except (OSError, subprocess.SubprocessError) as failed:
        return Available(Level.NONE, dict.fromkeys(_TRIALS, f"the trial failed: {_reason(failed)}"))
    return read_available(done.stdout)


def _of_sidecar(path: str) -> Available:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asking:
        asking.settimeout(TRIAL_S)
        try:
            asking.connect(path)
            return read_available(asking.recv(MESSAGE_BYTES).decode())
        except (OSError, ValueError) as failed:
            return Available(
                Level.NONE, dict.fromkeys(_TRIALS, f"the sidecar at {path} does not answer: {_reason(failed)}")
            )


def read_available(text: str) -> Available:
    """Return what `as_json` wrote."""
    read = json.loads(text)
    return Available(Level(read["level"]), read["missing"])


def as_json(found: Available) -> str:
    return json.dumps({"level": found.level, "missing": dict(found.missing)})


def _small_environment() -> dict[str, str]:
    chosen = {name: os.environ[name] for name in os.environ if name == "ROLLOUT_ISOLATION"}
    return chosen | {"PATH": os.environ.get("PATH", os.defpath), "PYTHONPATH": os.pathsep.join(sys.path)}


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


if __name__ == "__main__":  # pragma: no cover - see `available`
    sys.stdout.write(
        as_json(strongest(Level(os.environ["ROLLOUT_ISOLATION"]) if os.environ.get("ROLLOUT_ISOLATION") else None))
    )
