"""The plan of a rollout: stages, gates and limits, frozen when it starts."""

from collections.abc import Mapping
from datetime import timedelta
from math import ceil
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from strategy_core.domain.errors import InvalidPercent, InvalidPlan, UnarmedPlan
from strategy_core.domain.gates.base import Duration, Errors, InvalidDecisions, Margins, Silence, duration_field
from strategy_core.domain.gates.on_live_orders import Latency, OrderErrors, RoutingAudit, SampleRatio
from strategy_core.domain.gates.on_metrics import MetricThreshold
from strategy_core.domain.gates.on_slots import Divergence, ExcessDrawdown, Harm, LosingStreak, NotWorse, WinRate
from strategy_core.domain.release_times import ReleaseWindow
from strategy_core.domain.routing import basis_points

_MOST_LATE = 1_000  # candles
_RUNS_ARE_LATE = timedelta(minutes=3)  # real time: runs come every minute, plus the time to start one
_RUNS_ARE_GONE = timedelta(minutes=10)


def _percent(value: float) -> float:
    try:
        basis_points(value)
    except InvalidPercent as error:
        raise ValueError(str(error)) from None
    return value


# the schema describes what forms and other programs send
Percent = Annotated[float, AfterValidator(_percent), WithJsonSchema({"type": "number", "minimum": 0, "maximum": 100})]


AnyGate = Annotated[
    Errors
    | InvalidDecisions
    | Silence
    | LosingStreak
    | ExcessDrawdown
    | Harm
    | WinRate
    | NotWorse
    | Divergence
    | OrderErrors
    | Latency
    | SampleRatio
    | RoutingAudit
    | MetricThreshold,
    Field(discriminator="kind"),
]


class Stage(BaseModel):
    """One step of the ramp: its percent of users, minimum time, and margins for the gates."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    percent: Percent
    minimum_time: Duration
    margins: Margins
    capital_percent: Percent | None = Field(
        default=None,
        description="largest share of all capital in the canary, in percent. If it is not given, the percent of "
        "users. null: no cap",
    )

    @model_validator(mode="before")
    @classmethod
    def _capped_by_default(cls, given: Any) -> Any:
        if not isinstance(given, Mapping) or "capital_percent" in given:
            return given
        try:
            basis_points(given.get("percent", ""))
        except InvalidPercent:
            return given  # the percent itself is refused
        return {**given, "capital_percent": given["percent"]}

    @field_validator("capital_percent")
    @classmethod
    def _no_cap_at_100(cls, value: float | None) -> float | None:
        return None if value == 100 else value

    @property
    def percent_bp(self) -> int:
        return basis_points(self.percent)


def _stage(percent: float, pnl_r: float) -> Stage:
    margins = Margins(pnl_r=pnl_r, pnl_r_per_year=12)
    return Stage(percent=percent, minimum_time=timedelta(days=1), margins=margins)


class Plan(BaseModel):
    """The stages, gates and limits of a rollout."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stages: tuple[Stage, ...] = (
        _stage(5, 0.15),
        _stage(10, 0.10),
        _stage(25, 0.07),
        _stage(50, 0.07),
        _stage(100, 0.07),
    )
    approve_before: tuple[Percent, ...] = Field(
        default=(100.0,), description="percents of the stages that need an owner's approval"
    )
    advance_windows: tuple[ReleaseWindow, ...] = Field(
        default=(),
        max_length=20,
        description="when stages may be entered, the first and the promotion too. Empty: at any time. A rollback is "
        "possible at any time",
    )
    on_inconclusive: Literal["hold", "rollback"] = Field(
        default="hold",
        description="action when the maximum time of a stage ends without a clear verdict: hold asks an owner",
    )
    maximum_stage_time: Duration = duration_field(timedelta(days=60), "maximum time of a stage")
    late_candles: int = Field(
        default=2,
        ge=1,
        le=_MOST_LATE,
        description="candles that a decision or an outcome may be late before the rollout is blind",
    )
    blind_limit: Duration = duration_field(
        timedelta(days=1), "how long a rollout may be blind before it is rolled back"
    )
    largest_account_percent: Percent | None = Field(
        default=0.5,
        description="accounts with more than this percent of all capital stay with the active version until 100 %. "
        "null: no such rule",
    )
    risk_scale: bool = Field(
        default=True,
        description="users of a version that risks more than the active one are sent a smaller size, 0.5 to 1 of it, "
        "as measured in shadow when the rollout starts",
    )
    open_risk_percent: Percent | None = Field(
        default=None,
        description="hold the next stage while the canary's positions have more than this percent of the strategy's "
        "open risk. It counts at stages of at most this percent of users. null: no limit",
    )
    bake: Duration = duration_field(
        timedelta(days=7),
        "time after the promotion in which the previous active version stays in shadow, ready to be reinstated",
    )
    watch: Literal["off", "alert", "rollback"] = Field(
        default="alert",
        description="action when the version, once it has baked, is proven to earn less than its predecessor. Unless "
        "off, the predecessor stays in shadow after the bake",
    )
    on_rollback: Literal["pin", "flatten"] = Field(
        default="pin",
        description="what becomes of the open positions of a version that is rolled back: pin lets it decide on them "
        "in shadow until they are closed, flatten asks the platform to close them. New entries stop at once",
    )
    gates: tuple[AnyGate, ...] = (
        Errors(),
        InvalidDecisions(),
        Silence(),
        LosingStreak(),
        ExcessDrawdown(),
        Harm(),
        WinRate(dry_run=True),
        NotWorse(),
        Divergence(),
        OrderErrors(),
        Latency(),
        SampleRatio(),
        RoutingAudit(),
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        percents = [stage.percent for stage in self.stages]
        names = [gate.name for gate in self.gates]
        if not percents or percents[0] <= 0 or percents != sorted(set(percents)):
            raise ValueError("stages must rise from above 0 %, each wider than the one before")
        if percents[-1] != 100:
            raise ValueError("the last stage must be 100 %: a version is promoted only after it has served all users")
        if stranger := set(self.approve_before) - set(percents):
            raise ValueError(f"approve_before names {sorted(stranger)}, which is no stage's percent")
        if len(names) != len(set(names)):
            raise ValueError("each gate may occur once in a plan, and each metric needs a unique name")
        if any(stage.capital_percent == 0 for stage in self.stages):
            raise ValueError("capital_percent must be above 0 %, or null for no cap")
        caps = [100.0 if stage.capital_percent is None else stage.capital_percent for stage in self.stages]
        if caps != sorted(caps):
            raise ValueError("capital_percent must not fall from one stage to the next")
        if self.open_risk_percent == 0:
            raise ValueError("open_risk_percent must be above 0 %, or null for no limit")
        if any(stage.minimum_time >= self.maximum_stage_time for stage in self.stages):
            raise ValueError("maximum_stage_time must exceed every stage's minimum_time")
        return self

    def at_speed(self, speed: float, timeframe: timedelta) -> "Plan":
        """Return the plan for a replay clock that runs *speed* times as fast.

        Days of replay time may pass between two runs, so the limits for late candles and blindness are widened.
        """
        if speed <= 1:
            return self
        late = max(self.late_candles, min(ceil(_RUNS_ARE_LATE * speed / timeframe), _MOST_LATE))
        return self.model_copy(
            update={"late_candles": late, "blind_limit": max(self.blind_limit, _RUNS_ARE_GONE * speed)}
        )

    def check_armed(self) -> None:
        """Raise UnarmedPlan unless at least one gate has a vote."""
        if all(gate.dry_run for gate in self.gates):
            raise UnarmedPlan

    def needs_approval(self, stage_index: int) -> bool:
        return self.stages[stage_index].percent in self.approve_before


def read_plan(data: Mapping[str, Any]) -> Plan:
    """Return the plan that *data* describes, with defaults filled in. Raise InvalidPlan, which names each field."""
    try:
        return Plan.model_validate(data)
    except ValidationError as error:
        raise InvalidPlan(
            f"{'.'.join(str(part) for part in found['loc']) or 'plan'}: {found['msg']}" for found in error.errors()
        ) from None


def load_plan(stored: Mapping[str, Any]) -> Plan:
    """Return a stored plan. One of a release without caps on capital, or without a risk scale, has none.

    Raise InvalidPlan.
    """
    return read_plan(without_new_caps(stored))


def without_new_caps(stored: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the data of a stored plan without the caps and the risk scale that a release added after it was stored."""
    stages = stored.get("stages", ())
    if not isinstance(stages, list | tuple):
        return stored
    capped = [{"capital_percent": None, **each} if isinstance(each, Mapping) else each for each in stages]
    return {"largest_account_percent": None, "risk_scale": False, **stored, **({"stages": capped} if capped else {})}
