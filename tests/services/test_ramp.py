"""A rollout from its start to each of its ends, on evidence as it stands in the store."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine

from strategy_core.domain.errors import (
    IllegalTransition,
    Incomparable,
    InvalidCandles,
    NoActiveVersion,
    NotAwaiting,
    Quarantined,
    RolloutOpen,
    UnarmedPlan,
    UnknownRollout,
)
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan, read_plan
from strategy_core.domain.ramp import Step
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services.approve import Choice, approve, decide_rollout, pause, resume
from strategy_core.services.canary import activate_canary, update_canary_percent
from strategy_core.services.promote import activate_version
from strategy_core.services.ramp import Ticked, tick, tick_rollout
from strategy_core.services.rollback import roll_back
from strategy_core.services.start import start_rollout
from strategy_core.store import audit, rollouts, versions
from strategy_core.store.engine import reading
from strategy_core.store.rollout_tables import Rollout
from tests.builders import DAY, HOUR, MONDAY, OWNER, decision_row, put_day, put_decisions, put_version

WHO: dict[str, Any] = {"strategy_name": "fib_rsi", "actor": OWNER}
SIGNAL_HOURS = range(0, 20, 2)
SAME = {"1": 0.4, "2": 0.4}


@pytest.fixture
def ramped(engine: Engine) -> Engine:
    """Version 2 in the first stage of a rollout against version 1, since Monday."""
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2")
    start_rollout(engine, version="2", plan=Plan(), now=MONDAY, **WHO)
    return engine


def days(engine: Engine, first: datetime, count: int, worth: dict[str, float] = SAME) -> datetime:
    """Log *count* days of ten signals each and return when they are over."""
    for day in range(count):
        put_day(engine, first + day * DAY, dict.fromkeys(worth, "buy"), worth, signal_hours=SIGNAL_HOURS)
    return first + count * DAY


def newest(engine: Engine) -> Rollout:
    with reading(engine) as session:
        return rollouts.list_rollouts(session)[0]


def standing(engine: Engine) -> tuple[dict[str, str], float]:
    with reading(engine) as session:
        return (
            {version.version: version.status for version in versions.list_versions(session)},
            rollouts.get_canary(session, "fib_rsi").rollout_percent,
        )


def ruled(ticked: list[Ticked]) -> tuple[Step, str]:
    (one,) = ticked
    assert one.ruling is not None, one.error
    return one.ruling.step, one.ruling.reason


def test_the_start_is_one_change(ramped: Engine) -> None:
    assert standing(ramped) == ({"1": "active", "2": "canary"}, 5.0)
    with reading(ramped) as session:
        (event,) = audit.events(session)
        (alert,) = audit.alerts(session)
    assert (event.action, event.before["canary"], event.after["canary"]) == ("start_rollout", None, "2")
    assert alert.text == "fib_rsi 2 started at 5 % against 1"
    assert read_plan(newest(ramped).plan) == Plan()


def test_it_advances_stage_by_stage_waits_for_the_owner_is_promoted_and_bakes(
    ramped: Engine, market: SyntheticSource
) -> None:
    now = days(ramped, MONDAY, 4)
    percents = []
    for _ in range(3):
        assert ruled(tick(ramped, market, now=now))[0] is Step.ADVANCE
        percents.append(standing(ramped)[1])
        now = days(ramped, now, 1)
    waits = ruled(tick(ramped, market, now=now))
    again = ruled(tick(ramped, market, now=now))
    approve(ramped, now=now, reason="reviewed", **WHO)
    assert ruled(tick(ramped, market, now=now))[0] is Step.ADVANCE
    percents.append(standing(ramped)[1])
    now = days(ramped, now, 1)
    promoted = ruled(tick(ramped, market, now=now))

    assert percents == [10.0, 25.0, 50.0, 100.0]
    assert waits[0] is again[0] is Step.AWAIT_APPROVAL
    assert promoted[0] is Step.PROMOTE
    assert standing(ramped) == ({"1": "shadow", "2": "active"}, 0.0)

    now = days(ramped, now, 7)
    assert ruled(tick(ramped, market, now=now)) == (Step.COMPLETE, "baked 7.0 d without harm")
    assert standing(ramped)[0] == {"1": "retired", "2": "active"}
    with reading(ramped) as session:
        actions = [event.action for event in audit.events(session)]
    assert actions == [
        "start_rollout",
        "advance",
        "advance",
        "advance",
        "await_approval",
        "approve",
        "advance",
        "promote",
        "complete",
    ]


def test_a_doubled_tick_takes_one_step(ramped: Engine, market: SyntheticSource) -> None:
    now = days(ramped, MONDAY, 4)
    for _ in range(3):
        tick(ramped, market, now=now)

    assert newest(ramped).stage_index == 1
    with reading(ramped) as session:
        assert [event.action for event in audit.events(session)] == ["start_rollout", "advance"]


def test_a_late_tick_does_not_turn_time_back(ramped: Engine, market: SyntheticSource) -> None:
    now = days(ramped, MONDAY, 4)
    tick(ramped, market, now=now)
    tick(ramped, market, now=MONDAY + HOUR)

    assert newest(ramped).last_tick_at == now
    assert newest(ramped).stage_index == 1


def test_a_dry_run_changes_nothing(ramped: Engine, market: SyntheticSource) -> None:
    now = days(ramped, MONDAY, 4)
    said = tick_rollout(ramped, market, newest(ramped).id, now=now, apply=False)

    assert said is not None
    assert said[0].step is Step.ADVANCE
    assert newest(ramped).stage_index == 0
    assert newest(ramped).last_tick_at is None


def test_proven_harm_rolls_back_quarantines_and_tells(ramped: Engine, market: SyntheticSource) -> None:
    now = days(ramped, MONDAY, 4, {"1": 0.4, "2": -1.0})
    step, reason = ruled(tick(ramped, market, now=now))

    assert step is Step.ROLL_BACK
    assert reason.startswith("losing_streak: 40 slots in a row")
    assert standing(ramped) == ({"1": "active", "2": "shadow"}, 0.0)
    assert newest(ramped).state == "rolled_back"
    with reading(ramped) as session:
        assert versions.get_version(session, "fib_rsi", "2").quarantined_at == now
        alert = audit.alerts(session)[-1]
    assert (alert.kind, alert.severity) == ("rollout.rolled_back", "critical")
    assert (alert.facts["value"], alert.facts["limit"], alert.facts["gate"]) == (40.0, 12.0, "losing_streak")
    assert tick(ramped, market, now=now) == []


def test_a_quarantined_version_is_ramped_again_only_with_a_reason(ramped: Engine) -> None:
    roll_back(ramped, now=MONDAY, reason="odd fills", **WHO)

    with pytest.raises(Quarantined):
        start_rollout(ramped, version="2", plan=Plan(), now=MONDAY + DAY, **WHO)
    start_rollout(ramped, version="2", plan=Plan(), now=MONDAY + DAY, override_reason="the broker's fault", **WHO)

    assert standing(ramped) == ({"1": "active", "2": "canary"}, 5.0)


@pytest.mark.parametrize(
    ("kind", "gate"),
    [("raised", "errors"), ("deadline", "errors"), ("invalid", "invalid_decisions"), ("breach", "invalid_decisions")],
)
def test_a_version_that_fails_is_rolled_back_though_it_dwells(
    ramped: Engine, market: SyntheticSource, kind: str, gate: str
) -> None:
    errors = 3 if gate == "errors" else 1
    put_decisions(ramped, *(decision_row("1", MONDAY + hour * HOUR) for hour in range(3)))
    put_decisions(ramped, *(decision_row("2", MONDAY + hour * HOUR) for hour in range(3 - errors)))
    put_decisions(
        ramped, *(decision_row("2", MONDAY + (2 - i) * HOUR, "error", error_kind=kind) for i in range(errors))
    )

    step, reason = ruled(tick(ramped, market, now=MONDAY + 3 * HOUR))

    assert step is Step.ROLL_BACK
    assert reason.startswith(gate)


def test_silence_is_rolled_back(ramped: Engine, market: SyntheticSource) -> None:
    put_decisions(ramped, decision_row("2", MONDAY), *(decision_row("1", MONDAY + hour * HOUR) for hour in range(5)))

    assert ruled(tick(ramped, market, now=MONDAY + 5 * HOUR))[0] is Step.ROLL_BACK


def test_a_drawdown_of_the_canary_alone_is_rolled_back_while_paused(ramped: Engine, market: SyntheticSource) -> None:
    """An owner's pause holds the ramp, never the protection."""
    pause(ramped, now=MONDAY, **WHO)
    now = days(ramped, MONDAY, 3, {"1": -0.01, "2": -1.0})

    step, reason = ruled(tick(ramped, market, now=now))

    assert step is Step.ROLL_BACK
    assert reason.startswith("excess_drawdown: drawdown 30.00%")


def test_after_the_promotion_a_failure_reinstates_the_predecessor(ramped: Engine, market: SyntheticSource) -> None:
    now = _promoted(ramped, market)
    now = days(ramped, now, 2, {"1": 0.4, "2": -3.0})

    assert ruled(tick(ramped, market, now=now))[0] is Step.ROLL_BACK
    assert standing(ramped) == ({"1": "active", "2": "shadow"}, 0.0)
    assert newest(ramped).state == "rolled_back"


def test_an_owner_undoes_a_promotion_by_one_call(ramped: Engine, market: SyntheticSource) -> None:
    now = _promoted(ramped, market)

    assert roll_back(ramped, now=now, reason="users complain", **WHO) == "2"
    assert standing(ramped)[0] == {"1": "active", "2": "shadow"}


def test_activating_the_predecessor_while_it_bakes_undoes_the_promotion(
    ramped: Engine, market: SyntheticSource
) -> None:
    now = _promoted(ramped, market)

    activate_version(ramped, version="1", now=now, **WHO)

    assert standing(ramped)[0] == {"1": "active", "2": "shadow"}
    assert newest(ramped).state == "rolled_back"


def test_another_version_activated_while_one_bakes_aborts_it(ramped: Engine, market: SyntheticSource) -> None:
    now = _promoted(ramped, market)
    put_version(ramped, "3")

    activate_version(ramped, version="3", now=now, **WHO)

    assert standing(ramped)[0] == {"1": "shadow", "2": "retired", "3": "active"}
    assert newest(ramped).state == "aborted"


def _promoted(engine: Engine, market: SyntheticSource) -> datetime:
    now = days(engine, MONDAY, 4)
    for _ in range(5):
        if ruled(tick(engine, market, now=now))[0] is Step.AWAIT_APPROVAL:
            approve(engine, now=now, **WHO)
            tick(engine, market, now=now)
        now = days(engine, now, 1)
    assert newest(engine).promoted_at is not None
    return now


def test_missing_candles_hold_then_roll_back(ramped: Engine, market: SyntheticSource) -> None:
    now = days(ramped, MONDAY, 1)
    blind = ruled(tick(ramped, market, now=now + 6 * HOUR))
    later = ruled(tick(ramped, market, now=now + 29 * HOUR))
    at_last = ruled(tick(ramped, market, now=now + 30 * HOUR))

    assert (blind[0], later[0], at_last[0]) == (Step.HOLD, Step.HOLD, Step.ROLL_BACK)
    assert blind[1].startswith("freshness: candle 2026-03-03 03:00 UTC is due")
    with reading(ramped) as session:
        kinds = [alert.kind for alert in audit.alerts(session)]
    assert kinds == ["rollout.started", "rollout.blind", "rollout.rolled_back"]


def test_a_closed_market_is_not_blind(ramped: Engine, market: SyntheticSource) -> None:
    """Friday's last candle is the newest that is due until Sunday evening in New York."""
    days(ramped, MONDAY, 5)

    assert not _blind(tick(ramped, market, now=MONDAY + 6 * DAY))


def _blind(ticked: list[Ticked]) -> bool:
    return any(one.ruling is not None and one.ruling.blind for one in ticked)


def test_a_feed_that_fails_is_blind_and_recovers(ramped: Engine, market: SyntheticSource) -> None:
    class Unplugged(SyntheticSource):
        def expected_at(self, symbol: str, now: datetime) -> datetime | None:
            raise InvalidCandles("feed", "connection refused")

    now = days(ramped, MONDAY, 1)
    assert _blind(tick(ramped, Unplugged(("GOLD",)), now=now))
    assert newest(ramped).blind_since == now
    assert not _blind(tick(ramped, market, now=now))
    assert newest(ramped).blind_since is None


def test_no_answer_within_the_maximum_asks_the_owner(ramped: Engine, market: SyntheticSource) -> None:
    put_day(ramped, MONDAY + 63 * DAY, {"1": "buy", "2": "hold"}, {"1": 1.0, "2": 0.0}, signal_hours=[3])
    now = MONDAY + 64 * DAY

    assert ruled(tick(ramped, market, now=now))[0] is Step.AWAIT_DECISION
    assert newest(ramped).state == "awaiting_decision"
    decide_rollout(ramped, choice=Choice.EXTEND, reason="more data", now=now, **WHO)
    assert ruled(tick(ramped, market, now=now))[0] is Step.HOLD
    assert newest(ramped).stage_index == 0


def test_an_owner_may_advance_without_an_answer_and_answers_for_it(ramped: Engine, market: SyntheticSource) -> None:
    put_day(ramped, MONDAY + 63 * DAY, {"1": "buy", "2": "hold"}, {"1": 1.0, "2": 0.0}, signal_hours=[3])
    now = MONDAY + 64 * DAY
    tick(ramped, market, now=now)

    decide_rollout(ramped, choice=Choice.ADVANCE, reason="few signals by design", now=now, **WHO)

    assert standing(ramped)[1] == 10.0
    with reading(ramped) as session:
        event = audit.events(session)[-1]
    assert (event.actor, event.action, event.reason) == ("ana", "advance", "by ana: few signals by design")


def test_nobody_advances_in_the_dark(ramped: Engine, market: SyntheticSource) -> None:
    put_day(ramped, MONDAY + 63 * DAY, {"1": "buy", "2": "hold"}, {"1": 1.0, "2": 0.0}, signal_hours=[3])
    tick(ramped, market, now=MONDAY + 64 * DAY)
    tick(ramped, market, now=MONDAY + 64 * DAY + 8 * HOUR)

    with pytest.raises(NotAwaiting, match="without sight since"):
        decide_rollout(ramped, choice=Choice.ADVANCE, reason="hurry", now=MONDAY + 65 * DAY, **WHO)


def test_an_approval_counts_only_when_it_is_asked_for(ramped: Engine) -> None:
    with pytest.raises(NotAwaiting, match="cannot approve: the rollout is running; allowed when awaiting_approval"):
        approve(ramped, now=MONDAY, **WHO)


def test_without_an_open_rollout_there_is_nothing_to_say(engine: Engine) -> None:
    put_version(engine, "1", Status.ACTIVE)

    with pytest.raises(UnknownRollout, match="of 'fib_rsi' is open"):
        approve(engine, now=MONDAY, **WHO)


def test_one_rollout_at_a_time(ramped: Engine) -> None:
    put_version(ramped, "3")

    with pytest.raises(RolloutOpen, match="'fib_rsi' '2' is running"):
        start_rollout(ramped, version="3", plan=Plan(), now=MONDAY, **WHO)


def test_a_rollout_starts_from_shadow_beside_an_active_version(engine: Engine) -> None:
    put_version(engine, "2")
    with pytest.raises(NoActiveVersion):
        start_rollout(engine, version="2", plan=Plan(), now=MONDAY, **WHO)
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "0", Status.RETIRED)
    with pytest.raises(IllegalTransition, match="cannot move retired -> canary"):
        start_rollout(engine, version="0", plan=Plan(), now=MONDAY, **WHO)


@pytest.mark.parametrize(
    ("columns", "difference"),
    [({"timeframe": "4h"}, "timeframe 4h against 1h"), ({"symbols": ["SILVER"]}, "symbols SILVER against GOLD")],
)
def test_what_shares_no_candle_cannot_be_measured(engine: Engine, columns: dict[str, Any], difference: str) -> None:
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2", **columns)

    with pytest.raises(Incomparable, match=difference):
        start_rollout(engine, version="2", plan=Plan(), now=MONDAY, **WHO)


def test_an_unarmed_plan_never_starts(engine: Engine) -> None:
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2")

    with pytest.raises(UnarmedPlan):
        start_rollout(engine, version="2", plan=read_plan({"gates": []}), now=MONDAY, **WHO)
    with reading(engine) as session:
        assert versions.get_version(session, "fib_rsi", "2").status == "shadow"


def test_verdicts_are_written_when_they_say_something_new(ramped: Engine, market: SyntheticSource) -> None:
    now = days(ramped, MONDAY, 1)
    for minute in range(5):
        tick(ramped, market, now=now + timedelta(minutes=minute))

    with reading(ramped) as session:
        history = rollouts.verdict_history(session, newest(ramped).id)
        last = rollouts.last_verdicts(session, newest(ramped).id)
    assert len(history) == len(last) == 1 + len(Plan().gates)
    assert last["not_worse"].verdict == "insufficient"
    assert last["not_worse"].reason == "10 of 30 slots on 1 of 3 days"


def test_what_keeps_one_rollout_from_a_ruling_keeps_no_other(ramped: Engine, market: SyntheticSource) -> None:
    put_version(ramped, "1", Status.ACTIVE, strategy_name="broken", timeframe="weekly")
    put_version(ramped, "2", strategy_name="broken", timeframe="weekly")
    start_rollout(ramped, version="2", plan=Plan(), now=MONDAY, **WHO | {"strategy_name": "broken"})

    broken, sound = tick(ramped, market, now=MONDAY + HOUR)

    assert broken.ruling is not None
    assert broken.ruling.blind
    assert "'weekly' is not a timeframe" in broken.error
    assert (sound.ruling is not None, sound.error) == (True, "")


def test_a_rollout_whose_ticks_fail_is_blind_and_falls_at_the_limit(ramped: Engine, market: SyntheticSource) -> None:
    """Whatever keeps a tick from its evidence, users must not stay on a canary that nobody can judge."""
    put_version(ramped, "1", Status.ACTIVE, strategy_name="broken", timeframe="weekly")
    put_version(ramped, "2", strategy_name="broken", timeframe="weekly")
    start_rollout(ramped, version="2", plan=Plan(), now=MONDAY, **WHO | {"strategy_name": "broken"})
    ticks = [tick(ramped, market, now=MONDAY + hour * HOUR)[0] for hour in (1, 2, 24, 25)]

    with reading(ramped) as session:
        kinds = [alert.kind for alert in audit.alerts(session, "broken")]
        percent = rollouts.get_canary(session, "broken").rollout_percent
    assert [each.ruling and each.ruling.step for each in ticks] == [Step.HOLD, Step.HOLD, Step.HOLD, Step.ROLL_BACK]
    assert (kinds, percent) == (["rollout.started", "rollout.blind", "rollout.rolled_back"], 0.0)


def test_without_new_outcomes_it_is_blind_however_good_the_old_ones_were(
    ramped: Engine, market: SyntheticSource
) -> None:
    """Decisions go on, scoring has stopped: what was booked before says nothing of now."""
    now = days(ramped, MONDAY, 4)
    assert ruled(tick(ramped, market, now=now))[0] is Step.ADVANCE
    for day in range(4, 8):
        at = MONDAY + day * DAY
        for version in ("1", "2"):
            rows = (decision_row(version, at + hour * HOUR, "buy" if hour % 6 == 0 else "hold") for hour in range(24))
            put_decisions(ramped, *rows)

    step, reason = ruled(tick(ramped, market, now=MONDAY + 8 * DAY))

    assert step is Step.HOLD
    assert "no outcome of 2 on GOLD 2026-03-06 00:00 UTC yet" in reason
    assert newest(ramped).stage_index == 1


def test_a_weekend_advances_nothing(ramped: Engine, market: SyntheticSource) -> None:
    """Friday's evidence has moved the ramp on Friday; on Saturday nothing has been decided at the new stage."""
    now = days(ramped, MONDAY, 5)
    assert ruled(tick(ramped, market, now=now))[0] is Step.ADVANCE

    step, reason = ruled(tick(ramped, market, now=now + DAY))

    assert step is Step.HOLD
    assert "no candle has been decided at this stage yet" in reason


@pytest.mark.parametrize("how", ["insufficient_history", "errors"])
def test_a_canary_that_answers_without_deciding_is_silent(ramped: Engine, market: SyntheticSource, how: str) -> None:
    now = days(ramped, MONDAY, 4)
    hours = [now + hour * HOUR for hour in range(4)]
    put_decisions(ramped, *(decision_row("1", at) for at in hours))
    if how == "errors":
        put_decisions(ramped, *(decision_row("2", at, "error", error_kind="raised") for at in hours))
    else:
        put_decisions(ramped, *(decision_row("2", at, reason=how) for at in hours))

    assert ruled(tick(ramped, market, now=now + 4 * HOUR))[0] is Step.ROLL_BACK


def test_a_fault_of_one_rollout_or_of_the_feed_keeps_no_breach_from_being_rolled_back(
    ramped: Engine, market: SyntheticSource
) -> None:
    class Broken(SyntheticSource):
        def expected_at(self, symbol: str, now: datetime) -> datetime | None:
            raise OSError("disk failure")

    put_decisions(ramped, *(decision_row("1", MONDAY + hour * HOUR) for hour in range(5)))

    assert ruled(tick(ramped, Broken(("GOLD",)), now=MONDAY + 5 * HOUR))[0] is Step.ROLL_BACK


def test_nobody_advances_into_harm(ramped: Engine, market: SyntheticSource) -> None:
    put_day(ramped, MONDAY + 63 * DAY, {"1": "buy", "2": "hold"}, {"1": 1.0, "2": 0.0}, signal_hours=[3])
    now = MONDAY + 64 * DAY
    tick(ramped, market, now=now)
    put_decisions(ramped, decision_row("2", now, "error", error_kind="breach"), decision_row("1", now))

    with pytest.raises(NotAwaiting, match="in breach: invalid_decisions"):
        decide_rollout(ramped, choice=Choice.ADVANCE, reason="hurry", now=now + HOUR, **WHO)
    with pytest.raises(NotAwaiting, match="without sight since"):
        decide_rollout(ramped, choice=Choice.ADVANCE, reason="hurry", now=now + 3 * DAY, **WHO)


def test_an_approval_is_not_taken_for_gates_that_pass_no_more(ramped: Engine, market: SyntheticSource) -> None:
    now = days(ramped, MONDAY, 4)
    for _ in range(4):
        step, _ = ruled(tick(ramped, market, now=now))
        now = days(ramped, now, 1)
    assert step is Step.AWAIT_APPROVAL
    tick(ramped, market, now=now + 8 * HOUR)

    with pytest.raises(NotAwaiting, match="freshness is blind"):
        approve(ramped, now=now + 8 * HOUR, **WHO)


def test_a_pause_is_no_dwell(ramped: Engine, market: SyntheticSource) -> None:
    """Nobody was served at the stage while its percent was 0: its minimum time begins with the resumption."""
    pause(ramped, now=MONDAY, **WHO)
    now = days(ramped, MONDAY, 4)
    resume(ramped, now=now, **WHO)
    days(ramped, now, 1)

    assert ruled(tick(ramped, market, now=now + HOUR))[1].startswith("dwells at 5 %: 1.0 h")


def test_a_resumption_in_the_dark_adds_no_users(ramped: Engine, market: SyntheticSource) -> None:
    days(ramped, MONDAY, 1)
    pause(ramped, now=MONDAY + DAY, **WHO)
    update_canary_percent(ramped, percent=1, now=MONDAY + DAY, **WHO)
    tick(ramped, market, now=MONDAY + DAY + 8 * HOUR)
    resume(ramped, now=MONDAY + DAY + 9 * HOUR, **WHO)

    assert newest(ramped).blind_since is not None
    assert standing(ramped)[1] == 1.0


def test_a_canary_moved_by_hand_can_be_put_under_a_plan(engine: Engine) -> None:
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2")
    activate_canary(engine, version="2", rollout_percent=20, now=MONDAY, **WHO)

    start_rollout(engine, version="2", plan=Plan(), now=MONDAY + DAY, **WHO)

    assert standing(engine) == ({"1": "active", "2": "canary"}, 5.0)


def test_symbols_of_one_version_alone_are_neither_due_nor_silent(engine: Engine, market: SyntheticSource) -> None:
    put_version(engine, "1", Status.ACTIVE, symbols=("GOLD", "SILVER"))
    put_version(engine, "2", symbols=("GOLD",))
    start_rollout(engine, version="2", plan=Plan(), now=MONDAY, **WHO)
    for hour in range(6):
        at = MONDAY + hour * HOUR
        put_decisions(engine, decision_row("1", at), decision_row("2", at), decision_row("1", at, symbol="SILVER"))

    step, reason = ruled(tick(engine, market, now=MONDAY + 6 * HOUR))

    assert step is Step.HOLD
    assert reason.startswith("dwells")
