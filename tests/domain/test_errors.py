"""Errors: a message in one line, fields as attributes, an exit code per family, and pickling."""

import inspect
import pickle

import pytest

from strategy_core.domain import errors
from strategy_core.domain.errors import RolloutError
from tests.builders import DAY, MONDAY

FACTS = {
    "cursor": "17-0a1b2c3d",
    "since": 4711,
    "newest": 12,
    "reason": "the canary earns less",
    "freeze_id": 7,
    "start_at": MONDAY,
    "now": MONDAY,
    "days": 366,
    "strategy_name": "fib_rsi",
    "toggle": "risk_scale",
    "segment": "new",
    "rules": 2,
    "version": "2",
    "wanted": "9f",
    "token_id": "t-1",
    "proposal_id": "p-1",
    "decision": "approved",
    "by": "ana",
    "limit": 60,
    "number": 37,
    "to_version": "3",
    "waiting": 5,
    "versions": ["2", "3"],
    "symbol": "GOLD",
    "holders": ["process 4711 (python, user ana)", "process 4712"],
    "known": ["a", "b"],
    "current": "shadow",
    "target": "shadow",
    "allowed": ["canary", "active"],
    "because": "it is",
    "existing": "1",
    "fingerprint": "0" * 64,
    "quarantined_at": MONDAY,
    "state": "running",
    "instead": "let it end",
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
    "advice": "rollout replay fib_rsi 2",
    "feed": "the feed has no candles",
    "years": (1678, 2261),
    "field": "salt",
    "trade_id": "t1",
    "reported": "otherwise",
    "fixed": "",
    "asked": "gold",
    "extra": "postgres",
    "changed": ["source"],
    "window": "GOLD 2026-03-02 00:00: buy 0.6 at registration, hold 0 now",
    "tried": "open for writing: x",
    "cause": "the feed is down",
    "actor": "ana",
    "alert_id": 17,
    "channel": "slack-1f2e3d4c",
    "idempotency_key": "k1",
    "retry_after_s": 40,
    "done": "2",
    "at": MONDAY,
    "required": "namespaces",
    "race_id": "0a1b2c3d",
    "started_at": MONDAY,
    "closed_at": MONDAY,
    "available": "landlock (no namespaces: not permitted)",
}
FAMILIES = {"NotFound": 4, "Refused": 5, "Invalid": 2, "Denied": 3, "Untrusted": 6}
ERRORS = [
    error
    for name, error in inspect.getmembers(errors, inspect.isclass)
    if issubclass(error, RolloutError) and name not in {"RolloutError", *FAMILIES}
]


def an(error: type[RolloutError]) -> RolloutError:
    return error(**{name: FACTS[name] for name in inspect.signature(error).parameters if name in FACTS})


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_an_error_is_one_line_that_carries_its_facts(error: type[RolloutError]) -> None:
    raised = an(error)

    text = str(raised)
    assert text
    assert "\n" not in text
    assert "{" not in text
    assert set(vars(raised)) == set(inspect.signature(error).parameters)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_an_error_travels_between_processes(error: type[RolloutError]) -> None:
    raised = an(error)

    arrived = pickle.loads(pickle.dumps(raised))

    assert (type(arrived), str(arrived), vars(arrived)) == (error, str(raised), vars(raised))


@pytest.mark.parametrize(("family", "exit_code"), list(FAMILIES.items()))
def test_a_family_has_one_exit_code(family: str, exit_code: int) -> None:
    base = getattr(errors, family)

    assert {error.exit_code for error in ERRORS if issubclass(error, base)} == {exit_code}


def test_the_message_is_the_docstring_as_one_line() -> None:
    assert str(errors.UnknownStrategy("x")) == "no strategy 'x'; known strategies: none"
    assert str(errors.NotAwaiting("approve", "paused", ["b", "a"])) == (
        "cannot approve: the rollout is paused; allowed when a or b"
    )
    assert str(errors.InvalidPlan(["a: no", "b: no"])) == "plan is not valid: a: no; b: no"
    assert str(errors.InvalidPeriod(MONDAY, MONDAY)) == (
        "the period 2026-03-02T00:00:00+00:00 to 2026-03-02T00:00:00+00:00 is empty; allowed: start before end"
    )


def test_a_message_names_only_what_is_known() -> None:
    assert str(errors.IllegalTransition("a", "b", [])) == "cannot move a -> b; allowed: none"
    assert str(errors.IllegalTransition("a", "b", ["c"], "why")) == "cannot move a -> b (why); allowed: c"
    assert str(errors.InvalidCandles("x.csv", "is\nempty")) == "x.csv: is empty"
    assert str(errors.UnknownChannel(None)) == "no alert channel; set ROLLOUT_ALERT_URLS"
