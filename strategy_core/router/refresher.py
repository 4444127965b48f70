"""The thread that keeps a table current from its source; it outlives neither its router nor its process."""

import random
from threading import Event, Thread

from strategy_core.domain.errors import RoutingUnavailable
from strategy_core.router.source import Source
from strategy_core.router.table import Table

_FIRST_S, _LONGEST_S = 0.05, 1.0  # between two tries; a rollback waits for the next one
_JOIN_S = 10.0  # longer than any source takes for one step


class Refresher:
    """Reads the source, waits until it may have changed, reads again; after a failure it tries anew, ever slower.

    It knows the table and the source, never the router: a router that nobody refers to any more can end it.
    """

    def __init__(self, source: Source, table: Table) -> None:
        self.source = source
        self.stop = Event()
        self._table = table
        self._thread = Thread(target=self._run, name="router", daemon=True)

    def load(self) -> None:
        """Read once, in the calling thread; else raise RoutingUnavailable."""
        try:
            self._read()
        except RoutingUnavailable:
            self.source.close()
            raise

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Stop, and return when the source is closed."""
        self.stop.set()
        self._thread.join(_JOIN_S)

    def _read(self) -> None:
        began = self._table.clock()  # before: what changes while it is read is not confirmed by it
        self._table.take(self.source.read(), began)

    def _run(self) -> None:
        pause = _FIRST_S
        try:
            while not self.stop.is_set():
                try:
                    self._read()
                    pause = _FIRST_S
                    self.source.wait(self.stop)
                except Exception as error:  # noqa: BLE001  whatever it was: a thread that ended would miss every rollback
                    cause = error.cause if isinstance(error, RoutingUnavailable) else type(error).__name__
                    self._table.missed(self.source.address, cause)
                    self.source.close()
                    self.stop.wait(pause * random.uniform(0.5, 1.0))  # noqa: S311  so that routers don't storm together
                    pause = min(2 * pause, _LONGEST_S)
        finally:
            self.source.close()
