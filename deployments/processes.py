"""Child processes of `rollout up`: start, watch and stop them, and choose their ports."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from strategy_core.domain.errors import InvalidSetting

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


SHORT_S = 60.0  # of a life: whatever dies sooner has not recovered
DEATHS = 3  # so many short lives in a row, and nobody tries again


class ChildDied(Exception):
    """A process that should run does not; the text says which, and what it said last."""


@dataclass
class _Kept:
    child: Child
    restart: Callable[[], Child]
    may_start: Callable[[], bool]
    since: float
    deaths: int = 0
    due: float | None = None  # dead, and to be started then


class Supervisor:
    """Processes that are looked after by calling `look` again and again, from the thread that has started them.

    Args:
        say: is told in a line of each that died, and of each that runs again.
        clock: seconds that never go back.
    """

    def __init__(self, say: Callable[[str], None], *, clock: Callable[[], float] = monotonic) -> None:
        self._say = say
        self._clock = clock
        self._kept: list[_Kept] = []

    @property
    def children(self) -> list[Child]:
        return [each.child for each in self._kept]

    def start(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        log: Path,
        may_start: Callable[[], bool] = lambda: True,
    ) -> Child:
        """Start a process and keep it running; *may_start* is asked before it is started again."""

        def run(*, again: bool = True) -> Child:
            return Child(name, command, environment=environment, log=log, again=again)

        child = run(again=False)
        self._kept.append(_Kept(child, run, may_start, self._clock()))
        return child

    def check(self) -> None:
        """Raise ChildDied if one is dead: for as long as none has ever been well."""
        for child in self.children:
            if child.exit_code is not None:
                raise ChildDied(last_words(child, f"ended with exit code {child.exit_code}"))

    def look(self) -> None:
        """Start again what has died, once its time has come; raise ChildDied for what dies again and again."""
        for each in self._kept:
            if each.due is None and each.child.exit_code is not None:
                self._bury(each)
            if each.due is not None and self._clock() >= each.due and each.may_start():
                each.child, each.since, each.due = each.restart(), self._clock(), None
                self._say(f"{each.child.name} runs again (pid {each.child.pid})")

    def stop(self) -> None:
        """Stop all of them, the last one first."""
        for child in reversed(self.children):
            child.stop()

    def _bury(self, kept: _Kept) -> None:
        child, now = kept.child, self._clock()
        ended = f"ended with exit code {child.exit_code}"
        child.stop()  # what it has started goes with it: the next one starts its own
        kept.deaths = kept.deaths + 1 if now - kept.since < SHORT_S else 1
        if kept.deaths >= DEATHS:
            raise ChildDied(last_words(child, ended))
        wait = 2.0 ** (kept.deaths - 1)
        kept.due = now + wait
        self._say(f"{child.name} {ended}; it is started again in {wait:g} s, its log is {child.log}")


def last_words(child: Child, what: str) -> str:
    return f"{child.name} {what}; the end of {child.log}:\n{child.tail()}"


HOST = "127.0.0.1"  # nobody else's business: the server has no password


def keep_port(stack: ExitStack, wanted: int = 0) -> int:
    """Return *wanted* if it is free, else any that is; no other call returns it until *stack* is closed.

    Seconds pass before a process listens on its port. Until then the same number among UDP ports says who has it: that
    is given back however whoever keeps it ends, and never lingers as a port that was listened on does.
    """
    for port in (wanted, *[0] * 8):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server will: one that has just ended
            kept = socket.socket(type=socket.SOCK_DGRAM)
            try:
                probe.bind((HOST, port))
                found: int = probe.getsockname()[1]
                kept.bind((HOST, found))
            except OSError:
                kept.close()
                continue
            stack.callback(kept.close)
            return found
    raise InvalidSetting("port", wanted, "one that is free; none is")
