"""Rollouts, canaries and rollbacks over HTTP: what owners say, and to which of them."""

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Engine

from strategy_core.domain.audit import Command
from strategy_core.domain.plan import read_plan
from strategy_core.domain.policy import Policy
from strategy_core.domain.ramp import State
from strategy_core.domain.routing import bucket_of
from strategy_core.market.source import ReplayClock
from strategy_core.services.database import start_clock
from strategy_core.services.declarations import set_policy
from strategy_core.services.rollback import roll_back
from strategy_core.services.rollouts import start_rollout
from strategy_core.services.versions import activate_version
from strategy_core.settings import Settings
from tests.api.asking import DAILY, FEED, PLAN, WHY, Api, World, put_state
from tests.api.every import fields, refused
from tests.api.signing import NOW, token
from tests.builders import HOUR, MONDAY, OWNER


def test_a_canary_is_made_by_hand_and_widened_by_hand(api: Api, world: World) -> None:
    share = {"strategy_name": "ppo_gold", "version": "2", "rollout_percent": 5}
    first = api("PATCH", "/rollout", json=share)

    wider = api(
        "PATCH", "/rollout", json={**share, "rollout_percent": 12.34}, headers={"If-Match": first.headers["etag"]}
    )

    assert first.json()["rollout_percent"] == 5.0
    assert wider.json()["rollout_percent"] == 12.34
    (canary,) = api.get("/canary?strategy_name=ppo_gold").json()["items"]
    assert (canary["version"], canary["rollout_percent"], canary["generation"]) == ("2", 12.34, 2)


@pytest.mark.parametrize("percent", [-0.01, 100.01, 1.234, "5", True, None, 1e300])
def test_a_share_that_is_none_is_named(api: Api, world: World, percent: object) -> None:
    wish = {"strategy_name": "ppo_gold", "version": "2", "rollout_percent": percent}

    assert fields(refused(api("PATCH", "/rollout", json=wish), 422)) == ["rollout_percent"]


def test_a_second_canary_is_refused_and_so_is_a_hand_in_a_running_rollout(api: Api, world: World) -> None:
    for version in ("2", "3"):
        refused(
            api("PATCH", "/rollout", json={"strategy_name": "fib_rsi", "version": version, "rollout_percent": 5}), 409
        )
    refused(api.get("/canary?strategy_name=ppo_gold"), 404)


def test_a_paused_canary_is_moved_by_hand_and_no_other_one(api: Api, engine: Engine, world: World) -> None:
    put_state(engine, State.PAUSED)

    moved = api("PATCH", "/rollout", json={"strategy_name": "fib_rsi", "version": "2", "rollout_percent": 1})

    assert moved.json()["rollout_percent"] == 1.0
    refused(api("PATCH", "/rollout", json={"strategy_name": "fib_rsi", "version": "3", "rollout_percent": 5}), 409)


def test_a_rollout_is_shown_with_its_gates_and_what_it_waits_for(api: Api, world: World) -> None:
    shown = api.get(f"/rollouts/{world.rollout}").json()

    assert (shown["state"], shown["stages"], shown["stage_index"]) == ("running", [5.0, 100.0], 0)
    assert [(each["gate"], each["verdict"]) for each in shown["verdicts"]] == [("errors", "pass")]
    assert shown["needs"]
    assert api.get(f"/rollouts/{world.rollout}/verdicts?gate=errors").json()[0]["reason"] == "0 of 3 decisions failed"
    assert fields(refused(api.get(f"/rollouts/{world.rollout}/verdicts?gate=nonsense"), 422)) == ["gate"]


def test_a_plan_of_the_policy_is_started_by_name(api: Api, engine: Engine, world: World) -> None:
    policy = Policy(plans={"careful": read_plan(PLAN)})
    set_policy(engine, Command(OWNER, NOW), strategy_name="ppo_gold", policy=policy)
    wish = {"strategy_name": "ppo_gold", "version": "2"}

    assert refused(api.post("/rollouts", json=wish), 409)["type"] == "/problems/plan-not-allowed"
    assert refused(api.post("/rollouts", json={**wish, "plan": "bold"}), 404)["detail"].endswith("plans: careful")
    started = api.post("/rollouts", json={**wish, "plan": "careful"}).json()

    assert api.get(f"/rollouts/{started['id']}").json()["stages"] == [5.0, 100.0]
    assert started["warning"].startswith("2 has 0 slots on 0 days in shadow, ")


@pytest.mark.parametrize(
    ("plan", "field"),
    [
        ({**PLAN, "bake": -1}, "plan.bake"),
        ({**PLAN, "bake": 1e300}, "plan.bake"),
        ({**PLAN, "stages": [{**DAILY, "percent": 101}]}, "plan.stages.0.percent"),
        ({**PLAN, "gates": [{"kind": "nonsense"}]}, "plan.gates.0"),
        ({**PLAN, "stages": []}, "plan"),
        ({"nonsense": 1}, "plan.nonsense"),
    ],
)
def test_a_plan_that_is_none_is_named(api: Api, world: World, plan: Any, field: str) -> None:
    problem = refused(api.post("/rollouts", {"strategy_name": "ppo_gold", "version": "2", "plan": plan}), 422)

    assert fields(problem) == [field]


def test_a_preview_names_no_canary_that_the_token_does_not_reach(api: Api, world: World) -> None:
    ask: dict[str, Any] = {"strategy_name": "ppo_gold", "version": "2"}

    everybodys = api.post("/rollouts/plan", ask).json()["audience"]["overlaps"]
    limited = api.post("/rollouts/plan", ask, held=token(strategies=["ppo_gold"])).json()["audience"]["overlaps"]

    assert [each["strategy_name"] for each in everybodys] == ["fib_rsi"]
    assert limited == []


def test_a_plan_without_a_vote_is_refused(api: Api, world: World) -> None:
    plan = {**PLAN, "gates": [{"kind": "errors", "dry_run": True}]}

    problem = refused(api.post("/rollouts", {"strategy_name": "ppo_gold", "version": "2", "plan": plan}), 409)

    assert problem["type"] == "/problems/unarmed-plan"


@pytest.mark.parametrize("said", ["pause", "resume", "approve", "decide", "rollback"])
def test_what_is_said_to_a_rollout_that_has_ended_reaches_no_other(
    api: Api, engine: Engine, world: World, said: str
) -> None:
    roll_back(engine, Command(OWNER, NOW, "it bleeds"), strategy_name="fib_rsi")
    start_rollout(
        engine,
        Command(OWNER, NOW, override_reason="understood"),
        strategy_name="fib_rsi",
        version="2",
        plan=read_plan(PLAN),
    )
    body = {**WHY, "choice": "rollback"} if said == "decide" else WHY

    answer = api.post(f"/rollouts/{world.rollout}/{said}", body)

    if said == "rollback":
        assert answer.headers["rolled-back-before"].endswith(" by ana")
    elif said == "decide":
        assert refused(answer, 409)["type"] == "/problems/already-rolled-back"
    else:
        assert refused(answer, 409)["state"] == "rolled_back"
    assert api.get("/rollouts").json()["items"][0]["state"] == "running"


def test_a_symbol_is_excluded(api: Api, world: World) -> None:
    in_canary = next(user for user in map(str, range(1_000)) if bucket_of(user) < 500)

    def served(symbol: str) -> str:
        found = api.get(f"/route?strategy_name=fib_rsi&user_id={in_canary}&symbol={symbol}").json()
        return f"{found['version']}: {found['why']}"

    api.post(f"/rollouts/{world.rollout}/exclude", {**WHY, "symbol": "OIL"})

    assert served("OIL") == "1: OIL is excluded from the canary"
    assert served("GOLD").startswith("2: bucket")
    routing = {each["strategy_name"]: each["excluded_symbols"] for each in api.get("/routing").json()["strategies"]}
    assert routing == {"fib_rsi": ["OIL", "SILVER"], "ppo_gold": []}
    problem = refused(api.post(f"/rollouts/{world.rollout}/exclude", {**WHY, "symbol": "GOLD"}), 409)
    assert (problem["type"], problem["symbol"]) == ("/problems/cannot-exclude", "GOLD")


def test_a_rollback_needs_a_reason_and_nothing_else(api: Api, world: World) -> None:
    wish = {"strategy_name": "fib_rsi"}

    assert fields(refused(api.post("/rollback", wish), 422)) == ["reason"]
    assert fields(refused(api.post("/rollback", {**wish, "reason": " "}), 422)) == ["reason"]
    done = api.post("/rollback", {**wish, "reason": "it bleeds"}, headers={"If-Match": '"99999"'})
    assert done.json() == {"strategy_name": "fib_rsi", "version": "2"}
    assert done.headers["etag"] == '"2"'


def test_an_activation_is_undone_by_name(api: Api, engine: Engine, world: World) -> None:
    activate_version(engine, Command(OWNER, NOW), strategy_name="ppo_gold", version="2")

    refused(api.post("/rollback", {"strategy_name": "ppo_gold", **WHY}), 409)
    api.post("/rollback", {"strategy_name": "ppo_gold", "version": "2", **WHY})

    assert api.get("/route?strategy_name=ppo_gold&user_id=u1").json()["version"] == "1"
    problem = refused(api.post(f"/versions/{world.ids['ppo_gold', '2']}/activate", {}), 409)
    assert problem["type"] == "/problems/quarantined"
    again = api.post(f"/versions/{world.ids['ppo_gold', '2']}/activate", {"override_reason": "understood"})
    assert again.status_code == 200


def test_where_a_second_owner_is_demanded_the_first_may_only_hold_and_roll_back(engine: Engine, world: World) -> None:
    api = Api(engine, Settings(feed=FEED, four_eyes=True))
    put_state(engine, State.AWAITING_APPROVAL)
    approve = f"/rollouts/{world.rollout}/approve"

    assert refused(api.post(approve, WHY), 403)["type"] == "/problems/four-eyes"
    assert refused(api.post(approve, {}, held=token(sub="bo")), 422)["type"] == "/problems/missing-reason"
    assert api.post(approve, WHY, held=token(sub="bo")).status_code == 200
    assert api.post(f"/rollouts/{world.rollout}/rollback", WHY).status_code == 200


def test_the_last_version_is_retired_where_the_strategy_is_to_be_closed(api: Api, world: World) -> None:
    for version in ("2", "3"):
        api.post(f"/versions/{world.ids['ppo_gold', version]}/retire")
    last = f"/versions/{world.ids['ppo_gold', '1']}/retire"

    refused(api.post(last), 409)
    closed = api.post(last, {"close": True, "reason": "no users left"})

    assert (closed.status_code, closed.json()["status"]) == (200, "retired")
    problem = refused(api.get("/route", params={"user_id": "u1", "strategy_name": "ppo_gold"}), 404)
    assert problem["detail"].startswith("'ppo_gold' is closed: no version is active, so its users get none")


def test_the_api_uses_the_clock_of_the_database_and_says_when_clocks_disagree(engine: Engine, world: World) -> None:
    start_clock(engine, ReplayClock(None, MONDAY + 2 * HOUR))
    server = Api(engine, Settings(feed=FEED))
    backend = server.app.state.backend
    server.app.state.backend = replace(backend, clock=backend.database_clock.now)

    backend.database_clock.refresh()
    by_the_replay = server.get(f"/rollouts/{world.rollout}").json()
    start_clock(engine, ReplayClock(None, MONDAY - HOUR))
    backend.database_clock.refresh()
    before_it_began = server.get(f"/rollouts/{world.rollout}").json()
    undone = server.post("/rollback", {"strategy_name": "fib_rsi", **WHY})

    assert (by_the_replay["minimum_left_s"], by_the_replay["clock_disagrees"]) == (22 * 3600, "")
    assert (before_it_began["minimum_left_s"], before_it_began["maximum_left_s"]) == (None, None)
    assert before_it_began["clock_disagrees"].startswith("clock disagrees: the database has a time of 2026-03-02 00:00")
    assert before_it_began["needs"] == [before_it_began["clock_disagrees"]]
    assert undone.status_code == 200
