"""Flows that compare versions: on request, and every night for all strategies."""

from prefect import flow

from flows.artifacts import key_of, show_comparisons, show_page
from flows.parameters import AnySymbol, Days, End, Start, Strategy, Version
from flows.runtime import one_line, open_runtime, owner_flow
from strategy_core.domain.errors import InvalidSetting
from strategy_core.domain.parsing import owners_time
from strategy_core.report.comparison import comparison_markdown
from strategy_core.services.compare import chosen_period, compare_all, compare_with_curves, why_empty
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


@owner_flow("compare {strategy_name} {version}")
def compare(
    strategy_name: Strategy,
    version: Version,
    days: Days = 30,
    symbol: AnySymbol = "",
    start: Start = "",
    end: End = "",
) -> str:
    """Compare a version with the active one on the same candles, and show the report.

    On candles before both decided live, replayed decisions are compared if there are any.

    Args:
        strategy_name: Strategy name.
        version: The shadow version or canary.
        days: Length of the compared period up to now, if no start is given.
        symbol: Only this symbol. Leave empty for all symbols that both versions trade.
        start: Start of the period: 2026-01-31 or 2026-01-31T12:00Z. Leave empty for the days above.
        end: End of the period, with a start. Leave empty for now.
    """
    if end and not start:
        raise InvalidSetting("end", end, "an end only with a start")
    with open_runtime() as runtime:
        begins, ends = owners_time(start or None, "start"), owners_time(end or None, "end")
        over = chosen_period(None if begins else days, begins, ends, runtime.now)
        found, curves = compare_with_curves(
            runtime.engine,
            strategy_name=strategy_name,
            shadow_version=version,
            over=over,
            symbol=symbol or None,
            source=runtime.candles(),
            now=runtime.now,
        )
        asked = {"strategy_name": strategy_name, "version": version}
        why = [] if found.candles_compared else why_empty(runtime.engine, **asked, over=over)
    shown = comparison_markdown(curves)
    where = show_page(
        key_of("comparison", strategy_name, version),
        shown,
        f"{strategy_name} {version}, {over.start:%Y-%m-%d %H:%M} to {over.end:%Y-%m-%d %H:%M} UTC",
    )
    if why:
        return f"{why[0]}. To compare past candles, run the deployment replay{where}"
    replayed = f", {found.candles_replayed} of the candles from replay" if found.candles_replayed else ""
    return f"{found.candles_compared:,} candles and {found.slots:,} slots compared{replayed}{where}"
