"""A symbol that is excluded from a canary: who serves it, what the gates still judge, and what is refused."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, update

from strategy_core import Router
from strategy_core.domain.audit import Actor, Command
from strategy_core.domain.errors import CannotExclude, FourEyes, IllegalTransition, NotAwaiting, RolloutError
from strategy_core.domain.gates.base import Finding, Verdict
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan, read_plan
from strategy_core.domain.ramp import State, Step
from strategy_core.domain.routing import bucket_of
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services.audit import state_at, verify_trail
from strategy_core.services.live_trades import ingest
from strategy_core.services.queries import route_user
from strategy_core.services.rollback import roll_back
from strategy_core.services.rollouts import (
    Choice,
    decide_rollout,
    exclude_symbol,
    include_symbol,
    start_rollout,
)
from strategy_core.services.status import read_status
from strategy_core.services.tick import tick
from strategy_core.services.versions import activate_version
from strategy_core.store import evidence, rollouts
from strategy_core.store.engine import reading, transaction
from strategy_core.store.tables import CanaryConfig, Rollout
from tests.builders import (
    DAY,
    GOLD,
    HOUR,
    MONDAY,
    OWNER,
    decision_row,
    outcome_row,
    put_decisions,
    put_outcomes,
    put_version,
)
from tests.services.outbox import outbox

SILVER = "SILVER"
BOTH = (GOLD, SILVER)
NOON = MONDAY + 12 * HOUR
TUESDAY = MONDAY + DAY
IN_CANARY, IN_ACTIVE = "u13", "u2"  # buckets 4.68 % and 88.11 %
ONE_STAGE = read_plan(
    {
        "stages": [{"percent": 100, "minimum_time": 3_600, "margins": {"pnl_r": 0.1, "win": 0.05}}],
        "gates": [{"kind": "errors"}],
        "approve_before": [],
    }
)


def start(engine: Engine, plan: Plan) -> Engine:
    """Start version 2 against version 1 on Monday, both on two symbols."""
    put_version(engine, "1", Status.ACTIVE, symbols=BOTH, recorded=True)
    put_version(engine, "2", symbols=BOTH, recorded=True)
    start_rollout(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", plan=plan)
    return engine


@pytest.fixture
def ramped(engine: Engine) -> Engine:
    return start(engine, Plan())


@pytest.fixture
def nearly(engine: Engine) -> Engine:
    """A rollout whose next stage is the promotion, and that would take it."""
    start(engine, ONE_STAGE)
    put_hours(engine, range(24))
    return engine


def put_hours(engine: Engine, hours: range, said: Mapping[tuple[str, str], str] = {}) -> None:
    """Log the hours since Monday; each (version, symbol) holds unless *said*. None of them is left out."""
    put_decisions(
        engine,
        *(
            decision_row(version, MONDAY + hour * HOUR, said.get((version, symbol), "hold"), symbol=symbol)
            for version in ("1", "2")
            for symbol in BOTH
            for hour in hours
        ),
    )


def put_signals(engine: Engine, *hours: int, symbol: str, worth: Mapping[str, float]) -> None:
    """Log a signal of both versions on each hour, with its result in R."""
    moments = [MONDAY + hour * HOUR for hour in hours]
    put_decisions(engine, *(decision_row(version, at, "buy", symbol=symbol) for version in worth for at in moments))
    put_outcomes(
        engine, *(outcome_row(version, at, r, symbol=symbol) for version, r in worth.items() for at in moments)
    )


def exclude(engine: Engine, symbol: str = SILVER, at: datetime = NOON, **more: Any) -> Rollout:
    command = Command(OWNER, at, "its feed is odd")
    return exclude_symbol(engine, command, strategy_name="fib_rsi", symbol=symbol, **more)


def include(engine: Engine, symbol: str = SILVER, at: datetime = NOON + HOUR, **asked: Any) -> Rollout:
    known: dict[str, Any] = {"actor": OWNER, "now": at, "reason": "the feed is back"}
    command = Command(**known | asked)
    return include_symbol(engine, command, strategy_name="fib_rsi", symbol=symbol)


def judged(engine: Engine, market: SyntheticSource, now: datetime) -> tuple[Step, dict[str, Finding]]:
    (ticked,) = tick(engine, market, now=now)
    assert ticked.ruling is not None, ticked.error
    return ticked.ruling.step, {finding.gate: finding for finding in ticked.findings}


def booked(engine: Engine) -> list[tuple[str, int]]:
    with reading(engine) as session:
        rollout = rollouts.list_rollouts(session)[0]
        return [(row.symbol, (row.timestamp - MONDAY) // HOUR) for row in evidence.booked(session, rollout.id)]


def versions_of(engine: Engine, symbol: str | None) -> list[str]:
    return [
        route_user(engine, user_id=user, strategy_name="fib_rsi", symbol=symbol).version
        for user in (IN_CANARY, IN_ACTIVE)
    ]


# Routing


def test_every_user_gets_the_active_version_on_it_until_it_is_included(ramped: Engine) -> None:
    exclude(ramped)

    assert [versions_of(ramped, symbol) for symbol in (SILVER, GOLD, None)] == [["1", "1"], ["2", "1"], ["2", "1"]]
    found = route_user(ramped, user_id=IN_CANARY, strategy_name="fib_rsi", symbol=SILVER)
    assert (found.in_canary, found.why) == (False, "SILVER is excluded from the canary")

    include(ramped)

    assert versions_of(ramped, SILVER) == ["2", "1"]


def test_a_router_answers_by_symbol(ramped: Engine) -> None:
    exclude(ramped)

    with Router(ramped.url.render_as_string(hide_password=False)) as router:
        assert router.version_for(IN_CANARY, "fib_rsi", SILVER) == "1"
        assert router.version_for(IN_CANARY, "fib_rsi", GOLD) == "2"
        assert router.version_for(IN_CANARY, "fib_rsi") == "2"
        assert router.assign([IN_CANARY, IN_ACTIVE], "fib_rsi", SILVER) == ["1", "1"]
        assert router.assign([IN_CANARY, IN_ACTIVE], "fib_rsi", GOLD) == ["2", "1"]
        assert router.explain(IN_CANARY, "fib_rsi", SILVER).why == "SILVER is excluded from the canary"


def test_a_rollback_takes_it_along_and_the_next_canary_serves_every_symbol(ramped: Engine) -> None:
    exclude(ramped)

    roll_back(ramped, Command(OWNER, NOON + HOUR, "worse"), strategy_name="fib_rsi")
    assert versions_of(ramped, SILVER) == versions_of(ramped, GOLD) == ["1", "1"]
    put_version(ramped, "3", symbols=BOTH, recorded=True)
    start_rollout(ramped, Command(OWNER, NOON + 2 * HOUR), strategy_name="fib_rsi", version="3", plan=Plan())

    assert versions_of(ramped, SILVER) == ["3", "1"]
    assert verify_trail(ramped).holds


# Gates


def test_slots_count_by_the_close_of_their_candle(ramped: Engine, market: SyntheticSource) -> None:
    """Noon closes the candle of eleven o'clock: its signal is the first that only the active version serves."""
    same = {"1": 0.4, "2": 0.4}
    exclude(ramped)
    include(ramped, at=NOON + 4 * HOUR)
    for symbol in BOTH:
        put_signals(ramped, 10, 11, 14, 15, 16, symbol=symbol, worth=same)

    judged(ramped, market, TUESDAY)

    assert sorted(booked(ramped)) == [
        *((GOLD, hour) for hour in (10, 11, 14, 15, 16)),
        *((SILVER, hour) for hour in (10, 15, 16)),
    ]


def test_a_trade_that_was_open_is_booked_when_it_closes(ramped: Engine, market: SyntheticSource) -> None:
    put_hours(ramped, range(11), {("1", SILVER): "buy", ("2", SILVER): "buy"})
    exclude(ramped)
    put_outcomes(ramped, *(outcome_row(v, MONDAY, -1.0, symbol=SILVER, candles=20) for v in ("1", "2")))

    judged(ramped, market, TUESDAY)

    assert booked(ramped) == [(SILVER, 0)]


@pytest.mark.parametrize("excluded", [False, True])
def test_losses_on_it_roll_back_only_while_the_canary_serves_it(
    ramped: Engine, market: SyntheticSource, excluded: bool
) -> None:
    if excluded:
        exclude(ramped)
    put_signals(ramped, *range(12, 23), symbol=SILVER, worth={"1": 0.4, "2": -8.0})
    put_hours(ramped, range(12))
    put_decisions(ramped, *(decision_row(v, MONDAY + hour * HOUR) for v in ("1", "2") for hour in range(12, 24)))

    step, found = judged(ramped, market, TUESDAY)

    assert found["excess_drawdown"].verdict is (Verdict.PASS if excluded else Verdict.BREACH)
    assert step is (Step.HOLD if excluded else Step.ROLL_BACK)


def test_the_loss_of_a_trade_from_before_counts(ramped: Engine, market: SyntheticSource) -> None:
    """A user holds it, whoever serves the symbol now."""
    put_signals(ramped, 9, symbol=SILVER, worth={"1": 0.4})
    put_decisions(ramped, decision_row("2", MONDAY + 9 * HOUR, "buy", symbol=SILVER))
    exclude(ramped)
    lost = outcome_row("2", MONDAY + 9 * HOUR, -40.0, symbol=SILVER, candles=9)
    put_outcomes(ramped, lost | {"opened_at": MONDAY + 15 * HOUR})

    _, found = judged(ramped, market, TUESDAY)

    assert found["excess_drawdown"].verdict is Verdict.BREACH


@pytest.mark.parametrize("excluded", [False, True])
def test_errors_and_silence_on_it_count_only_while_the_canary_serves_it(
    ramped: Engine, market: SyntheticSource, excluded: bool
) -> None:
    put_hours(ramped, range(11))
    if excluded:
        exclude(ramped)
    later = [MONDAY + hour * HOUR for hour in range(11, 24)]
    put_decisions(
        ramped,
        *(decision_row(version, at) for version in ("1", "2") for at in later),
        *(decision_row("1", at, symbol=SILVER) for at in later),
        *(decision_row("2", at, "error", symbol=SILVER, error_kind="raised") for at in later),
    )

    step, found = judged(ramped, market, TUESDAY)

    assert found["errors"].verdict is (Verdict.PASS if excluded else Verdict.BREACH)
    assert found["freshness"].verdict is (Verdict.PASS if excluded else Verdict.BLIND)
    assert step is (Step.HOLD if excluded else Step.ROLL_BACK)


def test_a_symbol_without_candles_does_not_blind_the_rollout_once_it_is_excluded(
    ramped: Engine, market: SyntheticSource
) -> None:
    put_hours(ramped, range(12))
    put_decisions(ramped, *(decision_row(v, MONDAY + hour * HOUR) for v in ("1", "2") for hour in range(12, 24)))
    assert judged(ramped, market, TUESDAY)[1]["freshness"].verdict is Verdict.BLIND

    exclude(ramped, at=TUESDAY)

    assert judged(ramped, market, TUESDAY)[1]["freshness"].verdict is Verdict.PASS


def test_a_trade_of_the_canary_on_it_is_misrouted_after_the_grace(ramped: Engine, market: SyntheticSource) -> None:
    """So a platform that does not route by symbol is found, by the gate on the routing of its orders."""
    exclude(ramped)
    put_hours(ramped, range(24))

    def order(user: str, version: str, symbol: str, at: datetime) -> dict[str, Any]:
        return {
            "trade_id": f"{user} {symbol} {at:%H:%M:%S}",
            "user_id": user,
            "strategy_name": "fib_rsi",
            "version": version,
            "symbol": symbol,
            "opened_at": at,
        }

    graced, late = NOON + timedelta(seconds=59), NOON + timedelta(minutes=5)
    right = [
        order(IN_CANARY, "2", SILVER, graced),
        order(IN_CANARY, "1", SILVER, late),
        order(IN_CANARY, "2", GOLD, late),
    ]
    assert ingest(ramped, right, now=TUESDAY).misrouted == 0
    _, found = judged(ramped, market, TUESDAY)
    assert found["routing_audit"].verdict is not Verdict.BREACH

    wrong = [order(IN_CANARY, "2", SILVER, late + timedelta(seconds=second)) for second in range(1, 21)]
    assert ingest(ramped, wrong, now=TUESDAY).misrouted == 20

    _, found = judged(ramped, market, TUESDAY + HOUR)
    assert found["routing_audit"].verdict is Verdict.BREACH


# Promotion


def test_it_is_not_promoted_until_the_symbol_is_included(nearly: Engine, market: SyntheticSource) -> None:
    exclude(nearly)

    step, _ = judged(nearly, market, TUESDAY)
    assert step is Step.HOLD
    (status,) = read_status(nearly, now=TUESDAY)
    assert status.rollout is not None
    assert status.excluded == (SILVER,)
    assert status.rollout.outlook.needs == ("SILVER must be included again before the promotion: rollout include",)

    include(nearly, at=TUESDAY)

    assert judged(nearly, market, TUESDAY)[0] is Step.PROMOTE


def test_a_stage_that_ends_meanwhile_goes_to_the_owner(nearly: Engine, market: SyntheticSource) -> None:
    exclude(nearly)
    late = MONDAY + ONE_STAGE.maximum_stage_time
    put_decisions(
        nearly,
        *(decision_row(v, late - hour * HOUR, symbol=s) for v in ("1", "2") for s in BOTH for hour in range(1, 3)),
    )

    (ticked,) = tick(nearly, market, now=late)

    assert ticked.ruling is not None
    assert ticked.ruling.step is Step.AWAIT_DECISION
    assert ticked.ruling.reason.endswith("SILVER excluded: include before the promotion")


def test_no_owner_promotes_it_meanwhile(nearly: Engine, market: SyntheticSource) -> None:
    judged(nearly, market, MONDAY + HOUR / 2)  # else the owner would decide without sight
    exclude(nearly)
    with transaction(nearly) as session:
        rollouts.change_rollout(session, rollouts.list_rollouts(session)[0], state=State.AWAITING_DECISION.value)
    command = Command(OWNER, MONDAY + HOUR, "now")

    with pytest.raises(IllegalTransition, match="SILVER excluded: include it first"):
        decide_rollout(nearly, command, strategy_name="fib_rsi", choice=Choice.ADVANCE)
    with pytest.raises(IllegalTransition, match="SILVER excluded: include it first"):
        activate_version(nearly, command, strategy_name="fib_rsi", version="2")
    assert roll_back(nearly, command, strategy_name="fib_rsi") == "2"


# Refusals, audit and alerts


def refused(engine: Engine, error: type[RolloutError], text: str, does: Any, **more: Any) -> None:
    with pytest.raises(error, match=text):
        does(engine, **more)


def test_what_cannot_be_excluded_is_refused_with_what_can(ramped: Engine) -> None:
    refused(ramped, CannotExclude, "2 does not decide on it; allowed: GOLD, SILVER", exclude, symbol="OIL")
    refused(ramped, CannotExclude, "it is not excluded; allowed: none", include)
    exclude(ramped)
    refused(ramped, CannotExclude, "it is excluded already; allowed: GOLD", exclude)
    refused(ramped, CannotExclude, "the gates would have no symbol left; allowed: rollback", exclude, symbol=GOLD)
    refused(ramped, CannotExclude, "it is not excluded; allowed: SILVER", include, symbol=GOLD)
    ended = rollouts_of(ramped)[0].id
    roll_back(ramped, Command(OWNER, NOON, "worse"), strategy_name="fib_rsi")
    refused(ramped, NotAwaiting, "rolled_back", exclude, rollout_id=ended)


def test_a_promoted_version_has_no_canary_to_exclude_from(nearly: Engine, market: SyntheticSource) -> None:
    assert judged(nearly, market, TUESDAY)[0] is Step.PROMOTE

    refused(nearly, CannotExclude, "2 is active for all users; allowed: rollback", exclude, at=TUESDAY)


def test_who_started_the_rollout_excludes_but_does_not_include(ramped: Engine) -> None:
    exclude(ramped)

    refused(ramped, FourEyes, "another owner", include, four_eyes=True)
    include(ramped, actor=Actor("bob"), four_eyes=True)


def test_the_trail_and_the_alerts_say_so(ramped: Engine) -> None:
    exclude(ramped)
    include(ramped)
    exclude(ramped, at=NOON + 2 * HOUR)

    assert state_at(ramped, "fib_rsi", NOON).excluded == [SILVER]
    assert state_at(ramped, "fib_rsi", NOON + HOUR).excluded == []
    last = state_at(ramped, "fib_rsi", TUESDAY)
    assert (last.excluded, last.made_by["excluded"].reason) == ([SILVER], "its feed is odd")
    assert [alert.text for alert in outbox(ramped)[1:]] == [
        "fib_rsi 2 no longer serves SILVER: its feed is odd",
        "fib_rsi 2 serves SILVER again: the feed is back",
        "fib_rsi 2 no longer serves SILVER: its feed is odd",
    ]
    assert verify_trail(ramped).holds


def test_an_exclusion_that_no_owner_made_is_found(ramped: Engine) -> None:
    exclude(ramped)
    with transaction(ramped) as session:
        session.execute(update(CanaryConfig).values(exclusions=[]))

    (problem,) = verify_trail(ramped).problems()

    assert "canary_config fib_rsi has exclusions" in problem


def rollouts_of(engine: Engine) -> list[Rollout]:
    with reading(engine) as session:
        return list(rollouts.list_rollouts(session))


def test_the_bucket_of_the_tests_user_is_in_the_canary() -> None:
    assert bucket_of(IN_CANARY) < 500 <= bucket_of(IN_ACTIVE)
