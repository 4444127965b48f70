"""A name that occurs twice in a JSON document is refused, because it has two values."""

import json

import pytest
from pydantic import BaseModel

from strategy_core.domain.errors import InvalidReport
from strategy_core.domain.live_trades import TradeReport
from strategy_core.domain.parsing import check_columns, checked_rows, each_name_once
from strategy_core.domain.preview import Account
from strategy_core.domain.toggles import Member


def test_an_object_is_what_it_says() -> None:
    said = '{"a": 1, "b": {"a": [{"a": 2}]}}'

    assert json.loads(said, object_pairs_hook=each_name_once) == json.loads(said)


@pytest.mark.parametrize("said", ['{"percent": 5, "percent": 50}', '{"plan": {"percent": 5, "percent": 5}}'])
def test_a_name_that_stands_twice_is_refused_at_any_depth(said: str) -> None:
    with pytest.raises(ValueError, match="'percent' occurs twice"):
        json.loads(said, object_pairs_hook=each_name_once)


@pytest.mark.parametrize("user_id", [" ", " moon", "moon ", "\u00a0moon"])
def test_a_padded_user_id_is_refused_with_its_row(user_id: str) -> None:
    rows = [{"user_id": "u1", "segment": "new"}, {"user_id": user_id, "segment": "new"}]

    with pytest.raises(InvalidReport, match=r"user_id: .* is blank or has white space around it") as refused:
        list(checked_rows(Member, rows, source="segments", first_row=2))

    assert refused.value.row == 3


def problem_of(model: type[BaseModel], **row: str) -> str:
    with pytest.raises(InvalidReport) as refused:
        list(checked_rows(model, [row], source="users"))
    return refused.value.problem


def test_a_wrong_number_or_time_is_shown_with_what_is_needed() -> None:
    trade = {"trade_id": "t1", "user_id": "u1", "strategy_name": "fib_rsi", "version": "1", "symbol": "GOLD"}

    assert problem_of(Account, user_id="u1", capital="1,250.50") == (
        "capital: '1,250.50' is not a number; needed is a number with a decimal point and without thousands "
        "separators, or nothing if it is unknown"
    )
    assert problem_of(TradeReport, **trade, opened_at="2026.01.31 12:00:00") == (
        "opened_at: '2026.01.31 12:00:00' is not a time; needed is ISO 8601 with an offset, such as 2026-01-31T12:00Z"
    )


@pytest.mark.parametrize(("column", "named"), [("user_id;capital", ";"), ("user_id\tcapital", "tab")])
def test_a_header_with_another_separator_says_so(column: str, named: str) -> None:
    with pytest.raises(InvalidReport, match=f"the columns are separated by {named}; needed is a comma"):
        check_columns(Account, [column], source="users")
