"""The flows that move a rollout, on both databases."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, update

from flows.ramp import (
    approve_stage,
    decide,
    exclude,
    pause,
    ramp_tick,
    resume,
    set_canary_percent,
    start_canary,
)
from flows.rollback import activate
from strategy_core.domain.audit import Command
from strategy_core.domain.errors import InvalidPercent
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan
from strategy_core.domain.policy import Policy
from strategy_core.domain.ramp import State
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services.declarations import set_policy
from strategy_core.services.rollouts import Choice
from strategy_core.store import audit, rollouts, versions
from strategy_core.store.engine import reading, transaction
from strategy_core.store.tables import AuditEvent, Rollout
from tests.builders import DAY, GOLD, HOUR, MONDAY, OWNER, put_version
from tests.flows.conftest import Clock

LATE = MONDAY + 12 * HOUR  # half a day of candles without decisions


@pytest.fixture
def started(engine: Engine, at: Clock) -> Engine:
    """A database in which v2 runs its first stage against v1, since Monday."""
    put_version(engine, "v1", Status.ACTIVE)
    put_version(engine, "v2")
    state = start_canary.fn("fib_rsi", "v2", owner="ana", plan=Plan(), reason="better in the backtest")
    assert state.is_completed(), state.message
    return engine


def test_a_start_sends_the_first_stage_and_says_so_in_one_line(started: Engine) -> None:
    with reading(started) as session:
        assert rollouts.get_canary(session, "fib_rsi").rollout_bp == 500
    event = newest_event(started)
    assert (event.actor, event.role, event.source) == ("ana", "owner", "form, unverified")
    assert event.reason == "better in the backtest"


def test_a_form_starts_with_a_plan_of_the_policy_by_its_name(engine: Engine, at: Clock) -> None:
    put_version(engine, "v1", Status.ACTIVE)
    put_version(engine, "v2")
    policy = Policy(plans={"careful": Plan(bake=9 * DAY)})
    set_policy(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", policy=policy)

    refused = start_canary.fn("fib_rsi", "v2", owner="ana")
    state = start_canary.fn("fib_rsi", "v2", owner="ana", plan="careful")

    assert "allows these plans only: careful" in (refused.message or "")
    assert state.is_completed(), state.message
    with reading(engine) as session:
        assert rollouts.list_rollouts(session)[0].plan["bake"] == 9 * 86_400


def test_a_start_without_shadow_says_what_that_means(engine: Engine, at: Clock) -> None:
    put_version(engine, "v1", Status.ACTIVE)
    put_version(engine, "v2")

    state = start_canary.fn("fib_rsi", "v2", owner="ana", plan=Plan())

    assert state.message is not None
    assert state.message.startswith(
        "fib_rsi v2 serves 5 % of users against v1. Warning: v2 has 0 slots on 0 days in shadow"
    )


def test_a_second_start_fails_with_what_was_refused(started: Engine) -> None:
    state = start_canary.fn("fib_rsi", "v2", owner="ana", plan=Plan())

    assert state.is_failed()
    assert state.message == "a rollout of 'fib_rsi' 'v2' is running; let it end, or roll it back"


def test_a_setting_that_is_not_valid_keeps_no_rollout_from_its_tick(
    started: Engine, at: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROLLOUT_ALERT_TIMEOUT", "soon")
    at(MONDAY + HOUR)

    state = ramp_tick.fn()

    assert state.is_failed()
    assert state.message is not None
    assert state.message.startswith("fib_rsi v2: hold, dwells at 5 %")
    assert "; ROLLOUT_ALERT_TIMEOUT = 'soon' is not valid" in state.message
    assert open_rollout(started).last_tick_at == MONDAY + HOUR


def test_a_plan_that_cannot_be_meant_is_refused_in_a_line_and_nothing_is_started(engine: Engine, at: Clock) -> None:
    put_version(engine, "v1", Status.ACTIVE)
    put_version(engine, "v2")
    stage = {"minimum_time": 86_400, "margins": {"pnl_r": 0.1, "win": 0.05}}
    falling: Any = {"stages": [{"percent": 50, **stage}, {"percent": 10, **stage}]}

    state = start_canary.fn("fib_rsi", "v2", owner="ana", plan=falling)

    assert state.is_failed()
    assert (state.message or "").startswith("plan is not valid: plan: ")
    assert "stages must rise from above 0 %" in (state.message or "")
    with reading(engine) as session:
        assert rollouts.open_rollout(session, "fib_rsi") is None


def test_a_plan_of_ones_own_is_frozen_with_what_is_left_out_filled_in(engine: Engine, at: Clock) -> None:
    put_version(engine, "v1", Status.ACTIVE)
    put_version(engine, "v2")
    own: Any = {"bake": 3_600}

    assert start_canary.fn("fib_rsi", "v2", owner="ana", plan=own).is_completed()

    assert open_rollout(engine).plan == Plan(bake=HOUR).model_dump(mode="json")


def test_in_a_replay_that_runs_fast_a_plan_is_given_the_time_of_its_runs(
    engine: Engine, at: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Days pass there between two runs: an owner's canary would be blind before its first evidence came."""
    put_version(engine, "v1", Status.ACTIVE)
    put_version(engine, "v2")
    monkeypatch.setenv("ROLLOUT_REPLAY_SPEED", "5760")

    assert start_canary.fn("fib_rsi", "v2", owner="ana").is_completed()

    assert open_rollout(engine).plan == Plan().at_speed(5760, HOUR).model_dump(mode="json")


def test_a_tick_notes_its_time_and_says_what_it_decided(started: Engine, at: Clock) -> None:
    at(MONDAY + HOUR)

    state = ramp_tick.fn()

    assert state.is_completed()
    assert state.message is not None
    assert state.message.startswith("fib_rsi v2: hold, dwells at 5 %")
    assert open_rollout(started).last_tick_at == MONDAY + HOUR


def test_a_tick_without_a_rollout_says_so(engine: Engine, at: Clock) -> None:
    assert ramp_tick.fn().message == "no rollout is open"


def test_a_tick_whose_feed_is_gone_is_blind_and_ends_in_a_rollback(
    started: Engine, at: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A feed that cannot be opened must not keep the blind limit from passing."""
    monkeypatch.setenv("ROLLOUT_FEED", "/nowhere/gold.csv")
    at(LATE)
    assert "hold, freshness: /nowhere/gold.csv" in (ramp_tick.fn().message or "")
    at(LATE + Plan().blind_limit)

    state = ramp_tick.fn()

    assert "roll back, freshness: /nowhere/gold.csv" in (state.message or "")
    with reading(started) as session:
        assert rollouts.get_canary(session, "fib_rsi").rollout_bp == 0


@pytest.mark.parametrize("feed", ["http://[x", "x" * 5_000 + ".csv"])
def test_a_feed_that_is_not_even_an_address_is_blindness_too(
    started: Engine, at: Clock, monkeypatch: pytest.MonkeyPatch, feed: str
) -> None:
    monkeypatch.setenv("ROLLOUT_FEED", feed)
    at(LATE)

    state = ramp_tick.fn()

    assert state.is_completed()
    assert "hold, freshness: " in (state.message or "")
    assert open_rollout(started).blind_since == LATE


def test_a_file_is_replayed_up_to_the_clock(
    started: Engine, at: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What the file holds beyond the replay's time is the future, not a fault of the file."""
    market = SyntheticSource((GOLD,), start=MONDAY, days=30)
    market.candles(GOLD, closed_by=MONDAY + 30 * DAY).to_csv(tmp_path / "GOLD.csv")
    monkeypatch.setenv("ROLLOUT_FEED", str(tmp_path / "GOLD.csv"))
    at(LATE)

    state = ramp_tick.fn()

    assert "hold, freshness: candle 2026-03-02 09:00 UTC is due, but none has been decided" in (state.message or "")


def test_a_tick_that_cannot_rule_on_one_rollout_rules_on_the_others_and_fails(started: Engine, at: Clock) -> None:
    put_version(started, "v1", Status.ACTIVE, strategy_name="broken")
    put_version(started, "v2", strategy_name="broken")
    rollout = Rollout(
        strategy_name="broken",
        version="v2",
        control_version="v1",
        state=State.RUNNING,
        plan={"stages": []},
        started_at=MONDAY,
        stage_entered_at=MONDAY,
        stage_extended_at=MONDAY,
    )
    with transaction(started) as session:
        rollouts.add_rollout(session, rollout, {})
    at(MONDAY + HOUR)

    state = ramp_tick.fn()

    assert state.is_failed()
    assert "broken v2: hold, freshness: the tick itself failed: plan is not valid" in (state.message or "")
    assert open_rollout(started).last_tick_at == MONDAY + HOUR


@pytest.mark.parametrize("percent", [150.0, -1.0, 33.333, float("nan")])
def test_a_percent_that_slips_past_the_api_fails_with_the_domains_line(
    engine: Engine, at: Clock, percent: float
) -> None:
    state = set_canary_percent.fn("fib_rsi", percent, owner="ana")

    assert state.is_failed()
    assert state.message == str(InvalidPercent(percent))


def test_a_canary_is_set_by_hand_while_its_rollout_is_paused(started: Engine) -> None:
    assert set_canary_percent.fn("fib_rsi", 7.5, owner="ana").is_failed()
    assert pause.fn("fib_rsi", owner="ana").message == "fib_rsi v2 is paused"

    state = set_canary_percent.fn("fib_rsi", 7.5, owner="ana", reason="a quiet week")

    assert state.message == "fib_rsi v2 serves 7.5 %"
    with reading(started) as session:
        assert rollouts.get_canary(session, "fib_rsi").rollout_bp == 750


def test_resuming_restores_the_stages_percent(started: Engine) -> None:
    pause.fn("fib_rsi", owner="ana")
    set_canary_percent.fn("fib_rsi", 7.5, owner="ana")

    state = resume.fn("fib_rsi", owner="ana")

    assert state.message == "fib_rsi v2 is running"
    with reading(started) as session:
        assert rollouts.get_canary(session, "fib_rsi").rollout_bp == 500


def test_a_symbol_is_excluded_by_form_if_the_platform_routes_by_symbol(
    engine: Engine, at: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version, status in (("v1", Status.ACTIVE), ("v2", Status.SHADOW)):
        put_version(engine, version, status, symbols=(GOLD, "SILVER"))
    start_canary.fn("fib_rsi", "v2", owner="ana", plan=Plan())
    assert exclude.fn("fib_rsi", "SILVER", owner="ana", reason="its feed is odd").is_failed()
    monkeypatch.setenv("ROLLOUT_ROUTES_BY_SYMBOL", "1")

    out = exclude.fn("fib_rsi", "SILVER", owner="ana", reason="its feed is odd")

    assert out.message == "fib_rsi v2 no longer serves SILVER"
    with reading(engine) as session:
        assert versions.routing(session, "fib_rsi", MONDAY).excluded == {"SILVER"}
    assert newest_event(engine).action == "exclude_symbol"


def test_an_approval_is_refused_until_it_is_asked_for(started: Engine) -> None:
    assert approve_stage.fn("fib_rsi", owner="ana").is_failed()
    put_state(started, State.AWAITING_APPROVAL)

    state = approve_stage.fn("fib_rsi", owner="ana", reason="seen the report")

    assert state.message == "fib_rsi v2 may enter stage 2"
    assert open_rollout(started).approved_stage == 1


def test_a_decision_to_extend_gives_the_stage_its_maximum_time_again(started: Engine, at: Clock) -> None:
    put_state(started, State.AWAITING_DECISION)
    at(MONDAY + DAY)

    state = decide.fn("fib_rsi", Choice.EXTEND, owner="ana", reason="a holiday")

    assert state.message == "fib_rsi v2 is running at stage 1"
    assert open_rollout(started).stage_extended_at == MONDAY + DAY
    assert newest_event(started).reason == "a holiday"


def test_a_decision_to_advance_takes_one_stage(started: Engine, at: Clock) -> None:
    put_state(started, State.AWAITING_DECISION, last_tick_at=MONDAY + timedelta(days=61))
    at(MONDAY + timedelta(days=61))

    state = decide.fn("fib_rsi", Choice.ADVANCE, owner="ana", reason="the market is quiet")

    assert state.message == "fib_rsi v2 is running at stage 2"
    with reading(started) as session:
        assert rollouts.get_canary(session, "fib_rsi").rollout_bp == 1000


def test_a_decision_to_roll_back_takes_users_off(started: Engine) -> None:
    put_state(started, State.AWAITING_DECISION)

    state = decide.fn("fib_rsi", Choice.ROLL_BACK, owner="ana", reason="odd fills")

    assert state.message == "fib_rsi v2 is rolled_back at stage 1"
    with reading(started) as session:
        assert rollouts.get_canary(session, "fib_rsi").rollout_bp == 0
    assert newest_event(started).reason == "odd fills"


def test_an_unknown_strategy_is_named_with_those_that_are_known(started: Engine) -> None:
    state = pause.fn("fib_rsy", owner="ana")

    assert state.is_failed()
    assert state.message == "no strategy 'fib_rsy'; known strategies: fib_rsi"


def test_where_four_eyes_are_demanded_a_second_owner_lets_a_rollout_go_on(
    started: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROLLOUT_FOUR_EYES", "1")
    put_state(started, State.AWAITING_APPROVAL)
    approved = approve_stage.fn("fib_rsi", owner="ana")
    put_state(started, State.AWAITING_DECISION)
    advanced = decide.fn("fib_rsi", Choice.ADVANCE, owner="ana", reason="enough")
    put_state(started, State.PAUSED)
    widened = set_canary_percent.fn("fib_rsi", 50.0, owner="ana")
    activated = activate.fn("fib_rsi", "v2", owner="ana", reason="enough")

    for state in (approved, advanced, widened, activated):
        assert state.is_failed()
        assert "'ana' started the rollout of 'fib_rsi' 'v2': another owner must do this" in (state.message or "")
    assert activate.fn("fib_rsi", "v2", owner="bob", reason="reviewed").is_completed()


def open_rollout(engine: Engine) -> Rollout:
    with reading(engine) as session:
        rollout = rollouts.open_rollout(session, "fib_rsi")
    assert rollout is not None
    return rollout


def put_state(engine: Engine, state: State, **changes: datetime) -> None:
    with transaction(engine) as session:
        session.execute(update(Rollout).values(state=state.value, **changes))


def newest_event(engine: Engine) -> AuditEvent:
    with reading(engine) as session:
        return audit.events(session, "fib_rsi")[-1]
