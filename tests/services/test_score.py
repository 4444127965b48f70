"""Outcomes are the same however often, and in whatever pieces, they are booked."""

from datetime import timedelta
from typing import Any
from uuid import uuid4

import numpy as np
import pandas as pd
import pytest
from sqlalchemy import Engine

from strategy_core.domain.audit import Command
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan
from strategy_core.domain.scoring import ScoringRule, marks, score
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services.rollback import roll_back
from strategy_core.services.rollouts import start_rollout
from strategy_core.services.score import Scored, score_outcomes
from strategy_core.store import outcomes, rollouts, versions
from strategy_core.store.engine import open_database, reading, transaction
from tests.builders import DAY, GOLD, HOUR, MONDAY, OWNER, decision_row, put_decisions, put_version

RULE = ScoringRule()


def log_hours(engine: Engine, market: SyntheticSource, first: int, last: int, version: str = "1") -> None:
    """Log the market's candles of hours first..last-1: buys and sells every seventh, holds between."""
    candles = market.candles(GOLD, closed_by=MONDAY + last * HOUR, since=MONDAY + first * HOUR)
    rows = []
    for at in pd.DatetimeIndex(candles.index):
        hour = (at.to_pydatetime() - MONDAY) // HOUR
        said = "hold" if hour % 7 else ("buy" if hour % 2 else "sell")
        rows.append(decision_row(version, at.to_pydatetime(), said))
    put_decisions(engine, *rows)


def booked(engine: Engine) -> list[tuple[object, ...]]:
    with reading(engine) as session:
        return [
            (row.timestamp, row.closed_at, row.exit_reason, row.r_multiple)
            for row in outcomes.find_outcomes(session, "fib_rsi", "1")
        ]


@pytest.mark.full
def test_pieces_book_what_the_whole_books(engine: Engine, market: SyntheticSource) -> None:
    put_version(engine, "1")
    for hour in range(0, 240, 5):
        log_hours(engine, market, hour, hour + 5)
        score_outcomes(engine, market, now=MONDAY + (hour + 5) * HOUR)

    now = MONDAY + 240 * HOUR
    candles = market.candles(GOLD, closed_by=now)
    hours = np.array([(at.to_pydatetime() - MONDAY) // HOUR for at in pd.DatetimeIndex(candles.index)])
    positions = np.flatnonzero((hours >= 0) & (hours % 7 == 0))
    sides = np.where(hours[positions] % 2 == 1, 1, -1)
    trades = score(candles, positions, sides, RULE)
    whole = [
        (candles.index[p].to_pydatetime(), candles.index[e].to_pydatetime() + HOUR, str(why), float(r))
        for p, e, why, r in zip(
            positions[trades.closed],
            trades.exit_position[trades.closed],
            trades.exit_reason[trades.closed],
            trades.r_multiple[trades.closed],
            strict=True,
        )
    ]
    assert booked(engine) == whole
    with reading(engine) as session:
        marked = outcomes.marks_by_candle(session, "fib_rsi", "1", start=MONDAY)
    assert sum(marked.values()) == pytest.approx(float(marks(candles, trades, RULE).sum()))


def test_a_second_run_books_nothing(engine: Engine, market: SyntheticSource) -> None:
    put_version(engine, "1")
    log_hours(engine, market, 0, 100)
    first = score_outcomes(engine, market, now=MONDAY + 100 * HOUR)
    second = score_outcomes(engine, market, now=MONDAY + 100 * HOUR)

    assert first.booked > 5
    assert second == Scored(0, first.pending, 0)


def test_an_open_trade_is_pending_and_marked(engine: Engine, market: SyntheticSource) -> None:
    put_version(engine, "1")
    log_hours(engine, market, 0, 3)
    scored = score_outcomes(engine, market, now=MONDAY + 3 * HOUR)

    with reading(engine) as session:
        marked = outcomes.marks_by_candle(session, "fib_rsi", "1", start=MONDAY)
    assert (scored.booked + scored.pending, len(marked) > 0) == (1, True)


def test_nothing_is_scored_past_the_last_decided_candle(engine: Engine, market: SyntheticSource) -> None:
    """A candle decided later may hold a signal: its first marks must not have been passed over."""
    put_version(engine, "1")
    log_hours(engine, market, 0, 3)
    score_outcomes(engine, market, now=MONDAY + 200 * HOUR)

    with reading(engine) as session:
        assert max(outcomes.marks_by_candle(session, "fib_rsi", "1", start=MONDAY)) <= MONDAY + 2 * HOUR


def test_a_retired_versions_last_trades_still_close(engine: Engine, market: SyntheticSource) -> None:
    put_version(engine, "1")
    log_hours(engine, market, 0, 3)
    with transaction(engine) as session:
        versions.move(session, versions.get_version(session, "fib_rsi", "1"), Status.RETIRED, MONDAY + 3 * HOUR)

    assert score_outcomes(engine, market, now=MONDAY + 2 * DAY) == Scored(1, 0, 0)


def test_a_signal_whose_candle_left_the_feed_is_counted_as_lost(engine: Engine, market: SyntheticSource) -> None:
    put_version(engine, "1")
    put_decisions(engine, decision_row("1", MONDAY + timedelta(minutes=30), "buy"))
    log_hours(engine, market, 1, 5)

    assert score_outcomes(engine, market, now=MONDAY + 5 * HOUR).lost == 1


def test_a_symbol_that_left_the_feed_is_said_and_stops_no_other(engine: Engine, market: SyntheticSource) -> None:
    put_version(engine, "1", strategy_name="aaa", symbols=("DOGE",))
    row = decision_row("1", MONDAY, "buy", symbol="DOGE") | {"strategy_name": "aaa"}
    put_decisions(engine, row, row | {"id": uuid4(), "timestamp": MONDAY + HOUR})
    put_version(engine, "1")
    log_hours(engine, market, 0, 100)

    scored = score_outcomes(engine, market, now=MONDAY + 100 * HOUR)

    assert scored.booked > 5
    assert [one.split(":")[0] for one in scored.refused] == ["aaa 1 DOGE"]


def test_no_transaction_is_open_while_candles_are_read(sqlite_url: str, market: SyntheticSource) -> None:
    """A slow source may not make a rollback wait: SQLite has one writer at a time."""
    engine = open_database(sqlite_url)
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2")
    log_hours(engine, market, 0, 50)
    start_rollout(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", plan=Plan())

    class Slow(SyntheticSource):
        def candles(self, symbol: str, **period: Any) -> pd.DataFrame:
            with reading(engine) as session:
                rolled_back = rollouts.list_rollouts(session)[0].ended_at is not None
            if not rolled_back:
                roll_back(engine, Command(OWNER, MONDAY, "now"), strategy_name="fib_rsi")
            return super().candles(symbol, **period)

    score_outcomes(engine, Slow((GOLD,), start=MONDAY.replace(month=1, day=1), days=300), now=MONDAY + 50 * HOUR)

    with reading(engine) as session:
        assert rollouts.list_rollouts(session)[0].state == "rolled_back"
    engine.dispose()
