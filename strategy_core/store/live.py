"""What the platform reports: live trades, written once and read by rollout and by slot; never judged here."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sqlmodel import Session, col, select

from strategy_core.store.engine import insert_if_new
from strategy_core.store.platform_tables import LiveTrade

_NAMES_PER_QUERY = 5_000  # below what either database takes as parameters of one statement


def add_trades(session: Session, rows: Sequence[Mapping[str, Any]]) -> int:
    """Write the reports that are new and return how many were."""
    return insert_if_new(session, LiveTrade, rows)


def reported(session: Session, trade_ids: Iterable[str]) -> Iterator[LiveTrade]:
    """Yield every report on these trades, in the order of arrival of each."""
    wanted = sorted(set(trade_ids))
    for start in range(0, len(wanted), _NAMES_PER_QUERY):
        names = wanted[start : start + _NAMES_PER_QUERY]
        yield from session.exec(select(LiveTrade).where(col(LiveTrade.trade_id).in_(names)).order_by(col(LiveTrade.id)))
