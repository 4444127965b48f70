"""Toggles: set and list the rules of a strategy, resolve them for a user, and the table for Routers."""

from collections.abc import Mapping
from hashlib import sha256
from typing import Annotated, Any

from fastapi import Header, Path, Query, Response
from pydantic import Field

from strategy_core.api.dependencies import KEYED, IfMatch, Requested
from strategy_core.api.routes import guarded_router
from strategy_core.api.schemas import OptionalReason, ResponseModel, StrategyName, Symbol, UserId
from strategy_core.domain.audit import Command
from strategy_core.domain.toggles import MOST_RULES, AllToggles, Rule, ToggleName
from strategy_core.services import toggles

_Toggle = Annotated[ToggleName, Path(description="Name of the toggle.", examples=["risk_scale"])]
_Strategy = Annotated[StrategyName, Path(description="Name of the strategy.")]
_Value = bool | int | float | str


class RulesRequest(OptionalReason):
    """The rules of a toggle, which replace all that it has."""

    rules: list[Rule] = Field(
        max_length=MOST_RULES, description="In order: the first that concerns a user decides. Empty: no rule."
    )


class ToggleResponse(ResponseModel):
    """A toggle of a strategy: what versions declare, and the rules in force."""

    strategy_name: str = Field(description="Name of the strategy.")
    name: str = Field(description="Name of the toggle.")
    declared: dict[str, dict[str, Any]] = Field(
        description="The values that a version allows, as JSON Schema with its default, by version. Retired versions "
        "are left out."
    )
    rules: list[Rule] = Field(description="In order: the first that concerns a user decides.")


class TogglesResponse(ResponseModel):
    """The toggles of a strategy."""

    strategy_name: str = Field(description="Name of the strategy.")
    toggles: list[ToggleResponse] = Field(description="By name.")


class ResolvedResponse(ResponseModel):
    """The value of a toggle for one user, and why."""

    value: _Value = Field(description="The value.")
    why: str = Field(
        description="The rule that decided, with its conditions and the user's bucket, or that it is the default.",
        examples=["rule 2: segment new, 10 % of users, bucket 3.20 < 10.00"],
    )
    rule: int | None = Field(description="Number of that rule, from 1. Null: no rule concerns the user.")
    split: bool = Field(description="Whether that rule has a percentage.")


class UserTogglesResponse(ResponseModel):
    """The toggles of the version that a user gets."""

    user_id: str = Field(description="The platform's id of the user.")
    strategy_name: str = Field(description="Name of the strategy.")
    version: str = Field(description="The version that the user gets. It declares these toggles.")
    toggles: dict[str, ResolvedResponse] = Field(description="By name.")


class ToggleTable(ResponseModel):
    """All that a Router needs to resolve toggles."""

    declared: dict[str, dict[str, dict[str, dict[str, Any]]]] = Field(
        description="Toggles as JSON Schema, by strategy, version and name."
    )
    rules: dict[str, dict[str, list[dict[str, Any]]]] = Field(description="Rules by strategy and toggle, in order.")
    segments: dict[str, list[str]] = Field(description="Users by segment, of segments that a rule names.")
    capital: dict[str, float] = Field(description="Capital by user, if a rule asks for it.")


router = guarded_router("toggles")


@router.get(
    "/toggles",
    response_model=ToggleTable,
    responses={304: {"description": "The toggles have not changed."}},
    summary="Return the table of toggles for Routers",
)
def read_toggles(
    context: Requested,
    if_none_match: Annotated[
        str | None,
        Header(alias="If-None-Match", max_length=1_000, description="The `ETag` of your last answer."),
    ] = None,
) -> Response:
    """Return what resolves the toggles of all strategies. A Router polls this with `If-None-Match`.

    It may be large: it holds the members of segments, and the capital of all users if a rule asks for it.
    """
    names = context.lists().names
    seen = f"{toggles.toggles_revision(context.engine)} {sorted(names) if names is not None else '*'}"
    tag = f'"{sha256(seen.encode()).hexdigest()[:32]}"'
    headers = {"ETag": tag, "Vary": "Authorization", "Cache-Control": "private, no-cache"}
    if {each.strip().removeprefix("W/") for each in (if_none_match or "").split(",")} & {tag, "*"}:
        return Response(status_code=304, headers=headers)
    body = _table(toggles.read_toggles(context.engine, names)).model_dump_json()
    return Response(body, headers=headers, media_type="application/json")


@router.get("/toggles/{strategy_name}", summary="List the toggles of a strategy")
def list_toggles(context: Requested, strategy_name: _Strategy, response: Response) -> TogglesResponse:
    """List the toggles that a version declares which may serve users, or that have rules, with their rules."""
    found = toggles.list_toggles(context.engine, context.reads(strategy_name))
    response.headers["ETag"] = f'"{found.generation}"'
    return TogglesResponse(strategy_name=strategy_name, toggles=[_toggle(each) for each in found.toggles])


@router.get("/toggles/{strategy_name}/resolve", summary="Show the toggles of a user")
def resolve_toggles(
    context: Requested,
    strategy_name: _Strategy,
    user_id: Annotated[UserId, Query(description="The platform's id of the user.")],
    symbol: Annotated[
        Symbol | None,
        Query(description="Symbol of the trade, since an owner may have excluded it from the canary."),
    ] = None,
) -> UserTogglesResponse:
    """Return the toggles of the version that a user gets now, each with the rule and the bucket that decided."""
    found = toggles.resolve_toggles(
        context.engine, user_id=user_id, strategy_name=context.reads(strategy_name), now=context.now, symbol=symbol
    )
    return UserTogglesResponse.model_validate(found)


@router.put("/toggles/{strategy_name}/{name}", dependencies=[KEYED], summary="Set the rules of a toggle")
def set_toggle(
    context: Requested, strategy_name: _Strategy, name: _Toggle, body: RulesRequest, if_match: IfMatch
) -> ToggleResponse:
    """Replace the rules of a toggle. An empty list removes them all. No version and no decision changes.

    The same rules again change nothing.
    """
    command = Command(context.changes(strategy_name), context.now, body.reason, if_generation=if_match)
    found = toggles.set_rules(context.engine, command, strategy_name=strategy_name, name=name, rules=body.rules)
    return _toggle(found)


def _toggle(found: toggles.ToggleState) -> ToggleResponse:
    return ToggleResponse(
        strategy_name=found.strategy_name,
        name=found.name,
        declared={version: toggle.schema() for version, toggle in found.declared.items()},
        rules=list(found.rules),
    )


def _table(found: AllToggles) -> ToggleTable:
    segments: dict[str, list[str]] = {}
    for user_id, names in found.segments.items():
        for name in names:
            segments.setdefault(name, []).append(user_id)
    return ToggleTable(
        declared={
            strategy_name: {
                version: {name: toggle.schema() for name, toggle in declared.items()}
                for version, declared in versions.items()
            }
            for strategy_name, versions in found.declared.items()
        },
        rules={
            strategy_name: {name: [_stored(rule) for rule in rules] for name, rules in of.items()}
            for strategy_name, of in found.rules.items()
        },
        segments=segments,
        capital=dict(found.capital),
    )


def _stored(rule: Rule) -> Mapping[str, Any]:
    return {"when": rule.stored(), "value": rule.value}
