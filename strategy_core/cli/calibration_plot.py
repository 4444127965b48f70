"""What gates did to simulated ramps, as one picture that needs no other file: SVG from figures already made."""

from collections.abc import Sequence
from itertools import pairwise
from math import ceil, log10
from xml.etree import ElementTree as ET

from strategy_core.domain.calibration import CONFIDENCE, Calibration
from strategy_core.report.strokes import GRID, INK, canvas, line, round_ticks, text

TOLERATED = 0.01  # of healthy ramps rolled back

_WIDTH, _LEFT, _RIGHT = 960, 230, 800
_ROW, _PLOT, _HEAD, _FOOT = 26, 300, 70, 60
_LOOKS = (  # told apart without colour too
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
    return [_LOOKS[n % len(_LOOKS)] for n in range(count)]


def _thinned(steps: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Leave out what moves a curve by less than a pixel's share upwards."""
    kept = [steps[0]]
    for before, after in pairwise(steps):
        if after[1] - kept[-1][1] >= 1 / _PLOT:
            kept += [(before[0], kept[-1][1]), after]
    return [*kept, steps[-1]]
