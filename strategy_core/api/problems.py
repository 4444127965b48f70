"""Errors as problem documents (RFC 9457), without internal details."""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic_core import to_json
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as NoConnection
from starlette.exceptions import HTTPException
from starlette.routing import compile_path

from strategy_core.domain.errors import (
    DatabaseLocked,
    Denied,
    EvidenceUnavailable,
    Invalid,
    InvalidCandles,
    InvalidConfig,
    InvalidEntryPoint,
    InvalidName,
    InvalidPercent,
    InvalidPeriod,
    InvalidPlan,
    InvalidReport,
    InvalidSetting,
    InvalidTimeframe,
    InvalidToken,
    IsolationBreach,
    KeysUnavailable,
    LostRace,
    MissingExtra,
    NaiveTime,
    NotFound,
    Refused,
    RevocationsUnavailable,
    RolloutError,
    SchemaOutdated,
    StrategyFailed,
    TimeOutOfRange,
    TooManyFailures,
    UnknownStrategy,
    Unsettled,
    Untrusted,
)
from strategy_core.services.database import as_locked

MEDIA_TYPE = "application/problem+json"
RETRY_S = 5  # after a 503

log = structlog.get_logger(__name__)

_STATUS: tuple[tuple[type[RolloutError], int], ...] = (  # the first match counts
    (InvalidToken, 401),
    (TooManyFailures, 429),
    (Denied, 403),
    (NotFound, 404),
    (SchemaOutdated, 503),
    (KeysUnavailable, 503),
    (RevocationsUnavailable, 503),
    (DatabaseLocked, 503),
    (Unsettled, 503),
    (EvidenceUnavailable, 503),
    (InvalidCandles, 503),  # the feed's fault, not the client's
    (MissingExtra, 503),
    (StrategyFailed, 422),
    (IsolationBreach, 422),
    (Untrusted, 409),
    (Refused, 409),
    (Invalid, 422),
)
_TITLES = {
    400: "Bad request",
    404: "No such path",
    405: "Method not allowed",
    408: "Too slow",
    413: "Too large",
    415: "Not JSON",
    503: "Busy",
}
_FIELDS = {  # `InvalidName.what` -> the field
    "strategy name": "strategy_name",
    "user id": "user_id",
    "symbol": "symbols",
    "list of symbols": "symbols",
    "gate of this rollout": "gate",
    "new idempotency key": "Idempotency-Key",
}
_HIDDEN: Mapping[type[RolloutError], str] = {  # their facts name the database's address, or command lines of processes
    SchemaOutdated: "the database schema is not the one of this release",
    DatabaseLocked: "another process locks the database; the server's log names it; nothing was changed",
}
_NOT_READY = ("42P01", "42703")  # PostgreSQL: no such table, no such column
_WORD_BREAK = re.compile(r"(?<=[a-z])(?=[A-Z])")
_FIELDS_AND_PROBLEM = re.compile(r"([\w.\[\]-]+(?:, [\w.]+)*): (.*)", re.DOTALL)


class ProblemAnswer(Response):
    media_type = MEDIA_TYPE


def problem(
    request: Request,
    *,
    kind: str,
    title: str,
    status: int,
    detail: str,
    facts: Mapping[str, Any] | None = None,
    errors: Iterable[tuple[str, str]] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return the problem document as a response.

    Args:
        kind: last part of the `type`.
        facts: extension members.
        errors: pairs of field and problem.
    """
    document = {
        **(facts or {}),
        "type": f"/problems/{kind}",
        "title": title,
        "status": status,
        "detail": detail,
        "instance": request.url.path,
    }
    if errors is not None:
        document["errors"] = [{"field": field, "problem": reason} for field, reason in errors]
    all_headers = dict(headers or {})
    if status == 503:
        all_headers.setdefault("Retry-After", str(RETRY_S))
    return ProblemAnswer(to_json(document, inf_nan_mode="null", fallback=str), status, headers=all_headers)


def add_handlers(app: FastAPI) -> None:
    """Let *app* answer errors with problem documents."""
    app.add_exception_handler(RolloutError, _handle_refusal)
    app.add_exception_handler(RequestValidationError, _handle_validation)
    app.add_exception_handler(HTTPException, _handle_http)
    app.add_exception_handler(DBAPIError, _handle_database)
    app.add_exception_handler(NoConnection, _handle_database)


def unexpected(request: Request) -> Response:
    """Return the answer to an unexpected error. Details are only in the log."""
    detail = "an unexpected error; search the server's log for this X-Request-Id"
    return problem(request, kind="internal-error", title="Internal error", status=500, detail=detail)


async def answer_to(request: Request, error: Exception) -> Response:
    """Return the problem document for *error*. Errors without one are raised again."""
    match error:
        case RolloutError():
            return await _handle_refusal(request, error)
        case RequestValidationError():
            return await _handle_validation(request, error)
        case HTTPException():
            return await _handle_http(request, error)
        case DBAPIError() | NoConnection():
            return await _handle_database(request, error)
    raise error


def status_of(error: RolloutError, *, on_condition: bool = False) -> int:
    """Return the HTTP status of *error*. A lost race is 412 if the request had an If-Match (*on_condition*)."""
    if isinstance(error, LostRace) and on_condition:
        return 412
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


async def _handle_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, RolloutError)
    if isinstance(error, UnknownStrategy):
        error = within_reach(error, request.state.principal.strategies)
    status = status_of(error, on_condition="if-match" in request.headers)
    headers = {}
    if status == 401:
        given = ', error="invalid_token"' if "authorization" in request.headers else ""
        headers["WWW-Authenticate"] = f'Bearer realm="strategy-rollout"{given}'
    if isinstance(error, TooManyFailures):
        headers["Retry-After"] = str(error.retry_after_s)
    hidden = _HIDDEN.get(type(error))
    if hidden is not None:
        log.error("api.database", error=str(error))
    words = _WORD_BREAK.sub(" ", type(error).__name__)
    return problem(
        request,
        kind=words.lower().replace(" ", "-"),
        title=words.capitalize(),
        status=status,
        detail=str(error) if hidden is None else hidden,
        facts=vars(error) if hidden is None else {},
        errors=list(_field_problems(error)) if status == 422 else None,
        headers=headers,
    )


def within_reach(error: UnknownStrategy, reached: Collection[str] | None) -> UnknownStrategy:
    """Return *error* without the names of strategies outside *reached*, if the token is limited to some."""
    if reached is None:
        return error
    return UnknownStrategy(error.strategy_name, [name for name in error.known if name in reached])


async def _handle_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    errors = [(_dotted(each["loc"]), str(each["msg"]).removeprefix("Value error, ")) for each in error.errors()]
    return invalid(request, errors)


def invalid(request: Request, errors: list[tuple[str, str]]) -> Response:
    """Return the answer to a request with fields that are not valid: pairs of field and problem."""
    field, reason = errors[0]
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return problem(
        request,
        kind="invalid-request",
        title="Invalid request",
        status=422,
        detail=f"{field}: {reason}{more}",
        errors=errors[:100],
    )


async def _handle_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(_allowed_methods(request))
        if request.method == "OPTIONS":
            return Response(status_code=204, headers=headers)
    title = _TITLES.get(error.status_code, "Refused")
    kind = title.lower().replace(" ", "-")
    detail = title.lower() if error.detail in ("Not Found", "Method Not Allowed") else error.detail
    return problem(request, kind=kind, title=title, status=error.status_code, detail=detail, headers=headers)


def _allowed_methods(request: Request) -> list[str]:
    """Return the methods of this path over all routes."""
    paths = request.app.openapi()["paths"]
    known: dict[str, Any] = next((paths[path] for path in paths if compile_path(path)[0].match(request.url.path)), {})
    methods = {method.upper() for method in known} or {"GET"}  # paths outside the document, such as /openapi.json
    return sorted(methods | {"OPTIONS"} | ({"HEAD"} if "GET" in methods else set()))


async def _handle_database(request: Request, error: Exception) -> Response:
    """Answer 503 while the database is not available or not migrated. Other database errors are raised."""
    away = isinstance(error, OperationalError | InterfaceError | NoConnection)
    state = getattr(getattr(error, "orig", None), "sqlstate", None)
    if not away and state not in _NOT_READY and not getattr(error, "connection_invalidated", False):
        raise error
    if (locked := as_locked(error)) is not None:
        return await _handle_refusal(request, locked)
    log.error("api.database", error=" ".join(str(getattr(error, "orig", error)).split()))
    return problem(
        request,
        kind="database-unavailable",
        title="Database unavailable",
        status=503,
        detail="the database is not available; nothing was changed, unless the connection broke during the commit",
    )


def _field_problems(error: RolloutError) -> Iterable[tuple[str, str]]:
    match error:
        case InvalidPercent():
            yield "rollout_percent", str(error)
        case InvalidConfig() | InvalidPlan():
            prefix = "config" if isinstance(error, InvalidConfig) else "plan"
            for line in error.problems:
                yield from _prefixed(prefix, line)
        case InvalidReport(source="snapshot") if error.problem.startswith("taken_at: "):
            yield "taken_at", error.problem.removeprefix("taken_at: ")
        case InvalidReport():
            row = f"trades.{error.row - 1}" if error.row is not None else "trades"
            yield from _prefixed(row, error.problem)
        case InvalidTimeframe():
            yield "timeframe", str(error)
        case InvalidEntryPoint() | StrategyFailed() | IsolationBreach():
            yield "entry_point", str(error)
        case InvalidName():
            yield _FIELDS.get(error.what, error.what), str(error)
        case InvalidSetting():
            yield error.setting, str(error)
        case NaiveTime() | TimeOutOfRange():
            yield error.what, str(error)
        case InvalidPeriod():
            yield "start", str(error)
            yield "end", str(error)
        case _:
            yield "", str(error)


def _prefixed(prefix: str, line: str) -> list[tuple[str, str]]:
    """Return the fields that a line such as `a, b: why` names, each with its problem."""
    found = _FIELDS_AND_PROBLEM.fullmatch(line)
    if found is None or found[1] == prefix:
        return [(prefix, found[2] if found else line)]
    return [(f"{prefix}.{field}", found[2]) for field in found[1].split(", ")]


def _dotted(location: tuple[int | str, ...]) -> str:
    where, *path = location
    return ".".join(str(part) for part in path) or str(where)
