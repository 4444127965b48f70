"""Dialects of one kind compare equal, so that a statement compiled for one engine serves the next."""

from typing import Any

from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite


def share() -> None:
    """Let the caches of compiled statements, whose keys begin with the dialect, outlive an engine."""
    for kind in (SQLiteDialect_pysqlite, PGDialect_psycopg):
        setattr(kind, "__eq__", _same_kind)  # noqa: B010
        setattr(kind, "__hash__", _of_kind)  # noqa: B010


def _same_kind(one: Any, other: Any) -> bool:
    return type(one) is type(other)


def _of_kind(dialect: Any) -> int:
    return hash(type(dialect))
