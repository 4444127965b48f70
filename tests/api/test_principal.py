"""What a token lets its bearer do: by role, strategies and scope."""

import pytest

from strategy_core.api.auth import Principal
from strategy_core.domain.errors import Forbidden
from tests.api.doors import enter
from tests.api.signing import token


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
            Forbidden, match="'ana' may not: the token does not cover strategy 'gold'; allowed: ema, fib"
        ):
            check("gold")
        with pytest.raises(Forbidden, match="does not cover all strategies"):
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

    with pytest.raises(Forbidden, match=r"'router' may not: the token is read-only \(scope\)"):
        router.check_change("fib_rsi")
