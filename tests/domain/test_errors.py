"""Each error is one line that says what was refused; its facts are attributes; its family is its exit code."""

import inspect

import pytest

from strategy_core.domain import errors
from strategy_core.domain.errors import RolloutError
from tests.builders import DAY, MONDAY

FACTS = {
    "strategy_name": "fib_rsi",
    "version": "2",
    "wanted": "9f",
    "symbol": "GOLD",
    "known": ["a", "b"],
    "current": "shadow",
    "target": "shadow",
    "allowed": ["canary", "active"],
    "because": "it is",
    "existing": "1",
    "fingerprint": "0" * 64,
    "quarantined_at": MONDAY,
    "state": "running",
    "what": "approve",
    "expected": 3,
    "found": 4,
    "failures": ["window: 3 of 40 differ"],
    "active": "1",
    "difference": "timeframe 4h against 1h",
    "constraint": "one_active_per_strategy",
    "database": "sqlite:///x.db",
    "needed": "v0001",
    "question": "5 % of users get 2",
    "percent": 150,
    "entry_point": "fib_rsi",
    "problems": ["rsi_period: too large"],
    "timeframe": "7m",
    "why": "no such module",
    "source": "GOLD.csv",
    "problem": "high < low",
    "row": 7,
    "name": "a b",
    "setting": "feed",
    "value": "x",
    "start": MONDAY,
    "end": MONDAY - DAY,
    "moment": MONDAY,
    "years": (1678, 2261),
    "field": "salt",
    "trade_id": "t1",
    "reported": "otherwise",
    "fixed": "",
    "asked": "gold",
    "extra": "postgres",
    "changed": ["source"],
    "tried": "open for writing: x",
    "cause": "the feed is down",
    "actor": "ana",
    "alert_id": 17,
    "channel": "slack-1f2e3d4c",
    "idempotency_key": "k1",
    "retry_after_s": 40,
}
FAMILIES = {"NotFound": 4, "Refused": 5, "Invalid": 2, "Denied": 3, "Untrusted": 6}
ERRORS = [
    error
    for _, error in inspect.getmembers(errors, inspect.isclass)
    if issubclass(error, RolloutError) and "__init__" in vars(error)
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_an_error_is_one_line_that_carries_its_facts(error: type[RolloutError]) -> None:
    wanted = [name for name in inspect.signature(error).parameters if name in FACTS]
    raised = error(**{name: FACTS[name] for name in wanted})

    text = str(raised)
    assert text
    assert "\n" not in text
    assert error.__name__ in (errors.__doc__ or ""), "it stands in the tree that opens the module"


@pytest.mark.parametrize(("family", "exit_code"), list(FAMILIES.items()))
def test_a_family_has_one_exit_code(family: str, exit_code: int) -> None:
    base = getattr(errors, family)

    assert {error.exit_code for error in ERRORS if issubclass(error, base)} == {exit_code}


def test_without_names_to_suggest_it_says_that_there_are_none() -> None:
    assert str(errors.UnknownStrategy("x")) == "no strategy 'x'; there are no strategies yet"
    assert str(errors.IllegalTransition("a", "b", [])) == "cannot move a -> b; allowed: nothing"
