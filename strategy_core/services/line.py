"""What versions have still to be asked, handed out so that no worker idles; never what they answer."""

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

LEAST = 4  # items at once: what is handed out last must not keep one worker busy while the others have ended

Key = TypeVar("Key")
Item = TypeVar("Item")


class Line(Generic[Key, Item]):
    """Items that wait, each under its key. Safe to use from several threads.

    Args:
        takers: how many take from it.
    """

    def __init__(self, takers: int) -> None:
        self._takers = takers
        self._waiting: dict[Key, deque[Item]] = {}
        self._closed = False
        self._changed = threading.Condition()

    def put(self, items: Mapping[Key, Sequence[Item]]) -> None:
        with self._changed:
            for key, more in items.items():
                self._waiting.setdefault(key, deque()).extend(more)
            self._changed.notify_all()

    def close(self, *, drop: bool = False) -> None:
        """Say that nothing more comes; with *drop* that nothing more is handed out either."""
        with self._changed:
            self._closed = True
            if drop:
                self._waiting.clear()
            self._changed.notify_all()

    def take(self, mine: Key | None) -> tuple[Key, list[Item]] | None:
        """Return items of one key: of *mine* while some may come, else of which most wait; None when all are taken.

        Many while many wait, ever fewer towards the end: so that who takes them end together.
        """
        with self._changed:
            while True:
                key = self._next(mine)
                if key is not None:
                    waiting = self._waiting[key]
                    count = min(len(waiting), max(LEAST, len(waiting) // (2 * self._takers)))
                    return key, [waiting.popleft() for _ in range(count)]
                if self._closed:
                    return None
                self._changed.wait()

    def _next(self, mine: Key | None) -> Key | None:
        if mine is not None and (self._waiting.get(mine) or not self._closed):
            return mine if self._waiting.get(mine) else None
        most = max(self._waiting, key=lambda key: len(self._waiting[key]), default=None)
        return most if most is not None and self._waiting[most] else None
