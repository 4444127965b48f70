"""What a router knows, in memory, and how long ago that was confirmed; it reads nothing itself."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import structlog

from strategy_core.domain.routing import Routing
from strategy_core.router.source import Found

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Served(Routing):
    """One strategy's routing; *admitted* are the users whom this router has sent to this canary."""

    admitted: set[str] = field(default_factory=set, compare=False)


class Table:
    """All strategies' routing: replaced whole by one thread, read by any number without a lock.

    Args:
        max_age_s: how old its last confirmation may be; older, it is stale, and a canary admits nobody new.
        clock: seconds, monotonic.
    """

    __slots__ = ("_told", "clock", "confirmed_at", "max_age_s", "served")

    def __init__(self, max_age_s: float, clock: Callable[[], float]) -> None:
        self.max_age_s = max_age_s
        self.clock = clock
        self.served: Mapping[str, Served | None] = {}
        self.confirmed_at = clock()
        self._told = False

    @property
    def age(self) -> float:
        return self.clock() - self.confirmed_at

    @property
    def stale(self) -> bool:
        return self.clock() - self.confirmed_at > self.max_age_s

    def take(self, found: Found | None, began: float) -> None:
        """Obey *found*, or what is known already when that is None; *began* is when the reading of it did.

        A generation below the known one is obeyed as well: a backup was restored, or a replica took over, and the
        database is the truth for everybody else. It is told, since a change, a rollback perhaps, may have been lost.
        """
        if found is not None:
            self.served = {name: self._served(name, routing) for name, routing in found.items()}
        self.confirmed_at = began
        if self._told:
            self._told = False
            log.info("router.refreshed")

    def missed(self, source: str, cause: str) -> None:
        """Tell, once, that this has become stale."""
        if self.stale and not self._told:
            self._told = True
            log.warning("router.stale", source=source, cause=cause, age_s=round(self.age, 1))

    def _served(self, name: str, routing: Routing | None) -> Served | None:
        if routing is None:
            return None
        known = self.served.get(name)
        admitted: set[str] = set()
        if known is not None:
            if routing.generation < known.generation:
                log.warning("router.went_back", strategy=name, known=known.generation, found=routing.generation)
            if routing.canary is not None and (routing.canary, routing.salt) == (known.canary, known.salt):
                admitted = known.admitted
        return Served(
            routing.active, routing.canary, routing.percent_bp, routing.salt, routing.generation, admitted=admitted
        )
