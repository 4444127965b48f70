"""HTTP server for Prometheus scrapes, without a token, in a separate process.

Scrapes run one after another, so that a scraper cannot take the database away from a tick.
"""

import signal
import socket
import threading
from collections.abc import Callable
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from strategy_core.observe.metrics import PLAIN_TEXT, exposition
from strategy_core.store.engine import failure

PATH = "/metrics"
_PATIENCE_S = 10.0  # for a silent client, and for the previous scrape

log = structlog.get_logger(__name__)


class Exporter(ThreadingHTTPServer):
    """Answers `GET /metrics` until it is shut down.

    Args:
        clock: returns the platform's time.
        isolation: of versions that run on this machine, a `Level`. None leaves it out.
    """

    daemon_threads = False  # finish running scrapes at shutdown
    allow_reuse_address = True

    def __init__(
        self, engine: Engine, clock: Callable[[], datetime], *, host: str, port: int, isolation: str | None = None
    ) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._engine, self._clock, self._turn = engine, clock, threading.Lock()
        self.isolation = isolation
        super().__init__((host, port), _Handler)

    @property
    def address(self) -> tuple[str, int]:
        return str(self.server_address[0]), int(self.server_address[1])

    @property
    def url(self) -> str:
        host, port = self.address
        return f"http://{f'[{host}]' if ':' in host else host}:{port}{PATH}"

    def scrape(self, accept: str) -> tuple[int, bytes, str]:
        """Return status, body and content type. A database that cannot be read is a 503, not an empty page."""
        if not self._turn.acquire(timeout=_PATIENCE_S):  # scrapes must not pile up on a database that hangs
            return 503, b"the previous scrape is still running\n", PLAIN_TEXT
        try:
            return 200, *exposition(self._engine, now=self._clock(), accept=accept, isolation=self.isolation)
        except DBAPIError as error:
            log.warning("exporter.database", error=failure(error))
            return 503, f"{failure(error)}\n".encode(), PLAIN_TEXT
        except Exception:  # keep serving: the next scrape may succeed
            log.exception("exporter.failed")
            return 500, b"the metrics could not be collected. See the exporter's log.\n", PLAIN_TEXT
        finally:
            self._turn.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.info("exporter.broken_off", client=str(client_address[0]))


class _Handler(BaseHTTPRequestHandler):
    server: Exporter
    timeout = _PATIENCE_S
    server_version, sys_version = "rollout", ""

    def do_GET(self) -> None:
        status, body, content_type = 404, f"the metrics are at {PATH}\n".encode(), PLAIN_TEXT
        if urlsplit(self.path).path == PATH:
            status, body, content_type = self.server.scrape(self.headers.get("Accept", ""))
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815  the standard library's name

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the standard library's name
        """Drop access lines: one per scrape would hide all other lines."""


def serve(engine: Engine, clock: Callable[[], datetime], *, host: str, port: int, isolation: str | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then finish running scrapes. For the arguments see `Exporter`."""
    with Exporter(engine, clock, host=host, port=port, isolation=isolation) as exporter:

        def end(_signal: int, _frame: FrameType | None) -> None:
            threading.Thread(target=exporter.shutdown).start()  # it waits for the interrupted loop

        before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            log.info("exporter.serving", url=exporter.url, isolation=isolation)
            exporter.serve_forever()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    log.info("exporter.ended")
