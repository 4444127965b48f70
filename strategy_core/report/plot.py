"""The pictures of reports: equity, divergence, difference, harm, and the share of users; drawn from figures alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import ceil, floor
from xml.etree import ElementTree as ET

import numpy as np
import pandas as pd

from strategy_core.domain.arrays import FloatArray
from strategy_core.domain.comparison import Comparison
from strategy_core.report.strokes import (
    BLUE,
    GRID,
    INK,
    ORANGE,
    RED,
    WIDTH,
    canvas,
    decimals_of,
    legend,
    line,
    picture,
    round_ticks,
    text,
    time_frame,
)
from strategy_core.services.curves import Day
from strategy_core.services.exposure import Served
from strategy_core.services.report import HarmPath

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


def share_svg(title: str, shares: Sequence[Served], *, start: datetime, end: datetime, ended: str = "") -> str:
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
