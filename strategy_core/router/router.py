"""Which version a user gets, told by the platform's own process from memory; it never waits for anything to answer."""

import asyncio
import os
import time
import weakref
from collections.abc import Callable, Iterable
from itertools import compress
from threading import Lock
from types import TracebackType
from typing import Self

from strategy_core.domain.errors import InvalidSetting, NoActiveVersion, RouterClosed, UnknownStrategy
from strategy_core.domain.routing import as_percent, bucket_of, buckets_of, refused_user
from strategy_core.router.open import open_source
from strategy_core.router.refresher import Refresher
from strategy_core.router.source import Source
from strategy_core.router.table import Served, Table
from strategy_core.services.route import Route

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

    def _served(self, strategy_name: str) -> Served:
        served = self._table.served.get(strategy_name)
        if served is None:
            raise self._refusal("-", strategy_name)
        return served

    def _assigned(self, users: list[str], served: Served) -> list[str]:
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
