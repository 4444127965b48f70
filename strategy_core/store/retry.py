"""How work is tried again when the database has undone it for no fault of its own; never what the work is.

A use case is one transaction, and is run again from its start: it reads anew what it rests on. Never once its commit
may have been kept: `transaction` finds that out first, and says so when it cannot.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from itertools import count
from typing import ParamSpec, TypeVar

from sqlalchemy.exc import DBAPIError

from strategy_core.store.engine import will_pass

P = ParamSpec("P")
R = TypeVar("R")

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.02, 1.0


@dataclass(frozen=True, slots=True)
class Persistence:
    """How long work is tried: so often and so long at least, whichever comes last.

    Attributes:
        tries: of which each may have waited for a lock of SQLite as long as it waits.
        seconds: since the first try began.
    """

    tries: int
    seconds: float


USUAL = Persistence(tries=1, seconds=3.0)
OF_A_ROLLBACK = Persistence(
    tries=3, seconds=10.0
)  # users lose money meanwhile; what else there is comes again by itself


def tried_again(persistence: Persistence = USUAL) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Run a use case again after a deadlock, a lost connection or a busy database, with growing random waits."""

    def decorate(work: Callable[P, R]) -> Callable[P, R]:
        @wraps(work)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            until = time.monotonic() + persistence.seconds
            for tries in count(1):
                try:
                    return work(*args, **kwargs)
                except DBAPIError as error:
                    if not will_pass(error) or (tries >= persistence.tries and time.monotonic() >= until):
                        raise
                wait = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2 ** min(tries, 10))
                time.sleep(wait * random.uniform(0.5, 1.0))  # noqa: S311  so that two that met do not meet again
            raise AssertionError

        return run

    return decorate
