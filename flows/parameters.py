"""Parameter types of the flows: titles, bounds and choices for Prefect's forms and API.

Services check all values again. Where the domain has an error message for a bad value (a percent of 150), the bound is
only in the schema, so that a value that passes the form fails with that message. An empty field is an empty text.
"""

from collections.abc import Mapping
from datetime import date
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, SkipValidation, WithJsonSchema, create_model
from sqlalchemy import Engine

from strategy_core.domain import lifecycle
from strategy_core.domain.candles import TIMEFRAMES
from strategy_core.domain.plan import Plan, read_plan
from strategy_core.domain.user_exclusions import ExclusionKind
from strategy_core.services import rollouts


def _titled(title: str) -> Any:
    """Set the title of a form field. Without it Prefect shows the parameter name."""
    return Field(json_schema_extra={"title": title})


def _one_of(*choices: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "enum": list(map(str, choices))})


_Name = Annotated[str, Field(min_length=1, max_length=64)]
Strategy = Annotated[_Name, _titled("Strategy")]
AnyStrategyOrAll = Annotated[str, Field(min_length=1, max_length=64), _titled("Strategy, or * for all")]
Version = Annotated[_Name, _titled("Version")]
AnyVersion = Annotated[str, Field(max_length=64, pattern=r"^$|\S"), _titled("Version")]  # empty: not given
Owner = Annotated[str, Field(min_length=1, max_length=64, pattern=r"\S"), _titled("Owner")]
Reason = Annotated[str, Field(min_length=1, pattern=r"\S"), _titled("Reason")]
Remark = Annotated[str, _titled("Reason")]
OverrideReason = Annotated[  # empty: not given. A blank text must not lift a quarantine.
    str, Field(pattern=r"^$|\S"), _titled("Override reason")
]
Percent = Annotated[float, WithJsonSchema({"type": "number", "minimum": 0, "maximum": 100}), _titled("Percent")]
Days = Annotated[float, Field(gt=0, le=3660), _titled("Days")]
Start = Annotated[str, Field(max_length=40), _titled("Start")]  # empty: the default
End = Annotated[str, Field(max_length=40), _titled("End")]
Span = Annotated[str, Field(min_length=1, max_length=20), _titled("After")]
Candles = Annotated[int, Field(ge=1, le=100_000), _titled("Candles")]
Symbols = Annotated[list[Annotated[_Name, _titled("Symbol")]], Field(min_length=1), _titled("Symbols")]
Candidates = Annotated[list[Annotated[_Name, _titled("Version")]], Field(min_length=2), _titled("Candidates")]
StartRollouts = Annotated[bool, _titled("Start rollouts")]
Symbol = Annotated[_Name, _titled("Symbol")]
AnySymbol = Annotated[str, Field(max_length=64), _titled("Symbol")]  # empty: all symbols
Config = Annotated[dict[str, Any], _titled("Config")]
EntryPoint = Annotated[str, Field(max_length=256), _titled("Entry point")]
Salt = Annotated[str, Field(max_length=64), _titled("Salt")]
Timeframe = Annotated[str, _one_of(*TIMEFRAMES), _titled("Timeframe")]
OrphansTo = Annotated[str, Field(max_length=64, pattern=r"^$|\S"), _titled("Open positions to")]  # empty: not given
Close = Annotated[bool, _titled("Close the strategy")]
Until = Annotated[date, _titled("Until")]
Seed = Annotated[int, Field(ge=0, le=2**31), _titled("Seed")]
Again = Annotated[bool, _titled("Decide again")]
Users = Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(min_length=1), _titled("Users")]
Kind = Annotated[ExclusionKind, _one_of(*ExclusionKind), _titled("Kind")]
Toggle = Annotated[_Name, _titled("Toggle")]
ToggleValue = Annotated[str, Field(min_length=1, max_length=64), _titled("Value")]
AnySegment = Annotated[str, Field(max_length=64), _titled("Segment")]  # empty: all users
FreezeNumber = Annotated[int, Field(ge=1), _titled("Freeze")]
Alerts = Annotated[list[Annotated[int, Field(ge=1), _titled("Alert")]], Field(min_length=1), _titled("Alerts")]


Choice = Annotated[rollouts.Choice, _one_of(*rollouts.Choice), _titled("Choice")]
Status = Annotated[lifecycle.Status, _one_of(*lifecycle.Status), _titled("Status")]
DEFAULT: Literal["usual"] = "usual"
if TYPE_CHECKING:
    AnyPlan = Literal["usual"] | str | Plan | Mapping[str, Any]
else:
    # Gates are JSON: a form would mix the fields of different gates in one list.
    _PlanForm = create_model(
        "PlanForm",
        __base__=Plan,
        gates=(
            list[dict[str, Any]],
            Field(
                default=Plan().model_dump(mode="json")["gates"],
                description="one gate per item, as JSON. The documentation describes each gate",
            ),
        ),
    )
    # The standard plan comes first: a form opens on the first type, and the fields of a plan fill several screens.
    # The flow parses a plan itself, so that a bad plan that passed the form is refused in one line.
    AnyPlan = Annotated[
        Annotated[Literal["usual"], WithJsonSchema({"type": "string", "enum": [DEFAULT], "title": "Standard plan"})]
        | Annotated[str, Field(max_length=64), _titled("Plan of the policy, by name")]
        | Annotated[SkipValidation[_PlanForm], _titled("Custom plan")],
        _titled("Plan"),
    ]


def chosen_plan(engine: Engine, strategy_name: str, given: AnyPlan) -> Plan:
    """Return the given plan, the one of that name in the strategy's policy, or the standard one.

    Raises:
        InvalidPlan: with all invalid fields.
        UnknownPlan, UnknownStrategy
    """
    if isinstance(given, Plan):
        return given
    if isinstance(given, str):
        return Plan() if given == DEFAULT else rollouts.read_policy(engine, strategy_name).named(strategy_name, given)
    return read_plan(given)
