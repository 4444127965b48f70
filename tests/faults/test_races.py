"""Changes that meet at the same moment on PostgreSQL: a freeze and a tick, a declared file and a rollback."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Engine

from strategy_core.domain.audit import Command
from strategy_core.domain.declaration import Declaration
from strategy_core.domain.errors import ReleaseClosed
from strategy_core.domain.plan import Plan
from strategy_core.domain.ramp import Step
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services.audit import read_audit, verify_trail
from strategy_core.services.declarations import ApplyOutcome, apply_declaration
from strategy_core.services.rollback import roll_back
from strategy_core.services.rollouts import read_policy, start_rollout
from strategy_core.services.scheduled_starts import start_due
from strategy_core.services.tick import tick
from strategy_core.store import release_times, versions
from strategy_core.store.engine import open_database, transaction
from strategy_core.store.tables import FreezeRow
from tests.builders import DAY, GOLD, MONDAY, OWNER
from tests.faults.operations import NOW, bleeding, pair, ramped, scheduled
from tests.services.ramping import ruled, standing
from tests.waiting import until_somebody_waits

ROLLED_BACK = ({"1": "active", "2": "shadow"}, 0.0)
POLICY = Declaration.model_validate({"policies": {"fib_rsi": {"four_eyes": True}}})
CLOCKWORK: dict[str, Any] = {
    "strategy": "clockwork",
    "version": "1",
    "config": {"hours": 6},
    "entry_point": "tests.services.versions_under_test:Clockwork",
    "symbols": [GOLD],
    "timeframe": "1h",
}


@pytest.fixture
def engine(postgresql_url: str) -> Iterator[Engine]:
    engine = open_database(postgresql_url)
    yield engine
    engine.dispose()


def meanwhile_frozen(engine: Engine, work: Callable[[Engine], Any]) -> Any:
    """Return what *work* does, if a freeze is committed while it waits for the strategy's lock."""
    with ThreadPoolExecutor(1) as thread:
        with transaction(engine) as session:
            versions.lock_strategy(session, "fib_rsi")
            done = thread.submit(work, engine)
            until_somebody_waits(engine, unless=done)
            times: dict[str, Any] = {"starts_at": MONDAY, "ends_at": NOW + DAY, "set_at": MONDAY}
            row = FreezeRow(strategy_name="fib_rsi", reason="holidays", set_by="ana", **times)
            release_times.add_freeze(session, row)
        return done.result()


def test_a_freeze_that_is_set_while_a_tick_waits_holds_its_advance(engine: Engine, market: SyntheticSource) -> None:
    ramped(engine)

    step, *_ = meanwhile_frozen(engine, lambda mine: ruled(tick(mine, market, now=NOW)))

    assert step is Step.HOLD
    assert standing(engine) == ({"1": "active", "2": "canary"}, 5.0)


def test_a_freeze_that_is_set_while_a_tick_waits_holds_no_rollback(engine: Engine, market: SyntheticSource) -> None:
    bleeding(engine)

    step, *_ = meanwhile_frozen(engine, lambda mine: ruled(tick(mine, market, now=NOW)))

    assert step is Step.ROLL_BACK
    assert standing(engine) == ROLLED_BACK


def test_a_freeze_that_is_set_while_an_owner_waits_holds_a_start_and_no_rollback(engine: Engine) -> None:
    pair(engine)
    start: dict[str, Any] = {"strategy_name": "fib_rsi", "version": "2", "plan": Plan()}
    with pytest.raises(ReleaseClosed, match="holidays"):
        meanwhile_frozen(engine, lambda mine: start_rollout(mine, Command(OWNER, NOW), **start))

    start_rollout(engine, Command(OWNER, NOW, override_reason="a test"), **start)
    meanwhile_frozen(engine, lambda mine: roll_back(mine, Command(OWNER, NOW, "news"), strategy_name="fib_rsi"))
    assert standing(engine) == ROLLED_BACK


def test_a_freeze_that_is_set_while_a_scheduled_start_waits_holds_it(engine: Engine) -> None:
    scheduled(engine)

    (done,) = meanwhile_frozen(engine, lambda mine: start_due(mine, now=NOW))

    assert done.outcome == "waits"
    assert "start_rollout" not in [event.action for event in read_audit(engine)]


@pytest.mark.parametrize("rollback_first", [True, False])
def test_a_file_that_is_applied_during_a_rollback_leaves_both_whole(
    engine: Engine, market: SyntheticSource, rollback_first: bool
) -> None:
    ramped(engine)

    def apply() -> object:
        return [each.outcome for each in apply_declaration(engine, Command(OWNER, NOW), lambda: market, POLICY)]

    def back() -> object:
        return roll_back(engine, Command(OWNER, NOW, "news"), strategy_name="fib_rsi")

    first, second = (back, apply) if rollback_first else (apply, back)
    with ThreadPoolExecutor(2) as threads:
        with transaction(engine) as session:
            versions.lock_strategy(session, "fib_rsi")
            one = threads.submit(first)
            until_somebody_waits(engine, unless=one)
            other = threads.submit(second)
        found = [one.result(), other.result()]

    assert sorted(map(str, found)) == sorted(["2", str([ApplyOutcome.APPLIED])])
    assert standing(engine) == ROLLED_BACK
    assert read_policy(engine, "fib_rsi").four_eyes
    assert verify_trail(engine).holds


@pytest.mark.full  # vets a version twice
def test_two_files_with_the_same_version_register_it_once(engine: Engine, market: SyntheticSource) -> None:
    declared = Declaration.model_validate({"versions": [CLOCKWORK], "policies": {"clockwork": {"four_eyes": True}}})

    def apply(_: int) -> list[ApplyOutcome]:
        return [each.outcome for each in apply_declaration(engine, Command(OWNER, NOW), lambda: market, declared)]

    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(apply, range(2)))

    assert {each for outcomes in found for each in outcomes} <= {ApplyOutcome.APPLIED, ApplyOutcome.UNCHANGED}
    assert [event.action for event in read_audit(engine)] == ["register_version", "set_policy"]
    assert apply(0) == []
    assert verify_trail(engine).holds
