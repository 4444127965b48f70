"""Trades, comparisons, routing and the trail over HTTP."""

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine

from strategy_core.domain.audit import Command
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.user_exclusions import ExclusionKind
from strategy_core.services.canary import activate_canary
from strategy_core.services.rollback import roll_back
from strategy_core.services.user_exclusions import exclude_users
from tests.api.asking import SAMPLES, TRADE, WHY, Api, World
from tests.api.every import fields, refused
from tests.api.signing import NOW, token
from tests.builders import DAY, MONDAY, OWNER, put_version

PPO = token(strategies=["ppo_gold"])


def test_a_user_is_told_his_version_and_why(api: Api, world: World) -> None:
    inside = api.get("/route?strategy_name=fib_rsi&user_id=u13").json()
    outside = api.get("/route?strategy_name=fib_rsi&user_id=u2").json()

    assert (inside["version"], inside["in_canary"], inside["why"]) == ("2", True, "bucket 4.68 < canary percent 5.00")
    assert (outside["version"], outside["in_canary"]) == ("1", False)


def test_routers_are_told_in_full_only_when_something_has_changed(api: Api, engine: Engine, world: World) -> None:
    put_version(engine, "1", Status.SHADOW, strategy_name="asleep")
    empty = api.get("/routing")
    exclude_users(engine, Command(OWNER, NOW), strategy_name="fib_rsi", user_ids=["u13"], kind=ExclusionKind.OPT_OUT)
    first = api.get("/routing", headers={"If-None-Match": empty.headers["etag"]})
    known = {"If-None-Match": first.headers["etag"]}

    same = api.get("/routing", headers=known)
    roll_back(engine, Command(OWNER, NOW, "it bleeds"), strategy_name="fib_rsi")
    other = api.get("/routing", headers=known)

    asleep, fib_rsi, _ = first.json()["strategies"]
    assert asleep["active"] is None
    assert fib_rsi == {
        "strategy_name": "fib_rsi",
        "active": "1",
        "canary": "2",
        "rollout_percent": 5.0,
        "salt": "",
        "generation": 2,
        "excluded_symbols": ["SILVER"],
        "kept_users": "a037d7f9a0a8f3793599a6185052052a",
        "always_users": None,
        "exit_only_users": None,
    }
    assert first.json()["user_sets"]["a037d7f9a0a8f3793599a6185052052a"] == ["u13", "u99"]
    assert (same.status_code, same.content) == (304, b"")
    assert other.json()["strategies"][1]["canary"] is None
    assert other.headers["etag"] != first.headers["etag"]


def test_users_of_many_canaries_are_sent_once_and_only_if_asked_for(api: Api, engine: Engine, world: World) -> None:
    for name in ("aa", "bb", "cc"):
        put_version(engine, "1", Status.ACTIVE, strategy_name=name)
        put_version(engine, "2", strategy_name=name)
        activate_canary(engine, Command(OWNER, NOW), strategy_name=name, version="2", rollout_percent=20)
    users = sorted(f"u{number}" for number in range(1_000))
    exclude_users(engine, Command(OWNER, NOW), strategy_name="*", user_ids=users, kind=ExclusionKind.OPT_OUT)

    whole, bare = api.get("/routing"), api.get("/routing?users=none")
    (key,) = {row["kept_users"] for row in bare.json()["strategies"] if row["strategy_name"] in ("aa", "bb", "cc")}
    one = api.get(f"/routing?users={key}")

    assert whole.text.count('"u500"') == len(whole.json()["user_sets"])
    assert whole.json()["user_sets"][key] == users
    assert bare.json() == {"strategies": whole.json()["strategies"], "user_sets": {}}
    assert bare.headers["etag"] == whole.headers["etag"]
    assert one.json() == {"strategies": [], "user_sets": {key: users}}
    assert api.get("/routing?users=gone").json() == {"strategies": [], "user_sets": {}}
    assert api.get(f"/routing?users={key}", held=PPO).json()["user_sets"] == {}


def test_trades_are_taken_in_once_and_whole(api: Api, world: World) -> None:
    first = api.post("/outcomes", {"trades": [TRADE]})
    again = api.post("/outcomes", {"trades": [TRADE, {**TRADE, "trade_id": "t2"}]})

    assert first.json() == {"new": 1, "known": 0, "misrouted": 0}
    assert again.json() == {"new": 1, "known": 1, "misrouted": 0}
    refused(api.post("/outcomes", {"trades": [{**TRADE, "symbol": "GOLD", "user_id": "u3"}]}), 409)
    refused(api.post("/outcomes", {"trades": [TRADE, {**TRADE, "strategy_name": "ppo_gold"}]}, held=PPO), 403)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"symbol": "TIN"}, "trades.1.symbol"),
        ({"pnl": "much"}, "trades.1.pnl"),
        ({"opened_at": "2026-03-02T10:00:00"}, "trades.1.opened_at"),
        ({"opened_at": 1772000000}, "trades.1.opened_at"),
        ({"opened_at": (NOW + DAY).isoformat()}, "trades.1.opened_at"),
        ({"nonsense": 1}, "trades.1.nonsense"),
    ],
)
def test_a_trade_that_is_none_is_named_by_its_place(
    api: Api, world: World, changes: dict[str, Any], field: str
) -> None:
    problem = refused(api.post("/outcomes", {"trades": [TRADE, {**TRADE, "trade_id": "t2", **changes}]}), 422)

    assert fields(problem)[0] == field


def test_no_more_trades_than_a_batch_may_hold(api: Api, world: World) -> None:
    trades = [{"trade_id": "x"}] * 10_001

    assert fields(refused(api.post("/outcomes", {"trades": trades}), 422))[0] == "trades"


def test_two_versions_are_compared(api: Api, world: World) -> None:
    wish = {"strategy_name": "fib_rsi", "shadow_version": "2", "start": MONDAY.isoformat(), "end": NOW.isoformat()}

    found = api.post("/shadow-comparison", {**wish, "by_regime": True}).json()

    assert (found["candles_compared"], found["shadow_signal_count"], found["divergence_rate"]) == (3, 3, 0.0)
    assert found["by_regime"]
    assert fields(refused(api.post("/shadow-comparison", {**wish, "days": 3}), 422)) == ["period"]
    assert fields(refused(api.post("/shadow-comparison", {**wish, "end": wish["start"]}), 422)) == ["start", "end"]


def test_the_trail_tells_what_stood_when(api: Api, engine: Engine, world: World) -> None:
    api.post("/rollback", {"strategy_name": "fib_rsi", **WHY})
    at = (MONDAY + timedelta(minutes=1)).isoformat()

    then = api.get("/audit/state", params={"strategy_name": "fib_rsi", "at": at}).json()
    whole = api.get("/audit/verify").json()

    assert (then["active"], then["canary"], then["percent"]) == ("1", "2", 5.0)
    assert then["made_by"]["canary"]["actor"] == "ana"
    assert [each["breaks"] for each in whole["trails"]] == [[], []]
    problems = {(each["table"], each["row"], each["problem"]) for each in whole["trails"][0]["mismatches"]}
    assert whole["holds"] is False
    assert ("strategy_version", "1", "has no audit event that created it") in problems
    early = api.get("/audit/state", params={"strategy_name": "fib_rsi", "at": "2020-01-01T00:00:00Z"})
    assert refused(early, 404)["type"] == "/problems/nothing-recorded"


def test_a_replay_of_decided_candles_adds_nothing(api: Api, world: World) -> None:
    wish = SAMPLES["replay"].json

    (ours, theirs) = api.post("/replays", wish).json()["versions"]

    assert (ours["version"], theirs["version"]) == ("2", "1")
    assert (ours["candles"], ours["decided"], ours["revised"]) == (3, 0, 3)
    assert ours["notes"][0] == "nothing new: 2 was replayed on these candles before"
    assert ours["notes"][1].startswith("the feed has revised candles since 2 was replayed on them: 3 decisions")


def test_a_replay_of_a_version_whose_code_has_changed_is_refused(api: Api, world: World) -> None:
    problem = refused(api.post("/replays", {**SAMPLES["replay"].json, "version": "3"}), 409)

    assert problem["type"] == "/problems/fingerprint-mismatch"


def test_a_replay_of_a_period_without_candles_is_refused(api: Api, world: World) -> None:
    empty = {"start": "2010-01-01T00:00Z", "end": "2010-02-01T00:00Z"}

    problem = refused(api.post("/replays", {**SAMPLES["replay"].json, **empty}), 422)

    assert problem["type"] == "/problems/nothing-to-replay"


def test_a_rollout_on_past_candles_is_told_stage_by_stage(api: Api, world: World) -> None:
    found = api.post("/whatif", SAMPLES["whatif"].json).json()

    assert (found["active"], found["ended"], found["ticks"]) == ("1", "running", 3)
    assert found["verdict"].startswith("fib_rsi 2 would still be at 5 % on 2024-10-07 03:00 UTC, 3 h after its start")
    assert [stage["name"] for stage in found["stages"]] == ["5 %"]
    assert (found["earned"]["users"], found["bound"]) == ([0.0], None)
    assert found["notes"][0] == found["verdict"]


def test_a_rollout_on_more_candles_than_a_request_may_take_is_refused(api: Api, world: World) -> None:
    years = {"start": "2010-01-01T00:00Z", "end": "2014-01-01T00:00Z"}

    problem = refused(api.post("/whatif", {**SAMPLES["whatif"].json, **years}), 422)

    assert problem["type"] == "/problems/invalid-setting"
    assert "at most 20,000 candles (833 days). The command whatif takes longer ones" in problem["detail"]
