"""What holds of every route: it answers as described, and refuses in one form whoever may not."""

from sqlalchemy import Engine
from sqlmodel import Session

from strategy_core.api.problems import MEDIA_TYPE
from tests.api.asking import HELD, SAMPLES, Api, World, newest_event, put_state
from tests.api.every import (
    ABOUT_ONE,
    CHANGES,
    GUARDED,
    NO_CHANGE_OF_A_STRATEGY,
    OPEN,
    UNCONDITIONAL,
    each,
    fields,
    operations,
    refused,
)
from tests.api.signing import token


def test_every_route_is_tried_here(shared: tuple[Api, World]) -> None:
    known = operations(shared[0])

    assert set(known) == set(SAMPLES)
    assert {name for name, operation in known.items() if "security" not in operation} == OPEN


@each(SAMPLES)
def test_each_route_does_what_is_asked(api: Api, engine: Engine, world: World, name: str) -> None:
    sample = SAMPLES[name]
    if sample.state:
        put_state(engine, sample.state)

    response = sample.send(api, world, headers={"X-Request-Id": "r-1"})

    assert response.status_code == sample.status, response.text
    assert response.headers["x-request-id"] == "r-1"
    assert response.headers["x-content-type-options"] == "nosniff"
    if sample.changes and name not in NO_CHANGE_OF_A_STRATEGY:
        with Session(engine) as session:
            event = newest_event(session)
        assert (event.actor, event.role, event.source, event.request_id) == ("ana", "owner", "api", "r-1")
        assert event.strategy_name == sample.changes
        assert response.headers["etag"] == f'"{event.position}"'


@each(GUARDED)
def test_without_a_token_nobody_learns_anything(shared: tuple[Api, World], name: str) -> None:
    api, world = shared
    response = SAMPLES[name].send(api, world, held=None)

    refused(response, 401)
    assert response.headers["www-authenticate"].startswith("Bearer")


@each(GUARDED)
def test_a_token_that_has_expired_is_none(shared: tuple[Api, World], name: str) -> None:
    api, world = shared
    problem = refused(SAMPLES[name].send(api, world, held=token(exp=1)), 401)

    assert "expired" in problem["detail"]


@each(GUARDED)
def test_a_users_role_may_do_nothing(shared: tuple[Api, World], name: str) -> None:
    api, world = shared
    refused(SAMPLES[name].send(api, world, held="user"), 403)


@each(ABOUT_ONE)
def test_a_token_reaches_its_own_strategies_alone(shared: tuple[Api, World], name: str) -> None:
    api, world = shared
    problem = refused(SAMPLES[name].send(api, world, held="other"), 403)

    assert "other" in problem["detail"]


@each(GUARDED)
def test_a_token_to_read_changes_nothing(api: Api, engine: Engine, world: World, name: str) -> None:
    sample = SAMPLES[name]

    response = sample.send(api, world, held="reader")

    if sample.changes:
        refused(response, 403)
        with Session(engine) as session:
            assert newest_event(session).source == "sdk"
    else:
        assert response.status_code == 200


def test_a_rollback_takes_no_condition_and_any_other_change_does(shared: tuple[Api, World]) -> None:
    conditional = {
        name
        for name, operation in operations(shared[0]).items()
        if any(each["name"] == "If-Match" for each in operation.get("parameters", []))
    }

    assert conditional == set(CHANGES) - set(UNCONDITIONAL)


@each({name: sample for name, sample in CHANGES.items() if name not in UNCONDITIONAL})
def test_a_change_on_a_condition_is_made_on_that_generation_alone(
    api: Api, engine: Engine, world: World, name: str
) -> None:
    sample = SAMPLES[name]
    if sample.state:
        put_state(engine, sample.state)
    standing = 1 if sample.changes == "fib_rsi" else 0

    late = sample.send(api, world, headers={"If-Match": f'"{standing + 7}"'})
    unclear = sample.send(api, world, headers={"If-Match": "7"})
    timely = sample.send(api, world, headers={"If-Match": f'"{standing}"'})

    assert refused(late, 412)["found"] == standing
    assert fields(refused(unclear, 422)) == ["If-Match"]
    assert timely.status_code == sample.status
    assert timely.headers["etag"] == f'"{standing + 1}"'


@each(CHANGES)
def test_any_generation_will_do_for_a_star(api: Api, engine: Engine, world: World, name: str) -> None:
    sample = SAMPLES[name]
    if sample.state:
        put_state(engine, sample.state)

    assert sample.send(api, world, headers={"If-Match": "*"}).status_code == sample.status


DONE_AGAIN = (
    *NO_CHANGE_OF_A_STRATEGY,
    "set_rollout_percent",
    "roll_back_on_alerts",
    "freeze",
    "lift",
    "exclude_users",
    "end_exclusions",
    "set_toggle",
)  # to the same effect


@each({name: sample for name, sample in CHANGES.items() if name not in DONE_AGAIN})
def test_what_was_done_cannot_be_done_again(api: Api, engine: Engine, world: World, name: str) -> None:
    sample = SAMPLES[name]
    if sample.state:
        put_state(engine, sample.state)
    sample.send(api, world)

    again = sample.send(api, world)

    if name.startswith("roll_back"):  # it succeeds, and says who did it
        assert again.status_code == 200
        assert "by " in again.headers["rolled-back-before"]
    else:
        refused(again, 409)


def test_every_refusal_that_is_given_is_described(shared: tuple[Api, World]) -> None:
    for name, operation in operations(shared[0]).items():
        answers = set(operation["responses"])
        if name in GUARDED:
            assert {"401", "403", "429", "503"} <= answers, name
        if name in CHANGES:
            assert {"409", "413", "415", "422"} <= answers, name
        for status, answer in operation["responses"].items():
            if status >= "400":
                assert list(answer["content"]) == [MEDIA_TYPE], (name, status)
    assert "HTTPValidationError" not in shared[0].app.openapi()["components"]["schemas"]


def test_methods_that_a_path_has_not_are_told(shared: tuple[Api, World]) -> None:
    api, _ = shared

    wrong = api("DELETE", "/versions")
    asked = api("OPTIONS", "/versions", held=None)
    head = api("HEAD", "/versions")

    refused(wrong, 405)
    assert wrong.headers["allow"] == asked.headers["allow"] == "GET, HEAD, OPTIONS, POST"
    assert (asked.status_code, asked.content) == (204, b"")
    assert (head.status_code, head.content) == (200, b"")
    assert refused(api.get("/nothing"), 404)["type"] == "/problems/no-such-path"


def test_a_request_id_that_no_log_should_hold_is_replaced(shared: tuple[Api, World]) -> None:
    api, _ = shared

    for given in ("a b", "x" * 129, "{}\t"):
        assert len(api.get("/routing", headers={"X-Request-Id": given}).headers["x-request-id"]) == 32


def test_held_tokens_are_what_their_names_say() -> None:
    assert set(HELD) == {"owner", "other", "reader", "user"}
