"""Exports of the audit trail: exact as JSON, harmless as CSV."""

import csv
import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategy_core.domain.audit import BEFORE_THE_FIRST, as_csv, as_json, event_hash, follow, noted_heads
from strategy_core.domain.errors import InvalidExport

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)


def exported(*strategies: str) -> list[str]:
    """Return the lines of an event of each strategy that is named, in that order."""
    heads: dict[str, tuple[int, str]] = {}
    lines = []
    for number, name in enumerate(strategies):
        position, previous = heads.get(name, (0, BEFORE_THE_FIRST))
        facts: dict[str, Any] = {
            "at": NOON,
            "strategy_name": name,
            "rollout_id": UUID(int=number),
            "reason": "line\u2028break\n",
            "position": position + 1,
        }
        linked = event_hash(previous, facts)
        lines.append(as_json({"id": number, "previous_hash": previous, "hash": linked, **facts}))
        heads[name] = (position + 1, linked)
    return lines


def test_an_export_can_be_followed_as_the_trail_itself() -> None:
    lines = exported("a", "b", "a", "a")

    chains = follow([*lines, "\n"])

    assert {name: (chain.count, chain.breaks) for name, chain in chains.items()} == {"a": (3, []), "b": (1, [])}
    assert chains["a"].head == json.loads(lines[3])["hash"]
    assert [len(line.splitlines()) for line in lines] == [1] * 4


def test_a_line_that_was_removed_or_changed_is_found() -> None:
    lines = exported("a", "a", "a")

    removed = follow([lines[0], lines[2]])["a"]
    changed = follow([lines[0], lines[1].replace("break", "brake"), lines[2]])["a"]

    assert [each.position for each in removed.breaks] == [3]
    assert [each.position for each in changed.breaks] == [2]


def test_the_last_hash_of_each_run_vouches_for_the_others() -> None:
    lines = exported("a", "b", "a", "a", "b")
    hashes = [json.loads(line)["hash"] for line in lines]

    assert list(noted_heads(lines)) == [hashes[3], hashes[4]]
    assert list(noted_heads([lines[0], lines[3]])) == [hashes[0], hashes[3]]
    assert list(noted_heads(lines, only="b")) == [hashes[4]]


def test_a_changed_line_vouches_for_nothing() -> None:
    with pytest.raises(InvalidExport, match="the export, row 2: was changed"):
        list(noted_heads([line.replace("break", "brake") if "1" in line[:8] else line for line in exported("a", "a")]))


@pytest.mark.parametrize(
    "line",
    ["no JSON", "[]", "5", "{}", '{"hash": "x"}', "[" * 100_000]
    + [
        json.dumps({"strategy_name": "a", "position": p, "hash": h, "previous_hash": ""})
        for p, h in (("1", ""), (1, 1))
    ],
    ids=lambda line: line[:12],
)
def test_what_is_no_event_is_refused_by_its_line(line: str) -> None:
    with pytest.raises(InvalidExport, match="the export, row 2: is not an event"):
        follow([*exported("a"), line])


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1"])
def test_no_text_of_a_csv_is_a_formula(text: str) -> None:
    assert next(csv.reader([as_csv([text])], strict=True))[0].startswith("'")


@given(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"])))
def test_any_other_text_stands_in_a_csv_as_it_is(text: str) -> None:
    (read,) = next(csv.reader([as_csv([f"x{text}"])]))

    assert read == f"x{text}"


def test_what_is_no_text_stands_in_a_csv_as_json() -> None:
    line = as_csv([5, None, {"active": "1", "percent": 5.0}, ["ü"], NOON, UUID(int=1)])

    assert next(csv.reader([line])) == [
        "5",
        "",
        '{"active": "1", "percent": 5}',
        '["ü"]',
        "2026-03-02T12:00:00.000000+00:00",
        "00000000-0000-0000-0000-000000000001",
    ]


@pytest.mark.parametrize("depth", [600, 2_000])
def test_what_is_nested_too_deep_to_hash_is_refused_or_a_break(depth: int) -> None:
    """How deep that is depends on the interpreter."""
    first, second = exported("a", "a")
    nested = f'{second.rstrip()[:-1]}, "more": {"[" * depth}{"]" * depth}}}'

    try:
        told = [f"row {each.position}" for each in follow([first, nested])["a"].breaks]
    except InvalidExport as refused:
        told = [str(refused)]

    assert len(told) == 1
    assert "row 2" in told[0]
