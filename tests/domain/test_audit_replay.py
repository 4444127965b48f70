"""What rows follow from a trail's events, from the first registration to the end of a rollout."""

from datetime import datetime
from typing import Any
from uuid import UUID

from strategy_core.domain.audit import Replay
from tests.builders import HOUR, MONDAY

Happening = tuple[str, str | None, dict[str, Any]]  # action, version, after
ROLLOUT = UUID(int=7)


def serving(
    active: str | None, canary: str | None = None, percent: float = 0, *, state: str = "", stage: int = 0
) -> dict[str, Any]:
    rollout = {"rollout": {"state": state, "stage": stage}} if state else {}
    return {"active": active, "canary": canary, "percent": percent, **rollout}


def replayed(*events: Happening) -> Replay:
    """Follow events of (action, version, after), an hour apart, on two registered versions of which 1 is active."""
    replay, before, at = Replay(), serving(None), MONDAY
    first: Happening = ("register_version", "1", serving("1") | {"fingerprint": "a", "status": "active"})
    second: Happening = ("register_version", "2", serving("1") | {"fingerprint": "b", "status": "shadow"})
    for action, version, after in (first, second, *events):
        of_rollout = ROLLOUT if "rollout" in before or "rollout" in after else None
        facts = {"action": action, "version": version, "at": at, "rollout_id": of_rollout}
        replay.follow(facts | {"before": before, "after": after})
        before, at = after, at + HOUR
    return replay


def after(hours: int) -> datetime:
    return MONDAY + hours * HOUR


START: Happening = ("start_rollout", "2", serving("1", "2", 5, state="running"))
PROMOTED: tuple[Happening, ...] = (
    START,
    ("pause", "2", serving("1", "2", 5, state="paused")),
    ("resume", "2", serving("1", "2", 5, state="running")),
    ("extend", "2", serving("1", "2", 5, state="running")),
    ("approve", "2", serving("1", "2", 5, state="running")),
    ("advance", "2", serving("1", "2", 10, state="running", stage=1)),
    ("promote", "2", serving("2", None, 0, state="baking", stage=1)),
)


def test_a_completed_rollout_retires_its_control() -> None:
    replay = replayed(*PROMOTED, ("complete", "2", serving("2")))
    rollout = replay.rollouts[ROLLOUT]

    assert rollout["state"] == {"completed"}
    assert rollout["ended_at"] == {after(9)}
    assert rollout["promoted_at"] == rollout["stage_entered_at"] == {after(8)}
    assert rollout["generation"] == {8}
    assert replay.versions["1"]["status"] == {"retired"}
    assert replay.versions["1"]["retired_at"] == {after(9)}
    assert replay.versions["2"]["status"] == {"active"}
    assert replay.canary["rollout_bp"] == {0}


def test_times_of_a_stage_follow_from_its_events() -> None:
    resumed = replayed(*PROMOTED[:3]).rollouts[ROLLOUT]
    extended = replayed(*PROMOTED[:4]).rollouts[ROLLOUT]
    approved = replayed(*PROMOTED[:5]).rollouts[ROLLOUT]

    assert resumed["stage_entered_at"] == {after(2), after(4)}  # 0.1.0 left it as it was
    assert extended["stage_entered_at"] == {after(2), after(4)}
    assert extended["stage_extended_at"] == {after(5)}
    assert approved["approved_stage"] == {None, 0, 1}


def test_a_rollback_of_a_promoted_version_reinstates_and_quarantines() -> None:
    replay = replayed(*PROMOTED, ("roll_back", "2", serving("1")))

    assert replay.rollouts[ROLLOUT]["state"] == {"rolled_back"}
    assert replay.versions["1"]["status"] == {"active"}
    assert replay.versions["2"]["status"] == {"shadow"}
    assert replay.versions["2"]["quarantined_at"] == {after(9)}


def test_a_canary_that_is_retired_and_a_rollout_that_an_activation_ends() -> None:
    retired = replayed(("retire_version", "2", serving("1")))
    activated = replayed(START, ("activate_version", "2", serving("2")))
    replaced = replayed(START, ("activate_version", "3", serving("3")))

    assert retired.versions["2"]["status"] == {"retired"}
    assert retired.versions["2"]["retired_at"] == {after(2)}
    assert activated.rollouts[ROLLOUT]["state"] == {"completed"}
    assert replaced.rollouts[ROLLOUT]["state"] == {"aborted"}


def test_a_control_that_is_activated_again_takes_the_users_back() -> None:
    replay = replayed(*PROMOTED, ("activate_version", "1", serving("1")))

    assert replay.rollouts[ROLLOUT]["state"] == {"rolled_back"}
    assert replay.versions["2"]["quarantined_at"] == {after(9)}


def test_a_registration_beside_a_rollout_leaves_it_as_it_is() -> None:
    replay = replayed(START)
    running = serving("1", "2", 5, state="running")
    third = {"action": "register_version", "version": "3", "at": after(3), "rollout_id": None}
    before = dict(replay.rollouts[ROLLOUT])
    replay.follow(third | {"before": running, "after": running})

    assert replay.rollouts[ROLLOUT] == before
    assert replay.versions["3"]["status"] == {"shadow", "retired"}  # 0.2.0 did not record it
