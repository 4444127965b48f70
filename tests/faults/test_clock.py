"""Jumps of the clock by hours, in both directions, and daylight saving harm no user and hide no harm."""

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import Engine

from strategy_core.domain.alerts import RollbackRequest
from strategy_core.domain.audit import Command
from strategy_core.domain.gates.base import Freshness, Verdict
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan, read_plan
from strategy_core.domain.ramp import Ruling, Step
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.observe.prometheus import Prometheus
from strategy_core.services.alerts import deliver
from strategy_core.services.audit import verify_trail
from strategy_core.services.rollback import AlertRollback, roll_back, roll_back_on_alert
from strategy_core.services.rollouts import start_rollout
from strategy_core.services.sample_metrics import sample_metrics
from strategy_core.services.score import score_outcomes
from strategy_core.services.shadow import run_shadow
from strategy_core.services.tick import tick
from strategy_core.services.versions import activate_version
from strategy_core.store import alerts, rollouts, versions
from strategy_core.store.engine import reading
from tests.builders import DAY, HOUR, MONDAY, OWNER, decision_row, put_decisions, put_version
from tests.endpoint import Endpoint, vector
from tests.faults.invariants import picture
from tests.faults.operations import World, registered
from tests.services.outbox import channel_to, put_alert, texts
from tests.services.ramping import newest

MINUTE = timedelta(minutes=1)
JUMP = 2 * HOUR
METRIC: dict[str, Any] = {"kind": "metric", "metric": "slippage", "query": "slippage", "maximum": 3}
PLAN = read_plan({"gates": [{"kind": "errors"}, METRIC | {"minimum_samples": 1, "dry_run": True}]})
STAGE = PLAN.stages[0].minimum_time


def ramp(engine: Engine, plan: Plan = PLAN) -> None:
    put_version(engine, "1", Status.ACTIVE, recorded=True)
    put_version(engine, "2", recorded=True)
    start_rollout(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", plan=plan)


def look(engine: Engine, market: SyntheticSource, now: datetime, *, decided: datetime | None = None) -> Ruling:
    """Log what has really closed by *decided*, and tick at the time that the clock shows."""
    hours = [MONDAY + hour * HOUR for hour in range(int(((decided or now) - MONDAY) / HOUR))]
    put_decisions(engine, *(decision_row(version, at) for version in ("1", "2") for at in hours))
    (ticked,) = tick(engine, market, now=now)
    assert ticked.ruling is not None, ticked.error
    return ticked.ruling


@pytest.mark.parametrize(
    "ahead", [JUMP, *(pytest.param(by, marks=pytest.mark.full) for by in (5 * HOUR, 3 * DAY, 90 * DAY))]
)
def test_a_clock_that_jumps_ahead_rolls_nobody_back_and_the_true_time_is_seen_again(
    engine: Engine, market: SyntheticSource, ahead: timedelta
) -> None:
    """By the clock it is blind for longer than the limit at once, but blindness counts from its first tick."""
    ramp(engine)
    assert look(engine, market, MONDAY + HOUR).step is Step.HOLD

    wrong = look(engine, market, MONDAY + HOUR + ahead, decided=MONDAY + HOUR)
    right = [look(engine, market, MONDAY + hours * HOUR) for hours in range(2, 20)]

    assert wrong.step is Step.HOLD
    assert {ruling.step for ruling in right} == {Step.HOLD}
    assert not right[-1].blind
    assert newest(engine).stage_index == 0


def test_a_tick_by_a_clock_that_was_ahead_does_not_stop_the_clock_of_blindness(
    engine: Engine, market: SyntheticSource
) -> None:
    ramp(engine)
    look(engine, market, MONDAY + 30 * DAY, decided=MONDAY + HOUR)

    held = [look(engine, market, MONDAY + hours * HOUR, decided=MONDAY + HOUR) for hours in range(4, 28)]
    over = look(engine, market, MONDAY + 28 * HOUR, decided=MONDAY + HOUR)

    assert {(ruling.step, ruling.blind) for ruling in held} == {(Step.HOLD, True)}
    assert (over.step, over.cause) == (Step.ROLL_BACK, "blind")


def test_what_a_gate_says_now_outranks_what_it_said_of_an_hour_that_was_wrong(
    engine: Engine, market: SyntheticSource
) -> None:
    """An owner's approval rests on the last word of each gate."""
    ramp(engine)
    look(engine, market, MONDAY + 30 * DAY, decided=MONDAY + HOUR)
    with reading(engine) as session:
        wrong = rollouts.last_verdicts(session, newest(engine).id)[Freshness().name].verdict

    look(engine, market, MONDAY + 2 * HOUR)

    with reading(engine) as session:
        right = rollouts.last_verdicts(session, newest(engine).id)[Freshness().name].verdict
    assert (wrong, right) == (Verdict.BLIND, Verdict.PASS)


def test_two_hours_ahead_a_stage_is_left_two_hours_early_at_most_and_never_blind(
    engine: Engine, market: SyntheticSource
) -> None:
    """Without candles a gate is blind, so that a jump of any size does not shorten a stage."""
    ramp(engine)
    near, far = MONDAY + STAGE - JUMP, MONDAY + STAGE - 5 * HOUR
    look(engine, market, far - HOUR)

    blind = look(engine, market, MONDAY + STAGE, decided=far)
    early = look(engine, market, MONDAY + STAGE, decided=near)

    assert (blind.step, blind.blind) == (Step.HOLD, True)
    assert (early.step, newest(engine).stage_index) == (Step.ADVANCE, 1)


def test_a_clock_that_jumps_back_hides_no_harm(engine: Engine, market: SyntheticSource) -> None:
    ramp(engine)
    look(engine, market, MONDAY + 6 * HOUR)
    errors = [decision_row("2", MONDAY + hour * HOUR, "error", error_kind="raised") for hour in range(6, 24)]
    sound = [decision_row("1", MONDAY + hour * HOUR) for hour in range(6, 24)]
    put_decisions(engine, *errors, *sound)

    (ticked,) = tick(engine, market, now=MONDAY + 6 * HOUR - JUMP)

    assert ticked.ruling is not None
    assert ticked.ruling.step is Step.ROLL_BACK
    assert newest(engine).state == "rolled_back"


def test_an_owner_whose_clock_ran_back_is_heard_and_the_trail_holds(engine: Engine, market: SyntheticSource) -> None:
    ramp(engine)
    look(engine, market, MONDAY + 6 * HOUR)

    roll_back(engine, Command(OWNER, MONDAY - JUMP, "news"), strategy_name="fib_rsi")

    assert newest(engine).state == "rolled_back"
    assert verify_trail(engine).holds


def test_a_rollback_reinstates_the_one_before_though_the_clock_ran_ahead(engine: Engine) -> None:
    put_version(engine, "1", Status.ACTIVE)
    for version, now in {"2": MONDAY + JUMP, "3": MONDAY + 10 * MINUTE, "4": MONDAY + 20 * MINUTE}.items():
        put_version(engine, version)
        activate_version(engine, Command(OWNER, now), strategy_name="fib_rsi", version=version)

    roll_back(engine, Command(OWNER, MONDAY + 30 * MINUTE, "news"), strategy_name="fib_rsi", version="4")

    with reading(engine) as session:
        assert versions.active_version(session, "fib_rsi").version == "3"


def test_an_alert_is_acted_on_though_the_clock_ran_ahead_when_the_rollout_began(engine: Engine) -> None:
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2")
    start_rollout(engine, Command(OWNER, MONDAY + JUMP), strategy_name="fib_rsi", version="2", plan=PLAN)
    fired_at = MONDAY + 10 * MINUTE
    firing = RollbackRequest("fib_rsi", None, fired_at, "bleeding", "users lose money")

    told = roll_back_on_alert(engine, Command(OWNER, fired_at + MINUTE), firing, fired_at=fired_at)

    assert told == (AlertRollback.ROLLED_BACK, "2")


def test_a_metric_is_sampled_and_seen_though_the_clock_ran_back(
    engine: Engine, market: SyntheticSource, endpoint: Endpoint
) -> None:
    """Else the last samples of the wrong hour would pass for the newest until the clock has caught up."""
    ramp(engine, read_plan({"gates": [METRIC | {"minimum_samples": 1}]}))
    prometheus = Prometheus(endpoint.url)
    sample_metrics(engine, prometheus, now=MONDAY + HOUR + JUMP)
    look(engine, market, MONDAY + HOUR + JUMP)
    endpoint.body = vector("99")

    for minute in range(3):
        sample_metrics(engine, prometheus, now=MONDAY + HOUR + minute * MINUTE)
    (ticked,) = tick(engine, market, now=MONDAY + HOUR + 3 * MINUTE)

    assert ticked.ruling is not None
    assert ticked.ruling.step is Step.ROLL_BACK
    assert ticked.ruling.reason.startswith("metric:slippage: 99, allowed at most 3; 3 samples in a row")


def test_a_sample_of_a_wrong_hour_is_no_sight_of_the_present(
    engine: Engine, market: SyntheticSource, endpoint: Endpoint
) -> None:
    """It would stay fresh until the true time has come so far, and let the ramp go on though no sample comes."""
    ramp(engine, read_plan({"gates": [METRIC | {"minimum_samples": 1}]}))
    endpoint.body = vector("1")

    sample_metrics(engine, Prometheus(endpoint.url), now=MONDAY + 30 * DAY)

    assert look(engine, market, MONDAY + HOUR).blind


def test_an_alert_put_off_by_a_clock_that_ran_ahead_is_not_put_off_for_hours(
    engine: Engine, endpoint: Endpoint
) -> None:
    put_alert(engine, "users lose money", "critical")
    endpoint.status = 500
    deliver(engine, [channel_to(endpoint)], now=MONDAY + JUMP)
    endpoint.status = 200
    tried = len(endpoint.posted)

    deliver(engine, [channel_to(endpoint)], now=MONDAY + MINUTE)

    assert texts(endpoint)[tried:] == ["users lose money"]


def test_an_alert_is_told_once_though_the_clock_goes_to_and_fro(engine: Engine, endpoint: Endpoint) -> None:
    put_alert(engine, "users may lose money")

    for now in (MONDAY, MONDAY + JUMP, MONDAY, MONDAY - JUMP, MONDAY + MINUTE):
        deliver(engine, [channel_to(endpoint)], now=now)

    assert texts(endpoint) == ["users may lose money"]


@pytest.mark.full
def test_runs_to_and_fro_leave_the_log_of_runs_in_order(engine: Engine, world: World) -> None:
    registered(engine)
    for hours in (6, 8, 4, 1, 7, 24, 22, 25):
        run_shadow(engine, world.market, world.workers, now=MONDAY + hours * HOUR)
        score_outcomes(engine, world.market, now=MONDAY + hours * HOUR)
    rows = picture(engine)

    with reading(engine) as session:
        told = [alert.text for alert in alerts.find_alerts(session)]
    assert told == []
    assert rows["shadow_decision_log"].total() == 2 * 24  # of 25 hours, one is the market's daily break
    assert rows["decision_tally"].total() == 2


@pytest.mark.full
@pytest.mark.parametrize(("zone", "midnight"), [("America/New_York", "2026-03-08"), ("Europe/Berlin", "2026-03-29")])
def test_a_night_in_which_clocks_are_put_is_like_any_other(
    engine: Engine, market: SyntheticSource, zone: str, midnight: str
) -> None:
    """Local time does not matter: each hour is ticked exactly once."""
    first = datetime.fromisoformat(midnight).replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)
    ramp(engine)

    for hours in range(6):
        now = first + hours * HOUR
        assert not look(engine, market, now.astimezone(ZoneInfo(zone)), decided=now).blind
        assert newest(engine).last_tick_at == now
