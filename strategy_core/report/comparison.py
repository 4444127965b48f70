"""A stored comparison of two versions as people read it: tables, equity, divergence by day, difference, regimes."""

from collections.abc import Sequence

from strategy_core.domain.comparison import Comparison
from strategy_core.domain.performance import Performance
from strategy_core.domain.strategy import Action
from strategy_core.report import markdown
from strategy_core.report.charts import as_image, regimes_svg
from strategy_core.report.markdown import Markdown, plain, sections, table
from strategy_core.services.history import ComparisonCurves


def comparisons_markdown(found: Sequence[ComparisonCurves]) -> str:
    """Return a night's comparisons: all of them in one table, then each by itself."""
    columns = ["strategy", "version", "active", "slots", "divergence", "R per slot, difference (95 %)", "win rates"]
    rows = [
        (
            one.report.strategy_name,
            one.report.shadow_version,
            one.report.active_version,
            measured.slots,
            _percents(measured.divergence_rate),
            _difference(measured),
            Markdown(f"{_share(measured.shadow.win_rate)} against {_share(measured.active.win_rate)}"),
        )
        for one, measured in ((one, _measured(one)) for one in found)
    ]
    title = "# Versions against the active ones"
    return sections(title, table(columns, rows), *(comparison_markdown(one, level=2) for one in found))


def comparison_markdown(found: ComparisonCurves, *, level: int = 1) -> str:
    """Return one comparison; *level* is of its headline."""
    report, measured = found.report, _measured(found)
    shadow, active = report.shadow_version, report.active_version
    name = f"{plain(report.strategy_name)}: {plain(shadow)} against {plain(active)}"
    period = f"{report.period_start:%Y-%m-%d %H:%M} to {report.period_end:%Y-%m-%d %H:%M} UTC"
    symbols = ", ".join(plain(symbol) for symbol in measured.symbols) or "no symbol"
    sub = "#" * (level + 1)
    return sections(
        f"{'#' * level} {name}",
        f"{period}, {symbols}: {measured.candles_compared:,} candles that both decided, {measured.candles_excluded:,} "
        f"others; {measured.slots:,} slots, of which {measured.pending_slots:,} are still open.",
        _arms(measured, shadow, active),
        f"Difference, {plain(shadow)} - {plain(active)}: {_difference(measured)} R per slot, in day clusters. "
        f"They differ on {_percents(measured.divergence_rate)} of actionable candles, "
        f"{_percents(measured.divergence_rate_all_candles)} of all.",
        markdown.equity_picture(found.equity, shadow, active, start=report.period_start, end=report.period_end),
        markdown.day_pictures(found.days, None),
        f"{sub} What each said",
        _agreement(measured, shadow, active),
        *([f"{sub} By regime", _regimes(measured)] if measured.by_regime else []),
    ).rstrip()


def _measured(found: ComparisonCurves) -> Comparison:
    return Comparison.model_validate(found.report.report)


def _arms(measured: Comparison, shadow: str, active: str) -> str:
    columns = ["version", "signals", "trades", "win rate", "R a trade", "profit factor", "average PnL", "drawdown"]
    rows = [
        (name, signals, done.trades, Markdown(_share(done.win_rate)), markdown.signed(done.expectancy, 3), *_rest(done))
        for name, signals, done in (
            (shadow, measured.shadow_signal_count, measured.shadow),
            (active, measured.active_signal_count, measured.active),
        )
    ]
    return table(columns, rows)


def _rest(done: Performance) -> tuple[object, ...]:
    return done.profit_factor, done.average_pnl, Markdown(_share(done.max_drawdown))


def _agreement(measured: Comparison, shadow: str, active: str) -> str:
    columns = [f"{plain(shadow)} ↓, {plain(active)} →", *(action.value for action in Action)]
    return table(columns, [(one.value, *(measured.agreement[one][other] for other in Action)) for one in Action])


def _regimes(measured: Comparison) -> str:
    rows = [
        (name, one.candles_compared, one.slots, _percents(one.divergence_rate), _difference(one))
        for name, one in sorted(measured.by_regime.items())
    ]
    picture = regimes_svg("Paired difference by regime, with its 95 % interval", measured.by_regime)
    return sections(
        table(["regime", "candles", "slots", "divergence", "R per slot, difference (95 %)"], rows),
        as_image(picture, "paired difference by regime"),
    ).rstrip()


def _difference(measured: Comparison) -> Markdown:
    mean, low, high = measured.difference.mean, measured.difference.low, measured.difference.high
    if mean is None:
        return Markdown("–")
    return Markdown(f"{mean:+.3f}" + (f" ({low:+.3f} to {high:+.3f})" if low is not None and high is not None else ""))


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _percents(value: float | None) -> Markdown:
    return Markdown("–" if value is None else f"{value:.1f} %")
