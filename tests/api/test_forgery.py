"""Tokens that somebody made or changed who may not: none opens anything, and none breaks what reads it."""

import json
from typing import Any

import jwt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategy_core.api.auth import Principal
from strategy_core.domain.errors import Forbidden, InvalidToken
from tests.api.doors import HEADER, HOME, door, enter, payload
from tests.api.signing import ec_key, encoded, private_pem, public_pem, raw, rsa_key, token
from tests.effort import examples


@pytest.mark.parametrize("key", [rsa_key(), ec_key()], ids=["RS256", "ES256"])
def test_who_knows_the_public_key_cannot_sign_by_it(key: Any) -> None:
    """The oldest trick against JWT: HS256, with the public key's own text as the secret."""
    pem = public_pem(key)
    for secret in (pem, pem.strip(), private_pem(key)):
        with pytest.raises(InvalidToken) as refused:
            enter(raw(HEADER, payload(), secret), public_key=pem)
        assert refused.value.why.startswith("it is not signed with")


def test_a_key_pair_does_not_open_what_a_secret_does() -> None:
    with pytest.raises(InvalidToken, match=r"it is not signed with HS256 \(alg\)"):
        enter(token(rsa_key()))


@pytest.mark.parametrize(("ours", "theirs"), [(rsa_key, rsa_key), (ec_key, ec_key)])
def test_another_pair_of_the_same_kind_does_not_open(ours: Any, theirs: Any) -> None:
    with pytest.raises(InvalidToken, match="its signature is not valid"):
        enter(token(theirs("another")), public_key=public_pem(ours()))


def test_a_key_that_the_token_brings_along_is_not_believed() -> None:
    brought = {"jwk": json.loads(jwt.get_algorithm_by_name("RS256").to_jwk(rsa_key("evil").public_key()))}

    with pytest.raises(InvalidToken, match="its signature is not valid"):
        enter(
            token(rsa_key("evil"), headers={**brought, "jku": "http://127.0.0.1:1/"}), public_key=public_pem(rsa_key())
        )


@pytest.mark.parametrize("part", [0, 1, 2], ids=["header", "payload", "signature"])
def test_a_part_of_another_token_does_not_fit(part: int) -> None:
    parts = token().split(".")
    parts[part] = token("another secret, which is just as long as it", sub="eve", headers={"x": 1}).split(".")[part]

    with pytest.raises(InvalidToken, match="its signature is not valid"):
        enter(".".join(parts))


def test_a_payload_that_was_changed_does_not_fit() -> None:
    head, _, signature = token().split(".")

    with pytest.raises(InvalidToken, match="its signature is not valid"):
        enter(f"{head}.{encoded(payload(sub='eve')).decode()}.{signature}")


DOOR = door(limit=1_000_000)
HELD = token(strategies=["fib_rsi"], scope="read")


def test_no_character_of_a_token_can_be_another() -> None:
    for place, character in enumerate(HELD):
        for other in {"A", "g", "_", "."} - {character}:
            with pytest.raises(InvalidToken):
                DOOR.authenticate(f"Bearer {HELD[:place]}{other}{HELD[place + 1 :]}", HOME)


@settings(max_examples=examples(300))
@given(st.integers(0, len(HELD)), st.integers(0, 12), st.text(max_size=12) | st.text("abcXYZ019-_.=", max_size=12))
def test_a_changed_token_is_refused_or_is_the_same(start: int, length: int, inserted: str) -> None:
    changed = HELD[:start] + inserted + HELD[start + length :]
    try:
        principal = DOOR.authenticate(f"Bearer {changed}", HOME)
    except InvalidToken:
        return
    assert changed == HELD
    assert principal == Principal("ana", "owner", frozenset({"fib_rsi"}), read_only=True)


@settings(deadline=None)
@given(st.binary(max_size=60), st.binary(max_size=200))
def test_whatever_was_signed_is_a_principal_or_a_typed_refusal(header: bytes, body: bytes) -> None:
    for signed in (raw(header, body), raw(HEADER, body)):
        with pytest.raises(InvalidToken):
            DOOR.authenticate(f"Bearer {signed}", HOME)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=examples(300))
@given(st.sampled_from(["sub", "role", "aud", "exp", "iat", "nbf", "jti", "strategies", "scope"]), JSON)
def test_any_claim_may_be_anything_and_is_accepted_or_refused(name: str, value: Any) -> None:
    try:
        principal = DOOR.authenticate(f"Bearer {raw(HEADER, payload(**{name: value}))}", HOME)
    except (InvalidToken, Forbidden):
        return
    assert principal.name.isprintable()
    assert principal.role in ("owner", "admin")
