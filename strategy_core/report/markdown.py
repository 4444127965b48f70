"""Markdown that people's and versions' words cannot break out of; it knows nothing of rollouts.

What people wrote reaches it as plain text and leaves it as text: no mark-up, no link, no image, no HTML, on one line.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from shlex import quote
from unicodedata import bidirectional

import numpy as np
import pandas as pd

from strategy_core.domain.alerts import clipped
from strategy_core.domain.gates.base import Verdict, format_duration
from strategy_core.report.charts import Curve, as_image, difference_svg, divergence_svg, equity_svg, harm_svg, share_svg
from strategy_core.services.history import Day, Equity, ServedSpan
from strategy_core.services.reports import HarmPath, RollbackCost
from strategy_core.store.tables import GateVerdict

NOTHING = "–"
_MARKUP = re.compile(r"([!-/:-@\[-`{-~])")  # all of ASCII's punctuation: any of it may be escaped, wherever it stands
_RIGHT_TO_LEFT = ("R", "AL")
_ISOLATE, _POP = "\u2068", "\u2069"
_ZERO = 1e-12  # what sums of floats leave of nothing
_RUNS = re.compile(r"`+")


def plain(words: str) -> str:
    """Return *words* as Markdown that shows them as they are, on one line, clipped where they are very long."""
    return _isolated(_MARKUP.sub(r"\\\1", clipped(words)))


def cell(value: object, shown: Callable[[str], str] = plain) -> str:
    """Return *value* as people read it: times to the minute in UTC, numbers to four digits, nothing as a dash.

    Args:
        shown: what becomes of text, so that it can do no harm where it is read.
    """
    match value:
        case None | "":
            return NOTHING
        case bool():
            return "yes" if value else "no"
        case datetime():
            return f"{value:%Y-%m-%d %H:%M}"
        case float():
            return f"{value:.4g}" if abs(value) >= _ZERO else "0"
        case int():
            return f"{value:,}"
        case Markdown():
            return str(value)
        case list() | tuple():
            return ", ".join(cell(each, shown) for each in value) or NOTHING
        case _:
            return shown(str(value))


class Markdown(str):
    """Text that is Markdown of ours already, to be put into a table as it stands."""

    __slots__ = ()


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table; numbers stand at the right where a column has nothing else."""
    made = [list(row) for row in rows]
    numbers = [
        all(value is None or isinstance(value, int | float) for value in column) for column in zip(*made, strict=True)
    ] or [False] * len(columns)
    lines = [list(columns), ["---:" if number else "---" for number in numbers]]
    return "\n".join(f"| {' | '.join(line)} |" for line in [*lines, *([cell(value) for value in row] for row in made)])


def facts(pairs: Iterable[tuple[str, object]]) -> str:
    """Return names and values, a pair a line, without those that are None; a list, whose long lines are wrapped."""
    return "\n".join(f"- **{name}:** {cell(value)}" for name, value in pairs if value is not None)


def points(lines: Iterable[str]) -> str:
    return "\n".join(f"- {plain(line)}" for line in lines)


def commands(lines: Iterable[str]) -> str:
    """Return commands for a shell, to be copied."""
    inside = [clipped(line) for line in lines]
    longest = max((len(run) for line in inside for run in _RUNS.findall(line)), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join([f"{fence}sh", *inside, fence])


def argument(name: str) -> str:
    """Return *name* as one word of a shell's command."""
    return quote(clipped(name))


def sections(*parts: str) -> str:
    """Return the parts that are not empty, a blank line between each two."""
    return "\n\n".join(part for part in parts if part) + "\n"


def _isolated(words: str) -> str:
    """Keep words that run from right to left from moving what stands beside them."""
    if any(bidirectional(char) in _RIGHT_TO_LEFT for char in words):
        return f"{_ISOLATE}{words}{_POP}"
    return words


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


def reached(shares: Sequence[ServedSpan], directory: int | None) -> str:
    """Return a table of which share of users got the version, from when to when."""
    if not shares:
        return "It served nobody."
    columns = ["from", "to", "for", "percent"]
    rows = [(one.since, one.until, format_duration(one.until - one.since), percent(one.percent)) for one in shares]
    if directory is None:
        return table(columns, rows)
    counts = [one.users for one in shares]
    return table([*columns, "users", "of all"], [(*row, n, directory) for row, n in zip(rows, counts, strict=True)])


def share_picture(shares: Sequence[ServedSpan], *, start: datetime, end: datetime, ended: str = "") -> str:
    if not shares or end <= start:
        return ""
    return as_image(share_svg("Share of users over time", shares, start=start, end=end, ended=ended), "share of users")


def harm_picture(path: HarmPath | None, *, start: datetime, end: datetime) -> str:
    if path is None:
        return ""
    svg = harm_svg("Evidence of harm over time", path, start=start, end=max(end, path.at[-1]))
    return as_image(svg, "evidence of harm")


def cost(found: RollbackCost, canary: str, control: str) -> str:
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
