"""What a flow may be asked: types whose bounds Prefect's API and forms hold. The services hold them again.

Where the domain has words of its own for a bad value (a percent of 150), the bound stands in the schema alone: a value
that slips past the API then fails with the domain's line.
"""

from typing import Annotated

from pydantic import BeforeValidator, Field, WithJsonSchema

from strategy_core.domain.candles import TIMEFRAMES
from strategy_core.domain.plan import Plan, read_plan

Name = Annotated[str, Field(min_length=1, max_length=64)]
Owner = Annotated[str, Field(min_length=1, max_length=64, pattern=r"\S")]
Reason = Annotated[str, Field(min_length=1, pattern=r"\S")]
OverrideReason = Annotated[str, Field(pattern=r"^$|\S")]  # empty: none is given; a blank one must lift no quarantine
Percent = Annotated[float, WithJsonSchema({"type": "number", "minimum": 0, "maximum": 100})]
Days = Annotated[float, Field(gt=0, le=3660)]
Candles = Annotated[int, Field(ge=1, le=100_000)]
Timeframe = Annotated[str, WithJsonSchema({"type": "string", "enum": list(TIMEFRAMES)})]
AnyPlan = Annotated[Plan, BeforeValidator(lambda given: given if isinstance(given, Plan) else read_plan(given))]
