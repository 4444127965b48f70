"""Bulk inserts write and count new rows exactly once and skip the others."""

import json
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta, timezone
from threading import Barrier
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, event, select, text
from sqlalchemy.exc import DBAPIError
from sqlmodel import col

from strategy_core.domain.errors import InvariantRefused, NaiveTime
from strategy_core.store import decisions, outcomes
from strategy_core.store.bulk_insert import write_if_new
from strategy_core.store.engine import insert_if_new, reading, transaction
from strategy_core.store.tables import EquityMark, Outcome, ShadowDecisionLog
from tests.builders import HOUR, MONDAY, decision_row, outcome_row, put_decisions, put_version

LOG = ShadowDecisionLog
SYMBOLS = ("GOLD", "SILVER")
MINUTE = timedelta(minutes=1)
HOSTILE = "tab\tnewline\nreturn\rfeed\f\v\b \\N \\. \\t \\\\ 'single' \"double\" é 漢字 🚀 \x7f \u2028"


@pytest.fixture
def log(engine: Engine) -> Engine:
    for version in ("1", "2"):
        put_version(engine, version, symbols=SYMBOLS)
    return engine


def minutes(first: int, last: int) -> list[dict[str, Any]]:
    """Return rows of two symbols, the newest first: no writer may rely on the order that it is given."""
    return [
        decision_row("1", MONDAY + at * MINUTE, symbol=symbol)
        for at in range(last - 1, first - 1, -1)
        for symbol in SYMBOLS
    ]


def written(engine: Engine, rows: Sequence[dict[str, Any]]) -> list[UUID]:
    with transaction(engine) as session:
        return [row["id"] for row in write_if_new(session, LOG, rows)]


def oldest_first(rows: Sequence[dict[str, Any]]) -> list[UUID]:
    return [row["id"] for row in sorted(rows, key=lambda row: (row["timestamp"], row["symbol"]))]


@pytest.mark.parametrize(
    "there",
    [0, 3_000, *(pytest.param(there, marks=pytest.mark.full) for there in (1, 5_500, 6_000))],
    ids=lambda there: f"{there} of 6000 there",
)
def test_what_is_new_is_written_and_named_the_oldest_first(log: Engine, there: int) -> None:
    """With more than one statement. The existing rows are the oldest or the newest."""
    rows = minutes(0, 3_000)
    kept = [*sorted(rows, key=lambda row: row["timestamp"])][:there]
    put_decisions(log, *({**row, "reason": "was first"} for row in kept))

    new = written(log, rows)

    known = {row["id"] for row in kept}
    assert new == [each for each in oldest_first(rows) if each not in known]
    with reading(log) as session:
        found = dict(session.execute(select(col(LOG.id), col(LOG.reason))).tuples().all())
    assert found == {row["id"]: "was first" if row["id"] in known else "" for row in rows}


def test_every_other_row_is_there_already(log: Engine) -> None:
    rows = minutes(0, 40)
    put_decisions(log, *rows[::2])

    assert written(log, rows) == oldest_first(rows[1::2])
    assert written(log, rows) == []
    assert written(log, []) == []


def test_of_two_rows_with_one_key_the_first_is_written(log: Engine) -> None:
    first, second, other = (
        decision_row("1", MONDAY + at * HOUR, reason=reason) for at, reason in ((0, "a"), (0, "b"), (1, ""))
    )

    with transaction(log) as session:
        new = write_if_new(session, LOG, [other, first, second])

    assert [row["reason"] for row in new] == ["a", ""]
    with reading(log) as session:
        assert [row.reason for row in decisions.find_decisions(session, "fib_rsi", "1")] == ["a", ""]


@pytest.mark.full
def test_two_writers_of_the_same_rows_share_them(log: Engine) -> None:
    """Neither fails, neither waits for the other for ever, and each row is one writer's."""
    rows = minutes(0, 600)
    start = Barrier(2)

    def write(mine: Sequence[dict[str, Any]]) -> list[UUID]:
        start.wait()
        return written(log, mine)

    with ThreadPoolExecutor(2) as threads:
        one, other = threads.map(write, (rows, rows[::-1]))

    assert sorted([*one, *other]) == sorted(row["id"] for row in rows)


def test_text_and_features_are_read_as_they_were_given(log: Engine) -> None:
    features: dict[str, Any] = {
        HOSTILE: [HOSTILE, None, True, 1e-300, 12345678901234567890, {"deep": [[], {}]}],
        "": "",
    }
    row = decision_row("1", MONDAY, "error", error_kind="raised") | {
        "features": features,
        "reason": HOSTILE,
        "error": HOSTILE * 300,
        "confidence": 0.1 + 0.2,
        "duration_ms": 1 / 3,
    }
    beside = decision_row("2", MONDAY) | {"reason": "", "error": None, "features": {}}

    written(log, [row, beside])

    with reading(log) as session:
        (found,) = decisions.find_decisions(session, "fib_rsi", "1")
        (plain,) = decisions.find_decisions(session, "fib_rsi", "2")
    assert json.dumps(found.features, sort_keys=True) == json.dumps(features, sort_keys=True)
    assert found.model_dump(exclude={"features"}) == {name: value for name, value in row.items() if name != "features"}
    assert (plain.reason, plain.error, plain.features) == ("", None, {})


def test_rows_stand_as_a_plain_insert_leaves_them(log: Engine) -> None:
    """What a database holds, to the byte: another release, or somebody's SQL, must not see which way it came."""
    odd = {"features": {"é": 1.0, "b": [1, 2.50]}, "confidence": 1, "timestamp": MONDAY.astimezone(timezone(5 * HOUR))}
    bulk, plain = decision_row("1", MONDAY) | odd, decision_row("2", MONDAY) | odd

    written(log, [bulk])
    with transaction(log) as session:
        insert_if_new(session, LOG, [plain])

    columns = ", ".join(f"CAST({name} AS text)" for name in bulk if name not in ("id", "version"))
    with reading(log) as session:
        one, other = session.connection().execute(text(f"SELECT {columns} FROM shadow_decision_log"))
        ids = session.connection().execute(text("SELECT CAST(id AS text) FROM shadow_decision_log")).scalars().all()
    assert one == other
    assert len({len(each) for each in ids}) == 1


@pytest.mark.parametrize("r", [math.inf, -math.inf, math.nan, 1e308])
def test_an_outcome_is_worth_what_a_plain_insert_would_book(log: Engine, r: float) -> None:
    def booked(version: str, write: Any) -> str:
        put_decisions(log, decision_row(version, MONDAY, "buy"))
        try:
            with transaction(log) as session:
                write(session, Outcome, [outcome_row(version, MONDAY, 1.0) | {"r_multiple": r}])
        except InvariantRefused as refused:  # SQLite has no NaN
            return str(refused)
        with reading(log) as session:
            return repr(outcomes.find_outcomes(session, "fib_rsi", version)[0].r_multiple)

    assert booked("1", write_if_new) == booked("2", insert_if_new)


def test_a_row_that_is_refused_keeps_all_others_of_its_transaction_out(log: Engine) -> None:
    rows = minutes(0, 50)
    rows[33] = rows[33] | {"confidence": 1.5}

    with pytest.raises(InvariantRefused, match="ck_confidence"):
        written(log, rows)

    with reading(log) as session:
        assert decisions.find_decisions(session, "fib_rsi", "1") == []
    with pytest.raises(InvariantRefused, match=r"(?i)foreign key"):
        written(log, [decision_row("none", MONDAY)])


def test_a_refusal_can_be_survived_within_the_transaction(log: Engine) -> None:
    with transaction(log) as session:
        with pytest.raises(DBAPIError), session.begin_nested():
            write_if_new(session, LOG, [decision_row("1", MONDAY) | {"decision": "perhaps"}])
        assert len(write_if_new(session, LOG, [decision_row("1", MONDAY)])) == 1


def test_a_naive_time_is_refused(log: Engine) -> None:
    with pytest.raises(NaiveTime, match="2026-03-02T00:00:00"):
        written(
            log, [decision_row("1", MONDAY), decision_row("2", MONDAY) | {"logged_at": MONDAY.replace(tzinfo=None)}]
        )

    assert written(log, [decision_row("1", MONDAY)])


def test_marks_and_outcomes_are_counted_when_they_are_new(log: Engine) -> None:
    marks = [
        {"strategy_name": "fib_rsi", "version": "1", "symbol": symbol, "timestamp": MONDAY + at * HOUR, "r": at / 3}
        for at in range(6)
        for symbol in SYMBOLS
    ]
    with transaction(log) as session:
        assert outcomes.mark_equity(session, marks[:5]) == 5
    with transaction(log) as session:
        assert outcomes.mark_equity(session, marks) == 7
    with transaction(log) as session:
        assert outcomes.mark_equity(session, marks) == 0
        assert write_if_new(session, EquityMark, marks) == []
    with reading(log) as session:
        assert outcomes.marks_by_candle(session, "fib_rsi", "1", start=MONDAY) == pytest.approx(
            {MONDAY + at * HOUR: 2 * at / 3 for at in range(6)}
        )


def test_rows_are_sent_as_one_statement_that_others_see(log: Engine) -> None:
    """Event listeners see bulk statements like any others."""
    seen: list[str] = []

    @event.listens_for(log, "before_cursor_execute")
    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        seen.append(statement)

    written(log, minutes(0, 100))

    assert sum("shadow_decision_log (id" in statement for statement in seen) == 1
