"""A version whose decisions try to break out of the sandbox. Run it in a worker only.

A try that succeeded would do no harm: it uses names that do not exist, or operations without an effect.
"""

import ctypes
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd
from pydantic import BaseModel

from strategy_core.domain.strategy import Action, Context, Decision

NOWHERE = Path(tempfile.gettempdir()) / f"rollout-probe-{os.getppid()}"


def _libc(name: str, *arguments: object) -> None:  # pragma: no cover - a worker may write no coverage file
    """Call the C library, which bypasses Python's audit hook. Raise PermissionError when the kernel refuses."""
    if getattr(_LIBC, name)(*arguments) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


TRIES: Mapping[str, Callable[[], object]] = {
    "open a socket": lambda: socket.socket(socket.AF_INET),
    "connect to a server": lambda: socket.create_connection(("127.0.0.1", 9), timeout=1.0),
    "look up a host": lambda: socket.getaddrinfo("localhost", 80),
    "connect to a local service": lambda: socket.socket(socket.AF_UNIX).connect(str(NOWHERE)),
    "open a database": lambda: sqlite3.connect(NOWHERE),
    "run a program": lambda: subprocess.run(["true"], check=False),  # noqa: S607
    "run a shell": lambda: os.system("true"),  # noqa: S605, S607
    "fork": os.fork,
    "become another program": lambda: os.execv("/bin/true", ["true"]),  # noqa: S606
    "write a file": lambda: NOWHERE.write_text(""),
    "append to a file": lambda: os.open(NOWHERE, os.O_WRONLY | os.O_APPEND),
    "make a temporary file": tempfile.mkstemp,
    "make a folder": NOWHERE.mkdir,
    "remove a file": NOWHERE.unlink,
    "rename a file": lambda: NOWHERE.rename(f"{NOWHERE}-2"),
    "copy a file": lambda: shutil.copy(__file__, NOWHERE),
    "change a file's mode": lambda: NOWHERE.chmod(0o600),
    "make a link": lambda: NOWHERE.symlink_to(__file__),
    "signal another process": lambda: os.kill(os.getppid(), 0),
    "read the parent's environment": lambda: Path(f"/proc/{os.getppid()}/environ").read_bytes(),
    "load native code": lambda: ctypes.CDLL(None),
    "write a file by native code": lambda: _libc("creat", bytes(NOWHERE), 0o600),
    "open a socket by native code": lambda: _libc("socket", socket.AF_INET, socket.SOCK_STREAM, 0),
    "fork by native code": lambda: _libc("fork"),
    "signal a process by native code": lambda: _libc("kill", os.getppid(), 0),
}
_LIBC = ctypes.CDLL("libc.so.6" if sys.platform == "linux" else "libSystem.dylib", use_errno=True)
_OWN = {"PATH", "LANG", "LC_CTYPE", "TZ", "PYTHONHASHSEED", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE"}


class ProbeParams(BaseModel):
    pass


class Probe:
    """Runs the try named by the symbol. Returns hold with a reason if it was not stopped, else raises the error."""

    Params = ProbeParams
    warmup_bars = 1

    def decide(
        self, candles: pd.DataFrame, params: ProbeParams, context: Context
    ) -> Decision:  # pragma: no cover - a worker may write no coverage file
        if context.symbol == "find a secret":
            found = [name for name in os.environ if name not in _OWN and not name.endswith("_NUM_THREADS")]
            return Decision(Action.HOLD, reason=f"found {', '.join(found)}" if found else "refused: there is no secret")
        TRIES[context.symbol]()
        return Decision(Action.HOLD, reason="it was not stopped")
