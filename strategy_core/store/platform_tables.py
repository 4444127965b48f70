"""The tables of what the platform tells us: its users, and what their orders came to."""

from datetime import datetime

from sqlalchemy import BigInteger, CheckConstraint, Column, ForeignKeyConstraint, Index, Text, UniqueConstraint, text
from sqlmodel import Field, SQLModel

from strategy_core.store.tables import _time


class PlatformUser(SQLModel, table=True):
    """One user of the platform, as its directory has had him since *loaded_at*."""

    __tablename__ = "platform_user"
    __table_args__ = (CheckConstraint("capital >= 0", name="ck_capital"),)
    user_id: str = Field(primary_key=True)
    capital: float | None = None  # in the platform's own unit of account
    loaded_at: datetime = Field(sa_column=_time())


class LiveTrade(SQLModel, table=True):
    """What the broker reports of one user's trade, under the platform's own trade id. Evidence: insert-only.

    A trade has up to two rows: `open`, then `closed`; an order that failed has one.
    """

    __tablename__ = "live_trade"
    __table_args__ = (
        UniqueConstraint("trade_id", "state", name="uq_live_trade"),
        ForeignKeyConstraint(
            ["strategy_name", "version"],
            ["strategy_version.strategy_name", "strategy_version.version"],
            name="fk_live_trade_version",
        ),
        CheckConstraint("state IN ('open', 'closed', 'failed')", name="ck_live_state"),
        CheckConstraint("(state = 'closed') = (closed_at IS NOT NULL AND pnl IS NOT NULL)", name="ck_live_closed"),
        CheckConstraint("(state = 'failed') = (error <> '')", name="ck_live_failed"),
        CheckConstraint("risk > 0", name="ck_live_risk"),
        CheckConstraint("state <> 'closed' OR risk IS NOT NULL", name="ck_live_r"),
        CheckConstraint("latency_ms >= 0", name="ck_live_latency"),
        Index("ix_live_trade", "strategy_name", "opened_at"),
        Index(
            "ix_live_misrouted",
            "strategy_name",
            "opened_at",
            sqlite_where=text("misrouted = 1"),
            postgresql_where=text("misrouted"),
        ),
    )
    id: int | None = Field(default=None, primary_key=True)  # rises in the order of arrival
    trade_id: str
    state: str
    user_id: str
    strategy_name: str
    version: str
    symbol: str
    opened_at: datetime = Field(sa_column=_time())  # of an order that failed: when it was tried
    candle_s: int = Field(sa_type=BigInteger)  # its open, in seconds since 1970; of one longer than an hour, the hour
    closed_at: datetime | None = Field(default=None, sa_column=_time(nullable=True))
    pnl: float | None = None  # in price units, as outcomes have it; any other will do for R, which is pnl / risk
    risk: float | None = None  # distance from entry to stop, in the same unit
    error: str = Field(default="", sa_column=Column(Text, nullable=False))
    latency_ms: float | None = None  # from the signal to the fill
    canary_bp: int  # share of users that routing sent to the canary when it was opened
    misrouted: bool  # its version is not what routing gave this user then
    ingested_at: datetime = Field(sa_column=_time())
