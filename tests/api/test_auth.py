"""Who is let in, and who is not, each with its reason; a valid token enters whatever others at its address tried."""

import json
import logging
from datetime import datetime, timedelta
from ipaddress import IPv6Address
from typing import Any

import jwt
import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from strategy_core.api.auth import LONGEST_NAME, Authenticator, Failures, Principal
from strategy_core.api.settings import ApiSettings
from strategy_core.domain.errors import Forbidden, InvalidToken, TooManyFailures
from tests.api.signing import NOW, SECRET, claims, ec_key, encoded, private_pem, public_pem, raw, rsa_key, token

HOME = "192.0.2.7"
HEADER = b'{"alg":"HS256","typ":"JWT"}'
WEEK = int(timedelta(days=7).total_seconds())
MIDNIGHT = int(NOW.replace(hour=0, minute=0).timestamp())


class Clock:
    def __init__(self, now: datetime = NOW) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


def door(clock: Clock | None = None, *, limit: int = 20, **changes: Any) -> Authenticator:
    """Return what lets in by the secret; another key, or issuer, by *changes*."""
    key = {"secret": SecretStr(SECRET)} if not {"public_key", "jwks_url"} & changes.keys() else {}
    set_up = ApiSettings(**{**key, **changes})
    return Authenticator(set_up, set_up.open_keys(), Failures(limit=limit), clock or Clock())


def enter(held: str, **changes: Any) -> Principal:
    return door(**changes).authenticate(f"Bearer {held}", HOME)


def payload(**changes: Any) -> bytes:
    return json.dumps({**claims(), **changes}).encode()


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
        ({"sub": "Zoë Ωmega 王"}, {}),
        ({"sub": "x" * LONGEST_NAME}, {}),
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
        (None, "there is none; send: Authorization: Bearer TOKEN"),
        ("", "it is not sent as: Authorization: Bearer TOKEN"),
        ("Bearer", "it is empty"),
        ("Bearer ", "it is empty"),
        ("Basic YW5hOnM=", "it is not sent as: Authorization: Bearer TOKEN"),
        (token(), "it is not sent as: Authorization: Bearer TOKEN"),
        (f"Token {token()}", "it is not sent as: Authorization: Bearer TOKEN"),
        (f"Bearer  {token()}", "it is not a JWT"),
        (f"Bearer\t{token()}", "it is not sent as: Authorization: Bearer TOKEN"),
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
        (raw(b'{"alg":"none"}', payload()), "it is not signed by HS256 (alg)"),
        (raw(b'{"alg":"nOnE"}', payload()), "it is not signed by HS256 (alg)"),
        (raw(b'{"alg":null}', payload()), "it is not signed by HS256 (alg)"),
        (raw(b'{"alg":["HS256"]}', payload()), "it is not signed by HS256 (alg)"),
        (raw(b"{}", payload()), "it is not signed by HS256 (alg)"),
        (jwt.encode(claims(), SECRET * 2, algorithm="HS512"), "it is not signed by HS256 (alg)"),
        (raw(b'{"alg":"HS256","crit":["exp"],"exp":1}', payload()), "it is not a JWT"),
        (raw(b'{"alg":"HS256","crit":["b64"],"b64":true}', payload()), "it demands what is not known here (crit)"),
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
        (token("another secret, which is just as long as it"), "its signature does not fit"),
        (token(exp=MIDNIGHT), "it expired at 2026-03-02 00:00:00 UTC (exp)"),
        (token(exp=0), "it expired at 1970-01-01 00:00:00 UTC (exp)"),
        (token(nbf=MIDNIGHT + WEEK), "it is valid from 2026-03-09 00:00:00 UTC on (nbf)"),
        (token(iat=MIDNIGHT + WEEK), "it is valid from 2026-03-09 00:00:00 UTC on (iat)"),
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
    ("sub", "its sub is not a line of 1 to 128 visible characters"): [*NO_LINES, *HIDDEN],
    ("jti", "its jti is not a line of 1 to 128 visible characters"): [None, *NO_LINES, *HIDDEN],
    ("strategies", "its strategies are not a list of names"): [None, "fib_rsi", [1], [["x"]], {"fib_rsi": 1}],
    ("scope", "its scope is not a text"): [None, ["read"], 1],
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


@pytest.mark.parametrize("key", [rsa_key(), ec_key()], ids=["RS256", "ES256"])
def test_who_knows_the_public_key_cannot_sign_by_it(key: Any) -> None:
    """The oldest trick against JWT: HS256, with the public key's own text as the secret."""
    pem = public_pem(key)
    for secret in (pem, pem.strip(), private_pem(key)):
        with pytest.raises(InvalidToken) as refused:
            enter(raw(HEADER, payload(), secret), public_key=pem)
        assert refused.value.why.startswith("it is not signed by")


def test_a_key_pair_does_not_open_what_a_secret_does() -> None:
    with pytest.raises(InvalidToken, match=r"it is not signed by HS256 \(alg\)"):
        enter(token(rsa_key()))


@pytest.mark.parametrize(("ours", "theirs"), [(rsa_key, rsa_key), (ec_key, ec_key)])
def test_another_pair_of_the_same_kind_does_not_open(ours: Any, theirs: Any) -> None:
    with pytest.raises(InvalidToken, match="its signature does not fit"):
        enter(token(theirs("another")), public_key=public_pem(ours()))


def test_a_key_that_the_token_brings_along_is_not_believed() -> None:
    brought = {"jwk": json.loads(jwt.get_algorithm_by_name("RS256").to_jwk(rsa_key("evil").public_key()))}

    with pytest.raises(InvalidToken, match="its signature does not fit"):
        enter(
            token(rsa_key("evil"), headers={**brought, "jku": "http://127.0.0.1:1/"}), public_key=public_pem(rsa_key())
        )


@pytest.mark.parametrize("part", [0, 1, 2], ids=["header", "payload", "signature"])
def test_a_part_of_another_token_does_not_fit(part: int) -> None:
    parts = token().split(".")
    parts[part] = token("another secret, which is just as long as it", sub="eve", headers={"x": 1}).split(".")[part]

    with pytest.raises(InvalidToken, match="its signature does not fit"):
        enter(".".join(parts))


def test_a_payload_that_was_changed_does_not_fit() -> None:
    head, _, signature = token().split(".")

    with pytest.raises(InvalidToken, match="its signature does not fit"):
        enter(f"{head}.{encoded(payload(sub='eve')).decode()}.{signature}")


DOOR = door(limit=1_000_000)
HELD = token(strategies=["fib_rsi"], scope="read")


def test_no_character_of_a_token_can_be_another() -> None:
    for place, character in enumerate(HELD):
        for other in {"A", "g", "_", "."} - {character}:
            with pytest.raises(InvalidToken):
                DOOR.authenticate(f"Bearer {HELD[:place]}{other}{HELD[place + 1 :]}", HOME)


@settings(deadline=None, max_examples=300)
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


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(["sub", "role", "aud", "exp", "iat", "nbf", "jti", "strategies", "scope"]), JSON)
def test_any_claim_may_be_anything_and_is_accepted_or_refused(name: str, value: Any) -> None:
    try:
        principal = DOOR.authenticate(f"Bearer {raw(HEADER, payload(**{name: value}))}", HOME)
    except (InvalidToken, Forbidden):
        return
    assert principal.name.isprintable()
    assert principal.role in ("owner", "admin")


@pytest.mark.parametrize(
    ("role", "said"),
    [
        ("user", "'ana' may not: the token's role is 'user'; allowed: owner or admin"),
        ("Owner", "'ana' may not: the token's role is 'Owner'; allowed: owner or admin"),
        (["owner"], "'ana' may not: the token's role is ['owner']; allowed: owner or admin"),
        (None, "'ana' may not: the token has no role; allowed: owner or admin"),
    ],
    ids=str,
)
def test_another_role_is_known_and_may_nothing(role: object, said: str) -> None:
    with pytest.raises(Forbidden) as refused:
        enter(token(role=role))

    assert str(refused.value) == said


def test_a_token_reaches_its_strategies_alone() -> None:
    limited = Principal("ana", "owner", frozenset({"fib_rsi", "ema"}))
    limited.check("fib_rsi")
    limited.check_change("ema")

    for check in (limited.check, limited.check_change):
        with pytest.raises(
            Forbidden, match="'ana' may not: the token does not reach strategy 'gold'; allowed: ema, fib"
        ):
            check("gold")
        with pytest.raises(Forbidden, match="does not reach all strategies"):
            check(None)
    with pytest.raises(Forbidden, match="allowed: none"):
        Principal("ana", "owner", frozenset()).check("fib_rsi")


def test_a_token_without_a_limit_reaches_all() -> None:
    owner = Principal("ana", "owner")

    for name in ("fib_rsi", None):
        owner.check(name)
        owner.check_change(name)


def test_a_read_only_token_reads_and_changes_nothing() -> None:
    router = Principal("router", "owner", frozenset({"fib_rsi"}), read_only=True)
    router.check("fib_rsi")

    with pytest.raises(Forbidden, match=r"'router' may not: the token may read only \(scope\)"):
        router.check_change("fib_rsi")


def fail(entrance: Authenticator, client: str = HOME, times: int = 1) -> list[str]:
    """Return what became of so many attempts with a wrong token."""
    outcomes = []
    for _ in range(times):
        with pytest.raises((InvalidToken, TooManyFailures)) as refused:
            entrance.authenticate("Bearer a.b.c", client)
        outcomes.append(type(refused.value).__name__)
    return outcomes


def test_many_failures_are_refused_until_the_window_has_passed() -> None:
    clock = Clock()
    entrance = door(clock)
    assert fail(entrance, times=10) == ["InvalidToken"] * 10
    clock.now += timedelta(seconds=15)
    assert fail(entrance, times=12) == ["InvalidToken"] * 10 + ["TooManyFailures"] * 2

    with pytest.raises(TooManyFailures) as refused:
        entrance.authenticate(None, HOME)

    assert refused.value.retry_after_s == 45
    assert fail(entrance, "192.0.2.8") == ["InvalidToken"]
    clock.now += timedelta(seconds=45)
    assert fail(entrance, times=11) == ["InvalidToken"] * 10 + ["TooManyFailures"]


def test_a_valid_token_is_let_in_whatever_failed_at_its_address() -> None:
    """An owner behind the same proxy as an attacker must be able to roll back."""
    entrance = door()
    fail(entrance, times=100)

    assert entrance.authenticate(f"Bearer {token()}", HOME).name == "ana"
    with pytest.raises(Forbidden):
        entrance.authenticate(f"Bearer {token(role='user')}", HOME)
    assert fail(entrance) == ["TooManyFailures"]


def test_a_clock_that_is_put_back_refuses_nobody_for_long() -> None:
    clock = Clock()
    entrance = door(clock)
    fail(entrance, times=20)
    clock.now -= timedelta(days=1)

    assert fail(entrance) == ["InvalidToken"]


def test_clients_are_told_apart_by_what_one_of_them_can_have() -> None:
    """Whoever has an IPv6 address has its whole network; an IPv4 address in IPv6's clothes is still that one."""
    entrance = door()
    network = int(IPv6Address("2001:db8::"))
    for host in range(20):
        fail(entrance, str(IPv6Address(network + host)))
    fail(entrance, "::ffff:192.0.2.7", times=20)

    assert fail(entrance, "2001:db8::ffff:1") == ["TooManyFailures"]
    assert fail(entrance, "2001:db8:0:1::") == ["InvalidToken"]
    assert fail(entrance, "192.0.2.7") == ["TooManyFailures"]
    assert fail(entrance, "testclient", times=21)[-1] == "TooManyFailures"


def test_what_is_kept_of_clients_is_bounded() -> None:
    failures = Failures(limit=2, clients=3)
    for client in ("a", "b", "a", "c", "d"):  # d makes it four: b failed longest ago
        failures.count(client, NOW)

    with pytest.raises(TooManyFailures):
        failures.count("a", NOW)
    failures.count("b", NOW)
    failures.count("b", NOW)
    assert len(failures._seen) == 3


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
