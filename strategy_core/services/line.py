"""What versions have still to be asked, handed out so that no worker idles; never what they answer."""

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

MANY = 16  # items of one key that wait are worth another worker while more is to come
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
        self._count = 0
        self._closed = False
        self._changed = threading.Condition()

    def put(self, items: Mapping[Key, Sequence[Item]]) -> None:
        with self._changed:
            for key, more in items.items():
                self._waiting.setdefault(key, deque()).extend(more)
                self._count += len(more)
            self._changed.notify_all()

    def close(self, *, drop: bool = False) -> None:
        """Say that nothing more comes; with *drop* that nothing more is handed out either."""
        with self._changed:
            self._closed = True
            if drop:
                self._waiting.clear()
                self._count = 0
            self._changed.notify_all()

    def take(self, mine: Key | None) -> tuple[Key, list[Item]] | None:
        """Return items of one key: of *mine*, else of which most wait; None when all are taken.

        While more may come it waits for some of *mine*, unless many of another key wait.
        Many while many wait under any key, ever fewer towards the end: so that who takes them end together.
        """
        with self._changed:
            while True:
                key = self._next(mine)
                if key is not None:
                    waiting = self._waiting[key]
                    share = min(self._count // 2, len(waiting)) // self._takers  # the rest of a slow one is for others
                    count = min(len(waiting), max(LEAST, share))
                    self._count -= count
                    return key, [waiting.popleft() for _ in range(count)]
                if self._closed:
                    return None
                self._changed.wait()

    def _next(self, mine: Key | None) -> Key | None:
        if mine is not None and self._waiting.get(mine):
            return mine
        most = max(self._waiting, key=lambda key: len(self._waiting[key]), default=None)
        count = 0 if most is None else len(self._waiting[most])
        few = 0 if mine is None or self._closed else MANY  # more of its own may come
        return most if count > few else None
