"""What a client is told when something is refused, as RFC 9457 has it; never an internal of this software."""

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
    RolloutError,
    SchemaOutdated,
    StrategyFailed,
    TimeOutOfRange,
    TooManyFailures,
    UnknownStrategy,
    Unsettled,
    Untrusted,
)

MEDIA_TYPE = "application/problem+json"
RETRY_S = 5  # after a 503

log = structlog.get_logger(__name__)

_STATUS: tuple[tuple[type[RolloutError], int], ...] = (  # the first that fits
    (InvalidToken, 401),
    (TooManyFailures, 429),
    (Denied, 403),
    (NotFound, 404),
    (SchemaOutdated, 503),
    (KeysUnavailable, 503),
    (Unsettled, 503),
    (EvidenceUnavailable, 503),
    (InvalidCandles, 503),  # the feed's, not the client's
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
    413: "Too large",
    415: "Not JSON",
    503: "Busy",
}
_FIELDS = {  # what `InvalidName` calls it -> the field
    "strategy name": "strategy_name",
    "user id": "user_id",
    "symbol": "symbols",
    "list of symbols": "symbols",
    "gate of this rollout": "gate",
    "new idempotency key": "Idempotency-Key",
}
_NOT_READY = ("42P01", "42703")  # PostgreSQL: no such table, no such column
_WORDS = re.compile(r"(?<=[a-z])(?=[A-Z])")
_FIELDS_OF_LINE = re.compile(r"([\w.\[\]-]+(?:, [\w.]+)*): (.*)", re.DOTALL)


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
    """Return the problem document; *facts* become extension members, *errors* are (field, problem)."""
    document = {
        **(facts or {}),
        "type": f"/problems/{kind}",
        "title": title,
        "status": status,
        "detail": detail,
        "instance": request.url.path,
    }
    if errors is not None:
        document["errors"] = [{"field": field, "problem": said} for field, said in errors]
    more = dict(headers or {})
    if status == 503:
        more.setdefault("Retry-After", str(RETRY_S))
    return ProblemAnswer(to_json(document, inf_nan_mode="null", fallback=str), status, headers=more)


def add_handlers(app: FastAPI) -> None:
    """Let *app* answer whatever is refused with a problem document."""
    app.add_exception_handler(RolloutError, _refused)
    app.add_exception_handler(RequestValidationError, _not_valid)
    app.add_exception_handler(HTTPException, _by_protocol)
    app.add_exception_handler(DBAPIError, _database)
    app.add_exception_handler(NoConnection, _database)


def unexpected(request: Request) -> Response:
    """Return what is told of a fault of this software: nothing but that there was one."""
    detail = "a fault of this software; its log names the request by X-Request-Id"
    return problem(request, kind="internal-error", title="Internal error", status=500, detail=detail)


def status_of(error: RolloutError, *, on_condition: bool = False) -> int:
    """Return the status of *error*; a race that was lost *on_condition* of If-Match is 412."""
    if isinstance(error, LostRace) and on_condition:
        return 412
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


async def _refused(request: Request, error: Exception) -> Response:
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
    name = type(error).__name__
    secret = isinstance(error, SchemaOutdated)  # its facts are where the database is
    words = _WORDS.sub(" ", name)
    return problem(
        request,
        kind=words.lower().replace(" ", "-"),
        title=words.capitalize(),
        status=status,
        detail="the database is not of this release's schema" if secret else str(error),
        facts={} if secret else vars(error),
        errors=list(_fields(error)) if status == 422 else None,
        headers=headers,
    )


def within_reach(error: UnknownStrategy, reached: Collection[str] | None) -> UnknownStrategy:
    """Return *error* without the names of strategies that the token does not reach; None: it reaches all."""
    if reached is None:
        return error
    return UnknownStrategy(error.strategy_name, [name for name in error.known if name in reached])


async def _not_valid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    errors = [(_named(each["loc"]), str(each["msg"]).removeprefix("Value error, ")) for each in error.errors()]
    return invalid(request, errors)


def invalid(request: Request, errors: list[tuple[str, str]]) -> Response:
    """Return the problem of a request whose fields are not what they must be."""
    field, said = errors[0]
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return problem(
        request,
        kind="invalid-request",
        title="Invalid request",
        status=422,
        detail=f"{field}: {said}{more}",
        errors=errors[:100],
    )


async def _by_protocol(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(_allowed(request))
        if request.method == "OPTIONS":
            return Response(status_code=204, headers=headers)
    title = _TITLES.get(error.status_code, "Refused")
    kind = title.lower().replace(" ", "-")
    detail = title.lower() if error.detail in ("Not Found", "Method Not Allowed") else error.detail
    return problem(request, kind=kind, title=title, status=error.status_code, detail=detail, headers=headers)


def _allowed(request: Request) -> list[str]:
    """Return the methods of this path, which may stand on several routes."""
    paths = request.app.openapi()["paths"]
    known: dict[str, Any] = next((paths[path] for path in paths if compile_path(path)[0].match(request.url.path)), {})
    methods = {method.upper() for method in known} or {"GET"}  # what is not described: the description itself
    return sorted(methods | {"OPTIONS"} | ({"HEAD"} if "GET" in methods else set()))


async def _database(request: Request, error: Exception) -> Response:
    """Answer 503 while the database is away or not ready; anything else that it refuses is a fault."""
    away = isinstance(error, OperationalError | InterfaceError | NoConnection)
    state = getattr(getattr(error, "orig", None), "sqlstate", None)
    if not away and state not in _NOT_READY and not getattr(error, "connection_invalidated", False):
        raise error
    log.error("api.database", error=" ".join(str(getattr(error, "orig", error)).split()))
    return problem(
        request,
        kind="database-unavailable",
        title="Database unavailable",
        status=503,
        detail="the database cannot be had now; nothing was changed, unless it broke off while it answered",
    )


def _fields(error: RolloutError) -> Iterable[tuple[str, str]]:
    match error:
        case InvalidPercent():
            yield "rollout_percent", str(error)
        case InvalidConfig() | InvalidPlan():
            prefix = "config" if isinstance(error, InvalidConfig) else "plan"
            for line in error.problems:
                yield from _prefixed(prefix, line)
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
    """Return the fields that a line of an error names, `a, b: why`, with what is wrong there."""
    found = _FIELDS_OF_LINE.fullmatch(line)
    if found is None or found[1] == prefix:
        return [(prefix, found[2] if found else line)]
    return [(f"{prefix}.{field}", found[2]) for field in found[1].split(", ")]


def _named(location: tuple[int | str, ...]) -> str:
    where, *path = location
    return ".".join(str(part) for part in path) or str(where)
