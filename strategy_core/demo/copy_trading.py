"""The platform of the demo: users who copy the signals of their version, and the reports of their trades."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
from sqlalchemy import Engine

from strategy_core.domain.candles import timeframe_delta
from strategy_core.domain.indicators import atr
from strategy_core.domain.positions import Why
from strategy_core.domain.routing import Routing, bucket_of
from strategy_core.domain.scoring import ScoringRule
from strategy_core.domain.signals import Signal
from strategy_core.market.source import CandleSource
from strategy_core.services.audit import read_events
from strategy_core.services.drain import drain
from strategy_core.services.live_trades import ingest
from strategy_core.services.positions import list_exits
from strategy_core.services.queries import RoutingTable
from strategy_core.services.signals import read_signals
from strategy_core.services.users import load_users
from strategy_core.store.tables import PositionExit

USERS = 200
ALPHA = 1.3  # of the Pareto distribution of capital: a few users hold most of it
SMALLEST = 1_000.0  # account
UNKNOWN = 0.03  # share of users whose capital is not reported
AFTERWARDS = 48  # candles for which trades are still reported after a rollout
DIRECTORY_SEED = 482  # with it the users in the lowest buckets are rich: 10 % of users hold over 10 % of all capital
_SLIPPAGE_R = 0.02  # standard deviation between users
_PAGE = 1_000
_SIDE = {"buy": 1.0, "sell": -1.0}


@dataclass(frozen=True, slots=True)
class _Trade:
    trade_id: str
    user: str
    signal: Signal

    @property
    def opened(self) -> dict[str, Any]:
        """The report of its opening."""
        return {
            "trade_id": self.trade_id,
            "user_id": self.user,
            "strategy_name": self.signal.strategy_name,
            "version": self.signal.version,
            "symbol": self.signal.symbol,
            "side": self.signal.action,
            "opened_at": self.signal.closed_at,
        }

    @property
    def key(self) -> tuple[str, str, str]:
        """A user has one position of a strategy on a symbol at a time."""
        return self.signal.strategy_name, self.user, self.signal.symbol


class CopyTrading:
    """A copy-trading platform: it asks which version a user has, copies signals, and leaves positions as announced.

    It calls the services behind `GET /signals`, `POST /trades/live` and `GET /positions/exits`. To save time it reports
    trades only while a rollout is open, and for AFTERWARDS candles.

    Attributes:
        trades: that were opened.
        misrouted: reports of trades of a version that routing did not give to their user. There should be none.
    """

    def __init__(self, engine: Engine, source: CandleSource) -> None:
        self.trades = self.misrouted = 0
        self._engine = engine
        self._source = source
        self._candle = timeframe_delta(source.timeframe)
        self._rule = ScoringRule()
        rng = np.random.default_rng(DIRECTORY_SEED)
        self._users = [f"follower_{number:03d}" for number in range(USERS)]
        capital = np.round(SMALLEST * (1 + rng.pareto(ALPHA, USERS)), 2)
        unknown = rng.random(USERS) < UNKNOWN
        self._capital = [None if gone else float(of) for of, gone in zip(capital, unknown, strict=True)]
        slippage = rng.normal(0, _SLIPPAGE_R, USERS)
        self._slippage = dict(zip(self._users, slippage.tolist(), strict=True))
        self._bucket: dict[tuple[str, str], int] = {}
        self._routing = RoutingTable(engine)
        self._until: dict[str, datetime] = {}  # by strategy: how long trades are reported
        self._cursor: str | None = None
        self._exit = 0
        self._open: dict[str, _Trade] = {}
        self._free_from: dict[tuple[str, str, str], datetime | None] = {}  # None while a position is open

    def join(self, now: datetime) -> None:
        """Load the directory of users."""
        load_users(self._engine, zip(self._users, self._capital, strict=True), now=now)

    def read_routing(self, now: datetime) -> dict[str, Routing | None]:
        return self._routing.read(now)

    def trade(self, before: dict[str, Routing | None], now: datetime) -> None:
        """Report the trades since the last call: opened on signals, and closed as the exits say.

        Args:
            before: the routing at the end of the last call.
        """
        waiting = self._entries(before, now)
        prices: dict[str, pd.DataFrame] = {}
        while True:
            self._leave(now, prices)
            opened, waiting = self._enter(waiting, now)
            if not opened:
                return

    def _entries(self, before: dict[str, Routing | None], now: datetime) -> list[_Trade]:
        """Return the trades that users would open on the new signals, oldest first."""
        signals: list[Signal] = []
        more = True
        while more:
            page = read_signals(self._engine, since=self._cursor, limit=_PAGE)
            signals += page.items
            self._cursor, more = page.cursor, page.more
        after = self.read_routing(now)
        changed = {name: self._changed_at(name, now) for name in after if before.get(name) != after[name]}
        entries = []
        for signal in sorted(signals, key=lambda each: each.closed_at):
            name = signal.strategy_name
            late = name in changed and signal.closed_at >= changed[name]
            routing = after[name] if late else before.get(name)
            if routing is None:
                continue
            if routing.serves_canary:
                self._until[name] = signal.closed_at + AFTERWARDS * self._candle
            if signal.intent == "open" and name in self._until and signal.closed_at <= self._until[name]:
                entries += [
                    _Trade(f"{name}-{user}-{signal.symbol}-{signal.closed_at:%y%m%d%H%M}", user, signal)
                    for user in self._users
                    if routing.version_of(self._bucket_of(user, routing.salt), signal.symbol, user) == signal.version
                ]
        return entries

    def _bucket_of(self, user: str, salt: str) -> int:
        if (user, salt) not in self._bucket:
            self._bucket[user, salt] = bucket_of(user, salt)
        return self._bucket[user, salt]

    def _changed_at(self, strategy: str, now: datetime) -> datetime:
        """Return when the routing of a strategy changed within this step: a catching-up run ticks at past candles."""
        newest = read_events(self._engine, strategy, limit=1, newest=True)
        return newest[0].at if newest else now

    def _enter(self, waiting: list[_Trade], now: datetime) -> tuple[int, list[_Trade]]:
        """Open what can be opened. Return the number, and the trades whose user has a position that may close first."""
        opened: list[_Trade] = []
        later: list[_Trade] = []
        for trade in waiting:
            free_from = self._free_from.get(trade.key, trade.signal.closed_at)
            if free_from is None:
                later.append(trade)
            elif free_from <= trade.signal.closed_at:
                opened.append(trade)
                self._free_from[trade.key] = None
        self._report([trade.opened for trade in opened], now)
        self.trades += len(opened)
        self._open |= {trade.trade_id: trade for trade in opened}
        return len(opened), later

    def _leave(self, now: datetime, prices: dict[str, pd.DataFrame]) -> None:
        """Close the positions whose exit is announced."""
        if not self._open:
            return
        drain(self._engine, self._source, now=now)
        reports: list[dict[str, Any]] = []
        results: dict[tuple[Any, ...], tuple[float, float]] = {}
        while exits := list_exits(self._engine, None, since=self._exit, limit=_PAGE):
            self._exit = exits[-1].id or 0
            for each in exits:
                trade = self._open.pop(each.trade_id)
                closed_at = now if each.candle is None else each.candle + self._candle
                self._free_from[trade.key] = closed_at
                same = (trade.signal.cursor, each.why, closed_at)
                if same not in results:
                    results[same] = self._result(trade.signal, each, closed_at, now, prices)
                pnl, risk = results[same]
                pnl += self._slippage[trade.user] * risk
                reports.append(trade.opened | {"closed_at": closed_at, "pnl": pnl, "risk": risk})
        self._report(reports, now)

    def _result(
        self, signal: Signal, left: PositionExit, closed_at: datetime, now: datetime, prices: dict[str, pd.DataFrame]
    ) -> tuple[float, float]:
        """Return PnL and risk in price units, of an order with the stop and the target of the scoring rule."""
        symbol = signal.symbol
        if symbol not in prices:
            since = now - timedelta(days=60)
            prices[symbol] = self._source.candles(symbol, closed_by=now, since=since)
        candles = prices[symbol]
        known = candles[: pd.Timestamp(signal.candle)].iloc[-self._rule.warmup_bars :]
        held = candles[pd.Timestamp(signal.closed_at) : pd.Timestamp(closed_at - self._candle)]
        if held.empty:
            return 0.0, 1.0
        range_ = float(atr(known, self._rule.atr_period)[-1])
        risk = self._rule.stop_atr * range_
        moved = {Why.STOP: -risk, Why.TARGET: self._rule.target_atr * range_}
        at_close = _SIDE[signal.action] * float(held["close"].iloc[-1] - held["open"].iloc[0])
        return moved.get(Why(left.why), at_close), risk

    def _report(self, trades: list[dict[str, Any]], now: datetime) -> None:
        if trades:
            self.misrouted += ingest(self._engine, trades, now=now, source="demo").misrouted
