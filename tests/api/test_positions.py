"""Positions over the API: a platform reads exits from where it was, and compares what it has open."""

from datetime import timedelta

from sqlalchemy import Engine

from strategy_core.services.drain import drain
from strategy_core.services.live_trades import ingest
from tests.api.asking import Api, World
from tests.api.every import refused
from tests.api.signing import NOW, token
from tests.builders import HOUR, MONDAY
from tests.services.random_owners import NeverClosed

TRADE = {"user_id": "u7", "strategy_name": "fib_rsi", "version": "1", "symbol": "GOLD", "opened_at": MONDAY}
WHY = {"strategy_name": "fib_rsi", "reason": "its code has a defect"}


def put_trades(engine: Engine) -> None:
    ingest(engine, [{**TRADE, "trade_id": f"t{number}", "side": "buy"} for number in range(3)], now=MONDAY + HOUR)


def test_positions_are_listed_page_by_page_in_the_order_of_their_opening(
    api: Api, engine: Engine, world: World
) -> None:
    put_trades(engine)

    first = api.get("/positions?strategy_name=fib_rsi&limit=3").json()
    rest = api.get(f"/positions?strategy_name=fib_rsi&limit=3&cursor={first['next_cursor']}").json()

    assert [each["trade_id"] for each in first["items"] + rest["items"]] == ["held", "t0", "t1", "t2"]
    assert rest["next_cursor"] is None
    assert [each["trade_id"] for each in api.get("/positions?user_id=u3").json()["items"]] == ["held"]
    assert api.get("/positions?version=1").json()["items"][0]["side"] == "buy"
    assert api.get("/positions", held=token(strategies=["other"])).json()["items"] == []
    assert refused(api.get("/positions?strategy_name=fib_rsi&version=9"), 404)["known"] == ["1", "2", "3"]


def test_exits_are_read_from_where_the_platform_was(api: Api, engine: Engine, world: World) -> None:
    put_trades(engine)
    api.post("/positions/flatten", {**WHY, "version": "1", "after": 3_600})
    api.post("/positions/flatten", {**WHY, "version": "3"})
    market = NeverClosed(works=True)

    drain(engine, market, now=NOW)
    first = api.get("/positions/exits").json()
    drain(engine, market, now=NOW + timedelta(hours=1))
    rest = api.get(f"/positions/exits?since={first['next_since']}").json()

    assert [(each["trade_id"], each["manager"], each["why"]) for each in first["items"]] == [("held", "3", "flatten")]
    assert [each["trade_id"] for each in rest["items"]] == ["t0", "t1", "t2"]
    assert api.get(f"/positions/exits?since={rest['next_since']}").json() == {
        "items": [],
        "next_since": rest["next_since"],
    }
    assert api.get("/positions/exits", held=token(strategies=["other"])).json()["items"] == []
    beyond = refused(api.get(f"/positions/exits?since={rest['next_since'] + 1}"), 409)
    assert (beyond["type"], beyond["newest"]) == ("/problems/exits-lost", rest["next_since"])


def test_a_snapshot_lists_what_differs_and_what_is_held_is_counted(api: Api, engine: Engine, world: World) -> None:
    put_trades(engine)
    trades = [{"trade_id": "t0", "size": 0.5}, {"trade_id": "t1"}, {"trade_id": "x"}]

    body = {"strategy_name": "fib_rsi", "taken_at": NOW.isoformat(), "trades": trades}
    found = api.post("/positions/snapshot", body).json()

    assert found == {"matched": 2, "missing": ["held", "t2"], "unknown": ["x"], "closed": [], "resized": 1}
    late = refused(api.post("/positions/snapshot", {**body, "taken_at": MONDAY.isoformat()}), 422)
    assert late["errors"][0]["field"] == "taken_at"
    held = api.get("/positions/held?strategy_name=fib_rsi").json()
    assert (held["total"], held["by_manager"], held["missing"]) == (4, {"1": 3, "3": 1}, 2)


def test_a_retirement_and_a_hand_over_name_what_would_be_allowed(api: Api, engine: Engine, world: World) -> None:
    retired = api.post(f"/versions/{world.ids['fib_rsi', '3']}/retire", {"reason": "not needed"})
    handed = api.post("/positions/hand-over", {**WHY, "version": "3", "to_version": "3"})

    assert refused(retired, 409)["number"] == 1
    assert refused(handed, 409)["allowed"] == ["1", "2", "flatten"]
