"""The decision log: one immutable row per candle and version."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, NamedTuple

from sqlalchemy import bindparam, func
from sqlalchemy import select as select_columns
from sqlmodel import Session, col, select

from strategy_core.domain.positions import ENTRY_CANDLES
from strategy_core.domain.strategy import Intent
from strategy_core.store import counters, signals
from strategy_core.store.bulk_insert import write_if_new
from strategy_core.store.engine import insert_if_new
from strategy_core.store.outcomes import is_of, not_left_out
from strategy_core.store.tables import (
    ERROR,
    SIGNALS,
    DecisionTally,
    EquityMark,
    FailedRun,
    Outcome,
    ShadowDecisionLog,
    StrategyVersion,
    UtcDateTime,
)

LOG = ShadowDecisionLog
_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
_ITS_OUTCOME = is_of(Outcome, LOG)
TALLY = DecisionTally
_MINE = (
    LOG.strategy_name == bindparam("strategy_name"),
    LOG.version == bindparam("version"),
    LOG.symbol == bindparam("symbol"),
)
_MARKED = (
    select(func.max(EquityMark.timestamp))
    .where(
        EquityMark.strategy_name == bindparam("strategy_name"),
        EquityMark.version == bindparam("version"),
        EquityMark.symbol == bindparam("symbol"),
    )
    .scalar_subquery()
)
_OLDEST_OPEN = (
    select(LOG.timestamp)
    .where(*_MINE, col(LOG.timestamp) <= _MARKED)
    .order_by(col(LOG.timestamp).desc())
    .offset(bindparam("back"))
    .limit(1)
    .scalar_subquery()
)
_TO_SCORE = (  # built once, because building it takes longer than the query
    select(LOG.timestamp, LOG.decision)
    .outerjoin(Outcome, _ITS_OUTCOME)
    .where(
        *_MINE,
        col(LOG.timestamp) >= func.coalesce(_OLDEST_OPEN, _BEGINNING, type_=UtcDateTime()),
        col(LOG.decision).in_(SIGNALS),
        col(Outcome.decision_id).is_(None),
    )
    .order_by(col(LOG.timestamp))
)


def log_decisions(session: Session, rows: Sequence[Mapping[str, Any]]) -> int:
    """Insert and count the rows that are new, and return their number. Idempotent.

    Those that users may copy become signals, which `signals.number_new` numbers after the commit.
    """
    new = write_if_new(session, LOG, rows)
    counters.count_decisions(session, new)  # after all inserts, see there
    signals.add(session, new)
    return len(new)


def note_failed_run(
    session: Session, strategy_name: str, version: str, *, at: datetime, hit: bool, host_fault: str, reason: str
) -> None:
    """Store the newest run in which a version could not be run.

    Parts of one run, on several machines, have the same time. The host is at fault only if it is on all of them.
    """
    values: dict[str, Any] = {"at": at, "hit": hit, "host_fault": host_fault, "reason": reason}
    key = {"strategy_name": strategy_name, "version": version}
    if insert_if_new(session, FailedRun, [{**key, **values}]):
        return
    known = session.get_one(FailedRun, (strategy_name, version), with_for_update=True, populate_existing=True)
    if known.at == at:
        hit, host_fault = hit and known.hit, host_fault if known.host_fault else ""
    known.at, known.hit, known.host_fault, known.reason = at, hit, host_fault, reason
    session.add(known)
    session.flush()


def failed_run(session: Session, strategy_name: str, version: str) -> FailedRun | None:
    """Return the newest run in which a version could not be run."""
    return session.get(FailedRun, (strategy_name, version), populate_existing=True)


def find_errors(
    session: Session,
    strategy_name: str,
    version: str,
    *,
    since: datetime,
    before: datetime,
    limit: int,
    left_out: Mapping[str, datetime] = MappingProxyType({}),
) -> Sequence[ShadowDecisionLog]:
    """Return the newest errors on candles in [since, before] that were logged by then, newest first.

    Args:
        left_out: by symbol, the first candle from which its errors are left out.
    """
    mine = (LOG.strategy_name == strategy_name, LOG.version == version, LOG.decision == ERROR)
    within = (col(LOG.timestamp) >= since, col(LOG.timestamp) <= before, col(LOG.logged_at) <= before)
    kept = not_left_out(col(LOG.symbol), col(LOG.timestamp), left_out)
    query = select(LOG).where(*mine, *within, *kept)
    return session.exec(query.order_by(col(LOG.timestamp).desc(), LOG.symbol).limit(limit)).all()


def newest_decided(session: Session, strategy_name: str, version: str, symbol: str) -> datetime | None:
    """Return the open time of the newest candle with a row, errors included."""
    return session.exec(select(func.max(LOG.timestamp)).where(*_key(strategy_name, version, symbol))).one()


def newest_candles(session: Session, strategy_name: str, version: str) -> dict[str, datetime]:
    """Return, by symbol, the open time of the newest candle with a row, errors included."""
    return {
        symbol: last.newest for symbol, last in last_rows(session, strategy_name, version, 1, since=_BEGINNING).items()
    }


def newest_rows(
    session: Session, strategy_name: str, version: str, symbol: str, limit: int
) -> Sequence[tuple[datetime, str]]:
    """Return (candle, window hash) of the newest rows, errors included, newest first."""
    return session.exec(
        select(LOG.timestamp, LOG.window_hash)
        .where(*_key(strategy_name, version, symbol))
        .order_by(col(LOG.timestamp).desc())
        .limit(limit)
    ).all()


def find_decisions(
    session: Session,
    strategy_name: str,
    version: str,
    symbol: str | None = None,
    *,
    start: datetime | None = None,
    end: datetime | None = None,
    limit: int | None = None,
) -> Sequence[ShadowDecisionLog]:
    """Return decisions on candles in [start, end), oldest first. *limit* keeps the newest ones."""
    query = select(LOG).where(LOG.strategy_name == strategy_name, LOG.version == version)
    if symbol is not None:
        query = query.where(LOG.symbol == symbol)
    if start is not None:
        query = query.where(col(LOG.timestamp) >= start)
    if end is not None:
        query = query.where(col(LOG.timestamp) < end)
    newest_first = query.order_by(col(LOG.timestamp).desc(), col(LOG.symbol).desc())
    if limit is not None:
        newest_first = newest_first.limit(limit)
    return list(reversed(session.exec(newest_first).all()))


def find_breaches(session: Session, strategy_name: str, version: str) -> Sequence[ShadowDecisionLog]:
    """Return the decisions in which the version broke its isolation, oldest first."""
    return session.exec(
        select(LOG)
        .where(
            LOG.strategy_name == strategy_name,
            LOG.version == version,
            LOG.decision == ERROR,
            LOG.error_kind == "breach",
        )
        .order_by(col(LOG.timestamp), LOG.symbol)
    ).all()


def decisions_by_kind(session: Session, strategy_name: str) -> dict[tuple[str, str], int]:
    """Return the number of rows by (version, decision)."""
    rows = session.exec(
        select(LOG.version, LOG.decision, func.count())
        .where(LOG.strategy_name == strategy_name)
        .group_by(LOG.version, LOG.decision)
    ).all()
    return {(version, decision): count for version, decision, count in rows}


def signals_to_score(
    session: Session, version: StrategyVersion, symbol: str, *, horizon: int
) -> Sequence[tuple[datetime, str]]:
    """Return (candle, decision) of the signals whose outcome is not booked yet, oldest first.

    Looks back *horizon* + 1 candles from the newest candle with an equity mark. Older trades had closed by then, so
    the cost does not grow with the log.
    """
    params = {"strategy_name": version.strategy_name, "version": version.version, "symbol": symbol}
    return session.exec(_TO_SCORE, params={**params, "back": horizon + 1}).all()


def find_closes(session: Session, version: StrategyVersion, symbol: str, *, since: datetime) -> Sequence[datetime]:
    """Return the candles from *since* on, by their open time, on which the version decided to close."""
    mine = _key(version.strategy_name, version.version, symbol)
    query = select(LOG.timestamp).where(*mine, col(LOG.timestamp) >= since, LOG.intent == Intent.CLOSE.value)
    return session.exec(query.order_by(col(LOG.timestamp))).all()


def find_signals(
    session: Session, strategy_name: str, version: str, *, since: datetime, until: datetime
) -> list[tuple[str, datetime]]:
    """Return (symbol, candle) of the signals on candles that opened in [since, until)."""
    mine = (LOG.strategy_name == strategy_name, LOG.version == version, col(LOG.decision).in_(SIGNALS))
    within = (col(LOG.timestamp) >= since, col(LOG.timestamp) < until)
    rows = session.exec(select(LOG.symbol, LOG.timestamp).where(*mine, *within))
    return [(symbol, candle) for symbol, candle in rows]


def rows_around(
    session: Session, strategy_name: str, version: str, symbol: str, *, since: datetime
) -> list[tuple[datetime, str, str]]:
    """Return (candle, decision, intent) of the rows from *since* on and of ENTRY_CANDLES before it, oldest first."""
    mine = _key(strategy_name, version, symbol)
    query = select(LOG.timestamp, LOG.decision, LOG.intent).where(*mine)
    earlier = query.where(col(LOG.timestamp) < since).order_by(col(LOG.timestamp).desc()).limit(ENTRY_CANDLES + 1)
    later = query.where(col(LOG.timestamp) >= since).order_by(col(LOG.timestamp))
    return [*reversed(session.exec(earlier).all()), *session.exec(later).all()]


def newest_answered(session: Session, strategy_name: str, version: str, symbol: str) -> datetime | None:
    """Return the open time of the newest candle with a decision that is no error."""
    newest_first = select(LOG.timestamp).where(*_key(strategy_name, version, symbol), LOG.decision != ERROR)
    return session.exec(newest_first.order_by(col(LOG.timestamp).desc()).limit(1)).first()


def count_signals(
    session: Session,
    strategy_name: str,
    version: str,
    symbols: Sequence[str],
    *,
    since: datetime,
    until: datetime,
    at_most: int,
) -> int:
    """Return how many signals there were on candles opened from *since* until *until*, counted up to *at_most*."""
    asked = (LOG.strategy_name == strategy_name, LOG.version == version, col(LOG.symbol).in_(symbols))
    within = (col(LOG.timestamp) >= since, col(LOG.timestamp) <= until, col(LOG.decision).in_(SIGNALS))
    few = select(LOG.id).where(*asked, *within).limit(at_most).subquery()
    return session.exec(select(func.count()).select_from(few)).one()


def _key(strategy_name: str, version: str, symbol: str) -> tuple[Any, ...]:
    return (LOG.strategy_name == strategy_name, LOG.version == version, LOG.symbol == symbol)


class Last(NamedTuple):
    """The newest rows of a symbol.

    Attributes:
        oldest: the candle of the oldest of the *count* newest rows, if there are so many.
    """

    newest: datetime
    window_hash: str
    oldest: datetime | None


def last_rows(session: Session, strategy_name: str, version: str, count: int, *, since: datetime) -> dict[str, Last]:
    """Return, by symbol, its newest *count* rows since then, errors included.

    Args:
        since: limits the partitions that PostgreSQL reads.
    """
    params = {"strategy_name": strategy_name, "version": version, "before": count - 1, "since": since}
    rows = session.execute(_LAST, params)
    return {symbol: Last(newest, window_hash, oldest) for symbol, newest, window_hash, oldest in rows if newest}


def rows_since(
    session: Session, strategy_name: str, version: str, symbols: Sequence[str], since: datetime
) -> dict[str, list[tuple[datetime, str]]]:
    """Return, by symbol, (candle, window hash) of all rows since then, newest first. Meant for few rows."""
    found: dict[str, list[tuple[datetime, str]]] = defaultdict(list)
    wanted = (LOG.strategy_name == strategy_name, LOG.version == version, col(LOG.symbol).in_(symbols))
    newest_first = col(LOG.timestamp).desc()
    query = select(LOG.symbol, LOG.timestamp, LOG.window_hash).where(*wanted, col(LOG.timestamp) >= since)
    for symbol, timestamp, window_hash in session.exec(query.order_by(newest_first)):
        found[symbol].append((timestamp, window_hash))
    return found


def _newest(column: Any) -> Any:
    """Return a subquery for *column* of the newest row of a symbol in `decision_tally`, found by index."""
    mine = (getattr(LOG, key) == getattr(TALLY, key) for key in ("strategy_name", "version", "symbol"))
    since = col(LOG.timestamp) >= bindparam("since", type_=UtcDateTime())
    return select(column).where(*mine, since).order_by(col(LOG.timestamp).desc()).limit(1).correlate(TALLY)


_LAST = select_columns(
    col(TALLY.symbol),
    _newest(LOG.timestamp).scalar_subquery(),
    _newest(LOG.window_hash).scalar_subquery(),
    _newest(LOG.timestamp).offset(bindparam("before")).scalar_subquery(),
).where(col(TALLY.strategy_name) == bindparam("strategy_name"), col(TALLY.version) == bindparam("version"))
