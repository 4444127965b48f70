"""The pictures of a rollout: every figure in its place, and levels where the plan has them."""

from datetime import UTC, datetime, timedelta
from xml.etree import ElementTree as ET

import pytest

from strategy_core.domain.comparison import Comparison
from strategy_core.report.charts import difference_svg, divergence_svg, harm_svg, regimes_svg, share_svg
from strategy_core.services.history import Day, ServedSpan
from strategy_core.services.reports import HarmPath
from tests.report.reading import words

START = datetime(2026, 3, 2, tzinfo=UTC)
DAY = timedelta(days=1)
SVG = "{http://www.w3.org/2000/svg}"


def day(number: int, *, unlike: int = 1, mean: float = 0.1, reach: float | None = 0.2) -> Day:
    low, high = (None, None) if reach is None else (mean - reach, mean + reach)
    return Day(START + number * DAY, 4, unlike, 1.0, 0.5, mean, low, high)


def ticks(svg: ET.Element) -> dict[str, float]:
    """Return where the value axis has what, in pixels from above."""
    labels = (each for each in svg.iter(f"{SVG}text") if each.attrib["text-anchor"] == "end")
    return {each.text or "": float(each.attrib["y"]) - 4 for each in labels}


def corners(svg: ET.Element) -> list[tuple[float, float]]:
    (curve,) = svg.iter(f"{SVG}polyline")
    pairs = (pair.split(",") for pair in curve.attrib["points"].split())
    return [(float(x), float(y)) for x, y in pairs]


def test_harm_stands_on_a_scale_of_powers_of_ten_and_steps() -> None:
    path = HarmPath((START + DAY, START + 2 * DAY), (1.0, 3.0), limit=2.0969, freeze_at=1.0)

    svg = ET.fromstring(harm_svg("Harm", path, start=START, end=START + 4 * DAY))

    scale = ticks(svg)
    heights = [y for _, y in corners(svg)]
    assert heights[0] == scale["1"], "E begins at 1"
    assert heights[1:3] == [scale["1"], scale["10"]], "a value stands until the next"
    assert heights[-1] == heights[-2] == scale["1000"]
    assert {"rolled back from 125", "held from 10"} <= words(svg)


@pytest.mark.parametrize("log_e", [0.0, -40.0, 60.0])
def test_harm_of_any_size_has_a_scale_that_can_be_read(log_e: float) -> None:
    path = HarmPath((START + DAY,), (log_e,), limit=2.0969, freeze_at=1.0)

    svg = ET.fromstring(harm_svg("Harm", path, start=START, end=START + 4 * DAY))

    assert 3 <= len([label for label in ticks(svg) if label[0] == "1" or label.startswith("0.")]) <= 9
    assert all(0 < y < 300 for _, y in corners(svg))


def test_divergence_is_a_bar_a_day_beside_the_shadows_share() -> None:
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


def test_one_day_alone_has_no_interval_to_draw() -> None:
    svg = ET.fromstring(difference_svg("Difference", [day(0, reach=None)]))

    assert list(svg.iter(f"{SVG}polygon")) == []


def test_the_share_of_users_steps_and_says_how_it_ended() -> None:
    shares = [ServedSpan(START, START + DAY, 5.0), ServedSpan(START + DAY, START + 3 * DAY, 100.0)]

    svg = ET.fromstring(share_svg("Users", shares, start=START, end=START + 3 * DAY, ended="rolled back"))

    areas = [each for each in svg.iter(f"{SVG}rect") if "x" in each.attrib]
    assert [float(area.attrib["height"]) for area in areas] == pytest.approx([7.3, 146.0], abs=0.1)
    assert {"5 %", "100 %", "rolled back"} <= words(svg)


def test_steps_that_are_too_close_share_no_label() -> None:
    minute = timedelta(minutes=1)
    shares = [ServedSpan(START + n * minute, START + (n + 1) * minute, float(n + 1)) for n in range(30)]
    shares.append(ServedSpan(START + 30 * minute, START + 60 * DAY, 40.0))

    svg = ET.fromstring(share_svg("Users", shares, start=START, end=START + 60 * DAY))

    assert {f"{n} %" for n in range(1, 31)} & words(svg) - {"25 %"} == set()
    assert "40 %" in words(svg)


def test_regimes_stand_below_each_other_with_their_intervals() -> None:
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
