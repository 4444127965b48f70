"""The application: routes, refusals, and what stands behind them; what the endpoints do is theirs to say."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime

from anyio import to_thread
from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from sqlalchemy import Engine

from strategy_core.api.access import Access
from strategy_core.api.auth import Authenticator
from strategy_core.api.deps import Backend
from strategy_core.api.openapi import describe
from strategy_core.api.problems import add_handlers
from strategy_core.api.routes import alerts, audit, canary, evidence, health, reports, rollouts, routing, versions
from strategy_core.settings import Settings

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
    app.add_middleware(Access)
    return app


@asynccontextmanager
async def _started(_: FastAPI) -> AsyncIterator[None]:
    to_thread.current_default_thread_limiter().total_tokens = THREADS
    yield
