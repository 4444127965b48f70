"""Keys that an identity provider publishes: they change, and their server has bad days, which known keys outlive."""

import json
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from datetime import timedelta
from typing import Any

import pytest
import structlog

from strategy_core.api.auth import Authenticator, Failures
from strategy_core.api.jwks import RemoteKeys
from strategy_core.api.settings import ApiSettings
from strategy_core.domain.errors import InvalidToken, KeysUnavailable
from tests.api.signing import NOW, ec_key, jwk, rsa_key, token
from tests.endpoint import Endpoint, serving

MINUTE = timedelta(minutes=1)
BOTH = ("RS256", "ES256")
RSA, EC = rsa_key(), ec_key()
PUBLIC = RSA.public_key()


def publish(provider: Endpoint, *keys: Any) -> None:
    provider.status = 200
    provider.body = json.dumps({"keys": list(keys)}).encode()


@pytest.fixture
def provider() -> Iterator[Endpoint]:
    with serving() as served:
        publish(served, jwk(RSA, "a"))
        yield served


def opened(provider: Endpoint, **changes: Any) -> RemoteKeys:
    return RemoteKeys(f"{provider.url}/keys", **{"algorithms": BOTH, "timeout": 30.0, "patience": 60.0, **changes})


def test_a_published_key_is_found_by_its_id(provider: Endpoint) -> None:
    publish(provider, jwk(RSA, "a"), jwk(EC, "b", alg="ES256", use="sig", key_ops=["verify"]))
    keys = opened(provider)

    assert keys.find("RS256", "a", NOW) == PUBLIC
    assert keys.find("ES256", "b", NOW) == EC.public_key()
    assert [path for path, _, _ in provider.asked] == ["/keys"]


def test_a_token_that_names_no_key_gets_the_only_one_of_its_kind(provider: Endpoint) -> None:
    publish(provider, jwk(RSA, "a"), jwk(EC, None), jwk(ec_key("another"), "c"))
    keys = opened(provider)

    assert keys.find("RS256", None, NOW) == PUBLIC
    with pytest.raises(InvalidToken, match=r"it does not name its key \(kid\)"):
        keys.find("ES256", None, NOW)


UNFIT: dict[str, Any] = {
    "another algorithm": jwk(RSA, "a", alg="RS512"),
    "a shared secret's": jwk(RSA, "a", alg="HS256"),
    "to encrypt": jwk(RSA, "a", use="enc"),
    "not to verify": jwk(RSA, "a", key_ops=["encrypt"]),
    "no list of uses": jwk(RSA, "a", key_ops="verify"),
    "no text as id": {**jwk(RSA, "a"), "kid": ["a"]},
    "private": jwk(RSA, "a", d="AQAB"),
    "no base64": jwk(RSA, "a", n="!"),
    "no number": jwk(RSA, "a", n=7),
    "an impossible exponent": jwk(RSA, "a", e="AA"),
    "short": jwk(rsa_key("short", 1024), "a"),
    "another kind": jwk(EC, "a"),
    "another curve": jwk(EC, "a", crv="P-384"),
    "a secret": {"kty": "oct", "kid": "a", "k": "c2VjcmV0", "alg": "RS256"},
    "no kind": {"kid": "a"},
    "several kinds": {"kty": ["RSA"], "kid": "a"},
    "a text": "a",
    "nothing": None,
}


@pytest.mark.parametrize("unfit", UNFIT.values(), ids=UNFIT)
def test_a_key_that_cannot_be_meant_for_such_a_token_is_passed_over(provider: Endpoint, unfit: Any) -> None:
    publish(provider, unfit, jwk(rsa_key("another"), "b"))
    keys = opened(provider, algorithms=("RS256",))

    with pytest.raises(InvalidToken, match="its key is not among the published keys"):
        keys.find("RS256", "a", NOW)
    assert keys.find("RS256", "b", NOW) == rsa_key("another").public_key()


def test_an_id_fits_only_with_the_algorithm_of_its_key(provider: Endpoint) -> None:
    with pytest.raises(InvalidToken, match="its key is not among the published keys"):
        opened(provider).find("ES256", "a", NOW)


def test_a_key_that_comes_later_is_asked_for_once_a_minute(provider: Endpoint) -> None:
    keys = opened(provider)
    keys.find("RS256", "a", NOW)
    publish(provider, jwk(RSA, "a"), jwk(EC, "b"))

    for second in range(0, 60, 7):
        with pytest.raises(InvalidToken, match="its key is not among"):
            keys.find("ES256", "b", NOW + timedelta(seconds=second))
    assert len(provider.asked) == 1
    assert keys.find("ES256", "b", NOW + MINUTE) == EC.public_key()
    assert len(provider.asked) == 2


def test_a_key_that_is_withdrawn_is_known_no_more_after_some_minutes(provider: Endpoint) -> None:
    keys = opened(provider)
    keys.find("RS256", "a", NOW)
    publish(provider, jwk(rsa_key("another"), "b"))

    assert keys.find("RS256", "a", NOW + 4 * MINUTE) == PUBLIC
    with pytest.raises(InvalidToken, match="its key is not among"):
        keys.find("RS256", "a", NOW + 5 * MINUTE)


def test_a_clock_that_is_put_back_does_not_keep_a_new_key_out(provider: Endpoint) -> None:
    keys = opened(provider)
    keys.find("RS256", "a", NOW)
    publish(provider, jwk(EC, "b"))

    assert keys.find("ES256", "b", NOW - timedelta(days=1)) == EC.public_key()


BAD_DAYS = {
    "an error": ({"status": 503}, "answered with HTTP 503"),
    "a redirect": ({"status": 302, "headers": {"Location": "http://127.0.0.1:1/"}}, "answered with HTTP 302"),
    "a page": ({"body": b"<html>Sign in</html>"}, "did not answer with JSON"),
    "no text": ({"body": b"\xff\xfe\xff"}, "did not answer with JSON"),
    "a nest": ({"body": b"[" * 100_000}, "did not answer with JSON"),
    "a list": ({"body": b"[]"}, "did not answer with a JWK set"),
    "no list": ({"body": b'{"keys": {"a": 1}}'}, "did not answer with a JWK set"),
    "no key": ({"body": b'{"keys": []}'}, "publishes no key for RS256 or ES256"),
    "no key that fits": ({"body": b'{"keys": [{"kty": "oct", "k": "eA"}, 7]}'}, "publishes no key for RS256 or ES256"),
    "too much": ({"body": b" " * 1_000_001}, "answered with more than 1000000 bytes"),
    "half an answer": ({"headers": {"Content-Length": "9999"}}, "gave no answer: RemoteProtocolError"),
    "a trickle": ({"body": b" " * 400, "trickle_s": 0.05}, "gave no answer within 0.2 s"),
    "silence": ({"delay_s": 0.6}, "gave no answer within 0.2 s"),
}


@pytest.mark.full
@pytest.mark.parametrize(("day", "problem"), BAD_DAYS.values(), ids=BAD_DAYS)
def test_on_a_bad_day_of_their_server_the_last_known_keys_stay(
    provider: Endpoint, day: dict[str, Any], problem: str
) -> None:
    """A rollback must not need an identity provider."""
    keys = opened(provider)
    keys.find("RS256", "a", NOW)
    keys.timeout = 0.2 if "within" in problem else 30.0
    for name, value in day.items():
        setattr(provider, name, value)

    for minutes in (5, 10, 600):
        assert keys.find("RS256", "a", NOW + minutes * MINUTE) == PUBLIC
    with pytest.raises(KeysUnavailable) as refused:
        keys.find("RS256", "b", NOW + 700 * MINUTE)
    assert str(refused.value) == f"no token can be verified now: the key server {problem}"


@pytest.mark.parametrize(("day", "problem"), BAD_DAYS.values(), ids=BAD_DAYS)
def test_before_any_key_is_known_a_bad_day_says_so_and_ends(
    provider: Endpoint, day: dict[str, Any], problem: str
) -> None:
    usual = {name: getattr(provider, name) for name in day}
    for name, value in day.items():
        setattr(provider, name, value)
    keys = opened(provider, timeout=0.2 if "within" in problem else 30.0)
    with structlog.testing.capture_logs() as logged, pytest.raises(KeysUnavailable, match=problem):
        keys.find("RS256", "a", NOW)
    for name, value in usual.items():
        setattr(provider, name, value)
    keys.timeout = 30.0

    assert keys.find("RS256", "a", NOW + timedelta(seconds=5)) == PUBLIC
    assert [(event["event"], event["problem"], event["known"]) for event in logged] == [
        ("keys.not_fetched", problem, 0)
    ]


def test_a_server_that_is_gone_leaves_the_known_keys_in_use() -> None:
    with serving() as provider:
        publish(provider, jwk(RSA, "a"))
        keys = opened(provider)
        keys.find("RS256", "a", NOW)

    assert keys.find("RS256", "a", NOW + 10 * MINUTE) == PUBLIC
    with pytest.raises(KeysUnavailable, match="the key server cannot be reached"):
        keys.find("RS256", "b", NOW + 20 * MINUTE)


def test_a_known_key_does_not_wait_for_a_server_that_hangs(provider: Endpoint) -> None:
    """The first of a minute waits a little for fresh keys, the others not at all; the answer may come any time."""
    keys = opened(provider, timeout=600.0)
    keys.find("RS256", "a", NOW)
    provider.let_go.clear()
    provider.reached.clear()
    keys.patience = 0.1

    for seconds in range(10):
        assert keys.find("RS256", "a", NOW + 5 * MINUTE + timedelta(seconds=seconds)) == PUBLIC

    assert provider.reached.wait(60)
    assert len(provider.asked) == 2


def test_few_tokens_of_unknown_keys_wait_at_once(provider: Endpoint) -> None:
    """Else made-up tokens would hold every thread of a server, while a rollback waits for one."""
    keys = opened(provider)
    provider.let_go.clear()
    with ThreadPoolExecutor(20) as pool:
        asked = [pool.submit(keys.find, "RS256", "a", NOW) for _ in range(20)]
        turned_away, waiting = wait(asked, return_when=FIRST_EXCEPTION)
        while len(turned_away) < 16:
            turned_away, waiting = wait(waiting | turned_away, timeout=0.01)
        assert len(waiting) == 4
        provider.let_go.set()
        found = [each.result() for each in waiting]

    assert found == [PUBLIC] * 4
    for each in turned_away:
        assert "the key server has not answered yet" in str(each.exception())


def test_what_goes_wrong_in_no_foreseen_way_is_told_too() -> None:
    keys = RemoteKeys("http://127.0.0.1:1/\0", BOTH)

    with pytest.raises(KeysUnavailable, match="the key server gave no answer: InvalidURL"):
        keys.find("RS256", "a", NOW)


def test_what_is_fetched_at_the_start_serves_the_first_token_without_their_server() -> None:
    with serving() as provider:
        publish(provider, jwk(RSA, "a"))
        keys = opened(provider)
        keys.refresh(NOW)

    assert keys.find("RS256", "a", NOW + timedelta(days=1)) == PUBLIC


def test_a_start_on_a_bad_day_is_a_start() -> None:
    with serving() as provider:
        keys = opened(provider)

    keys.refresh(NOW)

    with pytest.raises(KeysUnavailable, match="cannot be reached"):
        keys.find("RS256", "a", NOW)


def test_tokens_follow_the_keys_through_a_rotation(provider: Endpoint) -> None:
    settings = ApiSettings(jwks_url=f"{provider.url}/keys")
    now = [NOW]
    door = Authenticator(settings, settings.open_keys(), Failures(), lambda: now[0])
    old, new = token(RSA, headers={"kid": "a"}), token(EC, headers={"kid": "b"}, sub="bob")

    assert door.authenticate(f"Bearer {old}", "").name == "ana"
    with pytest.raises(InvalidToken, match="its key is not among the published keys"):
        door.authenticate(f"Bearer {new}", "")
    publish(provider, jwk(EC, "b"))
    now[0] += MINUTE
    assert door.authenticate(f"Bearer {new}", "").name == "bob"
    with pytest.raises(InvalidToken, match="its key is not among the published keys"):
        door.authenticate(f"Bearer {old}", "")
    with pytest.raises(InvalidToken, match="its signature is not valid"):
        door.authenticate(f"Bearer {token(ec_key('evil'), headers={'kid': 'b'})}", "")


def test_while_no_key_is_known_a_failure_is_not_the_clients() -> None:
    with serving() as provider:
        settings = ApiSettings(jwks_url=f"{provider.url}/keys")
    door = Authenticator(settings, settings.open_keys(), Failures(limit=1), lambda: NOW)

    for _ in range(3):
        with pytest.raises(KeysUnavailable):
            door.authenticate(f"Bearer {token(RSA, headers={'kid': 'a'})}", "192.0.2.7")
