"""What every guarded request goes through, in this order: token, size and form of the body, idempotency key."""

import json
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Any

import structlog
from fastapi.routing import APIRoute
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from strategy_core.api import idempotency
from strategy_core.api.bodies import BadBody, bounded, check_body
from strategy_core.api.idempotency import Wish
from strategy_core.api.problems import invalid
from strategy_core.domain.errors import RolloutError
from strategy_core.services import browse
from strategy_core.store.api_tables import ApiAnswer

Answer = Callable[[Request], Coroutine[Any, Any, Response]]

log = structlog.get_logger(__name__)


class Guarded(APIRoute):
    """A route that needs a token; what it found out stands in `request.state`, see `deps.Ask`."""

    foreign = False

    def get_route_handler(self) -> Answer:
        answer = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            return await _guarded(request, answer, foreign=self.foreign)

        return guarded


class Foreign(Guarded):
    """A route whose body another program makes by its own rules: any text may stand in it, and no key names a wish."""

    foreign = True


async def _guarded(request: Request, answer: Answer, *, foreign: bool) -> Response:
    backend, state = request.app.state.backend, request.state
    client = request.client.host if request.client else ""
    token = request.headers.get("authorization")
    state.principal = await run_in_threadpool(backend.authenticator.authenticate, token, client)
    structlog.contextvars.bind_contextvars(actor=state.principal.name)
    state.now, state.changed, state.reused_key = backend.clock(), [], None
    state.heavy, state.turn = False, None
    if request.method not in ("POST", "PATCH"):
        return await answer(request)
    request = bounded(request)
    body = await request.body()
    try:
        await run_in_threadpool(check_body, request.headers.get("content-type", ""), body, any_text=foreign)
    except BadBody as error:
        return invalid(request, [(error.field, error.why)])
    wish = None if foreign else _wish(request, body)
    state.idempotency_key = wish.key if wish else None
    if wish is not None:
        return await _once(request, wish, answer)
    return await _answered(request, answer)


def _wish(request: Request, body: bytes) -> Wish | None:
    if request.method != "POST":
        return None
    key = request.headers.get("idempotency-key")
    name = request.state.principal.name
    return idempotency.wish_of(name, key, request.method, request.url.path, request.scope["query_string"], body)


async def _once(request: Request, wish: Wish, answer: Answer) -> Response:
    """Give the first answer again, or answer and keep that, unless nothing was changed."""
    engine, state = request.app.state.backend.engine, request.state
    asked_at = datetime.now(UTC)  # answers age in the clients' world, not in a market that is replayed
    first = await run_in_threadpool(idempotency.recall, engine, wish, asked_at)
    if first is not None and first.digest == wish.digest and not await run_in_threadpool(_undone, request, first):
        return _replay(request, first)
    if first is not None:  # `Ask.changes` refuses it; a rollback goes ahead without the key
        state.reused_key, state.idempotency_key = wish.key, None
        return await _answered(request, answer)
    try:
        response = await _answered(request, answer)
    except RolloutError:
        first = await run_in_threadpool(idempotency.recall, engine, wish, asked_at)
        if first is None or first.digest != wish.digest:
            raise
        return _replay(request, first)  # the same wish came twice at once, and the other was first
    if state.changed and response.status_code < 300:
        await run_in_threadpool(idempotency.keep, engine, wish, response, state.changed, asked_at)
    return response


def _undone(request: Request, first: ApiAnswer) -> bool:
    """Return whether the version that a rollback took users off serves some again: then its answer is true no more."""
    if not request.url.path.endswith("/strategy/rollback"):  # that of a rollout means this one alone, which has ended
        return False
    told = json.loads(first.body)
    try:
        routing = browse.read_routing(request.app.state.backend.engine).get(told["strategy_name"])
    except SQLAlchemyError as error:
        log.warning("api.routing_not_read", error=type(error).__name__)
        return True
    return routing is not None and told["version"] in (routing.active, routing.canary)


def _replay(request: Request, first: ApiAnswer) -> Response:
    for strategy_name in first.strategies:
        request.state.principal.check_change(strategy_name)
    return idempotency.replay(first)


async def _answered(request: Request, answer: Answer) -> Response:
    try:
        response = await answer(request)
    finally:
        if request.state.turn is not None:
            turns, strategy_name = request.state.turn
            turns.give_back(strategy_name)
    if len(request.state.changed) == 1 and response.status_code < 300 and "ETag" not in response.headers:
        generation = await run_in_threadpool(_generation, request)
        if generation is not None:
            response.headers["ETag"] = f'"{generation}"'
    return response


def _generation(request: Request) -> int | None:
    """Return the generation that this request has made; it is done, whether that can be told or not."""
    (strategy_name,) = request.state.changed
    try:
        return browse.generation_of(
            request.app.state.backend.engine,
            strategy_name=strategy_name,
            actor=request.state.principal.name,
            request_id=request.state.request_id,
        )
    except SQLAlchemyError as error:
        log.warning("api.generation_not_read", error=type(error).__name__)
        return None
