"""What a flow may be asked: types whose titles, bounds and choices Prefect's forms and API have. Services check again.

Where the domain has words of its own for a bad value (a percent of 150), the bound stands in the schema alone: a value
that slips past the API then fails with the domain's line. What a form leaves empty is an empty text, never null.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, SkipValidation, WithJsonSchema, create_model

from strategy_core.domain import lifecycle
from strategy_core.domain.candles import TIMEFRAMES
from strategy_core.domain.plan import Plan, read_plan
from strategy_core.services import rollouts


def _titled(title: str) -> Any:
    """Return what titles a field of a form, which Prefect would otherwise call by the name of the parameter."""
    return Field(json_schema_extra={"title": title})


def _one_of(*choices: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "enum": list(map(str, choices))})


_Name = Annotated[str, Field(min_length=1, max_length=64)]
Strategy = Annotated[_Name, _titled("Strategy")]
Version = Annotated[_Name, _titled("Version")]
AnyVersion = Annotated[str, Field(max_length=64, pattern=r"^$|\S"), _titled("Version")]  # empty: none is named
Owner = Annotated[str, Field(min_length=1, max_length=64, pattern=r"\S"), _titled("Owner")]
Reason = Annotated[str, Field(min_length=1, pattern=r"\S"), _titled("Reason")]
Remark = Annotated[str, _titled("Reason")]
OverrideReason = Annotated[  # empty: none is given; a blank one must lift no quarantine
    str, Field(pattern=r"^$|\S"), _titled("Override reason")
]
Percent = Annotated[float, WithJsonSchema({"type": "number", "minimum": 0, "maximum": 100}), _titled("Percent")]
Days = Annotated[float, Field(gt=0, le=3660), _titled("Days")]
Candles = Annotated[int, Field(ge=1, le=100_000), _titled("Candles")]
Symbols = Annotated[list[Annotated[_Name, _titled("Symbol")]], Field(min_length=1), _titled("Symbols")]
AnySymbol = Annotated[str, Field(max_length=64), _titled("Symbol")]  # empty: all of them
Config = Annotated[dict[str, Any], _titled("Config")]
EntryPoint = Annotated[str, Field(max_length=256), _titled("Entry point")]
Salt = Annotated[str, Field(max_length=64), _titled("Salt")]
Timeframe = Annotated[str, _one_of(*TIMEFRAMES), _titled("Timeframe")]
Alerts = Annotated[list[Annotated[int, Field(ge=1), _titled("Alert")]], Field(min_length=1), _titled("Alerts")]


Choice = Annotated[rollouts.Choice, _one_of(*rollouts.Choice), _titled("Choice")]
Status = Annotated[lifecycle.Status, _one_of(*lifecycle.Status), _titled("Status")]
DEFAULT: Literal["usual"] = "usual"
if TYPE_CHECKING:
    AnyPlan = Literal["usual"] | Plan | Mapping[str, Any]
else:
    # A form cannot tell the kinds of gates in a list apart, and mixes their fields up: as JSON each is whole.
    _PlanForm = create_model(
        "PlanForm",
        __base__=Plan,
        gates=(
            list[dict[str, Any]],
            Field(
                default=Plan().model_dump(mode="json")["gates"],
                description="what is watched, a gate an item, as JSON; docs/gates.md has what each does",
            ),
        ),
    )
    # The usual one first: a form opens on what fits its default, and the fields of a plan fill several screens. It is
    # read in the flow, so that a plan which no form would let through is refused in one line too.
    AnyPlan = Annotated[
        Annotated[Literal["usual"], WithJsonSchema({"type": "string", "enum": [DEFAULT], "title": "The usual plan"})]
        | Annotated[SkipValidation[_PlanForm], _titled("A plan of your own")],
        _titled("Plan"),
    ]


def chosen_plan(given: AnyPlan) -> Plan:
    """Return the plan that was asked for, the usual one where none was; else raise InvalidPlan naming each field."""
    if isinstance(given, Plan):
        return given
    return Plan() if given == DEFAULT else read_plan(given)
