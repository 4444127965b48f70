"""The application: routes, refusals, and what stands behind them; what the endpoints do is theirs to say."""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import structlog
import uvicorn
from anyio import to_thread
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi_offline import FastAPIOffline
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from uvicorn.supervisors import Multiprocess

from strategy_core.api.auth import Authenticator, Failures
from strategy_core.api.dependencies import Backend
from strategy_core.api.middleware import AccessLog
from strategy_core.api.problems import MEDIA_TYPE, add_handlers
from strategy_core.api.routes import (
    PREFIX,
    alerts,
    audit,
    canary,
    evidence,
    health,
    reports,
    rollouts,
    routing,
    versions,
)
from strategy_core.api.schemas import Problem
from strategy_core.api.settings import ApiSettings, read_api_settings
from strategy_core.observe import configure_logs
from strategy_core.services.database import check_schema, failure
from strategy_core.settings import Settings, read_settings

_ABOUT = """Replace a copied trading strategy by a better version of itself without hurting the users who copy it.

Every answer carries `X-Request-Id`, which may be given and stands in the audit trail. Answers about one strategy carry
its generation as `ETag`; a change with `If-Match` is refused with 412 once the strategy is of another one. A POST with
an `Idempotency-Key` may be sent again: it is answered again with `Idempotency-Replayed: true`, and is not done again.
A refusal changed nothing, and is not kept: under the same key it is tried anew. A rollback is never refused for being
late, nor for a key that came with another request before."""

_REFUSALS = {
    401: "No valid token.",
    403: "The token may not do this.",
    404: "What was named does not exist.",
    409: "It exists, but this is not allowed now; or it was done already.",
    412: "The strategy is of another generation than `If-Match` says.",
    413: "The body is too large.",
    415: "The body is not sent as application/json.",
    422: "The input is wrong; `errors` names the fields.",
    429: "Too many tokens of this client were not accepted.",
    503: "The database, or the feed, cannot be had now.",
}
_NO_TOKEN = ("/healthz",)
_NEVER_404 = ("/healthz", "/metrics", "/routing")


def describe(app: FastAPI) -> None:
    """Let *app* describe itself completely; the description is made once."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _completed(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _completed(app: FastAPI) -> dict[str, Any]:
    found = get_openapi(title=app.title, version=app.version, description=_ABOUT, routes=app.routes)
    parts = found.setdefault("components", {})
    schemas = parts.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(problem.pop("$defs"))
    schemas["Problem"] = problem
    parts["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}}
    for path, operations in found["paths"].items():
        short = path.removeprefix(PREFIX)
        for operation in operations.values():
            _complete(operation, short)
    return found


def _complete(operation: dict[str, Any], path: str) -> None:
    statuses = {503}
    if path not in _NO_TOKEN:
        operation["security"] = [{"bearer": []}]
        statuses |= {401, 403, 429}
    parameters = operation.get("parameters", [])
    if parameters or "requestBody" in operation:
        statuses.add(422)
    if path not in _NEVER_404:
        statuses.add(404)
    if "requestBody" in operation:
        statuses |= {409, 413, 415}
    if any(each["name"] == "If-Match" for each in parameters):
        statuses.add(412)
    answers = operation["responses"]
    for status in sorted(statuses):
        answers[str(status)] = {
            "description": _REFUSALS[status],
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }


THREADS = 200  # most wait, without a connection, for their turn; a rollback must find one that does not


def create_app(
    engine: Engine,
    settings: Settings,
    authenticator: Authenticator,
    *,
    clock: Callable[[], datetime] | None = None,
    with_docs: bool = False,
) -> FastAPI:
    """Return the application on a database, a feed and whoever tells tokens apart.

    Args:
        clock: tells the market's time; the settings', unless given.
        with_docs: serve /docs, a page to try the API from: for development alone.
    """
    make = FastAPIOffline if with_docs else FastAPI
    app = make(
        title="Strategy rollout",
        version="1.0.0",
        openapi_url="/openapi.json",
        docs_url="/docs" if with_docs else None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
        lifespan=_started,
    )
    app.state.backend = Backend(engine, settings, authenticator, clock or settings.now)
    for part in (versions, canary, rollouts, reports, evidence, routing, audit, alerts, health):
        app.include_router(part.router)
    add_handlers(app)
    describe(app)
    app.add_middleware(AccessLog)
    return app


@asynccontextmanager
async def _started(_: FastAPI) -> AsyncIterator[None]:
    to_thread.current_default_thread_limiter().total_tokens = THREADS
    yield


_APPLICATION = "strategy_core.api.app:application"
_GRACE_S = 30  # for requests that are being answered when the server is told to end

log = structlog.get_logger(__name__)


def application() -> FastAPI:
    """Return the application of this environment; each process makes its own."""
    configure_logs()
    settings, api = read_settings(), read_api_settings()
    authenticator = Authenticator(api, api.open_keys(), Failures())
    app = create_app(settings.open_engine(), settings, authenticator, with_docs=api.development)
    log.info("api.ready", pid=os.getpid())
    return app


def serve(api: ApiSettings, *, workers: int = 1) -> None:
    """Serve until a signal ends it.

    A database that is away does not keep it from starting: it answers 503 until that is back.

    Raises:
        SchemaOutdated: the database is of another release, so that nothing could be answered.
    """
    configure_logs()
    engine = read_settings().open_engine()
    try:
        check_schema(engine)
    except DBAPIError as error:
        log.warning("api.database", error=failure(error))
    finally:
        engine.dispose()
    config = uvicorn.Config(
        _APPLICATION,
        factory=True,
        host=api.host,
        port=api.port,
        workers=workers,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACE_S,
    )
    socket = config.bind_socket()
    host, port = socket.getsockname()[:2]
    log.info("api.serving", url=f"http://{f'[{host}]' if ':' in host else host}:{port}", workers=workers)
    try:
        if workers > 1:
            Multiprocess(config, sockets=[socket]).run()
        else:
            uvicorn.Server(config).run(sockets=[socket])
    finally:
        socket.close()
