"""What a plan would take and whom it would reach, as an owner reads it before anything moves."""

from strategy_core.domain.audience import ESTIMATE, Audience
from strategy_core.domain.preview import Preview
from strategy_core.report.text import Markdown, plain, sections, table


def preview_markdown(found: Preview, reached: Audience) -> str:
    """Return the verdict on a plan, a row per stage, and what other canaries share of its users."""
    counted = f"shares of users are {ESTIMATE}" if reached.estimated else f"of {reached.users:,} users"
    columns = ["stage", "users", "share", "capital", "slots needed", "days expected", ""]
    rows = [
        (
            Markdown(f"{stage.percent:g} %"),
            who.users,
            Markdown(f"{who.share:.2%}"),
            None if who.capital is None else Markdown(f"{who.capital:,.0f}"),
            stage.slots_needed,
            None if stage.days_expected is None else Markdown(f"{stage.days_expected:.1f}"),
            "too long" if stage.underpowered and stage.days_expected is not None else "",
        )
        for stage, who in zip(found.stages, reached.stages, strict=True)
    ]
    shared = [
        f"- also in the {each.percent:g} % canary of {plain(each.strategy_name)} {plain(each.version)}: "
        + " → ".join(f"{share:.2%}" for share in each.shares)
        + " of users"
        for each in reached.overlaps
    ]
    return sections(f"**{plain(found.verdict)}**; {counted}", table(columns, rows), "\n".join(shared))
