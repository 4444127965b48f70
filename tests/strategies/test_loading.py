"""Loading: an entry point becomes a strategy, or an error that names what is allowed."""

import json
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, ClassVar
from uuid import UUID, uuid4

import numpy as np
import pandas as pd
import pytest
from pydantic import (
    AliasChoices,
    AliasPath,
    BaseModel,
    ConfigDict,
    Field,
    Secret,
    SecretBytes,
    SecretStr,
    computed_field,
    field_validator,
)

from strategy_core.domain.errors import InvalidConfig, InvalidDecision, InvalidEntryPoint, StrategyFailed
from strategy_core.domain.strategy import Action, Context, Decision, Strategy
from strategy_core.strategies.fib_rsi import FibRsi
from strategy_core.strategies.loading import (
    FreeConfig,
    as_strategy,
    canonical,
    known,
    load,
    resolve,
    trained_until_of,
    validated,
    warmup_of,
)
from tests.strategies import owners_code
from tests.strategies.owners_code import AsyncEngine, Engine, OwnParams

OWNERS = "tests.strategies.owners_code"
CANDLES = pd.DataFrame({"close": [1.0, 2.0]}, index=pd.date_range("2026-01-05", periods=2, freq="h", tz="UTC"))
CONTEXT = Context("GOLD", "1h", datetime(2026, 1, 5, 2, tzinfo=UTC))


def decided(strategy: Strategy, config: dict[str, Any]) -> Decision:
    return strategy.decide(CANDLES, validated(strategy.Params, config, "owner"), CONTEXT)


def test_a_known_name_and_an_object_path_are_loaded() -> None:
    assert "fib_rsi" in known()
    assert resolve("fib_rsi") == "strategy_core.strategies.fib_rsi:FibRsi"
    assert isinstance(load("fib_rsi"), FibRsi)
    assert isinstance(load(f"{OWNERS}:Native"), owners_code.Native)


@pytest.mark.parametrize(
    ("entry_point", "why"),
    [
        ("fib_rsy", "did you mean 'fib_rsi'?"),
        ("zzz", "known names: .*fib_rsi"),
        ("/home/owner/strategy.py", "neither package.module:Class nor a known name"),
        ("../strategy.py:Alpha", "neither package.module:Class nor a known name"),
        ("swing.py:Swing", "did you mean 'swing:Swing'?"),
        ("", "neither package.module:Class nor a known name"),
        ("no_such_package.module:Alpha", "no module named 'no_such_package'"),
        (f"{OWNERS}:Nativ", "did you mean Native?"),
        (f"{OWNERS}:zzz", "its classes: .*Native"),
        (f"{OWNERS}:NOT_CALLABLE", "NOT_CALLABLE is neither a class nor a function"),
        (f"{OWNERS}:NoParams", "it has no Params"),
        (f"{OWNERS}:NoWarmup", "it has no warmup_bars"),
        (
            f"{OWNERS}:estimator",
            "a model alone is no strategy: register a class that returns its file from model_files",
        ),
        (f"{OWNERS}:Neither", "it has neither decide.* nor generate_signal"),
        (f"{OWNERS}:PositionalOnly", "its argument 'answer' cannot be given by name"),
    ],
)
def test_what_is_no_strategy_is_refused_with_a_hint(entry_point: str, why: str) -> None:
    with pytest.raises(InvalidEntryPoint, match=why):
        load(entry_point)


@pytest.mark.parametrize(
    ("config", "problems"),
    [
        ({"band": 3}, ["band: no such key; did you mean bands?"]),
        ({"period": 3}, ["period: no such key; allowed: n, bands"]),
        ({"zzz": 3}, ["zzz: no such key; allowed: n, bands"]),
        ({"n": "x"}, ["n: Input should be a valid integer, unable to parse string as an integer (given 'x')"]),
        ({"bands": [1.0, float("inf")]}, ["bands.1: inf is not a finite number"]),
        ({"n": float("nan"), "q": 1}, ["q: no such key; allowed: n, bands", "n: nan is not a finite number"]),
    ],
)
def test_a_config_is_refused_field_by_field(config: dict[str, Any], problems: list[str]) -> None:
    """Unknown keys too, although this model of an owner's would ignore them."""
    with pytest.raises(InvalidConfig) as refused:
        validated(OwnParams, config, "owner")

    assert refused.value.problems == problems


def test_a_rule_over_several_fields_is_told_without_one() -> None:
    with pytest.raises(InvalidConfig) as refused:
        validated(FibRsi.Params, {"rsi_oversold": 50, "rsi_overbought": 50}, "fib_rsi")

    assert refused.value.problems == ["rsi_oversold must be below rsi_overbought"]


def test_a_valid_config_is_stored_with_every_default() -> None:
    assert canonical(validated(OwnParams, {"n": 3}, "owner"), {"n": 3}, "owner") == {"n": 3, "bands": [1.0]}


class Side(StrEnum):
    LONG = "long"


class Stop(BaseModel):
    percent: float = 2.0


class Plain(BaseModel):
    size: Decimal = Decimal("0.10")
    side: Side = Side.LONG
    word: str | Side = Side.LONG
    limit: int | None = None
    until: datetime = CONTEXT.now
    stop: Stop = Stop()
    marks: set[int] = {1}
    pair: tuple[int, float] = (1, 2.0)


class AsFraction(BaseModel):
    """Its validator changes each value that it is given, and no default."""

    stop: float = 2.0
    take: float = 4.0

    @field_validator("stop")
    @classmethod
    def as_fraction(cls, value: float) -> float:
        return value / 100


class ByAlias(BaseModel):
    period: int = Field(default=14, alias="rsiPeriod")
    level: float = Field(default=0.5, validation_alias="fib")
    first: int = Field(default=7, validation_alias=AliasPath("windows", 0))


class Derived(BaseModel):
    model_config = ConfigDict(extra="forbid")

    low: float = 30.0

    @computed_field
    def high(self) -> float:
        return 100.0 - self.low


class Hidden(BaseModel):
    n: int = 14
    note: str = Field(default="", exclude=True)


class Unordered(BaseModel):
    """Its default is another one each time."""

    seed: UUID = Field(default_factory=uuid4)
    stop: AsFraction = AsFraction()


class Drifting(BaseModel):
    seen: ClassVar[list[int]] = []
    n: int = 1

    @field_validator("n")
    @classmethod
    def later(cls, value: int) -> int:
        cls.seen.append(value)
        return value + len(cls.seen)


@pytest.mark.parametrize(
    ("model", "given", "stored"),
    [
        (AsFraction, {"stop": 3}, {"stop": 3, "take": 4.0}),
        (AsFraction, {}, {"take": 4.0}),
        (ByAlias, {"rsiPeriod": 21}, {"rsiPeriod": 21, "fib": 0.5}),
        (ByAlias, {"windows": [5], "fib": 1}, {"windows": [5], "fib": 1, "rsiPeriod": 14}),
        (Derived, {}, {"low": 30.0}),
        (Hidden, {"note": "x"}, {"n": 14, "note": "x"}),
        (Plain, {"size": "0.2", "stop": {"percent": 1}}, {
            "size": "0.2", "stop": {"percent": 1}, "side": "long", "limit": None, "marks": [1], "pair": [1, 2.0],
            "until": "2026-01-05T02:00:00Z",
        }),
    ],
)  # fmt: skip
def test_a_stored_config_validates_to_the_same_params_for_ever(
    model: type[BaseModel], given: dict[str, Any], stored: dict[str, Any]
) -> None:
    params = validated(model, given, "owner")

    config = canonical(params, given, "owner")

    again = validated(model, json.loads(json.dumps(config)), "owner")
    assert config == stored
    assert again == params
    assert [type(value) for value in vars(again).values()] == [type(value) for value in vars(params).values()]
    assert canonical(again, config, "owner") == config


def test_the_usual_config_is_the_dump_of_its_params() -> None:
    """As in all releases: it is part of the fingerprints of registered versions."""
    given = {"rsi_period": 10}
    params = validated(FibRsi.Params, given, "fib_rsi")

    assert canonical(params, given, "fib_rsi") == params.model_dump(mode="json")


def test_a_default_that_is_another_one_each_time_is_stored_as_it_was() -> None:
    params = validated(Unordered, {}, "owner")

    config = canonical(params, {}, "owner")

    assert config == {"seed": str(params.seed)}  # type: ignore[attr-defined]
    assert validated(Unordered, config, "owner") == params


def test_a_config_that_cannot_be_stored_is_refused_with_its_field() -> None:
    params = validated(Drifting, {"n": 1}, "owner")

    with pytest.raises(InvalidConfig) as refused:
        canonical(params, {"n": 1}, "owner")

    (problem,) = refused.value.problems
    assert re.fullmatch(r"n: 2 when validated once, \d+ when validated again", problem)


class Keys(BaseModel):
    key: SecretStr = SecretStr("hunter2")
    n: int = 1


@dataclass
class Account:
    token: SecretBytes


class ManyKeys(BaseModel):
    inner: Keys | None = None
    several: list[Annotated[dict[str, SecretBytes], "of several"]] = []
    day: Secret[date] | None = None
    account: Account | None = None
    n: int = 1


class AnyKey(BaseModel):
    inner: Any = {"key": [SecretStr("hunter2")]}


@pytest.mark.parametrize(
    ("model", "fields"),
    [(Keys, ["key"]), (ManyKeys, ["inner", "several", "day", "account"]), (AnyKey, ["inner.key.0"])],
)
def test_a_secret_in_a_config_is_refused(model: type[BaseModel], fields: list[str]) -> None:
    with pytest.raises(InvalidConfig) as refused:
        canonical(validated(model, {}, "owner"), {}, "owner")

    why = "a version's config is stored and shown; it is no place for a secret"
    assert refused.value.problems == [f"{field}: {why}" for field in fields]


def test_a_function_makes_the_engine_from_the_config() -> None:
    strategy = load(f"{OWNERS}:make_engine")
    config = {"answer": "sell", "bars": 9}
    params = validated(strategy.Params, config, "owner")

    assert canonical(params, config, "owner") == config
    assert warmup_of(strategy, params) == 9
    assert decided(strategy, config).action is Action.SELL


def test_a_function_may_make_no_model() -> None:
    with pytest.raises(InvalidEntryPoint, match=r"it returned Estimator, which .*; a model alone is no strategy"):
        decided(load(f"{OWNERS}:make_estimator"), {})


def test_a_function_may_make_a_strategy_and_must_make_something() -> None:
    assert decided(load(f"{OWNERS}:make_native"), {}).action is Action.HOLD
    with pytest.raises(InvalidEntryPoint, match="it returned NoneType, which has neither decide nor generate_signal"):
        decided(load(f"{OWNERS}:make_nothing"), {})
    with pytest.raises(InvalidConfig, match="bars: no such key"):
        decided(load(f"{OWNERS}:make_native"), {"bars": 9})


@pytest.mark.parametrize("bars", [0, -1, 1.5, True, "9", 100_001, None])
def test_a_warm_up_that_is_no_number_of_candles_is_refused(bars: object) -> None:
    class Owner:
        warmup_bars = bars

    with pytest.raises(StrategyFailed, match=r"Owner.warmup_bars is .*; allowed: 1 to 100000 candles"):
        warmup_of(Owner(), OwnParams())


def test_an_engines_arguments_are_its_config() -> None:
    params_model = load(f"{OWNERS}:Engine").Params

    assert canonical(validated(params_model, {"strict": False}, "owner"), {"strict": False}, "owner") == {
        "answer": None,
        "strict": False,
    }
    with pytest.raises(InvalidConfig, match=r"anser: no such key; did you mean answer?"):
        validated(params_model, {"anser": 1}, "owner")
    with pytest.raises(InvalidConfig, match="strict: Input should be a valid boolean"):
        validated(params_model, {"strict": "perhaps"}, "owner")


def test_annotations_for_type_checkers_alone_are_no_obstacle() -> None:
    assert decided(load(f"{OWNERS}:OddlyTyped"), {"answer": "buy"}).action is Action.BUY


def test_aliases_of_every_kind_are_keys() -> None:
    class Aliased(BaseModel):
        period: int = Field(default=5, validation_alias=AliasChoices("n", AliasPath("windows", 0)))
        level: float = Field(default=0.5, alias="fib")
        model_config = ConfigDict(populate_by_name=True)

    given = {"windows": [7], "level": 0.6}

    assert canonical(validated(Aliased, given, "owner"), given, "owner") == {"period": 7, "level": 0.6}
    with pytest.raises(InvalidConfig, match="allowed: n, windows, period, fib, level"):
        validated(Aliased, {"zzz": 1}, "owner")


def test_an_engines_own_params_win_and_its_warm_up_may_depend_on_them() -> None:
    strategy = load(f"{OWNERS}:EngineWithParams")
    params = validated(strategy.Params, {"n": 7}, "owner")

    assert strategy.Params is OwnParams
    assert warmup_of(strategy, params) == 14
    assert strategy.decide(CANDLES, params, CONTEXT).action is Action.SELL


def test_a_warm_up_may_stand_in_the_config_and_must_stand_somewhere() -> None:
    in_config, nowhere = load(f"{OWNERS}:WarmupInConfig"), load(f"{OWNERS}:NoWarmupEngine")

    assert warmup_of(in_config, validated(in_config.Params, {"warmup_bars": 30}, "owner")) == 30
    with pytest.raises(StrategyFailed, match=r"NoWarmupEngine.warmup_bars is None"):
        warmup_of(nowhere, validated(nowhere.Params, {}, "owner"))


def test_an_async_engine_is_made_once_and_told_symbol_and_open_time() -> None:
    strategy = load(f"{OWNERS}:AsyncEngine")
    made = AsyncEngine.made

    decisions = [decided(strategy, {}) for _ in range(3)]

    assert AsyncEngine.made == made + 1
    assert decisions[0].action is Action.BUY
    assert decisions[0].features == {"symbol": "GOLD", "candle": "2026-01-05T01:00:00+00:00", "rows": 2}
    assert decisions[0] == decisions[1] == decisions[2]


SELL = Decision(Action.SELL, 0.3)


@pytest.mark.parametrize(
    ("answer", "decision"),
    [
        (SELL, SELL),
        (None, Decision(Action.HOLD, reason="no signal")),
        ("BUY", Decision(Action.BUY, 1.0)),
        (" hold ", Decision(Action.HOLD, 0.0)),
        ({"action": "sell", "confidence": 0.3}, SELL),
        ({"signal": None}, Decision(Action.HOLD)),
        ({"side": "SHORT", "confidence": 0.3}, SELL),
        ({"signal": "buy", "side": "left", "at": CONTEXT.now},
         Decision(Action.BUY, 1.0, {"side": "left", "at": "2026-01-05T02:00:00+00:00"})),
        ({"decision": Action.BUY, "features": {"a": 1}, "b": 2, "reason": "so"},
         Decision(Action.BUY, 1.0, {"a": 1, "b": 2}, "so")),
        ({"action": "buy", "confidence": Decimal("0.25"), "price": Decimal("2000.5"), "rsi": np.float32(28.5),
          "rank": np.int64(3), "ready": np.bool_(True), "atr": float("nan"),
          "features": {"at": pd.Timestamp("2026-01-05", tz="UTC"), "far": np.inf}},
         Decision(Action.BUY, 0.25, {"at": "2026-01-05T00:00:00+00:00", "far": None, "price": 2000.5, "rsi": 28.5,
                                     "rank": 3, "ready": True, "atr": None})),
    ],
)  # fmt: skip
def test_an_engines_answers_become_decisions(answer: object, decision: Decision) -> None:
    assert decided(as_strategy(Engine(answer), "owner"), {}) == decision


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("exit", "action 'exit' is not one of buy, sell, hold, long, short"),
        ({"action": "buy", "signal": "buy", "side": "buy"}, "returned a dict with action and signal of"),
        (1, "returned int, not a Decision, dict, str or None"),
        ({}, "returned a dict with none of action, signal, decision"),
        ({"action": "buy", "signal": "sell"}, "returned a dict with action and signal of"),
        ({"signal": 1}, "action 1 is not one of buy, sell, hold"),
        ({"signal": "buy", "features": [1]}, "features is list, not a dict"),
    ],
)
def test_any_other_answer_is_invalid(answer: object, why: str) -> None:
    with pytest.raises(InvalidDecision, match=why):
        decided(as_strategy(Engine(answer), "owner"), {})


@pytest.mark.parametrize(
    ("said", "until"),
    [
        (None, None),
        (date(2026, 1, 31), "2026-01-31T00:00:00+00:00"),
        ("2026-01-31", "2026-01-31T00:00:00+00:00"),
        ("2026-01-31T12:00Z", "2026-01-31T12:00:00+00:00"),
        (datetime(2026, 1, 31, tzinfo=timezone(timedelta(hours=2))), "2026-01-30T22:00:00+00:00"),
        (pd.Timestamp("2026-01-31", tz="UTC"), "2026-01-31T00:00:00+00:00"),
        pytest.param(lambda params: params.until, "2026-02-01T00:00:00+00:00", id="a method"),
    ],
    ids=str,
)
def test_the_end_of_a_training_is_a_day_or_a_time(said: Any, until: str | None) -> None:
    class Params(BaseModel):
        until: str = "2026-02-01"

    owner = type("Trained", (), {"trained_until": said if not callable(said) else staticmethod(said)})()

    found = trained_until_of(owner, Params())

    assert (found and found.isoformat()) == until


@pytest.mark.parametrize(
    "said",
    [
        "yesterday",
        datetime(2026, 1, 31, tzinfo=UTC).replace(tzinfo=None),
        "2026-01-31T12:00",
        2026,
        b"2026-01-31",
        pd.NaT,
        "0001-01-01",
        "9999-12-31T23:59-12:00",
    ],
    ids=str,
)
def test_an_end_of_a_training_that_is_no_time_is_refused(said: Any) -> None:
    owner = type("Trained", (), {"trained_until": said})()

    with pytest.raises(StrategyFailed, match=r"Trained.trained_until is .*; allowed: a day, or a time with its zone"):
        trained_until_of(owner, validated(FreeConfig, {}, "owner"))


def test_an_adapted_engine_says_when_its_training_ended() -> None:
    class Engine:
        warmup_bars = 1
        trained_until = "2026-01-31"

        def generate_signal(self, df: Any, symbol: str, timestamp: Any) -> None: ...

    engine: Any = as_strategy(Engine, "engine")

    assert trained_until_of(engine, engine.Params()) == datetime(2026, 1, 31, tzinfo=UTC)
