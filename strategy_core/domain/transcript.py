"""Audit events as lines of text, to be kept elsewhere: JSON that can be verified, CSV for people; it opens no file."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from strategy_core.domain.chain import Chain, Link, event_hash, plain
from strategy_core.domain.errors import InvalidExport

_SOURCE = "the export"
_NOT_HASHED = frozenset({"id", "previous_hash", "hash"})
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # what spreadsheets may take for the beginning of one


def as_json(columns: Mapping[str, Any]) -> str:
    """Return an event as one line of JSON, in ASCII: no character of a reason can break the line."""
    return json.dumps(plain(columns), separators=(",", ":")) + "\n"


def as_csv(cells: Iterable[Any]) -> str:
    """Return one line of CSV; what is no text stands as JSON.

    A text that a spreadsheet could take for a formula gets a `'` before it, which spreadsheets hide: a reason may come
    from anybody. So a CSV is for people; what shall be verified is exported as JSON.
    """
    line = io.StringIO()
    csv.writer(line).writerow([_cell(each) for each in cells])
    return line.getvalue()


def links(lines: Iterable[str]) -> Iterator[tuple[str, Link]]:
    """Yield the events of an export as JSON, each with its strategy's name.

    Raises:
        InvalidExport: a line is no event.
    """
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            event = json.loads(line)
            facts = {name: value for name, value in event.items() if name not in _NOT_HASHED}
            link = Link(facts["position"], event["previous_hash"], event["hash"], facts)
            yield str(facts["strategy_name"]), link
        except (ValueError, KeyError, AttributeError, RecursionError):
            raise InvalidExport(_SOURCE, "is no event of an audit trail", number) from None
        if not isinstance(link.position, int) or not all(_is_ascii(each) for each in (link.previous_hash, link.hash)):
            raise InvalidExport(_SOURCE, "is no event of an audit trail", number)


def follow(lines: Iterable[str]) -> dict[str, Chain]:
    """Return the chain of each strategy in an export as JSON, followed to its last event there.

    What filters left out is a break, as what somebody removed would be: only whole trails can be verified alone.
    """
    chains: dict[str, Chain] = {}
    for number, (strategy_name, link) in enumerate(links(lines), 1):
        with _of_no_depth(number):
            chains.setdefault(strategy_name, Chain()).follow(link)
    return chains


def noted_heads(lines: Iterable[str], only: str | None = None) -> Iterator[str]:
    """Yield the hashes of an export that vouch for all its others: the last of each run of events without a gap.

    Args:
        only: of this strategy; of all, unless given.

    Raises:
        InvalidExport: a line is no event, or was changed.
    """
    last: dict[str, Link] = {}
    for number, (strategy_name, link) in enumerate(links(lines), 1):
        with _of_no_depth(number):
            true = event_hash(link.previous_hash, link.facts)
        if link.hash != true:
            raise InvalidExport(_SOURCE, "was changed: its hash is not that of its facts", number)
        if only not in (None, strategy_name):
            continue
        before = last.get(strategy_name)
        if before is not None and before.hash != link.previous_hash:
            yield before.hash
        last[strategy_name] = link
    yield from (link.hash for link in last.values())


@contextmanager
def _of_no_depth(number: int) -> Iterator[None]:
    """Refuse what is nested so deeply that nobody can compute its hash."""
    try:
        yield
    except RecursionError:
        raise InvalidExport(_SOURCE, "is no event of an audit trail", number) from None


def _is_ascii(value: Any) -> bool:
    return isinstance(value, str) and value.isascii()


def _cell(value: Any) -> str:
    found = plain(value)
    if isinstance(found, str):
        return f"'{found}" if found.startswith(_FORMULA) else found
    return "" if found is None else json.dumps(found, ensure_ascii=False)
