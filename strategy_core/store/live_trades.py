"""Live trades: the platform's reports, read as orders or as closed slots."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from operator import itemgetter
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import sqlalchemy as sa
from sqlmodel import Session, col, select

from strategy_core.domain.arrays import FloatArray
from strategy_core.domain.evidence import NO_ORDERS, Orders
from strategy_core.domain.floating import TradeToMark
from strategy_core.domain.live_trades import TradeReport
from strategy_core.domain.routing import BUCKETS
from strategy_core.store.engine import insert_if_new
from strategy_core.store.outcomes import not_left_out
from strategy_core.store.tables import LiveTrade, Outcome, Position

ORDERS_READ = 100_000  # per tick, which runs every minute and holds the strategy's lock
FIDELITY_READ = 300_000  # closed trades per tick
_DAY, _DAY_S = timedelta(days=1), 86_400
_LONGEST_CANDLE = _DAY
_NAMES_PER_QUERY = 5_000  # below the limit of parameters in one statement on both databases
_ANY = (  # in the order of an index, otherwise PostgreSQL may scan the trades of all strategies
    select(LiveTrade.id)
    .where(LiveTrade.strategy_name == sa.bindparam("strategy_name"))
    .order_by(col(LiveTrade.opened_at))
    .limit(1)
)

_TINY, _SMALL, _HUGE = (
    1e-300,
    1e-9,
    1e15,
)  # reports of earlier releases: PostgreSQL refuses a quotient that is no number
_R = sa.case(
    (sa.func.abs(col(LiveTrade.pnl)) < _TINY, 0.0),
    ((sa.func.abs(col(LiveTrade.pnl)) < _SMALL) & (col(LiveTrade.risk) > _HUGE), 0.0),
    else_=col(LiveTrade.pnl) / col(LiveTrade.risk),
)


def add_trades(session: Session, rows: Sequence[Mapping[str, Any]]) -> int:
    """Write the reports that are new, by trade id as every writer does, and return their number."""
    return insert_if_new(session, LiveTrade, sorted(rows, key=itemgetter("trade_id")))


def reported(session: Session, trade_ids: Iterable[str]) -> Iterator[Any]:
    """Yield a row (`state` and the fields of a report) for each stored report on these trades."""
    columns = [getattr(LiveTrade, name) for name in ("state", *TradeReport.model_fields)]
    wanted = sorted(set(trade_ids))
    for start in range(0, len(wanted), _NAMES_PER_QUERY):
        names = wanted[start : start + _NAMES_PER_QUERY]
        yield from session.connection().execute(sa.select(*columns).where(col(LiveTrade.trade_id).in_(names)))


def reports_any(session: Session, strategy_name: str) -> bool:
    """Return whether the platform has reported any trade of this strategy."""
    return session.exec(_ANY, params={"strategy_name": strategy_name}).first() is not None


def read_orders(
    session: Session,
    strategy_name: str,
    canary: str,
    active: str,
    *,
    since: datetime,
    left_out: Mapping[str, datetime] = MappingProxyType({}),
    at_most: int = ORDERS_READ,
) -> Orders:
    """Return the live orders of both versions that were opened since then, and any misrouted trades.

    If there are more than *at_most*, only the newest whole UTC days are read, at least two.

    Args:
        left_out: by symbol, since when the canary does not serve it. Orders from then on count if they are misrouted.
    """
    of_strategy = (col(LiveTrade.strategy_name) == strategy_name, col(LiveTrade.opened_at) >= since)
    mine = (*of_strategy, *not_left_out(col(LiveTrade.symbol), col(LiveTrade.opened_at), left_out))
    first = session.exec(select(sa.func.min(LiveTrade.opened_at)).where(*mine)).one()
    if first is None:
        return replace(NO_ORDERS, **_misrouted(session, of_strategy))
    begin = max(since, _newest_days(session, mine, at_most) or since)
    rows = (
        session.connection()
        .execute(
            sa.select(
                col(LiveTrade.candle_s),
                col(LiveTrade.user_id),
                col(LiveTrade.version),
                col(LiveTrade.state),
                col(LiveTrade.latency_ms),
                col(LiveTrade.canary_bp),
            )
            .where(*mine, col(LiveTrade.opened_at) >= begin, col(LiveTrade.version).in_((canary, active)))
            .order_by(col(LiveTrade.candle_s), col(LiveTrade.id))
        )
        .all()
    )
    candle, user, version, state, latency, share = zip(*rows, strict=True) if rows else ((),) * 6
    return Orders(
        candle=np.array(candle, np.int64),
        user=pd.factorize(np.array(user, object))[0].astype(np.int64),
        canary=np.array(version, object) == canary,
        failed=np.array(state, object) == "failed",
        latency_ms=np.array(latency, np.float64),
        share=np.array(share, np.float64) / BUCKETS,
        first_day=int(first.timestamp()) // _DAY_S,
        cut=begin > first,
        **_misrouted(session, of_strategy),
    )


def _newest_days(session: Session, mine: Sequence[Any], at_most: int) -> datetime | None:
    """Return the midnight from which there are at most *at_most* orders, but at least two days (None: read all)."""
    newest_first = sa.select(col(LiveTrade.opened_at)).where(*mine).order_by(col(LiveTrade.opened_at).desc())
    newest = session.connection().execute(newest_first.limit(1)).scalar_one()
    left_out = session.connection().execute(newest_first.offset(at_most).limit(1)).scalar_one_or_none()
    if left_out is None:
        return None
    return min(_midnight(left_out) + _DAY, _midnight(newest) - _DAY)


def _midnight(moment: datetime) -> datetime:
    return moment.replace(hour=0, minute=0, second=0, microsecond=0)


@dataclass(frozen=True, slots=True)
class LiveSlots:
    """Results of closed live trades by slot, oldest close first, each array of shape (slots,).

    Attributes:
        r, pnl: means over the users who traded the slot.
        shadow_r: R of the version's outcome on the same entry candle, NaN where it is not booked.
        trades: number of users' trades in total.
    """

    r: FloatArray
    pnl: FloatArray
    shadow_r: FloatArray
    trades: int


def read_live_slots(
    session: Session,
    strategy_name: str,
    version: str,
    *,
    since: datetime,
    until: datetime,
    at_most: int | None = None,
) -> LiveSlots:
    """Return the closed live trades of a version that were opened in [since, until), by symbol and candle.

    *at_most* keeps the newest trades.
    """
    trades = (
        sa.select(
            col(LiveTrade.symbol),
            col(LiveTrade.candle_s),
            col(LiveTrade.closed_at),
            col(LiveTrade.pnl),
            _R.label("r"),
        )
        .where(
            col(LiveTrade.strategy_name) == strategy_name,
            col(LiveTrade.version) == version,
            col(LiveTrade.state) == "closed",
            col(LiveTrade.opened_at) >= since,
            col(LiveTrade.opened_at) < until,
        )
        .order_by(col(LiveTrade.opened_at).desc())
        .limit(at_most)
        .subquery()
        .c
    )
    rows = (
        session.connection()
        .execute(
            sa.select(trades.symbol, trades.candle_s, sa.func.avg(trades.r), sa.func.avg(trades.pnl), sa.func.count())
            .group_by(trades.symbol, trades.candle_s)
            .order_by(sa.func.max(trades.closed_at), trades.symbol)
        )
        .all()
    )
    booked = (
        {
            (symbol, int(opened_at.timestamp())): r
            for symbol, opened_at, r in session.exec(
                select(Outcome.symbol, Outcome.opened_at, Outcome.r_multiple).where(
                    Outcome.strategy_name == strategy_name,
                    Outcome.version == version,
                    col(Outcome.opened_at) >= since - _LONGEST_CANDLE,
                    col(Outcome.opened_at) < until,
                )
            ).all()
        }
        if rows
        else {}
    )
    return LiveSlots(
        r=np.array([r for _, _, r, _, _ in rows], np.float64),
        pnl=np.array([pnl for _, _, _, pnl, _ in rows], np.float64),
        shadow_r=np.array([booked.get((symbol, candle), np.nan) for symbol, candle, *_ in rows], np.float64),
        trades=sum(count for *_, count in rows),
    )


def open_trades(session: Session, strategy_name: str) -> list[TradeToMark]:
    """Return the open trades of a strategy, as they were reported when they were opened."""
    rows = session.execute(
        sa.select(
            col(Position.user_id),
            col(Position.symbol),
            col(Position.side),
            col(Position.opened_at),
            col(LiveTrade.entry_price),
            col(LiveTrade.risk),
            col(Position.size),
            col(LiveTrade.size),
        )
        .join(LiveTrade, (col(LiveTrade.trade_id) == col(Position.trade_id)) & (col(LiveTrade.state) == "open"))
        .where(col(Position.strategy_name) == strategy_name, col(Position.closed_at).is_(None))
        .order_by(col(Position.opened_at), col(Position.trade_id))
    )
    found = []
    for user, symbol, side, opened_at, price, risk, left, size in rows:
        share = 1.0 if left is None or not size else min(1.0, left / size)
        found.append(TradeToMark(user, symbol, side, opened_at, price, risk, share))
    return found


def realised(
    session: Session, strategy_name: str, user_ids: Iterable[str], since: datetime
) -> dict[str, tuple[float, float]]:
    """Return by user the sums of R and of PnL over the trades of a strategy that closed after *since*."""
    found: dict[str, tuple[float, float]] = {}
    wanted = sorted(set(user_ids))
    for start in range(0, len(wanted), _NAMES_PER_QUERY):
        query = (
            sa.select(
                col(LiveTrade.user_id),
                sa.func.sum(_R),
                sa.func.sum(col(LiveTrade.pnl)),
            )
            .where(
                col(LiveTrade.strategy_name) == strategy_name,
                col(LiveTrade.user_id).in_(wanted[start : start + _NAMES_PER_QUERY]),
                col(LiveTrade.state) == "closed",
                col(LiveTrade.closed_at) > since,
            )
            .group_by(col(LiveTrade.user_id))
        )
        found |= {user: (r, pnl) for user, r, pnl in session.connection().execute(query)}
    return found


def _misrouted(session: Session, mine: Sequence[Any]) -> dict[str, Any]:
    """Return the number of misrouted trades and a description of the first one, as fields of `Orders`."""
    wrong = (*mine, col(LiveTrade.misrouted))
    first = session.exec(select(LiveTrade).where(*wrong).order_by(col(LiveTrade.id)).limit(1)).first()
    if first is None:
        return {}
    count = session.exec(select(sa.func.count(sa.distinct(col(LiveTrade.trade_id)))).where(*wrong)).one()
    example = f"trade {first.trade_id} of user {first.user_id} on {first.version}"
    return {"misrouted": count, "misrouted_example": example}
