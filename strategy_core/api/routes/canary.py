"""The canary: which it is, and its share of users set by hand."""

from typing import Annotated

from fastapi import Query, Response

from strategy_core.api.deps import Asking, IfMatch
from strategy_core.api.routes import guarded
from strategy_core.api.schemas.canary import Canaries, Canary, Share, StandingCanary
from strategy_core.api.schemas.shared import StrategyName
from strategy_core.services import browse
from strategy_core.services.canary import set_share

router = guarded("canary")


@router.patch("/rollout")
def set_rollout_percent(ask: Asking, wish: Share, if_match: IfMatch) -> Canary:
    """Make a version the canary of a share of users by hand, or set the share of the canary that it is."""
    found = set_share(
        ask.engine,
        strategy_name=wish.strategy_name,
        version=wish.version,
        percent=wish.rollout_percent,
        actor=ask.changes(wish.strategy_name),
        now=ask.now,
        reason=wish.reason,
        override_reason=wish.override_reason,
        if_generation=if_match,
        four_eyes=ask.backend.settings.four_eyes,
    )
    return Canary.model_validate(found)


@router.get("/canary")
def list_canaries(
    ask: Asking, response: Response, strategy_name: Annotated[StrategyName | None, Query()] = None
) -> Canaries:
    """List the canaries of now; of a strategy that is named, its canary."""
    found = browse.list_canaries(ask.engine, ask.lists(strategy_name))
    items = [
        StandingCanary(**Canary.model_validate(canary).model_dump(), generation=generation)
        for canary, generation in found
    ]
    if strategy_name is not None:
        response.headers["ETag"] = f'"{items[0].generation}"'
    return Canaries(items=items)
