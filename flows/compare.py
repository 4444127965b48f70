"""The nightly comparison: stored by its service, shown in Prefect as a table and equity curves."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run
from sqlmodel import Session

from flows.parameters import Days
from flows.plot import Curve, as_image, equity_svg
from flows.runtime import one_line, opened
from strategy_core.domain.comparison import Comparison
from strategy_core.services.compare import compare_all
from strategy_core.store import outcomes, versions
from strategy_core.store.engine import reading
from strategy_core.store.tables import ComparisonReport

_COLUMNS = (
    "strategy",
    "version",
    "active",
    "candles",
    "signals",
    "of the active",
    "divergence",
    "win rate",
    "of the active",
    "profit factor",
    "of the active",
    "drawdown",
    "of the active",
    "R per slot, shadow - active (95 %)",
    "slots",
)


@flow(flow_run_name="nightly comparison, {days} days")
@one_line
def nightly_comparison(days: Days = 30) -> str:
    """Compare every shadow and canary with its active version, store the reports, and show them as an artifact.

    Args:
        days: how far back the comparison reaches.
    """
    with opened() as runtime:
        reports = compare_all(runtime.engine, runtime.candles(), now=runtime.now, days=days)
        with reading(runtime.engine) as session:
            pictures = [picture(session, report) for report in reports]
    if not reports:
        return "nothing to compare: no shadow or canary beside an active version"
    if flow_run.id:
        create_markdown_artifact(
            "\n\n".join([as_markdown(reports), *pictures]),
            key="nightly-comparison",
            description=f"Shadow against active, {days:g} days",
        )
    return f"compared {', '.join(f'{each.strategy_name} {each.shadow_version}' for each in reports)}"


def as_markdown(reports: Sequence[ComparisonReport]) -> str:
    """Return a table with one row per report."""
    rows = [_row(report, Comparison.model_validate(report.report)) for report in reports]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (_COLUMNS, ["---"] * len(_COLUMNS), *rows))


def picture(session: Session, report: ComparisonReport) -> str:
    """Return, as Markdown, the equity curves of both versions over the report's period, on the symbols they share."""
    names = (report.shadow_version, report.active_version)
    shared = set.intersection(*(set(versions.get_version(session, report.strategy_name, n).symbols) for n in names))
    shadow, active = (
        _curve(session, report, role, name, sorted(shared))
        for role, name in zip(("shadow", "active"), names, strict=True)
    )
    title = f"{report.strategy_name}: {shadow.name} against {active.name}"
    return as_image(equity_svg(title, shadow, active, start=report.period_start, end=report.period_end), title)


def _curve(session: Session, report: ComparisonReport, role: str, version: str, symbols: Sequence[str]) -> Curve:
    """Return the cumulative marks of a version, from 0 at the start of the period to its last mark."""
    start, end = report.period_start, report.period_end
    changes = {start: 0.0}
    for symbol in symbols:
        marks = outcomes.marks_by_candle(session, report.strategy_name, version, start=start, end=end, symbol=symbol)
        for candle, r in marks.items():
            changes[candle] = changes.get(candle, 0.0) + r
    times = sorted(changes)
    values = np.cumsum([changes[candle] for candle in times])
    return Curve(f"{role} {version}", pd.DatetimeIndex(times), values)


def _row(report: ComparisonReport, found: Comparison) -> list[str]:
    mean, low, high = found.difference.mean, found.difference.low, found.difference.high
    interval = "-" if mean is None else f"{mean:+.3f}"
    if low is not None and high is not None:
        interval += f" ({low:+.3f} to {high:+.3f})"
    return [
        report.strategy_name,
        report.shadow_version,
        report.active_version,
        str(found.candles_compared),
        str(found.shadow_signal_count),
        str(found.active_signal_count),
        _number(found.divergence_rate, ".1f", " %"),
        _number(found.shadow.win_rate, ".1%"),
        _number(found.active.win_rate, ".1%"),
        _number(found.shadow.profit_factor, ".2f"),
        _number(found.active.profit_factor, ".2f"),
        _number(found.shadow.max_drawdown, ".1%"),
        _number(found.active.max_drawdown, ".1%"),
        interval,
        f"{found.slots} ({found.pending_slots} open)",
    ]


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"
