"""Dependencies of the endpoints: the backend, the request's context, and limits on requests that wait.

A change waits in the database until earlier changes of its strategy are done. If one of them hangs, all later ones
would each hold a connection, and no connection would be left to roll back another strategy. So at most three requests
per strategy wait in the database, and the others wait without a connection.
"""

import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from threading import BoundedSemaphore, Condition
from typing import Annotated, TypeVar

from fastapi import Depends, Header
from fastapi.exceptions import RequestValidationError
from sqlalchemy import Engine
from starlette.exceptions import HTTPException
from starlette.requests import Request

from strategy_core.api.auth import Authenticator, Principal
from strategy_core.api.requests import VISIBLE
from strategy_core.domain.audit import Actor
from strategy_core.domain.errors import (
    AlreadyDone,
    EvidenceUnavailable,
    Invalid,
    InvalidName,
    RevocationsUnavailable,
)
from strategy_core.market.source import CandleSource
from strategy_core.services.queries import RoutingTable, Scope
from strategy_core.settings import DatabaseClock, Settings

Result = TypeVar("Result")

WAITING_PER_STRATEGY = 3  # each of them holds a connection
PATIENCE_S = 30.0  # how long a request waits for its slot
BODY_TIMEOUT_S = 10.0  # how long a body may take to arrive
HEAVY_AT_ONCE = 4  # of the threads that answer; the others stay free for changes, also for rollbacks
PAGES_AT_ONCE = (
    6  # of the console, slow ones included: browsers read them again all the time, and owners act less often
)

_GENERATION = re.compile(r'"(\d{1,18})"')


class StrategyBulkhead:
    """Lets *slots* requests per strategy continue. Others wait at most *patience_s* seconds."""

    def __init__(self, slots: int = WAITING_PER_STRATEGY, patience_s: float = PATIENCE_S) -> None:
        self._slots = slots
        self._patience_s = patience_s
        self._used: Counter[str] = Counter()
        self._released = Condition()

    def acquire(self, name: str) -> None:
        """Wait for a slot. Raises HTTPException 503 when the wait is over without one."""
        with self._released:
            if not self._released.wait_for(lambda: self._used[name] < self._slots, self._patience_s):
                raise HTTPException(
                    503, f"other requests are waiting for {name!r}; find out which one holds its lock, or try again"
                )
            self._used[name] += 1

    def release(self, name: str) -> None:
        """Give the slot to the next request."""
        with self._released:
            self._used[name] -= 1
            if not self._used[name]:
                del self._used[name]  # names come from clients: keep only those in use
            self._released.notify_all()


@dataclass(frozen=True)
class Backend:
    """What the endpoints work with: database, settings, tokens and limits.

    Attributes:
        database_clock: the settings, with the clock that the database stores.
        clock: returns the market's time, which differs from real time in a replay.
        body_timeout_s: how long the body of a request may take to arrive.
        heavy: limits requests that take long.
        pages: limits pages of the console. Acts are not among them.
        change_bulkhead: limits waiting changes.
        rollback_bulkhead: limits waiting rollbacks, separately, so that no other change delays a rollback.
        routing: the routing table that Routers poll.
    """

    engine: Engine
    database_clock: DatabaseClock
    authenticator: Authenticator
    clock: Callable[[], datetime]
    body_timeout_s: float = BODY_TIMEOUT_S
    heavy: BoundedSemaphore = field(default_factory=lambda: BoundedSemaphore(HEAVY_AT_ONCE))
    pages: BoundedSemaphore = field(default_factory=lambda: BoundedSemaphore(PAGES_AT_ONCE))
    change_bulkhead: StrategyBulkhead = field(default_factory=StrategyBulkhead)
    rollback_bulkhead: StrategyBulkhead = field(default_factory=StrategyBulkhead)
    routing: RoutingTable = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "routing", RoutingTable(self.engine))

    @property
    def settings(self) -> Settings:
        return self.database_clock.settings

    def candles(self, now: datetime) -> CandleSource:
        """Return the feed. If it cannot be opened, raise EvidenceUnavailable, since that is not the client's fault."""
        try:
            return self.settings.open_candles(now)
        except Invalid as error:
            raise EvidenceUnavailable(str(error)) from None
        except (OSError, ValueError) as error:
            raise EvidenceUnavailable(f"the feed cannot be opened: {type(error).__name__}") from None


class RequestContext:
    """One authenticated request: who sent it, when, and which strategies it may use.

    While revoked tokens cannot be looked up, a service token may roll back and do nothing else.
    """

    source = "api"  # of its changes, in the audit trail

    def __init__(self, request: Request) -> None:
        self._state = request.state
        self.backend: Backend = request.app.state.backend
        self.engine = self.backend.engine
        self.principal: Principal = request.state.principal
        self.now: datetime = request.state.now

    def reads(self, strategy_name: str) -> str:
        """Return *strategy_name* if the token covers it, else raise Forbidden."""
        self.check_reading(strategy_name)
        return strategy_name

    def check_reading(self, strategy_name: str | None) -> None:
        """Raise Forbidden unless the token covers the strategy, or all strategies if no name is given."""
        self._check_revocation()
        self.principal.check(strategy_name)

    def lists(self, strategy_name: str | None = None) -> Scope:
        """Return what a listing may show: the named strategy, or all strategies that the token covers."""
        self._check_revocation()
        if strategy_name is not None:
            self.reads(strategy_name)
        return Scope(strategy_name, self.principal.strategies)

    def changes(self, *strategies: str) -> Actor:
        """Return the actor of a change of these strategies, after waiting for a slot.

        Raises:
            Forbidden: the token may not change them.
            InvalidName: the idempotency key was used for another request before.
            RevocationsUnavailable: it is a service token, and may be a revoked one.
        """
        self._check_revocation()
        actor = self._actor(*strategies)
        self._state.changed = sorted(set(strategies))
        if self._state.reused_key is not None:
            raise InvalidName("new idempotency key", self._state.reused_key, "one that no other request has used")
        if not self._state.heavy:  # heavy requests are limited already, and take the lock only at their end
            self._acquire(self.backend.change_bulkhead, strategies[0])
        return actor

    def rolls_back(self, strategy_name: str, roll_back: Callable[[Actor], Result]) -> Result:
        """Roll back, even if the idempotency key was used before: a key must not keep users on a version.

        The service itself refuses to roll back twice.
        """
        actor = self._actor(strategy_name)
        self._state.changed = [strategy_name]
        self._acquire(self.backend.rollback_bulkhead, strategy_name)
        try:
            return roll_back(actor)
        except AlreadyDone:
            return roll_back(replace(actor, idempotency_key=None))

    def acknowledges(self, strategy_name: str | None) -> Actor:
        """Return the actor who acknowledges an alert. It needs no slot, because no strategy is changed."""
        self._check_revocation()
        self.principal.check_change(strategy_name)
        return self._actor()

    def rolls_back_beside_others(self, strategy_name: str, key: str, roll_back: Callable[[Actor], Result]) -> Result:
        """Roll back one of several strategies of this request, in the calling thread. *key* prevents a second time."""
        actor = replace(self._actor(strategy_name), idempotency_key=key)
        bulkhead = self.backend.rollback_bulkhead
        bulkhead.acquire(strategy_name)
        try:
            return roll_back(actor)
        finally:
            bulkhead.release(strategy_name)

    def has_changed(self, strategies: Iterable[str]) -> None:
        """Record which strategies were changed, for the answer's ETag."""
        self._state.changed = sorted(set(strategies))

    def _check_revocation(self) -> None:
        if self.principal.revocation_unknown:
            raise RevocationsUnavailable

    def _acquire(self, bulkhead: StrategyBulkhead, strategy_name: str) -> None:
        bulkhead.acquire(strategy_name)
        self._state.slot = bulkhead, strategy_name  # `requests.GuardedRoute` releases it

    def _actor(self, *strategies: str) -> Actor:
        for strategy_name in strategies:
            self.principal.check_change(strategy_name)
        return Actor(
            self.principal.name,
            role=self.principal.role,
            source=self.source,
            request_id=self._state.request_id,
            idempotency_key=self._state.idempotency_key,
        )


async def _context(request: Request) -> RequestContext:
    return RequestContext(request)


async def _if_match(
    value: Annotated[
        str | None,
        Header(
            alias="If-Match",
            max_length=64,
            description='Change the strategy only if this is its current `ETag`, such as `"7"`, otherwise answer 412. '
            "`*` accepts any.",
            examples=['"7"'],
        ),
    ] = None,
) -> int | None:
    if value is None or value.strip() == "*":
        return None
    found = _GENERATION.fullmatch(value.strip())
    if found is None:
        problem = {"loc": ("header", "If-Match"), "msg": 'one strong ETag, such as "7", or *', "type": "value_error"}
        raise RequestValidationError([problem])
    return int(found[1])


async def _idempotency_key(
    value: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key",
            pattern=VISIBLE,
            min_length=1,
            max_length=255,
            description="A unique name for this request. If you repeat the request with the same key within 24 hours, "
            "you get the first answer again and nothing is done twice.",
            examples=["7f9c2ba4-e88f-4a3c-9d7b-6a1f0d6f3c11"],
        ),
    ] = None,
) -> str | None:
    return value


async def _any_key(
    value: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key",
            description="A unique name for this rollback, so that a repeated request is not done twice. An invalid key "
            "is ignored, because it must not delay a rollback.",
        ),
    ] = None,
) -> str | None:
    return value


async def _heavy(request: Request) -> AsyncIterator[None]:
    """Refuse a slow request while HEAVY_AT_ONCE others are in progress."""
    heavy: BoundedSemaphore = request.app.state.backend.heavy
    if not heavy.acquire(blocking=False):
        raise HTTPException(503, f"{HEAVY_AT_ONCE} slow requests are in progress; try again")
    request.state.heavy = True
    try:
        yield
    finally:
        heavy.release()


Requested = Annotated[RequestContext, Depends(_context)]
IfMatch = Annotated[int | None, Depends(_if_match)]
KEYED = Depends(_idempotency_key)
KEYED_IF_VALID = Depends(_any_key)
HEAVY = Depends(_heavy)
