"""A platform copies signals for 1,000 users over 60 days, through an advance, a rollback and a promotion."""

import json
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine
from sqlmodel import col, select

from strategy_core import Router, SignalFeed, VersionRegistry
from strategy_core.domain.audit import Actor, Command
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.routing import bucket_of
from strategy_core.domain.signals import Signal
from strategy_core.domain.user_exclusions import ExclusionKind
from strategy_core.isolation.pool import WorkerPool
from strategy_core.market.source import ReplayClock
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services.database import start_clock
from strategy_core.services.drain import drain
from strategy_core.services.live_trades import ingest
from strategy_core.services.positions import flatten, held_positions, list_exits
from strategy_core.services.rollback import roll_back
from strategy_core.services.score import score_outcomes
from strategy_core.services.shadow import run_shadow
from strategy_core.services.signals import publish_signals, read_signals
from strategy_core.store import user_exclusions, versions
from strategy_core.store.engine import reading, transaction
from strategy_core.store.tables import LiveTrade, Position, PositionExit
from tests.builders import DAY, GOLD, MONDAY, decision_row, put_decisions, put_version
from tests.paper import ROOT, SYMBOLS, example, market

STEP = timedelta(hours=4)
DAYS, KILLS = 60, 5
DEADLINE_S = 300.0  # of what takes a moment on an idle machine
NAME = "fib_rsi"
BOOKED = "SELECT version, sum(CAST(round(pnl * 100) AS INTEGER)) FROM trade WHERE pnl IS NOT NULL GROUP BY version"


@dataclass
class Copies:
    """What the users must have, by this test's own reckoning.

    Attributes:
        at, cursor, exit_id: how far it goes.
        entered: trade id -> (version, side, entry, size).
        open: trade id -> (user, symbol).
        pnl: by version that opened them, of closed trades, in cents.
    """

    at: datetime = MONDAY
    cursor: str | None = None
    exit_id: int = 0
    entered: dict[str, tuple[str, str, float, float]] = field(default_factory=dict)
    open: dict[str, tuple[str, str]] = field(default_factory=dict)
    pnl: Counter[str] = field(default_factory=Counter)


class Broker:
    """The process of the paper broker, started again whenever it has died."""

    def __init__(self, url: str, folder: Path, seed: int) -> None:
        self.url, self.book, self.status = url, folder / "book.db", folder / "status.json"
        self.log, self.draw, self.deaths = folder / "log.txt", random.Random(seed), 0
        self.start()

    def start(self) -> None:
        dies_at = self.draw.randint(1_000, 25_000) if self.deaths < KILLS else -1
        command = [sys.executable, "-m", "tests.paper", self.url, str(self.book), str(self.status), str(dies_at)]
        with self.log.open("a") as output:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)

    def catch_up(self, now: datetime, cursor: str | None, exits: int, generation: int) -> None:
        """Return when the broker has done everything up to this point."""
        wanted = {"now": now.isoformat(), "cursor": cursor, "exits": exits, "generation": generation}
        deadline = time.monotonic() + DEADLINE_S
        while not (self.status.exists() and json.loads(self.status.read_text()) == wanted):
            if self.process.poll() is not None:
                assert self.process.returncode == -signal.SIGKILL, self.log.read_text()[-3_000:]
                self.deaths += 1
                self.status.unlink(missing_ok=True)
                self.start()
            assert time.monotonic() < deadline, (wanted, self.status.read_text(), self.log.read_text()[-3_000:])
            time.sleep(0.005)


@contextmanager
def copying(url: str, folder: Path, seed: int) -> Iterator[Broker]:
    broker = Broker(url, folder, seed)
    try:
        yield broker
    finally:
        broker.process.kill()
        broker.process.wait()


class Story:
    """Sixty days, candle by candle. The broker has caught up before the next one closes."""

    def __init__(self, engine: Engine, broker: Broker, workers: WorkerPool) -> None:
        self.engine, self.broker, self.workers = engine, broker, workers
        self.source, self.paper, self.copies, self.now = market(), example(), Copies(), MONDAY
        self.registry = VersionRegistry(engine, source=self.source, clock=lambda: self.now)
        self.advanced, self.rolled_back_with = False, 0
        self.draining: list[int] = []  # after each candle since the rollback

    def candle(self, now: datetime) -> None:
        self.now = now
        if self.owners_act((now - MONDAY) / DAY):
            self.catch_up()  # its router knows of the act
        start_clock(self.engine, ReplayClock(None, now, 1.0))
        surprise = not self.rolled_back_with and self.held("2") >= 30 and (now - MONDAY) / DAY >= 24
        if surprise:
            self.broker.process.send_signal(signal.SIGSTOP)
        run_shadow(self.engine, self.source, self.workers, now=now)
        if surprise:
            self.roll_back_if_unread()
            self.broker.process.send_signal(signal.SIGCONT)
        self.copies.at = now
        if self.reckon_entries():
            self.catch_up()  # before there are exits: those would let users enter again
        score_outcomes(self.engine, self.source, now=now)
        drain(self.engine, self.source, now=now)
        if told := list_exits(self.engine, None, since=self.copies.exit_id, limit=100_000):
            self.copies.exit_id = told[-1].id or 0
            self.catch_up()
            self.reckon_exits(told)
        if self.rolled_back_with:
            self.draining.append(self.held("2"))

    def owners_act(self, day: float) -> bool:
        """Advance, promote, or do nothing, and return whether anything was done."""
        status = {each.version: each.status for each in self.registry.list_versions(NAME)}
        if day >= 8 and status["2"] == "shadow" and not self.rolled_back_with:
            self.registry.activate_canary(NAME, "2", 10)
        elif day >= 16 and status["2"] == "canary" and not self.advanced:
            self.advanced = True
            self.registry.update_canary_percent(NAME, 25)
        elif day >= 42 and status["3"] == "shadow":
            self.registry.activate_canary(NAME, "3", 50)
        elif day >= 50 and status["3"] == "canary":
            self.registry.activate_version(NAME, "3", reason="better")
        else:
            return False
        return True

    def roll_back_if_unread(self) -> None:
        """Roll back once the canary, and no other version, has signalled and the broker has not read it yet.

        On a signal of the active version, a router may send its users for another moment to the canary.
        """
        if {each.role for each in self.unread()} == {"canary"}:
            self.rolled_back_with = self.held("2")
            roll_back(self.engine, Command(Actor("ana"), self.now, "odd fills"), strategy_name=NAME)
            assert {each.role for each in self.unread()} == {"withdrawn"}

    def unread(self) -> list[Signal]:
        return read_signals(self.engine, since=self.copies.cursor, limit=500).items

    def held(self, version: str) -> int:
        return held_positions(self.engine, NAME).by_manager.get(version, 0)

    def catch_up(self) -> None:
        with reading(self.engine) as session:
            generation = versions.get_strategy(session, NAME).generation
        self.broker.catch_up(self.copies.at, self.copies.cursor, self.copies.exit_id, generation)

    def reckon_entries(self) -> bool:
        """Return whether there are new signals.

        Each user enters on each signal of the version that routing gives it, unless another one's trade is open.
        """
        copies, users = self.copies, self.paper.USERS
        with reading(self.engine) as session:
            routing = versions.routing(session, NAME, self.now)
        unread = self.unread()
        for each in unread:
            copies.cursor = each.cursor
            if (
                each.version not in (routing.active, routing.canary)
                or not each.closed_at <= self.now < each.valid_until
            ):
                continue
            bid, ask, stop = self.paper.quote(self.source, each.symbol, self.now)
            holds = {
                user
                for trade_id, (user, symbol) in copies.open.items()
                if symbol == each.symbol and copies.entered[trade_id][0] != each.version
            }
            for user, capital in users.items():
                if routing.version_of(bucket_of(user, routing.salt), each.symbol) == each.version and user not in holds:
                    trade_id = f"{user}/{NAME}/{each.symbol}/{each.candle:%Y%m%dT%H%M}"
                    size = round(capital * self.paper.RISK * each.risk_scale, 2) / stop
                    copies.entered[trade_id] = (each.version, each.action, ask if each.action == "buy" else bid, size)
                    copies.open[trade_id] = (user, each.symbol)
        return bool(unread)

    def reckon_exits(self, told: Sequence[PositionExit]) -> None:
        """Each trade's PnL is rounded to a cent, half a cent to the even one; sums of cents are then exact."""
        quotes = {symbol: self.paper.quote(self.source, symbol, self.now) for symbol in SYMBOLS}
        for each in told:
            version, side, entry, size = self.copies.entered[each.trade_id]
            bid, ask, _ = quotes[each.symbol]
            del self.copies.open[each.trade_id]
            gain = bid - entry if side == "buy" else entry - ask
            self.copies.pnl[version] += cents(round(size * gain, 2))


def cents(amount: float) -> int:
    return round(amount * 100)


@pytest.mark.full
def test_a_thousand_users_copy_for_sixty_days_through_kills_an_advance_a_rollback_and_a_promotion(
    engine: Engine, database_url: str, tmp_path: Path
) -> None:
    """Takes minutes: 258 candles in lockstep with a broker that dies five times in the middle of its work."""
    with WorkerPool() as workers:
        put_versions(engine)
        start_clock(engine, ReplayClock(None, MONDAY, 1.0))
        with copying(database_url, tmp_path, seed=20) as broker:
            story = Story(engine, broker, workers)
            for now in closes(story.source):
                story.candle(now)

    copies, book = story.copies, sqlite3.connect(broker.book)
    with reading(engine) as session:
        trades = session.exec(select(LiveTrade).where(LiveTrade.state == "closed")).all()
        openers = dict(session.exec(select(Position.trade_id, Position.opened_by)).all())
        still_open = session.exec(select(Position.trade_id).where(col(Position.closed_at).is_(None))).all()
        misrouted = session.exec(select(LiveTrade.trade_id).where(col(LiveTrade.misrouted))).all()
    attempts = [trade_id for (trade_id,) in book.execute("SELECT trade_id FROM attempt")]
    reported: Counter[str] = Counter()
    for trade in trades:
        reported[openers[trade.trade_id]] += cents(trade.pnl or 0.0)
    booked = Counter(dict(book.execute(BOOKED)))
    assert broker.deaths == KILLS
    assert sorted(attempts) == sorted(copies.entered)  # no signal was lost, and none came twice
    assert openers == {trade_id: entered[0] for trade_id, entered in copies.entered.items()}
    assert sorted(still_open) == sorted(copies.open)
    assert misrouted == []
    assert booked == reported == copies.pnl
    assert story.rolled_back_with >= 30
    assert story.draining[-1] == 0
    assert story.draining == sorted(story.draining, reverse=True)
    assert set(booked) == {"1", "2", "3"}
    assert story.registry.list_versions(NAME, "active")[0].version == "3"


def test_a_user_whose_loss_limit_was_hit_enters_no_trade_and_another_brokers_exit_is_passed_over(
    engine: Engine, database_url: str, tmp_path: Path
) -> None:
    at, opened = MONDAY + 2 * STEP, MONDAY + STEP
    put_version(engine, "1", Status.ACTIVE, timeframe="4h")
    put_decisions(engine, decision_row("1", MONDAY + STEP, "buy") | {"role": "active"})
    publish_signals(engine)
    with transaction(engine) as session:
        user_exclusions.exclude(session, NAME, ExclusionKind.GUARD, ["user_1"], now=MONDAY, reason="", actor="limit")
    theirs = {"trade_id": "theirs", "user_id": "u", "strategy_name": NAME, "version": "1", "symbol": GOLD}
    ingest(engine, [{**theirs, "opened_at": opened}], now=at)
    broker = example().PaperBroker(str(tmp_path / "book.db"), {"user_1": 1e3, "user_2": 1e3}, lambda _: market())

    with Router(database_url) as router, SignalFeed(database_url) as feed:
        broker.step(engine, router, feed, lambda: at)
        flatten(engine, Command(Actor("ana"), at, "news"), strategy_name=NAME, version="1")
        drain(engine, market(), now=at)
        broker.step(engine, router, feed, lambda: at)

    booked = broker.book.execute("SELECT user_id, closed_at IS NOT NULL FROM trade").fetchall()
    assert [tuple(each) for each in booked] == [("user_2", True)]
    assert broker.place[1] == list_exits(engine, None)[-1].id == 2


def put_versions(engine: Engine) -> None:
    registry = VersionRegistry(engine, source=market(), clock=lambda: MONDAY)
    for version, period in (("1", 14), ("2", 10), ("3", 9)):
        config = {"rsi_period": period, "rsi_oversold": 40, "rsi_overbought": 60}
        status = "active" if version == "1" else "shadow"
        registry.register_version(NAME, version, config, symbols=SYMBOLS, timeframe="4h", status=status)


def closes(source: SyntheticSource) -> Iterator[datetime]:
    """Yield the close of each candle of the sixty days."""
    newest = source.expected_at(SYMBOLS[0], MONDAY)
    for step in range(1, int(DAYS * DAY / STEP) + 1):
        now = MONDAY + step * STEP
        candle = source.expected_at(SYMBOLS[0], now)
        if candle != newest:
            newest = candle
            yield now
