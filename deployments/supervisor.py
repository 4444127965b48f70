"""Keep processes running: one that dies is started again, each time later; one that cannot live ends all of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from deployments.children import Child

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
