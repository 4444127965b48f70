"""Which exclusions follow from audit events, and which differences of the stored rows are found."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from strategy_core.domain.exclusion_replay import ExclusionReplay, UsersChanged, last_stages

T = datetime(2026, 3, 2, tzinfo=UTC)
HOUR = timedelta(hours=1)


@dataclass
class Row:
    user_id: str
    kind: str = "opt_out"
    valid_from: datetime = T
    valid_to: datetime | None = None
    until: datetime | None = None
    reason: str = "asked"
    actor: str = "olivia"
    id: int | None = 7


def event(
    action: str, *ids: str, at: datetime = T, kind: str = "opt_out", strategies: Any = ("s",), **users: Any
) -> dict[str, Any]:
    after = {"users": {"kinds": [kind], "ids": list(ids), "strategies": strategies, **users}} if ids else {}
    return {"action": action, "at": at, "actor": "olivia", "source": "cli", "reason": "asked", "after": after}


def problems(events: Sequence[dict[str, Any]], *rows: Row, last: bool = False) -> list[str]:
    replay = ExclusionReplay()
    for each in events:
        replay.follow(each, enters_last=last)
    return [f"{row} {problem}" for row, problem in replay.differences(rows)]


def test_rows_that_follow_are_not_named() -> None:
    until = T + 2 * HOUR
    events = [
        event("exclude_users", "a", "b", until=until.isoformat()),
        event("end_exclusions", "a", at=T + HOUR),
        event("exclude_users", "b", at=T + 3 * HOUR),
        event("start_rollout", "c", at=T + 4 * HOUR, kind="large_account"),
        event("advance"),
    ]
    rows = [
        Row("a", until=until, valid_to=T + HOUR),
        Row("b", until=until, valid_to=T + 3 * HOUR),  # it had run out before it was set anew
        Row("b", valid_from=T + 3 * HOUR),
        Row("c", "large_account", valid_from=T + 4 * HOUR, reason="another text"),
    ]

    assert problems(events, *rows) == []


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        (
            {"valid_from": T + HOUR},
            "has valid_from 2026-03-02T01:00:00+00:00, but its audit events leave 2026-03-02T00",
        ),
        ({"until": T + HOUR}, "has until 2026-03-02T01:00:00+00:00, but its audit events leave None"),
        ({"valid_to": T + HOUR}, "has valid_to 2026-03-02T01:00:00+00:00, but its audit events leave None"),
        ({"actor": "eve"}, "has actor 'eve', but its audit events leave 'olivia'"),
        ({"reason": "why"}, "has reason 'why', but its audit events leave 'asked'"),
    ],
)
def test_a_changed_row_is_named(changed: dict[str, Any], problem: str) -> None:
    (line,) = problems([event("exclude_users", "a")], replace(Row("a"), **changed))

    assert line.startswith(f"7 (opt_out of a) {problem}")


def test_a_row_without_an_event_and_an_event_without_a_row_are_named() -> None:
    assert problems([event("exclude_users", "a")], Row("b")) == [
        "7 (opt_out of b) has no audit event that set it",
        "(opt_out of a) is missing: an audit event set it",
    ]


@pytest.mark.parametrize(
    ("action", "last", "ended"),
    [
        ("start_rollout", False, {True}),
        ("activate_canary", False, {True}),
        ("advance", False, {False}),
        ("advance", True, {True}),
        ("resume", False, {False}),
        ("resume", True, {True, False}),  # the cap may not have been computed
    ],
)
def test_large_accounts_are_released_where_the_software_does(action: str, last: bool, ended: set[bool]) -> None:
    kept = event("start_rollout", "a", kind="large_account")
    row = Row("a", "large_account")
    found = set()
    for is_ended in (True, False):
        valid_to = T + HOUR if is_ended else None
        if problems([kept, event(action, at=T + HOUR)], replace(row, valid_to=valid_to), last=last) == []:
            found.add(is_ended)

    assert found == ended


def test_large_accounts_of_a_resumed_stage_may_lack_an_event() -> None:
    events = [event("resume", at=T + HOUR)]

    assert problems(events, Row("a", "large_account", valid_from=T + HOUR)) == []
    assert problems(events, Row("a", "large_account"))
    assert problems(events, Row("a", valid_from=T + HOUR))


def test_changes_of_all_strategies_are_returned_and_not_applied() -> None:
    replay = ExclusionReplay()

    change = replay.follow(event("exclude_users", "a", strategies="all"))

    assert change == UsersChanged(("opt_out",), ("a",), for_all=True, until=None)
    assert list(replay.differences([])) == []


@pytest.mark.parametrize("after", [None, [], {}, {"users": 5}])
def test_an_event_without_users_shows_no_change(after: Any) -> None:
    assert UsersChanged.of(after) is None


@pytest.mark.parametrize(
    ("plan", "stages"),
    [
        ({"stages": [{"percent": 5}, {"percent": 100.0}]}, [1]),
        ({"stages": [3]}, []),
        ({"stages": 3}, []),
        (None, []),
    ],
)
def test_the_stages_that_serve_all_users(plan: Any, stages: list[int]) -> None:
    assert last_stages(plan) == stages
