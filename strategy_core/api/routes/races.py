"""Races: many candidates of a strategy against its active version."""

from datetime import datetime
from typing import Annotated, Any, Self
from uuid import UUID

from fastapi import Path, Query
from pydantic import Field

from strategy_core.api.dependencies import KEYED, IfMatch, RequestContext, Requested
from strategy_core.api.routes import guarded_router
from strategy_core.api.routes.rollouts import WithPlan
from strategy_core.api.schemas import (
    OptionalReason,
    OverrideReason,
    Reason,
    RequiredReason,
    ResponseModel,
    StrategyName,
    VersionName,
)
from strategy_core.domain.audit import Command
from strategy_core.services import races
from strategy_core.services.races import MOST_ENTRIES, RaceView

RaceId = Annotated[UUID, Path(description="Id of the race.")]


class StartRace(WithPlan):
    """Start a race."""

    versions: list[VersionName] = Field(
        min_length=1, max_length=MOST_ENTRIES, description="The candidates: two or more versions in shadow."
    )
    start_rollouts: bool = Field(
        default=False, description="Whether the race starts the rollout of a leader. Otherwise an alert asks you to."
    )
    reason: Reason = ""
    override_reason: OverrideReason = ""


class EnterRace(OptionalReason):
    """Enter a version."""

    version: VersionName


class WithdrawFromRace(RequiredReason):
    """Take a version out."""

    version: VersionName


class EntryResponse(ResponseModel):
    """A version in a race."""

    version: str = Field(description="Name of the version.")
    entered_at: datetime = Field(description="When it entered.")
    candles: int = Field(description="Candles that it was asked to decide, on the days that are counted.")
    errors: int = Field(description="Of these, with an error.")
    eliminated_by: str = Field(description="The version with enough evidence against it. Empty: none.")
    withdrawn: str = Field(description="Why it was taken out. Empty: it was not.")
    refused: str = Field(description="Why no rollout of it can start. Empty: nothing is known.")


class StandingRow(ResponseModel):
    """How a version stood against the active one."""

    version: str = Field(description="Name of the version.")
    status: str = Field(description="running, same (as another one), eliminated or withdrawn.")
    slots: int = Field(description="Candles of which both decided and one signalled.")
    days: int = Field(description="UTC days with a slot.")
    mean: float | None = Field(description="R per slot more than the active version. Null: none yet.")
    low: float | None = Field(description="Lower bound of the mean, 95 %, for all versions and days. Null: none.")
    high: float | None = Field(description="Upper bound.")
    z: float = Field(description="The mean in its standard errors, of days.")
    log10_e: float = Field(description="Evidence that it earns more than the active version.")
    by: str = Field(description="The version that eliminated it or decides as it does, or why it was withdrawn.")


class StandingsResponse(ResponseModel):
    """How the versions stood after one UTC day."""

    day: datetime = Field(description="Start of the day.")
    active: str = Field(description="The version that they are set against.")
    rows: list[StandingRow] = Field(description="By version, in the order of their entry.")


class RaceResponse(ResponseModel):
    """A race."""

    id: UUID = Field(description="Id of the race.")
    strategy_name: str = Field(description="Name of the strategy.")
    starts: bool = Field(description="Whether it starts the rollouts of its leaders.")
    tried: int = Field(description="Versions that were ever set against the active one.")
    started_at: datetime = Field(description="When it was started.")
    started_by: str = Field(description="Who started it.")
    first_day: datetime = Field(description="The first UTC day that counts.")
    next_day: datetime = Field(description="The next day to count. It counts once its trades have closed.")
    ruling: str = Field(description="What the race asked for last.")
    rollout_id: UUID | None = Field(description="The rollout that it started last.")
    closed_at: datetime | None = Field(description="When it was closed, or null.")
    closed_by: str = Field(description="Who closed it.")
    entries: list[EntryResponse] = Field(description="In the order of their entry. The first was active at the start.")
    standings: list[StandingsResponse] = Field(description="By day. A listing has the newest day alone.")

    @classmethod
    def of(cls, view: RaceView) -> Self:
        known: dict[str, Any] = view.race.model_dump()
        known |= {"ruling": view.race.ruling.get("reason", "")}
        known["entries"] = [EntryResponse.model_validate(each) for each in view.entries]
        known["standings"] = [StandingsResponse.model_validate(each) for each in view.standings]
        return cls.model_validate(known)


router = guarded_router("races")


@router.get("/races", summary="List races")
def list_races(
    context: Requested,
    strategy_name: Annotated[StrategyName | None, Query(description="Only those of this strategy.")] = None,
    closed: Annotated[bool, Query(description="Also closed ones.")] = False,
) -> list[RaceResponse]:
    """List open races with their newest standings, newest race first."""
    names = context.lists(strategy_name).names
    found = races.list_races(context.engine, strategy_name, strategies=names, open_alone=not closed)
    return [RaceResponse.of(each) for each in found]


@router.get("/races/{race_id}", summary="Show a race")
def show_race(context: Requested, race_id: RaceId) -> RaceResponse:
    """Show a race with its standings of all days."""
    found = races.find_race(context.engine, race_id)
    context.reads(found.race.strategy_name)
    return RaceResponse.of(found)


@router.post("/races", status_code=201, dependencies=[KEYED], summary="Start a race")
def start_race(context: Requested, body: StartRace, if_match: IfMatch) -> RaceResponse:
    """Set versions in shadow against the active version. No user is moved by that."""
    found = races.start_race(
        context.engine,
        Command(
            context.changes(body.strategy_name),
            context.now,
            body.reason,
            override_reason=body.override_reason,
            if_generation=if_match,
        ),
        strategy_name=body.strategy_name,
        candidates=body.versions,
        plan=body.chosen_plan(context.engine),
        starts=body.start_rollouts,
    )
    return RaceResponse.of(found)


@router.post("/races/{race_id}/entries", dependencies=[KEYED], summary="Enter a version")
def enter_race(context: Requested, race_id: RaceId, body: EnterRace, if_match: IfMatch) -> RaceResponse:
    """Enter a version into an open race. Its evidence begins with the next day that is counted."""
    name, command = _command(context, race_id, body.reason, if_match)
    found = races.enter_race(context.engine, command, strategy_name=name, version=body.version, race_id=race_id)
    return RaceResponse.of(found)


@router.post("/races/{race_id}/withdraw", dependencies=[KEYED], summary="Take a version out")
def withdraw_from_race(context: Requested, race_id: RaceId, body: WithdrawFromRace, if_match: IfMatch) -> RaceResponse:
    """Take a version out of an open race, for good. A rollout of it goes on."""
    name, command = _command(context, race_id, body.reason, if_match)
    found = races.withdraw_from_race(context.engine, command, strategy_name=name, version=body.version, race_id=race_id)
    return RaceResponse.of(found)


@router.post("/races/{race_id}/close", dependencies=[KEYED], summary="Close a race")
def close_race(context: Requested, race_id: RaceId, body: OptionalReason, if_match: IfMatch) -> RaceResponse:
    """Close a race. A rollout that it has started goes on."""
    name, command = _command(context, race_id, body.reason, if_match)
    return RaceResponse.of(races.close_race(context.engine, command, strategy_name=name, race_id=race_id))


def _command(context: RequestContext, race_id: UUID, reason: str, if_match: int | None) -> tuple[str, Command]:
    strategy_name = races.find_race(context.engine, race_id).race.strategy_name
    return strategy_name, Command(context.changes(strategy_name), context.now, reason, if_generation=if_match)
