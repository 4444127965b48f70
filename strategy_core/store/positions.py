"""Positions: rows kept from live trades, their managers, and the exits for the platform."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col, select

from strategy_core.domain.audit import UNSTORABLE
from strategy_core.domain.live_trades import TradeReport
from strategy_core.domain.positions import Exit, Why
from strategy_core.domain.risk import Held
from strategy_core.store.engine import insert_if_new
from strategy_core.store.tables import Position, PositionChange, PositionExit, PositionSnapshot, StrategyVersion

LOCK_WAIT = "2s"
_NAMES_PER_QUERY = 5_000  # below the limit of parameters in one statement on both databases
_IS_OPEN = col(Position.closed_at).is_(None)


def keep_positions(session: Session, reports: Sequence[TradeReport], now: datetime) -> None:
    """Open and close the positions of these reports, in any order, also repeated. A failed order makes none."""
    filled = sorted((each for each in reports if each.state != "failed"), key=lambda each: each.trade_id)
    insert_if_new(session, Position, [_row(report, now) for report in filled])
    closed = [{"trade": report.trade_id, "at": report.closed_at} for report in filled if report.closed_at is not None]
    if closed:
        session.connection().execute(
            sa.update(Position)
            .where(col(Position.trade_id) == sa.bindparam("trade"), _IS_OPEN)
            .values(closed_at=sa.bindparam("at")),
            closed,
        )


def _row(report: TradeReport, now: datetime) -> dict[str, Any]:
    return {
        "trade_id": report.trade_id,
        "user_id": report.user_id,
        "strategy_name": report.strategy_name,
        "symbol": report.symbol,
        "side": report.side,
        "size": report.size,
        "opened_by": report.version,
        "manager": report.version,
        "managed_since": report.opened_at,
        "opened_at": report.opened_at,
        "closed_at": report.closed_at,
        "flatten_at": None,
        "missing_since": None,
        "recorded_at": now,
    }


def count_managed(session: Session, strategy_name: str, version: str) -> int:
    """Return how many open positions the version manages."""
    return session.exec(select(sa.func.count()).where(*_managed(strategy_name, version))).one()


def managers(session: Session, strategy_name: str, *, unflattened: bool = False) -> dict[str | None, int]:
    """Return the number of open positions by manager. None: an owner flattens them, and no version decides on them.

    *unflattened* leaves out those that are to be closed.
    """
    mine: list[Any] = [Position.strategy_name == strategy_name, _IS_OPEN]
    if unflattened:
        mine.append(col(Position.flatten_at).is_(None))
    rows = session.exec(select(Position.manager, sa.func.count()).where(*mine).group_by(col(Position.manager))).all()
    return {manager: count for manager, count in rows}  # noqa: C416  rows are no tuples for mypy


def holds_any(session: Session, strategy_name: str) -> bool:
    """Return whether the strategy has, or had, any position."""
    mine = select(Position.trade_id).where(Position.strategy_name == strategy_name)
    return session.exec(mine.order_by(col(Position.opened_at)).limit(1)).first() is not None


def count_missing(session: Session, strategy_name: str) -> int:
    """Return how many open positions were not in the platform's last snapshot."""
    missing = (Position.strategy_name == strategy_name, _IS_OPEN, col(Position.missing_since).is_not(None))
    return session.exec(select(sa.func.count()).where(*missing)).one()


def held_by_opener(session: Session, strategy_name: str) -> list[Held]:
    """Return the open positions of a strategy by the version that opened them. One of size 0 is closed."""
    mine = (Position.strategy_name == strategy_name, _IS_OPEN, col(Position.size).is_distinct_from(0))
    size = col(Position.size)
    rows = session.exec(
        select(Position.opened_by, sa.func.count(), sa.func.count(size), sa.func.sum(size))
        .where(*mine)
        .group_by(Position.opened_by)
        .order_by(Position.opened_by)
    ).all()
    return [Held(version, count, sized, total or 0.0) for version, count, sized, total in rows]


def strategies_with_open(session: Session) -> Sequence[str]:
    """Return the strategies with an open position."""
    names = select(Position.strategy_name).where(_IS_OPEN).distinct().order_by(Position.strategy_name)
    return session.exec(names).all()


def managed_symbols(session: Session, strategy_name: str | None = None) -> dict[tuple[str, str], dict[str, int]]:
    """Return by (strategy, manager) the number of open positions on each symbol."""
    mine = [] if strategy_name is None else [Position.strategy_name == strategy_name]
    rows = session.exec(
        select(Position.strategy_name, Position.manager, Position.symbol, sa.func.count())
        .where(*mine, _IS_OPEN, col(Position.manager).is_not(None))
        .group_by(Position.strategy_name, col(Position.manager), Position.symbol)
        .order_by(Position.strategy_name, col(Position.manager), Position.symbol)
    ).all()
    found: dict[tuple[str, str], dict[str, int]] = {}
    for name, manager, symbol, count in rows:
        found.setdefault((name, str(manager)), {})[symbol] = count
    return found


def unclosed_exits(session: Session) -> Sequence[PositionExit]:
    """Return the exits that were announced of positions that are still open, by strategy, the oldest first."""
    query = select(PositionExit).join(Position, col(Position.trade_id) == col(PositionExit.trade_id)).where(_IS_OPEN)
    return session.exec(query.order_by(col(PositionExit.strategy_name), col(PositionExit.id))).all()


def find_positions(
    session: Session,
    strategies: Iterable[str] | None,
    *,
    manager: str | None = None,
    user_id: str | None = None,
    symbols: Sequence[str] | None = None,
    open_only: bool = True,
    after: tuple[datetime, str] | None = None,
    limit: int | None = None,
) -> Sequence[Position]:
    """Return positions by the time they were opened, oldest first.

    Args:
        strategies: names, or None for all.
        after: time and trade id of the last position of the page before.
    """
    if user_id is not None and UNSTORABLE.search(user_id):
        return []
    query = select(Position).order_by(col(Position.opened_at), col(Position.trade_id))
    if strategies is not None:
        query = query.where(col(Position.strategy_name).in_(sorted(strategies)))
    if manager is not None:
        query = query.where(Position.manager == manager)
    if user_id is not None:
        query = query.where(Position.user_id == user_id)
    if symbols is not None:
        query = query.where(col(Position.symbol).in_(symbols))
    if open_only:
        query = query.where(_IS_OPEN)
    if after is not None:
        moment, trade_id = after
        opened_at, of_same_time = col(Position.opened_at), col(Position.trade_id) > trade_id
        query = query.where((opened_at > moment) | ((opened_at == moment) & of_same_time))
    return session.exec(query.limit(limit)).all()


def open_symbols(
    session: Session, strategy_name: str, manager: str, symbols: Sequence[str] | None = None
) -> Sequence[str]:
    """Return the symbols of the open positions that the version manages, of *symbols* if they are given."""
    query = select(Position.symbol).where(*_managed(strategy_name, manager)).distinct().order_by(Position.symbol)
    if symbols is not None:
        query = query.where(col(Position.symbol).in_(symbols))
    return session.exec(query).all()


def lock_open(
    session: Session,
    strategy_name: str,
    *,
    manager: str | None = None,
    symbols: Sequence[str] | None = None,
    not_flat_by: datetime | None = None,
    trade_ids: Sequence[str] | None = None,
    after: str = "",
    limit: int | None = None,
) -> Sequence[tuple[str, float | None, datetime | None]]:
    """Lock open positions by trade id, and return the trade id, the size and the time missing since of each.

    Every writer takes positions in this order, so that no two wait for each other. On PostgreSQL it waits for a report
    of one of them for LOCK_WAIT at most: it may hold the lock of the strategy, for which a rollback would wait.

    Args:
        not_flat_by: leave out those that are to be closed by then.
        after: only trade ids after this one.
        limit: fewer are returned only if there are no more.
    """
    if session.get_bind().dialect.name == "postgresql":
        session.connection().execute(sa.text(f"SET LOCAL lock_timeout = '{LOCK_WAIT}'"))
    query = (
        sa.select(col(Position.trade_id), col(Position.size), col(Position.missing_since))
        .where(*_chosen(strategy_name, manager, symbols, not_flat_by), col(Position.trade_id) > after)
        .order_by(col(Position.trade_id))
        .limit(limit)
        .with_for_update(key_share=True)
    )
    if trade_ids is not None:
        query = query.where(col(Position.trade_id).in_(trade_ids))
    return [(name, size, missing) for name, size, missing in session.connection().execute(query)]


def count_open(
    session: Session,
    strategy_name: str,
    *,
    manager: str | None = None,
    symbols: Sequence[str] | None = None,
    not_flat_by: datetime | None = None,
) -> int:
    """Return how many positions `lock_open` would find."""
    query = select(sa.func.count()).where(*_chosen(strategy_name, manager, symbols, not_flat_by))
    return session.exec(query).one()


def _chosen(
    strategy_name: str, manager: str | None, symbols: Sequence[str] | None, not_flat_by: datetime | None
) -> list[Any]:
    wanted: list[Any] = [Position.strategy_name == strategy_name, _IS_OPEN]
    if manager is not None:
        wanted.append(Position.manager == manager)
    if symbols is not None:
        wanted.append(col(Position.symbol).in_(symbols))
    if not_flat_by is not None:
        flatten_at = col(Position.flatten_at)
        wanted.append(flatten_at.is_(None) | (flatten_at > not_flat_by))
    return wanted


def change_positions(session: Session, trade_ids: Sequence[str], changes: Mapping[str, Any]) -> None:
    """Set the columns *changes* of positions that the transaction has locked."""
    for start in range(0, len(trade_ids), _NAMES_PER_QUERY):
        names = trade_ids[start : start + _NAMES_PER_QUERY]
        session.connection().execute(sa.update(Position).where(col(Position.trade_id).in_(names)).values(**changes))


def resize_positions(session: Session, sizes: Mapping[str, float]) -> None:
    """Set the sizes, by trade id, of positions that the transaction has locked."""
    if sizes:
        session.connection().execute(
            sa.update(Position)
            .where(col(Position.trade_id) == sa.bindparam("trade"))
            .values(size=sa.bindparam("left")),
            [{"trade": name, "left": size} for name, size in sizes.items()],
        )


def note_changes(
    session: Session,
    strategy_name: str,
    kind: str,
    changed: Iterable[tuple[str, str, str]],
    *,
    actor: str,
    reason: str,
    now: datetime,
) -> None:
    """Record the change of each position: trade id, before and after."""
    same = {"strategy_name": strategy_name, "at": now, "kind": kind, "actor": actor, "reason": reason}
    rows = [{"trade_id": name, "before": before, "after": after, **same} for name, before, after in changed]
    if rows:
        session.connection().execute(sa.insert(PositionChange), rows)


def find_trades(session: Session, strategy_name: str, trade_ids: Iterable[str]) -> dict[str, Position]:
    """Return the positions of these trades of the strategy, by trade id."""
    wanted = sorted(set(trade_ids))
    found: dict[str, Position] = {}
    for start in range(0, len(wanted), _NAMES_PER_QUERY):
        names = wanted[start : start + _NAMES_PER_QUERY]
        mine = (Position.strategy_name == strategy_name, col(Position.trade_id).in_(names))
        rows = session.exec(select(Position).where(*mine)).all()
        found |= {row.trade_id: row for row in rows}
    return found


def note_snapshot(session: Session, strategy_name: str, taken_at: datetime) -> datetime:
    """Keep when the newest snapshot of the strategy was taken, and return that. Other snapshots wait for this one."""
    insert_if_new(session, PositionSnapshot, [{"strategy_name": strategy_name, "taken_at": taken_at}])
    mine = sa.select(col(PositionSnapshot.taken_at)).where(col(PositionSnapshot.strategy_name) == strategy_name)
    newest: datetime = session.connection().execute(mine.with_for_update()).scalar_one()
    if newest < taken_at:
        session.connection().execute(
            sa.update(PositionSnapshot)
            .where(col(PositionSnapshot.strategy_name) == strategy_name)
            .values(taken_at=taken_at)
        )
    return max(newest, taken_at)


def count_managed_at(session: Session, strategy_name: str, version: str, moment: datetime) -> int:
    """Return how many of the positions that the version manages, or managed until they closed, were open then."""
    closed_at = col(Position.closed_at)
    was_open = (col(Position.opened_at) <= moment, closed_at.is_(None) | (closed_at > moment))
    mine = (Position.strategy_name == strategy_name, Position.manager == version)
    return session.exec(select(sa.func.count()).where(*mine, *was_open)).one()


def opened_by_others(
    session: Session, strategy_name: str, version: str, *, since: datetime, until: datetime, at_most: int
) -> list[tuple[str, str, datetime, datetime | None]]:
    """Return (user, symbol, opened, closed) of positions that other versions opened and that were open in the period.

    *at_most* keeps the newest.
    """
    closed_at = col(Position.closed_at)
    within = (col(Position.opened_at) < until, closed_at.is_(None) | (closed_at > since))
    rows = session.execute(
        sa.select(col(Position.user_id), col(Position.symbol), col(Position.opened_at), closed_at)
        .where(col(Position.strategy_name) == strategy_name, col(Position.opened_by) != version, *within)
        .order_by(col(Position.opened_at).desc())
        .limit(at_most)
    )
    return [(user, symbol, opened, closed) for user, symbol, opened, closed in rows]


def retired_managers(session: Session) -> Sequence[StrategyVersion]:
    """Return the retired versions that manage an open position."""
    managed = (
        select(Position.trade_id)
        .where(
            Position.strategy_name == StrategyVersion.strategy_name,
            Position.manager == StrategyVersion.version,
            _IS_OPEN,
        )
        .exists()
    )
    return session.exec(select(StrategyVersion).where(StrategyVersion.status == "retired", managed)).all()


def positions_to_announce(session: Session, strategy_name: str, now: datetime) -> Sequence[Position]:
    """Return the open positions whose exit has not been announced, oldest first.

    Of one that is to be closed by *now* because of a flatten, only an exit because of that counts.
    """
    announced = select(PositionExit.id).where(PositionExit.trade_id == Position.trade_id)
    flat, flattened = col(Position.flatten_at) <= now, col(PositionExit.flattens)
    return session.exec(
        select(Position)
        .where(Position.strategy_name == strategy_name, _IS_OPEN)
        .where(~announced.exists() | (flat & ~announced.where(flattened).exists()))
        .order_by(col(Position.opened_at), col(Position.trade_id))
    ).all()


def announce_exits(session: Session, strategy_name: str, exits: Sequence[tuple[Exit, str]], now: datetime) -> int:
    """Store exits with their symbols, in this order. Return the number of new ones.

    A position has one, and one more because of a flatten.

    Only one transaction at a time stores some, so that ids follow the commits and a reader misses none.
    """
    if session.get_bind().dialect.name == "postgresql":
        session.connection().execute(sa.text("LOCK TABLE position_exit IN EXCLUSIVE MODE"))
    rows = [
        {
            "trade_id": each.trade_id,
            "strategy_name": strategy_name,
            "symbol": symbol,
            "manager": each.manager,
            "why": each.why.value,
            "flattens": each.why is Why.FLATTEN,
            "candle": each.candle,
            "announced_at": now,
        }
        for each, symbol in exits
    ]
    return insert_if_new(session, PositionExit, rows)


def newest_exit(session: Session) -> int:
    """Return the highest id of an exit, or 0. Exits are kept for good."""
    return session.exec(select(sa.func.max(PositionExit.id))).one() or 0


def find_exits(session: Session, strategies: Iterable[str] | None, *, since: int, limit: int) -> Sequence[PositionExit]:
    """Return the exits after the one with id *since*, in the order in which they were announced."""
    query = select(PositionExit).where(col(PositionExit.id) > since).order_by(col(PositionExit.id))
    if strategies is not None:
        query = query.where(col(PositionExit.strategy_name).in_(sorted(strategies)))
    return session.exec(query.limit(limit)).all()


def _managed(strategy_name: str, version: str) -> tuple[Any, ...]:
    return (Position.strategy_name == strategy_name, Position.manager == version, _IS_OPEN)
