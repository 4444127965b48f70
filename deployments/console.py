"""`python -m deployments.console`: Prefect's server for this machine, closed to other web pages."""

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit
from uuid import NAMESPACE_URL, UUID, uuid5

import uvicorn
from prefect.server.api import background_workers
from prefect.server.api.dependencies import get_created_by
from prefect.server.api.server import create_app
from prefect.server.schemas.core import CreatedBy
from prefect.settings import get_current_settings
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from deployments.processes import OPEN, addresses
from strategy_core.domain.audit import SIGNED_IN

_OWNER_HEADER = "ROLLOUT_CONSOLE_OWNER_HEADER"
_QUEUE_LOOKS_EVERY = timedelta(seconds=2)
_REFUSED_CODE = 1008  # of a websocket: policy violation
_PAGE = """<!doctype html><title>Prefect</title>
<script>localStorage.setItem("prefect-password", location.hash.slice(1)); location.replace("/")</script>
"""


class OwnOrigin:
    """Refuses requests that another web page sends, or that another host name leads to (DNS rebinding).

    It also serves `/open#PASSWORD`, a page that signs in to the UI: a browser does not send the part after `#`.

    Args:
        addresses: where browsers find the server, such as `http://127.0.0.1:4200`.
    """

    def __init__(self, app: ASGIApp, addresses: list[str]) -> None:
        self._app = app
        self._origins = set(addresses)
        self._hosts = {urlsplit(each).netloc for each in addresses}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        why = self._refusal(scope)
        if why is None and scope["type"] == "http" and scope["path"] == OPEN:
            page = HTMLResponse(_PAGE, headers={"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"})
            await page(scope, receive, send)
        elif why is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await WebSocketClose(_REFUSED_CODE, why)(scope, receive, send)
        else:
            await PlainTextResponse(f"{why}; allowed: {', '.join(sorted(self._origins))}\n", 403)(scope, receive, send)

    def _refusal(self, scope: Scope) -> str | None:
        if scope["type"] not in ("http", "websocket"):
            return None
        headers = Headers(scope=scope)
        if headers.get("host", "") not in self._hosts:
            return "this host name is not the address of this server"
        if headers.get("origin", next(iter(self._origins))) not in self._origins:
            return "requests of other web pages are refused"
        return None


def creator_from(header: str, proxies: Sequence[str]) -> Callable[[Request], CreatedBy | None]:
    """Return how Prefect finds out who created a run: from *header*, if the request comes from one of the *proxies*.

    A client cannot set this itself: Prefect takes it from no body.
    """
    networks = [ip_network(each) for each in proxies]

    def created_by(request: Request) -> CreatedBy | None:
        name = request.headers.get(header, "").strip()
        client = ip_address(request.client.host) if request.client else None
        if name and client is not None and any(client in network for network in networks):
            return CreatedBy(id=uuid5(NAMESPACE_URL, name), type=SIGNED_IN, display_value=name)
        automation = request.headers.get("prefect-automation-id")
        return get_created_by(UUID(automation) if automation else None, request.headers.get("prefect-automation-name"))

    return created_by


def main() -> None:
    """Serve until a signal stops the server. Address, password and database come from Prefect's own settings."""
    settings = get_current_settings()
    # Prefect has no setting for how often its queue looks for work. Four times a second is half of what it does idle.
    background_workers.Worker = partial(  # type: ignore[assignment, attr-defined]
        background_workers.Worker,  # type: ignore[attr-defined]
        scheduling_resolution=_QUEUE_LOOKS_EVERY,
        minimum_check_interval=_QUEUE_LOOKS_EVERY,
    )
    app = create_app(final=True)
    if _OWNER_HEADER in map(str.upper, os.environ):
        from strategy_core.settings import read_settings  # it would double the memory of a server that needs none of it

        ours = read_settings()
        overrides = app.api_app.dependency_overrides  # type: ignore[attr-defined]
        overrides[get_created_by] = creator_from(ours.console_owner_header or "", ours.console_proxies)
    server = settings.server
    config = uvicorn.Config(
        OwnOrigin(app, addresses(server.api.port, settings.ui_url)),
        host=server.api.host,
        port=server.api.port,
        timeout_keep_alive=server.api.keepalive_timeout,
        log_level=server.logging_level.lower(),
        proxy_headers=False,  # the client is the peer, so that nobody can claim to be the proxy
    )
    uvicorn.Server(config).run(sockets=[config.bind_socket()])


if __name__ == "__main__":
    main()
