"""The nightly comparison: what it stores, and the table and the curves it shows."""

from base64 import b64decode
from xml.etree import ElementTree as ET

from sqlalchemy import Engine

from flows.compare import as_markdown, nightly_comparison, picture
from strategy_core.domain.lifecycle import Status
from strategy_core.store import outcomes
from strategy_core.store.engine import reading, transaction
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


def test_the_picture_has_both_curves_from_zero_over_the_symbols_they_share(engine: Engine, at: Clock) -> None:
    put_version(engine, "v1", Status.ACTIVE)
    put_version(engine, "v2")
    for day in (MONDAY, MONDAY + DAY):
        put_day(engine, day, {"v1": "buy", "v2": "sell"}, {"v1": 0.5, "v2": -0.25}, signal_hours=[3, 9])
    elsewhere = {"strategy_name": "fib_rsi", "version": "v2", "symbol": "TIN", "timestamp": MONDAY + DAY, "r": 100.0}
    with transaction(engine) as session:
        outcomes.mark_equity(session, [elsewhere])
    at(MONDAY + 3 * DAY)
    nightly_comparison.fn(days=5)

    with reading(engine) as session:
        shown = picture(session, outcomes.find_reports(session, "fib_rsi")[0])

    assert shown.startswith("![fib_rsi: shadow v2 against active v1](data:image/svg+xml;base64,")
    svg = ET.fromstring(b64decode(shown.split("base64,")[1].rstrip(")")))
    words = {each.text for each in svg.iter("{http://www.w3.org/2000/svg}text")}
    assert {"shadow v2: -1.00 R", "active v1: +2.00 R"} <= words
    lines = [each.attrib["points"].split() for each in svg.iter("{http://www.w3.org/2000/svg}polyline")]
    assert [len(points) for points in lines] == [5, 5]
    assert lines[0][0] == lines[1][0]


def test_without_a_challenger_there_is_nothing_to_compare(engine: Engine, at: Clock) -> None:
    put_version(engine, "v1", Status.ACTIVE)

    assert (nightly_comparison.fn().message or "").startswith("nothing to compare")
