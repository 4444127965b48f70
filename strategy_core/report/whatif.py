"""Markdown report of a rollout on replayed candles: verdict, figures, pictures, stages, limits."""

from strategy_core.domain.gates.base import format_r
from strategy_core.report.charts import Curve, bound_svg, equity_svg, harm_svg, share_svg
from strategy_core.report.markdown import (
    Markdown,
    bullet_list,
    fact_list,
    image,
    percent,
    plain,
    sections,
    signed,
    table,
)
from strategy_core.services.history import ServedSpan
from strategy_core.services.whatif import StageOutcome, WhatIf


def whatif_markdown(found: WhatIf) -> str:
    """Return the report."""
    return sections(
        f"# {plain(page_title(found))}",
        f"**{plain(found.verdict)}**",
        _facts(found),
        _pictures(found),
        "## Stages",
        table(
            ["stage", "entered", "left", "days", "slots", "canary R", "users R", "ended by"],
            [_row(found, stage) for stage in found.stages],
        ),
        "R is the risk of one trade, and closed trades are counted. Both columns are the difference from the active "
        "version: canary R for a user who was on the canary, users R on average over all users.",
        "## What this rests on",
        "A replay is not a rollout:",
        bullet_list(found.limits),
    )


def page_title(found: WhatIf) -> str:
    """Return the title, as plain text."""
    return f"What if: {found.strategy_name} {found.version} against {found.active}"


def _facts(found: WhatIf) -> str:
    slots = sum(stage.slots for stage in found.stages)
    canary_r = sum(stage.canary_r for stage in found.stages)
    lowest = min(zip(found.earned.users, found.earned.at, strict=True), default=(0.0, found.start))
    worst = f"{format_r(lowest[0])} on {lowest[1]:%Y-%m-%d %H:%M}" if lowest[0] < 0 else None
    return fact_list(
        [
            ("period", f"{found.start:%Y-%m-%d %H:%M} to {found.until:%Y-%m-%d %H:%M} UTC"),
            ("candles", found.ticks),
            ("slots", slots),
            ("users on average", f"{format_r(found.users_r)} against the active version alone"),
            ("worst for users on average", worst),
            ("a user on the canary from the start", f"{format_r(canary_r)} against the active version"),
            ("most users on the canary", percent(max(stage.percent for stage in found.stages))),
            ("the start would have been refused", found.refused or None),
            ("warning", found.in_sample or None),
        ]
    )


def _pictures(found: WhatIf) -> str:
    start, end = found.start, found.until
    ended = "rolled back" if found.ended == "rolled_back" else ""
    spans = [ServedSpan(stage.entered, stage.left or end, stage.percent) for stage in found.stages]
    share = share_svg(
        "Share of users over time",
        [span for span in spans if span.until > span.since],
        start=start,
        end=end,
        ended=ended,
    )
    pictures = [image(share, "share of users")]
    if found.bound is not None:
        counted = ", slots before the start included" if found.bound.with_shadow else ""
        title = f"Difference in R per slot as not_worse measures it{counted}"
        stages = [(stage.entered, stage.name) for stage in found.stages]
        bound = bound_svg(title, found.bound, stages, start=start, end=end, ended=ended)
        pictures.append(image(bound, "difference and its lower bound"))
    if found.harm is not None:
        harm = harm_svg("Evidence of harm over time", found.harm, start=start, end=end)
        pictures.append(image(harm, "evidence of harm"))
    earned = found.earned
    if len(earned.at) > 1:
        curves = [
            Curve("all users on average", earned.at, earned.users),
            Curve("on the canary", earned.at, earned.canary),
        ]
        title = f"R against {found.active} alone"
        unit = "cumulative R, closed trades"
        pictures.append(image(equity_svg(title, *curves, start=start, end=end, unit=unit), "R of users"))
    return sections(*pictures).rstrip()


def _row(found: WhatIf, stage: StageOutcome) -> tuple[object, ...]:
    return (
        stage.name,
        stage.entered,
        stage.left,
        Markdown(f"{found.days_in(stage):.1f}"),
        stage.slots,
        signed(stage.canary_r),
        signed(stage.users_r),
        stage.reason if stage.left else f"not ended: {stage.reason}",
    )
