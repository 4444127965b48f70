"""Toggles in the platform's own process: answers from memory, refreshed apart from routing.

They have a connection and a thread of their own. A large read of segments, or a failed one, delays no rollback.
"""

import time
from collections.abc import Callable

import structlog

from strategy_core.domain.errors import UnknownToggle
from strategy_core.domain.toggles import AllToggles, Resolved, Resolver, Value

_NOTHING = AllToggles({}, {}, {}, {})
_NO_SEGMENTS: frozenset[str] = frozenset()

log = structlog.get_logger(__name__)


class ToggleValues(dict[str, Value]):
    """The values of one user's toggles by name.

    Attributes:
        version: the version that the user gets, whose toggles these are.

    Raises:
        UnknownToggle: for a name that the version does not declare.
    """

    __slots__ = ("strategy_name", "version")

    strategy_name: str
    version: str

    def __missing__(self, name: str) -> Value:
        raise UnknownToggle(self.strategy_name, name, self)


class ToggleTable:
    """The toggles of all strategies. One thread replaces them as a whole, so that readers need no lock.

    Args:
        max_age_s: after this many seconds without confirmation, the values are stale. They are given all the same.
        clock: monotonic, in seconds.
    """

    __slots__ = ("_compiled", "_warned", "clock", "confirmed_at", "max_age_s")

    def __init__(self, max_age_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_age_s = max_age_s
        self.clock = clock
        self.confirmed_at = clock()
        self._compiled = _Compiled(_NOTHING)
        self._warned = False

    @property
    def stale(self) -> bool:
        return self.clock() - self.confirmed_at > self.max_age_s

    def update(self, found: AllToggles | None, began: float) -> None:
        """Replace the toggles by *found*, or confirm them if *found* is None."""
        if found is not None:
            self._compiled = _Compiled(found)
        self.confirmed_at = began
        self._warned = False

    def warn_if_stale(self, source: str, cause: str) -> None:
        """Log once that the toggles have become stale."""
        if self.stale and not self._warned:
            self._warned = True
            log.warning("router.toggles_stale", source=source, cause=cause)

    def values(self, user_id: str, strategy_name: str, version: str) -> ToggleValues:
        """Return the values of one user's toggles of a version, which may declare none."""
        compiled = self._compiled
        resolver = compiled.resolvers.get((strategy_name, version)) or compiled.resolver(strategy_name, version)
        known = compiled.known
        found = ToggleValues()
        resolver.put_values(found, user_id, known.segments.get(user_id, _NO_SEGMENTS), known.capital.get(user_id))
        found.strategy_name, found.version = strategy_name, version
        return found

    def explain(self, user_id: str, strategy_name: str, version: str) -> dict[str, Resolved]:
        """Return `values` with the reason of each."""
        compiled = self._compiled
        return compiled.resolver(strategy_name, version).explain(user_id, *compiled.facts_of(user_id))

    def explain_one(self, user_id: str, strategy_name: str, version: str, name: str) -> Resolved:
        """Return the value of one toggle, with its reason."""
        compiled = self._compiled
        return compiled.resolver(strategy_name, version).explain_one(name, user_id, *compiled.facts_of(user_id))


class _Compiled:
    """One state of all toggles, with the resolvers of the versions that were asked for."""

    __slots__ = ("known", "resolvers")

    def __init__(self, known: AllToggles) -> None:
        self.known = known
        self.resolvers: dict[tuple[str, str], Resolver] = {}

    def resolver(self, strategy_name: str, version: str) -> Resolver:
        found = self.resolvers.get((strategy_name, version))
        if found is None:
            declared = self.known.declared.get(strategy_name, {}).get(version, {})
            found = Resolver(strategy_name, declared, self.known.rules.get(strategy_name, {}))
            if declared:  # other names come from callers: keep only these
                self.resolvers[strategy_name, version] = found
        return found

    def facts_of(self, user_id: str) -> tuple[frozenset[str], float | None]:
        """Return the segments of a user, and the capital if it is known."""
        return self.known.segments.get(user_id, _NO_SEGMENTS), self.known.capital.get(user_id)
