"""The hash chain. Do not change the golden hashes: every stored audit trail would break."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategy_core.domain.audit import BEFORE_THE_FIRST, ChainBreak, Link, event_hash, plain_values, verify_chain

NOON = datetime(2026, 3, 2, 12, 0, 0, 1, tzinfo=UTC)
FACTS = {
    "at": NOON,
    "actor": "ana",
    "rollout_id": UUID("6f1b1c2e-53a5-4d0b-9a39-5f8f4a0c7d11"),
    "before": {"active": "1", "percent": 0.0, "rollout": None},
    "after": {"active": "1", "percent": 33.33, "rollout": {"state": "running", "stage": 0}},
    "reason": "größer 日本 \n",
    "evidence": ["a", "b"],
    "position": 1,
}
numbers = st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(), lambda each: st.lists(each) | st.dictionaries(st.text(), each)
)


def chained(*facts: dict[str, Any]) -> list[Link]:
    links: list[Link] = []
    previous = BEFORE_THE_FIRST
    for position, each in enumerate(facts, 1):
        all_facts = {**each, "position": position}
        links.append(Link(position, previous, event_hash(previous, all_facts), all_facts))
        previous = links[-1].hash
    return links


def five() -> list[Link]:
    """Return five events that take a canary from 0 to 5 percent."""
    return chained(
        *({"actor": "ana", "before": {"percent": n}, "after": {"percent": n + 1}, "reason": ""} for n in range(5))
    )


def broken(links: list[Link], *, end: Link) -> list[ChainBreak]:
    return verify_chain(links, generation=end.position, head=end.hash)


@pytest.mark.parametrize(
    ("previous", "facts", "golden"),
    [
        (BEFORE_THE_FIRST, {}, "5649d09ed68c17156095d175eef152856c5b1a81c117c409c1e00f096aa6838e"),
        (BEFORE_THE_FIRST, FACTS, "d384176884a93fe6689865ae2bd9f25de822bab1a6bdccb72e91c6a743b50cc3"),
        ("f" * 64, FACTS, "597ce670e29f32f8d4486d5e531991645cef8e688a5b30b095306a53e2d9bc36"),
        (
            BEFORE_THE_FIRST,
            {"a": [0.0, -0.0, 1e-7, 33.33, 5.0, 1e22, 1e300], "b": [None, True, False]},
            "3e6e3bfb8e4c2240084f41e8b2b41a2437e0e19c7ca26f934f417ee60b65d7bc",
        ),
    ],
)
def test_golden_hashes(previous: str, facts: dict[str, Any], golden: str) -> None:
    assert event_hash(previous, facts) == golden


def test_a_moment_is_one_in_every_zone() -> None:
    berlin = NOON.astimezone(timezone(timedelta(hours=1)))

    assert event_hash("", {"at": berlin}) == event_hash("", {"at": NOON})
    assert plain_values(berlin) == "2026-03-02T12:00:00.000001+00:00"


@pytest.mark.parametrize(("one", "other"), [(5, 5.0), (0, -0.0), (15 * 10**299, 1.5e300), (10**22, 1e22), ((1,), [1])])
def test_what_databases_return_differently_is_the_same(one: Any, other: Any) -> None:
    """PostgreSQL returns whole JSON numbers as integers. SQLite keeps the text."""
    assert event_hash("", {"x": one}) == event_hash("", {"x": other})


@pytest.mark.parametrize(("one", "other"), [(0, None), (0, False), (1, True), ("1", 1), ("", None), ([], {})])
def test_what_is_not_the_same_never_looks_so(one: Any, other: Any) -> None:
    assert event_hash("", {"x": one}) != event_hash("", {"x": other})


@given(values)
def test_a_fact_that_was_written_and_read_is_the_same_fact(value: Any) -> None:
    assert plain_values(plain_values(value)) == plain_values(value)


def test_no_number_keeps_a_change_from_being_recorded() -> None:
    assert len({event_hash("", {"x": x}) for x in (10**400, float("inf"), float("nan"))}) == 3


def test_a_chain_holds_as_it_was_written() -> None:
    links = five()

    assert broken(links, end=links[-1]) == []
    assert verify_chain([], generation=0, head="") == []


@pytest.mark.parametrize("fact", ["actor", "reason", "before", "after", "position"])
def test_a_changed_fact_is_found_at_its_event(fact: str) -> None:
    links = five()
    links[2] = replace(links[2], facts={**links[2].facts, fact: "eve"})

    assert broken(links, end=links[-1]) == [ChainBreak(3, "was changed: its hash is not that of its facts")]


def test_a_changed_fact_with_a_hash_of_its_own_is_found_at_the_next_event() -> None:
    links = five()
    facts = {**links[2].facts, "actor": "eve"}
    links[2] = replace(links[2], facts=facts, hash=event_hash(links[2].previous_hash, facts))

    assert broken(links, end=links[-1]) == [ChainBreak(4, "does not carry the hash of the event before it")]


@pytest.mark.parametrize(
    ("order", "found"), [((0, 1, 3, 4), [4]), ((1, 2, 3, 4), [2]), ((0, 1, 3, 2, 4), [4, 3, 5]), ((0, 1, 1, 2), [2])]
)
def test_an_event_removed_moved_or_doubled_is_found(order: tuple[int, ...], found: list[int]) -> None:
    links = five()

    breaks = broken([links[index] for index in order], end=links[order[-1]])

    assert [each.position for each in breaks] == found


def test_an_event_removed_or_added_at_the_end_is_found_by_the_strategys_own_row() -> None:
    links = five()

    assert broken(links[:4], end=links[4])[0].position == 5
    assert broken(links, end=links[3])[0].position == 4
    assert verify_chain(links, generation=5, head="0" * 64)[0].position == 5


def test_a_change_that_no_event_tells_of_is_found_between_two_events() -> None:
    links = chained({"after": {"active": "1", "percent": 5}}, {"before": {"active": "1", "percent": 9}, "after": []})

    (found,) = broken(links, end=links[-1])

    assert found == ChainBreak(2, "begins with another percent than the event before it left: an unrecorded change")


def test_a_resume_of_an_earlier_release_is_no_break() -> None:
    """Its percent before the change was recorded as the one after it. Recorded events stay as they are."""
    links = chained({"after": {"percent": 5}}, {"action": "resume", "before": {"percent": 9}})

    assert broken(links, end=links[-1]) == []
