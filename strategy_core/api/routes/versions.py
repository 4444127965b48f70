"""Versions: register, list, activate and retire."""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import Query, Response
from pydantic import Field

from strategy_core.api.dependencies import HEAVY, KEYED, IfMatch, RequestContext, Requested
from strategy_core.api.routes import PREFIX, guarded_router
from strategy_core.api.schemas import (
    Cursor,
    Limit,
    OptionalReason,
    OverrideReason,
    Page,
    Reason,
    RequestModel,
    ResponseModel,
    StrategyName,
    Symbol,
    VersionId,
    VersionName,
    moment,
    next_cursor,
    read_cursor,
    text,
)
from strategy_core.domain.audit import Command
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.scoring import ScoringRule
from strategy_core.isolation.fingerprint import list_model_files
from strategy_core.services import queries, versions
from strategy_core.services.versions import register_version
from strategy_core.store.tables import StrategyVersion


class Registration(RequestModel):
    """Register a version. It cannot be changed later."""

    strategy_name: StrategyName
    version: VersionName
    config: dict[str, Any] = Field(
        default_factory=dict,
        description="Parameters of the strategy. Missing ones get their defaults, and unknown ones are refused.",
        examples=[{"rsi_period": 14}],
    )
    entry_point: str | None = Field(
        default=None,
        max_length=200,
        pattern=r"^[^\x00-\x1f]+$",
        description="The code: a known strategy, or `package.module:Class`. Default: the strategy's name.",
        examples=["fib_rsi"],
    )
    symbols: list[Symbol] | None = Field(
        default=None,
        min_length=1,
        max_length=500,
        description="Symbols to decide on. Default: all symbols of the feed.",
        examples=[["GOLD"]],
    )
    timeframe: str | None = Field(
        default=None,
        max_length=8,
        pattern=r"^[0-9]+[A-Za-z]+$",
        description="Timeframe of the candles. Default: the feed's timeframe.",
        examples=["1h"],
    )
    status: Status = Field(default=Status.SHADOW, description="The version's first status.")
    scoring: ScoringRule | None = Field(
        default=None, description="How decisions become trades. Set once, with the strategy's first version."
    )
    salt: str | None = Field(
        default=None,
        max_length=200,
        description="Routing salt, which decides the users that see canaries. Set once, with the first version. Leave "
        "it out for the default.",
    )
    reason: Reason = ""


class Activation(OptionalReason):
    """Make a version the active one."""

    override_reason: OverrideReason = ""


class Retirement(OptionalReason):
    """Retire a version."""

    close: bool = Field(
        default=False,
        description="Retire the active version too, if it is the last. The strategy is then closed: users get none.",
    )
    orphans_to: str = Field(
        default="",
        max_length=64,
        pattern=r"^([A-Za-z0-9][A-Za-z0-9._+-]{0,63})?$",
        description="What becomes of its open positions, with a reason: the version that takes them over, or "
        "`flatten`. Without it, a version that manages positions is not retired.",
        examples=["2.0.0"],
    )


class VersionResponse(ResponseModel):
    """A registered version."""

    id: UUID = Field(description="Id of the version.")
    strategy_name: str = Field(description="Name of the strategy.")
    version: str = Field(description="Name of the version.")
    status: Status = Field(description="What it is used for now.")
    entry_point: str = Field(description="The code: a known strategy, or `package.module:Class`.")
    config: dict[str, Any] = Field(description="Parameters of the strategy, with defaults filled in.")
    symbols: list[str] = Field(description="Symbols that it decides on.")
    timeframe: str = Field(description="Timeframe of the candles.")
    warmup_bars: int = Field(description="Number of candles that it needs before its first decision.")
    fingerprint: str = Field(description="SHA-256 of everything that determines its decisions.")
    created_at: datetime = Field(description="When it was registered.")
    activated_at: datetime | None = Field(description="When it last became active.")
    retired_at: datetime | None = Field(description="When it was retired.")
    quarantined_at: datetime | None = Field(description="When it was rolled back. Null if it was used again since.")


class ModelFileResponse(ResponseModel):
    """A file that the version declares, as it was at registration."""

    name: str = Field(description="Name of the file, without its folder.")
    fingerprint: str = Field(description="SHA-256 of its content.")


class VersionDetail(VersionResponse):
    """A version with the report of its registration."""

    model_files: list[ModelFileResponse] = Field(description="The files that it declares, in its order.")
    trained_until: datetime | None = Field(
        description="End of the candles that it was fitted to, if it names one. Earlier candles are in its sample."
    )
    fingerprint_parts: dict[str, str] = Field(description="SHA-256 of each part of the fingerprint.")
    registration_report: dict[str, Any] = Field(
        description="Result of the validation: checks, exercised signals and warnings."
    )


router = guarded_router("versions")


@router.post("/versions", status_code=201, dependencies=[KEYED, HEAVY], summary="Register a version")
def register(context: Requested, body: Registration, response: Response) -> VersionDetail:
    """Validate a version on the feed's candles and register it. A registered version is immutable."""
    actor = context.changes(body.strategy_name)
    source = context.backend.candles(context.now)
    found = register_version(
        context.engine,
        Command(actor, context.now, body.reason),
        source,
        strategy_name=body.strategy_name,
        version=body.version,
        config=body.config,
        entry_point=body.entry_point or body.strategy_name,
        symbols=source.symbols() if body.symbols is None else body.symbols,
        timeframe=body.timeframe or source.timeframe,
        status=body.status,
        scoring=body.scoring,
        salt=body.salt,
        deadline_s=context.backend.settings.decision_deadline_s,
    )
    response.headers["Location"] = f"{PREFIX}/versions/{found.id}"
    return _detail(found)


@router.get("/versions", summary="List versions")
def list_versions(
    context: Requested,
    strategy_name: Annotated[StrategyName | None, Query(description="Only this strategy.")] = None,
    status: Annotated[Status | None, Query(description="Only versions with this status.")] = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> Page[VersionResponse]:
    """List versions by strategy, oldest first within a strategy."""
    after = read_cursor(cursor, text, moment, text)
    found = queries.list_versions(
        context.engine, context.lists(strategy_name), status=status, after=after, limit=limit + 1
    )
    items, following = next_cursor(found, limit, lambda row: (row.strategy_name, row.created_at, row.version))
    return Page[VersionResponse](items=[VersionResponse.model_validate(row) for row in items], next_cursor=following)


@router.get("/versions/{version_id}", summary="Show a version")
def show_version(context: Requested, version_id: VersionId, response: Response) -> VersionDetail:
    """Return a version with the report of its registration."""
    found, generation = queries.find_version(context.engine, version_id)
    context.reads(found.strategy_name)
    response.headers["ETag"] = f'"{generation}"'
    return _detail(found)


@router.post("/versions/{version_id}/activate", dependencies=[KEYED], summary="Activate a version")
def activate(context: Requested, version_id: VersionId, body: Activation, if_match: IfMatch) -> VersionResponse:
    """Make a version the active one and retire the previous active version, in one step."""
    target = _find_version(context, version_id)
    found = versions.activate_version(
        context.engine,
        Command(
            context.changes(target.strategy_name),
            context.now,
            body.reason,
            override_reason=body.override_reason,
            if_generation=if_match,
            four_eyes=context.backend.settings.four_eyes,
        ),
        strategy_name=target.strategy_name,
        version=target.version,
    )
    return VersionResponse.model_validate(found)


@router.post("/versions/{version_id}/retire", dependencies=[KEYED], summary="Retire a version")
def retire(context: Requested, version_id: VersionId, body: Retirement, if_match: IfMatch) -> VersionResponse:
    """Retire a shadow version, or a canary without a rollout. A retired version makes no more decisions.

    With `close` the active version can be retired too, if it is the last one. Its users then get no version.
    """
    target = _find_version(context, version_id)
    found = versions.retire_version(
        context.engine,
        Command(context.changes(target.strategy_name), context.now, body.reason, if_generation=if_match),
        strategy_name=target.strategy_name,
        version=target.version,
        close=body.close,
        orphans_to=body.orphans_to,
    )
    return VersionResponse.model_validate(found)


def _detail(found: StrategyVersion) -> VersionDetail:
    files = list_model_files(found.fingerprint_parts)
    return VersionDetail.model_validate(
        found.model_dump() | {"model_files": files, "trained_until": found.trained_until}, from_attributes=True
    )


def _find_version(context: RequestContext, version_id: UUID) -> StrategyVersion:
    """Return the version with this id."""
    return queries.find_version(context.engine, version_id)[0]
