"""The nightly comparison: what it stores and the table it shows."""

from sqlalchemy import Engine

from flows.compare import as_markdown, nightly_comparison
from strategy_core.domain.lifecycle import Status
from strategy_core.store import outcomes
from strategy_core.store.engine import reading
from tests.builders import DAY, MONDAY, put_day, put_version
from tests.flows.conftest import Clock


def test_a_night_stores_one_report_per_challenger_and_shows_its_figures(engine: Engine, at: Clock) -> None:
    put_version(engine, "v1", Status.ACTIVE)
    put_version(engine, "v2")
    for day in (MONDAY, MONDAY + DAY):
        put_day(engine, day, {"v1": "buy", "v2": "sell"}, {"v1": 0.5, "v2": -0.25}, signal_hours=[3, 9])
    at(MONDAY + 3 * DAY)

    state = nightly_comparison.fn(days=5)

    assert state.message == "compared fib_rsi v2"
    with reading(engine) as session:
        reports = outcomes.find_reports(session, "fib_rsi")
    assert [report.shadow_version for report in reports] == ["v2"]
    header, _, row = as_markdown(reports).splitlines()
    shown = dict(zip(header.split(" | "), row.split(" | "), strict=True))
    assert shown["R per slot, shadow - active (95 %)"] == "-0.750 (-0.750 to -0.750)"
    assert shown["divergence"] == "100.0 %"
    assert shown["profit factor"] == "0.00"
    assert "4 (0 open)" in row


def test_without_a_challenger_there_is_nothing_to_compare(engine: Engine, at: Clock) -> None:
    put_version(engine, "v1", Status.ACTIVE)

    assert (nightly_comparison.fn().message or "").startswith("nothing to compare")
