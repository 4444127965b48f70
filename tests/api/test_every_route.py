"""What holds of every route: it answers as described, and refuses in one form whoever may not, or asks wrongly."""

import shutil
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlmodel import Session

from strategy_core.api.problems import MEDIA_TYPE
from strategy_core.api.routes import PREFIX
from strategy_core.store.engine import open_database
from tests.api.asking import HELD, SAMPLES, Api, Sample, World, newest_event, placed, put_state, put_world
from tests.api.signing import token

OPEN = {"health"}
GUARDED = {name: sample for name, sample in SAMPLES.items() if name not in OPEN}
CHANGES = {name: sample for name, sample in SAMPLES.items() if sample.changes}
ABOUT_ONE = {
    name: sample
    for name, sample in GUARDED.items()
    if name not in ("read_routing", "metrics")  # of all strategies: they leave out what the token does not reach
}
NO_CHANGE_OF_A_STRATEGY = ("report_outcomes", "acknowledge")  # evidence, and what an owner knows of
ROLLBACKS = ("roll_back_rollout", "roll_back_strategy", "roll_back_on_alerts")
OURS = {  # whose body is of this API's own form
    name: sample for name, sample in SAMPLES.items() if sample.json is not None and name != "roll_back_on_alerts"
}
UNCONDITIONAL = ("register", *NO_CHANGE_OF_A_STRATEGY, *ROLLBACKS)
NOBODY = "11111111-1111-4111-8111-111111111111"


@pytest.fixture(scope="module")
def shared(sqlite_template: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One API for all requests that change nothing."""
    file = tmp_path_factory.mktemp("shared") / "rollout.db"
    shutil.copy(sqlite_template, file)
    engine = open_database(f"sqlite:///{file}")
    yield Api(engine), put_world(engine)
    engine.dispose()


def each(samples: dict[str, Sample]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("name", list(samples))


def refused(response: Any, status: int) -> dict[str, Any]:
    """Return the problem document that this answer must be."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == MEDIA_TYPE
    problem: dict[str, Any] = response.json()
    assert problem["status"] == status
    assert problem["type"].startswith("/problems/")
    assert problem["instance"].startswith(PREFIX)
    assert problem["title"]
    assert problem["detail"]
    return problem


def fields(problem: dict[str, Any]) -> list[str]:
    return [each["field"] for each in problem["errors"]]


def operations(api: Api) -> dict[str, dict[str, Any]]:
    found = {}
    for path, methods in api.app.openapi()["paths"].items():
        for method, operation in methods.items():
            found[operation["operationId"]] = {**operation, "method": method.upper(), "path": path}
    return found


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


@each(OURS)
def test_a_field_that_is_not_known_is_named(shared: tuple[Api, World], name: str) -> None:
    api, world = shared
    sample = SAMPLES[name]

    problem = refused(api(sample.method, placed(sample.path, world), json={**sample.json, "bogus": 1}), 422)

    assert fields(problem) == ["bogus"]


@pytest.mark.parametrize(
    ("body", "field", "why"),
    [
        (b'{"reason": "a\\u0000b"}', "reason", "NUL"),
        (b'{"reason": "\\ud800"}', "reason", "half of a pair"),
        (b'{"reason": NaN}', "reason", "finite"),
        (b'{"reason": 1e999}', "reason", "finite"),
        (b'{"reason": ' + b"9" * 5000 + b"}", "reason", "64 bits"),
        (b'{"reason": "a", "reason": "b"}', "body", "'reason' stands there twice"),
        (b'{"reason": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "body", "deeper"),
        (b'{"reason": ' + b"[" * 50 + b"]" * 50 + b"}", "reason." + ".".join("0" * 20), "deeper"),
        (b'{"\\u0000": 1}', "body", "a name that no text can hold"),
        (b'{"reason": "\xff"}', "body", "UTF-8"),
        (b'{"reason"', "body", "not JSON"),
        (b"[]", "body", "valid dictionary"),
        (b"", "body", "required"),
    ],
)
@each(OURS)
def test_a_body_that_cannot_be_read_is_refused_with_its_place(
    name: str, body: bytes, field: str, why: str, shared: tuple[Api, World]
) -> None:
    api, world = shared
    sample = SAMPLES[name]

    response = api(
        sample.method, placed(sample.path, world), content=body, headers={"Content-Type": "application/json"}
    )

    problem = refused(response, 422)
    assert fields(problem)[0] == field
    assert why in problem["errors"][0]["problem"]


@each({name: sample for name, sample in SAMPLES.items() if sample.json is not None})
def test_a_body_is_json_and_not_too_large(name: str, shared: tuple[Api, World]) -> None:
    api, world = shared
    sample = SAMPLES[name]
    path = placed(sample.path, world)

    refused(api(sample.method, path, content=b"{}", headers={"Content-Type": "text/plain"}), 415)
    refused(api(sample.method, path, content=b" " * 5_000_001, headers={"Content-Type": "application/json"}), 413)


def test_a_body_of_unknown_length_is_read_no_further_than_it_may_be(shared: tuple[Api, World]) -> None:
    api, _ = shared
    chunks = (b" " * 1_000_000 for _ in range(6))

    refused(api("POST", "/rollback", content=chunks, headers={"Content-Type": "application/json"}), 413)


@each({name: sample for name, sample in GUARDED.items() if "strategy_name" in {**sample.params, **(sample.json or {})}})
def test_a_strategy_that_is_not_known_is_not_found(api: Api, world: World, name: str) -> None:
    sample = SAMPLES[name]
    if sample.json is None:
        response = api(sample.method, sample.path, params={**sample.params, "strategy_name": "nobodys"})
    else:
        response = api(sample.method, sample.path, json={**sample.json, "strategy_name": "nobodys"})

    if name == "register":  # its first version makes a strategy
        assert response.status_code == 201
        return
    problem = refused(response, 404)
    assert problem["type"] == "/problems/unknown-strategy"
    assert problem["known"] == ["fib_rsi", "ppo_gold"]


@each({name: sample for name, sample in GUARDED.items() if "strategy_name" in {**sample.params, **(sample.json or {})}})
def test_a_name_that_is_none_is_named(name: str, shared: tuple[Api, World]) -> None:
    api, _ = shared
    sample = SAMPLES[name]
    if sample.json is None:
        response = api(sample.method, sample.path, params={**sample.params, "strategy_name": "a\x00b"})
    else:
        response = api(sample.method, sample.path, json={**sample.json, "strategy_name": "no name"})

    assert fields(refused(response, 422)) == ["strategy_name"]


@each({name: sample for name, sample in GUARDED.items() if "{" in sample.path})
def test_an_id_that_is_not_known_is_not_found(name: str, shared: tuple[Api, World]) -> None:
    api, _ = shared
    sample = SAMPLES[name]
    begin, _, rest = sample.path.partition("{")
    unknown = "2147483647" if rest.startswith("alert") else NOBODY
    path = f"{begin}{unknown}{rest.partition('}')[2]}"

    response = api(sample.method, path, json=sample.json)

    assert unknown in refused(response, 404)["detail"]


@each({name: sample for name, sample in GUARDED.items() if "{" in sample.path})
def test_an_id_that_is_none_is_named(name: str, shared: tuple[Api, World]) -> None:
    api, _ = shared
    sample = SAMPLES[name]
    begin, _, rest = sample.path.partition("{")
    path = f"{begin}x{rest.partition('}')[2]}"

    problem = refused(api(sample.method, path, json=sample.json), 422)

    assert fields(problem)[0] in ("version_id", "rollout_id", "alert_id")


def test_a_token_is_told_no_name_that_it_does_not_reach(shared: tuple[Api, World]) -> None:
    api, _ = shared

    problem = refused(api.get("/versions?strategy_name=nope", held=token(strategies=["nope", "ppo_gold"])), 404)

    assert problem["known"] == ["ppo_gold"]
    assert "fib_rsi" not in problem["detail"]
    assert refused(api.get("/versions?strategy_name=nope"), 404)["known"] == ["fib_rsi", "ppo_gold"]


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


DONE_AGAIN = (*NO_CHANGE_OF_A_STRATEGY, "set_rollout_percent", "roll_back_on_alerts")  # to the same effect


@each({name: sample for name, sample in CHANGES.items() if name not in DONE_AGAIN})
def test_what_was_done_cannot_be_done_again(api: Api, engine: Engine, world: World, name: str) -> None:
    sample = SAMPLES[name]
    if sample.state:
        put_state(engine, sample.state)
    sample.send(api, world)

    again = sample.send(api, world)

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
