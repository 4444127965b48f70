"""What a Prometheus answers to a query: one number, or why there is none; never what it means, nor a secret."""

import json
import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import monotonic
from typing import Any

import httpx
from pydantic import SecretStr

AT_ONCE = 8  # queries: a slow one holds up few others, and the server is not stormed

_LARGEST = 1_000_000  # bytes of an answer, which holds one number
_LONGEST = 200  # characters of what a server says of its error


@dataclass(frozen=True, slots=True)
class QueryResult:
    """*value* is finite, or None, and then *problem* says in a line why there is none."""

    value: float | None
    problem: str = ""


class _NoAnswer(Exception):
    """There is no number; the text says why."""


class Prometheus:
    """A Prometheus, or what speaks its HTTP API, as it is now.

    Redirects are not followed: the header is for the server that the owner named, and for no other.

    Args:
        url: of the server, without `/api/v1`; None when the installation has none, which is a problem of each answer.
        header: sent with each query, as `Name: value`.
        timeout: in seconds, for a whole answer.
    """

    def __init__(self, url: str | None, *, header: SecretStr | None = None, timeout: float = 5.0) -> None:
        self.url = url
        self.timeout = timeout
        self._header = header

    def ask(self, queries: Iterable[str]) -> dict[str, QueryResult]:
        """Return the answer of each query; several are asked at once."""
        different = sorted(set(queries))
        if self.url is None:
            return dict.fromkeys(different, QueryResult(None, "ROLLOUT_PROMETHEUS_URL is not set"))
        if not different:
            return {}
        with (
            httpx.Client(headers=self._headers(), timeout=self.timeout) as client,
            ThreadPoolExecutor(AT_ONCE, thread_name_prefix="prometheus") as pool,
        ):
            return dict(zip(different, pool.map(lambda query: self._answer(client, query), different), strict=True))

    def _answer(self, client: httpx.Client, query: str) -> QueryResult:
        try:
            return QueryResult(_number(*self._fetch(client, query)))
        except _NoAnswer as none:
            return QueryResult(None, self._redacted(str(none)))
        except httpx.TimeoutException:
            return QueryResult(None, f"no answer within {self.timeout:g} s")
        except httpx.ConnectError as error:
            return QueryResult(None, self._redacted(f"cannot be reached: {error}"))
        except httpx.HTTPError as error:  # its text may quote what was sent
            return QueryResult(None, f"no answer: {type(error).__name__}")

    def _fetch(self, client: httpx.Client, query: str) -> tuple[int, bytes]:
        """Return status and body; httpx itself limits each read alone, so that a trickle would never end."""
        deadline = monotonic() + self.timeout
        body = b""
        with client.stream("GET", f"{self.url}/api/v1/query", params={"query": query}) as response:
            for chunk in response.iter_bytes():
                body += chunk
                if len(body) > _LARGEST:
                    raise _NoAnswer(f"the answer is larger than {_LARGEST} bytes")
                if monotonic() > deadline:
                    raise _NoAnswer(f"no answer within {self.timeout:g} s")
            return response.status_code, body

    def _headers(self) -> dict[str, str]:
        if self._header is None:
            return {}
        name, _, value = self._header.get_secret_value().partition(":")
        return {name.strip(): value.strip()}

    def _redacted(self, text: str) -> str:
        """Return *text* as a line that any database takes, without the header's words, which a server may echo."""
        for value in self._headers().values():
            for word in value.split():
                text = text.replace(word, "***")
        return "".join(char if char.isprintable() else " " for char in text)[:_LONGEST]


def _number(status: int, body: bytes) -> float:
    """Return the one number of an answer, finite; else raise _NoAnswer."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        answer = None
    if status != httpx.codes.OK:
        said = answer.get("error") if isinstance(answer, dict) else None
        raise _NoAnswer(f"HTTP {status}: {said}" if said else f"HTTP {status}")
    if not isinstance(answer, dict) or answer.get("status") != "success":
        raise _NoAnswer("the answer is not Prometheus's")
    if answer.get("warnings"):  # it may be a part of the truth
        raise _NoAnswer(f"answered with a warning: {answer['warnings']}")
    try:
        value = float(_told(answer.get("data")))
    except ValueError:
        raise _NoAnswer("the answer is not Prometheus's")
    if not math.isfinite(value):
        raise _NoAnswer(f"the value is {value}")
    return value


def _told(data: Any) -> str:
    """Return the text of the number in a vector of one series, or in a scalar."""
    match data:
        case {"resultType": "vector", "result": []}:
            raise _NoAnswer("the answer is empty: no series matches")
        case {"resultType": "vector", "result": [{"value": [_, str(text)]}]} | {
            "resultType": "scalar",
            "result": [_, str(text)],
        }:
            return str(text)
        case {"resultType": "vector", "result": [*several]} if len(several) > 1:
            raise _NoAnswer(f"{len(several)} series: aggregate them to one")
        case {"resultType": str(kind)}:
            raise _NoAnswer(f"the answer is a {kind}: one number is needed")
        case _:
            raise _NoAnswer("the answer is not Prometheus's")
