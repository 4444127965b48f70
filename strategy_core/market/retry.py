"""Ask a server again for what it may give later: it was busy, or the line was lost; never for what it has refused."""

from collections.abc import Callable
from itertools import count
from time import sleep
from typing import TypeVar

from strategy_core.domain.errors import FeedUnavailable

T = TypeVar("T")

TRIES = 3
LONGEST_WAIT_S = 15.0  # runs come once a minute: one that waits longer only keeps the next one waiting


class Passing(Exception):
    """There is no answer now, and the text says why; *after_s* is how long the server asks to be left alone."""

    def __init__(self, why: str, after_s: float = 0.0) -> None:
        super().__init__(why)
        self.after_s = after_s


def ask_again(ask: Callable[[], T], *, feed: str, wait_s: float) -> T:
    """Return what *ask* does, which is tried again while it raises Passing.

    Args:
        feed: what the error is to name.
        wait_s: before the second try; twice that before the third.

    Raises:
        FeedUnavailable: the last try failed too, or the server asks for a longer wait than LONGEST_WAIT_S.
    """
    for tried in count(1):
        try:
            return ask()
        except Passing as passing:
            wait = max(passing.after_s, wait_s * 2 ** (tried - 1))
            if tried == TRIES:
                raise FeedUnavailable(f"{feed}: {passing} (asked {tried} times)") from None
            if wait > LONGEST_WAIT_S:
                raise FeedUnavailable(f"{feed}: {passing} (it asks to wait {wait:g} s)") from None
        sleep(wait)
    raise AssertionError("count() ends never")
