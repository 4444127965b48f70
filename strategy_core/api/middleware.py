"""The outermost ASGI layer: request id, access log, security headers, and the answer to unexpected errors."""

import re
from time import perf_counter
from uuid import uuid4

import structlog
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from strategy_core.api.problems import unexpected

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:@/+=-]{1,128}")
_SAFE = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}
_WITH_SCRIPTS = ("/docs",)  # served in development only

log = structlog.get_logger(__name__)


class AccessLog:
    """Wraps the application. It answers HEAD like GET, without the body."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive)
        request_id = _request_id(request.headers.get("x-request-id", ""))
        scope.setdefault("state", {})["request_id"] = request_id
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        method, begun, status = scope["method"], perf_counter(), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                for name, value in _SAFE.items():
                    if not (name == "Content-Security-Policy" and scope["path"] in _WITH_SCRIPTS):
                        headers.setdefault(name, value)
            elif method == "HEAD" and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        if method == "HEAD":
            scope = {**scope, "method": "GET"}
        try:
            await self.app(scope, receive, answer)
        except Exception:
            log.exception("api.failed", method=method, path=scope["path"])
            if status:  # the answer has begun, so the error can only break the connection
                raise
            await unexpected(request)(scope, receive, answer)
        finally:
            log.info(
                "api.answered",
                method=method,
                path=scope["path"],
                status=status,
                ms=round((perf_counter() - begun) * 1000, 1),
                client=request.client.host if request.client else "",
            )


def _request_id(given: str) -> str:
    return given if _REQUEST_ID.fullmatch(given) else uuid4().hex
