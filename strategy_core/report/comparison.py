"""Markdown reports of stored comparisons: figures, equity, divergence by day, agreement, regimes."""

from collections.abc import Sequence
from datetime import datetime

from strategy_core.domain.comparison import Comparison, Interval
from strategy_core.domain.strategy import Action
from strategy_core.report.charts import Curve, difference_svg, divergence_svg, equity_svg, regimes_svg
from strategy_core.report.markdown import EMPTY, Markdown, bullet_list, fact_list, image, plain, sections, signed, table
from strategy_core.services.history import ComparisonCurves, Day, Equity

_DIFFERENCE = "R per slot, difference (95 %)"


def comparisons_markdown(comparisons: Sequence[ComparisonCurves]) -> str:
    """Return the comparisons of one night: a summary table, then each comparison in full."""
    rows = []
    for each in comparisons:
        measured = _measured(each)
        win_rates = Markdown(f"{_share(measured.shadow.win_rate)} against {_share(measured.active.win_rate)}")
        rows.append(
            (
                each.report.strategy_name,
                each.report.shadow_version,
                each.report.active_version,
                measured.slots,
                _percents(measured.divergence_rate),
                _difference(measured),
                win_rates,
            )
        )
    columns = ["strategy", "version", "active", "slots", "divergence", _DIFFERENCE, "win rates"]
    return sections(
        "# Comparison with the active versions",
        table(columns, rows),
        *(comparison_markdown(each, level=2) for each in comparisons),
    )


def comparison_markdown(comparison: ComparisonCurves, *, level: int = 1, why_empty: Sequence[str] = ()) -> str:
    """Return one comparison: its verdict, figures, pictures, tables, and what was left out.

    Args:
        level: of its heading.
        why_empty: lines that say why nothing was compared.
    """
    report, measured = comparison.report, _measured(comparison)
    shadow, active = report.shadow_version, report.active_version
    subheading = "#" * (level + 1)
    return sections(
        f"{'#' * level} {plain(report.strategy_name)}: {plain(shadow)} against {plain(active)}",
        f"**{plain(verdict(comparison))}**",
        bullet_list(why_empty),
        _figures(comparison, measured),
        _in_sample(measured),
        _difference_chart(comparison.days),
        equity_chart(comparison.equity, shadow, active, start=report.period_start, end=report.period_end),
        _divergence_chart(comparison.days),
        _performance_table(measured, shadow, active),
        f"{subheading} Agreement",
        _agreement_table(measured, shadow, active),
        *([f"{subheading} By regime", _regimes(measured)] if measured.by_regime else []),
    ).rstrip()


def page_title(comparison: ComparisonCurves) -> str:
    """Return the title, as plain text."""
    report = comparison.report
    return f"{report.strategy_name}: {report.shadow_version} against {report.active_version}"


def verdict(comparison: ComparisonCurves) -> str:
    """Return what the difference says, in one sentence."""
    report = comparison.report
    return difference_verdict(_measured(comparison).difference, report.shadow_version, report.active_version)


def difference_verdict(found: Interval, shadow: str, active: str) -> str:
    """Return what the difference of two versions in R per slot says, in one sentence."""
    if found.mean is None:
        return f"{shadow} and {active} have no closed slot in common, so their results cannot be compared"
    if found.low is None or found.high is None:
        return f"{shadow} made {found.mean:+.3f} R a slot against {active}, on too few days for an interval"
    interval = f"{found.mean:+.3f} R a slot, 95 % interval {found.low:+.3f} to {found.high:+.3f}"
    if found.low > 0:
        return f"{shadow} earned more than {active}: {interval}"
    if found.high < 0:
        return f"{shadow} earned less than {active}: {interval}"
    return f"no difference between {shadow} and {active} is shown: {interval}"


def _figures(comparison: ComparisonCurves, measured: Comparison) -> str:
    report = comparison.report
    replayed = f", {measured.candles_replayed:,} of them from replay" if measured.candles_replayed else ""
    unlike = measured.divergence_rate, measured.divergence_rate_all_candles
    return fact_list(
        [
            ("period", f"{report.period_start:%Y-%m-%d %H:%M} to {report.period_end:%Y-%m-%d %H:%M} UTC"),
            ("symbols", ", ".join(measured.symbols) or "none"),
            ("candles", f"{measured.candles_compared:,} decided by both versions{replayed}"),
            ("slots", f"{measured.slots:,}, of which {measured.pending_slots:,} are still open and left out"),
            ("left out", f"{measured.candles_excluded:,} candles that one version has not decided"),
            ("drawdown and equity", _counted_from(report.period_start, measured)),
            (
                "decisions differ on",
                Markdown(f"{_percents(unlike[0])} of actionable candles, {_percents(unlike[1])} of all"),
            ),
        ]
    )


def _counted_from(start: datetime, measured: Comparison) -> str | None:
    """Return from where both versions' open trades are compared, if that is later than the start of the period."""
    since = measured.drawdowns_from
    if since is not None and since > start:
        return f"from {since:%Y-%m-%d %H:%M} UTC, when every open trade was one that both could have"
    if measured.candles_compared and measured.active.max_drawdown is None:
        return "not yet, since one version may still hold trades from before the other decided"
    return None


def equity_chart(equity: Equity, canary: str, control: str, *, start: datetime, end: datetime) -> str:
    curves = Curve(canary, equity.at, equity.canary), Curve(control, equity.at, equity.control)
    svg = equity_svg("Equity of both versions", *curves, start=start, end=max(end, equity.at[-1]))
    return image(svg, "equity of both versions")


def day_charts(days: Sequence[Day], shadow_share: float | None = None) -> str:
    """Return the charts of divergence and difference by day, or an empty text without days.

    Args:
        shadow_share: the share of slots on which the versions differed in shadow.
    """
    return sections(_divergence_chart(days, shadow_share), _difference_chart(days)).rstrip()


def _divergence_chart(days: Sequence[Day], shadow_share: float | None = None) -> str:
    title = "Divergence by day: share of slots on which the versions differ"
    return image(divergence_svg(title, days, shadow_share), "divergence") if days else ""


def _difference_chart(days: Sequence[Day]) -> str:
    title = "Paired difference to date, with its 95 % interval"
    return image(difference_svg(title, days), "paired difference") if days else ""


def _measured(comparison: ComparisonCurves) -> Comparison:
    return Comparison.model_validate(comparison.report.report)


def _in_sample(measured: Comparison) -> str:
    """Return a sentence about the candles on which a version was trained, or an empty text."""
    earlier, until = measured.in_sample, measured.trained_until
    if earlier is None or until is None:
        return ""
    return (
        f"In sample, before {until:%Y-%m-%d %H:%M} UTC, when the training ended: {earlier.candles_compared:,} candles "
        f"and {earlier.slots:,} slots, difference {_difference(earlier)} R per slot. "
        "A version was trained on them, so they are in no other figure of this report."
    )


def _performance_table(measured: Comparison, shadow: str, active: str) -> str:
    columns = ["version", "signals", "trades", "win rate", "R per trade", "profit factor", "drawdown"]
    rows = [
        (
            version,
            signals,
            performance.trades,
            Markdown(_share(performance.win_rate)),
            signed(performance.expectancy, 3),
            performance.profit_factor,
            Markdown(_share(performance.max_drawdown)),
        )
        for version, signals, performance in (
            (shadow, measured.shadow_signal_count, measured.shadow),
            (active, measured.active_signal_count, measured.active),
        )
    ]
    return table(columns, rows)


def _agreement_table(measured: Comparison, shadow: str, active: str) -> str:
    columns = [f"{plain(shadow)} ↓, {plain(active)} →", *(action.value for action in Action)]
    return table(columns, [(row.value, *(measured.agreement[row][column] for column in Action)) for row in Action])


def _regimes(measured: Comparison) -> str:
    rows = [
        (name, regime.candles_compared, regime.slots, _percents(regime.divergence_rate), _difference(regime))
        for name, regime in sorted(measured.by_regime.items())
    ]
    svg = regimes_svg("Paired difference by regime, with its 95 % interval", measured.by_regime)
    return sections(
        table(["regime", "candles", "slots", "divergence", _DIFFERENCE], rows),
        image(svg, "paired difference by regime"),
    ).rstrip()


def _difference(measured: Comparison) -> Markdown:
    mean, low, high = measured.difference.mean, measured.difference.low, measured.difference.high
    if mean is None:
        return Markdown(EMPTY)
    return Markdown(f"{mean:+.3f}" + (f" ({low:+.3f} to {high:+.3f})" if low is not None and high is not None else ""))


def _share(value: float | None) -> str:
    return EMPTY if value is None else f"{value:.1%}"


def _percents(value: float | None) -> Markdown:
    return Markdown(EMPTY if value is None else f"{value:.1f} %")
