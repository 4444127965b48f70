"""What pictures are made of: a canvas, lines, words and axes, as SVG that needs no other file; never what is drawn."""

from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from xml.etree import ElementTree as ET

import numpy as np
import pandas as pd

from strategy_core.domain.arrays import FloatArray

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
