from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Engine
from sqlmodel import Session

from strategy_core.domain.evidence import Record
from strategy_core.store import decisions, evidence, outcomes, versions
from strategy_core.store.engine import reading, transaction
from tests.builders import (
    DAY,
    GOLD,
    HOUR,
    MONDAY,
    decision_row,
    outcome_row,
    put_day,
    put_decisions,
    put_outcomes,
    put_version,
)


def test_a_second_run_writes_nothing(engine: Engine) -> None:
    put_version(engine, "1.0.0")
    rows = [decision_row("1.0.0", MONDAY + hour * HOUR) for hour in range(3)]
    with transaction(engine) as session:
        first = decisions.log_decisions(session, rows)
    with transaction(engine) as session:
        second = decisions.log_decisions(session, [*rows, decision_row("1.0.0", MONDAY + 3 * HOUR)])

    assert (first, second) == (3, 1)


def test_the_first_answer_stays(engine: Engine) -> None:
    """A candle revised later, or a worker run twice, may not rewrite what users were shown."""
    put_version(engine, "1.0.0")
    put_decisions(engine, decision_row("1.0.0", MONDAY, "buy"))
    put_decisions(engine, decision_row("1.0.0", MONDAY, "sell"))

    with reading(engine) as session:
        (found,) = decisions.find_decisions(session, "fib_rsi", "1.0.0")
    assert found.decision == "buy"


def test_decisions_are_found_by_symbol_period_and_limit(engine: Engine) -> None:
    put_version(engine, "1.0.0", symbols=("GOLD", "SILVER"))
    put_decisions(engine, *(decision_row("1.0.0", MONDAY + hour * HOUR) for hour in range(10)))
    put_decisions(engine, decision_row("1.0.0", MONDAY, symbol="SILVER"))

    def hours(**filters: object) -> list[int]:
        with reading(engine) as session:
            found = decisions.find_decisions(session, "fib_rsi", "1.0.0", **filters)  # type: ignore[arg-type]
        return [row.timestamp.hour for row in found]

    assert hours(symbol=GOLD) == list(range(10))
    assert hours(symbol=GOLD, start=MONDAY + 2 * HOUR, end=MONDAY + 4 * HOUR) == [2, 3]
    assert hours(symbol=GOLD, limit=2) == [8, 9]
    assert hours(symbol="SILVER") == [0]


def test_a_slot_needs_both_arms_closed_trades(engine: Engine) -> None:
    put_version(engine, "1")
    put_version(engine, "2")
    said = {"1": ["buy", "buy", "hold", "error", "hold", "hold"], "2": ["buy", "hold", "hold", "buy", "sell", "buy"]}
    for version, actions in said.items():
        for hour, action in enumerate(actions):
            kind = "raised" if action == "error" else ""
            put_decisions(engine, decision_row(version, MONDAY + hour * HOUR, action, error_kind=kind))
    put_decisions(engine, decision_row("2", MONDAY + 9 * HOUR, "buy"))  # version 1 has no row: not paired
    put_outcomes(engine, outcome_row("1", MONDAY, 1.0, candles=9), outcome_row("1", MONDAY + HOUR, -1.0))
    put_outcomes(engine, outcome_row("2", MONDAY, 0.5), outcome_row("2", MONDAY + 4 * HOUR, 2.0))

    with reading(engine) as session:
        closed, pending = evidence.read_slots(session, "fib_rsi", "2", "1", start=MONDAY)

    assert [(one.version, one.timestamp.hour) for one in pending] == [("2", 5)]
    assert [one.canary_r for one in closed] == [0.0, 2.0, 0.5]  # in the order they closed: 03:00, 06:00, 09:00
    assert [one.active_r for one in closed] == [-1.0, 0.0, 1.0]
    assert [one.canary_side for one in closed] == [0, -1, 1]


def test_slots_of_before_the_rollout_do_not_count(engine: Engine) -> None:
    put_version(engine, "1")
    put_version(engine, "2")
    for day in (MONDAY, MONDAY + DAY):
        put_day(engine, day, {"1": "buy", "2": "buy"}, {"1": 1.0, "2": 0.0}, signal_hours=[3, 4])

    with reading(engine) as session:
        closed, _ = evidence.read_slots(session, "fib_rsi", "2", "1", start=MONDAY + DAY)
        _, ours, theirs = evidence.read_marks(session, "fib_rsi", "2", "1", since=MONDAY + DAY)

    assert len(closed) == 2
    assert (ours.sum(), theirs.sum()) == (0.0, 2.0)


def test_the_record_counts_errors_and_those_at_the_end(engine: Engine) -> None:
    put_version(engine, "1")
    put_version(engine, "2")
    kinds = ["raised", "", "invalid", "", "breach", "deadline"]
    for hour, kind in enumerate(kinds):
        row = decision_row("2", MONDAY + hour * HOUR, "error" if kind else "hold", error_kind=kind)
        put_decisions(engine, row, decision_row("1", MONDAY + hour * HOUR))
    put_decisions(engine, decision_row("2", MONDAY - HOUR, reason="insufficient_history"))

    with reading(engine) as session:
        record = _record(session, "fib_rsi", "2", "1", symbols=[GOLD], since=MONDAY - DAY)

    assert (record.decided, record.errors, record.errors_in_a_row) == (6, 4, 2)
    assert (record.invalid, record.breaches, record.silent_candles) == (1, 1, 2)  # an error is no decision
    assert record.last_error == "deadline at 05:00"


def test_silence_is_counted_on_the_symbol_that_lags_most(engine: Engine) -> None:
    for version in ("1", "2"):
        put_version(engine, version, symbols=("GOLD", "SILVER"))
    for hour in range(6):
        at = MONDAY + hour * HOUR
        put_decisions(engine, *(decision_row("1", at, symbol=symbol) for symbol in ("GOLD", "SILVER")))
        put_decisions(engine, decision_row("2", at))
        if hour < 2:
            put_decisions(engine, decision_row("2", at, symbol="SILVER"))

    with reading(engine) as session:
        both = _record(session, "fib_rsi", "2", "1", symbols=[GOLD, "SILVER"], since=MONDAY)
        gold = _record(session, "fib_rsi", "2", "1", symbols=[GOLD], since=MONDAY)
        assert (both.silent_candles, gold.silent_candles) == (4, 0)
        spoken = evidence.newest_spoken(session, "fib_rsi", ("1", "2"), MONDAY)
    assert spoken["2"] == {"GOLD": MONDAY + 5 * HOUR, "SILVER": MONDAY + HOUR}
    assert spoken["1"] == {"GOLD": MONDAY + 5 * HOUR, "SILVER": MONDAY + 5 * HOUR}


def test_a_version_that_never_spoke_is_silent_on_every_candle(engine: Engine) -> None:
    put_version(engine, "1")
    put_version(engine, "2")
    put_decisions(engine, *(decision_row("1", MONDAY + hour * HOUR) for hour in range(3)))

    with reading(engine) as session:
        assert _record(session, "fib_rsi", "2", "1", symbols=[GOLD], since=MONDAY).silent_candles == 3
        assert evidence.newest_spoken(session, "fib_rsi", ("1", "2"), MONDAY)["2"] == {}


def test_only_signals_without_an_outcome_are_left_to_score(engine: Engine) -> None:
    version = put_version(engine, "1")
    for hour, action in enumerate(["buy", "hold", "sell", "buy", "buy"]):
        put_decisions(engine, decision_row("1", MONDAY + hour * HOUR, action))
    put_outcomes(engine, outcome_row("1", MONDAY + 3 * HOUR, 1.0))

    def left(horizon: int) -> list[tuple[int, str]]:
        with reading(engine) as session:
            rows = decisions.signals_to_score(session, version, GOLD, horizon=horizon)
        return [(moment.hour, action) for moment, action in rows]

    assert left(horizon=24) == [(0, "buy"), (2, "sell"), (4, "buy")]
    assert left(horizon=1) == [(2, "sell"), (4, "buy")]  # marked up to 04:00: what is older had closed by then


def test_outcomes_are_booked_once(engine: Engine) -> None:
    put_version(engine, "1")
    put_decisions(engine, decision_row("1", MONDAY, "buy"))
    put_outcomes(engine, outcome_row("1", MONDAY, 1.0))
    put_outcomes(engine, outcome_row("1", MONDAY, -5.0))

    with reading(engine) as session:
        (booked,) = outcomes.find_outcomes(session, "fib_rsi", "1")
        assert outcomes.find_outcomes(session, "fib_rsi", "1", since=MONDAY + HOUR) == []
        assert versions.get_version(session, "fib_rsi", "1").version == "1"
    assert booked.r_multiple == 1.0


def test_many_symbols_that_fail_on_one_candle_are_no_streak(engine: Engine) -> None:
    """A busy machine misses one candle's deadline on every symbol at once."""
    symbols = ["GOLD", "SILVER", "COPPER"]
    put_version(engine, "1")
    put_version(engine, "2")
    for hour in range(4):
        for symbol in symbols:
            kind = "deadline" if hour == 3 else ""
            row = decision_row("2", MONDAY + hour * HOUR, "error" if kind else "hold", symbol=symbol, error_kind=kind)
            put_decisions(engine, row)

    with reading(engine) as session:
        record = _record(session, "fib_rsi", "2", "1", symbols=symbols, since=MONDAY)
    assert (record.errors, record.errors_in_a_row) == (3, 1)


def test_a_signal_is_overdue_once_its_version_has_decided_enough_candles_since(engine: Engine) -> None:
    put_version(engine, "1")
    put_version(engine, "2")
    for version in ("1", "2"):
        put_decisions(engine, *(decision_row(version, MONDAY + hour * HOUR) for hour in range(1, 11)))
        put_decisions(engine, decision_row(version, MONDAY, "buy"))

    with reading(engine) as session:
        _, pending = evidence.read_slots(session, "fib_rsi", "2", "1", start=MONDAY)
        spoken = evidence.newest_spoken(session, "fib_rsi", ("1", "2"), MONDAY)
        about: dict[str, Any] = {"timeframe": HOUR, "spoken": spoken}
        overdue = evidence.oldest_overdue(session, "fib_rsi", pending, 9, **about)
        in_time = evidence.oldest_overdue(session, "fib_rsi", pending, 10, **about)
    assert overdue is not None
    assert (overdue.symbol, overdue.timestamp) == (GOLD, MONDAY)
    assert in_time is None


def _record(session: Session, *names: str, symbols: Sequence[str], since: datetime) -> Record:
    strategy_name, version, other = names
    spoken = evidence.newest_spoken(session, strategy_name, (version, other), since)
    return evidence.read_record(session, *names, symbols=symbols, since=since, spoken=spoken)
