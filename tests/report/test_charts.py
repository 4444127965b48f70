"""Charts show each value at the right position, and the limits of the plan."""

from datetime import UTC, datetime, timedelta
from xml.etree import ElementTree as ET

import numpy as np
import pandas as pd
import pytest

from strategy_core.domain.comparison import Comparison
from strategy_core.report.charts import (
    MOST_POINTS,
    Curve,
    bound_svg,
    difference_svg,
    divergence_svg,
    equity_svg,
    harm_svg,
    positions_svg,
    regimes_svg,
    share_svg,
    training_svg,
)
from strategy_core.services.history import Day, ServedSpan
from strategy_core.services.reports import HarmPath
from strategy_core.services.whatif import BoundPath
from strategy_core.training.ppo import Year
from tests.report.reading import words

START = datetime(2026, 3, 2, tzinfo=UTC)
DAY = timedelta(days=1)
END = START + 30 * DAY
SVG = "{http://www.w3.org/2000/svg}"


def day(number: int, *, unlike: int = 1, mean: float = 0.1, reach: float | None = 0.2) -> Day:
    low, high = (None, None) if reach is None else (mean - reach, mean + reach)
    return Day(START + number * DAY, 4, unlike, 1.0, 0.5, mean, low, high)


def ticks(svg: ET.Element) -> dict[str, float]:
    """Return the labels of the value axis and their positions, in pixels from the top."""
    labels = (each for each in svg.iter(f"{SVG}text") if each.attrib["text-anchor"] == "end")
    return {each.text or "": float(each.attrib["y"]) - 4 for each in labels}


def points(line: ET.Element) -> list[tuple[float, float]]:
    pairs = (pair.split(",") for pair in line.attrib["points"].split())
    return [(float(x), float(y)) for x, y in pairs]


def corners(svg: ET.Element) -> list[tuple[float, float]]:
    (line,) = svg.iter(f"{SVG}polyline")
    return points(line)


def curve(*values: float, name: str = "shadow v2") -> Curve:
    return Curve(name, list(pd.date_range(START, END, periods=len(values))), values)


def equity(shadow: Curve, active: Curve, title: str = "fib_rsi", *, end: datetime = END) -> ET.Element:
    return ET.fromstring(equity_svg(title, shadow, active, start=START, end=end))


def test_each_equity_value_is_at_its_position_on_the_scale() -> None:
    svg = equity(curve(0.0, 4.0, -2.0), curve(0.0, 1.0))

    shadow, active = (points(line) for line in svg.iter(f"{SVG}polyline"))
    ticks = {label.text: float(label.attrib["y"]) - 4 for label in svg.iter(f"{SVG}text")}
    assert [y for _, y in shadow] == [ticks["0"], ticks["4"], ticks["-2"]]
    assert active[0] == shadow[0]
    assert active[-1][0] == shadow[-1][0] == 2 * shadow[1][0] - shadow[0][0]


def test_equity_curves_differ_in_dashes_and_the_legend_names_them() -> None:
    svg = equity(curve(0.0, 4.0), curve(0.0, -1.5, name="active v1"))

    shadow, active = svg.iter(f"{SVG}polyline")
    assert "stroke-dasharray" not in shadow.attrib
    assert "stroke-dasharray" in active.attrib
    assert {"shadow v2: +4.00 R", "active v1: -1.50 R", "UTC"} <= words(svg)


def test_names_are_escaped() -> None:
    svg = equity(curve(0.0, name="</svg><script>"), curve(0.0), "a & <b>")

    assert {"a & <b>", "</svg><script>: +0.00 R"} <= words(svg)
    assert not list(svg.iter(f"{SVG}script"))


def test_a_long_curve_is_thinned_and_keeps_its_ends() -> None:
    svg = equity(curve(*np.linspace(0, 5, 5000)), curve(0.0))

    shadow, _ = (points(line) for line in svg.iter(f"{SVG}polyline"))
    short = points(next(equity(curve(0.0, 5.0), curve(0.0)).iter(f"{SVG}polyline")))
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
    assert shown <= words(equity(curve(0.0, value), curve(0.0)))


def test_a_short_period_shows_hours() -> None:
    shown = words(equity(curve(0.0), curve(0.0), end=START + timedelta(days=1)))

    assert {"03-02 00:00", "03-03 00:00"} <= shown


def test_evidence_of_harm_is_a_step_curve_on_a_logarithmic_scale() -> None:
    path = HarmPath((START + DAY, START + 2 * DAY), (1.0, 3.0), limit=2.0969, freeze_at=1.0)

    svg = ET.fromstring(harm_svg("Harm", path, start=START, end=START + 4 * DAY))

    scale = ticks(svg)
    heights = [y for _, y in corners(svg)]
    assert heights[0] == scale["1"], "E begins at 1"
    assert heights[1:3] == [scale["1"], scale["10"]], "a value holds until the next"
    assert heights[-1] == heights[-2] == scale["1000"]
    assert {"rollback at 125", "hold at 10"} <= words(svg)


@pytest.mark.parametrize("log_e", [0.0, -40.0, 60.0])
def test_evidence_of_harm_has_a_readable_scale_at_any_size(log_e: float) -> None:
    path = HarmPath((START + DAY,), (log_e,), limit=2.0969, freeze_at=1.0)

    svg = ET.fromstring(harm_svg("Harm", path, start=START, end=START + 4 * DAY))

    assert 3 <= len([label for label in ticks(svg) if label[0] == "1" or label.startswith("0.")]) <= 9
    assert all(0 < y < 300 for _, y in corners(svg))


def test_divergence_is_one_bar_per_day_with_the_shadow_share_as_a_line() -> None:
    svg = ET.fromstring(divergence_svg("Divergence", [day(0, unlike=4), day(1, unlike=0), day(3, unlike=2)], 0.25))

    bars = [each for each in svg.iter(f"{SVG}rect") if "x" in each.attrib]
    heights = [float(bar.attrib["height"]) for bar in bars]
    assert heights[1] == 0.0
    assert heights[0] == pytest.approx(2 * heights[2], abs=0.2)
    assert float(bars[2].attrib["x"]) - float(bars[1].attrib["x"]) == pytest.approx(
        2 * (float(bars[1].attrib["x"]) - float(bars[0].attrib["x"])), abs=0.3
    )
    assert "in shadow 25%" in words(svg)


def test_the_difference_has_a_band_from_the_second_day_on() -> None:
    svg = ET.fromstring(difference_svg("Difference", [day(0, reach=None), day(1), day(2)]))

    (band,) = svg.iter(f"{SVG}polygon")
    assert len(band.attrib["points"].split()) == 4
    assert len(corners(svg)) == 3


def test_a_single_day_has_no_band() -> None:
    svg = ET.fromstring(difference_svg("Difference", [day(0, reach=None)]))

    assert list(svg.iter(f"{SVG}polygon")) == []


def test_the_share_of_users_has_steps_and_its_end() -> None:
    shares = [ServedSpan(START, START + DAY, 5.0), ServedSpan(START + DAY, START + 3 * DAY, 100.0)]

    svg = ET.fromstring(share_svg("Users", shares, start=START, end=START + 3 * DAY, ended="rolled back"))

    areas = [each for each in svg.iter(f"{SVG}rect") if "x" in each.attrib]
    assert [float(area.attrib["height"]) for area in areas] == pytest.approx([7.3, 146.0], abs=0.1)
    assert {"5 %", "100 %", "rolled back"} <= words(svg)


def test_open_positions_have_a_line_for_each_manager_and_a_mark() -> None:
    at = [START + number * DAY for number in range(3)]

    svg = ET.fromstring(
        positions_svg(
            "Positions", at, {"3.0.0": [10, 37, 0], "2.0.0": [1, 2, 1_200]}, marked_at=at[1], mark="rolled back"
        )
    )

    assert {"3.0.0: 37 at most, 0 at the end", "2.0.0: 1,200 at most, 1,200 at the end", "rolled back"} <= words(svg)
    lines = [each.attrib["points"].split() for each in svg.iter(f"{SVG}polyline")]
    heights = [[float(point.split(",")[1]) for point in line] for line in lines]
    assert heights[0][0] == heights[0][1] > heights[0][2] == heights[0][3]  # each number holds until the next candle
    assert heights[0][-1] == ticks(svg)["0"]


def test_steps_that_are_too_close_get_no_overlapping_labels() -> None:
    minute = timedelta(minutes=1)
    shares = [ServedSpan(START + n * minute, START + (n + 1) * minute, float(n + 1)) for n in range(30)]
    shares.append(ServedSpan(START + 30 * minute, START + 60 * DAY, 40.0))

    svg = ET.fromstring(share_svg("Users", shares, start=START, end=START + 60 * DAY))

    assert {f"{n} %" for n in range(1, 31)} & words(svg) - {"25 %"} == set()
    assert "40 %" in words(svg)


def test_each_regime_is_a_row_with_its_interval() -> None:
    arm = dict.fromkeys(("win_rate", "average_pnl", "expectancy", "profit_factor", "max_drawdown"))
    one = {
        "symbols": ["GOLD"],
        **dict.fromkeys(("candles_compared", "candles_excluded", "shadow_signal_count", "active_signal_count"), 5),
        **dict.fromkeys(("divergence_rate", "divergence_rate_all_candles"), 10.0),
        **dict.fromkeys(("slots", "pending_slots"), 5),
        "agreement": {},
        "shadow": {**arm, "trades": 5},
        "active": {**arm, "trades": 5},
        "difference": {"mean": 0.1, "low": -0.1, "high": 0.3, "n": 5, "days": 3},
        "by_regime": {},
    }
    unknown = one | {"difference": {"mean": None, "low": None, "high": None, "n": 0, "days": 0}}
    found = {
        "low_vol/up": Comparison.model_validate(one),
        "high_vol/down": Comparison.model_validate(one),
        "unknown": Comparison.model_validate(unknown),
    }

    svg = ET.fromstring(regimes_svg("By regime", found))

    assert {"low volatility, up", "high volatility, down", "+0.100 R, 5 slots"} <= words(svg)
    assert len(list(svg.iter(f"{SVG}circle"))) == 2


def test_a_bound_is_drawn_below_its_difference_and_against_the_limit_of_each_stage() -> None:
    at = [START + number * DAY for number in (1, 10, 20)]
    path = BoundPath(at, [0.02, 0.01, 0.0], [-0.9, -0.2, -0.1], [-0.15, -0.15, -0.1], with_shadow=False)

    svg = ET.fromstring(
        bound_svg("Difference", path, [(START, "5 %"), (at[-1], "10 %")], start=START, end=END, ended="rolled back")
    )

    mean, low, limit = (points(line) for line in svg.iter(f"{SVG}polyline"))
    assert [y for _, y in mean] == sorted(y for _, y in mean)
    assert len(low) == 2, "the first bound lies below the scale"
    assert low[-1][1] == limit[-1][1] == pytest.approx(ticks(svg)["-0.10"])
    assert limit[0][1] == limit[1][1] > limit[-1][1]
    assert {"difference: +0.000 R", "lower bound: -0.100 R", "limit of the stage: -0.100 R"} <= words(svg)
    assert {"5 %", "10 %", "rolled back"} <= words(svg)


YEARS = [
    Year(2025, True, 300, 0.6, 0.2, 0.05),
    Year(2026, True, 20, 0.6, 0.3, 0.1),
    Year(2026, False, 50, 0.5, 0.0, 0.1),
]


def test_a_training_shows_each_try_and_each_year_with_its_interval() -> None:
    svg = ET.fromstring(training_svg("Training", {7: [0.0, 0.1], 8: [0.1, 0.3]}, 8, YEARS))

    assert {"seed 7", "seed 8, kept", "2026 in sample", "2026 out of sample"} <= words(svg)
    assert {"+0.000 R, 50 signals", "dashed: end of the training"} <= words(svg)
    widths = [each.attrib["stroke-width"] for each in svg.iter(f"{SVG}polyline")]
    assert widths == ["1.2", "3.2"], "the kept one is on top"
    dots = [float(each.attrib["cx"]) for each in svg.iter(f"{SVG}circle")]
    assert dots[2] < dots[0] < dots[1]
    lines = [each for each in svg.iter(f"{SVG}line") if each.attrib.get("stroke-width") == "3"]
    reach = [float(each.attrib["x2"]) - float(each.attrib["x1"]) for each in lines]
    assert reach[1] == pytest.approx(2 * reach[0], abs=0.2)


def test_a_training_without_later_candles_and_with_many_tries_is_drawn() -> None:
    svg = ET.fromstring(training_svg("Training", {seed: [0.1] for seed in range(20)}, 12, YEARS[:1]))

    assert {"seed 12, kept", "2025 in sample"} <= words(svg)
    assert "seed 11" not in words(svg)
    assert "dashed: end of the training" not in words(svg)
