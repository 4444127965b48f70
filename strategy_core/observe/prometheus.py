"""Prometheus client: one number per instant query, or the reason why there is no number."""

import json
import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import monotonic
from typing import Any

import httpx
from pydantic import SecretStr

from strategy_core.domain.errors import reason_of

_CONCURRENT_QUERIES = 8  # enough for a few slow ones, without overloading the server
_MAX_BYTES = 1_000_000  # per answer, which holds one number
_MAX_PROBLEM = 200  # characters of a server's error message
_NOT_PROMETHEUS = "not a Prometheus response"


@dataclass(frozen=True, slots=True)
class QueryResult:
    """A finite *value*, or None with the *problem* in one line."""

    value: float | None
    problem: str = ""


class _NoValueError(Exception):
    """The answer holds no usable number. The message is the problem."""


class Prometheus:
    """Client for a Prometheus server, or another server with the same HTTP API.

    Redirects are not followed: the header goes only to the server that the owner configured.

    Args:
        url: base URL without `/api/v1`. Without a URL every query has a problem.
        header: sent with each query, as `Name: value`.
        timeout: in seconds, for a whole answer.
    """

    def __init__(self, url: str | None, *, header: SecretStr | None = None, timeout: float = 5.0) -> None:
        self.url = url
        self.timeout = timeout
        self._header = header

    def query(self, queries: Iterable[str]) -> dict[str, QueryResult]:
        """Return the result of each query. Queries run concurrently, each distinct one once."""
        distinct = sorted(set(queries))
        if self.url is None:
            return dict.fromkeys(distinct, QueryResult(None, "ROLLOUT_PROMETHEUS_URL is not set"))
        if not distinct:
            return {}
        with (
            httpx.Client(headers=self._headers(), timeout=self.timeout) as client,
            ThreadPoolExecutor(_CONCURRENT_QUERIES, thread_name_prefix="prometheus") as pool,
        ):
            return dict(zip(distinct, pool.map(lambda query: self._run(client, query), distinct), strict=True))

    def _run(self, client: httpx.Client, query: str) -> QueryResult:
        try:
            return QueryResult(_number(*self._fetch(client, query)))
        except _NoValueError as problem:
            return QueryResult(None, self._redacted(str(problem)))
        except httpx.TimeoutException:
            return QueryResult(None, f"no answer within {self.timeout:g} s")
        except httpx.ConnectError as error:
            return QueryResult(None, self._redacted(f"cannot be reached: {reason_of(error)}"))
        except httpx.HTTPError as error:  # its text may quote the header
            return QueryResult(None, f"no answer: {type(error).__name__}")

    def _fetch(self, client: httpx.Client, query: str) -> tuple[int, bytes]:
        """Return status and body within the timeout. That of httpx applies to each read, not to the whole answer."""
        deadline = monotonic() + self.timeout
        body = b""
        with client.stream("GET", f"{self.url}/api/v1/query", params={"query": query}) as response:
            for chunk in response.iter_bytes():
                body += chunk
                if len(body) > _MAX_BYTES:
                    raise _NoValueError(f"the answer is larger than {_MAX_BYTES} bytes")
                if monotonic() > deadline:
                    raise _NoValueError(f"no answer within {self.timeout:g} s")
            return response.status_code, body

    def _headers(self) -> dict[str, str]:
        if self._header is None:
            return {}
        name, _, value = self._header.get_secret_value().partition(":")
        return {name.strip(): value.strip()}

    def _redacted(self, text: str) -> str:
        """Return *text* as one printable line without the header's words, which a server may echo."""
        for value in self._headers().values():
            for word in value.split():
                text = text.replace(word, "***")
        return "".join(char if char.isprintable() else " " for char in text)[:_MAX_PROBLEM]


def _number(status: int, body: bytes) -> float:
    """Return the finite number in an answer.

    Raises:
        _NoValueError: the answer has no such number.
    """
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        answer = None
    if status != httpx.codes.OK:
        error = answer.get("error") if isinstance(answer, dict) else None
        raise _NoValueError(f"HTTP {status}: {error}" if error else f"HTTP {status}")
    if not isinstance(answer, dict) or answer.get("status") != "success":
        raise _NoValueError(_NOT_PROMETHEUS)
    if answer.get("warnings"):  # the value may cover only a part of the data
        raise _NoValueError(f"the answer has a warning: {answer['warnings']}")
    try:
        value = float(_number_text(answer.get("data")))
    except ValueError:
        raise _NoValueError(_NOT_PROMETHEUS)
    if not math.isfinite(value):
        raise _NoValueError(f"the value is {value}")
    return value


def _number_text(data: Any) -> str:
    """Return the number of a scalar or of a vector with one series, as text."""
    match data:
        case {"resultType": "vector", "result": []}:
            raise _NoValueError("no series matches the query")
        case {"resultType": "vector", "result": [{"value": [_, str(text)]}]} | {
            "resultType": "scalar",
            "result": [_, str(text)],
        }:
            return str(text)
        case {"resultType": "vector", "result": [*several]} if len(several) > 1:
            raise _NoValueError(f"{len(several)} series match the query: aggregate them into one")
        case {"resultType": str(kind)}:
            raise _NoValueError(f"the result is a {kind}, but one number is needed")
        case _:
            raise _NoValueError(_NOT_PROMETHEUS)
