from typing import Any

import pytest

from strategy_core.domain.errors import InvalidDecision
from strategy_core.domain.strategy import Action, Decision, checked_decision


def test_a_sound_decision_is_returned_as_it_is() -> None:
    said = Decision(Action.BUY, 0.7, {"rsi": 28.4, "level": "61.8 %", "crossed": True, "gap": None}, "oversold")

    assert checked_decision(said) is said
    assert said.signals
    assert not Decision(Action.HOLD).signals


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (None, "NoneType, not a Decision"),
        ("buy", "str, not a Decision"),
        (Decision("short"), "'short' is not one of buy, sell, hold"),  # type: ignore[arg-type]
        (Decision(Action.BUY, 0.5, {}, "insufficient_history"), "which is a hold"),
        (Decision(Action.BUY, 2.0), "confidence 2.0 is not within"),
        (Decision(Action.BUY, -0.1), "confidence -0.1 is not within"),
        (Decision(Action.BUY, float("nan")), "confidence nan is not within"),
        (Decision(Action.BUY, "high"), "confidence 'high' is not within"),  # type: ignore[arg-type]
        (Decision(Action.BUY, True), "confidence True is not within"),
        (Decision(Action.BUY, 0.5, {"rsi": float("inf")}), "feature 'rsi' is inf"),
        (Decision(Action.BUY, 0.5, {"rsi": [1]}), "feature 'rsi' is list"),  # type: ignore[dict-item]
        (Decision(Action.BUY, 0.5, {1: 2.0}), "feature 1 is float"),  # type: ignore[dict-item]
    ],
)
def test_what_cannot_be_logged_and_scored_is_refused(answer: Any, problem: str) -> None:
    with pytest.raises(InvalidDecision, match=problem):
        checked_decision(answer)
