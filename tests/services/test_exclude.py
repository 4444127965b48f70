"""A symbol that is excluded from a canary: who serves it, what the gates still judge, and what is refused."""

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, text, update

from strategy_core import Router
from strategy_core.domain.audit import Command
from strategy_core.domain.errors import CannotExclude, IllegalTransition, InvalidName, NotAwaiting
from strategy_core.domain.exclusions import UNREADABLE
from strategy_core.domain.gates.base import Finding, Verdict
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan, read_plan
from strategy_core.domain.ramp import State, Step
from strategy_core.domain.routing import bucket_of
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.report.rollout import rollback_markdown, rollout_markdown
from strategy_core.services.audit import state_at, verify_trail
from strategy_core.services.live_trades import ingest
from strategy_core.services.queries import route_user
from strategy_core.services.reports import read_report
from strategy_core.services.rollback import roll_back
from strategy_core.services.rollouts import Choice, decide_rollout, exclude_symbol, start_rollout
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
ALIKE = {"1": 0.4, "2": 0.4}
STAGE = {"percent": 5, "minimum_time": 3_600, "margins": {"pnl_r": 0.1, "win": 0.05}}
PLAN = {"stages": [STAGE, {**STAGE, "percent": 100}], "gates": [{"kind": "errors"}], "approve_before": []}
ONE_STAGE = read_plan(PLAN | {"stages": [{**STAGE, "percent": 100}]})


def start(engine: Engine, plan: Plan) -> Engine:
    """Start version 2 against version 1 on Monday, both on two symbols."""
    put_version(engine, "1", Status.ACTIVE, symbols=BOTH, recorded=True)
    put_version(engine, "2", symbols=BOTH, recorded=True)
    start_rollout(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", plan=plan)
    return engine


@pytest.fixture
def ramped(engine: Engine) -> Engine:
    return start(engine, Plan())


def put_hours(engine: Engine, hours: range, *, symbols: tuple[str, ...] = BOTH, **said: str) -> None:
    """Log the hours since Monday, on which both versions hold, or say on a symbol what *said* has for it."""
    put_decisions(
        engine,
        *(
            decision_row(version, MONDAY + hour * HOUR, said.get(symbol, "hold"), symbol=symbol)
            for version in ("1", "2")
            for symbol in symbols
            for hour in hours
        ),
    )


def put_signals(engine: Engine, *hours: int, symbol: str, worth: Mapping[str, float]) -> None:
    """Log a signal of both versions on each hour, with its result in R."""
    moments = [MONDAY + hour * HOUR for hour in hours]
    put_decisions(engine, *(decision_row(v, at, "buy", symbol=symbol) for v in worth for at in moments))
    put_outcomes(engine, *(outcome_row(v, at, r, symbol=symbol) for v, r in worth.items() for at in moments))


def exclude(engine: Engine, symbol: str = SILVER, at: datetime = NOON, **more: Any) -> Rollout:
    command = Command(OWNER, at, "its feed is odd")
    asked: dict[str, Any] = {"strategy_name": "fib_rsi", "symbol": symbol, "routes_by_symbol": True}
    return exclude_symbol(engine, command, **asked | more)


def judged(engine: Engine, market: SyntheticSource, now: datetime = TUESDAY) -> tuple[Step, dict[str, Finding]]:
    (ticked,) = tick(engine, market, now=now)
    assert ticked.ruling is not None, ticked.error
    return ticked.ruling.step, {finding.gate: finding for finding in ticked.findings}


def booked(engine: Engine) -> list[tuple[str, int]]:
    with reading(engine) as session:
        rollout = rollouts.list_rollouts(session)[0]
        return sorted((row.symbol, (row.timestamp - MONDAY) // HOUR) for row in evidence.booked(session, rollout.id))


def versions_of(engine: Engine, symbol: str | None) -> list[str]:
    return [
        route_user(engine, user_id=user, strategy_name="fib_rsi", now=MONDAY, symbol=symbol).version
        for user in (IN_CANARY, IN_ACTIVE)
    ]


# Routing


def test_every_user_gets_the_active_version_on_it(ramped: Engine) -> None:
    assert bucket_of(IN_CANARY) < 500 <= bucket_of(IN_ACTIVE)
    exclude(ramped)

    assert [versions_of(ramped, symbol) for symbol in (SILVER, GOLD, None)] == [["1", "1"], ["2", "1"], ["2", "1"]]
    found = route_user(ramped, user_id=IN_CANARY, strategy_name="fib_rsi", now=MONDAY, symbol=SILVER)
    assert (found.in_canary, found.why) == (False, "SILVER is excluded from the canary")


def test_a_router_answers_by_symbol(ramped: Engine) -> None:
    exclude(ramped)

    with Router(ramped.url.render_as_string(hide_password=False)) as router:
        assert router.version_for(IN_CANARY, "fib_rsi", SILVER) == "1"
        assert router.version_for(IN_CANARY, "fib_rsi", GOLD) == "2"
        assert router.version_for(IN_CANARY, "fib_rsi") == "2"
        assert router.assign([IN_CANARY, IN_ACTIVE], "fib_rsi", SILVER) == ["1", "1"]
        assert router.assign([IN_CANARY, IN_ACTIVE], "fib_rsi", GOLD) == ["2", "1"]
        assert router.explain(IN_CANARY, "fib_rsi", SILVER).why == "SILVER is excluded from the canary"
        wrong: Any = [SILVER]
        for ask in (router.version_for, router.explain):
            with pytest.raises(InvalidName, match="is not a symbol; allowed: text"):
                ask(IN_ACTIVE, "fib_rsi", wrong)
        with pytest.raises(InvalidName, match="is not a symbol"):
            router.assign([IN_ACTIVE], "fib_rsi", wrong)


def test_a_rollback_ends_it_and_the_next_canary_serves_every_symbol(ramped: Engine) -> None:
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
    exclude(ramped)
    for symbol in BOTH:
        put_signals(ramped, 10, 11, 14, symbol=symbol, worth=ALIKE)

    judged(ramped, market)

    assert booked(ramped) == [(GOLD, 10), (GOLD, 11), (GOLD, 14), (SILVER, 10)]


@pytest.mark.parametrize("wrong", [MONDAY - 7 * DAY, MONDAY])
def test_a_clock_that_is_set_back_hides_nothing_that_users_met(
    ramped: Engine, market: SyntheticSource, wrong: datetime
) -> None:
    put_hours(ramped, range(10))
    judged(ramped, market, MONDAY + 10 * HOUR)
    put_signals(ramped, 10, 11, symbol=SILVER, worth=ALIKE)

    exclude(ramped, at=wrong)
    put_signals(ramped, 12, symbol=SILVER, worth=ALIKE)
    judged(ramped, market)

    assert booked(ramped) == [(SILVER, 10), (SILVER, 11)]


def test_a_trade_that_was_open_is_booked_when_it_closes(ramped: Engine, market: SyntheticSource) -> None:
    put_hours(ramped, range(11), SILVER="buy")
    exclude(ramped)
    put_outcomes(ramped, *(outcome_row(v, MONDAY, -1.0, symbol=SILVER, candles=20) for v in ("1", "2")))

    judged(ramped, market)

    assert booked(ramped) == [(SILVER, 0)]


@pytest.mark.parametrize("excluded", [False, True])
def test_losses_on_it_roll_back_only_while_the_canary_serves_it(
    ramped: Engine, market: SyntheticSource, excluded: bool
) -> None:
    put_hours(ramped, range(11))
    if excluded:
        exclude(ramped)
    put_signals(ramped, *range(12, 23), symbol=SILVER, worth={"1": 0.4, "2": -8.0})
    put_hours(ramped, range(11, 24), symbols=(GOLD,))

    step, found = judged(ramped, market)

    assert found["excess_drawdown"].verdict is (Verdict.INSUFFICIENT if excluded else Verdict.BREACH)
    assert step is (Step.HOLD if excluded else Step.ROLL_BACK)


@pytest.mark.parametrize(("old", "verdict"), [(-40.0, Verdict.BREACH), (40.0, Verdict.BREACH), (-0.5, Verdict.PASS)])
def test_what_users_still_hold_counts_with_its_loss_and_no_shadow_gain_offsets_it(
    ramped: Engine, market: SyntheticSource, old: float, verdict: Verdict
) -> None:
    """A trade from before stays open until the evening, while in shadow the symbol wins what the other loses."""
    put_decisions(ramped, *(decision_row(v, MONDAY + 9 * HOUR, "buy", symbol=SILVER) for v in ("1", "2")))
    exclude(ramped)
    held = outcome_row("2", MONDAY + 9 * HOUR, old, symbol=SILVER, candles=11)
    put_outcomes(ramped, held | {"opened_at": MONDAY + 15 * HOUR})
    if old != -0.5:
        put_signals(ramped, *range(12, 20), symbol=SILVER, worth={"1": 0.4, "2": 8.0})
    if old > 0:
        put_signals(ramped, *range(12, 20), symbol=GOLD, worth={"1": 0.4, "2": -8.0})

    _, found = judged(ramped, market)

    assert found["excess_drawdown"].verdict is verdict


@pytest.mark.parametrize("excluded", [False, True])
def test_errors_and_silence_on_it_count_only_while_the_canary_serves_it(
    ramped: Engine, market: SyntheticSource, excluded: bool
) -> None:
    put_hours(ramped, range(11))
    if excluded:
        exclude(ramped)
    later = [MONDAY + hour * HOUR for hour in range(11, 24)]
    put_hours(ramped, range(11, 24), symbols=(GOLD,))
    put_decisions(
        ramped,
        *(decision_row("1", at, symbol=SILVER) for at in later),
        *(decision_row("2", at, "error", symbol=SILVER, error_kind="raised") for at in later),
    )

    step, found = judged(ramped, market)

    assert found["errors"].verdict is (Verdict.PASS if excluded else Verdict.BREACH)
    assert found["freshness"].verdict is (Verdict.PASS if excluded else Verdict.BLIND)
    assert step is (Step.HOLD if excluded else Step.ROLL_BACK)


def test_a_symbol_without_candles_does_not_blind_the_rollout_once_it_is_excluded(
    ramped: Engine, market: SyntheticSource
) -> None:
    put_hours(ramped, range(12))
    put_hours(ramped, range(12, 24), symbols=(GOLD,))
    assert judged(ramped, market)[1]["freshness"].verdict is Verdict.BLIND

    exclude(ramped, at=TUESDAY)

    assert judged(ramped, market)[1]["freshness"].verdict is Verdict.PASS


def test_a_trade_of_the_canary_on_it_is_misrouted_after_the_grace(ramped: Engine, market: SyntheticSource) -> None:
    exclude(ramped)
    put_hours(ramped, range(24))

    def order(version: str, symbol: str, at: datetime) -> dict[str, Any]:
        return {
            "trade_id": f"{symbol} {version} {at:%H:%M:%S}",
            "user_id": IN_CANARY,
            "strategy_name": "fib_rsi",
            "version": version,
            "symbol": symbol,
            "opened_at": at,
        }

    graced, late = NOON + timedelta(seconds=59), NOON + timedelta(minutes=5)
    right = [order("2", SILVER, graced), order("1", SILVER, late), order("2", GOLD, late)]
    assert ingest(ramped, right, now=TUESDAY).misrouted == 0
    assert judged(ramped, market)[1]["routing_audit"].verdict is not Verdict.BREACH

    wrong = [order("2", SILVER, late + timedelta(seconds=second)) for second in range(1, 21)]
    assert ingest(ramped, wrong, now=TUESDAY).misrouted == 20
    assert judged(ramped, market, TUESDAY + HOUR)[1]["routing_audit"].verdict is Verdict.BREACH


# Promotion


def test_it_goes_on_but_is_not_promoted(engine: Engine, market: SyntheticSource) -> None:
    start(engine, read_plan(PLAN))
    put_hours(engine, range(24))
    exclude(engine)
    assert judged(engine, market, NOON + HOUR)[0] is Step.ADVANCE

    assert judged(engine, market)[0] is Step.HOLD

    (status,) = read_status(engine, now=TUESDAY)
    assert status.rollout is not None
    assert status.excluded == (SILVER,)
    why = "SILVER excluded. Roll back, and start a version that serves all symbols"
    assert status.rollout.outlook.needs == (f"it cannot be promoted: {why}",)


@pytest.mark.parametrize(("on_inconclusive", "step"), [("hold", Step.AWAIT_DECISION), ("rollback", Step.ROLL_BACK)])
def test_at_the_maximum_time_of_the_last_stage_the_plan_says_who_ends_it(
    engine: Engine, market: SyntheticSource, on_inconclusive: str, step: Step
) -> None:
    plan = ONE_STAGE.model_copy(update={"on_inconclusive": on_inconclusive})
    start(engine, plan)
    exclude(engine)
    late = MONDAY + plan.maximum_stage_time
    put_hours(engine, range(int((late - MONDAY) / HOUR) - 2, int((late - MONDAY) / HOUR)))

    (ticked,) = tick(engine, market, now=late)

    assert ticked.ruling is not None
    assert ticked.ruling.step is step
    assert "SILVER excluded. Roll back" in ticked.ruling.reason


def test_no_owner_promotes_it(engine: Engine, market: SyntheticSource) -> None:
    start(engine, ONE_STAGE)
    put_hours(engine, range(2))
    judged(engine, market, MONDAY + HOUR / 2)  # else the owner would decide without sight
    exclude(engine)
    with transaction(engine) as session:
        rollouts.change_rollout(session, rollouts.list_rollouts(session)[0], state=State.AWAITING_DECISION.value)
    command = Command(OWNER, MONDAY + HOUR, "now")

    with pytest.raises(IllegalTransition, match="SILVER excluded from its canary"):
        decide_rollout(engine, command, strategy_name="fib_rsi", choice=Choice.ADVANCE)
    with pytest.raises(IllegalTransition, match="SILVER excluded from its canary"):
        activate_version(engine, command, strategy_name="fib_rsi", version="2")
    assert roll_back(engine, command, strategy_name="fib_rsi") == "2"


# Refusals, audit and alerts


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"symbol": "OIL"}, "2 does not decide on it; allowed: GOLD"),
        ({}, "it is excluded already; allowed: GOLD"),
        ({"symbol": GOLD}, "the gates would have no symbol left; allowed: rollback"),
        (
            {"symbol": GOLD, "routes_by_symbol": False},
            "not known to route by symbol; allowed: ROLLOUT_ROUTES_BY_SYMBOL=1",
        ),
    ],
)
def test_what_cannot_be_excluded_is_refused_with_what_can(ramped: Engine, more: dict[str, Any], why: str) -> None:
    exclude(ramped)

    with pytest.raises(CannotExclude, match=why):
        exclude(ramped, **more)
    assert versions_of(ramped, GOLD) == ["2", "1"]


def test_a_promoted_version_and_an_ended_rollout_have_no_canary(engine: Engine, market: SyntheticSource) -> None:
    rollout_id = rollouts_of(start(engine, ONE_STAGE))[0].id
    put_hours(engine, range(24))
    assert judged(engine, market)[0] is Step.PROMOTE

    with pytest.raises(CannotExclude, match="2 is active for all users; allowed: rollback"):
        exclude(engine, at=TUESDAY)
    roll_back(engine, Command(OWNER, TUESDAY, "worse"), strategy_name="fib_rsi")
    with pytest.raises(NotAwaiting, match="rolled_back"):
        exclude(engine, at=TUESDAY, rollout_id=rollout_id)


def test_the_trail_and_the_alert_say_so(ramped: Engine) -> None:
    exclude(ramped)

    stood = state_at(ramped, "fib_rsi", TUESDAY)
    assert (stood.excluded, stood.made_by["excluded"].reason) == ([SILVER], "its feed is odd")
    assert [alert.text for alert in outbox(ramped)[1:]] == ["fib_rsi 2 no longer serves SILVER: its feed is odd"]
    assert verify_trail(ramped).holds


def test_an_exclusion_that_no_owner_made_is_found(ramped: Engine) -> None:
    exclude(ramped)
    with transaction(ramped) as session:
        session.execute(update(CanaryConfig).values(excluded_symbols={}))

    (problem,) = verify_trail(ramped).problems()

    assert "canary_config fib_rsi has excluded_symbols" in problem


@pytest.mark.parametrize("value", [None, [SILVER], {SILVER: None}, {SILVER: "noon"}, {SILVER: "2026-03-02T12:00:00"}])
def test_a_value_that_cannot_be_read_stops_no_rollback_and_no_other_strategy(
    ramped: Engine, market: SyntheticSource, value: object
) -> None:
    with ramped.begin() as connection:
        connection.execute(text("UPDATE canary_config SET excluded_symbols = :value"), {"value": json.dumps(value)})

    assert versions_of(ramped, GOLD) == ["1", "1"], "which symbols the canary may serve is unknown"
    (ticked,) = tick(ramped, market, now=TUESDAY)
    assert ticked.ruling is not None
    assert ticked.ruling.blind
    assert "the symbols that are excluded from the canary cannot be read" in ticked.error
    (status,) = read_status(ramped, now=TUESDAY)
    assert status.excluded == (UNREADABLE,)
    assert roll_back(ramped, Command(OWNER, TUESDAY, "odd"), strategy_name="fib_rsi") == "2"
    assert not verify_trail(ramped).holds


def rollouts_of(engine: Engine) -> list[Rollout]:
    with reading(engine) as session:
        return list(rollouts.list_rollouts(session))


# Reports


def test_a_report_leaves_it_out_from_then_on(ramped: Engine, market: SyntheticSource) -> None:
    put_signals(ramped, 2, symbol=SILVER, worth={"1": 0.5, "2": -0.25})
    put_signals(ramped, 3, symbol=GOLD, worth={"1": 0.5, "2": 1.0})
    put_hours(ramped, range(12))
    exclude(ramped, at=NOON)
    put_hours(ramped, range(15, 24))
    put_signals(ramped, 14, symbol=SILVER, worth={"1": 20.0, "2": -30.0})
    failed = [decision_row("2", MONDAY + h * HOUR, "error", symbol=SILVER, error_kind="raised") for h in (30, 31)]
    put_decisions(ramped, *failed, decision_row("2", MONDAY + 30 * HOUR, "error", error_kind="raised"))
    with reading(ramped) as session:
        (rollout,) = rollouts.list_rollouts(session)

    going, _ = read_report(ramped, rollout.id, now=TUESDAY + 10 * HOUR)
    roll_back(ramped, Command(OWNER, TUESDAY + 10 * HOUR, "odd"), strategy_name="fib_rsi")
    ended, _ = read_report(ramped, rollout.id, now=TUESDAY + 10 * HOUR)

    assert (going.equity.canary[-1], going.equity.control[-1]) == (0.75, 1.0)
    assert ended.equity == going.equity
    undone = ended.rolled_back
    assert undone is not None
    assert [row.symbol for row in undone.errors] == [GOLD]
    assert {row.symbol for row in undone.decisions if row.timestamp >= NOON} == {GOLD}
    assert list(ended.progress.excluded) == [SILVER]
    for markdown in (rollout_markdown(going), rollback_markdown(undone)):
        assert "**excluded:** SILVER since 2026-03-02 " in markdown
        assert "Later candles are left out of all figures and lists" in markdown
