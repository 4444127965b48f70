"""Copy signals to a thousand users on paper, and go on after a crash where it was.

    export ROLLOUT_DATABASE_URL=sqlite:///paper.db
    uv run rollout db upgrade
    export ROLLOUT_REPLAY_FROM=2026-01-05T00:00Z
    uv run rollout register fib_rsi 1.0.0 --status active --yes
    export ROLLOUT_REPLAY_FROM=2026-01-12T00:00Z
    uv run rollout shadow
    uv run python examples/paper_broker.py --once

Every command takes `ROLLOUT_REPLAY_FROM` for now. The second time lets candles close after the registration: no signal
comes before. Leave it unset in real use.

Without `--once` it goes on until Ctrl-C, beside the flows or a loop of `rollout shadow`, `score` and `exits`.

Users enter when a signal of their version comes, and leave by the exits. All orders are filled at the last
close. The book, `paper_broker.db`, holds the trades and how far signals and exits were read. Both change in one
transaction, so a signal and its trades are stored together or not at all. Reports follow from the book. They may be
sent twice: a trade id counts once.

With an API: `SignalFeed(api_url=..., token=...)`, `Router(api_url=..., token=...)`, `GET /positions/exits` and
`POST /outcomes`.
"""

import sqlite3
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

import pandas as pd
from sqlalchemy import Engine

from strategy_core import Router, ScoringRule, SignalFeed
from strategy_core.domain.indicators import atr
from strategy_core.domain.signals import Signal
from strategy_core.market.source import CandleSource
from strategy_core.services.live_trades import ingest
from strategy_core.services.positions import list_exits
from strategy_core.settings import read_settings

USERS = {f"user_{number}": 1_000.0 + 250 * (number % 40) for number in range(1_000)}  # id -> capital
RISK = 0.01  # of the capital, from entry to stop
RULE = ScoringRule()  # of the strategy: the distance of the stop

BOOK = """
CREATE TABLE IF NOT EXISTS trade (
    trade_id TEXT PRIMARY KEY, user_id TEXT, strategy_name TEXT, version TEXT, symbol TEXT, side TEXT, size REAL,
    entry REAL, risk REAL, opened_at TEXT, closed_at TEXT, pnl REAL, reported TEXT NOT NULL DEFAULT ''
);
CREATE INDEX IF NOT EXISTS trade_open ON trade (strategy_name, symbol) WHERE closed_at IS NULL;
CREATE INDEX IF NOT EXISTS trade_unreported ON trade (trade_id) WHERE reported <> 'closed';
CREATE TABLE IF NOT EXISTS place (id INTEGER PRIMARY KEY CHECK (id = 1), signals TEXT, exits INTEGER NOT NULL);
INSERT OR IGNORE INTO place VALUES (1, NULL, 0);
"""
UNREPORTED = "SELECT * FROM trade WHERE reported <> iif(closed_at IS NULL, 'open', 'closed')"
OPENED = ("trade_id", "user_id", "strategy_name", "version", "symbol", "side", "size", "risk", "opened_at")
CLOSED = ("closed_at", "pnl")


class PaperBroker:
    """The trades of *users*, a capital by id. *open_candles* returns the candles that have closed by a time."""

    def __init__(self, book: str, users: Mapping[str, float], open_candles: Callable[[datetime], CandleSource]) -> None:
        self.users, self.open_candles = users, open_candles
        self.book = sqlite3.connect(book)
        self.book.row_factory = sqlite3.Row
        self.book.executescript(BOOK)

    @property
    def place(self) -> tuple[str | None, int]:
        """The cursor of the last signal and the id of the last exit that are in the book."""
        return tuple(self.book.execute("SELECT signals, exits FROM place").fetchone())

    def step(
        self, engine: Engine, router: Router, feed: SignalFeed, clock: Callable[[], datetime], wait_s: float = 0.0
    ) -> None:
        """Enter on new signals, leave by new exits, and report both."""
        signals = feed.read(wait_s=wait_s)
        now = clock()  # after the wait: orders are placed now
        candles = self.open_candles(now)
        self.enter(signals, router, candles, now)
        self.leave(list_exits(engine, None, since=self.place[1]), candles, now)
        self.report(engine, now)

    def enter(self, signals: Sequence[Signal], router: Router, candles: CandleSource, now: datetime) -> None:
        with self.book:  # all of this, or nothing
            for signal in signals:
                if signal.may_enter(now):  # it is in time, and its version serves users
                    self._open(signal, router, candles, now)
                self.book.execute("UPDATE place SET signals = ?", (signal.cursor,))

    def leave(self, exits: Sequence, candles: CandleSource, now: datetime) -> None:
        with self.book:
            for each in exits:
                self._close(each.trade_id, candles, now)
                self.book.execute("UPDATE place SET exits = ?", (each.id,))

    def report(self, engine: Engine, now: datetime) -> None:
        trades = self.book.execute(UNREPORTED).fetchall()
        rows = [
            {name: each[name] for name in (*OPENED, *(CLOSED if each["closed_at"] else ()))}
            | {"entry_price": each["entry"]}
            for each in trades
        ]
        if rows:
            ingest(engine, rows, now=now)
        with self.book:
            states = [("closed" if each["closed_at"] else "open", each["trade_id"]) for each in trades]
            self.book.executemany("UPDATE trade SET reported = ? WHERE trade_id = ?", states)

    def _open(self, signal: Signal, router: Router, candles: CandleSource, now: datetime) -> None:
        """Enter for each user whom the router gives this version now, unless a check before an order forbids it.

        The user has no trade of another version open, and no loss limit that was hit.
        """
        bid, ask, stop = quote(candles, signal.symbol, now)
        if not stop > 0:
            return  # without a stop the size is unknown
        others = (
            "SELECT user_id FROM trade WHERE strategy_name = ? AND symbol = ? AND closed_at IS NULL AND version <> ?"
        )
        held = {user for (user,) in self.book.execute(others, (signal.strategy_name, signal.symbol, signal.version))}
        ids = list(self.users)
        versions = router.assign(ids, signal.strategy_name, signal.symbol)
        for user, version in zip(ids, versions, strict=True):
            if version != signal.version or user in held or not router.may_enter(user, signal.strategy_name):
                continue
            risk = round(self.users[user] * RISK * signal.risk_scale, 2)
            trade_id = f"{user}/{signal.strategy_name}/{signal.symbol}/{signal.candle:%Y%m%dT%H%M}"  # one a candle
            entry = ask if signal.action == "buy" else bid
            self.book.execute(
                "INSERT OR IGNORE INTO trade VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, NULL, '')",
                (
                    *(trade_id, user, signal.strategy_name, version, signal.symbol, signal.action, risk / stop),
                    *(entry, risk, now.isoformat()),
                ),
            )

    def _close(self, trade_id: str, candles: CandleSource, now: datetime) -> None:
        """Close the trade, unless it is closed already or another broker's."""
        find = "SELECT symbol, side, size, entry FROM trade WHERE trade_id = ? AND closed_at IS NULL"
        trade = self.book.execute(find, (trade_id,)).fetchone()
        if trade is None:
            return
        bid, ask, _ = quote(candles, trade["symbol"], now)
        gain = bid - trade["entry"] if trade["side"] == "buy" else trade["entry"] - ask
        close = "UPDATE trade SET closed_at = ?, pnl = ? WHERE trade_id = ?"
        self.book.execute(close, (now.isoformat(), round(trade["size"] * gain, 2), trade_id))


def quote(candles: CandleSource, symbol: str, now: datetime) -> tuple[float, float, float]:
    """Return bid and ask at the last close, and the distance from an entry to its stop."""
    found: pd.DataFrame = candles.candles(symbol, closed_by=now, bars=RULE.warmup_bars)
    last = found.iloc[-1]
    return (
        float(last.get("bid_close", last["close"])),
        float(last.get("ask_close", last["close"])),
        RULE.stop_atr * float(atr(found, RULE.atr_period)[-1]),
    )


def main() -> None:
    settings = read_settings()
    engine = settings.open_engine()
    broker = PaperBroker("paper_broker.db", USERS, settings.open_candles)
    cursor, _ = broker.place
    with Router(settings.database_url) as router, SignalFeed(settings.database_url, since=cursor) as feed:

        def clock() -> datetime:
            return settings.on_any_clock_of(engine).now()

        broker.step(engine, router, feed, clock)
        while "--once" not in sys.argv:
            broker.step(engine, router, feed, clock, wait_s=1.0)
    trades, ended, pnl = broker.book.execute("SELECT count(*), count(closed_at), total(pnl) FROM trade").fetchone()
    if broker.place[0] is None:
        print(
            "no signal yet: none was logged. `rollout shadow` logs those of candles that close after the registration"
        )
    print(f"{trades} trades, {trades - ended} open, PnL {pnl:.2f}")


if __name__ == "__main__":
    main()
