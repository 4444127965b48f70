"""Charts as self-contained SVG: equity, prices, divergence, paired difference, harm, users, calibration, training."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from math import ceil, floor, log10
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from strategy_core.domain.calibration import CONFIDENCE, Calibration
from strategy_core.domain.comparison import Comparison
from strategy_core.domain.gates.base import format_r
from strategy_core.domain.preview import NORMAL_95
from strategy_core.domain.race_simulation import Cell
from strategy_core.services.history import Day, Equity, ServedSpan
from strategy_core.services.reports import HarmPath
from strategy_core.services.whatif import BoundPath

if TYPE_CHECKING:
    from strategy_core.training.ppo import Year

Ticks = Sequence[tuple[float, str]]  # values on an axis and their labels
Style = Mapping[str, str]  # SVG attributes, with `_` for `-`
Interval = tuple[str, float, float | None, float | None, str]  # name, value, low, high, note

INK, GRID, SOFT = "#222222", "#dddddd", "#666666"
BLUE, ORANGE, RED, GREEN = "#1b4f9c", "#b3470b", "#b01020", "#2a7a3b"
LINE_STYLES: tuple[Style, ...] = (  # each has its own dashes, because some readers see no colours
    {"stroke": BLUE, "stroke_width": "2.2"},
    {"stroke": ORANGE, "stroke_width": "2.2", "stroke_dasharray": "7 4"},
    {"stroke": GREEN, "stroke_width": "2.2", "stroke_dasharray": "2 3"},
    {"stroke": "#7a2a7a", "stroke_width": "2.2", "stroke_dasharray": "10 3 2 3"},
    {"stroke": SOFT, "stroke_width": "2.2", "stroke_dasharray": "6 2 2 2 2 2"},
    {"stroke": "#b8860b", "stroke_width": "2.2", "stroke_dasharray": "14 4"},
    {"stroke": "#00767a", "stroke_width": "2.2", "stroke_dasharray": "5 2"},
)
_HOLD: Style = {"stroke": ORANGE, "stroke_width": "2", "stroke_dasharray": "7 4"}
_ROLLBACK: Style = {"stroke": RED, "stroke_width": "2"}

MOST_POINTS = 800  # per curve: about one per pixel
TOLERATED = 0.01  # share of healthy ramps that a plan may roll back
_WIDTH, _CALIBRATION_WIDTH = 880, 960  # pixels, like all sizes below
_LEFT = 70.0
_LOW, _MIDDLE, _HIGH = 250, 280, 340
_HEAD, _FOOT, _CURVES, _LEARNING, _ROW = 70, 60, 300, 220, 30
_LOWEST_BOUND = 4  # times the widest limit: lower bounds are cut off at the edge
_LABEL_WIDTH = 44.0
_LONGEST_TITLE, _LONGEST_NAME = 100, 40  # characters
_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Curve:
    """Values over time.

    Attributes:
        name: shown in the legend.
        times: ascending, at least one.
        values: cumulative R at each of the times, finite.
    """

    name: str
    times: Sequence[datetime]
    values: Sequence[float]


def equity_svg(
    title: str,
    canary: Curve,
    control: Curve,
    *,
    start: datetime,
    end: datetime,
    unit: str = "cumulative R, marked to market",
) -> str:
    """Return both equity curves over [start, end]: the canary's line is solid, the control's is dashed.

    At most `MOST_POINTS` of each curve are drawn, evenly spaced. The first and the last are always drawn.
    """
    curves = list(zip((canary, control), LINE_STYLES, strict=False))
    ticks = label_ticks(round_ticks([*canary.values, *control.values]))
    plot = _time_plot(title, start, end, height=_HIGH, ticks=ticks, unit=unit, top=66)
    for place, (curve, style) in enumerate(curves):
        x = plot.left + place * (plot.right - plot.left) / 2
        _draw_key(plot.svg, x, 50, f"{curve.name}: {format_r(curve.values[-1])}", style)
    for curve, style in curves:
        drawn = _evenly(len(curve.values))
        plot.curve([(curve.times[place].timestamp(), curve.values[place]) for place in drawn], style)
    return render(plot.svg)


def prices_svg(title: str, prices: Curve) -> str:
    """Return the closes of candles over time, at most `MOST_POINTS` of them, evenly spaced."""
    low, high = min(prices.values), max(prices.values)
    high = high if high > low else low + 1.0
    ticks = [(value, f"{value:.6g}") for value in (low + (high - low) * step / 4 for step in range(5))]
    plot = _time_plot(title, prices.times[0], prices.times[-1], height=_MIDDLE, ticks=ticks, unit="close")
    drawn = _evenly(len(prices.values))
    plot.curve([(prices.times[place].timestamp(), prices.values[place]) for place in drawn], LINE_STYLES[0])
    return render(plot.svg)


def _evenly(count: int) -> list[int]:
    """Return at most MOST_POINTS positions below *count*, the first and the last among them."""
    return sorted({round(number * (count - 1) / (MOST_POINTS - 1)) for number in range(MOST_POINTS)})


def divergence_svg(title: str, days: Sequence[Day], shadow_share: float | None) -> str:
    """Return one bar per day: the share of its slots on which the versions differ.

    Args:
        shadow_share: the share on which they differed in shadow, drawn as a dashed line.
    """
    ticks = [(share, f"{share:.0%}") for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    plot = _time_plot(title, days[0].day, days[-1].day + _DAY, height=_LOW, ticks=ticks, unit="share of slots")
    for day in days:
        plot.bar(day.day.timestamp(), (day.day + _DAY).timestamp(), day.unlike / day.slots, gap=2.0, fill=BLUE)
    if shadow_share is not None:
        plot.level(shadow_share, f"in shadow {shadow_share:.0%}", _HOLD)
    return render(plot.svg)


def difference_svg(title: str, days: Sequence[Day]) -> str:
    """Return the difference in R per slot up to the end of each day, and its 95 % interval as a band."""
    bounds = [((day.day + _DAY).timestamp(), day.low, day.high) for day in days]
    band = [(time, low, high) for time, low, high in bounds if low is not None and high is not None]
    # the first intervals are so wide that they would flatten the curve: they are cut off at the edges
    later = [value for _, low, high in band[min(max(5, len(band) // 10), len(band) // 2) :] for value in (low, high)]
    ticks = round_ticks([*(day.mean for day in days), *later])
    plot = _time_plot(title, days[0].day, days[-1].day + _DAY, height=_LOW, ticks=label_ticks(ticks), unit="R per slot")
    if band:
        low_edge = [(time, max(low, ticks[0])) for time, low, _ in band]
        high_edge = [(time, min(high, ticks[-1])) for time, _, high in band]
        plot.area([*high_edge, *reversed(low_edge)], fill=BLUE, fill_opacity="0.18")
    plot.curve([((day.day + _DAY).timestamp(), day.mean) for day in days], LINE_STYLES[0])
    return render(plot.svg)


def bound_svg(
    title: str,
    path: BoundPath,
    stages: Sequence[tuple[datetime, str]] = (),
    *,
    start: datetime,
    end: datetime,
    ended: str = "",
) -> str:
    """Return the difference in R per slot with its lower bound, and the limit that the bound has to pass, by stage.

    Args:
        path: at least one moment.
        stages: the start and the name of each, drawn as vertical lines.
        ended: how the rollout ended, written beside a line at *end*. Empty for no line.
    """
    later = path.low[min(5, len(path.low) // 2) :]  # the first bounds are so wide that they would flatten the curves
    lowest = _LOWEST_BOUND * min(path.limit)
    ticks = round_ticks([*path.mean, *path.limit, *(max(low, lowest) for low in later)])
    plot = _time_plot(title, start, end, height=_HIGH, ticks=label_ticks(ticks), unit="R per slot", top=84)
    edges = [(plot.x(since.timestamp()), plot.right) for since, _ in stages]
    for x, _ in edges:
        draw_line(plot.svg, x, plot.top, x, plot.bottom, stroke=SOFT, stroke_dasharray="1 3")
    for place in _labelled_spans(edges):
        draw_text(plot.svg, edges[place][0] + 3, plot.top - 6, stages[place][1], size=12, fill=SOFT)
    if ended:
        x = plot.x(end.timestamp())
        draw_line(plot.svg, x, plot.top, x, plot.bottom, stroke=RED, stroke_width="3")
        draw_text(plot.svg, x - 6, plot.top + 12, ended, anchor="end", size=12, fill=RED)
    at = [moment.timestamp() for moment in path.at]
    limits = _stepped(list(zip(at, path.limit, strict=True)), end.timestamp())
    lows = [(time, low) for time, low in zip(at, path.low, strict=True) if low >= ticks[0]]
    curves = (
        (f"difference: {path.mean[-1]:+.3f} R", list(zip(at, path.mean, strict=True)), LINE_STYLES[0]),
        (f"lower bound: {path.low[-1]:+.3f} R", lows, LINE_STYLES[1]),
        (f"limit of the stage: {path.limit[-1]:+.3f} R", limits, _ROLLBACK),
    )
    for place, (name, points, style) in enumerate(curves):
        _draw_key(plot.svg, plot.left + place * (plot.right - plot.left) / 3, 46, name, style)
        plot.curve(points, style)
    return render(plot.svg)


def regimes_svg(title: str, by_regime: Mapping[str, Comparison]) -> str:
    """Return the difference in R per slot of each regime with its 95 % interval, one regime per row."""
    rows: list[Interval] = [
        (
            name.replace("_vol", " volatility").replace("/", ", "),
            regime.difference.mean,
            regime.difference.low,
            regime.difference.high,
            f"{regime.difference.mean:+.3f} R, {regime.difference.n:,} slots",
        )
        for name, regime in sorted(by_regime.items())
        if regime.difference.mean is not None
    ]
    ticks = round_ticks(value for _, *values, _ in rows for value in values if isinstance(value, float))
    bottom = 50.0 + _ROW * len(rows)
    svg = canvas(_WIDTH, int(bottom) + _FOOT)
    _draw_title(svg, title)
    plot = Plot(svg, Scale(ticks[0], ticks[-1], 200.0, _WIDTH - 190.0), Scale(0, max(1, len(rows)), 50.0, bottom))
    plot.x_axis(label_ticks(ticks), "R per slot", grid=True)
    plot.intervals(rows)
    return render(svg)


def harm_svg(title: str, path: HarmPath, *, start: datetime, end: datetime) -> str:
    """Return the e-process over time on a logarithmic scale, with its limits for a hold and for a rollback."""
    plot = _time_plot(title, start, end, height=_MIDDLE, ticks=_harm_ticks(path), unit="E, evidence of harm")
    plot.level(path.limit, f"rollback at {10**path.limit:.0f}", _ROLLBACK)
    plot.level(path.freeze_at, f"hold at {10**path.freeze_at:g}", _HOLD)
    plot.curve(_harm_curve(path, start, end), LINE_STYLES[0])
    return render(plot.svg)


def _harm_ticks(path: HarmPath) -> Ticks:
    """Return about six powers of ten that span the path and its limit."""
    lowest, highest = floor(min(0.0, *path.log_e)), ceil(max(path.limit, *path.log_e) + 0.2)
    step = max(1, ceil((highest - lowest) / 6))
    powers = range(floor(lowest / step) * step, highest + step, step)
    return [(float(power), f"{10.0**power:g}" if -3 <= power <= 5 else f"1e{power}") for power in powers]


def _harm_curve(path: HarmPath, start: datetime, end: datetime) -> list[tuple[float, float]]:
    values = [(at.timestamp(), log_e) for at, log_e in zip(path.at, path.log_e, strict=True)]
    return _stepped([(start.timestamp(), 0.0), *values], end.timestamp())


def rollback_svg(
    title: str, equity: Equity, path: HarmPath | None, *, start: datetime, end: datetime, ended: str = "rolled back"
) -> str:
    """Return the difference of both versions in R over [start, end], above the evidence of harm with its limit.

    Args:
        path: of the evidence. Without it only the difference is drawn.
        ended: written beside a line through both at *end*.
    """
    difference = [canary - control for canary, control in zip(equity.canary, equity.control, strict=True)]
    height = _HIGH if path is None else _HIGH + _LOW
    svg = canvas(_WIDTH, height)
    _draw_title(svg, title)
    end = max(end, start + timedelta(seconds=1))
    x = Scale(start.timestamp(), end.timestamp(), _LEFT, _WIDTH - 50.0)
    ticks = label_ticks(round_ticks(difference))
    upper = Plot(svg, x, Scale(ticks[0][0], ticks[-1][0], _HIGH - 60.0, 44.0))
    upper.y_axis(ticks, "difference in R")
    drawn = _evenly(len(difference))
    upper.curve([(equity.at[place].timestamp(), difference[place]) for place in drawn], LINE_STYLES[0])
    lower = upper
    if path is not None:
        scale = _harm_ticks(path)
        lower = Plot(svg, x, Scale(scale[0][0], scale[-1][0], height - 60.0, float(_HIGH - 20)))
        lower.y_axis(scale, "evidence E")
        lower.level(path.limit, f"limit: rolled back at {10**path.limit:,.0f}", _ROLLBACK)
        lower.curve(_harm_curve(path, start, end), LINE_STYLES[0])
    lower.x_axis(_time_ticks(start, end), "UTC")
    edge = x(end.timestamp())
    draw_line(svg, edge, upper.top, edge, lower.bottom, stroke=RED, stroke_width="3")
    if path is not None:
        draw(svg, "circle", cx=edge, cy=lower.y(path.log_e[-1]), r="5", fill=BLUE)  # the last step is below the line
    draw_text(svg, edge - 6, upper.top + 12, ended, anchor="end", size=12, fill=RED)
    return render(svg)


def share_svg(title: str, shares: Sequence[ServedSpan], *, start: datetime, end: datetime, ended: str = "") -> str:
    """Return the share of users over time.

    Args:
        ended: how the rollout ended, written beside a line at *end*. Empty for no line.
    """
    ticks = [(percent, f"{percent:g} %") for percent in (0.0, 25.0, 50.0, 75.0, 100.0)]
    plot = _time_plot(title, start, end, height=_LOW, ticks=ticks, unit="share of users")
    for span in shares:
        since, until = span.since.timestamp(), span.until.timestamp()
        plot.bar(since, until, span.percent, fill=BLUE, fill_opacity="0.25")
        left, top = plot.x(since), plot.y(span.percent)
        draw_line(plot.svg, left, top, max(left + 1.0, plot.x(until)), top, **LINE_STYLES[0])
    edges = [(plot.x(span.since.timestamp()), plot.x(span.until.timestamp())) for span in shares]
    for place in _labelled_spans(edges):
        y = max(plot.y(shares[place].percent) - 5, plot.top + 12)
        draw_text(plot.svg, edges[place][0] + 3, y, f"{shares[place].percent:g} %", size=12)
    if ended:
        x = plot.x(end.timestamp())
        draw_line(plot.svg, x, plot.top, x, plot.bottom, stroke=RED, stroke_width="3")
        draw_text(plot.svg, x - 6, plot.top + 12, ended, anchor="end", size=12, fill=RED)
    return render(plot.svg)


def positions_svg(
    title: str,
    at: Sequence[datetime],
    by_manager: Mapping[str, Sequence[int]],
    *,
    marked_at: datetime | None = None,
    mark: str = "",
) -> str:
    """Return the number of open positions over time, one line for each version that manages them.

    Args:
        at: at least one moment.
        by_manager: numbers at these moments, by version.
        mark: written beside a vertical line at *marked_at*.
    """
    ticks = round_ticks(count for counts in by_manager.values() for count in counts)
    labels = [(tick, f"{tick:,.0f}") for tick in ticks if tick == int(tick)]
    plot = _time_plot(title, at[0], at[-1], height=_MIDDLE, ticks=labels, unit="open positions", top=84)
    drawn = _evenly(len(at))
    for place, ((version, counts), style) in enumerate(zip(by_manager.items(), LINE_STYLES, strict=False)):
        x = plot.left + place * (plot.right - plot.left) / 2
        _draw_key(plot.svg, x, 50, f"{version}: {max(counts):,} at most, {counts[-1]:,} at the end", style)
        plot.curve(_stepped([(at[each].timestamp(), counts[each]) for each in drawn], at[-1].timestamp()), style)
    if marked_at is not None:
        x = plot.x(marked_at.timestamp())
        draw_line(plot.svg, x, plot.top, x, plot.bottom, stroke=RED, stroke_width="3")
        draw_text(plot.svg, x, plot.top - 6, mark, anchor="middle", size=12, fill=RED)
    return render(plot.svg)


def training_svg(title: str, rewards: Mapping[int, Sequence[float]], kept: int, years: "Sequence[Year]") -> str:
    """Return how a training went, and what its model earns by year, with 95 % intervals.

    Args:
        rewards: by seed, the mean reward of each update, in R a candle.
        kept: the seed whose model was kept. Its line is wide.
        years: in order, the ones in sample first.
    """
    upper = _HEAD + _LEARNING + _FOOT
    svg = canvas(_WIDTH, upper + _HEAD + _ROW * len(years) + _FOOT)
    _draw_title(svg, title)
    _draw_learning(svg, rewards, kept)
    reach = [(year, NORMAL_95 * year.error) for year in years]
    ticks = round_ticks(value for year, error in reach for value in (year.mean_r - error, year.mean_r + error))
    first = float(upper + _HEAD)
    rows = Scale(0, max(1, len(years)), first, first + _ROW * len(years))
    plot = Plot(svg, Scale(ticks[0], ticks[-1], 200.0, _WIDTH - 210.0), rows)
    draw_text(svg, _LEFT, upper + 40, "what the model earns by year, with its 95 % interval")
    plot.x_axis(label_ticks(ticks), "R a signal", grid=True)
    inside = sum(year.in_sample for year in years)
    if 0 < inside < len(years):
        draw_line(svg, _LEFT, plot.y(inside), plot.right, plot.y(inside), **_HOLD)
        draw_text(svg, plot.right, upper + 40, "dashed: end of the training", anchor="end", fill=ORANGE)
    plot.intervals(
        (
            f"{year.year} {'in' if year.in_sample else 'out of'} sample",
            year.mean_r,
            year.mean_r - error,
            year.mean_r + error,
            f"{year.mean_r:+.3f} R, {year.signals} signals",
        )
        for year, error in reach
    )
    return render(svg)


def _draw_learning(svg: ET.Element, rewards: Mapping[int, Sequence[float]], kept: int) -> None:
    """Draw the mean reward of each update, one line a try. The kept one is wide and on top."""
    ticks = round_ticks(value for curve in rewards.values() for value in curve)
    steps = round_ticks([max(map(len, rewards.values()))])
    bottom = float(_HEAD + _LEARNING)
    plot = Plot(svg, Scale(0, steps[-1], _LEFT, 660.0), Scale(ticks[0], ticks[-1], bottom, float(_HEAD)))
    draw_text(svg, plot.left, 54, "mean reward of each update, one line a try")
    plot.y_axis(label_ticks(ticks), "R a candle")
    plot.x_axis(label_ticks(steps), "update")
    styles = {
        seed: {**LINE_STYLES[place % len(LINE_STYLES)], "stroke_width": "3.2" if seed == kept else "1.2"}
        for place, seed in enumerate(rewards)
    }
    for seed in sorted(rewards, key=lambda each: each == kept):
        plot.curve(list(enumerate(rewards[seed], start=1)), styles[seed])
    named = list(rewards) if len(rewards) <= _LEARNING // 24 else [kept]  # as many as fit beside the curves
    for place, seed in enumerate(named):
        _draw_key(
            svg, 680, _HEAD + 14 + place * 24, f"seed {seed}, kept" if seed == kept else f"seed {seed}", styles[seed]
        )


def calibration_svg(title: str, calibrations: Sequence[Calibration]) -> str:
    """Return how soon harmful scenarios are rolled back, and how often healthy ones are, one panel for each kind."""
    harmful = [calibration for calibration in calibrations if not calibration.healthy]
    healthy = [calibration for calibration in calibrations if calibration.healthy]
    upper = _HEAD + _CURVES + _FOOT if harmful else 0
    lower = _HEAD + _ROW * len(healthy) + _FOOT if healthy else 0
    svg = canvas(_CALIBRATION_WIDTH, upper + lower)
    _draw_title(svg, title)
    if harmful:
        _draw_harmful(svg, harmful)
    if healthy:
        _draw_healthy(svg, healthy, upper)
    return render(svg)


def _draw_harmful(svg: ET.Element, harmful: Sequence[Calibration]) -> None:
    """Draw for each scenario the share of ramps rolled back, over slots on a logarithmic scale."""
    decades = max(1, ceil(log10(max([10, *(each.delays[-1] for each in harmful if each.delays)]))))
    plot = Plot(svg, Scale(0, decades, _LEFT, 680.0), Scale(0.0, 1.0, float(_HEAD + _CURVES), float(_HEAD)))
    draw_text(svg, plot.left, 54, "harmful canaries: share rolled back, by slots since the fault began")
    plot.y_axis([(share, f"{share:.0%}") for share in (0.0, 0.25, 0.5, 0.75, 1.0)])
    plot.x_axis(
        [(power, f"{10**power:,}") for power in range(decades + 1)], "slots (a short vertical line marks the bound)"
    )
    for place, each in enumerate(harmful):
        style = LINE_STYLES[place % len(LINE_STYLES)]
        counted = each.ramps - each.before_fault
        shares = [(log10(max(delay, 1)), number / counted) for number, delay in enumerate(each.delays, start=1)]
        plot.curve(_without_small_steps(_stepped([(0.0, 0.0), *shares], decades), 1 / _CURVES), style)
        if each.bound_slots is not None and each.bound_slots <= 10**decades:
            x = plot.x(log10(max(each.bound_slots, 1.0)))
            draw_line(svg, x, plot.y(0.43), x, plot.y(0.57), stroke=style["stroke"], stroke_width="4")
        _draw_key(svg, 700, _HEAD + 14 + place * 36, each.scenario, style, note=_delay_note(each))


def _delay_note(calibration: Calibration) -> str:
    median, bound = calibration.median_slots, calibration.bound_slots
    note = "median not reached" if median is None else f"median {median:,.0f} slots"
    return note if bound is None else f"{note}, bound {bound:,.0f}"


def _draw_healthy(svg: ET.Element, healthy: Sequence[Calibration], top: int) -> None:
    """Draw for each scenario the share rolled back as a dot with a line up to its limit, and the tolerated share."""
    ticks = round_ticks([2 * TOLERATED, *(each.rolled_back_limit for each in healthy)])
    first = float(top + _HEAD)
    plot = Plot(
        svg, Scale(ticks[0], ticks[-1], 230.0, 800.0), Scale(0, len(healthy), first, first + _ROW * len(healthy))
    )
    draw_text(svg, _LEFT, top + 40, f"healthy canaries: share rolled back, and its upper {CONFIDENCE:.0%} limit")
    plot.x_axis([(share, f"{100 * share:.3g}%") for share in ticks], "share of ramps", grid=True)
    x = plot.x(TOLERATED)
    draw_line(svg, x, first - 6, x, plot.bottom, **_HOLD)
    draw_text(svg, x, first - 10, f"{TOLERATED:.0%}", anchor="middle")
    plot.intervals(
        (
            each.scenario,
            each.rolled_back,
            each.rolled_back,
            each.rolled_back_limit,
            f"{each.rolled_back:.2%}, at most {each.rolled_back_limit:.2%}",
        )
        for each in healthy
    )


def races_svg(title: str, cells: Sequence[Cell]) -> str:
    """Return what users earned under each policy: a dot for the mean, and a line to the worst user."""
    panels: dict[tuple[str, int, int], list[Cell]] = {}
    for each in cells:
        panels.setdefault((each.scenario, each.candidates, each.shadow_days), []).append(each)
    ticks = round_ticks(value for each in cells for value in (each.gain, each.worst, each.best_fixed))
    height = sum(_HEAD + _ROW * len(rows) for rows in panels.values())
    svg = canvas(_CALIBRATION_WIDTH, height + _FOOT)
    _draw_title(svg, title)
    top = 0
    for (scenario, candidates, shadow_days), rows in panels.items():
        first = float(top + _HEAD)
        y = Scale(0, len(rows), first, first + _ROW * len(rows))
        plot = Plot(svg, Scale(ticks[0], ticks[-1], 130.0, 700.0), y)
        draw_text(svg, 20, top + 54, f"{scenario}, {candidates} candidates, {shadow_days} days of shadow")
        plot.intervals(
            (each.policy, each.gain, each.worst, each.gain, f"{each.gain:+.1f} R, worst user {each.worst:+.1f} R")
            for each in rows
        )
        best = plot.x(rows[0].best_fixed)
        draw_line(svg, best, first - 4, best, plot.bottom, **_HOLD)
        top += _HEAD + _ROW * len(rows)
        if top == height:
            what = "R a user, against the active version (vertical: the best version, serving all from the first day)"
            plot.x_axis(label_ticks(ticks), what)
    return render(svg)


@dataclass(frozen=True, slots=True)
class Scale:
    """Linear scale: the value *low* is at pixel *start*, the value *high* at pixel *end*."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


@dataclass(frozen=True, slots=True)
class Plot:
    """The area of a chart between its axes. Times on the x scale are POSIX timestamps."""

    svg: ET.Element
    x: Scale
    y: Scale

    @property
    def left(self) -> float:
        return self.x.start

    @property
    def right(self) -> float:
        return self.x.end

    @property
    def top(self) -> float:
        return min(self.y.start, self.y.end)

    @property
    def bottom(self) -> float:
        return max(self.y.start, self.y.end)

    def x_axis(self, ticks: Ticks, label: str, *, grid: bool = False) -> None:
        for value, name in ticks:
            x = self.x(value)
            if grid:
                draw_line(self.svg, x, self.top, x, self.bottom, stroke=INK if value == 0 else GRID)
            else:
                draw_line(self.svg, x, self.bottom, x, self.bottom + 5, stroke=INK)
            draw_text(self.svg, x, self.bottom + 21, name, anchor="middle")
        draw_text(self.svg, (self.left + self.right) / 2, self.bottom + 44, label, anchor="middle", size=12)

    def y_axis(self, ticks: Ticks, label: str = "") -> None:
        for value, name in ticks:
            y = self.y(value)
            draw_line(self.svg, self.left, y, self.right, y, stroke=INK if value == 0 else GRID)
            draw_text(self.svg, self.left - 8, y + 4, name, anchor="end")
        middle = (self.top + self.bottom) / 2
        draw_text(self.svg, 18, middle, label, anchor="middle").set("transform", f"rotate(-90 18 {middle:.1f})")

    def curve(self, points: Iterable[tuple[float, float]], style: Style) -> None:
        draw(self.svg, "polyline", points=self._pixels(points), fill="none", stroke_linejoin="round", **style)

    def area(self, corners: Iterable[tuple[float, float]], **style: str) -> None:
        draw(self.svg, "polygon", points=self._pixels(corners), stroke="none", **style)

    def bar(self, start: float, end: float, value: float, *, gap: float = 0.0, **style: str) -> None:
        """Draw a bar up to *value*, at least a pixel wide, with up to *gap* pixels to the next one."""
        left, right, top = self.x(start), self.x(end), self.y(value)
        gap = min(gap, (right - left) / 5)
        width = max(1.0, right - left - gap)
        draw(self.svg, "rect", x=left + gap / 2, y=top, width=width, height=self.bottom - top, **style)

    def level(self, value: float, label: str, style: Style) -> None:
        """Draw a horizontal line across the area, with its label above the right end."""
        y = self.y(value)
        draw_line(self.svg, self.left, y, self.right, y, **style)
        draw_text(self.svg, self.right - 4, y - 5, label, anchor="end", size=12, fill=style["stroke"])

    def intervals(self, rows: Iterable[Interval]) -> None:
        """Draw one row each: the name, a dot at the value, a line over its interval, and the note."""
        for number, (name, value, low, high, note) in enumerate(rows):
            y = self.y(number + 0.5)
            draw_text(self.svg, self.left - 10, y + 4, name, anchor="end")
            if low is not None and high is not None:
                draw_line(self.svg, self.x(low), y, self.x(high), y, stroke=BLUE, stroke_width="3")
            draw(self.svg, "circle", cx=self.x(value), cy=y, r="5", fill=BLUE)
            draw_text(self.svg, self.right + 14, y + 4, note, size=12)

    def _pixels(self, points: Iterable[tuple[float, float]]) -> str:
        return " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)


def _time_plot(
    title: str, start: datetime, end: datetime, *, height: int, ticks: Ticks, unit: str, top: int = 44
) -> Plot:
    """Return an empty chart with a time axis and a value axis that spans the *ticks*.

    Args:
        top: pixels above the plot area, for the title and a legend.
    """
    svg = canvas(_WIDTH, height)
    _draw_title(svg, title)
    end = max(end, start + timedelta(seconds=1))
    x = Scale(start.timestamp(), end.timestamp(), _LEFT, _WIDTH - 50.0)
    plot = Plot(svg, x, Scale(ticks[0][0], ticks[-1][0], height - 60.0, float(top)))
    plot.y_axis(ticks, unit)
    plot.x_axis(_time_ticks(start, end), "UTC")
    return plot


def _time_ticks(start: datetime, end: datetime) -> Ticks:
    times = [start + (end - start) * number / 5 for number in range(6)]
    time_format = "%Y-%m-%d" if times[1] - times[0] >= _DAY else "%m-%d %H:%M"
    return [(time.timestamp(), time.strftime(time_format)) for time in times]


def round_ticks(values: Iterable[float]) -> list[float]:
    """Return about five evenly spaced round numbers that span zero and all *values*."""
    spanned = [0.0, *values]
    low, high = min(spanned), max(spanned)
    least_step = (high - low or 1.0) / 5
    power = 10.0 ** floor(log10(least_step))
    step = power * next(multiple for multiple in (1, 2, 5, 10) if power * multiple >= least_step * 0.999)
    return [number * step for number in range(floor(low / step), max(ceil(high / step), 1) + 1)]


def label_ticks(ticks: Sequence[float]) -> Ticks:
    """Return the ticks with labels that have as many decimals as the step between them needs."""
    decimals = max(0, ceil(-log10(ticks[1] - ticks[0]) - 1e-6))
    return [(tick, f"{tick:.{decimals}f}") for tick in ticks]


def _stepped(points: Sequence[tuple[float, float]], end: float) -> list[tuple[float, float]]:
    """Return the corners of a step curve: each value holds until the next point, the last one until *end*."""
    corners = [points[0]]
    for x, value in points[1:]:
        corners += [(x, corners[-1][1]), (x, value)]
    return [*corners, (max(end, corners[-1][0]), corners[-1][1])]


def _without_small_steps(corners: Sequence[tuple[float, float]], least: float) -> list[tuple[float, float]]:
    """Return a rising step curve with steps of less than *least* merged into the next ones."""
    kept = [corners[0]]
    for before, after in pairwise(corners):
        if after[1] - kept[-1][1] >= least:
            kept += [(before[0], kept[-1][1]), after]
    return [*kept, corners[-1]]


def _labelled_spans(edges: Sequence[tuple[float, float]]) -> list[int]:
    """Return the positions of the spans that get a label: wide spans first, without overlapping labels."""
    chosen: list[int] = []
    for place in sorted(range(len(edges)), key=lambda place: edges[place][0] - edges[place][1]):
        if all(abs(edges[place][0] - edges[other][0]) >= _LABEL_WIDTH for other in chosen):
            chosen.append(place)
    return chosen


def _draw_title(svg: ET.Element, title: str) -> None:
    draw_text(svg, _LEFT, 24, _shortened(title, _LONGEST_TITLE), size=15)


def _draw_key(svg: ET.Element, x: float, y: float, name: str, style: Style, *, note: str = "") -> None:
    """Draw one entry of a legend: a sample of the line, its name, and a note below."""
    draw_line(svg, x, y - 4, x + 42, y - 4, **style)
    draw_text(svg, x + 50, y, _shortened(name, _LONGEST_NAME))
    if note:
        draw_text(svg, x + 50, y + 15, note, size=11)


def _shortened(words: str, longest: int) -> str:
    return words if len(words) <= longest else f"{words[: longest - 1]}…"


def canvas(width: int, height: int) -> ET.Element:
    """Return an empty white SVG, sizes in pixels."""
    svg = ET.Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {width} {height}"})
    for name, value in {"width": str(width), "height": str(height), "font-family": "sans-serif", "fill": INK}.items():
        svg.set(name, value)
    draw(svg, "rect", width="100%", height="100%", fill="#ffffff")
    return svg


def draw(svg: ET.Element, shape: str, **attributes: str | float) -> ET.Element:
    """Add an SVG element. `_` in attribute names stands for `-`, and numbers are pixels."""
    written = {
        name.replace("_", "-"): value if isinstance(value, str) else f"{value:.1f}"
        for name, value in attributes.items()
    }
    return ET.SubElement(svg, shape, written)


def draw_line(svg: ET.Element, x1: float, y1: float, x2: float, y2: float, **style: str) -> None:
    draw(svg, "line", x1=x1, y1=y1, x2=x2, y2=y2, **style)


def draw_text(
    svg: ET.Element, x: float, y: float, words: str, *, anchor: str = "start", size: int = 13, fill: str = INK
) -> ET.Element:
    label = draw(svg, "text", x=x, y=y, text_anchor=anchor, font_size=str(size), fill=fill)
    label.text = "".join(char if char.isprintable() else " " for char in words)  # XML allows no control characters
    return label


def render(svg: ET.Element) -> str:
    return ET.tostring(svg, encoding="unicode")
