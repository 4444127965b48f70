"""Tables, cells and sparklines for the terminal."""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from rich.box import SIMPLE
from rich.table import Table

from strategy_core.report import markdown

_BARS = "▁▂▃▄▅▆▇█"


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None) -> Table:
    made = Table(*columns, title=title, title_justify="left", box=SIMPLE)
    for column in made.columns:
        column.overflow = "fold"  # a truncated id or reason is useless
    for row in rows:
        made.add_row(*(cell(value) for value in row))
    return made


def facts_table(pairs: Mapping[str, object]) -> Table:
    """Return a table with one name and value per line."""
    made = Table(box=None, show_header=False, pad_edge=False)
    made.add_column(style="bold")
    made.add_column(overflow="fold")
    for name, value in pairs.items():
        made.add_row(name, cell(value))
    return made


def cell(value: object) -> str:
    """Format *value* as in reports, without terminal control characters."""
    return markdown.cell(value, plain)


def spark(times: Sequence[datetime], values: Sequence[float], *, width: int = 60) -> str:
    """Draw *values* over time as a row of bars. Each bar shows the value at the end of its interval.

    Args:
        times: when each value began, ascending, at least one. A value holds until the next.
        width: number of bars.
    """
    low, high = min(values), max(values)
    span = times[-1] - times[0]
    ends = [times[0] + span * (bar + 1) / width for bar in range(width - 1)] + [times[-1]]
    stood = [values[bisect_right(times, end) - 1] for end in ends]
    steps = len(_BARS) - 1
    return "".join(_BARS[round((value - low) / ((high - low) or 1.0) * steps)] for value in stood)


def plain(words: str) -> str:
    """Replace non-printable characters: the error text of a version can contain terminal control sequences."""
    return "".join(character if character.isprintable() else " " for character in words)
