"""Service tokens in the database: recorded with each strategy that they concern, revoked once, in nobody's way."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from sqlalchemy import Engine

from strategy_core.domain.audit import Actor, Command
from strategy_core.domain.errors import UnknownStrategy, UnknownToken
from strategy_core.domain.lifecycle import Status
from strategy_core.services import tokens
from strategy_core.services.audit import read_events, verify_trail
from strategy_core.services.canary import activate_canary
from strategy_core.services.rollback import roll_back
from strategy_core.services.tokens import is_revoked, list_tokens, record_token, revoke_token
from strategy_core.store import versions
from strategy_core.store.engine import open_database, transaction
from strategy_core.store.tables import ServiceToken
from tests.builders import DAY, HOUR, MONDAY, OWNER, put_version
from tests.waiting import until_somebody_waits

YEAR = 365 * DAY
REVOKES = Command(replace(OWNER, name="ben"), MONDAY + HOUR, "it leaked")


def record(engine: Engine, token_id: str = "t-1", strategies: Sequence[str] = ()) -> ServiceToken:
    return record_token(
        engine,
        Command(OWNER, MONDAY, "for alerts"),
        token_id=token_id,
        name="alertmanager",
        role="owner",
        strategies=strategies,
        read_only=False,
        issued_at=MONDAY,
        expires_at=MONDAY + YEAR,
    )


@pytest.fixture
def two(engine: Engine) -> Engine:
    for name in ("fib_rsi", "ppo_gold"):
        put_version(engine, "1", Status.ACTIVE, strategy_name=name, recorded=True)
    return engine


def told(engine: Engine, action: str) -> list[tuple[str, str, str]]:
    events = read_events(engine, action=action)
    return [(event.strategy_name, event.actor, event.after["token"]["id"]) for event in events]


def test_a_token_for_all_strategies_is_in_the_trail_of_each(two: Engine) -> None:
    record(two)
    revoke_token(two, REVOKES, "t-1", at=MONDAY + HOUR)

    assert told(two, "issue_token") == [("fib_rsi", "ana", "t-1"), ("ppo_gold", "ana", "t-1")]
    assert told(two, "revoke_token") == [("fib_rsi", "ben", "t-1"), ("ppo_gold", "ben", "t-1")]
    assert verify_trail(two).holds
    (token,) = list_tokens(two)
    assert (token.issued_by, token.revoked_by, token.revoked_because) == ("ana", "ben", "it leaked")
    assert (token.expires_at, token.revoked_at) == (MONDAY + YEAR, MONDAY + HOUR)


def test_a_token_for_one_strategy_is_in_no_others_trail(two: Engine) -> None:
    record(two, strategies=["ppo_gold"])

    assert told(two, "issue_token") == [("ppo_gold", "ana", "t-1")]
    with pytest.raises(UnknownStrategy, match="no strategy 'fib'"):
        record(two, "t-2", ["ppo_gold", "fib"])
    assert [token.id for token in list_tokens(two)] == ["t-1"]


def test_a_revocation_holds_at_once_and_is_completed_by_a_second_call(
    two: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(two)
    real = tokens._record_one

    def dies(*given: object) -> None:
        if given[3] == "ppo_gold":
            raise KeyboardInterrupt
        real(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(tokens, "_record_one", dies)
    with pytest.raises(KeyboardInterrupt):
        revoke_token(two, REVOKES, "t-1", at=MONDAY + HOUR)
    monkeypatch.setattr(tokens, "_record_one", real)
    half = (is_revoked(two, "t-1"), told(two, "revoke_token"))

    again = revoke_token(two, Command(Actor("zoe"), MONDAY + DAY, "again"), "t-1", at=MONDAY + DAY)

    assert half == (True, [("fib_rsi", "ben", "t-1")])
    assert told(two, "revoke_token") == [("fib_rsi", "ben", "t-1"), ("ppo_gold", "zoe", "t-1")]
    assert (again.revoked_by, again.revoked_because) == ("ben", "it leaked")


def test_a_token_that_is_not_listed_can_neither_be_revoked_nor_is_it_refused(engine: Engine) -> None:
    assert not is_revoked(engine, "t-9")
    with pytest.raises(UnknownToken, match="no service token 't-9'"):
        revoke_token(engine, REVOKES, "t-9", at=MONDAY)


def test_the_issue_of_a_token_for_all_waits_for_one_strategy_and_holds_up_no_other(postgresql_url: str) -> None:
    engine = open_database(postgresql_url)
    for name in ("a", "b"):
        put_version(engine, "1", Status.ACTIVE, strategy_name=name)
    put_version(engine, "2", strategy_name="a")
    activate_canary(engine, Command(OWNER, MONDAY), strategy_name="a", version="2", rollout_percent=5)

    with ThreadPoolExecutor(1) as threads:
        with transaction(engine) as busy:
            versions.lock_strategy(busy, "b")
            issuing = threads.submit(record, engine)
            until_somebody_waits(engine, unless=issuing)

            back = roll_back(engine, Command(OWNER, MONDAY + HOUR, "harm"), strategy_name="a")

            waited = not issuing.done()
        issuing.result()

    assert (back, waited) == ("2", True)
    engine.dispose()
