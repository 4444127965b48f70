"""Router: answers in memory which version a user gets, with routing that a background thread keeps current."""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import compress
from types import TracebackType
from typing import Self

import structlog

from strategy_core.domain.errors import (
    InvalidName,
    InvalidSetting,
    NoActiveVersion,
    RouterClosed,
    UnknownStrategy,
)
from strategy_core.domain.routing import Routing, as_percent, bucket_of, buckets_of, refused_user
from strategy_core.domain.toggles import Resolved
from strategy_core.router.refresher import Feed
from strategy_core.router.source import AllRouting, open_routing_source, open_toggle_source
from strategy_core.router.toggles import ToggleTable, ToggleValues
from strategy_core.services.queries import Route

MAX_AGE_S = 60.0
_BATCH = 20_000  # users, so that their hashes fit into the processor's cache

log = structlog.get_logger(__name__)


def _utc_now() -> datetime:
    return datetime.now(UTC)


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
            routing.kept,
            routing.always,
            routing.exit_only,
            admitted=admitted,
        )


class Router:
    """The routing of all strategies, kept current by a background thread. Safe for threads and event loops.

    Args:
        database_url: `postgresql://…` or `sqlite:///FILE`. Give either this or *api_url*.
        api_url: address of the platform's API, such as `https://HOST`.
        token: token for the API. A read-only token is enough.
        max_age_s: if routing was not confirmed for this many seconds, canaries admit no new users. Users that this
            router has already sent to the canary stay on it, so that a lost connection does not switch their version.
        toggles: whether to keep toggles too, by a second connection and thread, so that they delay no rollback.
        clock: monotonic, in seconds.
        now: the present time. Exclusions of users run out by it.

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
        toggles: bool = False,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = _utc_now,
    ) -> None:
        if not max_age_s > 0:
            raise InvalidSetting("max_age_s", max_age_s, "seconds, more than 0")
        self._table = Table(max_age_s, clock)
        self._closed = False
        self._feed = Feed(open_routing_source(database_url, api_url, token, now), self._table)
        self._toggles: ToggleTable | None = None
        self._toggle_feed = None
        if toggles:
            self._toggles = ToggleTable(max_age_s, clock)
            try:
                self._toggle_feed = Feed(open_toggle_source(database_url, api_url, token), self._toggles)
            except BaseException:
                self._feed.close()
                raise

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
            if symbol in served.excluded or user_id in served.kept:
                return served.active
            if bucket_of(user_id, served.salt) >= served.percent_bp and user_id not in served.always:
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
        version = served.version_of(bucket, symbol, user_id)
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
            standing=served.standing_of(user_id),
            exit_only=user_id in served.exit_only,
        )

    def may_enter(self, user_id: str, strategy_name: str) -> bool:
        """Return whether the user may open new positions of the strategy, in any version.

        It is False once the user's loss limit was hit, until an owner releases the user. Open positions go on.

        Raises:
            InvalidName, UnknownStrategy, NoActiveVersion, RouterClosed
        """
        served = self._entry(strategy_name)
        self._check([user_id], None)
        return user_id not in served.exit_only

    def toggles_for(self, user_id: str, strategy_name: str, symbol: str | None = None) -> ToggleValues:
        """Return the toggles of the version that `version_for` returns, by name. A name without a toggle raises
        UnknownToggle. Takes a few microseconds with 20 rules.

        Raises:
            InvalidSetting: the router was made without `toggles=True`.
            InvalidName, UnknownStrategy, NoActiveVersion, RouterClosed: see `version_for`.
        """
        version = self.version_for(user_id, strategy_name, symbol)
        return (self._toggles or self._no_toggles()).values(user_id, strategy_name, version)

    def explain_toggles(self, user_id: str, strategy_name: str, symbol: str | None = None) -> dict[str, Resolved]:
        """Return the values of `toggles_for` by name, each with the rule and the bucket that decided.

        Does not admit the user to a canary.
        """
        version = self.explain(user_id, strategy_name, symbol).version
        return (self._toggles or self._no_toggles()).explain(user_id, strategy_name, version)

    def explain_toggle(self, user_id: str, strategy_name: str, toggle: str, symbol: str | None = None) -> Resolved:
        """Return what `explain_toggles` has for one toggle, without the cost of the others.

        Raises:
            UnknownToggle
            InvalidSetting, InvalidName, UnknownStrategy, NoActiveVersion, RouterClosed: see `toggles_for`.
        """
        version = self.explain(user_id, strategy_name, symbol).version
        return (self._toggles or self._no_toggles()).explain_one(user_id, strategy_name, version, toggle)

    @property
    def toggles_stale(self) -> bool:
        """Whether toggles were not confirmed for `max_age_s`. Their last known values are given all the same."""
        return (self._toggles or self._no_toggles()).stale

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
        self._feed.close()
        if self._toggle_feed is not None:
            self._toggle_feed.close()
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

    def _no_toggles(self) -> ToggleTable:
        raise InvalidSetting("toggles", False, "True, so that this router keeps toggles")

    def _entry(self, strategy_name: str) -> RouterEntry:
        served = self._table.served.get(strategy_name)
        if served is None:
            raise self._refusal("-", strategy_name)
        return served

    def _assign_batch(self, users: list[str], served: RouterEntry) -> list[str]:
        inside = (buckets_of(users, served.salt) < served.percent_bp).tolist()
        if served.kept or served.always:
            kept, always = served.kept, served.always
            inside = [
                (within or user in always) and user not in kept for user, within in zip(users, inside, strict=True)
            ]
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
