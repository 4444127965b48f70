"""Parts that several reports have: gates, whom a version reached, what slots came to; it reads nothing."""

from collections.abc import Callable, Sequence
from datetime import datetime

import numpy as np
import pandas as pd

from strategy_core.domain.gates import Verdict
from strategy_core.domain.span import told
from strategy_core.report.plot import Curve, difference_svg, divergence_svg, equity_svg, harm_svg, share_svg
from strategy_core.report.strokes import as_image
from strategy_core.report.text import Markdown, facts, plain, sections, table
from strategy_core.services.curves import Day, Equity
from strategy_core.services.exposure import Served
from strategy_core.services.report import Cost, HarmPath
from strategy_core.store.rollout_tables import GateVerdict

_BAD = (Verdict.BREACH, Verdict.FAIL, Verdict.BLIND)


def gates(
    said: Sequence[GateVerdict], since: Callable[[str], datetime | None] | None = None, *, wide: bool = False
) -> str:
    """Return what each gate says, in the order given.

    Args:
        since: tells when a gate began to say so; else it is told when it said so.
        wide: put the reasons into the table: Prefect's pages wrap no line there, and would cut them off.
    """
    if not said:
        return "No gate has spoken yet."
    columns = ["gate", "verdict", "value", "limit", "interval", "n", "since" if since else "at", "why"]
    rows = [
        (
            row.gate,
            verdict(row),
            row.value,
            row.limit,
            interval(row.low, row.high),
            row.n,
            since(row.gate) if since else row.ticked_at,
            row.reason,
        )
        for row in said
    ]
    if wide:
        return table(columns, rows)
    narrow = table(columns[:-1], [row[:-1] for row in rows])
    return f"{narrow}\n\n{facts([(plain(row.gate), row.reason) for row in said])}"


def verdict(row: GateVerdict) -> Markdown:
    word = f"**{row.verdict}**" if row.verdict in _BAD else row.verdict
    return Markdown(word if row.armed else f"{word} (no vote)")


def interval(low: float | None, high: float | None) -> Markdown | None:
    if low is None and high is None:
        return None
    if low is None or high is None:
        return Markdown(f"at least {low:.4g}" if low is not None else f"at most {high:.4g}")
    return Markdown(f"{low:.4g} to {high:.4g}")


def users(count: int | None, directory: int | None) -> str:
    """Return how many users that is; nothing where no directory is loaded."""
    return "" if count is None or directory is None else f"{count:,} of {directory:,} users"


def reached(shares: Sequence[Served], directory: int | None) -> str:
    """Return a table of which share of users got the version, from when to when."""
    if not shares:
        return "It served nobody."
    columns = ["from", "to", "for", "percent"]
    rows = [(one.since, one.until, told(one.until - one.since), percent(one.percent)) for one in shares]
    if directory is None:
        return table(columns, rows)
    counts = [one.users for one in shares]
    return table([*columns, "users", "of all"], [(*row, n, directory) for row, n in zip(rows, counts, strict=True)])


def share_picture(shares: Sequence[Served], *, start: datetime, end: datetime, ended: str = "") -> str:
    if not shares or end <= start:
        return ""
    return as_image(share_svg("Share of users over time", shares, start=start, end=end, ended=ended), "share of users")


def harm_picture(path: HarmPath | None, *, start: datetime, end: datetime) -> str:
    if path is None:
        return ""
    svg = harm_svg("Evidence of harm over time", path, start=start, end=max(end, path.at[-1]))
    return as_image(svg, "evidence of harm")


def cost(found: Cost, canary: str, control: str) -> str:
    """Return what a user who copied one version got, and what one who copied the other did."""
    if found.slots == 0:
        return "No slot has closed: nothing was gained or lost that could be counted."
    difference = found.canary_r - found.control_r
    told_of = table(
        ["slots", "R of a user of " + plain(canary), "R of a user of " + plain(control), "difference"],
        [(found.slots, signed(found.canary_r), signed(found.control_r), signed(difference))],
    )
    note = (
        "R is the risk of one trade. A user is one who copied every signal since the rollout began; both are counted "
        "over the same closed slots, by the strategy's scoring rule."
    )
    return sections(told_of, note).rstrip()


def equity_picture(equity: Equity, canary: str, control: str, *, start: datetime, end: datetime) -> str:
    times = pd.DatetimeIndex(list(equity.at))
    curves = [
        Curve(name, times, np.array(values, np.float64))
        for name, values in ((canary, equity.canary), (control, equity.control))
    ]
    svg = equity_svg("Equity of both versions", *curves, start=start, end=max(end, equity.at[-1]))
    return as_image(svg, "equity of both versions")


def day_pictures(days: Sequence[Day], usual: float | None) -> str:
    """Return both pictures of slots by day; nothing without a slot."""
    if not days:
        return ""
    return sections(
        as_image(
            divergence_svg("Divergence by day: share of slots on which the two differ", days, usual), "divergence"
        ),
        as_image(difference_svg("Paired difference to date, with its 95 % interval", days), "paired difference"),
    ).rstrip()


def percent(value: float) -> Markdown:
    return Markdown(f"{value:g} %")


def signed(value: float | None, digits: int = 2) -> Markdown | None:
    return None if value is None else Markdown(f"{value:+.{digits}f}")
