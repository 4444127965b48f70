"""What pictures are made of: a canvas, lines, words and axes, as SVG that needs no other file; never what is drawn."""

from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from math import ceil, floor, log10
from xml.etree import ElementTree as ET

import numpy as np
import pandas as pd

from strategy_core.domain.arrays import FloatArray
from strategy_core.domain.calibration import CONFIDENCE, Calibration
from strategy_core.domain.comparison import Comparison
from strategy_core.services.history import Day, ServedSpan
from strategy_core.services.reports import HarmPath

INK, GRID, SOFT = "#222222", "#dddddd", "#666666"
BLUE, ORANGE, RED, GREEN = "#1b4f9c", "#b3470b", "#b01020", "#2a7a3b"
WIDTH = 880
_LONGEST_TITLE, _LONGEST_NAME = 100, 40  # characters: what there is room for


@dataclass(frozen=True, slots=True)
class Frame:
    """Where on a picture values stand: the area that curves are in, and the two scales, which give pixels."""

    svg: ET.Element
    left: float
    right: float
    top: float
    bottom: float
    across: Callable[[Sequence[datetime] | pd.DatetimeIndex], FloatArray]
    up: Callable[[Sequence[float] | FloatArray], FloatArray]

    def curve(
        self, times: Sequence[datetime] | pd.DatetimeIndex, values: Sequence[float] | FloatArray, **look: str
    ) -> None:
        """Draw a line through the points."""
        points = _points(self.across(times), self.up(values))
        ET.SubElement(self.svg, "polyline", {"points": points, "fill": "none", "stroke-linejoin": "round", **look})

    def band(self, times: Sequence[datetime], low: Sequence[float], high: Sequence[float], **look: str) -> None:
        """Fill what lies between two curves over the same times."""
        x = self.across(times)
        there, back = _points(x, self.up(high)), _points(x[::-1], self.up(low)[::-1])
        ET.SubElement(self.svg, "polygon", {"points": f"{there} {back}", "stroke": "none", **look})

    def level(self, value: float, words: str, **look: str) -> None:
        """Draw a line across the whole area, and write what it means above its right end."""
        (y,) = self.up([value])
        line(self.svg, self.left, y, self.right, y, **look)
        text(self.svg, self.right - 4, y - 5, words, anchor="end", size=12, fill=look.get("stroke", INK))


def time_frame(
    title: str,
    start: datetime,
    end: datetime,
    *,
    height: int,
    ticks: FloatArray,
    shown: Callable[[float], str],
    unit: str,
    head: int = 44,
) -> Frame:
    """Return a picture with a time axis and a value axis, on which nothing is drawn yet.

    Args:
        ticks: round values, ascending, that span all that will be drawn; at least two.
        shown: how a tick is written.
        unit: what the values are.
        head: pixels above the area, for the title and a legend.
    """
    svg = canvas(WIDTH, height)
    left, right, top, bottom = 70.0, WIDTH - 50.0, float(head), height - 60.0
    seconds = max((end - start).total_seconds(), 1.0)

    def across(times: Sequence[datetime] | pd.DatetimeIndex) -> FloatArray:
        passed = (pd.DatetimeIndex(list(times)) - pd.Timestamp(start)) / pd.Timedelta(seconds=seconds)
        share: FloatArray = passed.to_numpy(dtype=np.float64)
        return left + share * (right - left)

    def up(values: Sequence[float] | FloatArray) -> FloatArray:
        share: FloatArray = (np.asarray(values, np.float64) - ticks[0]) / (ticks[-1] - ticks[0])
        return bottom - share * (bottom - top)

    text(svg, left, 24, _cut(title, _LONGEST_TITLE), size=15)
    frame = Frame(svg, left, right, top, bottom, across, up)
    for tick, y in zip(ticks, up(ticks), strict=True):
        line(svg, left, y, right, y, stroke=INK if tick == 0 else GRID)
        text(svg, left - 8, y + 4, shown(float(tick)), anchor="end")
    label = text(svg, 18, (top + bottom) / 2, unit, anchor="middle")
    label.set("transform", f"rotate(-90 18 {(top + bottom) / 2:.1f})")
    _times_axis(frame, start, end)
    return frame


def legend(frame: Frame, y: float, entries: Sequence[tuple[str, dict[str, str]]]) -> None:
    """Say, beside a piece of each line, what it is; the entries share the width."""
    room = (frame.right - frame.left) / max(2, len(entries))
    for place, (name, look) in enumerate(entries):
        left = frame.left + place * room
        line(frame.svg, left, y - 4, left + 42, y - 4, **look)
        text(frame.svg, left + 50, y, _cut(name, _LONGEST_NAME))


def picture(svg: ET.Element) -> str:
    return ET.tostring(svg, encoding="unicode")


def as_image(svg: str, words: str) -> str:
    """Return Markdown that shows the picture itself, no file needed; *words* of ours stand for it if need be."""
    return f"![{words}](data:image/svg+xml;base64,{b64encode(svg.encode()).decode()})"


def canvas(width: int, height: int) -> ET.Element:
    """Return an empty white picture of that many pixels."""
    svg = ET.Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"0 0 {width} {height}",
            "width": str(width),
            "height": str(height),
            "font-family": "sans-serif",
            "font-size": "13",
            "fill": INK,
        },
    )
    ET.SubElement(svg, "rect", {"width": "100%", "height": "100%", "fill": "#ffffff"})
    return svg


def line(svg: ET.Element, x1: float, y1: float, x2: float, y2: float, **look: str) -> None:
    ends = {name: f"{value:.1f}" for name, value in zip(("x1", "y1", "x2", "y2"), (x1, y1, x2, y2), strict=True)}
    ET.SubElement(svg, "line", ends | look)


def text(
    svg: ET.Element, x: float, y: float, words: str, *, anchor: str = "start", size: int = 13, fill: str = INK
) -> ET.Element:
    place = {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor, "font-size": str(size)}
    label = ET.SubElement(svg, "text", place if fill == INK else place | {"fill": fill})
    label.text = "".join(char if char.isprintable() else " " for char in words)  # XML has no control characters
    return label


def round_ticks(low: float, high: float) -> FloatArray:
    """Return about five round values, 0 among them, that span *low* to *high*; low <= 0 <= high."""
    rough = (high - low or 1.0) / 5  # of nothing but zeros any scale will do
    size = 10.0 ** np.floor(np.log10(rough))
    step = size * next(multiple for multiple in (1, 2, 5, 10) if size * multiple >= rough * 0.999)
    first, last = np.floor(low / step), max(np.ceil(high / step), 1)
    ticks: FloatArray = np.arange(first, last + 1) * step
    return ticks


def decimals_of(ticks: FloatArray) -> int:
    """Return how many decimals tell neighbouring ticks apart."""
    return max(0, int(np.ceil(-np.log10(ticks[1] - ticks[0]) - 1e-6)))


def _times_axis(frame: Frame, start: datetime, end: datetime) -> None:
    times = pd.date_range(start, max(end, start + pd.Timedelta(seconds=1)), periods=6)
    form = "%Y-%m-%d" if times[1] - times[0] >= pd.Timedelta(days=1) else "%m-%d %H:%M"
    for time, x in zip(times, frame.across(times), strict=True):
        line(frame.svg, x, frame.bottom, x, frame.bottom + 5, stroke=INK)
        text(frame.svg, x, frame.bottom + 21, time.strftime(form), anchor="middle")
    text(frame.svg, (frame.left + frame.right) / 2, frame.bottom + 44, "UTC", anchor="middle", size=12)


def _points(x: FloatArray, y: FloatArray) -> str:
    return " ".join(f"{right:.1f},{down:.1f}" for right, down in zip(x, y, strict=True))


def _cut(words: str, most: int) -> str:
    return words if len(words) <= most else f"{words[: most - 1]}…"


MOST_POINTS = 800  # of a curve: more than there are pixels for
_LOOKS = (  # told apart without colour too
    {"stroke": BLUE, "stroke-width": "2.2"},
    {"stroke": ORANGE, "stroke-width": "2.2", "stroke-dasharray": "7 4"},
)
_LOW, _HIGH = 250, 340  # pixels
_LABEL = 44.0  # pixels that `100 %` takes, and some air
_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Curve:
    """Values over time.

    Attributes:
        name: in the legend.
        times: ascending; shape (points,), at least one.
        values: cumulative R; shape (points,), finite.
    """

    name: str
    times: pd.DatetimeIndex
    values: FloatArray


def equity_svg(title: str, canary: Curve, control: Curve, *, start: datetime, end: datetime) -> str:
    """Return a picture of the two curves over [start, end]: the canary's line whole, the other's dashed.

    Of a curve with more than `MOST_POINTS` as many are drawn, evenly spread, first and last among them.
    """
    lows, highs = zip(*((curve.values.min(), curve.values.max()) for curve in (canary, control)), strict=True)
    ticks = round_ticks(min(0.0, *lows), max(0.0, *highs))
    decimals = decimals_of(ticks)
    unit = "cumulative R, marked to market"
    frame = time_frame(
        title, start, end, height=_HIGH, ticks=ticks, shown=lambda tick: f"{tick:.{decimals}f}", unit=unit, head=66
    )
    legend(
        frame,
        50,
        [
            (f"{each.name}: {each.values[-1]:+.2f} R", look)
            for each, look in zip((canary, control), _LOOKS, strict=True)
        ],
    )
    for curve, look in zip((canary, control), _LOOKS, strict=True):
        kept = np.unique(np.linspace(0, len(curve.values) - 1, MOST_POINTS).round().astype(int))
        frame.curve(curve.times[kept], curve.values[kept], **look)
    return picture(frame.svg)


def divergence_svg(title: str, days: Sequence[Day], usual: float | None) -> str:
    """Return bars, one a day: on which share of its slots the two said different things; *usual* is the shadow's."""
    start, end = days[0].day, days[-1].day + _DAY
    ticks = np.linspace(0.0, 1.0, 5)
    frame = time_frame(
        title, start, end, height=_LOW, ticks=ticks, shown=lambda tick: f"{tick:.0%}", unit="slots unlike"
    )
    edges = frame.across([each.day for each in days]), frame.across([each.day + _DAY for each in days])
    tops = frame.up([each.unlike / each.slots for each in days])
    for left, right, top in zip(*edges, tops, strict=True):
        gap = min(2.0, (right - left) / 5)
        bar = {"x": left + gap / 2, "y": top, "width": right - left - gap, "height": frame.bottom - top}
        ET.SubElement(frame.svg, "rect", {name: f"{value:.1f}" for name, value in bar.items()} | {"fill": BLUE})
    if usual is not None:
        frame.level(usual, f"in shadow {usual:.0%}", stroke=ORANGE, **{"stroke-dasharray": "7 4", "stroke-width": "2"})
    return picture(frame.svg)


def difference_svg(title: str, days: Sequence[Day]) -> str:
    """Return the difference in R per slot to the end of each day, and its 95 % interval as a band."""
    known = [each for each in days if each.low is not None and each.high is not None]
    reach = [value for each in known[min(5, len(known) // 2) :] for value in (each.low, each.high) if value is not None]
    means = [each.mean for each in days]
    ticks = round_ticks(min(0.0, *means, *reach), max(0.0, *means, *reach))
    decimals = decimals_of(ticks)
    frame = time_frame(
        title,
        days[0].day,
        days[-1].day + _DAY,
        height=_LOW,
        ticks=ticks,
        shown=lambda tick: f"{tick:.{decimals}f}",
        unit="R per slot",
    )
    ends = [each.day + _DAY for each in known]
    low, high = (
        np.clip([value or 0.0 for value in side], ticks[0], ticks[-1])
        for side in ([each.low for each in known], [each.high for each in known])
    )
    if known:
        frame.band(ends, low.tolist(), high.tolist(), fill=BLUE, **{"fill-opacity": "0.18"})
    frame.curve([each.day + _DAY for each in days], means, **_LOOKS[0])
    return picture(frame.svg)


def regimes_svg(title: str, by_regime: Mapping[str, Comparison]) -> str:
    """Return the difference in R per slot of each regime, with its 95 % interval, one below the other."""
    shown = {name: one for name, one in sorted(by_regime.items()) if one.difference.mean is not None}
    spans = [(one.difference.mean or 0.0, one.difference.low, one.difference.high) for one in shown.values()]
    values = [value for span in spans for value in span if value is not None] or [0.0]
    ticks = round_ticks(min(0.0, *values, 0.0), max(0.0, *values, 0.0))
    left, right, top, row = 200.0, WIDTH - 190.0, 50.0, 30
    bottom = top + row * len(shown)
    svg = canvas(WIDTH, int(bottom) + 60)
    text(svg, 70, 24, title, size=15)

    def across(value: float) -> float:
        return left + float((value - ticks[0]) / (ticks[-1] - ticks[0])) * (right - left)

    decimals = decimals_of(ticks)
    for tick in ticks.tolist():
        line(svg, across(tick), top, across(tick), bottom, stroke=INK if tick == 0 else GRID)
        text(svg, across(tick), bottom + 20, f"{tick:.{decimals}f}", anchor="middle")
    text(svg, (left + right) / 2, bottom + 42, "R per slot", anchor="middle", size=12)
    for place, ((name, one), (mean, low, high)) in enumerate(zip(shown.items(), spans, strict=True)):
        y = top + (place + 0.5) * row
        text(svg, left - 10, y + 4, name.replace("_vol", " volatility").replace("/", ", "), anchor="end")
        if low is not None and high is not None:
            line(svg, across(low), y, across(high), y, stroke=BLUE, **{"stroke-width": "3"})
        ET.SubElement(svg, "circle", {"cx": f"{across(mean):.1f}", "cy": f"{y:.1f}", "r": "5", "fill": BLUE})
        text(svg, right + 14, y + 4, f"{mean:+.3f} R, {one.difference.n} slots", size=12)
    return picture(svg)


def harm_svg(title: str, path: HarmPath, *, start: datetime, end: datetime) -> str:
    """Return the e-process over time on a scale of powers of ten, against where it holds and where it rolls back."""
    lowest, highest = floor(min(0.0, *path.log_e)), ceil(max(path.limit, *path.log_e) + 0.2)
    step = max(1, ceil((highest - lowest) / 6))
    ticks = np.arange(floor(lowest / step) * step, highest + step, step, dtype=np.float64)
    frame = time_frame(title, start, end, height=_LOW + 30, ticks=ticks, shown=_power, unit="E, evidence of harm")
    thick = {"stroke-width": "2"}
    frame.level(path.limit, f"rolled back from {10**path.limit:.0f}", stroke=RED, **thick)
    frame.level(
        path.freeze_at, f"held from {10**path.freeze_at:g}", stroke=ORANGE, **thick, **{"stroke-dasharray": "7 4"}
    )
    times, values = _steps([start, *path.at], [0.0, *path.log_e], end)
    frame.curve(times, values, **_LOOKS[0])
    return picture(frame.svg)


def share_svg(title: str, shares: Sequence[ServedSpan], *, start: datetime, end: datetime, ended: str = "") -> str:
    """Return the share of users over time, from all that were *served*; *ended* says how it did, at its end."""
    ticks = np.linspace(0.0, 100.0, 5)
    frame = time_frame(title, start, end, height=_LOW, ticks=ticks, shown=lambda tick: f"{tick:g} %", unit="of users")
    for one in shares:
        since, until = frame.across([one.since, one.until])
        (top,) = frame.up([one.percent])
        area = {"x": since, "y": top, "width": max(1.0, until - since), "height": frame.bottom - top}
        ET.SubElement(
            frame.svg,
            "rect",
            {name: f"{value:.1f}" for name, value in area.items()} | {"fill": BLUE, "fill-opacity": "0.25"},
        )
        line(frame.svg, since, top, max(until, since + 1), top, **_LOOKS[0])
    edges = frame.across([one.since for one in shares]), frame.across([one.until for one in shares])
    for place in _apart(*edges):
        (top,) = frame.up([shares[place].percent])
        text(frame.svg, edges[0][place] + 3, max(top - 5, frame.top + 12), f"{shares[place].percent:g} %", size=12)
    if ended:
        (x,) = frame.across([end])
        line(frame.svg, x, frame.top, x, frame.bottom, stroke=RED, **{"stroke-width": "3"})
        text(frame.svg, x - 6, frame.top + 12, ended, anchor="end", size=12, fill=RED)
    return picture(frame.svg)


def _apart(left: FloatArray, right: FloatArray) -> list[int]:
    """Return which of the spans can have a label of their own: the widest first, none upon another."""
    chosen: list[int] = []
    for place in np.argsort(left - right).tolist():
        if all(abs(left[place] - left[other]) >= _LABEL for other in chosen):
            chosen.append(place)
    return chosen


def _steps(times: Sequence[datetime], values: Sequence[float], end: datetime) -> tuple[list[datetime], list[float]]:
    """Return the corners of a curve whose values stand until the next, the last one until *end*."""
    corners = [(times[0], values[0])]
    for at, value in zip(times[1:], values[1:], strict=True):
        corners += [(at, corners[-1][1]), (at, value)]
    corners.append((max(end, corners[-1][0]), corners[-1][1]))
    return [at for at, _ in corners], [value for _, value in corners]


def _power(log10: float) -> str:
    if log10 < -3 or log10 > 5:
        return f"1e{log10:.0f}"
    return f"{10**log10:g}"


TOLERATED = 0.01  # of healthy ramps rolled back

_WIDTH, _LEFT, _RIGHT = 960, 230, 800
_ROW, _PLOT, _HEAD, _FOOT = 26, 300, 70, 60
_CALIBRATION_STYLES = (  # told apart without colour too
    ("#1b4f9c", ""),
    ("#b3470b", "7 4"),
    ("#2a7a3b", "2 3"),
    ("#7a2a7a", "10 3 2 3"),
    ("#777777", "6 2 2 2 2 2"),
    ("#b8860b", "14 4"),
    ("#00767a", "5 2"),
)


def calibration_svg(title: str, calibrations: Sequence[Calibration]) -> str:
    """Return a picture of the harmful scenarios' rollbacks over slots and of the healthy ones' share, as are given."""
    harmful = [one for one in calibrations if not one.healthy]
    healthy = [one for one in calibrations if one.healthy]
    upper = _HEAD + _PLOT + _FOOT if harmful else 0
    svg = canvas(_WIDTH, upper + (_HEAD + _ROW * len(healthy) + _FOOT if healthy else 0))
    text(svg, 20, 24, title, size=15)
    if harmful:
        _draw_harmful(svg, harmful)
    if healthy:
        _draw_healthy(svg, healthy, upper)
    return ET.tostring(svg, encoding="unicode")


def _draw_harmful(svg: ET.Element, harmful: Sequence[Calibration]) -> None:
    """Draw, of each scenario, the share rolled back by each slot since its fault; slots on a scale of powers of ten."""
    left, bottom = 70, _HEAD + _PLOT
    decades = max(1, ceil(log10(max([10, *(one.delays[-1] for one in harmful if one.delays)]))))

    def across(slots: float) -> float:
        return left + log10(max(slots, 1.0)) / decades * (_RIGHT - 120 - left)

    def up(share: float) -> float:
        return bottom - share * _PLOT

    text(svg, left, 54, "harmful canaries: share rolled back by slots since the fault began")
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        line(svg, left, up(share), across(10**decades), up(share), stroke=INK if share == 0 else GRID)
        text(svg, left - 8, up(share) + 4, f"{share:.0%}", anchor="end")
    for power in range(decades + 1):
        line(svg, across(10**power), bottom, across(10**power), bottom + 5, stroke=INK)
        text(svg, across(10**power), bottom + 21, f"{10**power:,}", anchor="middle")
    text(svg, (left + across(10**decades)) / 2, bottom + 42, "slots; a short upright line: the bound", anchor="middle")
    for place, (one, (colour, dashes)) in enumerate(zip(harmful, _repeated(len(harmful)), strict=True)):
        look = {"stroke": colour, "stroke-width": "2.2", "stroke-dasharray": dashes or "none"}
        counted = one.ramps - one.before_fault
        steps = [(1.0, 0.0)]
        for count, delay in enumerate(one.delays, start=1):
            steps += [(delay, steps[-1][1]), (delay, count / counted)]
        steps.append((10**decades, steps[-1][1]))
        points = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in _thinned(steps))
        ET.SubElement(svg, "polyline", {"points": points, "fill": "none", "stroke-linejoin": "round", **look})
        if one.bound_slots is not None and one.bound_slots <= 10**decades:
            x = across(one.bound_slots)
            line(svg, x, up(0.43), x, up(0.57), stroke=colour, **{"stroke-width": "4"})
        y = _HEAD + 10 + place * 36
        line(svg, _RIGHT - 100, y, _RIGHT - 60, y, **look)
        text(svg, _RIGHT - 52, y + 4, one.scenario)
        text(svg, _RIGHT - 52, y + 19, _told(one), size=11)


def _draw_healthy(svg: ET.Element, healthy: Sequence[Calibration], top: int) -> None:
    """Draw each scenario's share rolled back as a dot, and a line up to its limit; against what is tolerated."""
    first, bottom = top + _HEAD, top + _HEAD + _ROW * len(healthy)
    ticks: list[float] = round_ticks(0.0, max(2 * TOLERATED, *(one.rolled_back_limit for one in healthy))).tolist()

    def across(share: float) -> float:
        return _LEFT + share / ticks[-1] * (_RIGHT - _LEFT)

    text(svg, 70, top + 40, f"healthy canaries: share rolled back, and its upper {CONFIDENCE:.0%} limit")
    for share in ticks:
        line(svg, across(share), first, across(share), bottom, stroke=GRID)
        text(svg, across(share), bottom + 18, f"{100 * share:.3g}%", anchor="middle")
    line(svg, across(TOLERATED), first - 6, across(TOLERATED), bottom, stroke="#b3470b", **{"stroke-dasharray": "7 4"})
    text(svg, across(TOLERATED), first - 10, f"{TOLERATED:.0%}", anchor="middle")
    for place, one in enumerate(healthy):
        y = first + (place + 0.5) * _ROW
        text(svg, _LEFT - 10, y + 4, one.scenario, anchor="end")
        line(svg, across(one.rolled_back), y, across(one.rolled_back_limit), y, stroke=INK, **{"stroke-width": "2"})
        ET.SubElement(svg, "circle", {"cx": f"{across(one.rolled_back):.1f}", "cy": f"{y:.1f}", "r": "4"})
        limit = f"{one.rolled_back:.2%}, at most {one.rolled_back_limit:.2%}"
        text(svg, _RIGHT + 10, y + 4, limit, size=11)


def _told(one: Calibration) -> str:
    half = "half never" if one.median_slots is None else f"half by {one.median_slots:,.0f}"
    return half if one.bound_slots is None else f"{half}; the bound is {one.bound_slots:,.0f}"


def _repeated(count: int) -> list[tuple[str, str]]:
    return [_CALIBRATION_STYLES[n % len(_CALIBRATION_STYLES)] for n in range(count)]


def _thinned(steps: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Leave out what moves a curve by less than a pixel's share upwards."""
    kept = [steps[0]]
    for before, after in pairwise(steps):
        if after[1] - kept[-1][1] >= 1 / _PLOT:
            kept += [(before[0], kept[-1][1]), after]
    return [*kept, steps[-1]]
