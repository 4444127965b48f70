"""Who is let in, and who is not, each with its reason; a valid token enters whatever others at its address tried."""

import logging
from typing import Any

import jwt
import pytest
import structlog

from strategy_core.api.auth import Principal
from strategy_core.domain.errors import InvalidToken
from strategy_core.domain.parsing import LONGEST_OWNER_NAME
from tests.api.doors import HEADER, HOME, MIDNIGHT, WEEK, door, enter, payload
from tests.api.signing import NOW, SECRET, claims, ec_key, public_pem, raw, rsa_key, token


def test_a_valid_token_says_who_asks_and_what_they_may() -> None:
    held = token(role="admin", strategies=["fib_rsi", "ema"], scope="read", jti="t-1")

    assert enter(held) == Principal("ana", "admin", frozenset({"fib_rsi", "ema"}), read_only=True, token_id="t-1")


def test_a_token_that_says_no_more_than_it_must_reaches_all_strategies() -> None:
    assert enter(token()) == Principal("ana", "owner", strategies=None, read_only=False, token_id="")


@pytest.mark.parametrize("key", [rsa_key(), ec_key()], ids=["RS256", "ES256"])
def test_a_key_pair_lets_in_by_its_public_half(key: Any) -> None:
    assert enter(token(key), public_key=public_pem(key)).name == "ana"


@pytest.mark.parametrize(
    ("changes", "set_up"),
    [
        ({"aud": ["another", "strategy-rollout"]}, {}),
        ({"aud": "gold"}, {"audience": "gold"}),
        ({"iss": "https://id.example"}, {"issuer": "https://id.example"}),
        ({"iss": "anybody"}, {}),
        ({"exp": NOW.timestamp() + 0.5}, {}),
        ({"nbf": MIDNIGHT, "iat": None}, {}),
        ({"iat": int(NOW.timestamp()) + 9}, {}),  # the issuer's clock is ahead
        ({"exp": int(NOW.timestamp()) - 9}, {}),  # or behind
        ({"scope": "openid profile"}, {}),
        ({"sub": "Zoë 王"}, {}),
        ({"sub": "x" * LONGEST_OWNER_NAME}, {}),
        ({"strategies": []}, {}),
    ],
    ids=str,
)
def test_what_is_within_the_rules_is_let_in(changes: dict[str, Any], set_up: dict[str, Any]) -> None:
    assert enter(token(**changes), **set_up).role == "owner"


@pytest.mark.parametrize(
    ("scope", "read_only"),
    [("read", True), ("openid read", True), ("read write", False), ("ready", False), ("", False)],
)
def test_the_word_read_alone_makes_a_token_read_only(scope: str, read_only: bool) -> None:
    assert enter(token(scope=scope)).read_only is read_only


def test_the_scheme_may_be_written_in_any_case() -> None:
    assert door().authenticate(f"bEARER {token()}", HOME).name == "ana"


@pytest.mark.parametrize(
    ("header", "why"),
    [
        (None, "it is missing; send: Authorization: Bearer TOKEN"),
        ("", "it must be sent as: Authorization: Bearer TOKEN"),
        ("Bearer", "it is empty"),
        ("Bearer ", "it is empty"),
        ("Basic YW5hOnM=", "it must be sent as: Authorization: Bearer TOKEN"),
        (token(), "it must be sent as: Authorization: Bearer TOKEN"),
        (f"Token {token()}", "it must be sent as: Authorization: Bearer TOKEN"),
        (f"Bearer  {token()}", "it is not a JWT"),
        (f"Bearer\t{token()}", "it must be sent as: Authorization: Bearer TOKEN"),
        (f"Bearer {token()} ", "it is not a JWT"),
        (f"Bearer {token()}\n", "it is not a JWT"),
        (f"Bearer {token()}=", "it is not a JWT"),
        (f"Bearer {token()}, Bearer {token()}", "it is not a JWT"),
        (f"Bearer {token()}é", "it is not a JWT"),
        ("Bearer ключ.от.дома", "it is not a JWT"),
        ("Bearer \udcff.\udcff.\udcff", "it is not a JWT"),
        ("Bearer a.b", "it is not a JWT"),
        ("Bearer a.b.c", "it is not a JWT"),
        ("Bearer a.b.c.d.e", "it is not a JWT"),
        ("Bearer " + "a" * 100_000, "it is longer than 8192 characters"),
        (f"Bearer {token(more='x' * 100_000)}", "it is longer than 8192 characters"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_header_that_carries_no_token_is_refused(header: str | None, why: str) -> None:
    with pytest.raises(InvalidToken) as refused:
        door().authenticate(header, HOME)

    assert refused.value.why == why


@pytest.mark.parametrize(
    ("held", "why"),
    [
        (jwt.encode(claims(), "", algorithm="none"), "it is not a JWT"),
        (raw(b'{"alg":"none"}', payload()), "it is not signed with HS256 (alg)"),
        (raw(b'{"alg":"nOnE"}', payload()), "it is not signed with HS256 (alg)"),
        (raw(b'{"alg":null}', payload()), "it is not signed with HS256 (alg)"),
        (raw(b'{"alg":["HS256"]}', payload()), "it is not signed with HS256 (alg)"),
        (raw(b"{}", payload()), "it is not signed with HS256 (alg)"),
        (jwt.encode(claims(), SECRET * 2, algorithm="HS512"), "it is not signed with HS256 (alg)"),
        (raw(b'{"alg":"HS256","crit":["exp"],"exp":1}', payload()), "it is not a JWT"),
        (
            raw(b'{"alg":"HS256","crit":["b64"],"b64":true}', payload()),
            "it requires an extension that is not supported (crit)",
        ),
        (raw(b'{"alg":"HS256","crit":["b64"],"b64":false}', payload()), "it is not a JWT"),
        (raw(b'{"alg":"HS256","b64":false}', payload()), "it is not a JWT"),
        (raw(b'{"alg":"HS256","kid":7}', payload()), "it is not a JWT"),
        (raw(b"[]", payload()), "it is not a JWT"),
        (raw(b'{"alg":', payload()), "it is not a JWT"),
        (raw(b"[" * 5_000, payload()), "it is not a JWT"),
        (raw(HEADER, b"\xff\xfe"), "it is not a JWT"),
        (raw(HEADER, b"[" * 5_000), "it is not a JWT"),
        (raw(HEADER, b'["ana"]'), "it is not a JWT"),
        (raw(HEADER, b'{"exp":' + b"9" * 5_000 + b"}"), "it is not a JWT"),
        (token("another secret, which is just as long as it"), "its signature is not valid"),
        (token(exp=MIDNIGHT), "it expired at 2026-03-02 00:00:00 UTC (exp)"),
        (token(exp=0), "it expired at 1970-01-01 00:00:00 UTC (exp)"),
        (token(nbf=MIDNIGHT + WEEK), "it is not valid before 2026-03-09 00:00:00 UTC (nbf)"),
        (token(iat=MIDNIGHT + WEEK), "it is not valid before 2026-03-09 00:00:00 UTC (iat)"),
        (token(aud="another"), "it is meant for another audience (aud)"),
        (token(aud=["another"]), "it is meant for another audience (aud)"),
        (token(aud="strategy-rollout2"), "it is meant for another audience (aud)"),
        (token(aud={"strategy-rollout": 1}), "it is meant for another audience (aud)"),
        (token(aud=["strategy-rollout", 1]), "it is meant for another audience (aud)"),
        (token(aud=[]), "it has no aud"),
        (token(aud=None), "it has no aud"),
        (token(exp=None), "it has no exp"),
        (raw(HEADER, payload(exp=None)), "it has no exp"),
        (token(sub=None), "it has no sub"),
        (token(sub="аna"), "its sub is not letters of one script, but it mixes Cyrillic and Latin"),
    ],
    ids=lambda value: repr(value)[-40:],
)
def test_a_token_that_is_none_of_ours_is_refused(held: str, why: str) -> None:
    with pytest.raises(InvalidToken) as refused:
        enter(held)

    assert refused.value.why == why


NO_TIMES: list[object] = [None, "0", "99999999999", True, [1], {}, -1, float("nan"), float("inf"), float("-inf"), 1e300]


NO_LINES: list[object] = [7, ["ana"], {"name": "ana"}, True, "", " ", " ana", "ana\n", "a\0b", "\x1b[2J", "x" * 129]


HIDDEN: list[object] = ["ana\u202e", "\ud800", "\u200bana", "a\u2028b", "\ue000", "a\u00a0b"]


IMPOSSIBLE: dict[tuple[str, str], list[object]] = {
    ("exp", "its exp is not a time"): [*NO_TIMES[1:], 10**18, 10**4000],
    ("nbf", "its nbf is not a time"): NO_TIMES,
    ("iat", "its iat is not a time"): NO_TIMES,
    ("sub", "its sub is not 1 to 128 printable characters"): [*NO_LINES, *HIDDEN],
    ("jti", "its jti is not 1 to 128 printable characters"): [None, *NO_LINES, *HIDDEN],
    ("strategies", "its strategies are not a list of names"): [None, "fib_rsi", [1], [["x"]], {"fib_rsi": 1}],
    ("scope", "its scope is not a string"): [None, ["read"], 1],
}


@pytest.mark.parametrize(
    ("name", "why", "value"),
    [(*claim, value) for claim, values in IMPOSSIBLE.items() for value in values],
    ids=lambda value: repr(value)[:30],
)
def test_a_claim_that_cannot_be_meant_is_refused(name: str, why: str, value: object) -> None:
    """Also where the signature fits: what an issuer lets its users write into a token is not to be believed."""
    with pytest.raises(InvalidToken) as refused:
        enter(raw(HEADER, payload(**{name: value})))

    assert refused.value.why == why


@pytest.mark.parametrize(
    ("held", "why"),
    [
        (token(iss="https://evil.example"), "it comes from another issuer (iss)"),
        (raw(HEADER, payload(iss=["https://id.example"])), "it comes from another issuer (iss)"),
        (token(), "it has no iss"),
    ],
)
def test_where_an_issuer_is_set_no_other_is_believed(held: str, why: str) -> None:
    with pytest.raises(InvalidToken) as refused:
        enter(held, issuer="https://id.example")

    assert refused.value.why == why


def test_a_refusal_gives_neither_token_nor_secret_away(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = token("another secret, which is just as long as it")
    entrance = door()
    with caplog.at_level(logging.DEBUG), structlog.testing.capture_logs() as logged, pytest.raises(InvalidToken) as no:
        entrance.authenticate(f"Bearer {wrong}", HOME)

    said = f"{no.value} {no.value!r} {no.value.__dict__} {caplog.text} {logged} {capsys.readouterr()}"
    assert not any(part in said for part in wrong.split("."))
    assert SECRET not in f"{said} {entrance.__dict__} {entrance!r}"
