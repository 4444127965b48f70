"""Toggles: what a version may declare, which rule decides, and the golden values that are stored and hashed."""

import json
import math
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from strategy_core.domain.errors import InvalidToggle, InvalidToggles, UnknownToggle
from strategy_core.domain.routing import SaltedBuckets, bucket_of
from strategy_core.domain.toggles import (
    Kind,
    Resolver,
    Rule,
    Toggle,
    When,
    declaration_text,
    known_toggle,
    parse_value,
    read_declaration,
    read_rule,
    resolve,
    rule_differences,
    rule_facts,
    stored_toggles,
    toggle_salt,
)

RISK = Toggle("risk_scale", Kind.NUMBER, 1.0, minimum=0.25, maximum=1.0)
QUIET = Toggle("notify_only", Kind.BOOLEAN, False)
TONE = Toggle("tone", Kind.TEXT, "short", ("short", "long"))
DELAY = Toggle("entry_delay", Kind.INTEGER, 0, minimum=0, maximum=5)
DECLARED = {each.name: each for each in (RISK, QUIET, TONE, DELAY)}


class Declared(BaseModel):
    risk_scale: float = Field(1.0, ge=0.25, le=1)
    notify_only: bool = False
    tone: Literal["short", "long"] = "short"
    entry_delay: int = Field(0, ge=0, le=5, description="candles")


def rule(value: Any, **when: Any) -> Rule:
    return read_rule(when, value, "risk_scale", 1)


def of(rules: list[Rule], user_id: str = "u1", **facts: Any) -> Any:
    return resolve("fib_rsi", DECLARED, {"risk_scale": rules}, user_id=user_id, **facts)["risk_scale"]


def test_a_model_of_simple_fields_is_a_declaration() -> None:
    assert read_declaration(Declared.model_json_schema()["properties"], "mine:Mine") == DECLARED


def test_a_stored_declaration_is_golden() -> None:
    text = declaration_text(DECLARED)

    assert text == (
        '{"entry_delay":{"default":0,"maximum":5,"minimum":0,"type":"integer"},'
        '"notify_only":{"default":false,"type":"boolean"},'
        '"risk_scale":{"default":1.0,"maximum":1.0,"minimum":0.25,"type":"number"},'
        '"tone":{"default":"short","enum":["short","long"],"type":"string"}}'
    )
    assert stored_toggles(text) == DECLARED
    assert declaration_text({}) == ""
    assert stored_toggles(None) == {}


@pytest.mark.parametrize(
    ("field", "why"),
    [
        ({"type": "number", "default": 1.0}, "no bounds"),
        ({"type": "number", "minimum": 2, "maximum": 1, "default": 1.0}, "no bounds"),
        ({"type": "number", "minimum": 0, "maximum": 1, "default": 2}, "default 2"),
        ({"type": "number", "minimum": 0, "maximum": 1, "multipleOf": 0.1, "default": 1}, "multipleOf"),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 1, "default": 1}, "exclusiveMinimum"),
        ({"type": "number", "minimum": float("nan"), "maximum": 1, "default": 1}, "no bounds"),
        ({"type": "integer", "minimum": 0, "maximum": 2**70, "default": 1}, "no bounds"),
        ({"type": "integer", "minimum": 0, "maximum": 9, "default": True}, "default true"),
        ({"type": "string", "default": "any"}, "no choices"),
        ({"type": "string", "enum": ["a" * 65], "default": "a" * 65}, "no choices"),
        ({"type": "string", "enum": ["a\nb"], "default": "a\nb"}, "no choices"),
        ({"type": "string", "enum": ["a", 1], "default": "a"}, "no choices"),
        ({"type": "string", "enum": [str(i) for i in range(51)], "default": "0"}, "more than 50"),
        ({"type": "boolean"}, "default None"),
        ({"type": "boolean", "default": 1}, "default 1"),
        ({"type": "boolean", "const": True, "default": True}, "const"),
        ({"type": "array", "items": {}, "default": []}, "another type"),
        ({"anyOf": [{"type": "boolean"}, {"type": "null"}], "default": None}, "another type"),
        ({"$ref": "#/$defs/Other"}, "another type"),
        ({"type": ["boolean"], "default": True}, "another type"),
        ("boolean", "another type"),
        (None, "another type"),
    ],
)
def test_another_field_is_refused(field: Any, why: str) -> None:
    with pytest.raises(InvalidToggles, match=why):
        read_declaration({"mine": field}, "mine:Mine")


@pytest.mark.parametrize("name", ["", "1a", "a.b", "a b", "a" * 65, "é", "a\x00", "__class__", "a\n"])
def test_another_name_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(InvalidToggles) as refused:
        read_declaration({name: {"type": "boolean", "default": True}}, "mine:Mine")

    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("risk_scale", {"type": "number", "minimum": 0.1, "maximum": 1, "default": 1}),
        ("risk_scale", {"type": "number", "minimum": 0.5, "maximum": 2, "default": 1}),
        ("risk_scale", {"type": "boolean", "default": True}),
        ("notify_only", {"type": "integer", "minimum": 0, "maximum": 1, "default": 1}),
        ("symbol_GOLD", {"type": "integer", "minimum": 0, "maximum": 1, "default": 1}),
        ("entry_delay", {"type": "integer", "enum": [0, 500], "default": 0}),
    ],
)
def test_a_name_with_a_meaning_keeps_it(name: str, field: dict[str, Any]) -> None:
    with pytest.raises(InvalidToggles, match="fixed meaning"):
        read_declaration({name: field}, "mine:Mine")


def test_a_declaration_has_fifty_toggles_at_most() -> None:
    field = {"type": "boolean", "default": True}

    with pytest.raises(InvalidToggles, match="51 toggles"):
        read_declaration({f"t{i}": field for i in range(51)}, "mine:Mine")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
keys = st.sampled_from(["type", "enum", "const", "minimum", "maximum", "default", "title", "$ref"])
kinds = st.sampled_from([*Kind]) | json_values


@given(
    declared=st.dictionaries(st.text(max_size=5), st.dictionaries(keys, json_values | kinds, max_size=6)) | json_values
)
def test_whatever_a_version_declares_is_read_or_refused(declared: Any) -> None:
    try:
        found = read_declaration(declared, "mine:Mine")
    except InvalidToggles:
        return

    text = declaration_text(found)
    assert stored_toggles(text) == found
    json.loads(text or "{}", parse_constant=pytest.fail)


@pytest.mark.parametrize(
    ("toggle", "value", "kept"),
    [
        (RISK, 0.25, 0.25),
        (RISK, 1, 1.0),
        (QUIET, True, True),
        (TONE, "long", "long"),
        (DELAY, 5, 5),
    ],
)
def test_a_value_within_the_declaration_is_kept_by_its_type(toggle: Toggle, value: Any, kept: Any) -> None:
    found = toggle.checked(value)

    assert (found, type(found)) == (kept, type(kept))


@pytest.mark.parametrize(
    ("toggle", "value"),
    [
        *((RISK, value) for value in (0.24, 1.01, True, "1", None, math.nan, math.inf, [1], 2**60)),
        *((QUIET, value) for value in (1, 0, "true", None)),
        *((TONE, value) for value in ("", "Long", "long ", 1, True, "a\x00")),
        *((DELAY, value) for value in (6, -1, 1.0, True, "1")),
    ],
)
def test_a_value_outside_the_declaration_says_what_is_allowed(toggle: Toggle, value: Any) -> None:
    with pytest.raises(InvalidToggle, match="allowed: "):
        toggle.checked(value)


def test_the_first_rule_that_concerns_the_user_decides() -> None:
    rules = [rule(0.25, user_ids=["u1"]), rule(0.5, segment="new"), rule(0.75)]

    assert of(rules).value == 0.25
    assert of(rules, "u2", segments=frozenset({"new"})).value == 0.5
    assert of(rules, "u2").value == 0.75
    assert of(rules[:2], "u2").value == 1.0


def test_all_conditions_of_a_rule_must_hold() -> None:
    rules = [rule(0.5, segment="new", capital_at_least=100, capital_at_most=200)]

    assert of(rules, segments=frozenset({"new"}), capital=100).value == 0.5
    assert of(rules, segments=frozenset({"new"}), capital=200).value == 0.5
    assert of(rules, segments=frozenset({"new"}), capital=99.99).value == 1.0
    assert of(rules, segments=frozenset({"new"}), capital=200.01).value == 1.0
    assert of(rules, segments=frozenset({"new"})).value == 1.0  # its capital is unknown
    assert of(rules, capital=150).value == 1.0
    resolver = Resolver("fib_rsi", DECLARED, {"risk_scale": rules})
    new = frozenset({"new"})
    assert [resolver.values("u1", new, each)["risk_scale"] for each in (99.99, 100, 200, 200.01)] == [1, 0.5, 0.5, 1]


def test_the_reason_names_the_rule_and_the_bucket() -> None:
    rules = [rule(0.25, segment="vip"), rule(0.5, segment="new", percent=90)]

    found = of(rules, "u2", segments=frozenset({"new"}))

    assert found.why == "rule 2: segment new, 90 % of users, bucket 0.77 < 90.00"
    assert of(rules).why == "default: no rule concerns the user"
    assert of([rule(0.5, percent=10)]).why == "default: no rule concerns the user, bucket 99.74"
    assert of([]).why == "default: it has no rule"


def test_a_rule_whose_value_the_version_does_not_allow_gives_its_default() -> None:
    found = of([rule(0.1), rule(0.5)])

    assert (found.value, found.rule) == (1.0, 1)
    assert "but default: 0.1 is not allowed" in found.why


def test_the_buckets_of_a_toggle_are_golden() -> None:
    salt = toggle_salt("fib_rsi", "risk_scale")

    assert salt == "toggle:fib_rsi:risk_scale:"
    assert [bucket_of(user, salt) for user in ("u1", "u2", "user_123")] == [9974, 77, 2771]
    assert [SaltedBuckets(salt).bucket_of(user) for user in (b"u1", b"u2", b"user_123")] == [9974, 77, 2771]


def test_the_buckets_of_toggles_and_canaries_are_independent() -> None:
    users = [f"user_{i}" for i in range(20_000)]
    salts = ["", toggle_salt("fib_rsi", "a"), toggle_salt("fib_rsi", "b"), toggle_salt("other", "a")]

    for one in salts:
        for other in salts:
            both = sum(bucket_of(each, one) < 2_500 and bucket_of(each, other) < 2_500 for each in users)
            assert abs(both / len(users) - (0.25 if one == other else 0.0625)) < 0.01


@given(percents=st.lists(st.integers(0, 100), min_size=2, max_size=2), user=st.text(min_size=1, max_size=9))
def test_a_larger_percentage_keeps_its_users(percents: list[int], user: str) -> None:
    low, high = sorted(percents)
    if of([rule(0.5, percent=low)], user).rule is None:
        return

    assert of([rule(0.5, percent=high)], user).value == 0.5


facts = st.fixed_dictionaries(
    {},
    optional={
        "user_ids": st.lists(st.sampled_from(["u1", "u2", "u3"]), min_size=1, max_size=3),
        "segment": st.sampled_from(["new", "vip"]),
        "capital_at_least": st.sampled_from([0, 100]),
        "capital_at_most": st.sampled_from([100, 200]),
        "percent": st.sampled_from([0, 0.77, 0.78, 10, 50, 99.74, 99.75, 100]),
    },
)


asked = st.tuples(
    st.sampled_from(["u1", "u2", "u3", "u4"]),
    st.frozensets(st.sampled_from(["new", "vip"])),
    st.none() | st.sampled_from([0.0, 99.99, 100.0, 150.0, 200.0, 200.01]),
)


@given(
    whens=st.lists(facts, max_size=20),
    values=st.lists(st.sampled_from([0.25, 0.5, 2.0]), min_size=20, max_size=20),
    users=st.lists(asked, min_size=1, max_size=12),
)
def test_values_without_reasons_are_those_with_reasons(
    whens: list[dict[str, Any]], values: list[float], users: list[tuple[str, frozenset[str], float | None]]
) -> None:
    rules = [rule(value, **when) for when, value in zip(whens, values, strict=False)]
    resolver = Resolver("fib_rsi", DECLARED, {"risk_scale": rules, "tone": [rule("long", percent=50)]})

    for user, segments, capital in users:
        explained = resolver.explain(user, segments, capital)
        assert resolver.values(user, segments, capital) == {name: each.value for name, each in explained.items()}
        expected = next((each for each in rules if _concerns(each.when, user, segments, capital)), None)
        allowed = expected is not None and expected.value in (0.25, 0.5)
        assert explained["risk_scale"].value == (expected.value if expected is not None and allowed else 1.0)


def test_facts_of_rules_show_how_many_users_they_name_and_which_by_a_digest() -> None:
    ann, bob, all_users = rule(0.5, user_ids=["ann"], percent=10), rule(0.5, user_ids=["bob"]), rule(1)

    facts = rule_facts([ann, bob, all_users])

    assert facts[0]["when"]["user_ids"]["users"] == facts[1]["when"]["user_ids"]["users"] == 1
    assert facts[0]["when"]["user_ids"]["digest"] != facts[1]["when"]["user_ids"]["digest"]
    assert (facts[0]["when"]["percent"], facts[0]["value"], facts[0]["type"]) == (10, 0.5, "float")
    assert facts[2] == {"when": {}, "value": 1, "type": "int"}


def test_rules_differ_by_number_value_type_and_users() -> None:
    quiet = [rule(True), rule(1, user_ids=["ann"])]

    assert rule_differences(quiet, quiet) == []
    assert rule_differences(quiet, [rule(1), rule(1, user_ids=["bob"])]) == [
        "rule 1 is all users: true, declared all users: 1",
        "rule 2 is one user: 1, declared one user: 1 (other users)",
    ]
    assert rule_differences(quiet, quiet[:1]) == ["rule 2 is removed: one user: 1"]
    assert rule_differences([], [rule("é")]) == ['rule 1 is added: all users: "é"']


def test_users_of_very_many_kinds_do_not_fill_the_memory() -> None:
    resolver = Resolver("fib_rsi", DECLARED, {"risk_scale": [rule(0.5, segment="s7")]})

    found = [resolver.values("u1", frozenset({f"s{i}"}), None)["risk_scale"] for i in range(10_001)]

    assert (found[7], found[8], found[10_000]) == (0.5, 1.0, 1.0)
    assert len(resolver._plans) == 1


def _concerns(when: When, user: str, segments: frozenset[str], capital: float | None) -> bool:
    """Say it in another way than the compiled rules."""
    checks = [
        when.user_ids is None or user in when.user_ids,
        when.segment is None or when.segment in segments,
        when.capital_at_least is None or (capital is not None and capital >= when.capital_at_least),
        when.capital_at_most is None or (capital is not None and capital <= when.capital_at_most),
        when.percent is None or bucket_of(f"toggle:fib_rsi:risk_scale:{user}") < when.percent * 100,
    ]
    return all(checks)


@pytest.mark.parametrize(
    ("when", "why"),
    [
        ({"user_ids": []}, "user_ids"),
        ({"user_ids": [""]}, "user id"),
        ({"user_ids": ["\ud800"]}, "user"),
        ({"user_ids": ["a" * 201]}, "200"),
        ({"user_ids": [1]}, "user_ids"),
        ({"user_ids": [f"u{i}" for i in range(10_001)]}, "10000"),
        ({"segment": ""}, "segment"),
        ({"segment": "a" * 65}, "64"),
        ({"percent": 101}, "percent"),
        ({"percent": 0.001}, "percent"),
        ({"percent": math.nan}, "percent"),
        ({"capital_at_least": -1}, "capital_at_least"),
        ({"capital_at_least": 5, "capital_at_most": 0}, "more than"),
        ({"country": "de"}, "country"),
    ],
)
def test_other_conditions_are_refused_with_the_number_of_the_rule(when: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidToggle, match="rule 3") as refused:
        read_rule(when, 0.5, "risk_scale", 3)

    assert why in str(refused.value)


@pytest.mark.parametrize("value", [None, [1], {"a": 1}, math.nan])
def test_another_type_of_value_is_refused(value: Any) -> None:
    with pytest.raises(InvalidToggle, match="value"):
        rule(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("0.5", 0.5),
        ("3", 3),
        ("long", "long"),
        ('"3"', "3"),
        ("null", "null"),
        ("[1]", "[1]"),
        ("[" * 9999, "[" * 9999),
    ],
)
def test_a_typed_value_is_read_as_json_or_text(text: str, value: Any) -> None:
    assert (parse_value(text), type(parse_value(text))) == (value, type(value))


def test_an_unknown_toggle_says_which_are_declared() -> None:
    assert known_toggle(DECLARED, "fib_rsi", "tone") == TONE
    with pytest.raises(UnknownToggle, match="entry_delay, notify_only, risk_scale, tone"):
        known_toggle(DECLARED, "fib_rsi", "leverage")


@pytest.mark.parametrize(
    ("users", "shown"),
    [
        (None, "segment new"),
        (["u1"], "user u1, segment new"),
        (["u3", "u1", "u2"], "users u1, u2, u3, segment new"),
        ([f"u{number}" for number in range(1, 6)], "users u1, u2, u3 and 2 more, segment new"),
    ],
)
def test_a_rule_is_listed_with_its_first_users(users: list[str] | None, shown: str) -> None:
    assert read_rule({"user_ids": users, "segment": "new"}, True, "quiet", 1).when.shown_with_ids == shown


def test_a_rule_that_is_refused_as_a_whole_names_no_field() -> None:
    with pytest.raises(InvalidToggle, match="rule 2: capital_at_least is more than capital_at_most"):
        read_rule({"capital_at_least": 2, "capital_at_most": 1}, True, "quiet", 2)
