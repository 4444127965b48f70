"""What the decision log and the marks say of one rollout's two arms, read as evidence; never judged here."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import numpy as np
from sqlalchemy import bindparam, func
from sqlmodel import Session, col, select

from strategy_core.domain.arrays import FloatArray
from strategy_core.domain.evidence import Record
from strategy_core.domain.strategy import INSUFFICIENT_HISTORY
from strategy_core.store.outcomes import marks_by_candle
from strategy_core.store.seek import by_database
from strategy_core.store.tables import ERROR, ShadowDecisionLog

LOG = ShadowDecisionLog
_RECENT_ROWS = 20  # a symbol: enough to see errors in a row, which are at the newest end
_SPOKE = (col(LOG.decision) != ERROR, col(LOG.reason) != INSUFFICIENT_HISTORY)  # an error is no decision
_NEWEST_SPOKEN = (
    by_database(  # built once, as the next: a tick of many rollouts would spend most of its time on building them
        select(LOG.version, LOG.symbol, func.max(LOG.timestamp))
        .where(
            LOG.strategy_name == bindparam("strategy_name"),
            col(LOG.version).in_([bindparam("one"), bindparam("other")]),
            col(LOG.timestamp) >= bindparam("since"),
            *_SPOKE,
        )
        .group_by(LOG.version, LOG.symbol),
        LOG,
        "one",
        "other",
    )
)
_COUNTED = by_database(
    select(LOG.decision, LOG.error_kind, func.count())
    .where(
        LOG.strategy_name == bindparam("strategy_name"),
        LOG.version == bindparam("version"),
        col(LOG.timestamp) >= bindparam("since"),
        LOG.reason != INSUFFICIENT_HISTORY,
    )
    .group_by(LOG.decision, LOG.error_kind),
    LOG,
    "version",
)


def newest_spoken(
    session: Session, strategy_name: str, versions: tuple[str, str], since: datetime
) -> dict[str, dict[str, datetime]]:
    """Return, by version and symbol, the open time of the newest candle since then that it has decided."""
    one, other = versions
    asked = {"strategy_name": strategy_name, "one": one, "other": other, "since": since}
    rows = session.exec(_NEWEST_SPOKEN[session.get_bind().dialect.name], params=asked).all()
    newest: dict[str, dict[str, datetime]] = {version: {} for version in versions}
    for version, symbol, moment in rows:
        newest[version][symbol] = moment
    return newest


def read_record(
    session: Session,
    strategy_name: str,
    version: str,
    other: str,
    *,
    symbols: Sequence[str],
    since: datetime,
    spoken: Mapping[str, Mapping[str, datetime]],
) -> Record:
    """Return what the log says of *version* since then; its silence on *symbols* is measured against *other*.

    Args:
        spoken: what `newest_spoken` says of the two, so that only symbols that lag are looked at.
    """
    mine = (LOG.strategy_name == strategy_name, LOG.version == version, col(LOG.timestamp) >= since)
    asked = {"strategy_name": strategy_name, "version": version, "since": since}
    counted = session.exec(_COUNTED[session.get_bind().dialect.name], params=asked).all()
    errors = {kind: count for decision, kind, count in counted if decision == ERROR}
    ours, theirs = spoken[version], spoken[other]
    lagging = [one for one in symbols if one in theirs and (one not in ours or ours[one] < theirs[one])]
    return Record(
        decided=sum(count for *_, count in counted),
        errors=sum(errors.values()),
        errors_in_a_row=_errors_in_a_row(session, mine, symbols) if errors else 0,
        invalid=errors.get("invalid", 0),
        breaches=errors.get("breach", 0),
        silent_candles=_silence(session, strategy_name, version, other, lagging, since) if lagging else 0,
        last_error=_last_error(session, mine) if errors else "",
    )


def read_marks(
    session: Session, strategy_name: str, canary: str, active: str, *, since: datetime
) -> tuple[FloatArray, FloatArray]:
    """Return both arms' changes of marked-to-market R since then, aligned by candle; each of shape (candles,)."""
    ours = marks_by_candle(session, strategy_name, canary, start=since)
    theirs = marks_by_candle(session, strategy_name, active, start=since)
    candles = sorted(ours.keys() | theirs.keys())
    return (
        np.array([ours.get(candle, 0.0) for candle in candles], np.float64),
        np.array([theirs.get(candle, 0.0) for candle in candles], np.float64),
    )


def _errors_in_a_row(session: Session, mine: Sequence[Any], symbols: Sequence[str]) -> int:
    """Return the most errors at the newest end of one symbol's rows: many symbols failing once are no streak."""
    newest = session.exec(
        select(LOG.symbol, LOG.decision)
        .where(*mine, LOG.reason != INSUFFICIENT_HISTORY)
        .order_by(col(LOG.timestamp).desc())
        .limit(_RECENT_ROWS * max(1, len(symbols)))
    ).all()
    streaks: dict[str, int] = {}
    broken: set[str] = set()
    for symbol, decision in newest:
        if decision == ERROR and symbol not in broken:
            streaks[symbol] = streaks.get(symbol, 0) + 1
        else:
            broken.add(symbol)
    return max(streaks.values(), default=0)


def _last_error(session: Session, mine: Sequence[Any]) -> str:
    newest = select(LOG.error).where(*mine, LOG.decision == ERROR).order_by(col(LOG.timestamp).desc(), LOG.symbol)
    return session.exec(newest.limit(1)).first() or ""


def _silence(
    session: Session, strategy_name: str, version: str, other: str, symbols: Sequence[str], since: datetime
) -> int:
    spoke = (
        select(LOG.symbol, func.max(LOG.timestamp).label("last"))
        .where(LOG.strategy_name == strategy_name, LOG.version == version, col(LOG.timestamp) >= since, *_SPOKE)
        .group_by(LOG.symbol)
        .subquery()
    )
    missed = session.exec(
        select(func.count())
        .select_from(LOG)
        .outerjoin(spoke, spoke.c.symbol == LOG.symbol)
        .where(
            LOG.strategy_name == strategy_name,
            LOG.version == other,
            col(LOG.symbol).in_(symbols),
            *_SPOKE,
            col(LOG.timestamp) >= since,
            col(LOG.timestamp) > func.coalesce(spoke.c.last, since - timedelta(microseconds=1)),
        )
        .group_by(LOG.symbol)
    ).all()
    return max(missed, default=0)
