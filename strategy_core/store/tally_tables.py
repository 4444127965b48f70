"""The tables of counts that are kept as rows are written, so that a scrape never has to count a log; never evidence.

They follow from the rows that were ever written: what is deleted from a log later stays counted.
"""

from enum import StrEnum

from sqlalchemy import BigInteger
from sqlmodel import Field, SQLModel


class DecisionTally(SQLModel, table=True):
    """What one version has said on one symbol, ever, and the newest candle that it was asked about."""

    __tablename__ = "decision_tally"
    strategy_name: str = Field(primary_key=True)
    version: str = Field(primary_key=True)
    symbol: str = Field(primary_key=True)
    buy: int = Field(sa_type=BigInteger)
    sell: int = Field(sa_type=BigInteger)
    hold: int = Field(sa_type=BigInteger)
    error: int = Field(sa_type=BigInteger)
    newest_candle_s: int = Field(sa_type=BigInteger)  # its open, in seconds since 1970


class Counted(StrEnum):
    """What rows of `tally` count, each with what its `name` and `detail` are."""

    ACTIVATION = "activation"  # version
    ERROR = "error"  # version, kind of error
    ROLLBACK = "rollback"  # cause
    VERDICT = "verdict"  # gate, verdict


class Tally(SQLModel, table=True):
    """How often something has happened to a strategy, ever.

    Each row is one strategy's alone: a change of one strategy must never wait for that of another.
    """

    strategy_name: str = Field(primary_key=True)
    what: str = Field(primary_key=True)
    name: str = Field(primary_key=True)
    detail: str = Field(primary_key=True)
    total: int = Field(sa_type=BigInteger)


class DirectoryTally(SQLModel, table=True):
    """How many of the directory's users lie below each bucket under a salt; there is none before one is loaded."""

    __tablename__ = "directory_tally"
    salt: str = Field(primary_key=True)
    users: int
    below: bytes  # 10,001 big-endian numbers of four bytes: users below bucket 0, 1, … 10,000
