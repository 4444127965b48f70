"""A simulated year in one process: every rollout ends as it should, tables are as the facts say, memory stays flat.

Ten symbols of hourly candles, five versions, twenty rollouts, by the services that the flows call, with real workers.
Candles come twelve hours at a time; `ROLLOUT_BENCHMARK_DAYS` says how many days there are.
"""

import os
import threading
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import SecretStr
from sqlalchemy import Engine, func
from sqlmodel import SQLModel, col, select

from strategy_core.domain.audit import Command
from strategy_core.domain.gates.base import Margins
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan, Stage
from strategy_core.domain.scoring import ScoringRule, marks, score
from strategy_core.isolation.pool import WorkerPool
from strategy_core.market.synthetic import INSTRUMENTS, SyntheticSource
from strategy_core.observe.channels import AppriseChannel
from strategy_core.services.alerts import acknowledge, deliver
from strategy_core.services.audit import verify_trail
from strategy_core.services.compare import compare_all
from strategy_core.services.rollback import roll_back
from strategy_core.services.rollouts import start_rollout
from strategy_core.services.score import score_outcomes
from strategy_core.services.shadow import run_shadow
from strategy_core.services.tick import tick
from strategy_core.services.versions import register_version
from strategy_core.store import versions
from strategy_core.store.engine import open_database, reading
from strategy_core.store.tables import (
    SIGNALS,
    AlertDelivery,
    AlertOutbox,
    BookedSlot,
    ComparisonReport,
    DecisionTally,
    EquityMark,
    Outcome,
    Rollout,
    RolloutBook,
    ShadowDecisionLog,
)
from tests.builders import DAY, MONDAY, OWNER
from tests.endpoint import Endpoint

pytestmark = pytest.mark.benchmark_suite

DAYS = int(os.environ.get("ROLLOUT_BENCHMARK_DAYS", "365"))
STEP = timedelta(hours=12)
SYMBOLS = tuple(INSTRUMENTS)[:10]
VERSIONS = ("1", "2", "3", "4", "5")
ENDS = ("raise", "owner", "boast", "blind", "promote")  # of each challenger's rollouts, one after the other
TURN = DAYS / 20  # days from rollout to rollout
AILS = GOES_DARK = OWNER_ACTS = 2 * DAY  # after its start
FOR = 6 * DAY  # holidays and a weekend may be among them
NAME = "yearling"
FLAT_MB = 25
POOLED = 8  # descriptors of SQLite's other connections, which are opened when first needed, and kept
MARGINS = Margins(pnl_r=0.5, win=0.3)
PLAN = Plan(
    stages=tuple(Stage(percent=percent, minimum_time=DAY, margins=MARGINS) for percent in (10, 50, 100)),
    approve_before=(),
    late_candles=14,
    bake=2 * DAY,
)


@dataclass(frozen=True, slots=True)
class Planned:
    """One rollout of the year, and how it is to end."""

    version: str
    starts_at: datetime
    end: str


ROLLOUTS = [
    Planned(
        VERSIONS[1 + number // len(ENDS)], MONDAY + timedelta(days=int(number * TURN + 1)), ENDS[number % len(ENDS)]
    )
    for number in range(20)
]


class Feed(SyntheticSource):
    """A vendor that goes dark for some days of the year, and has the candles afterwards."""

    now = MONDAY

    def candles(
        self, symbol: str, *, closed_by: datetime, since: datetime | None = None, bars: int | None = None
    ) -> pd.DataFrame:
        for one in ROLLOUTS:
            dark = one.starts_at + GOES_DARK
            if one.end == "blind" and dark <= self.now < dark + FOR:
                closed_by = min(closed_by, dark)
        return super().candles(symbol, closed_by=closed_by, since=since, bars=bars)


@dataclass(slots=True)
class Year:
    """What was seen on the way, at each step."""

    rss: list[float] = field(default_factory=list)
    held: list[tuple[int, int]] = field(default_factory=list)  # threads, descriptors
    reports: int = 0
    posted: int = 0


def test_a_year_in_one_process(sqlite_url: str, endpoint: Endpoint, capsys: pytest.CaptureFixture[str]) -> None:

    engine = open_database(sqlite_url)
    source = Feed(SYMBOLS, start=MONDAY - 90 * DAY, days=DAYS + 120)
    _register(engine, source)

    year = _live(engine, source, endpoint)

    rows = _rows(engine)
    with capsys.disabled():
        _tell(year, rows)
    assert _ends(engine) == [(one.version, _end_of(one)) for one in ROLLOUTS]
    assert rows == _predicted(engine, source, year)
    assert verify_trail(engine).holds
    quarter = len(year.rss) // 4
    assert median(year.rss[-quarter:]) - median(year.rss[quarter : 2 * quarter]) < FLAT_MB
    threads, descriptors = (np.array(column) for column in zip(*year.held, strict=True))
    assert max(threads[-quarter:]) <= max(threads[quarter : 2 * quarter])
    assert max(descriptors[-quarter:]) <= max(descriptors[quarter : 2 * quarter]) + POOLED
    engine.dispose()


def _register(engine: Engine, source: Feed) -> None:
    for version in VERSIONS:
        ills = [
            (one.starts_at + AILS, one.starts_at + AILS + FOR, one.end) for one in ROLLOUTS if one.version == version
        ]
        spells = [(start.isoformat(), end.isoformat(), how) for start, end, how in ills if how in ("raise", "boast")]
        register_version(
            engine,
            Command(OWNER, MONDAY),
            source,
            strategy_name=NAME,
            version=version,
            config={"name": version, "spells": spells},
            entry_point="tests.benchmarks.yearlings:Yearling",
            symbols=SYMBOLS,
            timeframe="1h",
            status=Status.ACTIVE if version == VERSIONS[0] else Status.SHADOW,
        )


def _live(engine: Engine, source: Feed, endpoint: Endpoint) -> Year:
    year = Year()
    channel = AppriseChannel(SecretStr(endpoint.url.replace("http", "json", 1)), scheme="json")
    owners = [one for one in ROLLOUTS if one.end == "owner"]
    with WorkerPool() as workers:
        for step in range(1, int(DAYS * DAY / STEP) + 1):
            now = source.now = MONDAY + step * STEP
            run_shadow(engine, source, workers, now=now)
            score_outcomes(engine, source, now=now)
            tick(engine, source, now=now)
            if any(one.starts_at + OWNER_ACTS == now for one in owners):
                roll_back(engine, Command(OWNER, now, "users complain"), strategy_name=NAME)
            for one in ROLLOUTS:
                if one.starts_at == now:
                    start_rollout(
                        engine,
                        Command(OWNER, now, override_reason="mended"),
                        strategy_name=NAME,
                        version=one.version,
                        plan=PLAN,
                    )
            if step % 14 == 0:
                year.reports += len(compare_all(engine, source, now=now))
            told = [each.alert_id for each in deliver(engine, [channel], now=now)]
            if told:
                acknowledge(engine, Command(OWNER, now, "seen"), told)
            year.posted += len(endpoint.posted)
            endpoint.posted.clear()
            endpoint.asked.clear()
            year.rss.append(_rss())
            year.held.append((threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))))
    return year


def _end_of(one: Planned) -> tuple[str, str]:
    return {
        "raise": ("rolled_back", "errors"),
        "boast": ("rolled_back", "invalid_decisions"),
        "owner": ("rolled_back", "by ana"),
        "blind": ("rolled_back", "blind"),
        "promote": ("completed", ""),
    }[one.end]


def _ends(engine: Engine) -> list[tuple[str, tuple[str, str]]]:
    """Return how each rollout ended, in the order of their starts, and the words of its reason that say why."""
    with reading(engine) as session:
        ended = session.exec(select(Rollout).order_by(col(Rollout.started_at))).all()
    words = [_end_of(one)[1] for one in ROLLOUTS]
    return [
        (one.version, (one.state, word if word in one.reason else one.reason))
        for one, word in zip(ended, words, strict=True)
    ]


def _rows(engine: Engine) -> dict[str, int]:
    tables: tuple[type[SQLModel], ...] = (
        ShadowDecisionLog,
        Outcome,
        EquityMark,
        Rollout,
        RolloutBook,
        BookedSlot,
        ComparisonReport,
        AlertDelivery,
    )
    with reading(engine) as session:
        return {
            str(table.__tablename__): session.exec(select(func.count()).select_from(table)).one() for table in tables
        }


def _predicted(engine: Engine, source: Feed, year: Year) -> dict[str, int]:
    """Return how many rows each table must have: from candles, signals, rollouts and what was done."""
    decided = outcomes = marked = 0
    with reading(engine) as session:
        for version in versions.list_versions(session):
            for symbol in SYMBOLS:
                mine = (ShadowDecisionLog.version == version.version, ShadowDecisionLog.symbol == symbol)
                said = session.exec(select(ShadowDecisionLog.timestamp, ShadowDecisionLog.decision).where(*mine)).all()
                first, last = min(at for at, _ in said), max(at for at, _ in said)
                until = version.retired_at or source.now
                candles = source.candles(symbol, closed_by=until)
                decided += int((candles.index >= first).sum())
                assert candles.index[-1] == last
                booked, moved = _scored(source, symbol, [row for row in said if row[1] in SIGNALS])
                outcomes, marked = outcomes + booked, marked + moved
        booked_slots = sum(session.exec(select(RolloutBook.slots)).all())
        alerts = session.exec(select(func.count()).select_from(AlertOutbox)).one()
        tallies = session.exec(select(DecisionTally)).all()
    assert sum(one.buy + one.sell + one.hold + one.error for one in tallies) == decided
    assert year.posted == alerts
    return {
        "shadow_decision_log": decided,
        "outcome": outcomes,
        "equity_mark": marked,
        "rollout": len(ROLLOUTS),
        "rollout_book": len(ROLLOUTS),
        "booked_slot": booked_slots,
        "comparison_report": year.reports,
        "alert_delivery": alerts,
    }


def _scored(source: Feed, symbol: str, signals: list[tuple[datetime, str]]) -> tuple[int, int]:
    """Return how many trades have closed, and on how many candles a trade was marked."""
    rule, candles = ScoringRule(), source.candles(symbol, closed_by=source.now)
    signals = sorted(signals)
    places = candles.index.get_indexer(pd.DatetimeIndex([at for at, _ in signals]))
    sides = np.array([1 if said == "buy" else -1 for _, said in signals])
    trades = score(candles, places, sides, rule)
    return int(trades.closed.sum()), int(np.count_nonzero(marks(candles, trades, rule)))


def _rss() -> float:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmRSS"].split()[0]) / 1024


def _tell(year: Year, rows: dict[str, Any]) -> None:
    quarter = len(year.rss) // 4
    lines = [f"\n{DAYS} days, {len(year.rss)} steps", "quarter   RSS MB  threads  descriptors"]
    for number in range(4):
        part = slice(number * quarter, (number + 1) * quarter)
        threads, descriptors = zip(*year.held[part], strict=True)
        lines.append(f"{number + 1:>7} {median(year.rss[part]):>8.0f} {max(threads):>8} {max(descriptors):>12}")
    print("\n".join(lines), rows, sep="\n")  # noqa: T201
