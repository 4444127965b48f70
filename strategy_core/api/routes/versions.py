"""Versions: registered, listed, activated, retired."""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import Query, Response
from pydantic import Field

from strategy_core.api.dependencies import HEAVY, KEYED, IfMatch, Requested
from strategy_core.api.pagination import moment, next_cursor, read_cursor, text
from strategy_core.api.routes import PREFIX, guarded
from strategy_core.api.schemas import (
    Cursor,
    Limit,
    OverrideReason,
    Page,
    Reason,
    Reasoned,
    RequestModel,
    ResponseModel,
    StrategyName,
    Symbol,
    VersionName,
)
from strategy_core.domain.audit import Command
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.scoring import ScoringRule
from strategy_core.services import queries, versions
from strategy_core.services.versions import register_version
from strategy_core.store.tables import StrategyVersion


class Registration(RequestModel):
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


class VersionResponse(ResponseModel):
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


class VersionDetail(VersionResponse):
    fingerprint_parts: dict[str, str]
    registration_report: dict[str, Any] = Field(description="What vetting found: checks, signals exercised, warnings.")


router = guarded("versions")


@router.post("/versions", status_code=201, dependencies=[KEYED, HEAVY])
def register(ask: Requested, wish: Registration, response: Response) -> VersionDetail:
    """Vet a new version on the feed's candles and keep it, as it is, for ever."""
    actor = ask.changes(wish.strategy_name)
    source = ask.backend.candles(ask.now)
    found = register_version(
        ask.engine,
        Command(actor, ask.now, wish.reason),
        source,
        strategy_name=wish.strategy_name,
        version=wish.version,
        config=wish.config,
        entry_point=wish.entry_point or wish.strategy_name,
        symbols=source.symbols() if wish.symbols is None else wish.symbols,
        timeframe=wish.timeframe or source.timeframe,
        status=wish.status,
        scoring=wish.scoring,
        salt=wish.salt,
        deadline_s=ask.backend.settings.decision_deadline_s,
    )
    response.headers["Location"] = f"{PREFIX}/versions/{found.id}"
    return VersionDetail.model_validate(found)


@router.get("/versions")
def list_versions(
    ask: Requested,
    strategy_name: Annotated[StrategyName | None, Query()] = None,
    status: Annotated[Status | None, Query(description="Only those of this status.")] = None,
    cursor: Annotated[Cursor, Query()] = None,
    limit: Annotated[Limit, Query()] = 50,
) -> Page[VersionResponse]:
    """List versions by strategy, oldest first."""
    after = read_cursor(cursor, text, moment, text)
    found = queries.list_versions(ask.engine, ask.lists(strategy_name), status=status, after=after, limit=limit + 1)
    items, following = next_cursor(found, limit, lambda row: (row.strategy_name, row.created_at, row.version))
    return Page[VersionResponse](items=[VersionResponse.model_validate(row) for row in items], next_cursor=following)


@router.get("/versions/{version_id}")
def show_version(ask: Requested, version_id: UUID, response: Response) -> VersionDetail:
    """Show a version with the report of its registration."""
    found, generation = queries.find_version(ask.engine, version_id)
    ask.reads(found.strategy_name)
    response.headers["ETag"] = f'"{generation}"'
    return VersionDetail.model_validate(found)


@router.post("/versions/{version_id}/activate", dependencies=[KEYED])
def activate(ask: Requested, version_id: UUID, wish: Activation, if_match: IfMatch) -> VersionResponse:
    """Make a version the active one and retire its predecessor, in one step."""
    meant = _meant(ask, version_id)
    found = versions.activate_version(
        ask.engine,
        Command(
            ask.changes(meant.strategy_name),
            ask.now,
            wish.reason,
            override_reason=wish.override_reason,
            if_generation=if_match,
            four_eyes=ask.backend.settings.four_eyes,
        ),
        strategy_name=meant.strategy_name,
        version=meant.version,
    )
    return VersionResponse.model_validate(found)


@router.post("/versions/{version_id}/retire", dependencies=[KEYED])
def retire(ask: Requested, version_id: UUID, wish: Reasoned, if_match: IfMatch) -> VersionResponse:
    """Retire a shadow version, or a canary that no rollout moves; it decides nothing more."""
    meant = _meant(ask, version_id)
    found = versions.retire_version(
        ask.engine,
        Command(ask.changes(meant.strategy_name), ask.now, wish.reason, if_generation=if_match),
        strategy_name=meant.strategy_name,
        version=meant.version,
    )
    return VersionResponse.model_validate(found)


def _meant(ask: Requested, version_id: UUID) -> StrategyVersion:
    """Return the version of that id, whose name never changes."""
    return queries.find_version(ask.engine, version_id)[0]
