"""What owners were told, read over HTTP, and acknowledged there."""

from typing import Any

from sqlalchemy import Engine

from strategy_core.store import alerts
from strategy_core.store.engine import transaction
from tests.api.asking import WHY, Api, World
from tests.api.every import fields, refused
from tests.api.signing import NOW, token


def put_alert(engine: Engine, key: str, strategy_name: str, severity: str = "info") -> None:
    with transaction(engine) as session:
        alerts.raise_alert(
            session,
            "feed.stale",
            f"told of {key}",
            severity=severity,
            strategy_name=strategy_name,
            dedupe_key=key,
            facts={"version": "2"},
            now=NOW,
        )


def texts(answer: Any) -> list[str]:
    return [each["text"] for each in answer.json()["items"]]


def test_alerts_are_listed_newest_first_and_page_by_page(api: Api, engine: Engine, world: World) -> None:
    for key in "abc":
        put_alert(engine, key, "fib_rsi", "critical" if key == "b" else "info")

    first = api.get("/alerts?limit=2")
    put_alert(engine, "d", "fib_rsi")
    second = api.get(f"/alerts?limit=2&cursor={first.json()['next_cursor']}")

    assert texts(first) == ["told of c", "told of b"]
    assert texts(second)[0] == "told of a"
    assert second.json()["next_cursor"] is None
    assert texts(api.get("/alerts?severity=critical")) == ["told of b"]
    assert first.json()["items"][0] | {"id": 0} == {
        "id": 0,
        "at": "2026-03-02T09:30:00Z",
        "severity": "info",
        "kind": "feed.stale",
        "strategy_name": "fib_rsi",
        "rollout_id": None,
        "text": "told of c",
        "facts": {"version": "2"},
        "acknowledged_at": None,
        "acknowledged_by": "",
        "acknowledged_because": "",
        "deliveries": [],
    }


def test_a_token_reads_and_acknowledges_the_alerts_of_its_strategies_alone(
    api: Api, engine: Engine, world: World
) -> None:
    put_alert(engine, "a", "ppo_gold")
    put_alert(engine, "b", "")
    limited = token(strategies=["ppo_gold"])
    of_all, of_gold = api.get("/alerts?limit=2").json()["items"]

    assert texts(api.get("/alerts", held=limited)) == ["told of a"]
    refused(api.post(f"/alerts/{of_all['id']}/acknowledge", WHY, held=limited), 403)
    assert api.post(f"/alerts/{of_gold['id']}/acknowledge", WHY, held=limited).status_code == 200
    assert api.post(f"/alerts/{of_all['id']}/acknowledge", WHY).status_code == 200


def test_who_acknowledges_first_is_kept(api: Api, world: World) -> None:
    path = f"/alerts/{world.alert}/acknowledge"
    first = api.post(path, {"reason": "I look at it"})

    second = api.post(path, {"reason": "so do I"}, held=token(sub="bo"))

    assert first.json() == second.json()
    assert (first.json()["acknowledged_by"], first.json()["acknowledged_because"]) == ("ana", "I look at it")
    assert texts(api.get("/alerts?unacknowledged=true")) == []
    assert fields(refused(api.post(path, {"reason": " "}), 422)) == ["reason"]
    assert fields(refused(api.post("/alerts/2147483648/acknowledge", WHY), 422)) == ["alert_id"]
