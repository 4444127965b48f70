"""Files of declared objects: what they may hold, and a line and a field for each problem."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from strategy_core.domain.declaration import MOST_BYTES, Declaration, declaration_schema, read_declaration
from strategy_core.domain.errors import InvalidDeclaration, InvalidPlan, PlanNotAllowed, UnknownPlan
from strategy_core.domain.plan import Plan, read_plan
from strategy_core.domain.policy import Policy, load_policy

EXAMPLE = Path(__file__).parents[2] / "examples" / "rollout.yaml"
CAREFUL = Plan(bake=timedelta(days=9))


def read(text: str) -> Declaration:
    return read_declaration(text.encode(), "f.yaml")


def test_the_example_declares_a_plan_in_days() -> None:
    found = read_declaration(EXAMPLE.read_bytes(), "rollout.yaml")

    policy = found.policy_of("fib_rsi")
    assert policy.four_eyes
    assert policy.plans["careful"].blind_limit == timedelta(hours=12)
    assert [stage.minimum_time.days for stage in policy.plans["careful"].stages] == [3, 3, 1]
    assert [(each.version, each.loaded_from) for each in found.versions] == [("1.0.0", "fib_rsi"), ("1.1.0", "fib_rsi")]


def test_an_empty_file_declares_nothing() -> None:
    assert read("# nothing yet\n") == Declaration()


@pytest.mark.parametrize(
    ("text", "span"),
    [("3d", timedelta(days=3)), ("1d12h", timedelta(hours=36)), ("1.5h", timedelta(minutes=90)), ("2w", timedelta(14))],
)
def test_a_plan_takes_times_in_words(text: str, span: timedelta) -> None:
    assert read_plan({"bake": text}).bake == span


def test_scalars_are_read_as_in_yaml_1_2() -> None:
    found = read(
        "versions: [{strategy: s, version: v, config: {a: no, b: 1e-3, c: 010, d: 2026-01-01, e: ~, f: True}}]"
    )

    assert found.versions[0].config == {"a": "no", "b": 0.001, "c": 10, "d": "2026-01-01", "e": None, "f": True}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "strategies:\n  a: {percent: 5}",
            "line 2, strategies.a.percent: percent is live state and cannot be declared",
        ),
        ("policies:\n  a:\n    paused: true", r"line 3, .*live state .*\(use: rollout pause\)"),
        ("versions:\n- {strategy: a, version: v, status: active}", r"line 2, .*live state .*\(use: rollout activate\)"),
        ("stage: 2", "line 1, stage: stage is live state"),
        ("versions:\n- strategy: a\n  version: 2.0", 'line 3, versions.0.version: a text is needed, in quotes: "2.0"'),
        ("versions:\n- strategy: a", "line 2, versions.0: version is missing"),
        ("plans:\n  p:\n    bake: 3x", "line 3, plans.p.bake: a time is needed, as 3d, 12h"),
        ("plans: {p: {bake: 99999999999999w}}", "plans.p.bake: a time is needed"),
        ("plans: {p: {stages: []}}", "line 1, plans.p: stages must rise"),
        ("plans: {p: {}}", "plan p is in no policy"),
        ("policies: {a: {plans: [p]}}", "the policy of a names plan p; declared plans: none"),
        ("versions:\n- &v {strategy: a, version: v}\n- *v", "line 3: aliases are not allowed"),
        ("versions:\n- {strategy: a, version: v}\n- {strategy: a, version: v}", "version a v is declared twice"),
        ("plans: {}\nplans: {}", "line 1: 'plans' occurs twice"),
        ("toggles:\n  a:\n    b:\n    - {when: {percent: 101}, value: 1}", "line 4, toggles.a.b.0.when.percent: "),
        ("toggles: {a: {b: [{when: {country: de}, value: 1}]}}", "country: no such field"),
        ("toggles: {a: {b: [{when: {segment: new}}]}}", "line 1, toggles.a.b.0: value is missing"),
        ("toggles: {a: {b-c: []}}", "line 1, toggles.a.b-c: "),
        ("segments: {new: [ann]}", r"live state .*\(use: rollout toggle segments\)"),
        ("colour: red", "line 1, colour: no such field"),
        ("versions: !!python/object/apply:os.system [ls]", "line 1: tag .* is not allowed"),
        ("a: !!int x", "line 1: 'x' is not a number"),
        ("? [1]\n: 2", "line 1: a name must be a text"),
        ("plans:\n\t- a", "line 2: found character"),
        ("\x01", "special characters are not allowed"),
        ("[" * 20_000, "nested too deeply"),
        ("x" * (MOST_BYTES + 1), "larger than 1,000,000 bytes"),
    ],
    ids=lambda value: value[:30].encode("unicode_escape").decode(),
)
def test_an_invalid_file_is_refused_by_line_and_field(text: str, problem: str) -> None:
    with pytest.raises(InvalidDeclaration, match=problem):
        read(text)


def test_a_file_that_is_not_utf_8_is_refused() -> None:
    with pytest.raises(InvalidDeclaration, match="not UTF-8"):
        read_declaration(b"\xff", "f.yaml")


def test_the_schema_for_editors_accepts_the_example_and_refuses_live_state() -> None:
    example: dict[str, Any] = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    schema = json.loads(json.dumps(declaration_schema()))

    jsonschema.validate(example, schema)
    example["strategies"]["fib_rsi"]["percent"] = 5
    with pytest.raises(jsonschema.ValidationError, match="percent"):
        jsonschema.validate(example, schema)


def test_rules_of_toggles_are_read_with_their_types_and_fit_the_schema() -> None:
    text = """
toggles:
  fib_rsi:
    risk_scale:
    - {when: {segment: new, percent: 10}, value: 0.5}
    - {value: 1}
    tone:
    - {when: {user_ids: [ann, bob]}, value: no}
    notify_only: []
"""
    found = read(text).toggles["fib_rsi"]

    assert [(type(each.value), each.when.shown) for each in found["risk_scale"]] == [
        (float, "segment new, 10 % of users"),
        (int, "all users"),
    ]
    assert (found["tone"][0].value, found["tone"][0].when.user_ids) == ("no", frozenset({"ann", "bob"}))
    assert found["notify_only"] == []
    jsonschema.validate({"toggles": {"a": {"b": [{"when": {"user_ids": ["u"]}, "value": True}]}}}, declaration_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"toggles": {"a": {"b": [{"when": {"country": "de"}, "value": 1}]}}}, declaration_schema())


def test_a_policy_allows_its_plans_alone() -> None:
    policy = Policy(plans={"careful": CAREFUL})

    policy.check("fib_rsi", policy.named("fib_rsi", "careful"))
    with pytest.raises(PlanNotAllowed, match=r"allows these plans only: careful; use one of them, or give an override"):
        policy.check("fib_rsi", Plan())
    with pytest.raises(UnknownPlan, match=r"no plan 'bold' of 'fib_rsi'; known plans: careful"):
        policy.named("fib_rsi", "bold")
    Policy().check("fib_rsi", Plan())


def test_a_policy_names_what_another_one_changes() -> None:
    old = Policy(plans={"a": CAREFUL, "b": Plan(), "c": Plan()})
    new = Policy(plans={"a": Plan(gates=Plan().gates[:3]), "b": Plan(), "d": Plan()}, four_eyes=True)

    assert old.differences(new) == [
        "four_eyes is False, declared True",
        "plan a changes: bake 777600.0 -> 604800.0",
        "plan a changes: gates",
        "plan c is removed",
        "plan d is added",
    ]


def test_a_stored_policy_that_cannot_be_read_is_not_ignored() -> None:
    with pytest.raises(InvalidPlan, match=r"policy: plans\.a\.blnd_limit: Extra inputs"):
        load_policy({"plans": {"a": {"blnd_limit": 3}}})
