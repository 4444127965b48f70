"""Read all routing again and again, and users' exclusions only when they may have changed."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime

import structlog
from sqlmodel import Session

from strategy_core.domain.routing import Routing
from strategy_core.domain.user_exclusions import UserSets
from strategy_core.store import user_exclusions, versions

_NONE: frozenset[str] = frozenset()
# Of reading exclusions on PostgreSQL, because a rollback made meanwhile is seen afterwards.
_LIMITS = "SET LOCAL statement_timeout = '2s'; SET LOCAL lock_timeout = '250ms'"

log = structlog.get_logger(__name__)


class RoutingReader:
    """Reads `versions.all_routing` of one database. One thread at a time may use it, except for `with_known_users`.

    There may be 100,000 exclusions. They are read again after a change of any strategy, and when one runs out. A
    rollback does not wait for that: the read that first sees a canary narrowed has the exclusions of the read before.
    If exclusions cannot be read, canaries that have served go on with the known ones, and new canaries serve no users.
    """

    def __init__(self) -> None:
        self._heads: Mapping[str, str] | None = None
        self._serving: Mapping[str, Routing] = {}
        self._known: tuple[Mapping[str, UserSets], Mapping[str, str | None]] = {}, {}  # sets, canaries that have them
        self._runs_out: datetime | None = None
        self._behind = self._failed = False

    @property
    def behind(self) -> bool:
        """Whether the last read did not wait for the exclusions, so that the next read is due at once."""
        return self._behind

    @property
    def has_read(self) -> bool:
        """Whether exclusions were read since the reader was made, or since `reconnect`."""
        return self._heads is not None

    def is_due(self, now: datetime) -> bool:
        """Return whether a read is due although the database has not changed."""
        return self._behind or self._failed or (self._runs_out is not None and self._runs_out <= now)

    def reconnect(self) -> None:
        """Read exclusions again with the next connection. Those known are kept until then."""
        self._heads = None

    def read(self, session: Session, now: datetime) -> dict[str, Routing | None]:
        """Return the routing of all strategies by name (None: no active version)."""
        return self.add_users(session, *versions.serving_routing(session), now)

    def add_users(
        self, session: Session, found: Mapping[str, Routing | None], heads: Mapping[str, str], now: datetime
    ) -> dict[str, Routing | None]:
        """Return the result of `versions.serving_routing`, read in the same session, with users' exclusions."""
        if heads != self._heads or self.is_due(now):
            serving = {name: one for name, one in found.items() if one is not None and one.serves_canary}
            narrowed = any(_narrows(one, serving.get(name)) for name, one in self._serving.items())
            self._serving = serving
            sets, canaries = self._known
            # A canary that is withdrawn and starts again needs the exclusions of its new start.
            self._known = (
                sets,
                {
                    name: serving[name].canary
                    for name in canaries.keys() & serving.keys()
                    if serving[name].canary == canaries[name]
                },
            )
            if narrowed and not self._behind:
                self._behind = True
            else:
                self._behind = False
                self._read_sets(session, heads, now)
        return self.with_known_users(found)

    def with_known_users(self, found: Mapping[str, Routing | None]) -> dict[str, Routing | None]:
        """Return routing with the exclusions that were read last. Canaries that were not known then serve no users."""
        sets, canaries = self._known
        routing = dict(found)
        for name, one in found.items():
            if one is not None:
                known = not one.serves_canary or canaries.get(name) == one.canary
                seen = one if known else replace(one, canary=None, percent_bp=0, excluded=_NONE)
                routing[name] = user_exclusions.with_sets(name, seen, sets)
        return routing

    def _read_sets(self, session: Session, heads: Mapping[str, str], now: datetime) -> None:
        serving = {name: one.canary for name, one in self._serving.items()}
        try:
            with _limited(session):
                sets, self._runs_out = user_exclusions.current_sets(session, list(serving), now)
        except Exception as error:  # noqa: BLE001  after any failure, later rollbacks must be seen
            if not self._failed:
                log.warning("routing.exclusions_unreadable", error=type(error).__name__)
            self._failed = True
            return
        self._known, self._heads, self._failed = (sets, serving), heads, False


def _narrows(before: Routing, after: Routing | None) -> bool:
    """Return whether some users or symbols that had the canary no longer have it."""
    if after is None or after.canary != before.canary:
        return True
    return after.percent_bp < before.percent_bp or not after.excluded <= before.excluded


@contextmanager
def _limited(session: Session) -> Iterator[None]:
    """Limit the seconds of queries on PostgreSQL, in a transaction, so that no pooler passes the limits on."""
    connection = session.connection()
    if connection.dialect.name != "postgresql":
        yield
        return
    alone = getattr(connection.connection.driver_connection, "autocommit", False)
    if alone:
        connection.exec_driver_sql("BEGIN")
    try:
        connection.exec_driver_sql(_LIMITS)
        yield
    finally:
        if alone:
            connection.exec_driver_sql("ROLLBACK")
