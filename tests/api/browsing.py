"""The console as a browser has it: cookies, the hidden fields of forms, and the headers that browsers send."""

import re
from dataclasses import dataclass
from html import unescape
from typing import Any

import httpx2 as httpx  # as Starlette's client
from fastapi.testclient import TestClient

from strategy_core.api.console.page import ConsoleRoute
from tests.api.asking import HELD, Api

SAME_ORIGIN = {"Sec-Fetch-Site": "same-origin", "Origin": "http://testserver"}
_HIDDEN = re.compile(r'<input type="hidden" name="([^"]+)" value="([^"]*)">')


@dataclass
class Browser:
    """One browser without script. It does not follow redirects."""

    api: Api

    def __post_init__(self) -> None:
        self.client = TestClient(self.api.client.app, raise_server_exceptions=False, follow_redirects=False)

    def log_in(self, held: str = "owner") -> "Browser":
        """Log in with one of HELD, or with a token itself."""
        response = self.send("/login", {"token": HELD.get(held, held)})
        assert response.status_code == 303, response.text
        return self

    def get(self, path: str = "", **sent: Any) -> httpx.Response:
        """Open a page. Paths are below `/console`."""
        response: httpx.Response = self.client.get(f"/console{path}", **sent)
        return response

    def post(self, path: str, **fields: Any) -> httpx.Response:
        """Open the page *path*, fill its form and send it. Fields named like hidden ones replace those."""
        return self.send(path, hidden_fields(self.get(path).text) | fields)

    def send(self, path: str, fields: Any, **sent: Any) -> httpx.Response:
        """Send a form with exactly these fields."""
        headers = SAME_ORIGIN | sent.pop("headers", {})
        response: httpx.Response = self.client.post(f"/console{path}", data=fields, headers=headers, **sent)
        return response

    def follow(self, response: httpx.Response) -> httpx.Response:
        """Open the page that *response* leads to."""
        assert response.status_code == 303, response.text
        found: httpx.Response = self.client.get(response.headers["location"])
        return found


def hidden_fields(page: str) -> dict[str, str]:
    """Return the hidden fields of the forms in *page*."""
    return {name: unescape(value) for name, value in _HIDDEN.findall(page)}


def console_routes(api: Api) -> list[ConsoleRoute]:
    """Return all routes of the console, two of a page that shows a form and takes it."""
    parts = [part.original_router for part in api.app.routes if hasattr(part, "original_router")]
    return [route for part in parts for route in part.routes if isinstance(route, ConsoleRoute)]


def text_of(page: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", page.partition("<main")[2]).split())
