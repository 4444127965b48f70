"""How many workers one version may cost one run; never which of its decisions are asked, nor what they are worth."""

import threading

from strategy_core.isolation.wire import Answer

FAILURES_IN_A_ROW = 3  # of the worker, in one run: a hanging version does not stall a catch-up of a thousand candles
FAILURES_IN_ALL = 10


class Patience:
    """What all workers of one version have cost so far. Safe to use from several threads.

    Attributes:
        lost: the answer to whatever is still to be asked, once too many workers have failed.
    """

    def __init__(self) -> None:
        self.lost: Answer | None = None
        self._in_a_row = 0
        self._in_all = 0
        self._lock = threading.Lock()

    def answered(self) -> None:
        with self._lock:
            self._in_a_row = 0

    def failed(self, failure: Answer) -> None:
        """Count a worker that had to be ended; *failure* says why."""
        with self._lock:
            self._in_a_row += 1
            self._in_all += 1
            if self.lost is None and (self._in_a_row >= FAILURES_IN_A_ROW or self._in_all >= FAILURES_IN_ALL):
                error = f"not asked: {self._in_all} workers failed in this run, the last one so: {failure.error}"
                self.lost = Answer(None, error, failure.kind)
