"""Routing, and toggles, from the platform's API, which is polled and answers in full only after a change."""

from collections.abc import Callable
from threading import Event
from time import monotonic
from typing import Any, Generic, TypeVar

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from strategy_core.domain.errors import InvalidPercent, InvalidToggle, InvalidToggles, RoutingUnavailable
from strategy_core.domain.routing import Routing, basis_points
from strategy_core.domain.toggles import AllToggles, read_declaration, read_rule
from strategy_core.domain.user_exclusions import UserSets
from strategy_core.router.source import AllRouting

PATH = "/api/v1/strategy/routing"
TOGGLES_PATH = "/api/v1/strategy/toggles"
_POLL_S = 0.5
_ANSWER_S = 3.0
_LARGEST = 100_000_000  # bytes of an answer. Each excluded user takes some 20
_TOGGLES_ANSWER_S = 30.0  # with the capital of a million users
_LARGEST_TOGGLES = 200_000_000

Read = TypeVar("Read")


class _StrategyRouting(BaseModel):
    model_config = ConfigDict(strict=True)

    strategy_name: str = Field(min_length=1)
    active: str | None = Field(min_length=1)
    canary: str | None = Field(min_length=1)
    rollout_percent: float
    salt: str
    generation: int = Field(ge=0)
    excluded_symbols: list[str] = []  # releases before 0.3 send none
    kept_users: str | None = None  # a key of `user_sets`. These releases send no users either
    always_users: str | None = None
    exit_only_users: str | None = None

    @property
    def keys(self) -> tuple[str | None, str | None, str | None]:
        return self.kept_users, self.always_users, self.exit_only_users

    def routing(self, users: UserSets, *, serves: bool) -> Routing | None:
        percent_bp = basis_points(self.rollout_percent)
        if self.active is None:
            return None
        canary = self.canary if serves else None
        return Routing(
            self.active,
            canary,
            percent_bp if canary else 0,
            self.salt,
            self.generation,
            excluded=frozenset(self.excluded_symbols if canary else ()),
            kept=users.kept if canary else frozenset(),
            always=users.always if canary else frozenset(),
            exit_only=users.exit_only,
        )


class _Answer(BaseModel):
    strategies: list[_StrategyRouting]
    user_sets: dict[str, list[str]] = {}


class _Toggles(BaseModel):
    declared: dict[str, dict[str, dict[str, Any]]]
    rules: dict[str, dict[str, list[dict[str, Any]]]]
    segments: dict[str, list[str]]
    capital: dict[str, float]


def routing_source(url: str, token: str | None) -> "RoutingSource":
    """Return a source that polls `GET {url}/api/v1/strategy/routing`."""
    return RoutingSource(url, token)


def toggle_source(url: str, token: str | None) -> "HttpSource[AllToggles]":
    """Return a source that polls `GET {url}/api/v1/strategy/toggles`."""
    return HttpSource(url, token, TOGGLES_PATH, toggles_in, answer_s=_TOGGLES_ANSWER_S, largest=_LARGEST_TOGGLES)


def _answer_in(body: bytes) -> _Answer:
    found = _Answer.model_validate_json(body)
    for row in found.strategies:
        row.routing(UserSets(), serves=True)  # raises InvalidPercent
    return found


def toggles_in(body: bytes) -> AllToggles:
    """Return the toggles of an answer. Raises ValidationError, InvalidToggles or InvalidToggle if it is another."""
    found = _Toggles.model_validate_json(body)
    members: dict[str, set[str]] = {}
    for segment, users in found.segments.items():
        for user_id in users:
            members.setdefault(user_id, set()).add(segment)
    return AllToggles(
        declared={
            strategy_name: {version: read_declaration(each, "the answer") for version, each in versions.items()}
            for strategy_name, versions in found.declared.items()
        },
        rules={
            strategy_name: {
                name: [read_rule(each.get("when", {}), each.get("value"), name, at) for at, each in enumerate(rules, 1)]
                for name, rules in of.items()
            }
            for strategy_name, of in found.rules.items()
        },
        segments={user_id: frozenset(segments) for user_id, segments in members.items()},
        capital=found.capital,
    )


class HttpSource(Generic[Read]):
    """Polls one path of an API. Redirects are not followed: the token is for that server only.

    Args:
        parse: returns what a body holds.
        answer_s: seconds within which an answer must be complete.
        largest: bytes of an answer.
    """

    def __init__(
        self,
        url: str,
        token: str | None,
        path: str,
        parse: Callable[[bytes], Read],
        *,
        answer_s: float,
        largest: int,
    ) -> None:
        self.address = url
        self._path = path
        self._read_body = parse
        self._answer_s = answer_s
        self._largest = largest
        self._token = token
        self._client: httpx.Client | None = None
        self._etag: str | None = None  # of the last accepted answer

    def read(self) -> Read | None:
        try:
            status, etag, body = self._request(self._path, self._etag)
        except httpx.TimeoutException:
            raise RoutingUnavailable(self.address, f"no answer within {self._answer_s:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:  # its message may contain the token
            raise RoutingUnavailable(self.address, f"no answer: {type(error).__name__}") from None
        if status == httpx.codes.NOT_MODIFIED and self._etag is not None:
            return None
        if status != httpx.codes.OK:
            raise RoutingUnavailable(self.address, _refusal(status))
        found = self._parse(body)
        self._etag = etag
        return found

    def fetch(self, path: str) -> bytes | None:
        """Return the body of another path, or None if it cannot be had now."""
        try:
            status, _, body = self._request(path, None)
        except (httpx.HTTPError, httpx.InvalidURL):
            return None
        return body if status == httpx.codes.OK else None

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

    def _request(self, path: str, etag: str | None) -> tuple[int, str | None, bytes]:
        """Return status, ETag and body within one deadline. httpx limits only single reads."""
        if self._client is None:
            headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
            self._client = httpx.Client(headers={"Cache-Control": "no-cache", **headers}, timeout=self._answer_s)
        deadline = monotonic() + self._answer_s
        known = {"If-None-Match": etag} if etag is not None else {}
        body = bytearray()
        with self._client.stream("GET", f"{self.address}{path}", headers=known) as response:
            for chunk in response.iter_bytes():
                body += chunk
                if len(body) > self._largest or monotonic() > deadline:
                    raise httpx.ReadTimeout("too long")
            return response.status_code, response.headers.get("ETag"), bytes(body)

    def _parse(self, body: bytes) -> Read:
        try:
            return self._read_body(body)
        except (ValidationError, InvalidPercent, InvalidToggle, InvalidToggles):
            raise RoutingUnavailable(self.address, "the answer is not this platform's") from None


class RoutingSource:
    """Polls routing without users, and asks for sets of users that it does not have, one at a time.

    A change is returned before its sets are asked for. Until they have come, canaries that have served go on with the
    users that they had, and new canaries serve no users.
    """

    def __init__(self, url: str, token: str | None) -> None:
        self._polled = HttpSource(url, token, f"{PATH}?users=none", _answer_in, answer_s=_ANSWER_S, largest=_LARGEST)
        self.address = url
        self._answer: _Answer | None = None
        self._sets: dict[str | None, frozenset[str]] = {None: frozenset()}
        self._complete: dict[str, tuple[str | None, UserSets]] = {}  # canary and users of each strategy
        self._behind = False

    def read(self) -> AllRouting | None:
        before, answer = self._answer, self._polled.read()
        self._answer = answer or before
        self._behind = False
        missing = self._missing()
        if answer is None and not missing:
            return None
        if before is not None and answer is not None and answer.strategies != before.strategies:
            self._behind = True  # apply the change before sets are asked for
        else:
            for key in missing if before is None else missing[:1]:
                self._behind = self._fetch(key)
                if not self._behind:
                    break
        return self._routing()

    def wait(self, stop: Event) -> None:
        if not (self._behind and self._missing()):
            self._polled.wait(stop)

    def close(self) -> None:
        self._polled.close()

    def before_fork(self) -> None:
        self._polled.before_fork()

    def after_fork_in_parent(self) -> None:
        self._polled.after_fork_in_parent()

    def after_fork_in_child(self) -> None:
        self._polled.after_fork_in_child()

    def _missing(self) -> list[str]:
        rows = self._answer.strategies if self._answer is not None else []
        return sorted({key for row in rows for key in row.keys if key is not None and key not in self._sets})

    def _fetch(self, key: str) -> bool:
        """Return whether the set of users has come."""
        body = self._polled.fetch(f"{PATH}?users={key}")
        try:
            self._sets[key] = frozenset(_Answer.model_validate_json(body or b"{}").user_sets[key])
        except (ValidationError, KeyError):  # the set has changed in the meantime
            return False
        return True

    def _routing(self) -> AllRouting:
        found: dict[str, Routing | None] = {}
        rows = self._answer.strategies if self._answer is not None else []
        complete = self._complete
        self._complete = {}
        for row in rows:
            canary, users = complete.get(row.strategy_name, (None, UserSets()))
            if all(key in self._sets for key in row.keys):
                canary, users = row.canary, UserSets(*(self._sets[key] for key in row.keys))
            if canary == row.canary:
                self._complete[row.strategy_name] = canary, users
            else:
                self._complete[row.strategy_name] = None, users
            found[row.strategy_name] = row.routing(users, serves=canary == row.canary)
        if not self._missing():
            used = {key for row in rows for key in row.keys}
            self._sets = {key: users for key, users in self._sets.items() if key is None or key in used}
        return found


def _refusal(status: int) -> str:
    return f"HTTP {status}" + (": the token is refused" if status in (401, 403) else "")
