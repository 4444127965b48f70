"""Versions: registered, listed, activated, retired."""

from typing import Annotated
from uuid import UUID

from fastapi import Query, Response

from strategy_core.api.deps import HEAVY, KEYED, Asking, IfMatch
from strategy_core.api.pages import moment, next_cursor, read_cursor, text
from strategy_core.api.routes import PREFIX, guarded
from strategy_core.api.schemas.shared import Cursor, Limit, Page, Reasoned, StrategyName
from strategy_core.api.schemas.versions import Activation, Registration, Version, VersionDetail
from strategy_core.domain.lifecycle import Status
from strategy_core.services import browse, promote
from strategy_core.services.register import register_version
from strategy_core.store.tables import StrategyVersion

router = guarded("versions")


@router.post("/versions", status_code=201, dependencies=[KEYED, HEAVY])
def register(ask: Asking, wish: Registration, response: Response) -> VersionDetail:
    """Vet a new version on the feed's candles and keep it, as it is, for ever."""
    actor = ask.changes(wish.strategy_name)
    source = ask.backend.candles(ask.now)
    found = register_version(
        ask.engine,
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
        actor=actor,
        now=ask.now,
        reason=wish.reason,
        deadline_s=ask.backend.settings.decision_deadline_s,
    )
    response.headers["Location"] = f"{PREFIX}/versions/{found.id}"
    return VersionDetail.model_validate(found)


@router.get("/versions")
def list_versions(
    ask: Asking,
    strategy_name: Annotated[StrategyName | None, Query()] = None,
    status: Annotated[Status | None, Query(description="Only those of this status.")] = None,
    cursor: Annotated[Cursor, Query()] = None,
    limit: Annotated[Limit, Query()] = 50,
) -> Page[Version]:
    """List versions by strategy, oldest first."""
    after = read_cursor(cursor, text, moment, text)
    found = browse.list_versions(ask.engine, ask.lists(strategy_name), status=status, after=after, limit=limit + 1)
    items, following = next_cursor(found, limit, lambda row: (row.strategy_name, row.created_at, row.version))
    return Page[Version](items=[Version.model_validate(row) for row in items], next_cursor=following)


@router.get("/versions/{version_id}")
def show_version(ask: Asking, version_id: UUID, response: Response) -> VersionDetail:
    """Show a version with the report of its registration."""
    found, generation = browse.find_version(ask.engine, version_id)
    ask.reads(found.strategy_name)
    response.headers["ETag"] = f'"{generation}"'
    return VersionDetail.model_validate(found)


@router.post("/versions/{version_id}/activate", dependencies=[KEYED])
def activate(ask: Asking, version_id: UUID, wish: Activation, if_match: IfMatch) -> Version:
    """Make a version the active one and retire its predecessor, in one step."""
    meant = _meant(ask, version_id)
    found = promote.activate_version(
        ask.engine,
        strategy_name=meant.strategy_name,
        version=meant.version,
        actor=ask.changes(meant.strategy_name),
        now=ask.now,
        reason=wish.reason,
        override_reason=wish.override_reason,
        if_generation=if_match,
        four_eyes=ask.backend.settings.four_eyes,
    )
    return Version.model_validate(found)


@router.post("/versions/{version_id}/retire", dependencies=[KEYED])
def retire(ask: Asking, version_id: UUID, wish: Reasoned, if_match: IfMatch) -> Version:
    """Retire a shadow version, or a canary that no rollout moves; it decides nothing more."""
    meant = _meant(ask, version_id)
    found = promote.retire_version(
        ask.engine,
        strategy_name=meant.strategy_name,
        version=meant.version,
        actor=ask.changes(meant.strategy_name),
        now=ask.now,
        reason=wish.reason,
        if_generation=if_match,
    )
    return Version.model_validate(found)


def _meant(ask: Asking, version_id: UUID) -> StrategyVersion:
    """Return the version of that id, whose name never changes."""
    return browse.find_version(ask.engine, version_id)[0]
