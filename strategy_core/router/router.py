"""Which version a user gets, told by the platform's own process from memory; it never waits for anything to answer."""

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
    InvalidSetting,
    NoActiveVersion,
    RouterClosed,
    RoutingUnavailable,
    UnknownStrategy,
)
from strategy_core.domain.routing import Routing, as_percent, bucket_of, buckets_of, refused_user
from strategy_core.router.source import Found, Source
from strategy_core.router.sources import open_source
from strategy_core.services.queries import Route

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RouterEntry(Routing):
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
        self.served: Mapping[str, RouterEntry | None] = {}
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

    def _served(self, name: str, routing: Routing | None) -> RouterEntry | None:
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
            routing.active, routing.canary, routing.percent_bp, routing.salt, routing.generation, admitted=admitted
        )


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


MAX_AGE_S = 60.0
_AT_ONCE = 20_000  # users: their hashes fit the processor's cache


class Router:
    """Routing of all strategies, kept current by a thread of its own; for any number of threads, or an event loop.

    Args:
        database_url: `postgresql://…` or `sqlite:///FILE`; or else
        api_url: where the platform's API answers, as `https://HOST`.
        token: for the API; it needs to read only.
        max_age_s: a canary admits nobody new when routing could not be confirmed for longer. Users whom this router
            has sent to it stay: a lost connection takes nobody to and fro.
        clock: seconds, monotonic.

    Raises:
        InvalidSetting: not one address, or not a valid one.
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
        self._open: Callable[[], Source] = open_source(database_url, api_url, token)
        self._table = Table(max_age_s, clock)
        self._closed = False
        self._refresh(Refresher(self._open(), self._table), load=True)
        _ROUTERS.add(self)

    def version_for(self, user_id: str, strategy_name: str) -> str:
        """Return the version that *user_id* gets of *strategy_name* now; from memory, in about a microsecond.

        Raises:
            InvalidName: *user_id* is empty, or is not text that can be encoded.
            UnknownStrategy, NoActiveVersion, RouterClosed
        """
        table = self._table
        try:
            served = table.served[strategy_name]
            if served is None or not user_id:
                raise self._refusal(user_id, strategy_name)
            if not served.percent_bp:
                user_id.encode()  # refused alike, canary or not
                return served.active
            if bucket_of(user_id, served.salt) >= served.percent_bp:
                return served.active
        except (KeyError, UnicodeEncodeError, AttributeError, TypeError):
            raise self._refusal(user_id, strategy_name) from None
        if table.clock() - table.confirmed_at <= table.max_age_s:
            served.admitted.add(user_id)
        elif user_id not in served.admitted:
            return served.active
        return served.canary  # type: ignore[return-value]  # nobody's bucket is below the percent of no canary

    def assign(self, user_ids: Iterable[str], strategy_name: str) -> list[str]:
        """Return `version_for` of each user, in their order; all by the routing of one moment.

        It keeps the processor busy, about a second for a million users: in an event loop, give it to a thread.
        """
        served = self._served(strategy_name)
        users = user_ids if isinstance(user_ids, list) else list(user_ids)
        self._check(users, strategy_name)
        if not served.percent_bp:
            return [served.active] * len(users)
        assigned: list[str] = []
        for start in range(0, len(users), _AT_ONCE):
            assigned += self._assigned(users[start : start + _AT_ONCE], served)
        return assigned

    def explain(self, user_id: str, strategy_name: str) -> Route:
        """Return what `version_for` would, with the reason; it admits nobody."""
        served = self._served(strategy_name)
        self._check([user_id], strategy_name)
        bucket, stale = bucket_of(user_id, served.salt), self._table.stale
        version = served.version_of(bucket)
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
        )

    def generation(self, strategy_name: str) -> int:
        """Return the generation of the strategy that this router obeys."""
        return self._served(strategy_name).generation

    def age(self) -> float:
        """Return for how many seconds routing has not been confirmed."""
        return self._table.age

    @property
    def stale(self) -> bool:
        """Whether that is longer than `max_age_s`: canaries admit nobody new."""
        return self._table.stale

    def close(self) -> None:
        """End the thread and give the connection back; asked again, it raises RouterClosed rather than grow old."""
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

    def _refresh(self, refresher: Refresher, *, load: bool) -> None:
        if load:
            refresher.load()
        self._refresher = refresher
        self._finalizer = weakref.finalize(self, refresher.stop.set)  # nobody refers to this router: its thread ends
        refresher.start()

    def _served(self, strategy_name: str) -> RouterEntry:
        served = self._table.served.get(strategy_name)
        if served is None:
            raise self._refusal("-", strategy_name)
        return served

    def _assigned(self, users: list[str], served: RouterEntry) -> list[str]:
        inside = (buckets_of(users, served.salt) < served.percent_bp).tolist()
        if self._table.stale:
            inside = [within and user in served.admitted for user, within in zip(users, inside, strict=True)]
        else:
            served.admitted.update(compress(users, inside))
        choice = (served.active, served.canary)
        return [choice[within] for within in inside]  # type: ignore[misc]  # as in `version_for`

    def _check(self, users: list[str], strategy_name: str) -> None:
        try:
            "".join(users).encode()
            if all(users):
                return
        except (UnicodeEncodeError, TypeError):
            pass
        raise next(filter(None, (refused_user(user) for user in users)))

    def _refusal(self, user_id: str, strategy_name: str) -> Exception:
        """Return why there is no answer; only when there is none."""
        if self._closed:
            return RouterClosed()
        if strategy_name not in self._table.served:
            return UnknownStrategy(strategy_name, self._table.served)
        return refused_user(user_id) or NoActiveVersion(strategy_name)


_ROUTERS: weakref.WeakSet[Router] = weakref.WeakSet()
_LEFT_TO_PARENTS: list[Source] = []  # kept in a child, so that nothing closes what its parent uses
_forking = Lock()  # one fork after another
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
    """Give each router a thread and a connection of this process; until it has read, it answers as its parent did."""
    for router in _forked:
        router._refresher.source.after_fork_in_child()
        _LEFT_TO_PARENTS.append(router._refresher.source)
        router._finalizer.detach()
        router._refresh(Refresher(router._open(), router._table), load=False)
    _forked.clear()
    _forking.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
