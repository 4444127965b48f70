"""Who waits for a strategy's lock, and who waits without a connection until it is his turn; never who goes first.

A change waits in the database until the one before it is through. Where that one is stuck, so are all that follow, and
each would hold a connection: soon there would be none left to roll back another strategy by.
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
from strategy_core.domain.errors import AlreadyDone, EvidenceUnavailable, Invalid, InvalidName
from strategy_core.market.source import CandleSource
from strategy_core.services.queries import Scope
from strategy_core.settings import Settings

AT_ONCE = 3  # of one strategy, each holding a connection
PATIENCE_S = 30.0


class StrategyBulkhead:
    """Lets *at_once* requests of a name go on, and keeps the others waiting, for *patience_s* at most."""

    def __init__(self, at_once: int = AT_ONCE, patience_s: float = PATIENCE_S) -> None:
        self._at_once = at_once
        self._patience_s = patience_s
        self._taken: Counter[str] = Counter()
        self._given_back = Condition()

    def take(self, name: str) -> None:
        """Return when it is this request's turn; else raise HTTPException 503."""
        with self._given_back:
            if not self._given_back.wait_for(lambda: self._taken[name] < self._at_once, self._patience_s):
                raise HTTPException(503, f"others wait for {name!r} already; see who holds it, or ask again")
            self._taken[name] += 1

    def give_back(self, name: str) -> None:
        with self._given_back:
            self._taken[name] -= 1
            if not self._taken[name]:
                del self._taken[name]  # names come from outside: those that nobody waits for are forgotten
            self._given_back.notify_all()


Done = TypeVar("Done")

HEAVY_AT_ONCE = 4  # of the threads that answer; the others are left to changes, a rollback among them
_GENERATION = re.compile(r'"(\d{1,18})"')


@dataclass(frozen=True)
class Backend:
    """What stands behind the API; *clock* tells the market's time, which a replay may have moved."""

    engine: Engine
    settings: Settings
    authenticator: Authenticator
    clock: Callable[[], datetime]
    heavy: BoundedSemaphore = field(default_factory=lambda: BoundedSemaphore(HEAVY_AT_ONCE))
    turns: StrategyBulkhead = field(default_factory=StrategyBulkhead)  # of changes
    rollback_turns: StrategyBulkhead = field(
        default_factory=StrategyBulkhead
    )  # their own: no other change goes before a rollback

    def candles(self, now: datetime) -> CandleSource:
        """Return the feed; else raise EvidenceUnavailable: that it cannot be had is not the client's fault."""
        try:
            return self.settings.open_candles(now)
        except Invalid as error:
            raise EvidenceUnavailable(str(error)) from None
        except (OSError, ValueError) as error:
            raise EvidenceUnavailable(f"the feed cannot be opened: {type(error).__name__}") from None


class RequestContext:
    """One request of a known principal."""

    def __init__(self, request: Request) -> None:
        self._state = request.state
        self.backend: Backend = request.app.state.backend
        self.engine = self.backend.engine
        self.principal: Principal = request.state.principal
        self.now: datetime = request.state.now

    def reads(self, strategy_name: str) -> str:
        """Return *strategy_name*, which the token reaches; else raise Forbidden."""
        self.principal.check(strategy_name)
        return strategy_name

    def lists(self, strategy_name: str | None = None) -> Scope:
        """Return what a listing may show: the named strategy, which the token must reach, or all that it reaches."""
        if strategy_name is not None:
            self.reads(strategy_name)
        return Scope(strategy_name, self.principal.strategies)

    def changes(self, *strategies: str) -> Actor:
        """Return who changes these strategies, as the audit trail will name him.

        Raises:
            Forbidden: the token may not.
            InvalidName: the idempotency key stood on another wish before.
        """
        actor = self._actor(*strategies)
        self._state.changed = sorted(set(strategies))
        if self._state.reused_key is not None:
            raise InvalidName("new idempotency key", self._state.reused_key, "one that no other request has had")
        if not self._state.heavy:  # those are few already, and long before they come to the lock
            self._wait(self.backend.turns, strategies[0])
        return actor

    def rolls_back(self, strategy_name: str, roll_back: Callable[[Actor], Done]) -> Done:
        """Roll back, whatever was done under the idempotency key before: a key must never keep users on a version.

        What is rolled back already is not rolled back twice: the service finds nothing to do then, and says so.
        """
        actor = self._actor(strategy_name)
        self._state.changed = [strategy_name]
        self._wait(self.backend.rollback_turns, strategy_name)
        try:
            return roll_back(actor)
        except AlreadyDone:
            return roll_back(replace(actor, idempotency_key=None))

    def acknowledges(self, strategy_name: str | None) -> Actor:
        """Return who knows of an alert of this strategy, or of all: it waits for no turn, since nothing is changed."""
        self.principal.check_change(strategy_name)
        return self._actor()

    def rolls_back_beside_others(self, strategy_name: str, key: str, roll_back: Callable[[Actor], Done]) -> Done:
        """Roll back one of the strategies that this request names, in a thread of its own; *key* makes it once."""
        actor = replace(self._actor(strategy_name), idempotency_key=key)
        turns = self.backend.rollback_turns
        turns.take(strategy_name)
        try:
            return roll_back(actor)
        finally:
            turns.give_back(strategy_name)

    def has_changed(self, strategies: Iterable[str]) -> None:
        """Note what the answer's generation is of."""
        self._state.changed = sorted(set(strategies))

    def _wait(self, turns: StrategyBulkhead, strategy_name: str) -> None:
        turns.take(strategy_name)
        self._state.turn = turns, strategy_name  # `guard` gives it back

    def _actor(self, *strategies: str) -> Actor:
        for strategy_name in strategies:
            self.principal.check_change(strategy_name)
        return Actor(
            self.principal.name,
            role=self.principal.role,
            source="api",
            request_id=self._state.request_id,
            idempotency_key=self._state.idempotency_key,
        )


async def _asking(request: Request) -> RequestContext:
    return RequestContext(request)


async def _if_match(
    value: Annotated[
        str | None,
        Header(
            alias="If-Match",
            max_length=64,
            description='The `ETag` that this wish rests on, as `"7"`, or `*`; 412 if it is another by now.',
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
            description="Your own name for this wish: sent again under it within 24 hours, it is answered again, not "
            "done again.",
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
            description="Your own name for this rollback. One that is none is passed over: it must not keep users on a "
            "version.",
        ),
    ] = None,
) -> str | None:
    return value


async def _heavy(request: Request) -> AsyncIterator[None]:
    """Refuse a question that takes long while several others are being answered."""
    heavy: BoundedSemaphore = request.app.state.backend.heavy
    if not heavy.acquire(blocking=False):
        raise HTTPException(503, f"{HEAVY_AT_ONCE} questions that take long are being answered; ask again")
    request.state.heavy = True
    try:
        yield
    finally:
        heavy.release()


Requested = Annotated[RequestContext, Depends(_asking)]
IfMatch = Annotated[int | None, Depends(_if_match)]
KEYED = Depends(_idempotency_key)
KEYED_IF_IT_CAN = Depends(_any_key)
HEAVY = Depends(_heavy)
