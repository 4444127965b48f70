"""What an owner looks at before anything moves: a comparison, and what a plan would take; neither changes anything."""

import re

from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run
from sqlmodel import Session

from flows.compare import as_markdown, picture
from flows.form import form
from flows.parameters import USUAL, AnyPlan, AnySymbol, Days, Strategy, Version, chosen_plan
from flows.runtime import opened
from strategy_core.domain.audience import ESTIMATE, Audience
from strategy_core.domain.preview import Preview
from strategy_core.services.compare import Period, compare_versions, last_days
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
            report = _report(session, strategy_name, version, over, found.model_dump(mode="json"))
            shown = "\n\n".join([as_markdown([report]), picture(session, report)])
    where = _show(f"comparison-{strategy_name}-{version}", shown, f"{strategy_name} {version}, {days:g} days")
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
    shown = plan_as_markdown(found, reached)
    return found.verdict + _show(f"plan-{strategy_name}-{version}", shown, f"{strategy_name} {version}")


def plan_as_markdown(found: Preview, reached: Audience) -> str:
    """Return a line of what is to be expected, a row per stage, and what other canaries share of its users."""
    counted = f"shares of users are {ESTIMATE}" if reached.estimated else f"of {reached.users:,} users"
    columns = ("stage", "users", "share", "capital", "slots needed", "days expected")
    rows = [
        (
            f"{stage.percent:g} %",
            "-" if who.users is None else f"{who.users:,}",
            f"{who.share:.2%}",
            "-" if who.capital is None else f"{who.capital:,.0f}",
            f"{stage.slots_needed:,}",
            ("-" if stage.days_expected is None else f"{stage.days_expected:.1f}")
            + (" (**too long**)" if stage.underpowered and stage.days_expected is not None else ""),
        )
        for stage, who in zip(found.stages, reached.stages, strict=True)
    ]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows))
    shared = [
        f"- also in the {each.percent:g} % canary of {each.strategy_name} {each.version}: "
        + " → ".join(f"{share:.2%}" for share in each.shares)
        + " of users"
        for each in reached.overlaps
    ]
    return "\n\n".join([f"**{found.verdict}**; {counted}", table, *shared])


def _report(session: Session, strategy: str, version: str, over: Period, found: dict[str, object]) -> ComparisonReport:
    return ComparisonReport(
        strategy_name=strategy,
        shadow_version=version,
        active_version=versions.active_version(session, strategy).version,
        period_start=over.start,
        period_end=over.end,
        report=found,
        created_at=over.end,
    )


def _show(key: str, markdown: str, description: str) -> str:
    """Keep an artifact, if Prefect runs this, and return where it is."""
    if not flow_run.id:
        return ""
    key = re.sub("[^a-z0-9]+", "-", key.lower()).strip("-")
    create_markdown_artifact(markdown, key=key, description=description)
    return f": artifact {key}"
