"""What each noun's endpoints answer, in full: who is told what, where it is found again, and what is left out."""

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, text

from strategy_core.domain.audit import Actor
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import read_plan
from strategy_core.domain.ramp import State
from strategy_core.services.promote import activate_version
from strategy_core.services.rollback import roll_back
from strategy_core.services.start import start_rollout
from strategy_core.settings import Settings
from strategy_core.store.engine import open_database
from tests.api.asking import DAILY, FEED, PLAN, REGISTRATION, TRADE, WHY, Api, World, put_state
from tests.api.signing import NOW, token
from tests.api.test_every_route import fields, refused
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


def test_a_plan_without_a_vote_is_refused(api: Api, world: World) -> None:
    plan = {**PLAN, "gates": [{"kind": "errors", "dry_run": True}]}

    problem = refused(api.post("/rollouts", {"strategy_name": "ppo_gold", "version": "2", "plan": plan}), 409)

    assert problem["type"] == "/problems/unarmed-plan"


@pytest.mark.parametrize("said", ["pause", "resume", "approve", "decide", "rollback"])
def test_what_is_said_to_a_rollout_that_has_ended_reaches_no_other(
    api: Api, engine: Engine, world: World, said: str
) -> None:
    roll_back(engine, strategy_name="fib_rsi", actor=OWNER, now=NOW, reason="it bleeds")
    start_rollout(
        engine,
        strategy_name="fib_rsi",
        version="2",
        plan=read_plan(PLAN),
        actor=OWNER,
        now=NOW,
        override_reason="understood",
    )
    body = {**WHY, "choice": "rollback"} if said == "decide" else WHY

    problem = refused(api.post(f"/rollouts/{world.rollout}/{said}", body), 409)

    assert problem["state"] == "rolled_back"
    assert api.get("/rollouts").json()["items"][0]["state"] == "running"


def test_a_rollback_needs_a_reason_and_nothing_else(api: Api, world: World) -> None:
    wish = {"strategy_name": "fib_rsi"}

    assert fields(refused(api.post("/rollback", wish), 422)) == ["reason"]
    assert fields(refused(api.post("/rollback", {**wish, "reason": " "}), 422)) == ["reason"]
    done = api.post("/rollback", {**wish, "reason": "it bleeds"}, headers={"If-Match": '"99999"'})
    assert done.json() == {"strategy_name": "fib_rsi", "version": "2"}
    assert done.headers["etag"] == '"2"'


def test_an_activation_is_undone_by_name(api: Api, engine: Engine, world: World) -> None:
    activate_version(engine, strategy_name="ppo_gold", version="2", actor=OWNER, now=NOW)

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
    assert api.post(approve, WHY, held=token(sub="bo")).status_code == 200
    assert api.post(f"/rollouts/{world.rollout}/rollback", WHY).status_code == 200


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
        roll_back(engine, strategy_name="fib_rsi", actor=OWNER, now=NOW + number * HOUR, reason="again")
        start_rollout(
            engine,
            strategy_name="fib_rsi",
            version="2",
            plan=read_plan(PLAN),
            actor=Actor("bo"),
            now=NOW + number * HOUR,
            override_reason="understood",
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


def test_a_user_is_told_his_version_and_why(api: Api, world: World) -> None:
    inside = api.get("/route?strategy_name=fib_rsi&user_id=u13").json()
    outside = api.get("/route?strategy_name=fib_rsi&user_id=u2").json()

    assert (inside["version"], inside["in_canary"], inside["why"]) == ("2", True, "bucket 4.68 < canary percent 5.00")
    assert (outside["version"], outside["in_canary"]) == ("1", False)


def test_routers_are_told_in_full_only_when_something_has_changed(api: Api, engine: Engine, world: World) -> None:
    put_version(engine, "1", Status.SHADOW, strategy_name="asleep")
    first = api.get("/routing")
    known = {"If-None-Match": first.headers["etag"]}

    same = api.get("/routing", headers=known)
    roll_back(engine, strategy_name="fib_rsi", actor=OWNER, now=NOW, reason="it bleeds")
    other = api.get("/routing", headers=known)

    asleep, fib_rsi, _ = first.json()["strategies"]
    assert asleep["active"] is None
    assert fib_rsi == {
        "strategy_name": "fib_rsi",
        "active": "1",
        "canary": "2",
        "rollout_percent": 5.0,
        "salt": "",
        "generation": 1,
    }
    assert (same.status_code, same.content) == (304, b"")
    assert other.json()["strategies"][1]["canary"] is None
    assert other.headers["etag"] != first.headers["etag"]


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


def test_a_feed_that_cannot_be_had_is_not_the_clients_fault(engine: Engine, world: World) -> None:
    api = Api(engine, Settings(feed="csv:/nowhere"))

    response = api.post("/versions", REGISTRATION)

    refused(response, 503)
    assert response.headers["retry-after"]


def test_the_trail_tells_what_stood_when(api: Api, engine: Engine, world: World) -> None:
    api.post("/rollback", {"strategy_name": "fib_rsi", **WHY})
    at = (MONDAY + timedelta(minutes=1)).isoformat()

    then = api.get("/audit/state", params={"strategy_name": "fib_rsi", "at": at}).json()
    whole = api.get("/audit/verify").json()

    assert (then["active"], then["canary"], then["percent"]) == ("1", "2", 5.0)
    assert then["made_by"]["canary"]["actor"] == "ana"
    assert whole["holds"] is True
    early = api.get("/audit/state", params={"strategy_name": "fib_rsi", "at": "2020-01-01T00:00:00Z"})
    assert refused(early, 404)["type"] == "/problems/nothing-recorded"


def test_numbers_are_read_when_they_are_asked_for(api: Api, engine: Engine, world: World) -> None:
    before = api.get("/metrics").text
    roll_back(engine, strategy_name="fib_rsi", actor=OWNER, now=NOW, reason="it bleeds")
    activate_version(engine, strategy_name="ppo_gold", version="2", actor=OWNER, now=NOW)
    after = api.get("/metrics").text

    assert 'canary_traffic_percent{strategy="fib_rsi",version="2"} 5.0' in before
    assert 'rollout_open{stage="0",state="running",strategy="fib_rsi",version="2"} 1.0' in before
    assert 'canary_traffic_percent{strategy="fib_rsi",version="2"} 0.0' in after
    assert 'version_activations_total{strategy="ppo_gold",version="2"} 1.0' in after
    assert 'strategy_generation{strategy="fib_rsi"} 2.0' in after
    assert "rollout_open{" not in after


def test_health_is_told_to_anybody_and_says_nothing_else(api: Api, tmp_path: Any) -> None:
    empty = Api(open_database(f"sqlite:///{tmp_path}/empty.db"))

    assert api.get("/healthz", held=None).json() == {"status": "ok"}
    problem = refused(empty.get("/healthz", held=None), 503)
    assert "empty.db" not in str(problem)


def test_a_database_that_is_away_is_told_as_such() -> None:
    away = Api(open_database("postgresql://nobody:secret@127.0.0.1:1/nothing"))

    for response in (
        away.get("/healthz", held=None),
        away.get("/versions"),
        away.post("/rollback", {"strategy_name": "x", **WHY}),
    ):
        assert "secret" not in str(refused(response, 503))
        assert response.headers["retry-after"] == "5"


def test_a_fault_of_this_software_is_told_by_its_request_alone(api: Api, engine: Engine, world: World) -> None:
    """The trace goes to the log, and the client gets the id to find it by."""
    with engine.begin() as connection:
        connection.execute(text("UPDATE rollout SET stage_index = 99"))

    response = api.get(f"/rollouts/{world.rollout}", headers={"X-Request-Id": "r-7"})

    problem = refused(response, 500)
    assert "Traceback" not in response.text
    assert (problem["type"], response.headers["x-request-id"]) == ("/problems/internal-error", "r-7")


def test_questions_that_take_long_leave_room_for_a_rollback(api: Api, world: World) -> None:
    heavy = api.app.state.backend.heavy
    while heavy.acquire(blocking=False):
        pass

    refused(api.post("/shadow-comparison", {"strategy_name": "fib_rsi", "shadow_version": "2"}), 503)
    assert api.post("/rollback", {"strategy_name": "fib_rsi", **WHY}).status_code == 200
