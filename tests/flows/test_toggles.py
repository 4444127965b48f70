"""The forms that set and remove rules of toggles."""

import pytest
from sqlalchemy import Engine

from flows.toggles import remove_toggle_rules, set_toggle
from strategy_core.domain.audit import Command
from strategy_core.domain.lifecycle import Status
from strategy_core.services.audit import read_audit
from strategy_core.services.toggles import list_toggles, load_segments
from tests.builders import MONDAY, OWNER, put_version
from tests.flows.conftest import Clock

DECLARED = (
    '{"notify_only":{"default":false,"type":"boolean"},'
    '"risk_scale":{"default":1.0,"maximum":1.0,"minimum":0.25,"type":"number"}}'
)


@pytest.fixture
def strategy(engine: Engine, at: Clock) -> Engine:
    put_version(engine, "v1", Status.ACTIVE, toggles=DECLARED)
    load_segments(engine, Command(OWNER, MONDAY), [("u1", "new")])
    return engine


def rules(engine: Engine, name: str) -> list[tuple[object, str]]:
    (found,) = [each for each in list_toggles(engine, "fib_rsi").toggles if each.name == name]
    return [(rule.value, rule.when.shown) for rule in found.rules]


def test_rules_are_set_and_removed_by_form(strategy: Engine) -> None:
    first = set_toggle.fn("fib_rsi", "risk_scale", "0.5", owner="ana", segment="new", percent=10.0, reason="a trial")
    all_users = set_toggle.fn("fib_rsi", "risk_scale", "0.75", owner="ana")

    assert first.message == "fib_rsi risk_scale: 1. segment new, 10 % of users: 0.5"
    assert all_users.message == "fib_rsi risk_scale: 1. segment new, 10 % of users: 0.5; 2. all users: 0.75"
    event = next(each for each in read_audit(strategy) if each.action == "set_toggle")
    assert (event.actor, event.source, event.reason) == ("ana", "form, unverified", "a trial")
    removed = remove_toggle_rules.fn("fib_rsi", "risk_scale", owner="ana", reason="over")
    assert removed.message == "fib_rsi risk_scale: no rule"
    assert rules(strategy, "risk_scale") == []


def test_a_form_sent_again_replaces_the_rule_of_the_same_users(strategy: Engine) -> None:
    for value in ("true", "true", "false"):
        set_toggle.fn("fib_rsi", "notify_only", value, owner="ana", segment="new")

    assert rules(strategy, "notify_only") == [(False, "segment new")]
    assert [each.action for each in read_audit(strategy)].count("set_toggle") == 2


@pytest.mark.parametrize(
    ("toggle", "value", "segment", "why"),
    [
        ("risk_scale", "2", "", "2 is not allowed; allowed: a number from 0.25 to 1"),
        ("risk_scale", "0.5", "vip", "no segment 'vip'; known segments: new"),
        ("leverage", "3", "", "declared toggles: notify_only, risk_scale"),
    ],
)
def test_a_wrong_form_is_refused_and_changes_nothing(
    strategy: Engine, toggle: str, value: str, segment: str, why: str
) -> None:
    before = read_audit(strategy)

    refused = set_toggle.fn("fib_rsi", toggle, value, owner="ana", segment=segment)

    assert why in str(refused.message)
    assert read_audit(strategy) == before
