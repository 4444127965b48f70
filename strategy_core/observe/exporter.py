"""A server of metrics for a Prometheus, in a process of its own: it needs no token, and listens where it is told alone.

Scrapes come one after another: what a scraper asks for too often must not take the database from a tick.
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

from strategy_core.observe.metrics import TEXT, exposition, wanted
from strategy_core.store.engine import failure

PATH = "/metrics"
_PATIENCE_S = 10.0  # with a client that sends nothing, or takes nothing; and with the scrape before

log = structlog.get_logger(__name__)


class Exporter(ThreadingHTTPServer):
    """Answers `GET /metrics` until it is shut down; *clock* tells the platform's time."""

    daemon_threads = False  # what is being answered when it ends is answered
    allow_reuse_address = True

    def __init__(self, engine: Engine, clock: Callable[[], datetime], *, host: str, port: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._engine, self._clock, self._turn = engine, clock, threading.Lock()
        super().__init__((host, port), _Handler)

    @property
    def address(self) -> tuple[str, int]:
        return str(self.server_address[0]), int(self.server_address[1])

    @property
    def url(self) -> str:
        host, port = self.address
        return f"http://{f'[{host}]' if ':' in host else host}:{port}{PATH}"

    def answer(self, media_type: str) -> tuple[int, bytes]:
        """Return the status and the body of a scrape; one that cannot read the database is refused, and never empty."""
        if not self._turn.acquire(timeout=_PATIENCE_S):  # else a database that hangs would gather them without end
            return 503, b"another scrape has not been answered yet\n"
        try:
            return 200, exposition(self._engine, now=self._clock(), media_type=media_type)
        except DBAPIError as error:
            log.warning("exporter.database", error=failure(error))
            return 503, f"{failure(error)}\n".encode()
        except Exception:  # whatever it was: the next scrape is answered
            log.exception("exporter.failed")
            return 500, b"these numbers could not be made; the log says why\n"
        finally:
            self._turn.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.info("exporter.broken_off", client=str(client_address[0]))


class _Handler(BaseHTTPRequestHandler):
    server: Exporter
    timeout = _PATIENCE_S
    server_version, sys_version = "rollout", ""

    def do_GET(self) -> None:
        media_type, status, body = TEXT, 404, f"numbers are at {PATH}\n".encode()
        if urlsplit(self.path).path == PATH:
            asked = wanted(self.headers.get("Accept", ""))
            status, body = self.server.answer(asked)
            media_type = asked if status == 200 else TEXT
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815  the standard library's name

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the standard library's name
        """Say nothing: a line for each scrape would hide all others."""


def serve(engine: Engine, clock: Callable[[], datetime], *, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT; what is being answered then is answered."""
    with Exporter(engine, clock, host=host, port=port) as exporter:

        def end(_signal: int, _frame: FrameType | None) -> None:
            threading.Thread(target=exporter.shutdown).start()  # it waits for the loop that this handler interrupts

        before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            log.info("exporter.serving", url=exporter.url)
            exporter.serve_forever()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    log.info("exporter.ended")
