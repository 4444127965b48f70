"""Freezes, release windows and scheduled starts: what they hold in the database, and what goes on."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlmodel import col, select

from strategy_core.domain.audit import Actor, Command
from strategy_core.domain.errors import (
    AlreadyRolledBack,
    InvalidFreeze,
    InvalidStartTime,
    ReleaseClosed,
    RolloutOpen,
    StartScheduled,
    UnknownFreeze,
    UnknownStart,
    UnknownStrategy,
)
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan, read_plan
from strategy_core.domain.ramp import State, Step
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services.audit import verify_trail
from strategy_core.services.canary import set_share, update_canary_percent
from strategy_core.services.release_times import lift_freeze, list_freezes, set_freeze
from strategy_core.services.rollback import roll_back
from strategy_core.services.rollouts import Choice, decide_rollout, pause, preview_plan, resume, start_rollout
from strategy_core.services.scheduled_starts import cancel_start, list_starts, schedule_start, start_due
from strategy_core.services.status import read_status
from strategy_core.services.tick import tick
from strategy_core.services.versions import activate_version
from strategy_core.store import rollouts, versions
from strategy_core.store.engine import reading, transaction
from strategy_core.store.tables import AlertOutbox, AuditEvent
from tests.builders import DAY, HOUR, MONDAY, OWNER, decision_row, put_decisions, put_version
from tests.services.ramping import newest, ruled, standing

TUESDAY = MONDAY + DAY
STAGE = {"percent": 5, "minimum_time": 3_600, "margins": {"pnl_r": 0.1, "win": 0.05}}
PLAN = read_plan({"stages": [STAGE, {**STAGE, "percent": 100}], "gates": [{"kind": "errors"}], "approve_before": []})
WEDNESDAYS = PLAN.model_copy(
    update={"advance_windows": read_plan({"advance_windows": [{"days": ["wed"]}]}).advance_windows}
)
ADMIN = Actor("root", role="admin", source="api")
BY_API = Actor("ana", source="api")
MARKET = SyntheticSource(["GOLD"], seed=7)


@pytest.fixture
def pair(engine: Engine) -> Engine:
    put_version(engine, "1", Status.ACTIVE, recorded=True)
    put_version(engine, "2", recorded=True)
    return engine


@pytest.fixture
def ramped(pair: Engine) -> Engine:
    """Version 2 serves 5 % since Monday, and two hours of decisions are logged."""
    start(pair)
    put_decisions(pair, *(decision_row(v, MONDAY + h * HOUR) for v in ("1", "2") for h in range(3)))
    return pair


def start(engine: Engine, plan: Plan = PLAN, **command: Any) -> None:
    given: Any = {"actor": OWNER, "now": MONDAY, **command}
    start_rollout(engine, Command(**given), strategy_name="fib_rsi", version="2", plan=plan)


def freeze(engine: Engine, name: str = "fib_rsi", *, days: int = 2, now: Any = MONDAY) -> int:
    command = Command(Actor("anna"), now, "earnings")
    found = set_freeze(engine, command, strategy_name=name, ends_at=now + days * DAY)
    assert found.id is not None
    return found.id


def command(hours: int = 3, **given: Any) -> Command:
    facts: Any = {"actor": OWNER, "now": MONDAY + hours * HOUR, "reason": "because"} | given
    return Command(**facts)


def actions(engine: Engine, name: str = "fib_rsi") -> list[str]:
    with reading(engine) as session:
        query = select(AuditEvent.action).where(AuditEvent.strategy_name == name).order_by(col(AuditEvent.id))
        return [action for action in session.exec(query).all() if action != "register_version"]


def test_a_freeze_holds_an_advance_until_it_is_lifted(ramped: Engine) -> None:
    number = freeze(ramped)
    held = ruled(tick(ramped, MARKET, now=MONDAY + 3 * HOUR))

    lift_freeze(ramped, command(), number)

    assert held[0] is Step.HOLD
    assert held[1].startswith("frozen until 2026-03-04 00:00 UTC by anna: earnings; every gate passed at 5 %")
    assert ruled(tick(ramped, MARKET, now=MONDAY + 3 * HOUR))[0] is Step.ADVANCE
    assert actions(ramped)[-3:] == ["freeze", "unfreeze", "advance"]
    assert verify_trail(ramped).holds


def test_a_freeze_holds_a_tick_whose_clock_is_behind(ramped: Engine) -> None:
    freeze(ramped, now=MONDAY + 4 * HOUR)

    held = ruled(tick(ramped, MARKET, now=MONDAY + 3 * HOUR))

    assert held[0] is Step.HOLD
    assert held[1].startswith("frozen until 2026-03-04 04:00 UTC by anna: earnings")


def test_status_names_the_freeze_and_what_it_holds(ramped: Engine) -> None:
    freeze(ramped)
    tick(ramped, MARKET, now=MONDAY + 3 * HOUR)

    (found,) = read_status(ramped, "fib_rsi", now=MONDAY + 3 * HOUR)

    assert found.frozen == "frozen until 2026-03-04 00:00 UTC by anna: earnings"
    assert found.rollout is not None
    assert found.rollout.outlook.needs == (found.frozen,)


def test_a_closed_window_holds_an_advance(pair: Engine) -> None:
    start(pair, WEDNESDAYS, override_reason="hotfix")
    put_decisions(pair, *(decision_row(v, MONDAY + h * HOUR) for v in ("1", "2") for h in range(3)))

    step, reason = ruled(tick(pair, MARKET, now=MONDAY + 3 * HOUR))

    assert step is Step.HOLD
    assert reason.startswith("outside the release window; opens Wed 2026-03-04 09:00 UTC; every gate passed")


def _roll_back(engine: Engine) -> None:
    roll_back(engine, command(), strategy_name="fib_rsi")


def _pause(engine: Engine) -> None:
    pause(engine, command(), strategy_name="fib_rsi")


@pytest.mark.parametrize(
    ("change", "state"), [(_roll_back, State.ROLLED_BACK), (_pause, State.PAUSED)], ids=["rollback", "pause"]
)
def test_what_protects_users_goes_on_in_a_freeze(
    ramped: Engine, change: Callable[[Engine], None], state: State
) -> None:
    freeze(ramped, "*")

    change(ramped)

    assert newest(ramped).state == state


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "not frozen"])
def test_a_gate_rolls_back_at_the_same_tick_in_a_freeze(ramped: Engine, frozen: bool) -> None:
    if frozen:
        freeze(ramped)
    rows = [decision_row("2", MONDAY + h * HOUR, "error", error_kind="raised") for h in range(3, 10)]
    put_decisions(ramped, *rows, *(decision_row("1", MONDAY + h * HOUR) for h in range(3, 10)))

    assert ruled(tick(ramped, MARKET, now=MONDAY + 10 * HOUR))[0] is Step.ROLL_BACK


def test_a_start_is_refused_in_a_freeze_and_an_override_is_kept_in_the_trail(pair: Engine) -> None:
    freeze(pair, "*")

    with pytest.raises(ReleaseClosed, match="cannot start a rollout of 'fib_rsi': frozen until 2026-03-04"):
        start(pair)
    start(pair, override_reason="hotfix 12")

    assert newest(pair).state == State.RUNNING
    with reading(pair) as session:
        event = session.exec(select(AuditEvent).where(AuditEvent.action == "start_rollout")).one()
    assert event.reason == "hotfix 12"


def test_by_the_api_only_an_admin_overrides_a_freeze(pair: Engine) -> None:
    freeze(pair)

    with pytest.raises(ReleaseClosed, match="have an admin give an override reason"):
        start(pair, actor=BY_API, override_reason="hotfix")
    start(pair, actor=ADMIN, override_reason="hotfix")

    assert newest(pair).state == State.RUNNING


def test_a_version_is_not_activated_in_a_freeze(pair: Engine) -> None:
    freeze(pair)

    with pytest.raises(ReleaseClosed, match="cannot activate 2 of 'fib_rsi'"):
        activate_version(pair, command(), strategy_name="fib_rsi", version="2")

    assert activate_version(pair, command(override_reason="hotfix"), strategy_name="fib_rsi", version="2").status == (
        Status.ACTIVE
    )


def test_the_predecessor_of_a_version_that_bakes_is_activated_in_a_freeze(ramped: Engine) -> None:
    with transaction(ramped) as session:
        rollout = rollouts.open_rollout(session, "fib_rsi")
        assert rollout is not None
        rollouts.change_rollout(session, rollout, promoted_at=MONDAY)
        for version, status in (("1", Status.SHADOW), ("2", Status.ACTIVE)):
            versions.move(session, versions.get_version(session, "fib_rsi", version), status, MONDAY)
    freeze(ramped)

    activate_version(ramped, command(), strategy_name="fib_rsi", version="1")

    assert newest(ramped).state == State.ROLLED_BACK


def test_an_undecided_rollout_is_not_advanced_in_a_freeze_by_hand(ramped: Engine) -> None:
    with transaction(ramped) as session:
        rollout = rollouts.open_rollout(session, "fib_rsi")
        assert rollout is not None
        rollouts.change_rollout(session, rollout, state=State.AWAITING_DECISION.value)
    freeze(ramped)

    with pytest.raises(ReleaseClosed, match="cannot advance the rollout of 'fib_rsi'"):
        decide_rollout(ramped, command(), strategy_name="fib_rsi", choice=Choice.ADVANCE)

    assert decide_rollout(ramped, command(), strategy_name="fib_rsi", choice=Choice.EXTEND).state == State.RUNNING


def test_a_canary_set_by_hand_gets_fewer_users_in_a_freeze_and_no_more(pair: Engine) -> None:
    share: dict[str, Any] = {"strategy_name": "fib_rsi"}
    set_share(pair, command(), **share, version="2", percent=10)
    freeze(pair)

    with pytest.raises(ReleaseClosed):
        update_canary_percent(pair, command(), **share, percent=11)

    assert update_canary_percent(pair, command(), **share, percent=5).rollout_percent == 5
    roll_back(pair, command(4), strategy_name="fib_rsi")
    with pytest.raises(ReleaseClosed):
        set_share(pair, command(5), **share, version="2", percent=5)


def test_a_resume_in_a_freeze_adds_no_users(ramped: Engine) -> None:
    _pause(ramped)
    update_canary_percent(ramped, command(), strategy_name="fib_rsi", percent=1)
    freeze(ramped)

    resume(ramped, command(), strategy_name="fib_rsi")

    assert standing(ramped)[1] == 1
    assert verify_trail(ramped).holds


def test_a_freeze_of_all_strategies_is_in_the_trail_of_each_and_counts_for_later_ones(pair: Engine) -> None:
    put_version(pair, "1", Status.ACTIVE, strategy_name="ppo_gold")
    number = freeze(pair, "*")
    put_version(pair, "1", Status.ACTIVE, strategy_name="newcomer")

    lifted = lift_freeze(pair, command(actor=Actor("ana", idempotency_key="k")), number)
    again = lift_freeze(pair, command(9), number)

    assert (lifted.lifted_at, again.lifted_at) == (MONDAY + 3 * HOUR, MONDAY + 3 * HOUR)
    assert [actions(pair, name) for name in ("fib_rsi", "ppo_gold", "newcomer")] == [
        ["freeze", "unfreeze"],
        ["freeze", "unfreeze"],
        ["unfreeze"],
    ]
    assert [each.id for each in list_freezes(pair, strategies=["newcomer"])] == [number]
    assert list_freezes(pair, since=MONDAY + 4 * HOUR) == []


@pytest.mark.parametrize(
    ("starts", "ends", "problem"),
    [
        (timedelta(0), -HOUR, "must end after it starts"),
        (2 * DAY, DAY, "must end after it starts"),
        (timedelta(0), 367 * DAY, "at most 366 days"),
        (367 * DAY, 368 * DAY, "at most 366 days from now"),
    ],
    ids=["in the past", "backwards", "too long", "too far"],
)
def test_a_freeze_that_cannot_be_is_refused(pair: Engine, starts: timedelta, ends: timedelta, problem: str) -> None:
    with pytest.raises(InvalidFreeze, match=problem):
        set_freeze(
            pair, Command(OWNER, MONDAY, "x"), strategy_name="fib_rsi", starts_at=MONDAY + starts, ends_at=MONDAY + ends
        )


def test_an_unknown_freeze_is_named(engine: Engine) -> None:
    with pytest.raises(UnknownFreeze, match="no freeze 7"):
        lift_freeze(engine, command(), 7)


def schedule(engine: Engine, at: Any = TUESDAY, plan: Plan = PLAN, **given: Any) -> None:
    schedule_start(engine, command(0, **given), strategy_name="fib_rsi", version="2", plan=plan, start_at=at)


def test_a_scheduled_start_waits_for_its_time(pair: Engine) -> None:
    schedule(pair)

    early = start_due(pair, now=TUESDAY - HOUR)
    before = standing_status(pair)
    (done,) = start_due(pair, now=TUESDAY)

    assert early == []
    assert before == {"1": "active", "2": "shadow"}
    assert (done.outcome, newest(pair).started_at) == ("started", TUESDAY)
    assert not start_due(pair, now=TUESDAY)
    assert not list_starts(pair)
    with reading(pair) as session:
        started = session.exec(select(AuditEvent).where(AuditEvent.action == "start_rollout")).one()
    assert (started.actor, started.reason) == ("ana", "because")
    assert verify_trail(pair).holds


def test_a_scheduled_start_waits_for_the_end_of_a_freeze_and_for_the_window(pair: Engine) -> None:
    schedule(pair, plan=WEDNESDAYS, override_reason="proven elsewhere")
    freeze(pair, now=MONDAY + HOUR, days=1)

    (frozen,) = start_due(pair, now=TUESDAY)
    (closed,) = start_due(pair, now=TUESDAY + 2 * HOUR)
    (done,) = start_due(pair, now=TUESDAY + 33 * HOUR)

    assert (frozen.outcome, frozen.reason) == ("waits", "frozen until 2026-03-03 01:00 UTC by anna: earnings")
    assert (closed.outcome, closed.reason) == ("waits", "outside the release window; opens Wed 2026-03-04 09:00 UTC")
    assert done.outcome == "started"


def test_a_start_that_may_no_longer_be_is_refused_with_an_alert(pair: Engine) -> None:
    schedule(pair)
    activate_version(pair, command(5), strategy_name="fib_rsi", version="2")

    (refused,) = start_due(pair, now=TUESDAY)

    assert refused.outcome == "refused"
    with reading(pair) as session:
        alert = session.exec(select(AlertOutbox).where(AlertOutbox.kind == "rollout.start_refused")).one()
    assert alert.text.startswith("the scheduled start of fib_rsi 2 was refused: ")
    assert actions(pair)[-1] == "refuse_start"
    assert list_starts(pair) == []


def test_an_override_reason_does_not_count_for_a_later_rollback(pair: Engine) -> None:
    set_share(pair, command(0), strategy_name="fib_rsi", version="2", percent=5)
    schedule(pair, override_reason="proven elsewhere")
    roll_back(pair, command(5), strategy_name="fib_rsi")

    (refused,) = start_due(pair, now=TUESDAY)

    assert refused.outcome == "refused"
    assert "quarantined" in refused.reason


def test_an_owner_cancels_a_scheduled_start(pair: Engine) -> None:
    schedule(pair)

    cancelled = cancel_start(pair, command(), strategy_name="fib_rsi")

    assert (cancelled.outcome, list_starts(pair), start_due(pair, now=TUESDAY)) == ("cancelled", [], [])
    with pytest.raises(UnknownStart, match="no scheduled start of 'fib_rsi' is pending"):
        cancel_start(pair, command(), strategy_name="fib_rsi")


def test_a_rollback_cancels_a_scheduled_start(pair: Engine) -> None:
    schedule(pair)

    taken_off = roll_back(pair, command(), strategy_name="fib_rsi")

    assert (taken_off, list_starts(pair)) == ("2", [])
    assert verify_trail(pair).holds


def test_a_repeated_rollback_leaves_the_scheduled_start_of_another_version(pair: Engine) -> None:
    put_version(pair, "3")
    schedule(pair)
    set_share(pair, command(0), strategy_name="fib_rsi", version="3", percent=5)
    taken_off = roll_back(pair, command(), strategy_name="fib_rsi")

    with pytest.raises(AlreadyRolledBack):
        roll_back(pair, command(), strategy_name="fib_rsi")

    assert (taken_off, [each.version for each in list_starts(pair)]) == ("3", ["2"])
    assert roll_back(pair, command(), strategy_name="fib_rsi", version="2") == "2"


def test_a_strategy_has_one_start_at_a_time(pair: Engine) -> None:
    schedule(pair)

    with pytest.raises(StartScheduled, match="cancel that start first"):
        schedule(pair, TUESDAY + DAY)
    with pytest.raises(StartScheduled):
        start(pair)


@pytest.mark.parametrize("at", [MONDAY, MONDAY + 367 * DAY], ids=["now", "too far"])
def test_a_start_is_scheduled_within_a_year(pair: Engine, at: Any) -> None:
    with pytest.raises(InvalidStartTime, match="within the next 366 days"):
        schedule(pair, at)


def test_a_start_that_may_not_be_now_is_not_scheduled(ramped: Engine) -> None:
    with pytest.raises(RolloutOpen):
        schedule(ramped)


def test_a_preview_shows_the_earliest_start_and_advance(pair: Engine) -> None:
    found = preview_plan(pair, strategy_name="fib_rsi", version="2", plan=WEDNESDAYS, now=MONDAY)

    assert found.notes[0] == (
        "by release windows and freezes it may start Wed 2026-03-04 09:00 UTC, and advance Wed 2026-03-04 10:00 UTC "
        "at the earliest"
    )


def standing_status(engine: Engine) -> dict[str, str]:
    with reading(engine) as session:
        return {each.version: each.status for each in versions.list_versions(session)}


def test_a_freeze_of_an_unknown_strategy_is_refused_for_its_name(pair: Engine) -> None:
    with pytest.raises(UnknownStrategy):
        set_freeze(pair, Command(OWNER, MONDAY), strategy_name="nosuch", ends_at=MONDAY + 400 * DAY)


def test_a_strategy_without_an_active_version_says_whether_it_ever_had_one(engine: Engine) -> None:
    put_version(engine, "1", strategy_name="new")
    put_version(engine, "1", Status.RETIRED, strategy_name="old", activated_at=MONDAY - DAY)

    new, old = read_status(engine, now=MONDAY)

    assert new.sentence == "No version was ever activated."
    assert old.sentence == "Closed: its users get no version."
