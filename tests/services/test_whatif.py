"""A rollout on past candles: the same as its ticks would have done, and nothing is written."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

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
from strategy_core.report.whatif import whatif_markdown
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
from tests.report.reading import pictures, tables, words

START, END = MONDAY + 21 * DAY, MONDAY + 25 * DAY  # a Monday to Friday


def plan_of(pnl_r: float, **not_worse: Any) -> Plan:
    stage = {"minimum_time": 12 * 3_600, "margins": {"pnl_r": pnl_r}}
    gates = [
        {"kind": "harm"},
        {"kind": "not_worse", "minimum_slots": 6, "minimum_days": 2, **not_worse},
        {"kind": "losing_streak"},
        {"kind": "excess_drawdown"},
        {"kind": "errors"},
    ]
    stages = [{**stage, "percent": 10}, {**stage, "percent": 100}]
    asked = {"stages": stages, "approve_before": [100], "bake": 12 * 3_600, "gates": gates}
    return simulable(read_plan(asked))[0]


PLAN = plan_of(1.0)
STRICT = plan_of(0.1)
WITH_SHADOW = plan_of(0.2, patience=86_400)  # two slots an hour: its own ones would take longer than a day
SILVER = "SILVER"
Trace = list[tuple[Any, ...]]


class Row(NamedTuple):
    version: str
    symbol: str
    at: datetime
    said: str
    r: float
    step: timedelta

    @property
    def decision(self) -> dict[str, Any]:
        return decision_row(self.version, self.at, self.said, symbol=self.symbol)

    @property
    def outcome(self) -> dict[str, Any]:
        times = {"opened_at": self.at + self.step, "closed_at": self.at + 2 * self.step}
        return outcome_row(self.version, self.at, self.r, symbol=self.symbol) | times


class Case(NamedTuple):
    """What the versions do: they trade every other candle, which version 2 loses on *harmed* from a moment on."""

    harm_from: datetime = END + DAY
    harmed: str = GOLD
    symbols: tuple[str, ...] = (GOLD,)
    step: timedelta = HOUR
    plan: Plan = PLAN

    def rows(self) -> list[Row]:
        made = []
        for number in range((END - MONDAY) // self.step):
            at = MONDAY + number * self.step
            for place, symbol in enumerate(self.symbols):
                for version in ("1", "2"):
                    signals = (number + place) % 2 == 0 and (version == "1" or number % 10 not in (0, 5))
                    r = 0.5 if (number + place) % 4 else -0.4
                    bad = version == "2" and symbol == self.harmed and at >= self.harm_from
                    made.append(Row(version, symbol, at, "buy" if signals else "hold", -1.0 if bad else r, self.step))
        return made


def rows(harm_from: datetime) -> list[Row]:
    return Case(harm_from).rows()


def traced(trace: Trace) -> Any:
    def note(now: datetime, ruling: Ruling, findings: Sequence[Finding]) -> None:
        trace.append((now, ruling.step, ruling.reason, [(f.gate, f.verdict, f.reason) for f in findings]))

    return note


def live(engine: Engine, market: SyntheticSource, case: Case) -> Trace:
    """Live through the candles one by one: log, book, tick, and approve at once."""
    trace: Trace = []
    note, given = traced(trace), case.rows()
    put_decisions(engine, *(row.decision for row in given if row.at < START))
    due = [row.outcome for row in given if row.said != "hold"]
    put_outcomes(engine, *(row for row in due if row["closed_at"] <= START))
    rollout = start_rollout(engine, Command(OWNER, START), strategy_name="fib_rsi", version="2", plan=case.plan)
    for number in range((END - START) // case.step):
        candle = START + number * case.step
        now = candle + case.step
        put_decisions(engine, *(row.decision for row in given if row.at == candle))
        put_outcomes(engine, *(row for row in due if row["closed_at"] == now))
        ruled = tick_rollout(engine, market, rollout.id, now=now)
        assert ruled is not None
        note(now, *ruled)
        if ruled[0].step is Step.AWAIT_APPROVAL:
            approve(engine, Command(Actor("bob"), now, "looks well"), strategy_name="fib_rsi")
        if ruled[0].step in (Step.COMPLETE, Step.ROLL_BACK):
            break
    return trace


def put_past(engine: Engine, given: list[Row]) -> None:
    """Store the same rows as replays of the same versions in another strategy."""
    name = {"strategy_name": "past"}
    put_replays(
        engine,
        *(
            replay_row(row.version, row.at, row.said) | name | {"symbol": row.symbol, "replayed_at": END + DAY}
            for row in given
        ),
    )
    booked = [row.outcome | name for row in given if row.said != "hold"]
    with transaction(engine) as session:
        replays.add_outcomes(session, [{k: v for k, v in row.items() if k != "decision_id"} for row in booked])
        for version, symbol in {(row.version, row.symbol) for row in given}:
            marks = [
                {**name, "version": version, "symbol": symbol, "timestamp": row["opened_at"], "r": row["r_multiple"]}
                for row in booked
                if (row["version"], row["symbol"]) == (version, symbol)
            ]
            replays.replace_marks(session, Stretch("past", version, symbol, MONDAY, END), marks)


def ask(engine: Engine, trace: Trace | None = None, **given: Any) -> WhatIf:
    asked: dict[str, Any] = {"start": START, "end": END, "plan": PLAN, **given}
    return what_if(engine, strategy_name="past", version="2", seen=traced([] if trace is None else trace), **asked)


def put_pairs(engine: Engine, case: Case) -> None:
    """Register the two versions in two strategies: one that lives through the candles, and one that replays them."""
    timeframe = f"{case.step // HOUR}h"
    for name in ("fib_rsi", "past"):
        for version, status in (("1", Status.ACTIVE), ("2", Status.SHADOW)):
            put_version(
                engine, version, status, strategy_name=name, at=MONDAY, symbols=case.symbols, timeframe=timeframe
            )


@pytest.fixture
def pairs(engine: Engine) -> Engine:
    put_pairs(engine, Case())
    return engine


BOTH = (GOLD, SILVER)
ON_TUESDAY = START + 30 * HOUR
FOUR_HOURS = 4 * HOUR


@pytest.mark.parametrize(
    ("case", "ended"),
    [
        pytest.param(Case(), "completed", id="healthy"),
        pytest.param(Case(ON_TUESDAY), "rolled_back", id="harmful"),
        pytest.param(Case(symbols=BOTH, step=FOUR_HOURS), "completed", id="two symbols, 4h"),
        pytest.param(Case(START, SILVER, BOTH, FOUR_HOURS, STRICT), "running", id="harmful on one of two, 4h"),
        pytest.param(Case(symbols=BOTH), "completed", id="two symbols", marks=pytest.mark.full),
        pytest.param(Case(START, SILVER, BOTH, HOUR, STRICT), "rolled_back", id="one of two", marks=pytest.mark.full),
        pytest.param(
            Case(symbols=BOTH, plan=WITH_SHADOW), "completed", id="slots in shadow count", marks=pytest.mark.full
        ),
    ],
)
def test_it_does_what_its_ticks_would_have_done(engine: Engine, case: Case, ended: str) -> None:
    market = SyntheticSource(BOTH, timeframe=f"{case.step // HOUR}h", start=MONDAY.replace(month=1, day=1), days=300)
    put_pairs(engine, case)
    put_past(engine, case.rows())
    ticked, trace = live(engine, market, case), Trace()

    found = ask(engine, trace, plan=case.plan)

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

    assert notes[0].startswith("past 2 would have been rolled back on 2026-03-2")
    assert notes[1].startswith("users had -")
    assert notes[3].startswith("from replay: 252 of 252 slots, on 21 of 21 days before the start. ")
    assert notes[4] == "gates without data in the past, left out: order_errors, latency, sample_ratio, routing_audit"
    assert notes[5] == "owners approve at once, and extend a stage without an answer"


def test_its_report_begins_with_the_verdict_and_draws_the_ramp(pairs: Engine) -> None:
    put_past(pairs, rows(START + 30 * HOUR))

    found = ask(pairs)
    shown = whatif_markdown(found)

    assert found.ended == "rolled_back"
    assert shown.splitlines()[2].startswith("**past 2 would have been rolled back on 2026")
    share, bound, harm, users = (words(each) for each in pictures(shown))
    assert {"rolled back", "10 %"} <= share
    assert "Difference in R per slot as not_worse measures it" in bound
    assert "rollback at 100" in harm
    assert f"all users on average: {found.users_r:+.2f} R" in users
    (stages,) = tables(shown)
    assert [row["stage"].replace("\\", "") for row in stages] == [stage.name for stage in found.stages]
    assert found.earned.users[-1] == pytest.approx(found.users_r)
    assert found.earned.canary[-1] == pytest.approx(sum(stage.canary_r for stage in found.stages))


def test_symbols_that_a_replay_leaves_out_are_named(engine: Engine) -> None:
    put_pairs(engine, Case())
    put_version(engine, "1", Status.ACTIVE, strategy_name="wide", symbols=BOTH)
    put_version(engine, "2", strategy_name="wide")
    put_replays(engine, *(replay_row(version, START, strategy_name="wide") for version in ("1", "2")))

    found = what_if(engine, strategy_name="wide", version="2", plan=PLAN)

    assert found.notes[-2] == "not replayed, so not in the drawdown of 1: its trades on SILVER"
