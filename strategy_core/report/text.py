"""Markdown that people's and versions' words cannot break out of; it knows nothing of rollouts.

What people wrote reaches it as plain text and leaves it as text: no mark-up, no link, no image, no HTML, on one line.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from shlex import quote
from unicodedata import bidirectional

from strategy_core.domain.alert import clipped

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
