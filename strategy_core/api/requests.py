"""Guarded routes: token, body rules, one answer per idempotency key, and the ETag after a change."""

import json
import math
import re
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import structlog
from anyio import fail_after
from fastapi.routing import APIRoute
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive

from strategy_core.api.problems import invalid
from strategy_core.domain.audit import UNSTORABLE
from strategy_core.domain.errors import RolloutError
from strategy_core.domain.parsing import each_name_once
from strategy_core.services import queries
from strategy_core.store.tables import ApiAnswer

_CURL = "application/x-www-form-urlencoded"  # what curl sends with -d
LARGEST = 5_000_000  # bytes of a body
DEEPEST = 20  # levels of nesting
LARGEST_NUMBER = 2**63 - 1
KEEP = timedelta(hours=24)  # answers under an idempotency key
VISIBLE = r"^[!-~]{1,255}$"  # what an idempotency key may be

Handler = Callable[[Request], Coroutine[Any, Any, Response]]

log = structlog.get_logger(__name__)


class GuardedRoute(APIRoute):
    """A route that needs a token. What it finds out is in `request.state`, for `dependencies.RequestContext`."""

    webhook = False

    def get_route_handler(self) -> Handler:
        handler = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            return await _handle_guarded(request, handler, webhook=self.webhook)

        return guarded


class WebhookRoute(GuardedRoute):
    """A route for a body that another program defines: it may contain any text, and idempotency keys are ignored."""

    webhook = True


async def _handle_guarded(request: Request, handler: Handler, *, webhook: bool) -> Response:
    backend, state = request.app.state.backend, request.state
    client = request.client.host if request.client else ""
    token = request.headers.get("authorization")
    state.principal = await run_in_threadpool(backend.authenticator.authenticate, token, client)
    structlog.contextvars.bind_contextvars(actor=state.principal.name)
    state.now, state.changed, state.reused_key = backend.clock(), [], None
    state.heavy, state.slot = False, None
    if request.method not in ("POST", "PUT", "PATCH"):
        return await handler(request)
    request = taken_as_json(bounded(request))
    body = await read_body(request, backend.body_timeout_s)
    try:
        await run_in_threadpool(check_body, request.headers.get("content-type", ""), body, any_text=webhook)
    except BadBody as error:
        return invalid(request, [(error.field, error.why)])
    identified = None if webhook else _identify(request, body)
    state.idempotency_key = identified.key if identified else None
    if identified is not None:
        return await _answer_once(request, identified, handler)
    return await _answer(request, handler)


async def read_body(request: Request, within_s: float) -> bytes:
    """Return the body. Raise HTTPException 408, which also ends the connection, if it does not arrive in time."""
    try:
        with fail_after(within_s):
            return await request.body()
    except TimeoutError:
        raise HTTPException(
            408, f"the body did not arrive within {within_s:g} s", headers={"Connection": "close"}
        ) from None


async def _answer(request: Request, handler: Handler) -> Response:
    """Return the handler's response, with the new generation as ETag if one strategy was changed."""
    try:
        response = await handler(request)
    finally:
        if request.state.slot is not None:
            bulkhead, strategy_name = request.state.slot
            bulkhead.release(strategy_name)
    if len(request.state.changed) == 1 and response.status_code < 300 and "ETag" not in response.headers:
        generation = await run_in_threadpool(_new_generation, request)
        if generation is not None:
            response.headers["ETag"] = f'"{generation}"'
    return response


def _new_generation(request: Request) -> int | None:
    """Return the generation that this request created. The change stands even if the generation cannot be read."""
    (strategy_name,) = request.state.changed
    try:
        return queries.generation_of(
            request.app.state.backend.engine,
            strategy_name=strategy_name,
            actor=request.state.principal.name,
            request_id=request.state.request_id,
        )
    except SQLAlchemyError as error:
        log.warning("api.generation_not_read", error=type(error).__name__)
        return None


class BadBody(Exception):
    """A body whose fields cannot be read. *field* is the position as far as it is known, else `body`."""

    def __init__(self, field: str, why: str) -> None:
        self.field = field
        self.why = why
        super().__init__(f"{field}: {why}")


def bounded(request: Request) -> Request:
    """Return the request, limited to LARGEST bytes of body: reading more raises HTTPException 413."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > LARGEST:
        raise _too_large()
    return Request(request.scope, _counting(request.receive))


def taken_as_json(request: Request) -> Request:
    """Return the request with the content type of JSON if it has none, or that of `curl -d`.

    A page of another site may send such a request without asking first, but no browser adds a bearer token to it, and
    no cookie counts here.
    """
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given not in ("", _CURL):
        return request
    kept = [(name, value) for name, value in request.scope["headers"] if name != b"content-type"]
    return Request({**request.scope, "headers": [*kept, (b"content-type", b"application/json")]}, request.receive)


def check_body(content_type: str, body: bytes, *, any_text: bool = False) -> None:
    """Check that *body* is JSON that can be read and stored.

    Args:
        any_text: accept characters that the database cannot store, because the reader replaces them.

    Raises:
        HTTPException: 415, the content type is not JSON.
        BadBody: with the field and the reason.
    """
    if not body:
        return
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise HTTPException(415, "a body must be sent as application/json")
    try:
        found = json.loads(
            body.decode("utf-8"), object_pairs_hook=each_name_once, parse_constant=_not_finite, parse_int=_bounded_int
        )
    except UnicodeDecodeError:
        raise BadBody("body", "is not UTF-8") from None
    except RecursionError:
        raise BadBody("body", f"is nested deeper than {DEEPEST} levels") from None
    except json.JSONDecodeError as error:
        raise BadBody("body", f"is not JSON: {error.msg} at character {error.pos}") from None
    except ValueError as error:
        raise BadBody("body", str(error)) from None
    _check_values(found, any_text)


def _check_values(found: Any, any_text: bool) -> None:
    if problem := _problem(found, any_text):
        raise BadBody("body", problem)
    waiting: list[tuple[tuple[str | int, ...], Any]] = [((), found)]  # containers only: there may be millions of values
    while waiting:
        path, value = waiting.pop()
        if len(path) > DEEPEST:
            raise BadBody(_dotted(path), f"is nested deeper than {DEEPEST} levels")
        if isinstance(value, dict):
            if wrong := next((name for name in value if not any_text and UNSTORABLE.search(name)), None):
                raise BadBody(_dotted(path), f"has a name with a character that cannot be stored: {wrong!a}")
            within: Iterable[tuple[str | int, Any]] = value.items()
        else:
            within = enumerate(value if isinstance(value, list) else ())
        for part, each in within:
            if isinstance(each, dict | list):
                waiting.append(((*path, part), each))
            elif problem := _problem(each, any_text):
                raise BadBody(_dotted((*path, part)), problem)


def _problem(value: Any, any_text: bool) -> str | None:
    match value:
        case str() if not any_text and UNSTORABLE.search(value):
            return "has a character that cannot be stored: NUL or an unpaired surrogate"
        case int() if abs(value) > LARGEST_NUMBER:
            return "is a number beyond 64 bits"
        case float() if not math.isfinite(value):
            return "is not a finite number"
    return None


def _dotted(path: tuple[str | int, ...]) -> str:
    return ".".join(str(part) for part in path) or "body"


def _bounded_int(text: str) -> int:
    return int(text) if len(text) < 40 else LARGEST_NUMBER + 1  # `_check_values` refuses it with its position


def _not_finite(text: str) -> float:
    return math.nan if text == "NaN" else math.inf


def _counting(receive: Receive) -> Receive:
    size = 0

    async def counted() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > LARGEST:
            raise _too_large()
        return message

    return counted


def _too_large() -> HTTPException:
    return HTTPException(413, f"a body has at most {LARGEST} bytes")


@dataclass(frozen=True, slots=True)
class IdempotentRequest:
    """A request with an idempotency key. *digest* covers method, path, query and body."""

    actor: str
    key: str
    digest: str


def idempotent_request(
    actor: str, key: str | None, method: str, path: str, query: bytes, body: bytes
) -> IdempotentRequest | None:
    """Return the identified request, if it has a key that is valid."""
    if key is None or re.fullmatch(VISIBLE, key) is None:
        return None
    digest = sha256(b"\n".join([method.encode(), path.encode(), query, body]))
    return IdempotentRequest(actor, key, digest.hexdigest())


def recall_answer(engine: Engine, identified: IdempotentRequest, now: datetime) -> ApiAnswer | None:
    """Return the stored answer under the key, of this request or of another one.

    If stored answers cannot be read, the request goes on: the audit trail still refuses to do it twice.
    """
    try:
        return queries.find_stored_answer(engine, identified.actor, identified.key, since=now - KEEP)
    except SQLAlchemyError as error:
        log.warning("api.answer_not_read", error=type(error).__name__)
        return None


def replay_answer(answer: ApiAnswer) -> Response:
    """Return the stored answer as a response."""
    headers = {**answer.headers, "Idempotency-Replayed": "true"}
    return Response(answer.body, answer.status, headers=headers, media_type="application/json")


def keep_answer(
    engine: Engine, identified: IdempotentRequest, response: Response, strategies: list[str], now: datetime
) -> None:
    """Store the answer. A failure is only logged, because the change itself is already done."""
    headers = {name: response.headers[name] for name in ("ETag", "Location") if name in response.headers}
    row = {
        "actor": identified.actor,
        "idempotency_key": identified.key,
        "digest": identified.digest,
        "strategies": strategies,
        "status": response.status_code,
        "headers": headers,
        "body": bytes(response.body).decode(),
        "answered_at": now,
    }
    try:
        queries.store_answer(engine, row, forget_before=now - KEEP)
    except Exception as error:  # noqa: BLE001  a completed rollback must not be answered with an error
        log.warning("api.answer_not_kept", error=type(error).__name__)


def _identify(request: Request, body: bytes) -> IdempotentRequest | None:
    if request.method != "POST":
        return None
    key = request.headers.get("idempotency-key")
    name = request.state.principal.name
    return idempotent_request(name, key, request.method, request.url.path, request.scope["query_string"], body)


async def _answer_once(request: Request, identified: IdempotentRequest, handler: Handler) -> Response:
    """Replay the first answer to this request, or answer it and store the answer if something was changed."""
    engine, state = request.app.state.backend.engine, request.state
    asked_at = datetime.now(UTC)  # real time: stored answers expire for clients, not for a replayed market
    first = await run_in_threadpool(recall_answer, engine, identified, asked_at)
    if first is not None and first.digest == identified.digest and not await run_in_threadpool(_undone, request, first):
        return _replay(request, first)
    if first is not None:  # `RequestContext.changes` refuses the request; a rollback goes ahead without the key
        state.reused_key, state.idempotency_key = identified.key, None
        return await _answer(request, handler)
    try:
        response = await _answer(request, handler)
    except RolloutError:
        first = await run_in_threadpool(recall_answer, engine, identified, asked_at)
        if first is None or first.digest != identified.digest:
            raise
        return _replay(request, first)  # the same request arrived twice at the same time
    if state.changed and response.status_code < 300:
        await run_in_threadpool(keep_answer, engine, identified, response, state.changed, asked_at)
    return response


def _undone(request: Request, first: ApiAnswer) -> bool:
    """Return whether the version of a stored rollback answer serves users again, so that the answer is outdated."""
    if not request.url.path.endswith("/strategy/rollback"):  # the rollback of one rollout ends that rollout for good
        return False
    answer = json.loads(first.body)
    try:
        routing = queries.read_serving(request.app.state.backend.engine).get(answer["strategy_name"])
    except SQLAlchemyError as error:
        log.warning("api.routing_not_read", error=type(error).__name__)
        return True
    return routing is not None and answer["version"] in (routing.active, routing.canary)


def _replay(request: Request, first: ApiAnswer) -> Response:
    for strategy_name in first.strategies:
        request.state.principal.check_change(strategy_name)
    return replay_answer(first)
