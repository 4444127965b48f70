"""Routing from the platform's API, which is polled twice a second and answers in full only after a change."""

from threading import Event
from time import monotonic

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from strategy_core.domain.errors import InvalidPercent, RoutingUnavailable
from strategy_core.domain.routing import Routing, basis_points
from strategy_core.router.source import AllRouting

PATH = "/api/v1/strategy/routing"
_POLL_S = 0.5
_ANSWER_S = 3.0
_LARGEST = 10_000_000  # bytes of an answer


class _StrategyRouting(BaseModel):
    model_config = ConfigDict(strict=True)

    strategy_name: str = Field(min_length=1)
    active: str | None = Field(min_length=1)
    canary: str | None = Field(min_length=1)
    rollout_percent: float
    salt: str
    generation: int = Field(ge=0)
    excluded_symbols: list[str] = []  # releases before 0.3 send none

    def routing(self) -> Routing | None:
        percent_bp = basis_points(self.rollout_percent)
        if self.active is None:
            return None
        excluded = frozenset(self.excluded_symbols if self.canary else ())
        return Routing(self.active, self.canary, percent_bp if self.canary else 0, self.salt, self.generation, excluded)


class _Answer(BaseModel):
    strategies: list[_StrategyRouting]


class HttpSource:
    """Polls `GET {url}/api/v1/strategy/routing`. Redirects are not followed: the token is for that server only."""

    def __init__(self, url: str, token: str | None) -> None:
        self.address = url
        self._token = token
        self._client: httpx.Client | None = None
        self._etag: str | None = None  # of the last accepted answer

    def read(self) -> AllRouting | None:
        try:
            status, etag, body = self._request()
        except httpx.TimeoutException:
            raise RoutingUnavailable(self.address, f"no answer within {_ANSWER_S:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:  # its message may contain the token
            raise RoutingUnavailable(self.address, f"no answer: {type(error).__name__}") from None
        if status == httpx.codes.NOT_MODIFIED and self._etag is not None:
            return None
        if status != httpx.codes.OK:
            raise RoutingUnavailable(self.address, _refusal(status))
        found = self._parse(body)
        self._etag = etag
        return found

    def wait(self, stop: Event) -> None:
        stop.wait(_POLL_S)

    def close(self) -> None:
        client, self._client, self._etag = self._client, None, None
        if client is not None:
            client.close()

    def before_fork(self) -> None:
        """No action: an open socket may stay open."""

    def after_fork_in_parent(self) -> None:
        """No action is needed."""

    def after_fork_in_child(self) -> None:
        """No action: the copied socket is not used."""

    def _request(self) -> tuple[int, str | None, bytes]:
        """Return status, ETag and body within one deadline. httpx limits only single reads."""
        if self._client is None:
            headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
            self._client = httpx.Client(headers={"Cache-Control": "no-cache", **headers}, timeout=_ANSWER_S)
        deadline = monotonic() + _ANSWER_S
        known = {"If-None-Match": self._etag} if self._etag is not None else {}
        body = b""
        with self._client.stream("GET", f"{self.address}{PATH}", headers=known) as response:
            for chunk in response.iter_bytes():
                body += chunk
                if len(body) > _LARGEST or monotonic() > deadline:
                    raise httpx.ReadTimeout("too long")
            return response.status_code, response.headers.get("ETag"), body

    def _parse(self, body: bytes) -> AllRouting:
        try:
            return {row.strategy_name: row.routing() for row in _Answer.model_validate_json(body).strategies}
        except (ValidationError, InvalidPercent):
            raise RoutingUnavailable(self.address, "the answer is not this platform's") from None


def _refusal(status: int) -> str:
    return f"HTTP {status}" + (": the token is refused" if status in (401, 403) else "")
