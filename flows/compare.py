"""Flows that compare versions: on request, and every night for all strategies."""

from prefect import flow

from flows.artifacts import key_of, show_comparisons, show_page
from flows.parameters import AnySymbol, Days, Strategy, Version
from flows.runtime import one_line, open_runtime, owner_flow
from strategy_core.report.comparison import comparison_markdown
from strategy_core.services.compare import compare_all, compare_versions, last_days
from strategy_core.services.history import comparison_curves
from strategy_core.store import versions
from strategy_core.store.engine import reading
from strategy_core.store.tables import ComparisonReport


@flow(flow_run_name="nightly comparison, {days} days")
@one_line
def nightly_comparison(days: Days = 30) -> str:
    """Compare every shadow and canary with its active version, and store and show the reports.

    Args:
        days: Length of the compared period.
    """
    with open_runtime() as runtime:
        reports = compare_all(runtime.engine, runtime.candles(), now=runtime.now, days=days)
        with reading(runtime.engine) as session:
            curves = [comparison_curves(session, report) for report in reports]
    if not reports:
        return "no comparison: no strategy has a shadow or canary beside an active version"
    show_comparisons(curves)
    return f"compared {', '.join(f'{each.strategy_name} {each.shadow_version}' for each in reports)}"


@owner_flow("compare {strategy_name} {version}, {days} days")
def compare(strategy_name: Strategy, version: Version, days: Days = 30, symbol: AnySymbol = "") -> str:
    """Compare a version with the active one on the same candles, and show the report.

    Args:
        strategy_name: Strategy name.
        version: The shadow version or canary.
        days: Length of the compared period, up to now.
        symbol: Only this symbol. Leave empty for all symbols that both versions trade.
    """
    with open_runtime() as runtime:
        over = last_days(days, runtime.now)
        found = compare_versions(
            runtime.engine,
            strategy_name=strategy_name,
            shadow_version=version,
            over=over,
            symbol=symbol or None,
            source=runtime.candles(),
        )
        with reading(runtime.engine) as session:
            unkept = ComparisonReport(
                strategy_name=strategy_name,
                shadow_version=version,
                active_version=versions.active_version(session, strategy_name).version,
                period_start=over.start,
                period_end=over.end,
                report=found.model_dump(mode="json"),
                created_at=runtime.now,
            )
            shown = comparison_markdown(comparison_curves(session, unkept))
    where = show_page(key_of("comparison", strategy_name, version), shown, f"{strategy_name} {version}, {days:g} days")
    return f"{found.candles_compared} candles and {found.slots} slots compared{where}"
