"""The application: its routes, its OpenAPI document and the server that runs it."""

import multiprocessing
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from threading import Thread
from time import sleep
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

from strategy_core.api.auth import Authenticator, Failures, Revocations
from strategy_core.api.console.site import add_console
from strategy_core.api.dependencies import BODY_TIMEOUT_S, Backend
from strategy_core.api.middleware import AccessLog
from strategy_core.api.problems import MEDIA_TYPE, add_handlers
from strategy_core.api.routes import (
    PREFIX,
    alerts,
    audit,
    canary,
    evidence,
    exclusions,
    health,
    owner_reports,
    positions,
    proposals,
    races,
    releases,
    reports,
    rollouts,
    routing,
    signals,
    toggles,
    versions,
)
from strategy_core.api.schemas import Problem
from strategy_core.api.settings import ApiSettings, read_api_settings
from strategy_core.observe import configure_logs
from strategy_core.services.database import check_schema, failure
from strategy_core.services.tokens import is_revoked
from strategy_core.settings import DatabaseClock, Settings, read_settings

THREADS = 200  # most of them wait for a slot, so a rollback still finds a free thread
_APPLICATION = "strategy_core.api.app:application"
_GRACE_S = 30  # for requests in progress when the server stops
_LAST_S = 10  # for the rest of a stop

_ABOUT = """Replace a copied trading strategy with a better version without hurting the users who copy it.

**Request ids.** Every answer has an `X-Request-Id`. You may send your own. It is recorded in the audit trail.

**Conditional changes.** Answers about one strategy have its generation as `ETag`. Send it as `If-Match` with a change,
and the change is refused with 412 if the strategy was changed in the meantime.

**Safe retries.** Send a POST with an `Idempotency-Key`, and you may repeat it: you get the first answer again, with
`Idempotency-Replayed: true`, and nothing is done twice. A refused request changes nothing and is not remembered, so
the same key tries again.

**Rollbacks** are never refused because of an outdated `ETag` or a key that was used for another request."""

_REFUSALS = {
    401: "The token is missing or not valid.",
    403: "The token does not allow this.",
    404: "The named object does not exist.",
    408: "The body did not arrive in time.",
    409: "Not allowed in the current state, or already done.",
    412: "The strategy has another generation than `If-Match`.",
    413: "The body is too large.",
    415: "The body is not sent as application/json.",
    422: "The input is not valid. `errors` lists the fields.",
    429: "This client sent too many tokens that are not valid.",
    503: "The database, the feed or the key server is not available, or the API is busy.",
}
_NO_TOKEN = ("/healthz",)
_READS_409 = {"/positions/exits"}  # its `since` may be of a database that was restored since
_NEVER_404 = ("/healthz", "/metrics", "/routing")

log = structlog.get_logger(__name__)


def create_app(
    engine: Engine,
    settings: Settings,
    authenticator: Authenticator,
    *,
    clock: Callable[[], datetime] | None = None,
    body_timeout_s: float = BODY_TIMEOUT_S,
    with_docs: bool = False,
) -> FastAPI:
    """Return the application for a database, settings and an authenticator.

    Args:
        clock: returns the market's time. Default: the clock of the database, or else of the settings.
        body_timeout_s: how long the body of a request may take to arrive.
        with_docs: serve /docs, a page to try the API. For development only.
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
        lifespan=_lifespan,
    )
    stored = DatabaseClock(engine, settings)
    app.state.backend = Backend(engine, stored, authenticator, clock or stored.now, body_timeout_s=body_timeout_s)
    app.state.signal_watch = signals.SignalWatch()
    parts = (
        *(
            versions,
            canary,
            rollouts,
            races,
            releases,
            exclusions,
            reports,
            owner_reports,
            evidence,
            positions,
            routing,
        ),
        *(toggles, signals, audit, alerts, proposals, health),
    )
    for part in parts:
        app.include_router(part.router)
    add_console(app)
    add_handlers(app)
    describe(app)
    app.add_middleware(AccessLog)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    to_thread.current_default_thread_limiter().total_tokens = THREADS
    with app.state.backend.database_clock.kept_fresh():
        yield


def describe(app: FastAPI) -> None:
    """Let *app* return the complete OpenAPI document. It is built once, on the first request."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _openapi(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _openapi(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(title=app.title, version=app.version, description=_ABOUT, routes=app.routes)
    parts = document.setdefault("components", {})
    schemas = parts.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(problem.pop("$defs"))
    schemas["Problem"] = problem
    parts["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            _add_refusals(operation, path.removeprefix(PREFIX))
    return document


def _add_refusals(operation: dict[str, Any], path: str) -> None:
    statuses = {503}
    if path not in _NO_TOKEN:
        operation["security"] = [{"bearer": []}]
        statuses |= {401, 403, 429}
    parameters = operation.get("parameters", [])
    if parameters or "requestBody" in operation:
        statuses.add(422)
    if path not in _NEVER_404:
        statuses.add(404)
    if path in _READS_409:
        statuses.add(409)
    if "requestBody" in operation:
        statuses |= {408, 409, 413, 415}
    if any(each["name"] == "If-Match" for each in parameters):
        statuses.add(412)
    for status in sorted(statuses):
        operation["responses"][str(status)] = {
            "description": _REFUSALS[status],
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }


def application() -> FastAPI:
    """Return the application for the settings in the environment. Each worker process calls this."""
    configure_logs()
    _end_with_parent()
    settings, api = read_settings(), read_api_settings()
    engine = settings.open_engine()
    revocations = Revocations(partial(is_revoked, engine))
    authenticator = Authenticator(api, api.open_keys(), Failures(), revocations=revocations)
    app = create_app(
        engine,
        settings,
        authenticator,
        body_timeout_s=api.body_timeout_s,
        with_docs=api.development,
    )
    app.state.backend.database_clock.refresh()  # before the first request
    log.info("api.ready", pid=os.getpid())
    return app


def _end_with_parent() -> None:
    """End this server process if the process that started it is killed. Else it would keep the port, unsupervised."""
    parent = multiprocessing.parent_process()
    if parent is None:  # the only process
        return

    def wait() -> None:
        parent.join()
        log.warning("api.parent_ended", parent=parent.pid)
        os.kill(os.getpid(), signal.SIGTERM)  # requests in progress are finished, no new ones are accepted
        sleep(_GRACE_S + _LAST_S)
        os._exit(1)

    Thread(target=wait, name="parent", daemon=True).start()


def serve(api: ApiSettings, *, workers: int = 1) -> None:
    """Serve until a signal stops the server.

    The server also starts without a database, and answers 503 until the database is available.

    Raises:
        SchemaOutdated: the database has the schema of another release.
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
        proxy_headers=bool(api.trusted_proxies),  # uvicorn would trust any program on this machine
        forwarded_allow_ips=list(api.trusted_proxies),
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
