"""Each verdict, reached by a tick on evidence as it stands in the store, and what it does to the rollout."""

from collections.abc import Callable

import pytest
from sqlalchemy import Engine, text

from strategy_core.domain.audit import Command
from strategy_core.domain.gates.base import Verdict
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan
from strategy_core.domain.ramp import Step
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services.rollouts import start_rollout
from strategy_core.services.tick import tick
from strategy_core.store import rollouts
from strategy_core.store.engine import reading, transaction
from tests.builders import DAY, HOUR, MONDAY, OWNER, decision_row, put_day, put_decisions, put_version

BOTH = {"1": "buy", "2": "buy"}
HOURS = range(0, 20, 2)


def passed(engine: Engine) -> None:
    for day in range(4):
        put_day(engine, MONDAY + day * DAY, BOTH, {"1": 0.4, "2": 0.4}, signal_hours=HOURS)


def too_little(engine: Engine) -> None:
    """Four days, and a slot on each: fewer than any plan asks for."""
    for day in range(4):
        put_day(engine, MONDAY + day * DAY, BOTH, {"1": 0.4, "2": 0.4}, signal_hours=[3])


def no_answer(engine: Engine) -> None:
    """The canary wins and loses by turns, and the active version the other way round."""
    for day in range(4):
        worth = {"1": 1.0, "2": -1.0} if day % 2 else {"1": -1.0, "2": 1.0}
        put_day(engine, MONDAY + day * DAY, BOTH, worth, signal_hours=HOURS)


def nothing_to_see(engine: Engine) -> None:
    """The log ends on the third day."""
    for day in range(3):
        put_day(engine, MONDAY + day * DAY, BOTH, {"1": 0.4, "2": 0.4}, signal_hours=HOURS)


def harm(engine: Engine) -> None:
    """Each win of the active version is lost by the canary: the streak is too long as well, and both say so."""
    for day in range(4):
        put_day(engine, MONDAY + day * DAY, BOTH, {"1": 0.4, "2": -0.4}, signal_hours=HOURS)


def broken(engine: Engine) -> None:
    passed(engine)
    at = MONDAY + 4 * DAY
    put_decisions(engine, decision_row("1", at), decision_row("2", at, "error", error_kind="breach"))


@pytest.mark.parametrize(
    ("evidence", "verdict", "gate", "step"),
    [
        (broken, Verdict.BREACH, "invalid_decisions", Step.ROLL_BACK),
        (harm, Verdict.FAIL, "harm", Step.ROLL_BACK),
        (nothing_to_see, Verdict.BLIND, "freshness", Step.HOLD),
        (no_answer, Verdict.INCONCLUSIVE, "not_worse", Step.HOLD),
        (too_little, Verdict.INSUFFICIENT, "not_worse", Step.HOLD),
        (passed, Verdict.PASS, "not_worse", Step.ADVANCE),
    ],
)
def test_it_is_reached(
    engine: Engine,
    market: SyntheticSource,
    evidence: Callable[[Engine], None],
    verdict: Verdict,
    gate: str,
    step: Step,
) -> None:
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2")
    rollout = start_rollout(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", plan=Plan())
    evidence(engine)

    (ticked,) = tick(engine, market, now=MONDAY + 4 * DAY + HOUR)

    assert ticked.ruling is not None, ticked.error
    assert ticked.ruling.step is step
    assert {finding.gate: finding.verdict for finding in ticked.findings}[gate] is verdict
    with reading(engine) as session:
        assert rollouts.last_verdicts(session, rollout.id)[gate].verdict == verdict


@pytest.mark.parametrize(("evidence", "step"), [(harm, Step.ROLL_BACK), (passed, Step.HOLD)])
def test_what_the_platform_reports_and_cannot_be_read_silences_no_gate_on_slots(
    engine: Engine, market: SyntheticSource, evidence: Callable[[Engine], None], step: Step
) -> None:
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2")
    start_rollout(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", plan=Plan())
    evidence(engine)
    with transaction(engine) as session:
        session.connection().execute(text("DROP TABLE live_trade"))

    (ticked,) = tick(engine, market, now=MONDAY + 4 * DAY)

    assert ticked.ruling is not None, ticked.error
    assert ticked.ruling.step is step
    found = {finding.gate: finding for finding in ticked.findings}
    assert {found[gate].verdict for gate in ("order_errors", "latency", "sample_ratio", "routing_audit")} == {"blind"}
    assert "live_trade" in found["order_errors"].reason
    assert found["not_worse"].verdict is not Verdict.PASS
