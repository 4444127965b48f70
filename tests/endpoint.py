"""A server on this machine that answers as a Prometheus does, or takes what is posted; also on a bad day."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


def vector(*values: str) -> bytes:
    """Return an answer of as many series as there are values."""
    series = [{"metric": {"series": str(i)}, "value": [1772000000.0, text]} for i, text in enumerate(values)]
    return success({"resultType": "vector", "result": series})


def success(data: Any, **more: Any) -> bytes:
    return json.dumps({"status": "success", "data": data, **more}).encode()


@dataclass
class Endpoint:
    """What the server answers to every query, and what it was asked so far.

    Attributes:
        statuses: of the answers to come, before all others get `status`.
        trickle_s: seconds between two bytes of the body.
        reached: set when a query has come.
        let_go: cleared by a test, no query is answered until it is set again.
    """

    url: str = ""
    status: int = 200
    statuses: list[int] = field(default_factory=list)
    body: bytes = field(default_factory=lambda: vector("1.5"))
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    trickle_s: float = 0.0
    reached: threading.Event = field(default_factory=threading.Event)
    let_go: threading.Event = field(default_factory=threading.Event)
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)  # path, query, headers
    posted: list[Any] = field(default_factory=list)  # bodies, as JSON
    patched: list[tuple[str, Any]] = field(default_factory=list)  # path, body

    @property
    def queries(self) -> list[str]:
        return [query for _, query, _ in self.asked]


@contextmanager
def serving(port: int = 0) -> Iterator[Endpoint]:
    """Yield a server on *port*, a free one unless given."""
    endpoint = Endpoint()
    endpoint.let_go.set()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            (query,) = parse_qs(parts.query).get("query", [""])
            endpoint.asked.append((parts.path, query, dict(self.headers)))
            self._reached()

        def do_POST(self) -> None:
            endpoint.posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self._reached()

        def do_PATCH(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            endpoint.patched.append((self.path, body))
            self._reached()

        def _reached(self) -> None:
            endpoint.reached.set()
            endpoint.let_go.wait()
            time.sleep(endpoint.delay_s)
            try:
                self._answer()
            except OSError:  # whoever asked did not wait
                self.close_connection = True

        def _answer(self) -> None:
            self.send_response(endpoint.statuses.pop(0) if endpoint.statuses else endpoint.status)
            for name, value in {"Content-Length": str(len(endpoint.body)), **endpoint.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            step = 1 if endpoint.trickle_s else max(1, len(endpoint.body))
            for start in range(0, len(endpoint.body), step):
                self.wfile.write(endpoint.body[start : start + step])
                self.wfile.flush()
                time.sleep(endpoint.trickle_s)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    endpoint.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield endpoint
    finally:
        endpoint.let_go.set()
        server.shutdown()
        thread.join()
        server.server_close()
