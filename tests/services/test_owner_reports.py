"""Reports that come by themselves: which are due, that each is written once, and that they endanger no rollback."""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from hashlib import sha256
from threading import Barrier

import pytest
from sqlalchemy import Engine

from strategy_core.domain.audit import Command
from strategy_core.domain.errors import InvariantRefused
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.owner_reports import Kind
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.report.owner import owner_report_markdown, owner_report_page
from strategy_core.services.compare import compare_all
from strategy_core.services.owner_reports import (
    WrittenReports,
    find_owner_report,
    list_owner_reports,
    write_final_reports,
    write_reports,
)
from strategy_core.services.queries import Scope
from strategy_core.services.report_facts import ReportFacts
from strategy_core.services.rollback import roll_back
from strategy_core.services.tick import tick
from strategy_core.services.versions import retire_version
from strategy_core.store import partitions
from strategy_core.store.engine import analyze_tables, transaction
from strategy_core.store.tables import OwnerReport
from tests.builders import DAY, HOUR, MONDAY, OWNER, put_pair, put_version
from tests.report.reading import Page, tables
from tests.services.outbox import outbox
from tests.services.ramping import days

HALF_PAST = HOUR / 2
WEDNESDAY = MONDAY + 2 * DAY
BETTER, WORSE, MIXED = {"1": 0.4, "2": 0.5}, {"1": 0.4, "2": -1.0}, {"1": 0.4, "2": 0.38}


def written(engine: Engine, now: datetime) -> list[tuple[str, str]]:
    """Return kind and subject of what is written at half past midnight."""
    return kinds(write_reports(engine, owner_report_page, now=now + HALF_PAST))


def compare_night(engine: Engine, market: SyntheticSource, now: datetime) -> None:
    if engine.dialect.name == "postgresql":  # without statistics it takes half a minute
        analyze_tables(engine, partitions.TABLES)
    compare_all(engine, market, now=now)


def kinds(done: WrittenReports) -> list[tuple[str, str]]:
    assert done.problems == []
    return [(each.kind, each.subject) for each in done.reports]


def facts_of(engine: Engine, kind: Kind) -> ReportFacts:
    newest = next(each for each in list_owner_reports(engine, Scope("fib_rsi")) if each.kind == kind)
    return find_owner_report(engine, newest.id)[1]


def ready_alerts(engine: Engine) -> list[str]:
    return [alert.text for alert in outbox(engine) if alert.kind == "report.ready"]


def test_a_morning_note_comes_once_a_day_and_only_with_news(engine: Engine) -> None:
    put_pair(engine)
    now = days(engine, MONDAY, 1, MIXED)

    assert written(engine, now) == [("morning", "2026-03-03")]
    assert written(engine, now) == []
    assert written(engine, WEDNESDAY) == [], "nothing has changed"
    days(engine, WEDNESDAY, 1, MIXED)
    assert written(engine, WEDNESDAY + DAY) == [("morning", "2026-03-05")]

    assert facts_of(engine, Kind.MORNING).news == ("trades have closed: 1, 2",)
    assert len(ready_alerts(engine)) == 2


def test_a_week_without_news_ends_with_one_report(engine: Engine) -> None:
    put_pair(engine)
    days(engine, MONDAY, 1, MIXED)

    found = [written(engine, MONDAY + day * DAY) for day in range(1, 16)]

    assert [each for each in found if each] == [
        [("morning", "2026-03-03")],
        [("weekly", "2026-W10")],
        [("weekly", "2026-W11")],
    ]
    assert "In the week: no news" in owner_report_markdown(facts_of(engine, Kind.WEEKLY))


def test_a_strategy_with_nothing_to_watch_gets_none(engine: Engine) -> None:
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "0", Status.RETIRED)
    put_version(engine, "9", strategy_name="without_an_active_one")

    assert written(engine, MONDAY + DAY) == []


def test_two_writers_at_once_write_one(engine: Engine) -> None:
    put_pair(engine)
    now = days(engine, MONDAY, 1, MIXED) + HALF_PAST
    together = Barrier(2, timeout=60)

    def page(facts: ReportFacts) -> str:
        together.wait()  # both have found that it is due
        return owner_report_page(facts)

    with ThreadPoolExecutor(2) as threads:
        runs = [threads.submit(write_reports, engine, page, now=now) for _ in range(2)]
        found = [kinds(each.result()) for each in runs]

    assert sorted(found) == [[], [("morning", "2026-03-03")]]
    assert len(ready_alerts(engine)) == 1


def test_a_version_that_could_pass_is_announced_once(engine: Engine, market: SyntheticSource) -> None:
    put_pair(engine)
    put_version(engine, "3")
    now = days(engine, MONDAY, 12, BETTER | {"3": -0.2})
    compare_night(engine, market, now)

    assert written(engine, now)[:2] == [
        ("ready", "2 against 1: not worse"),
        ("weekly", "2026-W10"),
    ]
    assert written(engine, days(engine, now, 1, BETTER)) == [("morning", "2026-03-15")]

    facts = facts_of(engine, Kind.READY)
    assert re.fullmatch(
        r"2 is not worse than 1 within 0\.15 R a slot: \+0\.100 R a slot, at least [+-]0\.\d{3}, in 120 slots; "
        r"next: preview its rollout, since it could pass the 5 % stage by now\.",
        facts.sentence,
    )
    page = Page(owner_report_page(facts))
    assert "rollout plan fib_rsi 2" in page.text
    assert "rollout start fib_rsi 2 --reason" in page.text


def test_a_rollback_gets_its_final_report_once(ramped: Engine, market: SyntheticSource) -> None:
    now = days(ramped, MONDAY, 4, WORSE)
    tick(ramped, market, now=now)

    first, second = (write_final_reports(ramped, owner_report_page, now=now + HOUR) for _ in range(2))

    assert [each.kind for each in first.reports] == ["final"]
    assert second == WrittenReports([], [])
    facts = facts_of(ramped, Kind.FINAL)
    assert facts.sentence == (
        "2 was rolled back after 4 days and at most 5 % of users: a user on it has -56.00 R against 1 in 40 slots; "
        "next: read why in the report, and register the corrected version."
    )
    (alert,) = (each for each in outbox(ramped) if each.kind == "report.ready")
    assert alert.text == f"fib_rsi: {facts.sentence}"
    assert (alert.severity, alert.rollout_id) == ("info", facts.rollout and facts.rollout.id)
    assert "losing_streak: 40 slots in a row" in Page(owner_report_page(facts)).text


@pytest.mark.parametrize("fault", [ZeroDivisionError("renderer"), InvariantRefused("database")])
def test_a_rollback_is_committed_whatever_happens_to_its_report(
    ramped: Engine, market: SyntheticSource, fault: Exception
) -> None:
    now = days(ramped, MONDAY, 4, WORSE)
    tick(ramped, market, now=now)

    def page(_facts: ReportFacts) -> str:
        raise fault

    done = write_final_reports(ramped, page, now=now)

    assert done.reports == []
    assert len(done.problems) == 1
    assert outbox(ramped)[-1].kind == "rollout.rolled_back"
    assert kinds(write_final_reports(ramped, owner_report_page, now=now))[0][0] == "final", "the next run writes it"


def test_the_stored_facts_give_the_same_page_later(engine: Engine, market: SyntheticSource) -> None:
    put_pair(engine)
    now = days(engine, MONDAY, 10, MIXED)
    compare_night(engine, market, now)
    written(engine, now)
    days(engine, now, 3, WORSE)

    for each in list_owner_reports(engine, Scope("fib_rsi")):
        found, facts = find_owner_report(engine, each.id)
        assert sha256(owner_report_page(facts).encode()).hexdigest() == found.html_sha256


@pytest.mark.parametrize("worth", [BETTER, WORSE, MIXED], ids=["better", "worse", "mixed"])
@pytest.mark.parametrize("count", [1, 12])
def test_the_first_sentence_has_verdict_figures_and_next_step(
    engine: Engine, worth: dict[str, float], count: int
) -> None:
    put_pair(engine)
    now = days(engine, MONDAY, count, worth)
    written(engine, now)

    for each in list_owner_reports(engine, Scope("fib_rsi")):
        says_it_all(each.sentence, ["2", "1"])


def test_the_first_sentence_about_a_rollout_does_too(ramped: Engine, market: SyntheticSource) -> None:
    for day in range(3):
        now = days(ramped, MONDAY + day * DAY, 1, MIXED)
        tick(ramped, market, now=now)
        written(ramped, now)
    roll_back(ramped, Command(OWNER, now, "enough"), strategy_name="fib_rsi")
    written(ramped, now + DAY)

    found = list_owner_reports(ramped, Scope("fib_rsi"))
    assert [each.kind for each in found] == ["final", "morning", "morning", "morning"]
    for each in found:
        says_it_all(each.sentence, ["2", "1"])


def says_it_all(sentence: str, versions: Sequence[str]) -> None:
    first = re.split(r"(?<=[.!])\s+(?=[A-Z])", sentence)[0]
    assert re.search(r"\d+(\.\d+)? (R|slots|of|%)", first), first
    assert "; next: " in first, first
    assert all(re.search(rf"\b{version}\b", first) for version in versions), first


def test_what_was_tried_and_dropped_widens_the_intervals(engine: Engine, market: SyntheticSource) -> None:
    put_pair(engine)
    put_version(engine, "3")
    now = days(engine, MONDAY, 10, MIXED | {"3": 0.1})
    compare_night(engine, market, now)
    written(engine, now)
    retire_version(engine, Command(OWNER, now), strategy_name="fib_rsi", version="3")
    written(engine, now + DAY)

    facts = facts_of(engine, Kind.MORNING)

    assert (facts.tried, facts.confidence) == (2, 0.975)
    assert [each.version for each in facts.dropped] == ["3"]
    assert "2 versions were tried, so each interval is at 97.5%" in owner_report_markdown(facts)
    assert [row["version"] for row in tables(owner_report_markdown(facts))[0]] == ["2"]


def test_a_report_that_was_sent_is_not_changed(engine: Engine) -> None:
    put_pair(engine)
    written(engine, days(engine, MONDAY, 1, MIXED))
    (report,) = list_owner_reports(engine, Scope("fib_rsi"))

    with pytest.raises(InvariantRefused), transaction(engine) as session:
        session.get_one(OwnerReport, report.id).sentence = "all is well"
    with pytest.raises(InvariantRefused), transaction(engine) as session:
        session.delete(session.get_one(OwnerReport, report.id))
