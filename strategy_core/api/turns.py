"""Who waits for a strategy's lock, and who waits without a connection until it is his turn; never who goes first.

A change waits in the database until the one before it is through. Where that one is stuck, so are all that follow, and
each would hold a connection: soon there would be none left to roll back another strategy by.
"""

from collections import Counter
from threading import Condition

from starlette.exceptions import HTTPException

AT_ONCE = 3  # of one strategy, each holding a connection
PATIENCE_S = 30.0


class Turns:
    """Lets *at_once* requests of a name go on, and keeps the others waiting, for *patience_s* at most."""

    def __init__(self, at_once: int = AT_ONCE, patience_s: float = PATIENCE_S) -> None:
        self._at_once = at_once
        self._patience_s = patience_s
        self._taken: Counter[str] = Counter()
        self._given_back = Condition()

    def take(self, name: str) -> None:
        """Return when it is this request's turn; else raise HTTPException 503."""
        with self._given_back:
            if not self._given_back.wait_for(lambda: self._taken[name] < self._at_once, self._patience_s):
                raise HTTPException(503, f"others wait for {name!r} already; see who holds it, or ask again")
            self._taken[name] += 1

    def give_back(self, name: str) -> None:
        with self._given_back:
            self._taken[name] -= 1
            if not self._taken[name]:
                del self._taken[name]  # names come from outside: those that nobody waits for are forgotten
            self._given_back.notify_all()
