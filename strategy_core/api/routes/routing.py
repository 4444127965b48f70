"""Routing: which version a user gets, and the routing table for Routers."""

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Annotated
from weakref import WeakKeyDictionary

from fastapi import Header, Query, Response
from pydantic import Field

from strategy_core.api.dependencies import Requested
from strategy_core.api.routes import guarded_router
from strategy_core.api.schemas import ResponseModel, StrategyName, Symbol, UserId
from strategy_core.domain.routing import Routing, Standing, as_percent
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
        description="Comparison of bucket and share, in percent, or that the symbol or the user is excluded.",
        examples=["bucket 59.88 >= canary percent 5.00"],
    )
    standing: Standing = Field(
        description="What decides: the `bucket`, or an exclusion of the user: `kept` with the active version, or "
        "`always` on the canary."
    )
    exit_only: bool = Field(description="Whether the user may open no new position, because the loss limit was hit.")


class StrategyRouting(ResponseModel):
    """The routing of one strategy."""

    strategy_name: str = Field(description="Name of the strategy.")
    active: str | None = Field(description="The active version. Null if there is none, so that no user can be routed.")
    canary: str | None = Field(description="The canary version.")
    rollout_percent: float = Field(description="The canary's share of users, in percent.")
    salt: str = Field(description="The routing salt.")
    generation: int = Field(description="The strategy's generation.")
    excluded_symbols: list[str] = Field(description="Symbols on which every user gets the active version.")
    kept_users: str | None = Field(
        description="Key in `user_sets` of users that get the active version in any bucket. Null if there are none, as "
        "without a canary, or at 0 %."
    )
    always_users: str | None = Field(
        description="Key in `user_sets` of users that get the canary in any bucket, unless they are kept. Null as "
        "`kept_users`."
    )
    exit_only_users: str | None = Field(
        description="Key in `user_sets` of users that may open no new position of the strategy. Null if there are none."
    )


class Routings(ResponseModel):
    """The routing table."""

    strategies: list[StrategyRouting] = Field(description="All strategies that the token covers, by name.")
    user_sets: dict[str, list[str]] = Field(
        description="Sets of users, each once, by a digest of the users: the same digest stands for the same users."
    )


# An old set with 100,000 users must not stay.
_SETS: WeakKeyDictionary[frozenset[str], tuple[str, bytes]] = WeakKeyDictionary()
_UNROUTED = Routing(active="", canary=None, percent_bp=0, salt="", generation=0)

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
    found = route_user(context.engine, user_id=user_id, strategy_name=reached, now=context.now, symbol=symbol)
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
    users: Annotated[
        str,
        Query(
            max_length=32,
            description="Which of `user_sets` to return: `all`, `none`, or one by its key, without `strategies`.",
        ),
    ] = "all",
) -> Response:
    """Return the routing of all strategies.

    A Router polls this with `If-None-Match` and `users=none`, and asks for sets of users that it does not have.
    """
    strategies = context.lists().names
    found = context.backend.routing.read(context.now)
    reached = {name: found[name] for name in sorted(found if strategies is None else found.keys() & strategies)}
    distinct = {
        id(each): each for one in reached.values() if one for each in (one.kept, one.always, one.exit_only) if each
    }  # by id, because two large sets take milliseconds to compare
    encoded = {place: _encoded(each) for place, each in distinct.items()}
    keys, sets = {place: key for place, (key, _) in encoded.items()}, dict(encoded.values())
    if users not in ("all", "none"):
        return Response(_body([], {users: sets[users]} if users in sets else {}), media_type="application/json")
    rows = [_strategy_routing(name, routing, keys).model_dump_json().encode() for name, routing in reached.items()]
    tag = f'"{sha256(b",".join(rows)).hexdigest()[:32]}"'
    headers = {"ETag": tag, "Vary": "Authorization", "Cache-Control": "private, no-cache"}
    known = {each.strip().removeprefix("W/") for each in (if_none_match or "").split(",")}
    if known & {tag, "*"}:
        return Response(status_code=304, headers=headers)
    return Response(_body(rows, sets if users == "all" else {}), headers=headers, media_type="application/json")


def _body(rows: Sequence[bytes], sets: Mapping[str, bytes]) -> bytes:
    """Return a `Routings` of parts that are JSON already."""
    encoded = [b'"%s":%s' % (key.encode(), users) for key, users in sets.items()]
    return b'{"strategies":[%s],"user_sets":{%s}}' % (b",".join(rows), b",".join(encoded))


def _encoded(users: frozenset[str]) -> tuple[str, bytes]:
    """Return a digest that is the same in every process, and the users as JSON. The routing table keeps each set.

    So many Routers that ask for 100,000 users get what was encoded once.
    """
    known = _SETS.get(users)
    if known is None:
        listed = json.dumps(sorted(users), separators=(",", ":")).encode()
        known = _SETS[users] = sha256(listed).hexdigest()[:32], listed
    return known


def _strategy_routing(strategy_name: str, routing: Routing | None, keys: Mapping[int, str]) -> StrategyRouting:
    """Return a strategy's routing. All fields are empty if it has no active version."""
    routing = routing or _UNROUTED
    return StrategyRouting(
        strategy_name=strategy_name,
        active=routing.active or None,
        canary=routing.canary,
        rollout_percent=as_percent(routing.percent_bp),
        salt=routing.salt,
        generation=routing.generation,
        excluded_symbols=sorted(routing.excluded),
        kept_users=keys.get(id(routing.kept)),
        always_users=keys.get(id(routing.always)),
        exit_only_users=keys.get(id(routing.exit_only)),
    )
