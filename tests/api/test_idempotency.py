"""A wish that comes again under its key is answered again, and done once; a key never keeps users on a version."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlmodel import Session, select

from strategy_core.store.engine import reading
from strategy_core.store.tables import ApiAnswer, AuditEvent
from tests.api.asking import WHY, Api, World, placed
from tests.api.every import fields, refused
from tests.api.signing import NOW, token

ACTIVATE = "/versions/{ppo_gold/2}/activate"
KEY = {"Idempotency-Key": "k1"}


def events(engine: Engine, action: str) -> int:
    with reading(engine) as session:
        return len(session.exec(select(AuditEvent).where(AuditEvent.action == action)).all())


def lose_answers(engine: Engine) -> None:
    """Leave the database as a crash does between a change and its answer."""
    with Session(engine) as session, session.begin():
        session.connection().execute(text("DELETE FROM api_answer"))


def test_the_same_wish_gets_the_first_answer_again(api: Api, engine: Engine, world: World) -> None:
    path = placed(ACTIVATE, world)
    first = api.post(path, WHY, headers=KEY)

    again = api.post(path, WHY, headers=KEY)

    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert (again.status_code, again.json()) == (first.status_code, first.json())
    assert again.headers["etag"] == first.headers["etag"]
    assert events(engine, "activate_version") == 1


def test_where_to_find_what_was_made_is_told_again(api: Api, world: World) -> None:
    start = {"strategy_name": "ppo_gold", "version": "2"}
    first = api.post("/rollouts", start, headers=KEY)

    again = api.post("/rollouts", start, headers=KEY)

    assert (again.status_code, again.headers["location"]) == (201, first.headers["location"])
    assert api.get(again.headers["location"].removeprefix("/api/v1/strategy")).json()["id"] == first.json()["id"]


def test_another_wish_under_the_key_is_refused(api: Api, engine: Engine, world: World) -> None:
    api.post(placed(ACTIVATE, world), WHY, headers=KEY)

    other = api.post(placed(ACTIVATE, world), {"reason": "another"}, headers=KEY)
    elsewhere = api.post(placed("/versions/{ppo_gold/3}/retire", world), WHY, headers=KEY)

    assert fields(refused(other, 422)) == fields(refused(elsewhere, 422)) == ["Idempotency-Key"]
    assert events(engine, "retire_version") == 0


def test_another_persons_key_is_another_key(api: Api, world: World) -> None:
    api.post(placed(ACTIVATE, world), WHY, headers=KEY)

    response = api.post(placed("/versions/{ppo_gold/3}/retire", world), WHY, headers=KEY, held=token(sub="bo"))

    assert response.status_code == 200


def test_a_narrower_token_is_not_told_what_a_wider_one_was(api: Api, world: World) -> None:
    api.post(placed(ACTIVATE, world), WHY, headers=KEY)

    refused(api.post(placed(ACTIVATE, world), WHY, headers=KEY, held="other"), 403)


def test_a_refusal_is_not_kept(api: Api, world: World) -> None:
    """It changed nothing: what stood in the way may be gone the next time."""
    retire = placed("/versions/{ppo_gold/1}/retire", world)
    refused(api.post(retire, WHY, headers=KEY), 409)
    api.post(placed(ACTIVATE, world), WHY)

    again = api.post(retire, WHY, headers=KEY)

    assert "idempotency-replayed" not in again.headers
    assert refused(again, 409)["current"] == "retired"


def test_a_change_whose_answer_was_lost_is_not_made_again(api: Api, engine: Engine, world: World) -> None:
    pause, resume = f"/rollouts/{world.rollout}/pause", f"/rollouts/{world.rollout}/resume"
    api.post(pause, WHY, headers=KEY)
    api.post(resume, WHY)
    lose_answers(engine)

    again = api.post(pause, WHY, headers=KEY)

    problem = refused(again, 409)
    assert (problem["type"], problem["idempotency_key"]) == ("/problems/already-done", "k1")
    assert events(engine, "pause") == 1


def test_an_answer_that_cannot_be_kept_is_given_all_the_same(api: Api, engine: Engine, world: World) -> None:
    with Session(engine) as session, session.begin():
        session.connection().execute(text("DROP TABLE api_answer"))

    response = api.post("/rollback", {"strategy_name": "fib_rsi", **WHY}, headers=KEY)

    assert response.json() == {"strategy_name": "fib_rsi", "version": "2"}
    assert api.get("/rollouts").json()["items"][0]["state"] == "rolled_back"


def test_answers_are_forgotten_after_a_day(api: Api, engine: Engine, world: World) -> None:
    api.post(placed(ACTIVATE, world), WHY, headers=KEY)
    with Session(engine) as session, session.begin():
        session.exec(select(ApiAnswer)).one().answered_at -= timedelta(hours=25)

    api.post(placed("/versions/{ppo_gold/3}/retire", world), WHY, headers={"Idempotency-Key": "k2"})

    with Session(engine) as session:
        assert session.connection().execute(text("SELECT idempotency_key FROM api_answer")).scalars().all() == ["k2"]
    again = api.post(placed(ACTIVATE, world), WHY, headers=KEY)
    refused(again, 409)


@pytest.mark.parametrize("moved", [timedelta(hours=25), timedelta(days=-300)])
def test_a_market_that_is_replayed_ages_no_answer(api: Api, world: World, moved: timedelta) -> None:
    """A day of a replay may pass in a minute, while the client sends its wish again."""
    api.post(placed(ACTIVATE, world), WHY, headers=KEY)
    api.clock.now = NOW + moved

    again = api.post(placed(ACTIVATE, world), WHY, headers=KEY, held=token(now=api.clock.now))

    assert again.headers["idempotency-replayed"] == "true"


@pytest.mark.parametrize("lost", [False, True])
def test_no_key_keeps_users_on_a_version(api: Api, engine: Engine, world: World, lost: bool) -> None:
    """A rollback under a key that something else was done under goes ahead without the key."""
    api.post(f"/rollouts/{world.rollout}/pause", WHY, headers=KEY)
    if lost:
        lose_answers(engine)

    response = api.post(f"/rollouts/{world.rollout}/rollback", WHY, headers=KEY)

    assert response.status_code == 200
    assert events(engine, "roll_back") == 1


def test_a_rollback_that_comes_again_takes_nobody_off_the_next_canary(api: Api, engine: Engine, world: World) -> None:
    rollback = {"strategy_name": "fib_rsi", **WHY}
    api.post("/rollback", rollback, headers=KEY)
    api.post("/rollouts", {"strategy_name": "fib_rsi", "version": "3"})

    again = api.post("/rollback", rollback, headers=KEY)

    assert again.headers["idempotency-replayed"] == "true"
    assert api.get("/canary?strategy_name=fib_rsi").json()["items"][0]["version"] == "3"


def test_a_rollback_of_a_version_that_serves_again_is_done_again(api: Api, engine: Engine, world: World) -> None:
    """A client that names each rollback of a strategy alike must not be told that users are off what they are on."""
    rollback = {"strategy_name": "fib_rsi", **WHY}
    api.post("/rollback", rollback, headers=KEY)
    api.post("/rollouts", {"strategy_name": "fib_rsi", "version": "2", "override_reason": "mended"})

    again = api.post("/rollback", rollback, headers=KEY)
    third = api.post("/rollback", rollback, headers=KEY)

    assert "idempotency-replayed" not in again.headers
    assert third.headers["idempotency-replayed"] == "true"
    assert again.json() == third.json() == {"strategy_name": "fib_rsi", "version": "2"}
    assert events(engine, "roll_back") == 2
    assert api.get("/canary").json()["items"] == []


@pytest.mark.parametrize("path", ["/rollouts/{rollout}/pause", ACTIVATE, "/rollback"])
def test_equal_wishes_at_once_are_done_once(api: Api, engine: Engine, world: World, path: str) -> None:
    body = {**WHY, **({"strategy_name": "fib_rsi"} if path == "/rollback" else {})}
    before = events(engine, "start_rollout")

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: api.post(placed(path, world), body, headers=KEY), range(6)))

    done = [answer for answer in answers if answer.status_code == 200]
    assert {answer.status_code for answer in answers} <= {200, 409}
    said = ("idempotency-replayed", "rolled-back-before")
    assert sum(not any(name in answer.headers for name in said) for answer in done) == 1
    assert len({answer.text for answer in done}) == 1
    with reading(engine) as session:
        assert len(session.exec(select(AuditEvent)).all()) == before + 1


NO_KEYS = ["", "a b", "x" * 256, "ü"]


@pytest.mark.parametrize("key", NO_KEYS)
def test_a_key_that_is_none_is_named(api: Api, engine: Engine, world: World, key: str) -> None:
    response = api.post(placed("/versions/{ppo_gold/2}/retire", world), WHY, headers={b"Idempotency-Key": key.encode()})

    assert fields(refused(response, 422)) == ["Idempotency-Key"]


@pytest.mark.parametrize("key", NO_KEYS)
def test_a_key_that_is_none_keeps_nobody_from_rolling_back(api: Api, world: World, key: str) -> None:
    response = api.post("/rollback", {"strategy_name": "fib_rsi", **WHY}, headers={b"Idempotency-Key": key.encode()})

    assert response.status_code == 200


def test_a_question_is_answered_anew_under_any_key(api: Api, world: World) -> None:
    ask: dict[str, Any] = {"strategy_name": "ppo_gold", "version": "2"}
    api.post("/rollouts/plan", ask, headers=KEY)

    again = api.post("/rollouts/plan", ask, headers=KEY)

    assert again.status_code == 200
    assert "idempotency-replayed" not in again.headers
