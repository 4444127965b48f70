"""Other processes that hold a lock of a SQLite database."""

import fcntl
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from sqlalchemy import Engine

from strategy_core.isolation.forkserver import environment

Kind = Literal["POSIX", "OFD"]
WAL_LOCKS = (120, 8)  # first byte and length: the writer's lock, and those of checkpoints and readers
_HOLD = """
import fcntl, os, struct, sys
file, kind, first, length, *then = sys.argv[1:]
held = os.open(file, os.O_RDWR if kind == "WRITE" else os.O_RDONLY)
os.set_inheritable(held, True)
what = fcntl.F_WRLCK if kind == "WRITE" else fcntl.F_RDLCK
fcntl.fcntl(held, fcntl.F_SETLK, struct.pack("hhqqi4x", what, os.SEEK_SET, int(first), int(length), 0))
print("held", flush=True)
if then:
    os.execv(sys.executable, [sys.executable, *then])
sys.stdin.read()
"""


def shm_of(engine: Engine) -> Path:
    """Return the file with the locks of the write-ahead log. *engine* keeps it in being with an open connection."""
    with engine.connect() as connection:
        connection.exec_driver_sql("SELECT 1")
    return Path(f"{engine.url.database}-shm")


@contextmanager
def stranger(file: Path, kind: str = "READ", locks: tuple[int, int] = WAL_LOCKS) -> Iterator[int]:
    """Run a process that is no worker and holds a lock, and yield its id."""
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(file), kind, *map(str, locks)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"held\n"
            yield process.pid
        finally:
            process.kill()


@contextmanager
def worker(file: Path, kind: Kind) -> Iterator["subprocess.Popen[bytes]"]:
    """Run the real worker module in a process that holds a lock, as if a version had taken it, and yield it.

    A POSIX lock belongs to the process and outlives exec. An OFD lock belongs to the open file, which is handed over.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    module = ["-P", "-m", "strategy_core.isolation.forkserver", str(theirs.fileno()), ""]
    locks = map(str, WAL_LOCKS)
    command = [sys.executable, "-c", _HOLD, str(file), "READ", *locks, *module]
    handed = [theirs.fileno()]
    if kind == "OFD":
        held = os.open(file, os.O_RDONLY)
        lock = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, *WAL_LOCKS, 0)
        fcntl.fcntl(held, fcntl.F_OFD_SETLK, lock)
        command, handed = [sys.executable, *module], [*handed, held]
    with ours, subprocess.Popen(command, stdout=subprocess.PIPE, pass_fds=handed, env=environment()) as process:
        theirs.close()
        try:
            if kind == "OFD":
                os.close(held)
            else:
                assert process.stdout is not None
                assert process.stdout.readline() == b"held\n"
            while (
                b"strategy_core.isolation.forkserver"
                not in Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")[3:4]
            ):
                time.sleep(0.01)
            yield process
        finally:
            process.kill()
