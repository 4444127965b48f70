"""A year later: who ran what, when and why, asked of the trail alone."""

import csv
import json
from datetime import timedelta
from itertools import pairwise
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine

from strategy_core.domain.audit import Actor, Command
from strategy_core.domain.errors import NaiveTime, NothingRecorded, UnknownRollout, UnknownStrategy
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services.audit import (
    ExportFormat,
    about_rollout,
    export,
    read_audit,
    read_events,
    state_at,
    verify_export,
    verify_trail,
)
from strategy_core.services.canary import activate_canary
from strategy_core.services.rollback import roll_back
from strategy_core.services.rollouts import pause, start_rollout
from strategy_core.services.tick import tick
from strategy_core.services.versions import activate_version
from strategy_core.store.tables import AlertOutbox, AuditEvent, GateVerdict, Rollout
from tests.builders import DAY, HOUR, MONDAY, put_day, put_version
from tests.prepared import prepared

ANA, BEN = Actor("ana", request_id="r1"), Actor("ben", source="api")


@pytest.fixture
def year(engine: Engine) -> Engine:
    """Ana starts version 2 on Monday and pauses on Tuesday; Ben rolls it back on Thursday and activates 3 on Friday."""
    prepared(engine, live_a_year)
    return engine


def live_a_year(engine: Engine) -> None:
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2")
    put_version(engine, "3")
    put_version(engine, "1", Status.ACTIVE, strategy_name="ppo_gold")
    put_version(engine, "2", strategy_name="ppo_gold")
    start_rollout(engine, Command(ANA, MONDAY, "better"), strategy_name="fib_rsi", version="2", plan=Plan())
    pause(engine, Command(ANA, MONDAY + DAY, "holidays"), strategy_name="fib_rsi")
    activate_canary(engine, Command(BEN, MONDAY + 2 * DAY), strategy_name="ppo_gold", version="2", rollout_percent=1)
    roll_back(engine, Command(BEN, MONDAY + 3 * DAY, "users complain"), strategy_name="fib_rsi")
    activate_version(engine, Command(BEN, MONDAY + 4 * DAY, "=HYPERLINK(1)"), strategy_name="fib_rsi", version="3")


def the_rollout(engine: Engine) -> Rollout:
    (event,) = read_events(engine, "fib_rsi", action="start_rollout")
    assert event.rollout_id is not None
    return about_rollout(engine, event.rollout_id)[0]


@pytest.mark.parametrize(
    ("wanted", "actions"),
    [
        ({}, ["start_rollout", "pause", "activate_canary", "roll_back", "activate_version"]),
        ({"strategy_name": "ppo_gold"}, ["activate_canary"]),
        ({"actor": "ana"}, ["start_rollout", "pause"]),
        ({"action": "pause"}, ["pause"]),
        ({"since": MONDAY + DAY, "until": MONDAY + 3 * DAY}, ["pause", "activate_canary"]),
        ({"limit": 2}, ["start_rollout", "pause"]),
        ({"limit": 2, "newest": True}, ["roll_back", "activate_version"]),
        ({"actor": "ben", "strategy_name": "fib_rsi", "since": MONDAY + 4 * DAY}, ["activate_version"]),
        ({"actor": "carla"}, []),
    ],
)
def test_the_events_that_are_asked_for_come_oldest_first(year: Engine, wanted: Any, actions: list[str]) -> None:
    assert [event.action for event in read_events(year, **wanted)] == actions


def test_pages_follow_one_another_by_the_last_id(year: Engine) -> None:
    pages = []
    after = None
    while page := read_events(year, after_id=after, limit=2):
        pages.append([event.action for event in page])
        after = page[-1].id

    assert pages == [["start_rollout", "pause"], ["activate_canary", "roll_back"], ["activate_version"]]


def test_all_of_a_rollout_is_found_by_its_id(year: Engine) -> None:
    events = read_events(year, rollout_id=the_rollout(year).id)

    assert [event.action for event in events] == ["start_rollout", "pause", "roll_back"]


def test_what_is_not_known_is_refused_by_name(year: Engine) -> None:
    nobody = UUID(int=0)
    with pytest.raises(UnknownStrategy):
        read_audit(year, "nope")
    with pytest.raises(UnknownRollout):
        read_events(year, rollout_id=nobody)
    with pytest.raises(UnknownRollout):
        about_rollout(year, nobody)
    with pytest.raises(UnknownStrategy):
        state_at(year, "nope", MONDAY)
    with pytest.raises(UnknownStrategy):
        verify_trail(year, "nope")
    with pytest.raises(UnknownStrategy):
        list(export(year, strategy_name="nope"))
    with pytest.raises(NaiveTime):
        read_events(year, since=MONDAY.replace(tzinfo=None))


@pytest.mark.parametrize(
    ("after", "active", "canary", "percent", "rollout", "action"),
    [
        (timedelta(0), "1", "2", 5.0, {"state": "running", "stage": 0}, "start_rollout"),
        (DAY - HOUR, "1", "2", 5.0, {"state": "running", "stage": 0}, "start_rollout"),
        (DAY, "1", "2", 5.0, {"state": "paused", "stage": 0}, "pause"),
        (3 * DAY, "1", None, 0.0, None, "roll_back"),
        (365 * DAY, "3", None, 0.0, None, "activate_version"),
    ],
)
def test_what_stood_at_a_moment_is_told_with_the_change_that_made_it(
    year: Engine, after: timedelta, active: str, canary: str, percent: float, rollout: Any, action: str
) -> None:
    stood = state_at(year, "fib_rsi", MONDAY + after)

    assert (stood.active, stood.canary, stood.percent, stood.rollout) == (active, canary, percent, rollout)
    assert stood.event.action == action


def test_each_fact_names_who_made_it_so(year: Engine) -> None:
    paused, ended = state_at(year, "fib_rsi", MONDAY + 2 * DAY), state_at(year, "fib_rsi", MONDAY + 9 * DAY)

    told = {fact: (event.actor, event.reason) for fact, event in paused.made_by.items()}
    assert told == {"canary": ("ana", "better"), "percent": ("ana", "better"), "rollout": ("ana", "holidays")}
    assert {fact: event.action for fact, event in ended.made_by.items()} == {
        "active": "activate_version",
        "canary": "roll_back",
        "percent": "roll_back",
        "rollout": "roll_back",
    }


def test_before_the_first_event_nothing_is_claimed(year: Engine) -> None:
    with pytest.raises(NothingRecorded, match="no entry for 'fib_rsi' at 2026-03-01 23:00 UTC or earlier"):
        state_at(year, "fib_rsi", MONDAY - HOUR)


def test_a_clock_that_ran_back_moves_no_change_behind_a_later_one(year: Engine) -> None:
    """The order of the trail is the true one: at Thursday noon version 3 was not active yet, whatever a clock says."""
    activate_version(year, Command(BEN, MONDAY), strategy_name="fib_rsi", version="1")

    assert state_at(year, "fib_rsi", MONDAY + DAY).event.action == "pause"
    assert state_at(year, "fib_rsi", MONDAY + 4 * DAY).active == "1"


def test_a_rollouts_story_is_its_verdicts_changes_and_alerts_in_order(engine: Engine, market: SyntheticSource) -> None:
    said, worth = {"1": "buy", "2": "buy"}, {"1": 0.4, "2": -1.0}
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2")
    rollout = start_rollout(engine, Command(ANA, MONDAY), strategy_name="fib_rsi", version="2", plan=Plan())
    for day in range(4):
        put_day(engine, MONDAY + day * DAY, said, worth, signal_hours=range(0, 20, 2))
        tick(engine, market, now=MONDAY + (day + 1) * DAY)
    tick(engine, market, now=MONDAY + 5 * DAY)

    found, happenings = about_rollout(engine, rollout.id)

    assert found.state == "rolled_back"
    assert [each.at for each in happenings] == sorted(each.at for each in happenings)
    changes = {each.told.action: each.told for each in happenings if isinstance(each.told, AuditEvent)}
    turns = [(each.told.gate, each.told.verdict) for each in happenings if isinstance(each.told, GateVerdict)]
    kinds = [type(each.told) for each in happenings if each.at == changes["roll_back"].at]
    assert list(changes) == ["start_rollout", "roll_back"]
    assert kinds == sorted(kinds, key=[GateVerdict, AuditEvent, AlertOutbox].index), "what it rests on comes first"
    assert {"fail", "breach"} & {verdict for _, verdict in turns}
    for gate in {gate for gate, _ in turns}:
        assert all(one != other for one, other in pairwise(turn for turn in turns if turn[0] == gate)), gate
    assert changes["roll_back"].evidence != []


def test_an_export_as_json_has_every_column_and_verifies(year: Engine) -> None:
    lines = list(export(year))

    assert [json.loads(line)["action"] for line in lines] == [event.action for event in read_events(year)]
    assert set(json.loads(lines[0])) == set(AuditEvent.model_fields)
    assert all(not trail.breaks for trail in verify_export(lines))
    assert [json.loads(line)["actor"] for line in export(year, actor="ben")] == ["ben"] * 3


def test_an_export_as_csv_holds_no_formula(year: Engine) -> None:
    header, *rows = csv.reader(export(year, ExportFormat.CSV, "fib_rsi"))

    newest = dict(zip(header, rows[-1], strict=True))
    assert (header, len(rows)) == (list(AuditEvent.model_fields), 4)
    assert newest["reason"] == "'=HYPERLINK(1)"
    assert json.loads(newest["after"])["active"] == "3"
    assert newest["rollout_id"] == ""


def test_an_export_and_a_verification_are_of_one_moment(year: Engine) -> None:
    """Changes go on meanwhile, and wait for neither."""
    lines = export(year)
    first = next(lines)
    activate_version(year, Command(BEN, MONDAY + 5 * DAY), strategy_name="fib_rsi", version="1")

    assert len([first, *lines]) == 5
    assert all(not trail.breaks for trail in verify_trail(year).trails)


def test_an_empty_trail_holds(engine: Engine) -> None:
    assert verify_trail(engine).holds
    assert verify_trail(engine).trails == []
    assert list(export(engine)) == []
    assert verify_trail(engine, known_heads=["f" * 64]).missing == ("f" * 64,)
