"""What owners were told, read over HTTP, and acknowledged there."""

from typing import Any

from sqlalchemy import Engine

from strategy_core.domain.alerts import PROPOSAL_WAITING, STALE, Fault, Severity, affected_text
from strategy_core.services.alerts import report_faults
from strategy_core.store import alerts
from strategy_core.store.engine import transaction
from tests.api.asking import WHY, Api, World
from tests.api.every import fields, refused
from tests.api.signing import NOW, token
from tests.builders import HOUR


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
    """Return the texts of the alerts, but for the one about the proposal that waits in `World`."""
    return [each["text"] for each in answer.json()["items"] if each["kind"] != PROPOSAL_WAITING]


def test_alerts_are_listed_newest_first_and_page_by_page(api: Api, engine: Engine, world: World) -> None:
    for key in "abc":
        put_alert(engine, key, "fib_rsi", "critical" if key == "b" else "info")

    first = api.get("/alerts?limit=2")
    put_alert(engine, "d", "fib_rsi")
    second = api.get(f"/alerts?limit=3&cursor={first.json()['next_cursor']}")

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


def test_an_incident_of_several_strategies_is_shown_to_a_token_of_one_without_the_names_of_the_others(
    api: Api, engine: Engine, world: World
) -> None:
    """Also if more strategies are affected than a message can name."""
    hidden = [f"secret-{number:02}" for number in range(60)]
    for strategies, symbols in (
        ([*hidden, "ppo_gold"], ["GOLD", "SILVER"]),
        (hidden, ["OIL"]),
    ):
        lost = Fault(
            symbols[0],
            STALE,
            Severity.WARNING,
            f"no candles of {affected_text(strategies, symbols)}",
            strategies,
            symbols,
            {"why": hidden[0]},
        )
        report_faults(engine, symbols[0], [lost], now=NOW)
        report_faults(engine, symbols[0], [], now=NOW + HOUR)
    limited, broad = token(strategies=["ppo_gold"]), token(strategies=["ppo_gold", *hidden])

    answer = api.get("/alerts", held=limited)

    assert texts(answer) == [
        "over: the feed is stale, affects ppo_gold and 60 other strategies",
        "the feed is stale, affects ppo_gold and 60 other strategies",
    ]
    assert "secret" not in answer.text
    assert texts(api.get("/alerts", held=token(strategies=[]))) == []
    assert answer.json()["items"][1]["facts"] == {
        "strategies": ["ppo_gold"],
        "strategy_count": 61,
        "symbols": ["GOLD", "SILVER"],
        "symbol_count": 2,
    }
    assert texts(api.get("/alerts?strategy_name=ppo_gold&severity=warning", held=limited)) == texts(answer)[1:]
    assert texts(api.get("/alerts?strategy_name=ppo_gold&severity=warning")) == [
        "no candles of 2 symbols (GOLD, SILVER) of 61 strategies "
        "(secret-00, secret-01, secret-02, secret-03, secret-04 and 56 more)"
    ]
    assert "and 56 more" in texts(api.get("/alerts?strategy_name=ppo_gold&severity=warning", held=broad))[0]
    refused(api.post(f"/alerts/{answer.json()['items'][0]['id']}/acknowledge", WHY, held=limited), 403)


def test_a_report_names_no_strategy_that_the_token_does_not_reach(api: Api, engine: Engine, world: World) -> None:
    lost = Fault("feed", STALE, Severity.WARNING, "no candles of fib_rsi and secret", ["fib_rsi", "secret"])
    report_faults(engine, "feed", [lost], now=NOW)
    api.post("/rollback", {"strategy_name": "fib_rsi", "reason": "odd fills"})
    path, limited = f"/rollouts/{world.rollout}/report", token(strategies=["fib_rsi"])

    shown, page, whole = api.get(path, held=limited), api.get(f"{path}.html", held=limited), api.get(path)

    assert [each["text"] for each in shown.json()["rolled_back"]["alerts"]] == [
        "the feed is stale, affects fib_rsi and 1 other strategy"
    ]
    assert "secret" not in shown.text + page.text
    assert [each["text"] for each in whole.json()["rolled_back"]["alerts"]] == [lost.text]


def test_who_acknowledges_first_is_kept(api: Api, world: World) -> None:
    path = f"/alerts/{world.alert}/acknowledge"
    first = api.post(path, {"reason": "I look at it"})

    second = api.post(path, {"reason": "so do I"}, held=token(sub="bo"))

    assert first.json() == second.json()
    assert (first.json()["acknowledged_by"], first.json()["acknowledged_because"]) == ("ana", "I look at it")
    assert texts(api.get("/alerts?unacknowledged=true")) == []
    assert fields(refused(api.post(path, {"reason": " "}), 422)) == ["reason"]
    assert fields(refused(api.post("/alerts/2147483648/acknowledge", WHY), 422)) == ["alert_id"]
