"""Column types that both databases share; never a rule of the domain."""

from datetime import UTC, datetime

from sqlalchemy import JSON, DateTime, Dialect
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import DontWrapMixin
from sqlalchemy.types import TypeDecorator

from strategy_core.domain.errors import NaiveTime

JsonColumn = JSON().with_variant(JSONB(), "postgresql")


class _NaiveWrite(NaiveTime, DontWrapMixin):
    """Reaches the caller as it is: SQLAlchemy would wrap it into an error about SQL."""


class UtcDateTime(TypeDecorator[datetime]):
    """A moment in UTC: refuses naive writes, and restores the zone that SQLite drops."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise _NaiveWrite(f"a time to be stored ({value.isoformat()})")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
