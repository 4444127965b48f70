"""The picture of equity curves: an SVG that any reader of XML takes, with every point in its place."""

from datetime import UTC, datetime, timedelta
from xml.etree import ElementTree as ET

import numpy as np
import pandas as pd
import pytest

from strategy_core.report.charts import MOST_POINTS, Curve, equity_svg

START = datetime(2026, 3, 2, tzinfo=UTC)
END = START + timedelta(days=30)
SVG = "{http://www.w3.org/2000/svg}"


def curve(*values: float, name: str = "shadow v2") -> Curve:
    return Curve(name, pd.date_range(START, END, periods=len(values)), np.array(values))


def drawn(shadow: Curve, active: Curve, title: str = "fib_rsi", *, end: datetime = END) -> ET.Element:
    return ET.fromstring(equity_svg(title, shadow, active, start=START, end=end))


def points(line: ET.Element) -> list[tuple[float, float]]:
    pairs = (pair.split(",") for pair in line.attrib["points"].split())
    return [(float(x), float(y)) for x, y in pairs]


def words(svg: ET.Element) -> list[str]:
    return [label.text or "" for label in svg.iter(f"{SVG}text")]


def test_each_value_is_a_point_on_the_scale_that_the_ticks_show() -> None:
    svg = drawn(curve(0.0, 4.0, -2.0), curve(0.0, 1.0))

    shadow, active = (points(line) for line in svg.iter(f"{SVG}polyline"))
    ticks = {label.text: float(label.attrib["y"]) - 4 for label in svg.iter(f"{SVG}text")}
    assert [y for _, y in shadow] == [ticks["0"], ticks["4"], ticks["-2"]]
    assert active[0] == shadow[0]
    assert active[-1][0] == shadow[-1][0] == 2 * shadow[1][0] - shadow[0][0]


def test_the_curves_differ_in_more_than_their_colour_and_the_legend_says_which_is_which() -> None:
    svg = drawn(curve(0.0, 4.0), curve(0.0, -1.5, name="active v1"))

    shadow, active = svg.iter(f"{SVG}polyline")
    assert "stroke-dasharray" not in shadow.attrib
    assert "stroke-dasharray" in active.attrib
    assert {"shadow v2: +4.00 R", "active v1: -1.50 R", "UTC"} <= set(words(svg))


def test_names_are_text_whatever_they_hold() -> None:
    svg = drawn(curve(0.0, name="</svg><script>"), curve(0.0), "a & <b>")

    assert words(svg)[0] == "a & <b>"
    assert "</svg><script>: +0.00 R" in words(svg)
    assert not list(svg.iter(f"{SVG}script"))


def test_a_long_curve_keeps_its_ends_and_no_more_points_than_there_is_room_for() -> None:
    svg = drawn(curve(*np.linspace(0, 5, 5000)), curve(0.0))

    shadow, _ = (points(line) for line in svg.iter(f"{SVG}polyline"))
    short = points(next(drawn(curve(0.0, 5.0), curve(0.0)).iter(f"{SVG}polyline")))
    assert len(shadow) == MOST_POINTS
    assert [shadow[0], shadow[-1]] == short


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, {"0.0", "0.2"}),
        (0.004, {"0.000", "0.001", "0.004"}),
        (-0.35, {"-0.4", "0.0", "0.1"}),
        (730.0, {"0", "200", "800"}),
    ],
)
def test_ticks_are_round_and_span_zero_and_every_value(value: float, shown: set[str]) -> None:
    assert shown <= set(words(drawn(curve(0.0, value), curve(0.0))))


def test_a_short_period_shows_hours() -> None:
    shown = words(drawn(curve(0.0), curve(0.0), end=START + timedelta(days=1)))

    assert {"03-02 00:00", "03-03 00:00"} <= set(shown)
