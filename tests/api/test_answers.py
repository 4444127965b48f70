"""What each noun's endpoints answer, in full: who is told what, where it is found again, and what is left out."""

import re
from typing import Any

import pytest
from sqlalchemy import Engine

from strategy_core.domain.audit import Actor, Command
from strategy_core.domain.plan import read_plan
from strategy_core.services.rollback import roll_back
from strategy_core.services.rollouts import start_rollout
from tests.api.asking import PLAN, REGISTRATION, Api, World
from tests.api.every import fields, refused
from tests.api.signing import NOW, token
from tests.builders import DAY, HOUR, MONDAY, OWNER, decision_row, put_decisions, put_version

PPO = token(strategies=["ppo_gold"])


def names(response: Any) -> list[str]:
    return [f"{item['strategy_name']} {item['version']}" for item in response.json()["items"]]


def pages(api: Api, path: str, between: Any = lambda: None) -> list[Any]:
    """Return all items of a listing, read by its cursors; *between* is called after each page."""
    found, cursor = [], None
    while True:
        page = api.get(f"{path}{'&' if '?' in path else '?'}limit=2" + (f"&cursor={cursor}" if cursor else "")).json()
        found += page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            return found
        between()


def test_a_version_is_registered_found_and_listed(api: Api, world: World) -> None:
    made = api.post("/versions", REGISTRATION)

    where = made.headers["location"].removeprefix("/api/v1/strategy")
    assert made.status_code == 201
    assert made.json()["config"]["rsi_overbought"] == 70.0
    assert api.get(where).json() == made.json()
    assert names(api.get("/versions?strategy_name=fib_rsi&status=shadow")) == ["fib_rsi 3", "fib_rsi 9"]


@pytest.mark.parametrize(
    ("changes", "status", "field"),
    [
        ({"config": {"rsi_periods": 9}}, 422, "config.rsi_periods"),
        ({"config": {"rsi_period": 10_000_000}}, 422, "config.rsi_period"),
        ({"timeframe": "7m"}, 422, "timeframe"),
        ({"entry_point": "nowhere:Nothing"}, 422, "entry_point"),
        ({"symbols": []}, 422, "symbols"),
        ({"status": "paused"}, 422, "status"),
        ({"scoring": {"horizon": 0}}, 422, "scoring.horizon"),
        ({"symbols": ["TIN"]}, 404, None),
        ({"version": "1"}, 409, None),
        ({"salt": "another"}, 409, None),
    ],
)
def test_a_registration_that_is_refused_says_why(
    api: Api, world: World, changes: dict[str, Any], status: int, field: str | None
) -> None:
    problem = refused(api.post("/versions", {**REGISTRATION, **changes}), status)

    assert field is None or field in fields(problem)


def test_listings_show_what_the_token_reaches(api: Api, world: World) -> None:
    assert names(api.get("/versions", held=PPO)) == ["ppo_gold 1", "ppo_gold 2", "ppo_gold 3"]
    assert names(api.get("/rollouts", held=PPO)) == []
    assert names(api.get("/canary", held=PPO)) == []
    assert names(api.get("/audit", held=PPO)) == []
    assert [each["strategy_name"] for each in api.get("/routing", held=PPO).json()["strategies"]] == ["ppo_gold"]
    assert "fib_rsi" not in api.get("/metrics", held=PPO).text
    refused(api.get("/audit/verify", held=PPO), 403)


def test_a_scrape_shows_the_strategies_of_its_token_and_nothing_without_one(api: Api, world: World) -> None:
    def strategies(held: str) -> set[str]:
        return set(re.findall(r'strategy="([^"]*)"', api.get("/metrics", held=held).text))

    assert strategies("owner") == {"fib_rsi", "ppo_gold"}
    assert strategies(PPO) == {"ppo_gold"}
    refused(api.get("/metrics", held=None), 401)


def test_pages_show_each_row_once_however_many_are_added_meanwhile(api: Api, engine: Engine, world: World) -> None:
    count = iter(range(10))

    def add() -> None:
        number = next(count)
        put_version(engine, f"new{number}", at=MONDAY + number * DAY)
        put_decisions(engine, decision_row("1", MONDAY + (10 + number) * HOUR))

    versions = pages(api, "/versions", add)
    decisions = pages(api, "/decisions?strategy_name=fib_rsi&version=1", add)

    shown = [each["id"] for each in versions]
    assert len(shown) == len(set(shown))
    assert set(world.ids.values()) <= set(shown)
    moments = [each["timestamp"] for each in decisions]
    assert moments == sorted(set(moments))
    assert len(moments) >= 3


def test_pages_of_the_trail_and_of_rollouts_go_on_where_they_ended(api: Api, engine: Engine, world: World) -> None:
    for number in range(5):
        roll_back(engine, Command(OWNER, NOW + number * HOUR, "again"), strategy_name="fib_rsi")
        start_rollout(
            engine,
            Command(Actor("bo"), NOW + number * HOUR, override_reason="understood"),
            strategy_name="fib_rsi",
            version="2",
            plan=read_plan(PLAN),
        )

    events, rollouts = pages(api, "/audit?strategy_name=fib_rsi"), pages(api, "/rollouts")

    assert [each["position"] for each in events] == list(range(1, 12))
    assert len(rollouts) == len({each["id"] for each in rollouts}) == 6
    assert [each["started_at"] for each in rollouts] == sorted((each["started_at"] for each in rollouts), reverse=True)
    assert {each["actor"] for each in pages(api, "/audit?actor=bo&action=start_rollout")} == {"bo"}


@pytest.mark.parametrize("cursor", ["x", "!!", "W10", "WzFd", "bnVsbA", "WyJhIiwiYiIsImMiXQ", "A" * 1001])
@pytest.mark.parametrize("path", ["/versions", "/rollouts", "/decisions?strategy_name=fib_rsi", "/audit"])
def test_a_cursor_that_no_page_gave_is_named(api: Api, world: World, path: str, cursor: str) -> None:
    if (path, cursor) == ("/audit", "WzFd"):  # it is one of that listing
        return
    sep = "&" if "?" in path else "?"

    assert fields(refused(api.get(f"{path}{sep}cursor={cursor}"), 422)) == ["cursor"]
