"""Adapt a query for the recent rows of versions, so that both databases use the right index."""

from typing import Any

from sqlalchemy import bindparam, func, inspect, select, union
from sqlalchemy.orm import aliased


def per_dialect(query: Any, rows: Any, *versions: str) -> dict[str, Any]:
    """Return *query* for each dialect. It selects recent *rows* of a strategy's versions.

    In the index the symbol comes before the time. PostgreSQL skips whole partitions. SQLite gets an added condition on
    the symbols, because it would otherwise read the index from its start.

    Args:
        versions: the names of the query's parameters for versions. The one for the strategy is `strategy_name`.
    """
    symbols = union(*(_symbols(rows, version) for version in versions))
    return {"postgresql": query, "sqlite": query.where(rows.symbol.in_(symbols))}


def _symbols(rows: Any, version: str) -> Any:
    """Return the symbols of a version's rows by a loose index scan, one step per symbol."""
    first, after = (aliased(inspect(rows).mapper.class_) for _ in range(2))
    found = (
        select(func.min(first.symbol).label("symbol"))
        .where(first.strategy_name == bindparam("strategy_name"), first.version == bindparam(version))
        .cte(recursive=True)
    )
    following = select(func.min(after.symbol)).where(
        after.strategy_name == bindparam("strategy_name"),
        after.version == bindparam(version),
        after.symbol > found.c.symbol,
    )
    every = found.union_all(select(following.scalar_subquery()).where(found.c.symbol.is_not(None)))
    return select(every.c.symbol).where(every.c.symbol.is_not(None))
