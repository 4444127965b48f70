"""Rules of toggles on real rows: set, replaced, removed and set again; segments; and no decision depends on one."""

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlmodel import select

from strategy_core.domain.audit import Actor, Command
from strategy_core.domain.errors import (
    AlreadyDone,
    InvalidReport,
    InvalidToggle,
    InvalidToggles,
    InvariantRefused,
    LostRace,
    UnknownRule,
    UnknownSegment,
    UnknownStrategy,
    UnknownToggle,
)
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.toggles import Rule, read_rule
from strategy_core.isolation.fingerprint import digest_of
from strategy_core.isolation.pool import WorkerPool
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services.audit import verify_trail
from strategy_core.services.canary import activate_canary
from strategy_core.services.shadow import run_shadow
from strategy_core.services.toggles import (
    list_toggles,
    load_segments,
    load_segments_csv,
    read_toggles,
    remove_rules,
    resolve_toggles,
    set_rule,
    set_rules,
    toggles_revision,
)
from strategy_core.services.users import load_users
from strategy_core.services.versions import register_version
from strategy_core.store import versions
from strategy_core.store.engine import reading, transaction
from strategy_core.store.tables import AuditEvent, ShadowDecisionLog, StrategyVersion, ToggleRule
from tests.builders import GOLD, HOUR, MONDAY, OWNER, put_version

NOW = Command(OWNER, MONDAY, "careful")
RISK = {"risk_scale": {"type": "number", "minimum": 0.25, "maximum": 1, "default": 1}}
QUIET = {"notify_only": {"type": "boolean", "default": False}}
CODE = "tests.services.versions_under_test"


@pytest.fixture
def declared(engine: Engine) -> Engine:
    """Version 1 is active and declares a risk scale; version 2 in shadow also declares a quiet mode."""
    put_version(engine, "1", Status.ACTIVE, toggles=json.dumps(RISK), recorded=True)
    put_version(engine, "2", toggles=json.dumps(RISK | QUIET), recorded=True)
    return engine


def rule(value: Any, **when: Any) -> Rule:
    return read_rule(when, value, "risk_scale", 1)


def put(engine: Engine, *rules: Rule, name: str = "risk_scale", command: Command = NOW) -> None:
    set_rules(engine, command, strategy_name="fib_rsi", name=name, rules=rules)


def shown(engine: Engine, user_id: str = "u1") -> dict[str, Any]:
    found = resolve_toggles(engine, user_id=user_id, strategy_name="fib_rsi", now=NOW.now)
    return {name: each.value for name, each in found.toggles.items()}


def events(engine: Engine) -> list[tuple[str, dict[str, Any]]]:
    with reading(engine) as session:
        rows = session.exec(select(AuditEvent).order_by(AuditEvent.position))  # type: ignore[arg-type]
        return [(row.action, row.after) for row in rows if row.action != "register_version"]


def rows(engine: Engine) -> list[tuple[int, Any, bool]]:
    with reading(engine) as session:
        found = session.exec(select(ToggleRule).order_by(ToggleRule.id))  # type: ignore[arg-type]
        return [(row.position, row.value, row.valid_to is None) for row in found]


def test_a_rule_reaches_its_users_and_is_in_the_trail(declared: Engine) -> None:
    put(declared, rule(0.5, user_ids=["u1"]))

    assert shown(declared) == {"risk_scale": 0.5}
    assert shown(declared, "u2") == {"risk_scale": 1.0}
    ((action, after),) = events(declared)
    assert action == "set_toggle"
    (kept,) = after["toggle risk_scale"]
    assert kept["value"] == 0.5
    assert kept["when"]["user_ids"]["users"] == 1
    assert "u1" not in json.dumps(after)


def test_the_same_rules_again_change_nothing(declared: Engine) -> None:
    put(declared, rule(0.5, segment=None), rule(1))
    revision = toggles_revision(declared)

    put(declared, rule(0.5), rule(1))

    assert len(events(declared)) == 1
    assert rows(declared) == [(1, 0.5, True), (2, 1, True)]
    assert toggles_revision(declared) == revision


def test_rules_that_are_removed_and_set_again_keep_their_history(declared: Engine) -> None:
    first = put_version(declared, "3", toggles=json.dumps(QUIET), recorded=True)
    put(declared, rule(0.5))
    remove_rules(declared, Command(OWNER, MONDAY + HOUR), strategy_name="fib_rsi", name="risk_scale")
    removed = shown(declared)
    put(declared, rule(0.5), command=Command(OWNER, MONDAY + 2 * HOUR))

    assert removed == {"risk_scale": 1.0}
    assert shown(declared) == {"risk_scale": 0.5}
    assert rows(declared) == [(1, 0.5, False), (1, 0.5, True)]
    assert [action for action, _ in events(declared)] == ["set_toggle"] * 3
    assert [*verify_trail(declared, "fib_rsi").problems()] == []
    with reading(declared) as session:
        assert versions.get_version(session, "fib_rsi", "3").model_dump() == first.model_dump()


def test_one_rule_is_added_replaced_moved_and_removed(declared: Engine) -> None:
    def values(**wish: Any) -> list[Any]:
        found = set_rule(declared, NOW, strategy_name="fib_rsi", name="risk_scale", **wish)
        return [each.value for each in found.rules]

    assert values(rule=rule(0.5)) == [0.5]
    assert values(rule=rule(0.25, percent=10), position=1) == [0.25, 0.5]
    assert values(rule=rule(0.75)) == [0.25, 0.75]
    assert values(rule=rule(0.75), position=1) == [0.75, 0.25]
    found = remove_rules(declared, NOW, strategy_name="fib_rsi", name="risk_scale", number=1)
    assert [each.value for each in found.rules] == [0.25]
    with pytest.raises(UnknownRule, match="rules: 1 to 1"):
        remove_rules(declared, NOW, strategy_name="fib_rsi", name="risk_scale", number=2)
    with pytest.raises(UnknownRule):
        values(rule=rule(1), position=3)


def test_a_toggle_that_no_version_declares_is_unknown(declared: Engine) -> None:
    with pytest.raises(UnknownToggle, match="declared toggles: notify_only, risk_scale"):
        put(declared, rule(1), name="leverage")
    with pytest.raises(UnknownToggle):
        remove_rules(declared, NOW, strategy_name="fib_rsi", name="leverage")
    with pytest.raises(UnknownStrategy):
        set_rules(declared, NOW, strategy_name="nobodys", name="risk_scale", rules=[])
    assert events(declared) == []


@pytest.mark.parametrize("value", [0.1, 1.5, True, "0.5"])
def test_a_value_that_a_version_does_not_allow_is_refused(declared: Engine, value: Any) -> None:
    with pytest.raises(InvalidToggle, match=r"allowed: a number from 0.25 to 1 \(by version 1\)"):
        put(declared, rule(value))


def test_a_rule_of_a_toggle_that_is_no_longer_declared_can_be_removed(declared: Engine) -> None:
    put(declared, rule(True), name="notify_only")
    with transaction(declared) as session:
        versions.move(session, versions.get_version(session, "fib_rsi", "2"), Status.RETIRED, MONDAY)

    with pytest.raises(UnknownToggle):
        put(declared, rule(True), rule(False, percent=5), name="notify_only")
    put(declared, name="notify_only")

    assert [each.name for each in list_toggles(declared, "fib_rsi").toggles] == ["risk_scale"]


def test_a_user_has_the_toggles_of_the_version_that_he_gets(declared: Engine) -> None:
    put(declared, rule(True), name="notify_only")
    before = shown(declared)
    activate_canary(declared, NOW, strategy_name="fib_rsi", version="2", rollout_percent=100)

    assert before == {"risk_scale": 1.0}
    assert shown(declared) == {"risk_scale": 1.0, "notify_only": True}


def test_a_condition_on_the_generation_is_kept(declared: Engine) -> None:
    with pytest.raises(LostRace):
        put(declared, rule(0.5), command=Command(OWNER, MONDAY, if_generation=9))


def test_an_idempotency_key_makes_one_change(declared: Engine) -> None:
    keyed = Command(Actor("ana", idempotency_key="k1"), MONDAY)
    put(declared, rule(0.5), command=keyed)

    with pytest.raises(AlreadyDone):
        put(declared, rule(0.75), command=keyed)
    assert shown(declared) == {"risk_scale": 0.5}


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE toggle_rule SET value = '0.9'",
        "UPDATE toggle_rule SET position = 7",
        "UPDATE toggle_rule SET conditions = '{}'",
        "DELETE FROM toggle_rule",
        "UPDATE toggle_rule SET valid_to = NULL WHERE valid_to IS NOT NULL",
    ],
)
def test_a_stored_rule_is_not_edited(declared: Engine, change: str) -> None:
    put(declared, rule(0.5))
    put(declared, rule(0.25))

    with pytest.raises(InvariantRefused), transaction(declared) as session:
        session.connection().execute(text(change))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("INSERT INTO toggle_rule (strategy_name, toggle, position, conditions, value, valid_from, set_by) SELECT "
         "strategy_name, toggle, 2, conditions, value, valid_from, set_by FROM toggle_rule", "has other rules"),
        ("UPDATE toggle_rule SET valid_to = valid_from", "has other rules"),
        ("INSERT INTO toggle_rule (strategy_name, toggle, position, conditions, value, valid_from, set_by) SELECT "
         "strategy_name, toggle, 2, '{\"who\": 1}', value, valid_from, set_by FROM toggle_rule", "cannot be read"),
    ],
    ids=["added", "ended", "unreadable"],
)  # fmt: skip
def test_a_rule_that_was_changed_without_an_event_is_found(declared: Engine, change: str, problem: str) -> None:
    put(declared, rule(0.5, percent=10))
    with transaction(declared) as session:
        session.connection().exec_driver_sql(change)

    (line,) = verify_trail(declared, "fib_rsi").problems()

    assert problem in line


# Segments and capital


def test_segments_and_capital_reach_the_rules(declared: Engine) -> None:
    load_segments(declared, NOW, [("u1", "new"), ("u2", "new"), ("u2", "vip é")])
    load_users(declared, [("u3", 50.0), ("u4", 500.0), ("u5", None)], now=MONDAY)
    put(declared, rule(0.25, segment="vip é"), rule(0.5, segment="new"), rule(0.75, capital_at_most=100))

    found = {user: shown(declared, user)["risk_scale"] for user in ("u1", "u2", "u3", "u4", "u5", "u6")}

    assert found == {"u1": 0.5, "u2": 0.25, "u3": 0.75, "u4": 1.0, "u5": 1.0, "u6": 1.0}


def test_a_load_replaces_all_segments_and_is_in_the_trail_of_strategies_that_use_them(declared: Engine) -> None:
    load_segments(declared, NOW, [("u1", "new"), ("u1", "other")])
    put(declared, rule(0.5, segment="new"))

    done = load_segments(declared, Command(OWNER, MONDAY + HOUR), [("u2", "new"), ("u3", "new")])
    again = load_segments(declared, Command(OWNER, MONDAY + HOUR), [("u2", "new"), ("u3", "new")])

    assert (done.segments, done.members, done.added, done.removed) == (1, 2, 2, 2)
    assert (again.added, again.removed) == (0, 0)
    assert shown(declared, "u1") == {"risk_scale": 1.0}
    assert [action for action, _ in events(declared)] == ["set_toggle", "load_segment"]
    facts = events(declared)[1][1]["segment new"]
    assert (facts["users"], facts["added"], facts["removed"]) == (2, 2, 1)
    assert [*verify_trail(declared, "fib_rsi").problems()] == []


def test_a_load_without_a_segment_that_a_rule_names_is_refused(declared: Engine) -> None:
    load_segments(declared, NOW, [("u1", "new")])
    put(declared, rule(0.5, segment="new"))

    with pytest.raises(InvalidReport, match="'new', which rule 1 of the toggle risk_scale of fib_rsi names"):
        load_segments(declared, NOW, [("u1", "old")])
    with pytest.raises(InvalidReport, match="no members"):
        load_segments(declared, NOW, [])
    assert shown(declared) == {"risk_scale": 0.5}


def test_a_rule_names_a_segment_that_was_loaded(declared: Engine) -> None:
    load_segments(declared, NOW, [("u1", "new")])

    with pytest.raises(UnknownSegment, match="no segment 'neu'; known segments: new"):
        put(declared, rule(0.5, segment="neu"))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("user_id\nu1\n", "segment"),
        ("user_id,segment\nu1,\n", "segment"),
        ("user_id,segment\n,new\n", "user_id"),
        (f"user_id,segment\nu1,{'x' * 65}\n", "64"),
        ("user_id,segment\nu1,a\x01b\n", "segment"),
    ],
)
def test_a_bad_file_of_segments_is_refused_with_its_row(
    declared: Engine, tmp_path: Path, content: str, why: str
) -> None:
    file = tmp_path / "segments.csv"
    file.write_text(content, "utf-8")

    with pytest.raises(InvalidReport, match=why):
        load_segments_csv(declared, NOW, file)


def test_the_table_of_routers_holds_what_rules_ask_for_alone(declared: Engine) -> None:
    load_segments(declared, NOW, [("u1", "new"), ("u2", "unused")])
    load_users(declared, [("u1", 50.0)], now=MONDAY)
    put(declared, rule(0.5, segment="new"))
    without = read_toggles(declared)
    put(declared, rule(0.5, capital_at_least=10))

    found = read_toggles(declared)

    assert (without.segments, without.capital) == ({"u1": frozenset({"new"})}, {})
    assert (found.segments, found.capital) == ({}, {"u1": 50.0})
    assert read_toggles(declared, []).declared == {}


def test_each_change_of_what_resolves_toggles_has_another_revision(declared: Engine) -> None:
    seen = [toggles_revision(declared)]
    load_segments(declared, NOW, [("u1", "new")])
    seen.append(toggles_revision(declared))
    load_users(declared, [("u1", 5.0)], now=MONDAY)
    seen.append(toggles_revision(declared))
    put(declared, rule(0.5))
    seen.append(toggles_revision(declared))
    put_version(declared, "9", toggles=json.dumps(QUIET))
    seen.append(toggles_revision(declared))
    put_version(declared, "10")  # declares none

    assert len(set(seen)) == 5
    assert toggles_revision(declared) == seen[-1]


# Registration, and decisions


@pytest.fixture
def workers() -> Iterator[WorkerPool]:
    with WorkerPool(deadline_s=0.5) as workers:
        yield workers


def register(engine: Engine, market: SyntheticSource, version: str, code: str, **changes: Any) -> StrategyVersion:
    facts: dict[str, Any] = {
        "strategy_name": "clockwork",
        "config": {},
        "entry_point": f"{CODE}:{code}",
        "symbols": [GOLD],
        "timeframe": "1h",
    }
    return register_version(engine, Command(OWNER, MONDAY), market, version=version, **facts | changes)


def test_a_declaration_is_stored_with_the_version_and_part_of_its_fingerprint(
    engine: Engine, market: SyntheticSource
) -> None:
    plain = register(engine, market, "1", "Clockwork")
    toggled = register(engine, market, "2", "Toggled")

    assert "toggles" not in plain.fingerprint_parts
    assert json.loads(toggled.fingerprint_parts["toggles"]) == {
        "notify_only": {"default": False, "type": "boolean"},
        "risk_scale": {"default": 1.0, "maximum": 1.0, "minimum": 0.25, "type": "number"},
    }
    found = list_toggles(engine, "clockwork").toggles
    assert [(each.name, [*each.declared]) for each in found] == [("notify_only", ["2"]), ("risk_scale", ["2"])]


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("ToggledConfig", "hours is a field of the config too; a value that changes decisions is config: register a"),
        ("ToggledDecision", "ToggledDecision.decide reads Toggles; a value that changes decisions is config"),
        ("ToggledBadly", "no bounds"),
        ("ToggledByNothing", "no pydantic model"),
        ("ToggledWithoutDefault", "loud has no default"),
        ("ToggledWithValidator", "validators"),
        ("ToggledAngrily", "RuntimeError: no"),
    ],
)
def test_a_declaration_that_is_refused_is_not_registered(
    engine: Engine, market: SyntheticSource, code: str, why: str
) -> None:
    with pytest.raises(InvalidToggles) as refused:
        register(engine, market, "1", code)

    assert why in str(refused.value)
    assert "\n" not in str(refused.value)
    with reading(engine) as session:
        assert list(session.exec(select(StrategyVersion))) == []


def test_a_version_that_was_registered_before_there_were_toggles_still_runs(
    engine: Engine, market: SyntheticSource, workers: WorkerPool
) -> None:
    """Its class happens to have an attribute of that name: its fingerprint has no such part."""
    row = register(engine, market, "1", "Toggled")
    parts = {name: part for name, part in row.fingerprint_parts.items() if name != "toggles"}
    put_version(
        engine,
        "1",
        strategy_name="before",
        at=MONDAY,
        **row.model_dump(include={"entry_point", "config", "symbols", "timeframe", "warmup_bars"}),
        fingerprint_parts=parts,
        fingerprint=digest_of(parts),
    )

    runs = {run.strategy_name: run for run in run_shadow(engine, market, workers, now=MONDAY + 2 * HOUR)}

    assert (runs["before"].logged, runs["before"].errors) == (2, 0)


LOGGED = ("symbol", "decision", "confidence", "features", "reason", "role", "window_hash", "error_kind", "error")


def test_no_toggle_changes_any_row_of_the_decision_log(
    engine: Engine, market: SyntheticSource, workers: WorkerPool
) -> None:
    """The same versions decide the same candles, hour by hour under random rules, and all at once before any rule."""
    draw = Random(20)
    for version, status in (("1", Status.ACTIVE), ("2", Status.SHADOW)):
        hours = {"hours": 4 + int(version)}
        register(engine, market, version, "Toggled", config=hours, status=status)
    run_shadow(engine, market, workers, now=MONDAY + 24 * HOUR)
    expected = decisions_by_hour(engine)
    load_segments(engine, NOW, [(f"u{i}", draw.choice("abc")) for i in range(50)])
    load_users(engine, [(f"u{i}", draw.random() * 1_000) for i in range(50)], now=MONDAY)
    for version, status in (("1", Status.ACTIVE), ("2", Status.SHADOW)):
        hours = {"hours": 4 + int(version)}
        register(engine, market, version, "Toggled", config=hours, status=status, strategy_name="ruled")

    for hour in range(1, 25):
        for name, values in (("risk_scale", (0.25, 0.5, 1.0)), ("notify_only", (True, False))):
            rules = [
                read_rule(drawn_conditions(draw), draw.choice(values), name, at) for at in range(1, draw.randint(1, 9))
            ]
            set_rules(engine, Command(OWNER, MONDAY + hour * HOUR), strategy_name="ruled", name=name, rules=rules)
        run_shadow(engine, market, workers, now=MONDAY + hour * HOUR)

    assert decisions_by_hour(engine, "ruled") == expected
    assert len(expected) == 46  # gold rests for an hour a day
    assert {row["decision"] for row in expected.values()} == {"buy", "hold"}
    assert decisions_by_hour(engine) == expected


def drawn_conditions(draw: Random) -> dict[str, Any]:
    facts = {
        "segment": draw.choice("abc"),
        "percent": draw.randint(0, 100),
        "capital_at_least": draw.randint(0, 900),
        "user_ids": [f"u{draw.randint(0, 60)}" for _ in range(3)],
    }
    return {name: value for name, value in facts.items() if draw.random() < 0.4}


def decisions_by_hour(engine: Engine, strategy_name: str = "clockwork") -> dict[tuple[str, str], dict[str, Any]]:
    """Return the facts of each decision, without its id and the times that it took."""
    with reading(engine) as session:
        rows = session.exec(select(ShadowDecisionLog).where(ShadowDecisionLog.strategy_name == strategy_name))
        return {(row.version, row.timestamp.isoformat()): row.model_dump(include=set(LOGGED)) for row in rows}
