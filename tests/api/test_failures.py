"""How many bad tokens a client may try, and that a good one is let in whatever failed beside it."""

from datetime import timedelta
from ipaddress import IPv6Address

import pytest

from strategy_core.api.auth import Authenticator, Failures
from strategy_core.domain.errors import Forbidden, InvalidToken, TooManyFailures
from tests.api.doors import HOME, Clock, door
from tests.api.signing import NOW, token


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
