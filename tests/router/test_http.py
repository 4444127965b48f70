"""Through the API a router learns the same, asks for little, and trusts no answer that is not the platform's."""

import json
from typing import Any

import pytest
from sqlalchemy import Engine
from structlog.testing import capture_logs

from strategy_core import Router
from strategy_core.domain.audit import Command
from strategy_core.domain.errors import RoutingUnavailable
from strategy_core.domain.routing import bucket_of
from strategy_core.domain.user_exclusions import ExclusionKind
from strategy_core.router import http
from strategy_core.services.rollback import roll_back
from strategy_core.store import rollouts, user_exclusions
from strategy_core.store.engine import transaction
from tests.builders import MONDAY, OWNER
from tests.endpoint import Endpoint
from tests.router.conftest import USERS, Clock, routing_answer, until


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    return sqlite_url


@pytest.fixture
def api(endpoint: Endpoint, canary: Engine, monkeypatch: pytest.MonkeyPatch) -> Endpoint:
    monkeypatch.setattr(http, "_POLL_S", 0.01)
    endpoint.body = routing_answer(canary)
    return endpoint


def told(router: Router) -> set[str]:
    return set(router.assign(USERS, "fib_rsi"))


def test_a_change_reaches_the_router(api: Endpoint, canary: Engine) -> None:
    with Router(api_url=api.url, token="t0ken") as router:
        assert told(router) == {"1", "2"}

        roll_back(canary, Command(OWNER, MONDAY, "odd fills"), strategy_name="fib_rsi")
        api.body = routing_answer(canary)

        until(lambda: told(router) == {"1"})
    path, _, headers = api.asked[0]
    assert path == "/api/v1/strategy/routing"
    assert headers["Authorization"] == "Bearer t0ken"
    assert "If-None-Match" not in headers


def test_excluded_users_reach_the_router(api: Endpoint, canary: Engine) -> None:
    inside = [user for user in USERS if bucket_of(user) < 2_500]
    outside = next(user for user in USERS if user not in inside)
    with transaction(canary) as session:
        for kind, user in (
            (ExclusionKind.OPT_OUT, inside[0]),
            (ExclusionKind.GUARD, inside[1]),
            (ExclusionKind.ALWAYS, outside),
        ):
            user_exclusions.exclude(session, "fib_rsi", kind, [user], now=MONDAY, reason="", actor="ana")
    api.body = routing_answer(canary)

    with Router(api_url=api.url) as router:
        assert router.assign([*inside[:3], outside], "fib_rsi") == ["1", "1", "2", "2"]
        assert [router.may_enter(user, "fib_rsi") for user in inside[:2]] == [True, False]


def test_a_change_does_not_wait_for_users_that_the_router_does_not_have(api: Endpoint) -> None:
    inside = [user for user in USERS if bucket_of(user) < 500]
    out, other, *rest = inside

    def answer(percent: float, kept: str | None, sets: dict[str, list[str]], canary: str | None = "2") -> bytes:
        known = {"active": "1", "salt": "", "always_users": None, "exit_only_users": kept}
        rows = [
            {"strategy_name": "aa", "canary": canary, "rollout_percent": percent, "generation": 1, "kept_users": kept},
            {"strategy_name": "bb", "canary": None, "rollout_percent": 0.0, "generation": 1, "kept_users": None},
        ]
        if kept == "new":
            rows[1] |= {"canary": "2", "rollout_percent": 100.0, "kept_users": kept}
        return json.dumps({"strategies": [known | row for row in rows], "user_sets": sets}).encode()

    api.body = answer(50.0, "old", {"old": [out]})
    with Router(api_url=api.url) as router:
        assert router.assign([out, other], "aa") == ["1", "2"]

        api.body = answer(5.0, "new", {})
        until(lambda: router.explain(other, "aa").percent == 5)
        assert router.assign([out, *rest], "aa") == ["1", *["2"] * len(rest)]
        assert set(router.assign(USERS, "bb")) == {"1"}, "who is kept from its canary is not known"
        assert not router.may_enter(out, "aa")
        assert not router.may_enter(out, "bb")

        api.body = answer(0.0, "new", {}, canary=None)
        until(lambda: router.assign(rest, "aa") == ["1"] * len(rest))

        api.body = answer(5.0, "new", {"new": [out, other]})
        until(lambda: router.assign([out, other, *rest], "bb") == ["1", "1", *["2"] * len(rest)])
        until(lambda: router.assign([out, other, *rest], "aa") == ["1", "1", *["2"] * len(rest)])
    asked = [query for path, query, _ in api.asked if path == "/api/v1/strategy/routing"]
    assert len(asked) == len(api.asked)


def test_an_excluded_symbol_reaches_the_router(api: Endpoint, canary: Engine) -> None:
    with transaction(canary) as session:
        rollouts.set_excluded(session, "fib_rsi", {"SILVER": MONDAY})
    api.body = routing_answer(canary)

    with Router(api_url=api.url) as router:
        assert set(router.assign(USERS, "fib_rsi", "SILVER")) == {"1"}
        assert told(router) == {"1", "2"}


def test_what_it_knows_is_not_sent_again(api: Endpoint, clock: Clock) -> None:
    api.headers = {"ETag": '"7"'}
    with Router(api_url=f"{api.url}/", clock=clock) as router:
        until(lambda: len(api.asked) > 2)
        api.status, api.body = 304, b""
        clock.seconds += 1_000

        until(lambda: not router.stale)
        assert told(router) == {"1", "2"}
    assert {headers.get("If-None-Match") for _, _, headers in api.asked[1:]} == {'"7"'}
    assert "Authorization" not in api.asked[0][2]


def row(**changed: Any) -> bytes:
    known: dict[str, Any] = {
        "strategy_name": "fib_rsi",
        "active": "9",
        "canary": None,
        "rollout_percent": 0.0,
        "salt": "",
        "generation": 9,
    }
    return json.dumps({"strategies": [known | changed]}).encode()


@pytest.mark.full
@pytest.mark.parametrize(
    ("status", "body", "cause"),
    [
        (500, b"oops", "HTTP 500"),
        (401, b'{"detail": "t0ken"}', "HTTP 401: the token is refused"),
        (403, b"", "HTTP 403: the token is refused"),
        (302, b"", "HTTP 302"),
        (304, b"", "HTTP 304"),
        (200, b"", "not this platform's"),
        (200, b"<html>sign in</html>", "not this platform's"),
        (200, b"{}", "not this platform's"),
        (200, b'{"strategies": null}', "not this platform's"),
        (200, row(active=""), "not this platform's"),
        (200, row(active=9), "not this platform's"),
        (200, row(canary="8", rollout_percent=100.5), "not this platform's"),
        (200, row(canary="8", rollout_percent=True), "not this platform's"),
        (200, row(generation="9"), "not this platform's"),
        (200, row(salt=None), "not this platform's"),
        (200, row(active="9").replace(b'"active": "9",', b""), "not this platform's"),
    ],
)
def test_a_bad_answer_changes_nothing_and_a_good_one_is_obeyed_again(
    api: Endpoint, canary: Engine, clock: Clock, status: int, body: bytes, cause: str
) -> None:
    with capture_logs() as logs, Router(api_url=api.url, token="t0ken", clock=clock) as router:
        told(router)
        api.status, api.body = status, body
        asked = len(api.asked)
        until(lambda: len(api.asked) > asked + 2)
        clock.seconds += 61

        until(lambda: logs)
        assert router.stale
        assert told(router) == {"1", "2"}, "whoever was admitted stays"

        roll_back(canary, Command(OWNER, MONDAY, "odd fills"), strategy_name="fib_rsi")
        api.status, api.body = 200, routing_answer(canary)

        until(lambda: told(router) == {"1"})
    assert [line["event"] for line in logs] == ["router.stale", "router.refreshed"]
    assert cause in logs[0]["cause"]
    assert "t0ken" not in str(logs)


def test_a_server_that_is_down_at_first_is_told(endpoint: Endpoint) -> None:
    endpoint.status = 503

    with pytest.raises(RoutingUnavailable, match=f"routing cannot be read from {endpoint.url}: HTTP 503"):
        Router(api_url=endpoint.url)
    with pytest.raises(RoutingUnavailable, match="no answer: ConnectError"):
        Router(api_url="http://127.0.0.1:1")


@pytest.mark.parametrize("slow", [{"delay_s": 1.0}, {"trickle_s": 0.05}])
def test_a_server_that_is_too_slow_is_not_waited_for(
    api: Endpoint, monkeypatch: pytest.MonkeyPatch, slow: dict[str, float]
) -> None:
    monkeypatch.setattr(http, "_ANSWER_S", 0.2)
    for name, seconds in slow.items():
        setattr(api, name, seconds)

    with pytest.raises(RoutingUnavailable, match=r"no answer within 0\.2 s"):
        Router(api_url=api.url)


def test_an_answer_without_an_end_is_not_kept(api: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_LARGEST", 100)

    with pytest.raises(RoutingUnavailable):
        Router(api_url=api.url)


def test_a_platform_without_strategies_is_one(api: Endpoint) -> None:
    api.body = b'{"strategies": [], "new": 1}'

    with Router(api_url=api.url) as router:
        assert router._table.served == {}
