"""A process of ours with a log: started, looked after, stopped with all that it started; never waited for in vain."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

PATIENCE_S = 15.0
_TAIL_LINES = 15
_TETHER = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if os.getppid() != int(sys.argv[1]):
        sys.exit("whoever started this is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


class Child:
    """A running process that leads a process group: Ctrl-C on the terminal does not reach it, `stop` does.

    On Linux it is asked to end when the thread that has started it does, however that ends.

    Args:
        again: its log goes on where an earlier one's ended.

    Attributes:
        name: what an owner calls it.
        log: the file that takes both its outputs.
    """

    def __init__(
        self, name: str, command: Sequence[str], *, environment: Mapping[str, str], log: Path, again: bool = False
    ) -> None:
        self.name = name
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a" if again else "w") as output:
            self._popen = subprocess.Popen(  # noqa: S603  our own interpreter and modules
                [sys.executable, "-IS", "-c", _TETHER, str(os.getpid()), *command],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """Return how it ended; None while it runs."""
        return self._popen.poll()

    def tail(self) -> str:
        """Return the last lines of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-_TAIL_LINES:])

    def stop(self) -> None:
        """Ask it to end, and after `PATIENCE_S` end it; whatever is left of its group goes with it."""
        if self.exit_code is None:
            self._popen.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(PATIENCE_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._popen.wait()
