"""Which version a user gets, and what every Router obeys."""

from hashlib import sha256
from typing import Annotated

from fastapi import Header, Query, Response

from strategy_core.api.dependencies import Requested
from strategy_core.api.routes import guarded
from strategy_core.api.routes.canary import RouteResponse, Routings, StrategyRouting
from strategy_core.api.schemas import StrategyName, UserId
from strategy_core.domain.routing import Routing, as_percent
from strategy_core.services import queries
from strategy_core.services.queries import route_user

router = guarded("routing")


@router.get("/route")
def route(
    ask: Requested,
    user_id: Annotated[UserId, Query()],
    strategy_name: Annotated[StrategyName, Query()],
    response: Response,
) -> RouteResponse:
    """Say which version a user gets now, and why."""
    found = route_user(ask.engine, user_id=user_id, strategy_name=ask.reads(strategy_name))
    response.headers["ETag"] = f'"{found.generation}"'
    return RouteResponse.model_validate(found)


@router.get("/routing", response_model=Routings, responses={304: {"description": "Nothing has changed since."}})
def read_routing(
    ask: Requested,
    if_none_match: Annotated[
        str | None,
        Header(alias="If-None-Match", max_length=1_000, description="The `ETag` of the routing that is known."),
    ] = None,
) -> Response:
    """Return all that the routing of every strategy obeys: what a Router keeps, and asks for again."""
    strategies = ask.lists().names
    found = queries.read_routing(ask.engine)
    reached = sorted(found if strategies is None else found.keys() & strategies)
    told = Routings(strategies=[_told(name, found[name]) for name in reached])
    body = told.model_dump_json()
    tag = f'"{sha256(body.encode()).hexdigest()[:32]}"'
    headers = {"ETag": tag, "Vary": "Authorization", "Cache-Control": "private, no-cache"}
    known = {each.strip().removeprefix("W/") for each in (if_none_match or "").split(",")}
    if known & {tag, "*"}:
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type="application/json")


def _told(strategy_name: str, routing: Routing | None) -> StrategyRouting:
    """Return a strategy's routing; without an active version nobody can be routed, and nothing else is told."""
    routing = routing or Routing(active="", canary=None, percent_bp=0, salt="", generation=0)
    return StrategyRouting(
        strategy_name=strategy_name,
        active=routing.active or None,
        canary=routing.canary,
        rollout_percent=as_percent(routing.percent_bp),
        salt=routing.salt,
        generation=routing.generation,
    )
