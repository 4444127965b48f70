"""Versions and their registration, as requests and answers have them."""

from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import Field

from strategy_core.api.schemas.shared import (
    OverrideReason,
    Reason,
    Reasoned,
    StrategyName,
    Symbol,
    Told,
    VersionName,
    Wish,
)
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.scoring import ScoringRule


class Registration(Wish):
    """A new version; it is vetted on the feed's candles and then kept, as it is, for ever."""

    strategy_name: StrategyName
    version: VersionName
    config: dict[str, Any] = Field(
        default_factory=dict,
        description="Of the strategy's own parameters; defaults are filled in, and a name that is none is refused.",
        examples=[{"rsi_period": 14}],
    )
    entry_point: str | None = Field(
        default=None,
        max_length=200,
        pattern=r"^[^\x00-\x1f]+$",
        description="A known strategy, or `package.module:Class`; the strategy's name, unless given.",
        examples=["fib_rsi"],
    )
    symbols: list[Symbol] | None = Field(
        default=None, min_length=1, max_length=500, description="All of the feed's, unless given.", examples=[["GOLD"]]
    )
    timeframe: str | None = Field(
        default=None,
        max_length=8,
        pattern=r"^[0-9]+[A-Za-z]+$",
        description="The feed's, unless given.",
        examples=["1h"],
    )
    status: Status = Field(default=Status.SHADOW, description="What it may do from the start.")
    scoring: ScoringRule | None = Field(
        default=None, description="How its decisions become trades; fixed with the strategy's first version."
    )
    salt: str | None = Field(
        default=None, max_length=200, description="Which users see its canaries; fixed with its first version."
    )
    reason: Reason = ""


class Activation(Reasoned):
    override_reason: OverrideReason = ""


class Version(Told):
    id: UUID
    strategy_name: str
    version: str
    status: Status
    entry_point: str
    config: dict[str, Any]
    symbols: list[str]
    timeframe: str
    warmup_bars: int = Field(description="Candles that it needs before its first decision.")
    fingerprint: str = Field(description="sha256 of all that decides what it will say.")
    created_at: datetime
    activated_at: datetime | None
    retired_at: datetime | None
    quarantined_at: datetime | None = Field(description="When it was rolled back, and not been tried again since.")


class VersionDetail(Version):
    fingerprint_parts: dict[str, str]
    registration_report: dict[str, Any] = Field(description="What vetting found: checks, signals exercised, warnings.")
