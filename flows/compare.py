"""The nightly comparison: stored by its service, and shown in Prefect."""

from prefect import flow

from flows.artifacts import show_comparisons
from flows.parameters import Days
from flows.runtime import one_line, opened
from strategy_core.services.compare import compare_all
from strategy_core.services.curves import comparison_curves
from strategy_core.store.engine import reading


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
            curves = [comparison_curves(session, report) for report in reports]
    if not reports:
        return "nothing to compare: no shadow or canary beside an active version"
    show_comparisons(curves)
    return f"compared {', '.join(f'{each.strategy_name} {each.shadow_version}' for each in reports)}"
