"""Flows that compare versions: on request, and every night for all strategies."""

from prefect import flow

from flows.artifacts import key_of, show_comparisons, show_page
from flows.parameters import AnySymbol, Days, Strategy, Version
from flows.runtime import one_line, open_runtime, owner_flow
from strategy_core.report.comparison import comparison_markdown
from strategy_core.services.compare import compare_all, compare_with_curves, last_days, why_empty
from strategy_core.services.history import read_curves


@flow(flow_run_name="nightly comparison, {days} days")
@one_line
def nightly_comparison(days: Days = 30) -> str:
    """Compare every shadow and canary with its active version, and store and show the reports.

    Args:
        days: Length of the compared period.
    """
    with open_runtime() as runtime:
        reports = compare_all(runtime.engine, runtime.candles(), now=runtime.now, days=days)
        curves = read_curves(runtime.engine, reports)
    if not reports:
        return "no comparison: no strategy has a shadow or canary beside an active version"
    show_comparisons(curves)
    return f"compared {', '.join(f'{each.strategy_name} {each.shadow_version}' for each in reports)}"


@owner_flow("compare {strategy_name} {version}, {days} days")
def compare(strategy_name: Strategy, version: Version, days: Days = 30, symbol: AnySymbol = "") -> str:
    """Compare a version with the active one on the same candles, and show the report.

    On candles before both decided live, replayed decisions are compared if there are any.

    Args:
        strategy_name: Strategy name.
        version: The shadow version or canary.
        days: Length of the compared period, up to now.
        symbol: Only this symbol. Leave empty for all symbols that both versions trade.
    """
    with open_runtime() as runtime:
        found, curves = compare_with_curves(
            runtime.engine,
            strategy_name=strategy_name,
            shadow_version=version,
            over=last_days(days, runtime.now),
            symbol=symbol or None,
            source=runtime.candles(),
            now=runtime.now,
        )
        asked = {"strategy_name": strategy_name, "version": version}
        why = [] if found.candles_compared else why_empty(runtime.engine, **asked, over=last_days(days, runtime.now))
    shown = comparison_markdown(curves)
    where = show_page(key_of("comparison", strategy_name, version), shown, f"{strategy_name} {version}, {days:g} days")
    if why:
        return f"{why[0]}. To compare past candles, run the deployment replay{where}"
    replayed = f", {found.candles_replayed} of the candles from replay" if found.candles_replayed else ""
    return f"{found.candles_compared} candles and {found.slots} slots compared{replayed}{where}"
