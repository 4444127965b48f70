"""Equity curves as a picture, and the strokes that pictures are made of: SVG; never where values come from."""

from base64 import b64encode
from dataclasses import dataclass
from datetime import datetime
from xml.etree import ElementTree as ET

import numpy as np
import pandas as pd

from strategy_core.domain.arrays import FloatArray

MOST_POINTS = 800  # of a curve: more than there are pixels for

_WIDTH, _HEIGHT = 880, 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 830, 70, 320  # of the area the curves are in
_LOOKS = (  # told apart without colour too
    {"stroke": "#1b4f9c", "stroke-width": "2.2"},
    {"stroke": "#b3470b", "stroke-width": "2.2", "stroke-dasharray": "7 4"},
)
INK, GRID = "#222222", "#dddddd"


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


def equity_svg(title: str, shadow: Curve, active: Curve, *, start: datetime, end: datetime) -> str:
    """Return a picture of the two curves over [start, end]: the shadow's line whole, the active's dashed.

    Of a curve with more than `MOST_POINTS` as many are drawn, evenly spread, first and last among them.
    """
    lows, highs = zip(*((curve.values.min(), curve.values.max()) for curve in (shadow, active)), strict=True)
    ticks = round_ticks(min(0.0, *lows), max(0.0, *highs))
    svg = canvas(_WIDTH, _HEIGHT)
    text(svg, _LEFT, 24, title, size=15)
    _values_axis(svg, ticks)
    _times_axis(svg, start, end)
    for place, (curve, look) in enumerate(zip((shadow, active), _LOOKS, strict=True)):
        kept = np.unique(np.linspace(0, len(curve.values) - 1, MOST_POINTS).round().astype(int))
        x, y = _across(curve.times[kept], start, end), _up(curve.values[kept], ticks)
        points = " ".join(f"{right:.1f},{down:.1f}" for right, down in zip(x, y, strict=True))
        ET.SubElement(svg, "polyline", {"points": points, "fill": "none", "stroke-linejoin": "round", **look})
        left = _LEFT + place * 380
        line(svg, left, 46, left + 42, 46, **look)
        text(svg, left + 50, 50, f"{curve.name}: {curve.values[-1]:+.2f} R")
    return ET.tostring(svg, encoding="unicode")


def as_image(svg: str, text: str) -> str:
    """Return Markdown that shows the picture itself, no file needed; *text* stands for it where it cannot be shown."""
    return f"![{text}](data:image/svg+xml;base64,{b64encode(svg.encode()).decode()})"


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


def text(svg: ET.Element, x: float, y: float, words: str, *, anchor: str = "start", size: int = 13) -> ET.Element:
    label = ET.SubElement(
        svg, "text", {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor, "font-size": str(size)}
    )
    label.text = words
    return label


def _values_axis(svg: ET.Element, ticks: FloatArray) -> None:
    decimals = max(0, int(np.ceil(-np.log10(ticks[1] - ticks[0]) - 1e-6)))
    for tick, y in zip(ticks, _up(ticks, ticks), strict=True):
        line(svg, _LEFT, y, _RIGHT, y, stroke=INK if tick == 0 else GRID)
        text(svg, _LEFT - 8, y + 4, f"{tick:.{decimals}f}", anchor="end")
    middle = (_TOP + _BOTTOM) / 2
    label = text(svg, 18, middle, "cumulative R, marked to market", anchor="middle")
    label.set("transform", f"rotate(-90 18 {middle:.1f})")


def _times_axis(svg: ET.Element, start: datetime, end: datetime) -> None:
    times = pd.date_range(start, end, periods=6)
    form = "%Y-%m-%d" if times[1] - times[0] >= pd.Timedelta(days=1) else "%m-%d %H:%M"
    for time, x in zip(times, _across(times, start, end), strict=True):
        line(svg, x, _BOTTOM, x, _BOTTOM + 5, stroke=INK)
        text(svg, x, _BOTTOM + 21, time.strftime(form), anchor="middle")
    text(svg, (_LEFT + _RIGHT) / 2, _BOTTOM + 44, "candle (UTC)", anchor="middle")


def round_ticks(low: float, high: float) -> FloatArray:
    """Return about five round values, 0 among them, that span *low* to *high*; low <= 0 <= high."""
    rough = (high - low or 1.0) / 5  # of nothing but zeros any scale will do
    size = 10.0 ** np.floor(np.log10(rough))
    step = size * next(multiple for multiple in (1, 2, 5, 10) if size * multiple >= rough * 0.999)
    first, last = np.floor(low / step), max(np.ceil(high / step), 1)
    ticks: FloatArray = np.arange(first, last + 1) * step
    return ticks


def _across(times: pd.DatetimeIndex, start: datetime, end: datetime) -> FloatArray:
    share: FloatArray = ((times - pd.Timestamp(start)) / (end - start)).to_numpy(dtype=np.float64)
    return _LEFT + share * (_RIGHT - _LEFT)


def _up(values: FloatArray, ticks: FloatArray) -> FloatArray:
    share: FloatArray = (values - ticks[0]) / (ticks[-1] - ticks[0])
    return _BOTTOM - share * (_BOTTOM - _TOP)
