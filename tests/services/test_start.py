"""What must hold before a rollout starts, and that its start is one change."""

from typing import Any

import pytest
from sqlalchemy import Engine

from strategy_core.domain.audit import Command
from strategy_core.domain.errors import (
    HarmfulInShadow,
    IllegalTransition,
    Incomparable,
    NoActiveVersion,
    Quarantined,
    RolloutOpen,
    UnarmedPlan,
)
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan, read_plan
from strategy_core.services.canary import activate_canary
from strategy_core.services.rollback import roll_back
from strategy_core.services.rollouts import preview_plan, start_rollout
from strategy_core.store import alerts, audit, versions
from strategy_core.store.engine import reading
from tests.builders import DAY, MONDAY, OWNER, put_day, put_version
from tests.services.ramping import newest, standing


def test_the_start_is_one_change(ramped: Engine) -> None:
    assert standing(ramped) == ({"1": "active", "2": "canary"}, 5.0)
    with reading(ramped) as session:
        (event,) = audit.events(session)
        (alert,) = alerts.find_alerts(session)
    assert (event.action, event.before["canary"], event.after["canary"]) == ("start_rollout", None, "2")
    assert alert.text == "fib_rsi 2 started at 5 % against 1"
    assert read_plan(newest(ramped).plan) == Plan()


def test_one_rollout_at_a_time(ramped: Engine) -> None:
    put_version(ramped, "3")

    with pytest.raises(RolloutOpen, match="'fib_rsi' '2' is running"):
        start_rollout(ramped, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="3", plan=Plan())


def test_a_rollout_starts_from_shadow_beside_an_active_version(engine: Engine) -> None:
    put_version(engine, "2")
    with pytest.raises(NoActiveVersion):
        start_rollout(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", plan=Plan())
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "0", Status.RETIRED)
    with pytest.raises(IllegalTransition, match="cannot move retired -> canary"):
        start_rollout(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="0", plan=Plan())


@pytest.mark.parametrize(
    ("columns", "difference"),
    [({"timeframe": "4h"}, "timeframe 4h against 1h"), ({"symbols": ["SILVER"]}, "symbols SILVER against GOLD")],
)
def test_what_shares_no_candle_cannot_be_measured(engine: Engine, columns: dict[str, Any], difference: str) -> None:
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2", **columns)

    with pytest.raises(Incomparable, match=difference):
        start_rollout(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", plan=Plan())


def test_an_unarmed_plan_never_starts(engine: Engine) -> None:
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2")

    with pytest.raises(UnarmedPlan):
        start_rollout(
            engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", plan=read_plan({"gates": []})
        )
    with reading(engine) as session:
        assert versions.get_version(session, "fib_rsi", "2").status == "shadow"


def test_a_canary_moved_by_hand_can_be_put_under_a_plan(engine: Engine) -> None:
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2")
    activate_canary(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", rollout_percent=20)

    start_rollout(engine, Command(OWNER, MONDAY + DAY), strategy_name="fib_rsi", version="2", plan=Plan())

    assert standing(engine) == ({"1": "active", "2": "canary"}, 5.0)


def test_a_quarantined_version_is_ramped_again_only_with_a_reason(ramped: Engine) -> None:
    roll_back(ramped, Command(OWNER, MONDAY, "odd fills"), strategy_name="fib_rsi")

    with pytest.raises(Quarantined):
        start_rollout(ramped, Command(OWNER, MONDAY + DAY), strategy_name="fib_rsi", version="2", plan=Plan())
    start_rollout(
        ramped,
        Command(OWNER, MONDAY + DAY, override_reason="the broker's fault"),
        strategy_name="fib_rsi",
        version="2",
        plan=Plan(),
    )

    assert standing(ramped) == ({"1": "active", "2": "canary"}, 5.0)


class TestHarmInShadow:
    """A version that lost money in shadow already does not start by itself."""

    @pytest.fixture
    def lost(self, engine: Engine) -> Engine:
        put_version(engine, "1", Status.ACTIVE)
        put_version(engine, "2")
        for day in range(12):
            put_day(engine, MONDAY + day * DAY, {"1": "buy", "2": "buy"}, {"1": 0.6, "2": -0.9}, signal_hours=[1, 5, 9])
        return engine

    def test_it_is_refused_with_what_it_lost_and_nothing_has_changed(self, lost: Engine) -> None:
        with pytest.raises(HarmfulInShadow, match=r"earns less: E reached .* -54\.0 R in 36 slots") as refused:
            start_rollout(lost, self.command(), strategy_name="fib_rsi", version="2", plan=Plan())

        assert refused.value.version == "2"
        with reading(lost) as session:
            assert versions.get_version(session, "fib_rsi", "2").status == Status.SHADOW
            assert list(audit.events(session)) == []

    def test_an_owner_may_start_it_all_the_same_with_a_reason(self, lost: Engine) -> None:
        start_rollout(lost, self.command("bad feed"), strategy_name="fib_rsi", version="2", plan=Plan())

        assert standing(lost)[0] == {"1": "active", "2": "canary"}

    def test_the_plan_says_so_before(self, lost: Engine) -> None:
        told = preview_plan(lost, strategy_name="fib_rsi", version="2", plan=Plan(), now=MONDAY + 12 * DAY)

        assert told.verdict.startswith("refused: in shadow the canary earns less")
        assert any("R a day less" in note for note in told.notes)

    @pytest.mark.parametrize("gates", [[{"kind": "harm", "dry_run": True}, {"kind": "errors"}], [{"kind": "errors"}]])
    def test_a_plan_without_an_armed_gate_on_harm_does_not_ask(self, lost: Engine, gates: list[dict[str, Any]]) -> None:
        plan = read_plan({"gates": gates})

        start_rollout(lost, self.command(), strategy_name="fib_rsi", version="2", plan=plan)

        assert standing(lost)[0] == {"1": "active", "2": "canary"}

    def command(self, override_reason: str = "") -> Command:
        return Command(OWNER, MONDAY + 12 * DAY, override_reason=override_reason)
