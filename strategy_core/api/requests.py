"""What a request's body may be before anybody reads a field of it: small, JSON, flat, and storable as it stands."""

import json
import math
import re
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import structlog
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

LARGEST = 5_000_000  # bytes
DEEPEST = 20  # levels
LARGEST_NUMBER = 2**63 - 1


class BadBody(Exception):
    """A body that no field can be read from; *field* is where, as far as that can be said."""

    def __init__(self, field: str, why: str) -> None:
        self.field = field
        self.why = why
        super().__init__(f"{field}: {why}")


def bounded(request: Request) -> Request:
    """Return the request, whose body cannot be read any more once it has become too large."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > LARGEST:
        raise _too_large()
    return Request(request.scope, _counting(request.receive))


def check_body(content_type: str, body: bytes, *, any_text: bool = False) -> None:
    """Raise HTTPException 415, or BadBody, unless *body* is JSON that can be read and stored.

    Args:
        any_text: pass over characters that no text can hold, since whoever reads the body replaces them.
    """
    if not body:
        return
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise HTTPException(415, "a body must be sent as application/json")
    try:
        found = json.loads(
            body.decode("utf-8"), object_pairs_hook=each_name_once, parse_constant=_no_number, parse_int=_whole
        )
    except UnicodeDecodeError:
        raise BadBody("body", "is not UTF-8") from None
    except RecursionError:
        raise BadBody("body", f"is nested deeper than {DEEPEST} levels") from None
    except json.JSONDecodeError as error:
        raise BadBody("body", f"is not JSON: {error.msg} at character {error.pos}") from None
    except ValueError as error:
        raise BadBody("body", str(error)) from None
    _check(found, any_text)


def _check(found: Any, any_text: bool) -> None:
    if problem := _problem(found, any_text):
        raise BadBody("body", problem)
    waiting: list[tuple[tuple[str | int, ...], Any]] = [((), found)]  # containers: values are millions
    while waiting:
        path, value = waiting.pop()
        if len(path) > DEEPEST:
            raise BadBody(_named(path), f"is nested deeper than {DEEPEST} levels")
        if isinstance(value, dict):
            if wrong := next((name for name in value if not any_text and UNSTORABLE.search(name)), None):
                raise BadBody(_named(path), f"has a name that no text can hold: {wrong!a}")
            within: Iterable[tuple[str | int, Any]] = value.items()
        else:
            within = enumerate(value if isinstance(value, list) else ())
        for part, each in within:
            if isinstance(each, dict | list):
                waiting.append(((*path, part), each))
            elif problem := _problem(each, any_text):
                raise BadBody(_named((*path, part)), problem)


def _problem(value: Any, any_text: bool) -> str | None:
    match value:
        case str() if not any_text and UNSTORABLE.search(value):
            return "holds a character that no text can hold: NUL, or half of a pair"
        case int() if abs(value) > LARGEST_NUMBER:
            return "is a number beyond 64 bits"
        case float() if not math.isfinite(value):
            return "is not a finite number"
    return None


def _named(path: tuple[str | int, ...]) -> str:
    return ".".join(str(part) for part in path) or "body"


def _whole(text: str) -> int:
    return int(text) if len(text) < 40 else LARGEST_NUMBER + 1  # refused where it stands, by `_check`


def _no_number(text: str) -> float:
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


KEEP = timedelta(hours=24)
VISIBLE = r"^[!-~]{1,255}$"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class IdempotentRequest:
    """A request that carries a key; *digest* tells it from another one under the same key."""

    actor: str
    key: str
    digest: str


def idempotent_request(
    actor: str, key: str | None, method: str, path: str, query: bytes, body: bytes
) -> IdempotentRequest | None:
    """Return the wish; None without a key, or with one that validation will refuse."""
    if key is None or re.fullmatch(VISIBLE, key) is None:
        return None
    digest = sha256(b"\n".join([method.encode(), path.encode(), query, body]))
    return IdempotentRequest(actor, key, digest.hexdigest())


def recall_answer(engine: Engine, wish: IdempotentRequest, now: datetime) -> ApiAnswer | None:
    """Return what stands under the wish's key, of this wish or of another one.

    A store of answers that cannot be read keeps nobody from his wish: the audit trail still refuses a second one.
    """
    try:
        return queries.find_stored_answer(engine, wish.actor, wish.key, since=now - KEEP)
    except SQLAlchemyError as error:
        log.warning("api.answer_not_read", error=type(error).__name__)
        return None


def replay_answer(answer: ApiAnswer) -> Response:
    headers = {**answer.headers, "Idempotency-Replayed": "true"}
    return Response(answer.body, answer.status, headers=headers, media_type="application/json")


def keep_answer(
    engine: Engine, wish: IdempotentRequest, response: Response, strategies: list[str], now: datetime
) -> None:
    """Keep the answer; when that fails, what was wished is done all the same, and the answer goes out."""
    headers = {name: response.headers[name] for name in ("ETag", "Location") if name in response.headers}
    row = {
        "actor": wish.actor,
        "idempotency_key": wish.key,
        "digest": wish.digest,
        "strategies": strategies,
        "status": response.status_code,
        "headers": headers,
        "body": bytes(response.body).decode(),
        "answered_at": now,
    }
    try:
        queries.store_answer(engine, row, forget_before=now - KEEP)
    except Exception as error:  # noqa: BLE001  a rollback that is done must not be answered with a failure
        log.warning("api.answer_not_kept", error=type(error).__name__)


Answer = Callable[[Request], Coroutine[Any, Any, Response]]


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


def _wish(request: Request, body: bytes) -> IdempotentRequest | None:
    if request.method != "POST":
        return None
    key = request.headers.get("idempotency-key")
    name = request.state.principal.name
    return idempotent_request(name, key, request.method, request.url.path, request.scope["query_string"], body)


async def _once(request: Request, wish: IdempotentRequest, answer: Answer) -> Response:
    """Give the first answer again, or answer and keep that, unless nothing was changed."""
    engine, state = request.app.state.backend.engine, request.state
    asked_at = datetime.now(UTC)  # answers age in the clients' world, not in a market that is replayed
    first = await run_in_threadpool(recall_answer, engine, wish, asked_at)
    if first is not None and first.digest == wish.digest and not await run_in_threadpool(_undone, request, first):
        return _replay(request, first)
    if first is not None:  # `Ask.changes` refuses it; a rollback goes ahead without the key
        state.reused_key, state.idempotency_key = wish.key, None
        return await _answered(request, answer)
    try:
        response = await _answered(request, answer)
    except RolloutError:
        first = await run_in_threadpool(recall_answer, engine, wish, asked_at)
        if first is None or first.digest != wish.digest:
            raise
        return _replay(request, first)  # the same wish came twice at once, and the other was first
    if state.changed and response.status_code < 300:
        await run_in_threadpool(keep_answer, engine, wish, response, state.changed, asked_at)
    return response


def _undone(request: Request, first: ApiAnswer) -> bool:
    """Return whether the version that a rollback took users off serves some again: then its answer is true no more."""
    if not request.url.path.endswith("/strategy/rollback"):  # that of a rollout means this one alone, which has ended
        return False
    told = json.loads(first.body)
    try:
        routing = queries.read_routing(request.app.state.backend.engine).get(told["strategy_name"])
    except SQLAlchemyError as error:
        log.warning("api.routing_not_read", error=type(error).__name__)
        return True
    return routing is not None and told["version"] in (routing.active, routing.canary)


def _replay(request: Request, first: ApiAnswer) -> Response:
    for strategy_name in first.strategies:
        request.state.principal.check_change(strategy_name)
    return replay_answer(first)


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
        return queries.generation_of(
            request.app.state.backend.engine,
            strategy_name=strategy_name,
            actor=request.state.principal.name,
            request_id=request.state.request_id,
        )
    except SQLAlchemyError as error:
        log.warning("api.generation_not_read", error=type(error).__name__)
        return None
