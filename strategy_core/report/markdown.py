"""Markdown building blocks that keep foreign text inert.

Names, reasons and errors come from people and versions. They stay plain text on one line, without markup, links, images
or HTML.
"""

import re
from base64 import b64encode
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from shlex import quote
from unicodedata import bidirectional

from strategy_core.domain.alerts import clipped

EMPTY = "–"
_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")  # all of ASCII's: Markdown allows a backslash before any of it
_BACKTICKS = re.compile(r"`+")
_RIGHT_TO_LEFT = ("R", "AL")
_ISOLATE, _END_ISOLATE = "\u2068", "\u2069"
_ZERO = 1e-12  # smaller values are rounding errors of float sums


class Markdown(str):
    """Trusted Markdown, which `cell` does not escape."""

    __slots__ = ()


def plain(words: str) -> str:
    """Return *words* as Markdown that shows them unchanged on one line. Very long text is clipped."""
    escaped = _PUNCTUATION.sub(r"\\\1", clipped(words))
    if any(bidirectional(char) in _RIGHT_TO_LEFT for char in words):
        return f"{_ISOLATE}{escaped}{_END_ISOLATE}"  # or it would reorder the text around it
    return escaped


def cell(value: object, escape: Callable[[str], str] = plain) -> str:
    """Format *value* for people: times to the minute in UTC, numbers to four digits, missing values as a dash.

    Args:
        escape: makes text safe for the place where it is shown.
    """
    match value:
        case None | "":
            return EMPTY
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
            return ", ".join(cell(each, escape) for each in value) or EMPTY
        case _:
            return escape(str(value))


def percent(value: float) -> Markdown:
    return Markdown(f"{value:g} %")


def signed(value: float | None, digits: int = 2) -> Markdown | None:
    return None if value is None else Markdown(f"{round(value, digits) + 0.0:+.{digits}f}")  # no -0.00


def sections(*parts: str) -> str:
    """Join the parts that are not empty, with a blank line between them."""
    return "\n\n".join(part for part in parts if part) + "\n"


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table. Columns that hold only numbers are aligned to the right."""
    values = [list(row) for row in rows]
    numeric = [
        all(value is None or isinstance(value, int | float) for value in column) for column in zip(*values, strict=True)
    ] or [False] * len(columns)
    lines = [list(columns), ["---:" if number else "---" for number in numeric]]
    lines += [[cell(value) for value in row] for row in values]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def fact_list(facts: Iterable[tuple[str, object]]) -> str:
    """Return one line per fact, without missing values. Unlike table cells, long lines wrap."""
    return "\n".join(f"- **{name}:** {cell(value)}" for name, value in facts if value is not None)


def bullet_list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {plain(line)}" for line in lines)


def shell_block(commands: Iterable[str]) -> str:
    """Return shell commands as a block that can be copied."""
    lines = [clipped(command) for command in commands]
    longest = max((len(run) for line in lines for run in _BACKTICKS.findall(line)), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join([f"{fence}sh", *lines, fence])


def shell_argument(name: str) -> str:
    """Quote *name* as one argument of a shell command."""
    return quote(clipped(name))


def image(svg: str, alt: str) -> str:
    """Embed an SVG. *alt* is trusted text."""
    return f"![{alt}](data:image/svg+xml;base64,{b64encode(svg.encode()).decode()})"
