"""Routing: which version a user gets, and the routing table for Routers."""

from hashlib import sha256
from typing import Annotated

from fastapi import Header, Query, Response
from pydantic import Field

from strategy_core.api.dependencies import Requested
from strategy_core.api.routes import guarded_router
from strategy_core.api.schemas import ResponseModel, StrategyName, Symbol, UserId
from strategy_core.domain.routing import Routing, as_percent
from strategy_core.services import queries
from strategy_core.services.queries import route_user


class RouteResponse(ResponseModel):
    """The version that a user gets, and why."""

    user_id: str = Field(description="The platform's id of the user.")
    strategy_name: str = Field(description="Name of the strategy.")
    version: str = Field(description="The version that the user gets.")
    bucket: int = Field(ge=0, le=9_999, description="The user's bucket, in basis points: 0 to 9999.")
    percent: float = Field(description="The canary's share of users, in percent.")
    in_canary: bool = Field(description="Whether the version is the canary.")
    generation: int = Field(description="The strategy's generation.")
    why: str = Field(
        description="Comparison of bucket and share, in percent, or that the symbol is excluded.",
        examples=["bucket 59.88 >= canary percent 5.00"],
    )


class StrategyRouting(ResponseModel):
    """The routing of one strategy."""

    strategy_name: str = Field(description="Name of the strategy.")
    active: str | None = Field(description="The active version. Null if there is none, so that no user can be routed.")
    canary: str | None = Field(description="The canary version.")
    rollout_percent: float = Field(description="The canary's share of users, in percent.")
    salt: str = Field(description="The routing salt.")
    generation: int = Field(description="The strategy's generation.")
    excluded_symbols: list[str] = Field(description="Symbols on which every user gets the active version.")


class Routings(ResponseModel):
    """The routing table."""

    strategies: list[StrategyRouting] = Field(description="All strategies that the token covers, by name.")


router = guarded_router("routing")


@router.get("/route", summary="Show which version a user gets")
def route(
    context: Requested,
    user_id: Annotated[UserId, Query(description="The platform's id of the user.")],
    strategy_name: Annotated[StrategyName, Query(description="Name of the strategy.")],
    response: Response,
    symbol: Annotated[
        Symbol | None,
        Query(description="Symbol of the trade, since an owner may have excluded it from the canary."),
    ] = None,
) -> RouteResponse:
    """Return the version that a user gets now, and why."""
    reached = context.reads(strategy_name)
    found = route_user(context.engine, user_id=user_id, strategy_name=reached, symbol=symbol)
    response.headers["ETag"] = f'"{found.generation}"'
    return RouteResponse.model_validate(found)


@router.get(
    "/routing",
    response_model=Routings,
    responses={304: {"description": "The routing has not changed."}},
    summary="Return the routing table for Routers",
)
def read_routing(
    context: Requested,
    if_none_match: Annotated[
        str | None,
        Header(alias="If-None-Match", max_length=1_000, description="The `ETag` of your last answer."),
    ] = None,
) -> Response:
    """Return the routing of all strategies. A Router polls this with `If-None-Match`."""
    strategies = context.lists().names
    found = queries.read_routing(context.engine)
    reached = sorted(found if strategies is None else found.keys() & strategies)
    body = Routings(strategies=[_strategy_routing(name, found[name]) for name in reached]).model_dump_json()
    tag = f'"{sha256(body.encode()).hexdigest()[:32]}"'
    headers = {"ETag": tag, "Vary": "Authorization", "Cache-Control": "private, no-cache"}
    known = {each.strip().removeprefix("W/") for each in (if_none_match or "").split(",")}
    if known & {tag, "*"}:
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type="application/json")


def _strategy_routing(strategy_name: str, routing: Routing | None) -> StrategyRouting:
    """Return a strategy's routing. All fields are empty if it has no active version."""
    routing = routing or Routing(active="", canary=None, percent_bp=0, salt="", generation=0)
    return StrategyRouting(
        strategy_name=strategy_name,
        active=routing.active or None,
        canary=routing.canary,
        rollout_percent=as_percent(routing.percent_bp),
        salt=routing.salt,
        generation=routing.generation,
        excluded_symbols=sorted(routing.excluded),
    )
