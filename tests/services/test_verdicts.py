"""What gates said over time, and what a rollout waits for, as it is read from the store."""

from datetime import timedelta
from uuid import uuid4

import pytest
from sqlalchemy import Engine

from strategy_core.domain.audit import Command
from strategy_core.domain.errors import InvalidName, UnknownRollout, UnknownStrategy
from strategy_core.domain.gates.base import Finding, Verdict
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan
from strategy_core.services.history import read_verdicts
from strategy_core.services.rollback import roll_back
from strategy_core.services.rollouts import start_rollout
from strategy_core.services.status import RolloutStatus, read_status
from strategy_core.store import rollouts
from strategy_core.store.engine import transaction
from strategy_core.store.tables import Rollout
from tests.builders import DAY, HOUR, MONDAY, OWNER, put_version


@pytest.fixture
def started(engine: Engine) -> Rollout:
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2")
    return start_rollout(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", plan=Plan())


def say(engine: Engine, rollout: Rollout, hour: int, gate: str, verdict: Verdict, value: float | None = None) -> None:
    finding = Finding(gate=gate, verdict=verdict, reason=f"{verdict} at {value}", value=value, limit=2.0)
    with transaction(engine) as session:
        rollouts.record_findings(session, rollout, [finding], MONDAY + hour * HOUR)


def status(engine: Engine, hours: float = 0) -> RolloutStatus:
    (found,) = read_status(engine, "fib_rsi", now=MONDAY + hours * HOUR)
    assert found.rollout is not None
    return found.rollout


def test_a_verdict_is_told_with_when_it_began(engine: Engine, started: Rollout) -> None:
    """Not when it was last said anew: its value moves, and it is the same verdict."""
    for hour, verdict in enumerate([Verdict.PASS, Verdict.BLIND, Verdict.PASS, Verdict.PASS]):
        say(engine, started, hour, "errors", verdict, float(hour))
        say(engine, started, hour, "silence", Verdict.PASS, float(hour))

    assert status(engine).since == {"errors": MONDAY + 2 * HOUR, "silence": MONDAY}


def test_of_two_ticks_at_one_time_the_later_counts(engine: Engine, started: Rollout) -> None:
    """A replay's clock stands still: candles that are decided after a tick are judged by the next one at that time."""
    say(engine, started, 1, "freshness", Verdict.BLIND)
    say(engine, started, 1, "freshness", Verdict.PASS, 1.0)
    say(engine, started, 1, "freshness", Verdict.PASS, 1.0)

    with transaction(engine) as session:
        assert rollouts.last_verdicts(session, started.id)["freshness"].verdict == Verdict.PASS
        assert len(rollouts.verdict_history(session, started.id, gate="freshness")) == 2


def test_what_it_waits_for_follows_from_the_last_verdicts(engine: Engine, started: Rollout) -> None:
    for gate in Plan().gates:
        say(engine, started, 1, gate.name, Verdict.PASS)
    say(engine, started, 2, "silence", Verdict.INSUFFICIENT, 1.0)

    found = status(engine, 6).outlook

    assert (found.minimum_left, found.maximum_left) == (timedelta(hours=18), timedelta(days=59, hours=18))
    assert found.needs == (
        "the stage's minimum time lasts another 18 h, until 2026-03-03 00:00 UTC",
        '"silence" must pass, it is insufficient: insufficient at 1.0',
    )


def test_a_rollout_that_is_over_waits_for_nothing(engine: Engine, started: Rollout) -> None:
    roll_back(engine, Command(OWNER, MONDAY, "harm"), strategy_name="fib_rsi")

    assert status(engine).outlook.needs == ()


def test_the_history_is_of_the_newest_rollout_unless_one_is_named(engine: Engine, started: Rollout) -> None:
    say(engine, started, 1, "errors", Verdict.PASS, 1.0)
    roll_back(engine, Command(OWNER, MONDAY + DAY, "harm"), strategy_name="fib_rsi")
    second = start_rollout(
        engine, Command(OWNER, MONDAY + DAY, override_reason="again"), strategy_name="fib_rsi", version="2", plan=Plan()
    )
    say(engine, second, 25, "errors", Verdict.FAIL, 2.0)

    newest, named = read_verdicts(engine, "fib_rsi"), read_verdicts(engine, "fib_rsi", rollout_id=started.id)

    assert (newest.rollout.id, [row.verdict for row in newest.verdicts]) == (second.id, ["fail"])
    assert (named.rollout.id, [row.verdict for row in named.verdicts]) == (started.id, ["pass"])


def test_one_gates_history_has_its_value_over_the_whole_rollout(engine: Engine, started: Rollout) -> None:
    for hour, value in enumerate([0.5, None, 1.5, 2.5]):
        say(engine, started, hour, "errors", Verdict.PASS, value)
        say(engine, started, hour, "silence", Verdict.PASS, value)

    found = read_verdicts(engine, "fib_rsi", gate="errors", limit=2)

    assert [(row.gate, row.ticked_at, row.value) for row in found.verdicts] == [
        ("errors", MONDAY + 2 * HOUR, 1.5),
        ("errors", MONDAY + 3 * HOUR, 2.5),
    ]
    assert found.values == [(MONDAY, 0.5), (MONDAY + 2 * HOUR, 1.5), (MONDAY + 3 * HOUR, 2.5)]
    assert len(read_verdicts(engine, "fib_rsi").verdicts) == 8


def test_what_is_not_there_is_said_by_name(engine: Engine, started: Rollout) -> None:
    put_version(engine, "1", Status.ACTIVE, strategy_name="plain")
    with pytest.raises(UnknownStrategy):
        read_verdicts(engine, "fib_rsy")
    with pytest.raises(UnknownRollout, match="no rollout of 'plain'"):
        read_verdicts(engine, "plain")
    with pytest.raises(UnknownRollout, match="of 'fib_rsi'"):
        read_verdicts(engine, "fib_rsi", rollout_id=uuid4())
    with pytest.raises(InvalidName, match="'harms' is not a gate of this rollout; allowed: freshness, errors, "):
        read_verdicts(engine, "fib_rsi", gate="harms")
    assert read_verdicts(engine, "fib_rsi", gate="freshness").verdicts == []
