"""Router: answers in memory which version a user gets, with routing that a background thread keeps current."""

import asyncio
import os
import random
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import compress
from threading import Event, Lock, Thread
from types import TracebackType
from typing import Self

import structlog

from strategy_core.domain.errors import (
    InvalidName,
    InvalidSetting,
    NoActiveVersion,
    RouterClosed,
    RoutingUnavailable,
    UnknownStrategy,
)
from strategy_core.domain.routing import Routing, as_percent, bucket_of, buckets_of, refused_user
from strategy_core.router.source import AllRouting, Source, open_routing_source
from strategy_core.services.queries import Route

MAX_AGE_S = 60.0
_BATCH = 20_000  # users, so that their hashes fit into the processor's cache
_FIRST_S, _LONGEST_S = 0.05, 1.0  # wait between two tries, which also delays a rollback
_JOIN_S = 10.0  # longer than any source takes for one step

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RouterEntry(Routing):
    """One strategy's routing, with the users that this router has sent to its canary (*admitted*)."""

    admitted: set[str] = field(default_factory=set, compare=False)


class Table:
    """The routing of all strategies. One thread replaces it as a whole, so that readers need no lock.

    Args:
        max_age_s: after this many seconds without confirmation, the table is stale and canaries admit no new users.
        clock: monotonic, in seconds.
    """

    __slots__ = ("_warned", "clock", "confirmed_at", "max_age_s", "served")

    def __init__(self, max_age_s: float, clock: Callable[[], float]) -> None:
        self.max_age_s = max_age_s
        self.clock = clock
        self.served: Mapping[str, RouterEntry | None] = {}
        self.confirmed_at = clock()
        self._warned = False

    @property
    def age(self) -> float:
        return self.clock() - self.confirmed_at

    @property
    def stale(self) -> bool:
        return self.clock() - self.confirmed_at > self.max_age_s

    def update(self, found: AllRouting | None, began: float) -> None:
        """Replace the table by *found*, or confirm it if *found* is None.

        A generation below the known one is accepted too: after a backup was restored or a replica took over, all
        others use that database as well. It is logged, because a change, such as a rollback, may have been lost.

        Args:
            began: when the read began, by the clock.
        """
        if found is not None:
            self.served = {name: self._entry(name, routing) for name, routing in found.items()}
        self.confirmed_at = began
        if self._warned:
            self._warned = False
            log.info("router.refreshed")

    def warn_if_stale(self, source: str, cause: str) -> None:
        """Log once that the table has become stale."""
        if self.stale and not self._warned:
            self._warned = True
            log.warning("router.stale", source=source, cause=cause, age_s=round(self.age, 1))

    def _entry(self, name: str, routing: Routing | None) -> RouterEntry | None:
        if routing is None:
            return None
        known = self.served.get(name)
        admitted: set[str] = set()
        if known is not None:
            if routing.generation < known.generation:
                log.warning("router.went_back", strategy=name, known=known.generation, found=routing.generation)
            if routing.canary is not None and (routing.canary, routing.salt) == (known.canary, known.salt):
                admitted = known.admitted
        return RouterEntry(
            routing.active,
            routing.canary,
            routing.percent_bp,
            routing.salt,
            routing.generation,
            routing.excluded,
            admitted=admitted,
        )


class Refresher:
    """A thread that reads the source again and again into a table, with growing waits after failures.

    It has no reference to the router, so that a router without references is collected, which ends the thread.
    """

    def __init__(self, source: Source, table: Table) -> None:
        self.source = source
        self.stop = Event()
        self._table = table
        self._thread = Thread(target=self._run, name="router", daemon=True)

    def load(self) -> None:
        """Read once in the calling thread. Raises RoutingUnavailable."""
        try:
            self._read()
        except RoutingUnavailable:
            self.source.close()
            raise

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Stop the thread and wait until it has closed the source."""
        self.stop.set()
        self._thread.join(_JOIN_S)

    def _read(self) -> None:
        began = self._table.clock()  # before the read, because it may miss later changes
        self._table.update(self.source.read(), began)

    def _run(self) -> None:
        pause = _FIRST_S
        try:
            while not self.stop.is_set():
                try:
                    self._read()
                    pause = _FIRST_S
                    self.source.wait(self.stop)
                except Exception as error:  # noqa: BLE001  if the thread ended, it would miss every rollback
                    cause = error.cause if isinstance(error, RoutingUnavailable) else type(error).__name__
                    self._table.warn_if_stale(self.source.address, cause)
                    self.source.close()
                    self.stop.wait(pause * random.uniform(0.5, 1.0))  # noqa: S311  jitter, so that not all routers retry at once
                    pause = min(2 * pause, _LONGEST_S)
        finally:
            self.source.close()


class Router:
    """The routing of all strategies, kept current by a background thread. Safe for threads and event loops.

    Args:
        database_url: `postgresql://…` or `sqlite:///FILE`. Give either this or *api_url*.
        api_url: address of the platform's API, such as `https://HOST`.
        token: token for the API. A read-only token is enough.
        max_age_s: if routing was not confirmed for this many seconds, canaries admit no new users. Users that this
            router has already sent to the canary stay on it, so that a lost connection does not switch their version.
        clock: monotonic, in seconds.

    Raises:
        InvalidSetting: the address is missing, given twice or not valid.
        RoutingUnavailable: the first read failed.
    """

    def __init__(
        self,
        database_url: str | None = None,
        *,
        api_url: str | None = None,
        token: str | None = None,
        max_age_s: float = MAX_AGE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not max_age_s > 0:
            raise InvalidSetting("max_age_s", max_age_s, "seconds, more than 0")
        self._open: Callable[[], Source] = open_routing_source(database_url, api_url, token)
        self._table = Table(max_age_s, clock)
        self._closed = False
        self._start(Refresher(self._open(), self._table), load=True)
        _ROUTERS.add(self)

    def version_for(self, user_id: str, strategy_name: str, symbol: str | None = None) -> str:
        """Return the version that *user_id* gets now. Takes about a microsecond.

        Args:
            symbol: of the trade, spelled as in the feed. Without it, the answer ignores that an owner may have excluded
                a symbol from the canary.

        Raises:
            InvalidName: *user_id* is empty or cannot be encoded as UTF-8, or *symbol* is not text.
            UnknownStrategy, NoActiveVersion, RouterClosed
        """
        table = self._table
        try:
            served = table.served[strategy_name]
            if served is None or not user_id:
                raise self._refusal(user_id, strategy_name)
            if not served.percent_bp:
                user_id.encode()  # refuse invalid ids also without a canary
                return served.active
            if symbol in served.excluded or bucket_of(user_id, served.salt) >= served.percent_bp:
                return served.active
        except (KeyError, UnicodeEncodeError, AttributeError, TypeError):
            raise self._refusal(user_id, strategy_name, symbol) from None
        if table.clock() - table.confirmed_at <= table.max_age_s:
            served.admitted.add(user_id)
        elif user_id not in served.admitted:
            return served.active
        return served.canary  # type: ignore[return-value]  # set, because percent_bp is above 0

    def assign(self, user_ids: Iterable[str], strategy_name: str, symbol: str | None = None) -> list[str]:
        """Return `version_for` each user, in the same order and all with the same routing.

        A million users take about a second of CPU time. In an event loop, call this in a thread.
        """
        served = self._entry(strategy_name)
        users = user_ids if isinstance(user_ids, list) else list(user_ids)
        self._check(users, symbol)
        if not served.percent_bp or symbol in served.excluded:
            return [served.active] * len(users)
        assigned: list[str] = []
        for start in range(0, len(users), _BATCH):
            assigned += self._assign_batch(users[start : start + _BATCH], served)
        return assigned

    def explain(self, user_id: str, strategy_name: str, symbol: str | None = None) -> Route:
        """Return the version that `version_for` would return, with the reason. Does not admit the user."""
        served = self._entry(strategy_name)
        self._check([user_id], symbol)
        bucket, stale = bucket_of(user_id, served.salt), self._table.stale
        version = served.version_of(bucket, symbol)
        unsettled = stale and version == served.canary
        if unsettled and user_id not in served.admitted:
            version = served.active
        return Route(
            user_id=user_id,
            strategy_name=strategy_name,
            version=version,
            bucket=bucket,
            percent=as_percent(served.percent_bp),
            in_canary=version == served.canary,
            generation=served.generation,
            stale=unsettled,
            excluded=symbol if symbol in served.excluded else None,
        )

    def generation(self, strategy_name: str) -> int:
        """Return the strategy's generation in this router."""
        return self._entry(strategy_name).generation

    def age(self) -> float:
        """Return the seconds since routing was last confirmed."""
        return self._table.age

    @property
    def stale(self) -> bool:
        """Whether the age is above `max_age_s`, so that canaries admit no new users."""
        return self._table.stale

    def close(self) -> None:
        """Stop the thread and close the connection. Later calls raise RouterClosed."""
        self._closed = True
        _ROUTERS.discard(self)
        self._finalizer.detach()
        self._refresher.end()
        self._table.served = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)

    def _start(self, refresher: Refresher, *, load: bool) -> None:
        if load:
            refresher.load()
        self._refresher = refresher
        self._finalizer = weakref.finalize(self, refresher.stop.set)  # ends the thread with the router
        refresher.start()

    def _entry(self, strategy_name: str) -> RouterEntry:
        served = self._table.served.get(strategy_name)
        if served is None:
            raise self._refusal("-", strategy_name)
        return served

    def _assign_batch(self, users: list[str], served: RouterEntry) -> list[str]:
        inside = (buckets_of(users, served.salt) < served.percent_bp).tolist()
        if self._table.stale:
            inside = [within and user in served.admitted for user, within in zip(users, inside, strict=True)]
        else:
            served.admitted.update(compress(users, inside))
        choice = (served.active, served.canary)
        return [choice[within] for within in inside]  # type: ignore[misc]  # as in `version_for`

    def _check(self, users: list[str], symbol: object) -> None:
        if not isinstance(symbol, str | None):
            raise InvalidName("symbol", symbol, "text")
        try:
            "".join(users).encode()
            if all(users):
                return
        except (UnicodeEncodeError, TypeError):
            pass
        raise next(filter(None, (refused_user(user) for user in users)))

    def _refusal(self, user_id: str, strategy_name: str, symbol: object = None) -> Exception:
        """Return the reason why there is no answer."""
        if self._closed:
            return RouterClosed()
        if strategy_name not in self._table.served:
            return UnknownStrategy(strategy_name, self._table.served)
        if not isinstance(symbol, str | None):
            return InvalidName("symbol", symbol, "text")
        return refused_user(user_id) or NoActiveVersion(strategy_name)


_ROUTERS: weakref.WeakSet[Router] = weakref.WeakSet()
_LEFT_TO_PARENTS: list[Source] = []  # keeps references in a child, so that it does not close its parent's connections
_forking = Lock()  # serializes forks
_forked: list[Router] = []


def _before_fork() -> None:
    _forking.acquire()
    _forked[:] = _ROUTERS
    for router in _forked:
        router._refresher.source.before_fork()


def _after_fork_in_parent() -> None:
    for router in _forked:
        router._refresher.source.after_fork_in_parent()
    _forked.clear()
    _forking.release()


def _after_fork_in_child() -> None:
    """Start a thread with a new connection for each router. Until its first read, it answers as its parent did."""
    for router in _forked:
        router._refresher.source.after_fork_in_child()
        _LEFT_TO_PARENTS.append(router._refresher.source)
        router._finalizer.detach()
        router._start(Refresher(router._open(), router._table), load=False)
    _forked.clear()
    _forking.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
