"""The server: the application of the environment's settings, in one process or several; it ends in an orderly way."""

import os

import structlog
import uvicorn
from fastapi import FastAPI
from sqlalchemy.exc import DBAPIError
from uvicorn.supervisors import Multiprocess

from strategy_core.api.app import create_app
from strategy_core.api.auth import Authenticator, Failures
from strategy_core.api.settings import ApiSettings, read_api_settings
from strategy_core.observe.logs import configure_logs
from strategy_core.settings import read_settings
from strategy_core.store.engine import check_schema, failure

_APPLICATION = "strategy_core.api.server:application"
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
