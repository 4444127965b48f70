"""What holds of every route that is asked wrongly: the field, the name or the id at fault is told in one form."""

import pytest

from tests.api.asking import SAMPLES, Api, World, placed
from tests.api.every import GUARDED, NOBODY, OURS, each, fields, refused
from tests.api.signing import token

IDS = {
    "version_id",
    "rollout_id",
    "alert_id",
    "proposal_id",
    "comparison_id",
    "report_id",
    "freeze_id",
    "start_id",
    "race_id",
}


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
        (b'{"reason": "\\ud800"}', "reason", "an unpaired surrogate"),
        (b'{"reason": NaN}', "reason", "finite"),
        (b'{"reason": 1e999}', "reason", "finite"),
        (b'{"reason": ' + b"9" * 5000 + b"}", "reason", "64 bits"),
        (b'{"reason": "a", "reason": "b"}', "body", "'reason' occurs twice"),
        (b'{"reason": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "body", "deeper"),
        (b'{"reason": ' + b"[" * 50 + b"]" * 50 + b"}", "reason." + ".".join("0" * 20), "deeper"),
        (b'{"\\u0000": 1}', "body", "a name with a character that cannot be stored"),
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


@pytest.mark.parametrize("headers", [{}, {"Content-Type": "application/x-www-form-urlencoded"}])
def test_a_body_as_curl_sends_it_is_taken_as_json(headers: dict[str, str], shared: tuple[Api, World]) -> None:
    api, _ = shared

    body = b'{"strategy_name": "nobodys", "version": "1", "rollout_percent": 5}'
    response = api("PATCH", "/rollout", content=body, headers=headers)

    assert "nobodys" in refused(response, 404)["detail"]


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
    unknown = "2147483647" if rest.startswith(("alert", "freeze")) else NOBODY
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

    assert fields(problem)[0] in IDS


def test_a_token_is_told_no_name_that_it_does_not_reach(shared: tuple[Api, World]) -> None:
    api, _ = shared

    problem = refused(api.get("/versions?strategy_name=nope", held=token(strategies=["nope", "ppo_gold"])), 404)

    assert problem["known"] == ["ppo_gold"]
    assert "fib_rsi" not in problem["detail"]
    assert refused(api.get("/versions?strategy_name=nope"), 404)["known"] == ["fib_rsi", "ppo_gold"]
