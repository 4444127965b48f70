"""The nightly comparison: what it stores, and what of it is shown."""

from sqlalchemy import Engine

from flows.compare import nightly_comparison
from strategy_core.domain.lifecycle import Status
from strategy_core.report.comparison import comparisons_markdown
from strategy_core.services.history import comparison_curves
from strategy_core.store import outcomes
from strategy_core.store.engine import reading, transaction
from tests.builders import DAY, MONDAY, put_day, put_version
from tests.flows.conftest import Clock
from tests.report.reading import pictures, tables, words


def test_a_night_stores_one_report_per_challenger_and_shows_its_figures(engine: Engine, at: Clock) -> None:
    put_version(engine, "v1", Status.ACTIVE)
    put_version(engine, "v2")
    for day in (MONDAY, MONDAY + DAY):
        put_day(engine, day, {"v1": "buy", "v2": "sell"}, {"v1": 0.5, "v2": -0.25}, signal_hours=[3, 9])
    elsewhere = {"strategy_name": "fib_rsi", "version": "v2", "symbol": "TIN", "timestamp": MONDAY + DAY, "r": 100.0}
    with transaction(engine) as session:
        outcomes.mark_equity(session, [elsewhere])
    at(MONDAY + 3 * DAY)

    state = nightly_comparison.fn(days=5)

    assert state.message == "compared fib_rsi v2"
    with reading(engine) as session:
        reports = outcomes.find_reports(session, "fib_rsi")
        shown = comparisons_markdown([comparison_curves(session, report) for report in reports])
    assert [report.shadow_version for report in reports] == ["v2"]
    (summary,) = tables(shown)[0]
    assert summary["R per slot, difference (95 %)"] == "-0.750 (-0.750 to -0.750)"
    assert summary["divergence"] == "100.0 %"
    assert [row["profit factor"] for row in tables(shown)[1]] == ["0", "–"]
    difference, equity, divergence, *_ = pictures(shown)
    assert {"v2: -1.00 R", "v1: +2.00 R"} <= words(equity), "of the symbols that they share"
    assert "Divergence by day: share of slots on which the versions differ" in words(divergence)
    assert "R per slot" in words(difference)


def test_without_a_challenger_there_is_nothing_to_compare(engine: Engine, at: Clock) -> None:
    put_version(engine, "v1", Status.ACTIVE)

    assert (nightly_comparison.fn().message or "").startswith("no comparison: ")
