"""What Alertmanager posts rolls back what its firing alerts name, once for each firing, whatever else it tells."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from time import monotonic
from typing import Any

import pytest
from sqlalchemy import Engine, text

from strategy_core.api.dependencies import StrategyBulkhead
from strategy_core.api.routes import PREFIX
from strategy_core.domain.audit import Command
from strategy_core.services.versions import activate_version
from strategy_core.settings import Settings
from strategy_core.store.engine import open_database
from tests.alertmanager import FIRED, alarm, notified
from tests.api.asking import FEED, Api, World, put_world
from tests.api.every import refused
from tests.api.firing import MINUTE, canaries, outcomes, post, restart, rollbacks
from tests.api.signing import NOW, token
from tests.builders import HOUR, OWNER


def test_a_firing_alert_takes_users_off_and_says_why(api: Api, engine: Engine, world: World) -> None:
    response = post(api, alarm("fib_rsi"))

    (answer,) = response.json()["alerts"]
    assert (answer["outcome"], answer["strategy_name"], answer["version"]) == ("rolled_back", "fib_rsi", "2")
    assert canaries(api) == {}
    (event,) = rollbacks(engine)
    assert event.reason == (
        "alert Bleeding, firing since 2026-03-02 01:00:00 UTC: the loss of copied accounts is beyond 2 % "
        f"(fingerprint {answer['fingerprint']}, http://monitoring.example/graph?g0.expr=loss+%3E+2)"
    )
    assert response.headers["etag"] == f'"{event.position}"'


def test_the_old_path_rolls_back_too_and_is_marked_as_deprecated(api: Api, world: World) -> None:
    response = api.post("/rollbacks", notified(alarm("fib_rsi")))

    paths = api.app.openapi()["paths"]
    assert outcomes(response) == ["rolled_back"]
    assert canaries(api) == {}
    assert paths[f"{PREFIX}/rollbacks"]["post"]["deprecated"] is True
    assert "deprecated" not in paths[f"{PREFIX}/alertmanager"]["post"]


@pytest.mark.parametrize(
    "alert",
    [
        alarm("fib_rsi", status="resolved"),
        alarm("fib_rsi", status="suppressed"),
        alarm("fib_rsi", rollout_action=""),
        alarm("fib_rsi", rollout_action="look"),
        alarm("fib_rsi", rollout_action="Rollback"),
    ],
)
def test_what_has_resolved_or_was_not_meant_to_rolls_nothing_back(api: Api, world: World, alert: Any) -> None:
    assert outcomes(post(api, alert)) == ["not_asked"]
    assert canaries(api) == {"fib_rsi": "2"}


def test_a_firing_that_is_told_again_leaves_the_next_rollout_alone(api: Api, engine: Engine, world: World) -> None:
    """Alertmanager repeats what fires; an owner has begun anew meanwhile."""
    post(api, alarm("fib_rsi"))
    idle = outcomes(post(api, alarm("fib_rsi")))
    restart(engine, FIRED + 2 * MINUTE)

    again = outcomes(post(api, alarm("fib_rsi")))

    assert (idle, again) == (["nothing_serves"], ["began_later"])
    assert canaries(api) == {"fib_rsi": "2"}
    assert len(rollbacks(engine)) == 1


def test_a_firing_that_others_acted_on_first_leaves_the_next_rollout_alone(
    api: Api, engine: Engine, world: World
) -> None:
    api.post("/rollback", {"strategy_name": "fib_rsi", "reason": "it bleeds"})
    restart(engine, FIRED + 2 * MINUTE, "3")

    assert outcomes(post(api, alarm("fib_rsi"))) == ["began_later"]
    assert canaries(api) == {"fib_rsi": "3"}


def test_clocks_that_differ_a_little_keep_nobody_on_a_version(api: Api, engine: Engine, world: World) -> None:
    """The database knows which firing has rolled back already; of any other, the doubt is the version's loss."""
    post(api, alarm("fib_rsi"))
    restart(engine, FIRED + MINUTE / 2)

    again = outcomes(post(api, alarm("fib_rsi")))
    other = outcomes(post(api, alarm("fib_rsi", alertname="Slippage")))

    assert (again, other) == (["came_again"], ["rolled_back"])


def test_an_alert_that_fires_anew_rolls_back_anew(api: Api, engine: Engine, world: World) -> None:
    post(api, alarm("fib_rsi"))
    restart(engine, FIRED + HOUR)

    assert outcomes(post(api, alarm("fib_rsi", fired=FIRED + 2 * HOUR))) == ["rolled_back"]


def test_an_alert_of_a_version_means_this_version(api: Api, engine: Engine, world: World) -> None:
    other = outcomes(post(api, alarm("fib_rsi", "3")))
    stands = canaries(api)

    assert (other, stands) == (["nothing_serves"], {"fib_rsi": "2"})
    assert outcomes(post(api, alarm("fib_rsi", "2"))) == ["rolled_back"]


def test_an_alert_of_the_active_version_undoes_its_activation(api: Api, engine: Engine, world: World) -> None:
    activate_version(engine, Command(OWNER, FIRED - HOUR), strategy_name="ppo_gold", version="2")

    nameless = outcomes(post(api, alarm("ppo_gold")))
    early = outcomes(post(api, alarm("ppo_gold", "2", fired=FIRED - 2 * HOUR)))
    named = outcomes(post(api, alarm("ppo_gold", "2")))

    assert (nameless, early, named) == (["nothing_serves"], ["began_later"], ["rolled_back"])
    assert api.get("/route?strategy_name=ppo_gold&user_id=u1").json()["version"] == "1"


def test_a_token_rolls_back_what_it_reaches_and_is_told_of_nothing_else(api: Api, world: World) -> None:
    limited = token(strategies=["fib_rsi", "nobodys"])

    response = post(api, alarm("ppo_gold"), alarm("nobodys"), alarm("fib_rsi"), held=limited)

    assert [each["outcome"] for each in response.json()["alerts"]] == ["refused", "refused", "rolled_back"]
    assert "ppo_gold" not in response.json()["alerts"][1]["detail"]


def test_a_token_to_read_is_refused_before_the_night_it_matters(api: Api, world: World) -> None:
    refused(post(api, alarm("fib_rsi", status="resolved"), held="reader"), 403)


def test_a_key_of_a_careless_proxy_changes_nothing(api: Api, engine: Engine, world: World) -> None:
    """An answer that is kept would be given again where the alert asks for more than it did."""
    key = {"Idempotency-Key": "always the same"}
    post(api, alarm("fib_rsi"), headers=key)
    restart(engine, FIRED + MINUTE / 4)

    again = post(api, alarm("fib_rsi"), headers=key)

    assert outcomes(again) == ["came_again"]
    assert "idempotency-replayed" not in again.headers


def test_what_failed_is_told_again_and_then_done(api: Api, world: World) -> None:
    """503 makes Alertmanager repeat the whole; what was done is not done again."""
    api("PATCH", "/rollout", json={"strategy_name": "ppo_gold", "version": "2", "rollout_percent": 5})
    bulkhead = StrategyBulkhead(slots=1, patience_s=0)
    api.app.state.backend = replace(api.app.state.backend, rollback_bulkhead=bulkhead)
    bulkhead.acquire("ppo_gold")
    late = NOW + HOUR

    first = post(api, alarm("ppo_gold", fired=late), alarm("fib_rsi", fired=late))
    meanwhile = canaries(api)
    bulkhead.release("ppo_gold")
    second = post(api, alarm("ppo_gold", fired=late), alarm("fib_rsi", fired=late))

    assert "1 of 2" in refused(first, 503)["detail"]
    assert meanwhile == {"ppo_gold": "2"}
    assert sorted(outcomes(second)) == ["nothing_serves", "rolled_back"]
    assert canaries(api) == {}


@pytest.mark.full
def test_a_stuck_strategy_holds_up_no_other_of_its_notification(postgresql_url: str) -> None:
    engine, other = open_database(postgresql_url), open_database(postgresql_url)
    put_world(engine)
    api = Api(engine)
    api("PATCH", "/rollout", json={"strategy_name": "ppo_gold", "version": "2", "rollout_percent": 5})
    with ThreadPoolExecutor(1) as pool, other.connect() as holder:
        holder.execute(text("SELECT 1 FROM strategy WHERE name = 'ppo_gold' FOR UPDATE"))
        answer = pool.submit(post, api, alarm("ppo_gold", fired=NOW + HOUR), alarm("fib_rsi"))
        deadline = monotonic() + 60
        while "fib_rsi" in canaries(api):
            assert monotonic() < deadline
        waiting = not answer.done()
        holder.rollback()

        assert waiting
        assert outcomes(answer.result()) == ["rolled_back", "rolled_back"]
    for each in (engine, other):
        each.dispose()


@pytest.mark.parametrize(("minutes", "outcome"), [(1, "began_later"), (9, "rolled_back")])
def test_a_replays_rollout_is_set_against_the_alert_by_the_replays_clock(
    engine: Engine, world: World, minutes: int, outcome: str
) -> None:
    """An hour a minute: the rollout began three real minutes after the replay did."""
    began = datetime.now(UTC) - 10 * MINUTE
    settings = Settings(feed=FEED, replay_from=NOW, replay_started_at=began, replay_speed=60)
    api = Api(engine, settings)
    api.app.state.backend = replace(api.app.state.backend, clock=settings.now)
    api.post("/rollback", {"strategy_name": "fib_rsi", "reason": "it bleeds"})
    restart(engine, NOW + 3 * HOUR, "3")

    assert outcomes(post(api, alarm("fib_rsi", fired=began + minutes * MINUTE))) == [outcome]
