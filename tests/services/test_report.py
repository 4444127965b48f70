"""What is told of a rollout: whom it reached, what it cost, and why it was rolled back, on both databases."""

import re
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine

from strategy_core.domain.audit import Command
from strategy_core.domain.errors import UnknownRollout, UnknownStrategy
from strategy_core.domain.lifecycle import Status
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.report.html import html_page
from strategy_core.report.markdown import plain
from strategy_core.report.rollout import (
    FOLDED,
    change_markdown,
    progress_markdown,
    rollback_markdown,
    rollout_markdown,
)
from strategy_core.services.canary import activate_canary, update_canary_percent
from strategy_core.services.compare import compare_all
from strategy_core.services.reports import RolloutReport, read_progress, read_report, read_rollback, resolve_rollout
from strategy_core.services.rollback import roll_back
from strategy_core.services.rollouts import pause, resume
from strategy_core.services.tick import tick
from strategy_core.services.users import load_users
from strategy_core.services.versions import activate_version
from strategy_core.store import audit, rollouts
from strategy_core.store.engine import reading, transaction
from strategy_core.store.tables import AuditEvent, GateVerdict, Rollout
from tests.builders import DAY, HOUR, MONDAY, OWNER, put_version
from tests.report.reading import Page, pictures, tables, words
from tests.services.ramping import days, newest

HARMFUL = {"1": 0.4, "2": -1.0}


def told(engine: Engine, now: Any) -> RolloutReport:
    return read_report(engine, newest(engine).id, now=now)[0]


def last_event(engine: Engine) -> AuditEvent:
    with reading(engine) as session:
        return audit.events(session, "fib_rsi")[-1]


def test_a_rollback_is_told_with_its_gate_its_rows_its_users_and_its_cost(
    ramped: Engine, market: SyntheticSource
) -> None:
    load_users(ramped, [(f"user_{n}", None) for n in range(200)], now=MONDAY)
    now = days(ramped, MONDAY, 4, HARMFUL)
    tick(ramped, market, now=now)

    report = told(ramped, now + DAY)

    undone = report.rolled_back
    assert undone is not None
    assert undone.gate is not None
    assert (undone.gate.gate, undone.gate.value, undone.gate.limit, undone.gate.n) == ("losing_streak", 40.0, 12.0, 40)
    assert sorted(str(row.id) for row in undone.verdicts) == sorted(undone.event.evidence)
    assert [row.verdict for row in undone.verdicts[:3]] == ["breach", "breach", "fail"]
    (served,) = undone.served
    assert (served.since, served.until, served.percent) == (MONDAY, now, 5.0)
    assert undone.directory == 200
    assert served.users is not None
    assert 0 < served.users < 25
    assert undone.cost is not None
    assert undone.cost.slots == 40
    assert (undone.cost.canary_r, undone.cost.control_r) == pytest.approx((-40, 16))
    assert [slot.position for slot in undone.slots] == list(range(39, 29, -1))
    assert [row.timestamp for row in undone.decisions] == [now - (n + 1) * HOUR for n in range(10)]
    assert undone.now_active == "1"
    assert (report.progress.percent, report.progress.users, report.progress.at) == (0.0, 0, now)


def test_a_reader_finds_all_of_it_on_the_page(ramped: Engine, market: SyntheticSource) -> None:
    now = days(ramped, MONDAY, 4, HARMFUL)
    tick(ramped, market, now=now)
    compare_all(ramped, market, now=now, days=5)
    report = told(ramped, now)

    markdown = rollout_markdown(report)

    assert report.rolled_back is not None
    opening = [line.split(":**")[0] for line in rollback_markdown(report.rolled_back).splitlines()[2:5]]
    assert opening == ["- **what happened", "- **to whom", "- **cost, and what to do"]
    assert "| losing streak | **breach** | 40 in a row | 12 in a row | 40 slots |" in rollback_markdown(
        report.rolled_back
    )
    whole = html_page("x", markdown, folded=FOLDED)
    assert "-56.00 R in 40 slots against the other users: -56.0% of equity, -5,600 on an account of 10,000" in whole
    page = Page(whole)
    folded = re.findall(r"<details><summary><h2>(.+?)</h2>", whole)
    assert {"Facts", "Every gate", "Users reached", "Change history"} <= set(folded)
    assert "Gates that spoke" not in folded
    assert page.text.count("40 slots in a row were won by the active version and lost by the canary") >= 3
    assert "rollout start fib_rsi 2 --override-reason" in page.text
    assert "+16.00" in page.text
    drawn = [words(each) for each in pictures(markdown)]
    assert [len(page.tags), page.tags.count("img")] == [len(page.tags), len(drawn)]
    for title in (
        "Difference of 2 to the other users, until it was rolled back: -56.0 R",
        "Evidence of harm over time",
        "Share of users over time",
        "Equity of both versions",
    ):
        assert any(title in each for each in drawn), title
    assert any("Paired difference by regime, with its 95 % interval" in each for each in drawn)


def test_progress_tells_stage_users_gates_and_what_must_happen(ramped: Engine, market: SyntheticSource) -> None:
    now = days(ramped, MONDAY, 1)
    tick(ramped, market, now=now)

    (progress,) = read_progress(ramped, [newest(ramped).id], now=now + HOUR)

    assert (progress.percent, progress.users, progress.directory, progress.started_by) == (5.0, None, None, "ana")
    assert progress.harm is not None
    assert progress.harm.at == (now,)
    assert progress.harm.limit == 2.0
    assert progress.harm.freeze_at == 1.0
    shown = progress_markdown(progress)
    assert shown.startswith("# fib\\_rsi 2 against 1: running at 5 % of users\n")
    gates = {row["gate"]: row for row in tables(shown)[0]}
    assert (gates["not worse"]["verdict"], gates["not worse"]["seen"]) == (
        "insufficient",
        "10 of 30 slots\\, day 1 of at least 3",
    )
    assert gates["losing streak"]["limit"] == "12 in a row"
    assert gates["routing"]["verdict"] == "no data"
    assert "**Nothing can be concluded yet\\: 10 of 30 slots\\, day 1 of at least 3" in shown
    assert plain('"not worse" must pass, it is insufficient: 10 of 30 slots, day 1 of at least 3') in shown
    assert len(pictures(shown)) == 2


def test_a_share_that_an_owner_moved_is_told_as_it_was(ramped: Engine) -> None:
    pause(ramped, Command(OWNER, MONDAY + DAY), strategy_name="fib_rsi")
    update_canary_percent(ramped, Command(OWNER, MONDAY + 2 * DAY), strategy_name="fib_rsi", percent=7.5)
    resume(ramped, Command(OWNER, MONDAY + 3 * DAY), strategy_name="fib_rsi")

    served = told(ramped, MONDAY + 4 * DAY).progress.served

    assert [(each.percent, (each.until - each.since) // DAY) for each in served] == [(5.0, 2), (7.5, 1), (5.0, 1)]


def test_a_persons_rollback_names_no_gate(ramped: Engine, market: SyntheticSource) -> None:
    tick(ramped, market, now=days(ramped, MONDAY, 1))
    roll_back(ramped, Command(OWNER, MONDAY + 2 * DAY, "odd fills"), strategy_name="fib_rsi")

    undone = read_rollback(ramped, rollout_id=newest(ramped).id)

    assert undone.gate is None
    assert undone.event.reason == "odd fills"
    assert {row.gate for row in undone.verdicts} >= {"errors", "harm"}


def test_a_canary_without_a_rollout_is_told_of_too(engine: Engine) -> None:
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2")
    activate_canary(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", rollout_percent=10)
    roll_back(engine, Command(OWNER, MONDAY + DAY, "by hand"), strategy_name="fib_rsi")
    activate_canary(
        engine,
        Command(OWNER, MONDAY + 2 * DAY, override_reason="mended"),
        strategy_name="fib_rsi",
        version="2",
        rollout_percent=20,
    )
    update_canary_percent(engine, Command(OWNER, MONDAY + 3 * DAY), strategy_name="fib_rsi", percent=30)
    roll_back(engine, Command(OWNER, MONDAY + 4 * DAY, "again"), strategy_name="fib_rsi")

    undone = read_rollback(engine, event=last_event(engine))

    assert [(each.percent, each.since) for each in undone.served] == [
        (20.0, MONDAY + 2 * DAY),
        (30.0, MONDAY + 3 * DAY),
    ]
    assert undone.cost is None
    assert "rollout audit log fib_rsi" in rollback_markdown(undone)


def test_an_activation_that_is_undone_had_reached_everybody(engine: Engine) -> None:
    put_version(engine, "1")
    put_version(engine, "2")
    activate_version(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="1")
    activate_version(engine, Command(OWNER, MONDAY + DAY), strategy_name="fib_rsi", version="2")
    roll_back(engine, Command(OWNER, MONDAY + 2 * DAY, "worse"), strategy_name="fib_rsi", version="2")

    undone = read_rollback(engine, event=last_event(engine))

    assert [(each.percent, each.until - each.since) for each in undone.served] == [(100.0, DAY)]
    assert undone.now_active == "1"


def test_a_night_is_told_in_the_report_with_its_days(ramped: Engine, market: SyntheticSource) -> None:
    now = days(ramped, MONDAY, 4)
    compare_all(ramped, market, now=now, days=5)

    found = told(ramped, now).comparison

    assert found is not None
    assert [day.slots for day in found.days] == [10] * 4
    measured = found.report.report["difference"]
    assert found.days[-1].mean == pytest.approx(measured["mean"])
    assert found.days[-1].low == pytest.approx(measured["low"])


def test_words_of_people_and_versions_do_nothing(ramped: Engine, market: SyntheticSource) -> None:
    hostile = "<script>alert(1)</script> | `x` ![y](javascript:z)\n# \u202e"
    tick(ramped, market, now=days(ramped, MONDAY, 1))
    roll_back(ramped, Command(OWNER, MONDAY + 2 * DAY, hostile), strategy_name="fib_rsi")
    with transaction(ramped) as session:
        session.add(
            GateVerdict(
                rollout_id=newest(ramped).id,
                ticked_at=MONDAY + 2 * DAY,
                stage_index=0,
                gate="errors",
                verdict="breach",
                armed=True,
                reason=hostile,
            )
        )
    report = told(ramped, MONDAY + 3 * DAY)
    assert report.rolled_back is not None

    for markdown in (
        rollout_markdown(report),
        rollback_markdown(report.rolled_back),
        progress_markdown(report.progress),
        change_markdown(report.rolled_back.event),
    ):
        page = Page(html_page("x", markdown))
        assert "script" not in page.tags
        assert "a" not in page.tags
        assert "<script>alert(1)</script> | `x` ![y](javascript:z) #" in page.text


def test_curves_and_values_are_thinned_and_no_peak_is_lost(ramped: Engine) -> None:
    rollout = newest(ramped)
    with transaction(ramped) as session:
        for minute in range(1_000):
            session.add(
                GateVerdict(
                    rollout_id=rollout.id,
                    ticked_at=MONDAY + timedelta(minutes=minute),
                    stage_index=0,
                    gate="harm",
                    verdict="pass",
                    armed=True,
                    reason="",
                    value=9.0 if minute == 501 else 0.0,
                )
            )
    with reading(ramped) as session:
        few = rollouts.value_peaks(session, rollout.id, "harm", most=7)
        all_of_them = rollouts.value_peaks(session, rollout.id, "harm", most=1_000)

    assert len(few) == 7
    assert max(value for _, value in few) == 9.0
    assert few[-1][0] == MONDAY + timedelta(minutes=999)
    assert len(all_of_them) == 1_000


def test_a_verdict_stands_since_it_was_last_another(ramped: Engine) -> None:
    rollout = newest(ramped)
    with transaction(ramped) as session:
        for hour, (gate, verdict) in enumerate(
            [("a", "pass"), ("a", "blind"), ("a", "pass"), ("b", "fail"), ("a", "pass"), ("b", "fail")]
        ):
            session.add(
                GateVerdict(
                    rollout_id=rollout.id,
                    ticked_at=MONDAY + hour * HOUR,
                    stage_index=0,
                    gate=gate,
                    verdict=verdict,
                    armed=True,
                    reason=str(hour),
                )
            )

    with reading(ramped) as session:
        said = rollouts.last_verdicts(session, rollout.id)
        since = {gate: rollouts.held_since(session, row) for gate, row in said.items()}
    assert since == {"a": MONDAY + 2 * HOUR, "b": MONDAY + 3 * HOUR}


def test_a_rollout_whose_plan_cannot_be_read_hides_no_other(ramped: Engine) -> None:
    put_version(ramped, "1", Status.ACTIVE, strategy_name="broken")
    put_version(ramped, "2", strategy_name="broken")
    row = Rollout(
        strategy_name="broken",
        version="2",
        control_version="1",
        state="running",
        plan={"stages": []},
        started_at=MONDAY,
        stage_entered_at=MONDAY,
        stage_extended_at=MONDAY,
    )
    with transaction(ramped) as session:
        rollouts.add_rollout(session, row, {})
    with reading(ramped) as session:
        ids = [each.id for each in rollouts.open_rollouts(session)]

    found = list(read_progress(ramped, ids, now=MONDAY + HOUR))

    assert [each.status.rollout.strategy_name for each in found] == ["fib_rsi"]


def test_a_rollout_is_found_by_its_id_or_its_strategys_name(ramped: Engine) -> None:
    rollout = newest(ramped)
    put_version(ramped, "1", strategy_name="lonely")

    assert resolve_rollout(ramped, str(rollout.id)) == resolve_rollout(ramped, "fib_rsi") == rollout.id
    with pytest.raises(UnknownRollout, match="lonely"):
        resolve_rollout(ramped, "lonely")
    with pytest.raises(UnknownStrategy):
        resolve_rollout(ramped, "nobodys")
    with pytest.raises(UnknownRollout):
        read_report(ramped, uuid4(), now=MONDAY)
    with pytest.raises(UnknownRollout, match="that was rolled back"):
        read_rollback(ramped, rollout_id=rollout.id)
