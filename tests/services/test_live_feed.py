"""Shadow decisions on a broker's candles: as on the same candles of a file, late but never wrong when it is down."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pandas as pd
import pytest
from pydantic import SecretStr
from sqlalchemy import Engine

from strategy_core.domain.audit import Command
from strategy_core.domain.candles import PRICES
from strategy_core.isolation.pool import WorkerPool
from strategy_core.market.calendars import CALENDARS
from strategy_core.market.files import FileSource
from strategy_core.market.live import LiveSource
from strategy_core.market.oanda import Oanda
from strategy_core.market.source import CandleSource
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services.shadow import run_shadow
from strategy_core.services.versions import register_version
from strategy_core.store import decisions
from strategy_core.store.alerts import find_alerts
from strategy_core.store.engine import reading
from tests.builders import DAY, GOLD, HOUR, MONDAY, OWNER
from tests.market.vendor import HTML, BadDay, Market, serving

INSTRUMENTS = {GOLD: "XAU_USD", "SILVER": "XAG_USD"}


@pytest.fixture
def workers() -> Iterator[WorkerPool]:
    with WorkerPool(deadline_s=5.0) as workers:
        yield workers


@pytest.fixture
def broker() -> Iterator[Market]:
    """A broker that sells the made-up market."""
    made_up = SyntheticSource(tuple(INSTRUMENTS), start=MONDAY.replace(month=1, day=1), days=120)
    with serving() as broker:
        for symbol, instrument in INSTRUMENTS.items():
            candles = made_up.candles(symbol, closed_by=MONDAY + 5 * DAY)
            rows = candles[[*PRICES, "volume"]].itertuples(index=True, name=None)
            broker.bars[instrument] = {opened.to_pydatetime(): tuple(bar) for opened, *bar in rows}
        yield broker


def snapshot(broker: Market, now: datetime) -> LiveSource:
    broker.now = now
    vendor = Oanda(broker.url, SecretStr("token"), timeframe="1h", price="M", timeout=5.0, wait_s=0.001)
    return LiveSource(vendor, INSTRUMENTS, now=now, calendar=CALENDARS["metals"])


def register(engine: Engine, source: CandleSource, version: str, symbols: list[str]) -> None:
    register_version(
        engine,
        Command(OWNER, MONDAY),
        source,
        strategy_name="clockwork",
        version=version,
        config={},
        entry_point="tests.services.versions_under_test:Clockwork",
        symbols=symbols,
        timeframe="1h",
    )


def said(engine: Engine, symbol: str = GOLD) -> list[tuple[datetime, str, str]]:
    with reading(engine) as session:
        rows = decisions.find_decisions(session, "clockwork", "1", symbol)
        return [(row.timestamp, row.decision, row.window_hash) for row in rows]


def alerts(engine: Engine) -> list[str]:
    with reading(engine) as session:
        return [alert.kind for alert in find_alerts(session)]


@pytest.mark.full
def test_a_brokers_candles_are_decided_as_the_same_candles_of_a_file(
    engine: Engine, broker: Market, workers: WorkerPool, tmp_path: Path
) -> None:
    register(engine, snapshot(broker, MONDAY), "1", [GOLD])
    asked_to_register = len(broker.asked)
    for hours in range(1, 9):
        run_shadow(engine, snapshot(broker, MONDAY + hours * HOUR), workers, now=MONDAY + hours * HOUR)
    decided = said(engine)

    rows = "".join(f"{at.isoformat()},{','.join(map(str, bar))}\n" for at, bar in broker.bars["XAU_USD"].items())
    file = tmp_path / "GOLD.csv"
    file.write_text(f"timestamp,{','.join(PRICES)},volume\n{rows}")
    now = MONDAY + 8 * HOUR
    run_shadow(engine, FileSource(file), workers, now=now)

    assert len(decided) == 8
    assert said(engine) == decided
    assert alerts(engine) == [], "no window of the file has another hash"
    assert len(broker.asked) - asked_to_register <= 2 * 8, "for the newest candles, and for what stands before them"


def test_a_candle_that_the_broker_revises_is_told_of_once(engine: Engine, broker: Market, workers: WorkerPool) -> None:
    register(engine, snapshot(broker, MONDAY), "1", [GOLD])
    run_shadow(engine, snapshot(broker, MONDAY + 6 * HOUR), workers, now=MONDAY + 6 * HOUR)
    before = said(engine)

    opened, high, low, close, volume = broker.bars["XAU_USD"][MONDAY + 5 * HOUR]
    broker.bars["XAU_USD"][MONDAY + 5 * HOUR] = (opened, high, low, (close + low) / 2, volume)
    for _ in range(2):
        run_shadow(engine, snapshot(broker, MONDAY + 6 * HOUR), workers, now=MONDAY + 6 * HOUR)

    assert said(engine) == before
    assert alerts(engine) == ["candle.revised"]


@pytest.mark.parametrize(
    "bad",
    [HTML, *(pytest.param(bad, marks=pytest.mark.full) for bad in (BadDay(401, b"{}"), BadDay(cut=100)))],
    ids=["502", "401", "cut"],
)
def test_what_a_broken_broker_kept_back_is_decided_once_it_is_well(
    engine: Engine, broker: Market, workers: WorkerPool, bad: BadDay
) -> None:
    now = MONDAY + 4 * HOUR
    register(engine, snapshot(broker, MONDAY), "1", [GOLD, "SILVER"])
    broker.for_good = bad

    (down,) = run_shadow(engine, snapshot(broker, now), workers, now=now)
    broker.for_good = None
    (well,) = run_shadow(engine, snapshot(broker, now), workers, now=now)

    assert (down.logged, well.logged) == (0, 8)
    assert "GOLD: OANDA at 127.0.0.1" in down.error
    assert alerts(engine) == ["candles.absent"]
    assert [moment for moment, _, _ in said(engine)] == pd.date_range(MONDAY, periods=4, freq="h").tolist()


def test_a_symbol_whose_candles_cannot_be_harms_no_other(engine: Engine, broker: Market, workers: WorkerPool) -> None:
    register(engine, snapshot(broker, MONDAY), "1", [GOLD, "SILVER"])
    broker.bars["XAG_USD"][MONDAY + HOUR] = (20.0, 19.0, 21.0, 20.0, 1.0)

    (run,) = run_shadow(engine, snapshot(broker, MONDAY + 4 * HOUR), workers, now=MONDAY + 4 * HOUR)

    assert run.logged == 4
    assert "SILVER: OANDA at" in run.error
    assert "high 19 is below low 21" in run.error
