"""Loss limits of users: reached by closed trades, kept until an owner ends them, and counted anew then."""

from datetime import datetime, timedelta
from typing import Any

import pandas as pd
import pytest
from pydantic import ValidationError
from sqlalchemy import Engine, event, text
from sqlmodel import select

from strategy_core.domain.audit import Command
from strategy_core.domain.errors import InvalidPlan
from strategy_core.domain.indicators import atr
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.policy import LossLimit, Policy
from strategy_core.domain.scoring import ScoringRule
from strategy_core.domain.user_exclusions import ExclusionKind
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services import loss_limits
from strategy_core.services.audit import verify_trail
from strategy_core.services.declarations import set_policy
from strategy_core.services.drain import drain
from strategy_core.services.live_trades import ingest, live_summary
from strategy_core.services.loss_limits import Guarded, guard_open_trades
from strategy_core.services.positions import OpenTrade, reconcile
from strategy_core.services.queries import Scope, list_alerts, route_user
from strategy_core.services.user_exclusions import end_exclusions, list_exclusions
from strategy_core.store import audit, live_trades
from strategy_core.store.engine import reading, transaction
from strategy_core.store.tables import LiveTrade
from tests.builders import DAY, GOLD, HOUR, MONDAY, OWNER, put_version
from tests.services.test_live import IN_ACTIVE, NOON, closed, pair, report

__all__ = ["pair"]
LIMIT = LossLimit(r=3, days=30)


def limit(engine: Engine, loss_limit: LossLimit | None = LIMIT) -> None:
    set_policy(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", policy=Policy(loss_limit=loss_limit))


def lose(engine: Engine, trade_id: str, r: float, *, at: datetime = NOON, user: str = IN_ACTIVE) -> None:
    trade = closed(trade_id, user_id=user, opened_at=at, closed_at=at + HOUR, pnl=-10 * r, risk=10.0)
    ingest(engine, [trade], now=at + HOUR)


def exit_only(engine: Engine, user: str = IN_ACTIVE, at: datetime = NOON + DAY) -> bool:
    return route_user(engine, user_id=user, strategy_name="fib_rsi", now=at).exit_only


def test_a_user_who_has_lost_the_limit_opens_no_new_position(pair: Engine) -> None:
    limit(pair)
    lose(pair, "t1", 2)
    lose(pair, "t2", 0.9)
    lose(pair, "u1", 2.9, user="other")
    assert not exit_only(pair)

    lose(pair, "t3", 0.1)

    assert (exit_only(pair), exit_only(pair, "other")) == (True, False)
    (row,) = list_exclusions(pair, "fib_rsi")
    assert (row.kind, row.user_id, row.reason, row.actor) == ("guard", IN_ACTIVE, "lost 3 R in 30 days", "loss limit")
    (alert,) = [each.alert for each in list_alerts(pair, Scope("fib_rsi"), limit=10)]
    assert alert.kind == "user.loss_limit"
    assert alert.text == f"fib_rsi: lost 3 R in 30 days: {IN_ACTIVE}. They open no new position until an owner ends it"
    assert all(trail.breaks == [] for trail in verify_trail(pair).trails)


def test_it_stays_when_the_user_wins_again_and_is_told_once(pair: Engine) -> None:
    limit(pair)
    lose(pair, "t1", 3)
    lose(pair, "t1", 3)
    lose(pair, "t2", -10)
    lose(pair, "t3", 20)

    assert exit_only(pair)
    with reading(pair) as session:
        assert [event.action for event in audit.events(session)].count("exclude_users") == 1


def test_an_owner_ends_it_and_it_is_counted_anew(pair: Engine) -> None:
    limit(pair)
    lose(pair, "t1", 5)
    ended = Command(OWNER, NOON + DAY, "talked")
    end_exclusions(pair, ended, strategy_name="fib_rsi", user_ids=[IN_ACTIVE])
    assert exit_only(pair), "not unless it is named"

    end_exclusions(pair, ended, strategy_name="fib_rsi", user_ids=[IN_ACTIVE], kinds=[ExclusionKind.GUARD])

    later = NOON + 2 * DAY
    lose(pair, "t2", 2.5, at=later)
    assert not exit_only(pair, at=later + DAY)
    lose(pair, "t3", 0.5, at=later)
    assert exit_only(pair, at=later + DAY)


def test_old_losses_do_not_count(pair: Engine) -> None:
    limit(pair)
    lose(pair, "t1", 2.9)

    lose(pair, "t2", 2.9, at=NOON + timedelta(days=31))

    assert not exit_only(pair, at=NOON + timedelta(days=32))


def test_a_limit_of_money_counts_pnl(pair: Engine) -> None:
    limit(pair, LossLimit(amount=25, r=100))

    lose(pair, "t1", 2.5)

    assert exit_only(pair)


def test_without_a_limit_nobody_is_guarded(pair: Engine) -> None:
    lose(pair, "t1", 500)
    limit(pair, None)
    lose(pair, "t2", 500)

    assert not exit_only(pair)


def test_many_who_lose_at_once_are_guarded_in_short_transactions(pair: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rollback waits for a transaction at most. No results of trades are read while one holds the strategy."""
    monkeypatch.setattr(loss_limits, "_AT_ONCE", 2)
    limit(pair)
    users = [f"user_{number}" for number in range(5)]
    trades = [closed(user, user_id=user, pnl=-40.0, risk=10.0) for user in users]
    statements: list[str] = []
    event.listen(pair, "before_cursor_execute", lambda *args: statements.append(args[2]))

    ingest(pair, trades, now=NOON + HOUR)

    assert all(exit_only(pair, user) for user in users)
    begun = next(number for number, each in enumerate(statements) if "INSERT INTO canary_exclusion" in each)
    assert not any("FROM live_trade" in each for each in statements[begun:])
    with reading(pair) as session:
        assert [event.action for event in audit.events(session)].count("exclude_users") == 3


def test_a_quotient_that_no_number_holds_counts_as_0(pair: Engine) -> None:
    """An earlier release took it in. PostgreSQL would refuse every sum over it."""
    limit(pair)
    lose(pair, "t1", 2)
    with transaction(pair) as session:
        (row,) = session.exec(select(LiveTrade)).all()
        old = row.model_dump(exclude={"id"}) | {"trade_id": "old", "pnl": 1e-300, "risk": 1e300}
        live_trades.add_trades(session, [old])

    lose(pair, "t2", 3)

    assert exit_only(pair)
    assert live_summary(pair, "fib_rsi", "1", MONDAY, NOON + DAY).trades == 3


def test_a_policy_that_cannot_be_read_takes_no_limit_from_others(pair: Engine) -> None:
    limit(pair)
    for name in ("a", "z"):
        put_version(pair, "1", Status.ACTIVE, strategy_name=name)
        set_policy(pair, Command(OWNER, MONDAY), strategy_name=name, policy=Policy(loss_limit=LIMIT))
    with pair.begin() as connection:
        connection.execute(text("""UPDATE strategy_policy SET policy = '{"newer": 1}' WHERE strategy_name = 'a'"""))
    trades = [closed(name, strategy_name=name, pnl=-40.0) for name in ("a", "fib_rsi", "z")]

    with pytest.raises(InvalidPlan, match="newer"):
        ingest(pair, trades, now=NOON + HOUR)

    assert {each.strategy_name for each in list_exclusions(pair)} == {"fib_rsi", "z"}


class Fallen:
    """The market of the tests in which the close of the last candle is another one."""

    def __init__(self, market: SyntheticSource, close: float, *, without: str = "") -> None:
        self.market = market
        self.close = close
        self.without = without
        self.name, self.timeframe = market.name, market.timeframe

    def symbols(self) -> tuple[str, ...]:
        return self.market.symbols()

    def candles(
        self, symbol: str, *, closed_by: datetime, since: datetime | None = None, bars: int | None = None
    ) -> pd.DataFrame:
        if symbol == self.without:
            raise OSError("the feed is down")
        found = self.market.candles(symbol, closed_by=closed_by, since=since, bars=bars)
        found.loc[found.index[-1], [name for name in found.columns if name.endswith("close")]] = self.close
        return found

    def expected_at(self, symbol: str, now: datetime) -> datetime | None:
        return self.market.expected_at(symbol, now)


def trade(market: SyntheticSource, trade_id: str = "o1", **facts: Any) -> dict[str, Any]:
    """Return a report of a long that was opened at noon, at the close of the last candle."""
    price = float(market.candles(GOLD, closed_by=NOON, bars=1)["close"].iloc[-1])
    return report(trade_id, **{"side": "buy", "entry_price": price, "risk": 10.0} | facts)


def one_r(market: SyntheticSource) -> float:
    """Return one R at noon, in price units."""
    rule = ScoringRule()
    return float(rule.stop_atr * atr(market.candles(GOLD, closed_by=NOON, bars=200), rule.atr_period)[-1])


def look(engine: Engine, market: SyntheticSource, r: float, *, at: datetime = NOON + HOUR, **facts: Any) -> Guarded:
    """Guard the users with open trades when a long of noon floats at *r*."""
    close = trade(market)["entry_price"] + r * one_r(market)
    return guard_open_trades(engine, Fallen(market, close, **facts), "fib_rsi", now=at)


def test_open_losses_count_with_closed_ones_and_it_latches(pair: Engine, market: SyntheticSource) -> None:
    limit(pair)
    lose(pair, "t1", 2)
    ingest(pair, [trade(market)], now=NOON + HOUR)

    assert look(pair, market, -0.9).users == []
    assert look(pair, market, -1.1).users == [IN_ACTIVE]
    assert look(pair, market, 5).users == []

    assert exit_only(pair)
    (row,) = list_exclusions(pair, "fib_rsi")
    assert (row.kind, row.reason) == ("guard", "lost 3 R in 30 days")
    assert all(trail.breaks == [] for trail in verify_trail(pair).trails)


def test_open_gains_make_no_room_for_closed_losses(pair: Engine, market: SyntheticSource) -> None:
    ingest(pair, [trade(market)], now=NOON + HOUR)
    lose(pair, "t1", 3)
    limit(pair)

    assert look(pair, market, 10).users == [IN_ACTIVE]


def test_open_losses_alone_reach_a_limit_of_money(pair: Engine, market: SyntheticSource) -> None:
    limit(pair, LossLimit(amount=25))
    ingest(pair, [trade(market), trade(market, "o2", user_id="other", risk=None)], now=NOON + HOUR)

    assert look(pair, market, -2.6).users == [IN_ACTIVE]


def test_a_trade_without_an_entry_price_counts_as_0_and_is_counted(pair: Engine, market: SyntheticSource) -> None:
    limit(pair)
    ingest(pair, [trade(market, entry_price=None), trade(market, "o2", side=None, user_id="other")], now=NOON + HOUR)

    found = look(pair, market, -50)

    assert (found.users, found.unknown, found.trades) == ([], 2, 2)
    assert found.line("fib_rsi").startswith("2 of 2 open trades of fib_rsi count as 0 in its loss limit")
    assert drain(pair, market, now=NOON + HOUR).unknown == [found.line("fib_rsi")]


def test_a_feed_that_is_down_guards_nobody(pair: Engine, market: SyntheticSource) -> None:
    limit(pair)
    ingest(pair, [trade(market)], now=NOON + HOUR)

    found = look(pair, market, -50, without=GOLD)

    assert (found.users, found.unknown) == ([], 1)


def test_what_is_left_of_a_trade_floats(pair: Engine, market: SyntheticSource) -> None:
    limit(pair)
    ingest(pair, [trade(market, size=4.0)], now=NOON + HOUR)
    by, left = Command(OWNER, NOON + HOUR), [OpenTrade(trade_id="o1", size=1.0)]
    reconcile(pair, by, strategy_name="fib_rsi", taken_at=NOON + HOUR, trades=left)

    assert look(pair, market, -11.9).users == []
    assert look(pair, market, -12.1).users == [IN_ACTIVE]


def test_an_owner_who_ends_it_does_not_have_to_close_the_trade(pair: Engine, market: SyntheticSource) -> None:
    limit(pair)
    ingest(pair, [trade(market)], now=NOON + HOUR)
    assert look(pair, market, -4).users == [IN_ACTIVE]
    ended = Command(OWNER, NOON + HOUR, "talked")
    end_exclusions(pair, ended, strategy_name="fib_rsi", user_ids=[IN_ACTIVE], kinds=[ExclusionKind.GUARD])

    assert look(pair, market, -4, at=NOON + 2 * HOUR).users == []


def test_the_drain_guards_users_with_open_trades(pair: Engine, market: SyntheticSource) -> None:
    limit(pair)
    ingest(pair, [trade(market)], now=NOON + HOUR)
    close = trade(market)["entry_price"] - 4 * one_r(market)

    drain(pair, Fallen(market, close), now=NOON + HOUR)

    assert exit_only(pair)


def test_without_a_limit_no_candle_is_read(pair: Engine, market: SyntheticSource) -> None:
    ingest(pair, [trade(market)], now=NOON + HOUR)

    assert look(pair, market, -50, without=GOLD) == Guarded()


def test_a_limit_without_a_loss_is_refused() -> None:
    with pytest.raises(ValidationError, match="r, amount or both"):
        LossLimit()
