"""A rollout on past candles: the same as its ticks would have done, and nothing is written."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import Engine

from strategy_core.domain.audit import Actor, Command
from strategy_core.domain.calibration import simulable
from strategy_core.domain.errors import NotReplayed
from strategy_core.domain.gates.base import Finding
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan, read_plan
from strategy_core.domain.ramp import Ruling, Step
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services.rollouts import approve, start_rollout
from strategy_core.services.tick import tick_rollout
from strategy_core.services.whatif import WhatIf, what_if
from strategy_core.store import replays
from strategy_core.store.engine import transaction
from strategy_core.store.replays import Stretch
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
    put_replays,
    put_version,
    replay_row,
)
from tests.pictures import picture

START, END = MONDAY + 21 * DAY, MONDAY + 25 * DAY  # a Monday to Friday
STAGE = {"minimum_time": 12 * 3_600, "margins": {"pnl_r": 1.0}}
PLAN, _ = simulable(
    read_plan(
        {
            "stages": [{**STAGE, "percent": 10}, {**STAGE, "percent": 100}],
            "approve_before": [100],
            "bake": 12 * 3_600,
            "gates": [
                {"kind": "harm"},
                {"kind": "not_worse", "minimum_slots": 6, "minimum_days": 2},
                {"kind": "losing_streak"},
                {"kind": "excess_drawdown"},
                {"kind": "errors"},
            ],
        }
    )
)
Trace = list[tuple[Any, ...]]


def rows(harm_from: datetime) -> list[tuple[str, datetime, str, float]]:
    """Return (version, candle, decision, R): trades every other hour, which version 2 loses from a moment on."""
    made = []
    for number in range(25 * 24):
        at = MONDAY + number * HOUR
        for version in ("1", "2"):
            signals = number % 2 == 0 and (version == "1" or number % 10)
            r = 0.5 if number % 4 else -0.4
            bad = version == "2" and at >= harm_from
            made.append((version, at, "buy" if signals else "hold", -1.0 if bad else r))
    return made


def traced(trace: Trace) -> Any:
    def note(now: datetime, ruling: Ruling, findings: Sequence[Finding]) -> None:
        trace.append((now, ruling.step, ruling.reason, [(f.gate, f.verdict, f.reason) for f in findings]))

    return note


def live(engine: Engine, market: SyntheticSource, given: list[tuple[str, datetime, str, float]]) -> Trace:
    """Live through the candles one by one: log, book, tick, and approve at once."""
    trace: Trace = []
    note = traced(trace)
    before = [row for row in given if row[1] < START]
    put_decisions(engine, *(decision_row(version, at, said) for version, at, said, _ in before))
    due = [outcome_row(version, at, r) for version, at, said, r in given if said != "hold"]
    put_outcomes(engine, *(row for row in due if row["closed_at"] <= START))
    rollout = start_rollout(engine, Command(OWNER, START), strategy_name="fib_rsi", version="2", plan=PLAN)
    for hour in range(4 * 24):
        candle = START + hour * HOUR
        now = candle + HOUR
        put_decisions(engine, *(decision_row(version, at, said) for version, at, said, _ in given if at == candle))
        put_outcomes(engine, *(row for row in due if row["closed_at"] == now))
        ruled = tick_rollout(engine, market, rollout.id, now=now)
        assert ruled is not None
        note(now, *ruled)
        if ruled[0].step is Step.AWAIT_APPROVAL:
            approve(engine, Command(Actor("bob"), now, "looks well"), strategy_name="fib_rsi")
        if ruled[0].step in (Step.COMPLETE, Step.ROLL_BACK):
            break
    return trace


def put_past(engine: Engine, given: list[tuple[str, datetime, str, float]]) -> None:
    """Store the same rows as replays of the same versions in another strategy."""
    name = {"strategy_name": "past"}
    put_replays(
        engine,
        *(replay_row(version, at, said) | name | {"replayed_at": END + DAY} for version, at, said, _ in given),
    )
    booked = [outcome_row(version, at, r) | name for version, at, said, r in given if said != "hold"]
    with transaction(engine) as session:
        replays.add_outcomes(session, [{k: v for k, v in row.items() if k != "decision_id"} for row in booked])
        for version in ("1", "2"):
            marks = [
                {**name, "version": version, "symbol": GOLD, "timestamp": row["opened_at"], "r": row["r_multiple"]}
                for row in booked
                if row["version"] == version
            ]
            replays.replace_marks(session, Stretch("past", version, GOLD, MONDAY, END), marks)


def ask(engine: Engine, trace: Trace | None = None, **given: Any) -> WhatIf:
    asked: dict[str, Any] = {"start": START, "end": END, "plan": PLAN, **given}
    return what_if(engine, strategy_name="past", version="2", seen=traced([] if trace is None else trace), **asked)


@pytest.fixture
def pairs(engine: Engine) -> Engine:
    for name in ("fib_rsi", "past"):
        put_version(engine, "1", Status.ACTIVE, strategy_name=name, at=MONDAY - DAY)
        put_version(engine, "2", strategy_name=name, at=MONDAY - DAY)
    return engine


@pytest.mark.parametrize(
    ("harm_from", "ended"), [(END + DAY, "completed"), (START + 30 * HOUR, "rolled_back")], ids=["healthy", "harmful"]
)
def test_it_does_what_its_ticks_would_have_done(
    pairs: Engine, market: SyntheticSource, harm_from: datetime, ended: str
) -> None:
    given = rows(harm_from)
    put_past(pairs, given)
    ticked, trace = live(pairs, market, given), Trace()

    found = ask(pairs, trace)

    assert trace == ticked
    assert (found.ended, found.ticks) == (ended, len(ticked))


def test_stages_show_when_they_ended_and_what_users_had(pairs: Engine) -> None:
    put_past(pairs, rows(END + DAY))

    found = ask(pairs)

    assert [stage.name for stage in found.stages] == ["10 %", "100 %", "bake"]
    assert [stage.step for stage in found.stages] == ["advance", "promote", "complete"]
    first, second, last = found.stages
    assert first.entered == START
    assert (first.left, second.left) == (second.entered, last.entered)
    assert first.users_r == pytest.approx(0.1 * first.canary_r)
    assert last.canary_r != 0
    assert found.shadow_slots > 100


def test_nothing_is_written(pairs: Engine) -> None:
    put_past(pairs, rows(START + 30 * HOUR))
    before = picture(pairs)

    ask(pairs)

    assert picture(pairs) == before


def test_a_period_that_ends_before_is_running(pairs: Engine) -> None:
    put_past(pairs, rows(END + DAY))

    found = ask(pairs, end=START + 6 * HOUR)

    assert (found.ended, found.ticks) == ("running", 6)
    assert found.stages[-1].reason.startswith("dwells at 10 %")


def test_a_start_that_harm_in_shadow_would_refuse_says_so(pairs: Engine) -> None:
    put_past(pairs, rows(MONDAY))

    assert ask(pairs).refused.startswith("the canary earns less")


def test_gates_without_facts_in_the_past_are_named(pairs: Engine) -> None:
    put_past(pairs, rows(END + DAY))

    assert "sample_ratio" in ask(pairs, plan=Plan()).left_out


def test_what_was_not_replayed_names_the_command(pairs: Engine) -> None:
    with pytest.raises(NotReplayed, match="rollout replay past 2 --from 2026-03-23 --to 2026-03-27"):
        ask(pairs)
    with pytest.raises(NotReplayed, match="rollout replay past 2 --from TIME --to TIME"):
        ask(pairs, start=None, end=None)


def test_without_a_period_all_that_was_replayed_is_used(pairs: Engine) -> None:
    put_past(pairs, rows(END + DAY))

    found = ask(pairs, start=None, end=None)

    assert (found.start, found.end) == (MONDAY, END)
    assert found.shadow_slots == 0


def test_the_notes_say_how_it_ended_and_what_it_is_based_on(pairs: Engine) -> None:
    put_past(pairs, rows(START + 30 * HOUR))

    notes = ask(pairs, plan=Plan()).notes

    assert notes[0].startswith("rolled back on 2026-03-2")
    assert notes[1].startswith("users had -")
    assert notes[2].endswith("slots of the 180 days before. Owners approve at once")
    assert notes[3] == "not simulated: order_errors, latency, sample_ratio, routing_audit"
