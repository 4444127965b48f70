"""Declared objects: applied once, refused where they cannot change, and policies that rollouts have to follow."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Engine, text

from strategy_core.domain.audit import Command
from strategy_core.domain.declaration import Declaration
from strategy_core.domain.errors import DeclarationRefused, FourEyes, PlanNotAllowed
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan, read_plan
from strategy_core.domain.policy import Policy
from strategy_core.domain.ramp import State
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services.audit import read_audit, verify_trail
from strategy_core.services.canary import activate_canary
from strategy_core.services.declarations import ApplyOutcome, apply_declaration, compare_declaration, set_policy
from strategy_core.services.rollback import roll_back
from strategy_core.services.rollouts import approve, start_rollout
from strategy_core.store import rollouts
from strategy_core.store.engine import transaction
from tests.builders import GOLD, HOUR, MONDAY, OWNER, put_pair, put_version

COMMIT = Command(OWNER, MONDAY, "commit 1a2b3c")
PLAN = {"bake": "9d", "stages": [{"percent": 100, "minimum_time": "1d", "margins": {"pnl_r": 0.1}}]}
KNOWN: dict[str, Any] = {"strategy": "fib_rsi", "version": "1", "config": {"rsi_period": 14}}
POLICY: dict[str, Any] = {
    "plans": {"careful": PLAN},
    "policies": {"fib_rsi": {"plans": ["careful"], "four_eyes": True}},
}


def declared(*versions: dict[str, Any], **sections: Any) -> Declaration:
    return Declaration.model_validate({"versions": versions, **sections})


def drifts(engine: Engine, declaration: Declaration) -> list[tuple[str, str, str]]:
    found = compare_declaration(engine, declaration).differences
    return [(each.drift.value, each.what, each.detail) for each in found]


def outcomes(engine: Engine, market: SyntheticSource, declaration: Declaration) -> list[tuple[str, ApplyOutcome]]:
    found = apply_declaration(engine, COMMIT, lambda: market, declaration)
    return [(each.what, each.outcome) for each in found]


@pytest.fixture
def pair(engine: Engine) -> Engine:
    put_version(engine, "1", Status.ACTIVE, recorded=True)
    put_version(engine, "2", recorded=True)
    return engine


def test_a_second_run_changes_nothing(pair: Engine, market: SyntheticSource) -> None:
    declaration = declared(KNOWN, **POLICY)
    assert outcomes(pair, market, declaration) == [("policy fib_rsi", ApplyOutcome.APPLIED)]
    trail = read_audit(pair)

    assert outcomes(pair, market, declaration) == []

    assert read_audit(pair) == trail
    assert (trail[-1].action, trail[-1].reason) == ("set_policy", "commit 1a2b3c")
    assert verify_trail(pair).holds


def test_two_runs_at_once_set_a_policy_once(pair: Engine, market: SyntheticSource) -> None:
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda _: outcomes(pair, market, declared(KNOWN, **POLICY)), range(2)))

    changes = [event for event in read_audit(pair) if event.action == "set_policy"]
    assert len(changes) == 1
    assert [("policy fib_rsi", ApplyOutcome.APPLIED)] in found


@pytest.mark.parametrize(
    ("forgery", "problem"),
    [
        ("""UPDATE strategy_policy SET policy = '{"four_eyes": false}'""", "has policy"),
        ("DELETE FROM strategy_policy", "is missing"),
    ],
    ids=["changed", "deleted"],
)
def test_a_policy_that_was_changed_beside_the_trail_is_found(pair: Engine, forgery: str, problem: str) -> None:
    set_policy(pair, COMMIT, strategy_name="fib_rsi", policy=Policy(four_eyes=True))
    with pair.begin() as connection:
        connection.execute(text(forgery))

    (trail,) = verify_trail(pair).trails

    assert [(each.table, each.problem[: len(problem)]) for each in trail.mismatches] == [("strategy_policy", problem)]


def test_a_policy_that_no_event_set_is_found(pair: Engine) -> None:
    with pair.begin() as connection:
        connection.execute(text("INSERT INTO strategy_policy VALUES ('fib_rsi', '{}')"))

    assert not verify_trail(pair).holds


def test_a_policy_that_is_removed_by_name_is_removed(pair: Engine, market: SyntheticSource) -> None:
    outcomes(pair, market, declared(KNOWN, **POLICY))

    assert compare_declaration(pair, declared(KNOWN)).notes == ["policy fib_rsi is not in the file and stays"]
    assert outcomes(pair, market, declared(policies={"fib_rsi": {}})) == [("policy fib_rsi", ApplyOutcome.APPLIED)]
    assert compare_declaration(pair, declared(KNOWN)).notes == []


@pytest.mark.parametrize(
    ("sections", "what", "detail"),
    [
        (
            {"versions": [{**KNOWN, "symbols": [GOLD, "SILVER"], "timeframe": "4h"}]},
            "version fib_rsi 1",
            "symbols is ['GOLD'], declared ['GOLD', 'SILVER'], timeframe is 1h, declared 4h; "
            "versions are never edited: declare it under a new name",
        ),
        (
            {"strategies": {"fib_rsi": {"salt": "x"}}},
            "strategy fib_rsi",
            "the salt of 'fib_rsi' cannot be changed: it is '', requested was 'x'",
        ),
        (
            {"strategies": {"new": {}}},
            "strategy new",
            "it has no version: declare one, with which it is created",
        ),
        ({"policies": {"new": {"four_eyes": True}}}, "policy new", "new has no version: declare one"),
    ],
    ids=["immutable", "fixed", "no strategy", "no policy"],
)
def test_what_cannot_be_done_is_refused_and_nothing_is_applied(
    pair: Engine, market: SyntheticSource, sections: dict[str, Any], what: str, detail: str
) -> None:
    declaration = Declaration.model_validate(
        {**POLICY, **sections, "policies": {**POLICY["policies"], **sections.get("policies", {})}}
    )
    trail = read_audit(pair)

    assert ("refused", what, detail) in drifts(pair, declaration)
    with pytest.raises(DeclarationRefused):
        outcomes(pair, market, declaration)
    assert read_audit(pair) == trail


@pytest.mark.full  # a worker loads the code, twice
def test_another_config_under_the_same_name_is_refused_with_both_values(engine: Engine) -> None:
    full = {"rsi_period": 14, "rsi_overbought": 70.0, "rsi_oversold": 30.0, "fib_lookback_bars": 55}
    put_version(engine, "1", config=full)

    assert drifts(engine, declared({**KNOWN, "config": {"fib_lookback_bars": 55}})) == []
    ((drift, _, detail),) = drifts(engine, declared({**KNOWN, "config": {"rsi_period": 10}}))
    assert (drift, detail) == (
        "refused",
        "config.rsi_period is 14, declared 10; versions are never edited: declare it under a new name",
    )


@pytest.mark.full  # registers two versions
def test_a_failure_midway_leaves_every_object_applied_or_untouched(engine: Engine, market: SyntheticSource) -> None:
    versions: list[dict[str, Any]] = [
        {"strategy": "fib_rsi", "version": name, "symbols": [GOLD]} for name in ("1", "same", "3")
    ]
    versions[2]["config"] = {"rsi_period": 10}
    declaration = declared(*versions, **POLICY)

    found = apply_declaration(engine, COMMIT, lambda: market, declaration)

    assert [(each.what, each.outcome.value) for each in found] == [
        ("version fib_rsi 1", "applied"),
        ("version fib_rsi same", "failed"),
        ("version fib_rsi 3", "not tried"),
        ("policy fib_rsi", "not tried"),
    ]
    assert "'same' is the same build as 'fib_rsi' '1'" in found[1].detail
    assert [event.version for event in read_audit(engine)] == ["1"]
    repaired = declared(versions[0], versions[2], **POLICY)
    assert outcomes(engine, market, repaired) == [
        ("version fib_rsi 3", ApplyOutcome.APPLIED),
        ("policy fib_rsi", ApplyOutcome.APPLIED),
    ]
    assert drifts(engine, repaired) == []


@pytest.mark.full  # two vettings of one version
def test_two_runs_at_once_register_a_version_once(engine: Engine, market: SyntheticSource) -> None:
    declaration = declared({**KNOWN, "symbols": [GOLD]})
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda _: outcomes(engine, market, declaration), range(2)))

    assert sorted(outcome.value for ((_, outcome),) in found) == ["applied", "unchanged"]
    assert [event.action for event in read_audit(engine)] == ["register_version"]


# Rules of toggles

RISK = {
    "risk_scale": {"type": "number", "minimum": 0.25, "maximum": 1, "default": 1},
    "notify_only": {"type": "boolean", "default": False},
}
HALF: dict[str, Any] = {"when": {"percent": 10}, "value": 0.5}
QUIET: dict[str, Any] = {"when": {"user_ids": ["ann", "bob"]}, "value": True}


@pytest.fixture
def toggled(engine: Engine) -> Engine:
    put_version(engine, "1", Status.ACTIVE, recorded=True, toggles=json.dumps(RISK))
    return engine


def rules(**toggles: Any) -> Declaration:
    return declared(toggles={"fib_rsi": toggles})


def test_rules_of_toggles_are_applied_once_with_one_event_each(toggled: Engine, market: SyntheticSource) -> None:
    declaration = rules(risk_scale=[HALF], notify_only=[QUIET])

    assert outcomes(toggled, market, declaration) == [
        ("toggle fib_rsi risk_scale", ApplyOutcome.APPLIED),
        ("toggle fib_rsi notify_only", ApplyOutcome.APPLIED),
    ]

    trail = read_audit(toggled)
    assert [(each.action, each.reason) for each in trail[-2:]] == [("set_toggle", "commit 1a2b3c")] * 2
    assert outcomes(toggled, market, declaration) == []
    assert read_audit(toggled) == trail
    assert verify_trail(toggled).holds


def test_a_difference_of_rules_names_each_rule(toggled: Engine, market: SyntheticSource) -> None:
    outcomes(toggled, market, rules(risk_scale=[HALF, {"value": 0.75}], notify_only=[QUIET]))
    others = {"when": {"user_ids": ["ann", "eve"]}, "value": True}

    assert drifts(toggled, rules(risk_scale=[{**HALF, "value": 0.25}], notify_only=[others, {"value": False}])) == [
        (
            "change",
            "toggle fib_rsi risk_scale",
            "rule 1 is 10 % of users: 0.5, declared 10 % of users: 0.25; rule 2 is removed: all users: 0.75",
        ),
        (
            "change",
            "toggle fib_rsi notify_only",
            "rule 1 is one of 2 users: true, declared one of 2 users: true (other users); "
            "rule 2 is added: all users: false",
        ),
    ]


def test_rules_that_a_file_does_not_name_stay_and_an_empty_list_removes_them(
    toggled: Engine, market: SyntheticSource
) -> None:
    outcomes(toggled, market, rules(risk_scale=[HALF], notify_only=[QUIET]))

    assert compare_declaration(toggled, rules(risk_scale=[HALF])).notes == [
        "toggle fib_rsi notify_only is not in the file, and its rules stay"
    ]
    assert outcomes(toggled, market, rules(notify_only=[], risk_scale=[HALF])) == [
        ("toggle fib_rsi notify_only", ApplyOutcome.APPLIED)
    ]
    assert drifts(toggled, rules(notify_only=[])) == []


@pytest.mark.parametrize(
    ("toggles", "why"),
    [
        ({"fib_rsi": {"leverage": [HALF]}}, "no toggle 'leverage' of 'fib_rsi'; declared toggles: notify_only"),
        ({"fib_rsi": {"risk_scale": [{"value": 2}]}}, "2 is not allowed; allowed: a number from 0.25 to 1"),
        ({"fib_rsi": {"risk_scale": [{"when": {"segment": "vip"}, "value": 0.5}]}}, "no segment 'vip'"),
        ({"new": {"risk_scale": [HALF]}}, "new has no version: declare one"),
    ],
    ids=["toggle", "value", "segment", "strategy"],
)
def test_rules_that_cannot_be_set_are_refused_and_nothing_is_applied(
    toggled: Engine, market: SyntheticSource, toggles: dict[str, Any], why: str
) -> None:
    declaration = declared(policies={"fib_rsi": {"four_eyes": True}}, toggles=toggles)
    trail = read_audit(toggled)

    with pytest.raises(DeclarationRefused, match=re.escape(why)):
        outcomes(toggled, market, declaration)

    assert read_audit(toggled) == trail


def test_two_runs_at_once_set_rules_once(toggled: Engine, market: SyntheticSource) -> None:
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda _: outcomes(toggled, market, rules(risk_scale=[HALF])), range(2)))

    assert [event.action for event in read_audit(toggled)].count("set_toggle") == 1
    assert [("toggle fib_rsi risk_scale", ApplyOutcome.APPLIED)] in found


@pytest.mark.full  # registers a version
def test_a_version_and_the_rules_of_its_toggles_are_declared_together(engine: Engine, market: SyntheticSource) -> None:
    version = {
        "strategy": "mine",
        "version": "1",
        "entry_point": "tests.services.versions_under_test:Toggled",
        "symbols": [GOLD],
    }

    found = outcomes(engine, market, declared(version, toggles={"mine": {"risk_scale": [HALF]}}))

    assert found == [("version mine 1", ApplyOutcome.APPLIED), ("toggle mine risk_scale", ApplyOutcome.APPLIED)]


def put_policy(engine: Engine, *, four_eyes: bool = False) -> Plan:
    put_pair(engine)
    plan = read_plan(PLAN)
    set_policy(engine, COMMIT, strategy_name="fib_rsi", policy=Policy(plans={"careful": plan}, four_eyes=four_eyes))
    return plan


def start(engine: Engine, plan: Plan, override_reason: str = "") -> None:
    start_rollout(
        engine,
        Command(OWNER, MONDAY, override_reason=override_reason),
        strategy_name="fib_rsi",
        version="2",
        plan=plan,
        in_replay=lambda given: given.at_speed(3600, HOUR),
    )


def test_a_rollout_must_use_a_plan_of_the_policy(engine: Engine) -> None:
    plan = put_policy(engine)

    with pytest.raises(PlanNotAllowed):
        start(engine, Plan())
    with pytest.raises(PlanNotAllowed):
        activate_canary(engine, COMMIT, strategy_name="fib_rsi", version="2", rollout_percent=5)
    start(engine, plan)

    started = read_audit(engine)[-1]
    assert (started.action, started.after["plan_name"]) == ("start_rollout", "careful")


def test_an_override_reason_allows_another_plan(engine: Engine) -> None:
    put_policy(engine)

    start(engine, Plan(), "the desk agreed")

    started = read_audit(engine)[-1]
    assert (started.reason, "plan_name" in started.after) == ("the desk agreed", False)


def test_a_policy_demands_four_eyes_and_delays_no_rollback(engine: Engine) -> None:
    start(engine, put_policy(engine, four_eyes=True))
    with transaction(engine) as session:
        rollouts.change_rollout(session, rollouts.list_rollouts(session)[0], state=State.AWAITING_APPROVAL.value)

    with pytest.raises(FourEyes):
        approve(engine, COMMIT, strategy_name="fib_rsi")
    assert roll_back(engine, COMMIT, strategy_name="fib_rsi") == "2"
