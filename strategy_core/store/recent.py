"""What one version decided last, on all its symbols at once: by key, however long the log is."""

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import bindparam
from sqlalchemy import select as select_columns
from sqlmodel import Session, col, select

from strategy_core.store.tables import ShadowDecisionLog
from strategy_core.store.tally_tables import DecisionTally
from strategy_core.store.types import UtcDateTime

LOG, TALLY = ShadowDecisionLog, DecisionTally


class Last(NamedTuple):
    """The newest row of a symbol, and how far its newest rows reach back.

    Attributes:
        oldest: the candle of the last of so many rows as were asked for; None when there are fewer.
    """

    newest: datetime
    window_hash: str
    oldest: datetime | None


def last_rows(session: Session, strategy_name: str, version: str, count: int, *, since: datetime) -> dict[str, Last]:
    """Return, by symbol, what its newest *count* rows since then are, errors included.

    Args:
        since: earlier candles are not looked for; of a log in parts only those since then are read.
    """
    asked = {"strategy_name": strategy_name, "version": version, "before": count - 1, "since": since}
    rows = session.execute(_LAST, asked)
    return {symbol: Last(newest, window_hash, oldest) for symbol, newest, window_hash, oldest in rows if newest}


def rows_since(
    session: Session, strategy_name: str, version: str, symbols: Sequence[str], since: datetime
) -> dict[str, list[tuple[datetime, str]]]:
    """Return, by symbol, (candle, window hash) of all rows since then, newest first; for symbols that have few."""
    found: dict[str, list[tuple[datetime, str]]] = defaultdict(list)
    wanted = (LOG.strategy_name == strategy_name, LOG.version == version, col(LOG.symbol).in_(symbols))
    newest_first = col(LOG.timestamp).desc()
    query = select(LOG.symbol, LOG.timestamp, LOG.window_hash).where(*wanted, col(LOG.timestamp) >= since)
    for symbol, timestamp, window_hash in session.exec(query.order_by(newest_first)):
        found[symbol].append((timestamp, window_hash))
    return found


def _newest(column: Any) -> Any:
    """Return what a symbol that has been counted has in its newest row: a question by key, never a scan."""
    mine = (getattr(LOG, key) == getattr(TALLY, key) for key in ("strategy_name", "version", "symbol"))
    since = col(LOG.timestamp) >= bindparam("since", type_=UtcDateTime())
    return select(column).where(*mine, since).order_by(col(LOG.timestamp).desc()).limit(1).correlate(TALLY)


_LAST = select_columns(
    col(TALLY.symbol),
    _newest(LOG.timestamp).scalar_subquery(),
    _newest(LOG.window_hash).scalar_subquery(),
    _newest(LOG.timestamp).offset(bindparam("before")).scalar_subquery(),
).where(col(TALLY.strategy_name) == bindparam("strategy_name"), col(TALLY.version) == bindparam("version"))
