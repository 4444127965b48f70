"""Versions decide on past candles: what is stored, apart from the log of live decisions."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from sqlalchemy import Engine, delete
from sqlmodel import select

from strategy_core.domain.audit import Command
from strategy_core.domain.errors import (
    FingerprintMismatch,
    InvalidPeriod,
    InvalidTimeframe,
    NothingToReplay,
    UnknownSymbol,
)
from strategy_core.domain.lifecycle import Status
from strategy_core.isolation.pool import WorkerPool
from strategy_core.market.calendars import CALENDARS
from strategy_core.market.files import FileSource
from strategy_core.market.source import CandleSource
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services.replay import Replayed, replay_version
from strategy_core.services.score import score_outcomes
from strategy_core.services.shadow import run_shadow
from strategy_core.services.versions import register_version
from strategy_core.store.engine import reading, transaction
from strategy_core.store.tables import (
    EquityMark,
    Outcome,
    ReplayDecision,
    ReplayMark,
    ReplayOutcome,
    ShadowDecisionLog,
)
from tests.builders import DAY, GOLD, HOUR, MONDAY, OWNER, put_version
from tests.pictures import picture
from tests.prepared import prepared

CODE = "tests.services.versions_under_test"
MARKET = SyntheticSource((GOLD, "SILVER"), start=MONDAY.replace(month=1, day=1), days=300)
SATURDAY = MONDAY + 5 * DAY
WEEK: dict[str, Any] = {"start": MONDAY, "end": SATURDAY}
REPLAYED = ("replay_decision", "replay_outcome", "replay_mark")


class Revised:
    """The market, with other volumes from one candle on: what a vendor that corrects its history serves."""

    name, timeframe = MARKET.name, MARKET.timeframe

    def __init__(self, since: datetime) -> None:
        self._since = since

    def symbols(self) -> tuple[str, ...]:
        return MARKET.symbols()

    def candles(
        self, symbol: str, *, closed_by: datetime, since: datetime | None = None, bars: int | None = None
    ) -> pd.DataFrame:
        found = MARKET.candles(symbol, closed_by=closed_by, since=since, bars=bars)
        found.loc[found.index >= self._since, "volume"] += 1.0
        return found

    def expected_at(self, symbol: str, now: datetime) -> datetime | None:
        return MARKET.expected_at(symbol, now)


@pytest.fixture
def workers() -> Iterator[WorkerPool]:
    with WorkerPool(deadline_s=0.5) as workers:
        yield workers


@pytest.fixture
def pair(engine: Engine) -> Engine:
    """Version 1 has been active, and decided on gold, for a week. Version 2 is registered at its end."""
    prepared(engine, live_a_week)
    return engine


def live_a_week(engine: Engine) -> None:
    register(engine, "1", status=Status.ACTIVE, now=MONDAY)
    with WorkerPool() as workers:
        run_shadow(engine, MARKET, workers, now=SATURDAY)
    score_outcomes(engine, MARKET, now=SATURDAY)
    register(engine, "2", config={"hours": 4}, symbols=[GOLD, "SILVER"])


def register(engine: Engine, version: str, code: str = "Clockwork", **changes: Any) -> None:
    facts: dict[str, Any] = {
        "strategy_name": "clockwork",
        "config": {},
        "entry_point": f"{CODE}:{code}",
        "symbols": [GOLD],
        "timeframe": "1h",
    }
    register_version(engine, Command(OWNER, changes.pop("now", SATURDAY)), MARKET, version=version, **facts | changes)


def replay(
    engine: Engine, workers: WorkerPool, version: str = "2", source: CandleSource = MARKET, **given: Any
) -> list[Replayed]:
    asked: dict[str, Any] = {"strategy_name": "clockwork", "now": SATURDAY, **given}
    return replay_version(engine, source, workers, version=version, **asked)


def rows(engine: Engine, table: Any, version: str, symbol: str = GOLD) -> list[Any]:
    mine = (table.version == version, table.symbol == symbol)
    with reading(engine) as session:
        return list(session.exec(select(table).where(*mine).order_by(table.timestamp)))


def decided(found: list[Any]) -> list[tuple[Any, ...]]:
    return [(row.timestamp, row.decision, row.confidence, row.reason, row.window_hash) for row in found]


def traded(found: list[Any]) -> list[tuple[Any, ...]]:
    return [(row.timestamp, row.opened_at, row.closed_at, row.exit_reason, row.r_multiple, row.pnl) for row in found]


def marked(found: list[Any]) -> dict[datetime, float]:
    return {row.timestamp: row.r for row in found}


def replayed_rows(engine: Engine, version: str) -> list[Any]:
    return [
        decided(rows(engine, ReplayDecision, version)),
        traded(rows(engine, ReplayOutcome, version)),
        marked(rows(engine, ReplayMark, version)),
    ]


def test_a_replay_decides_and_scores_as_shadow_runs_do_and_writes_nothing_else(
    pair: Engine, workers: WorkerPool
) -> None:
    before = {table: found for table, found in picture(pair).items() if table not in REPLAYED}

    ours, theirs = replay(pair, workers, **WEEK)

    assert (ours.version, theirs.version) == ("2", "1")
    assert ours.candles == ours.decided == 2 * theirs.decided  # the active version decides on gold alone
    live = [
        decided(rows(pair, ShadowDecisionLog, "1")),
        traded(rows(pair, Outcome, "1")),
        marked(rows(pair, EquityMark, "1")),
    ]
    assert replayed_rows(pair, "1") == live
    assert theirs.signals == theirs.closed + theirs.pending > 10
    assert theirs.closed == len(rows(pair, Outcome, "1"))
    assert {table: found for table, found in picture(pair).items() if table not in REPLAYED} == before


def test_a_second_replay_adds_nothing(pair: Engine, workers: WorkerPool) -> None:
    first, _ = replay(pair, workers, **WEEK)
    before = picture(pair)

    second, _ = replay(pair, workers, **WEEK)

    assert first.decided == first.candles > 200
    assert (second.candles, second.signals, second.closed) == (first.candles, first.signals, first.closed)
    assert (second.decided, second.revised) == (0, 0)
    assert second.notes == ["nothing new: 2 was replayed on these candles before"]
    assert picture(pair) == before


def test_parts_in_any_order_are_stored_as_the_whole(pair: Engine, workers: WorkerPool) -> None:
    days = [MONDAY + day * DAY for day in range(6)]
    replay(pair, workers, **WEEK)
    whole = replayed_rows(pair, "2")
    replay(pair, workers, start=days[2], end=days[3], again=True)
    again = replayed_rows(pair, "2")
    with transaction(pair) as session:
        for table in (ReplayOutcome, ReplayDecision, ReplayMark):
            session.connection().execute(delete(table))

    for start, end in ((days[1], days[2]), (days[2], days[5]), (days[0], days[1])):
        replay(pair, workers, start=start, end=end)

    assert replayed_rows(pair, "2") == again == whole


def test_a_revised_candle_is_noticed_and_decided_anew_only_on_request(pair: Engine, workers: WorkerPool) -> None:
    replay(pair, workers, **WEEK)
    before, friday = picture(pair), MONDAY + 4 * DAY
    revised = Revised(friday)

    noticed, _ = replay(pair, workers, source=revised, **WEEK)
    kept = picture(pair)
    anew, _ = replay(pair, workers, source=revised, **WEEK, again=True)

    assert (noticed.decided, kept) == (0, before)
    assert (noticed.first_revised, noticed.revised) == (friday, 44)  # a day of each symbol
    assert (anew.decided, anew.revised) == (anew.candles, 0)
    assert replay(pair, workers, source=revised, **WEEK)[0].revised == 0


def test_errors_are_counted_and_tried_again(engine: Engine, workers: WorkerPool) -> None:
    thursday = (MONDAY + 3 * DAY).isoformat()
    register(engine, "2", "Failing", config={"how": "confidence", "after": thursday}, now=MONDAY + 2 * DAY)

    (first,) = replay(engine, workers, **WEEK)
    (second,) = replay(engine, workers, **WEEK)

    assert first.decided + first.errors == first.candles
    assert first.errors == second.errors > 20
    assert first.last_error == "invalid: confidence 2.0 is not within 0..1"
    assert len(rows(engine, ReplayDecision, "2")) == first.decided


def test_progress_is_told_by_symbol(pair: Engine, workers: WorkerPool) -> None:
    told: list[tuple[str, int, int]] = []

    found = replay(pair, workers, start=MONDAY, end=MONDAY + DAY, done=lambda *each: told.append(each))

    last = {symbol: (count, total) for symbol, count, total in told}
    assert list(last) == [GOLD, "SILVER"]
    assert all(count == total for count, total in last.values())
    assert sum(count for count, _ in last.values()) == sum(each.candles for each in found)


@pytest.mark.full
def test_by_default_the_180_days_before_the_end_of_the_feed_are_replayed(pair: Engine, workers: WorkerPool) -> None:
    long_after = MONDAY + 400 * DAY
    newest = MARKET.expected_at(GOLD, long_after)

    found, _ = replay(pair, workers, now=long_after)

    assert found.newest == newest is not None
    assert found.first is not None
    assert newest + HOUR - 180 * DAY <= found.first <= newest - 177 * DAY


def test_a_file_that_ended_long_ago_is_replayed_until_its_end(
    pair: Engine, workers: WorkerPool, tmp_path: Path
) -> None:
    """A calendar expects candles until today, and the file has none of them."""
    for symbol in (GOLD, "SILVER"):
        candles = MARKET.candles(symbol, closed_by=SATURDAY, since=MONDAY - 5 * DAY)
        candles.to_csv(tmp_path / f"{symbol}.csv")
    source = FileSource(tmp_path, calendar=CALENDARS["metals"], now=SATURDAY + 200 * DAY)

    found, _ = replay(pair, workers, source=source, now=SATURDAY + 200 * DAY)

    assert found.newest == candles.index[-1]
    assert found.candles > 0


def test_what_cannot_be_replayed_is_refused_before_anything_is_written(pair: Engine, workers: WorkerPool) -> None:
    put_version(pair, "slow", strategy_name="clockwork", timeframe="4h")
    put_version(pair, "oil", strategy_name="clockwork", symbols=["OIL"])
    before, long_ago = picture(pair), MONDAY.replace(year=2016)

    with pytest.raises(NothingToReplay, match=r"'2' can .* opened from 2016.*until 2026-03-06 .* needs 20 for its"):
        replay(pair, workers, start=long_ago, end=long_ago + DAY)
    with pytest.raises(InvalidPeriod):
        replay(pair, workers, start=MONDAY, end=MONDAY)
    with pytest.raises(InvalidTimeframe, match="4h"):
        replay(pair, workers, "slow")
    with pytest.raises(UnknownSymbol, match="OIL"):
        replay(pair, workers, "oil")

    assert picture(pair) == before


def test_a_version_that_was_changed_is_not_replayed(engine: Engine, workers: WorkerPool) -> None:
    put_version(engine, "1", strategy_name="clockwork", entry_point=f"{CODE}:Clockwork", warmup_bars=20, config={})

    with pytest.raises(FingerprintMismatch):
        replay(engine, workers, "1", **WEEK)

    assert rows(engine, ReplayDecision, "1") == []
