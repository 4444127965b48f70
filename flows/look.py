"""What an owner looks at before anything moves: a comparison, and what a plan would take; neither changes anything."""

from flows.artifacts import key_of, show_page
from flows.form import form
from flows.parameters import USUAL, AnyPlan, AnySymbol, Days, Strategy, Version, chosen_plan
from flows.runtime import opened
from strategy_core.report.comparison import comparison_markdown
from strategy_core.report.preview import preview_markdown
from strategy_core.services.compare import compare_versions, last_days
from strategy_core.services.curves import comparison_curves
from strategy_core.services.preview import show_plan
from strategy_core.store import versions
from strategy_core.store.engine import reading
from strategy_core.store.tables import ComparisonReport


@form("compare {strategy_name} {version}, {days} days")
def compare(strategy_name: Strategy, version: Version, days: Days = 30, symbol: AnySymbol = "") -> str:
    """Set a version against the active one over the same candles, and show the comparison as an artifact.

    Args:
        strategy_name: the strategy.
        version: the version in shadow, or the canary.
        days: how far back the comparison reaches.
        symbol: only this one; empty, all that both versions decide on.
    """
    with opened() as runtime:
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


@form("plan for {strategy_name} {version}")
def plan(strategy_name: Strategy, version: Version, plan: AnyPlan = USUAL) -> str:
    """Show what a rollout would take, and whom it would reach: users, slots and days by stage, and other canaries.

    Args:
        strategy_name: the strategy.
        version: the version in shadow that would become the canary.
        plan: the usual one; or stages, gates and limits of your own, which start from the usual ones.
    """
    with opened() as runtime:
        frozen = chosen_plan(plan)
        found, reached = show_plan(
            runtime.engine, strategy_name=strategy_name, version=version, plan=frozen, now=runtime.now
        )
    shown = preview_markdown(found, reached)
    return found.verdict + show_page(key_of("plan", strategy_name, version), shown, f"{strategy_name} {version}")
