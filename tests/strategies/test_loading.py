"""Loading: an entry point becomes a strategy, or an error that names what is allowed."""

from datetime import UTC, datetime
from typing import Any

import pandas as pd
import pytest
from pydantic import AliasChoices, AliasPath, BaseModel, ConfigDict, Field

from strategy_core.domain.errors import InvalidConfig, InvalidDecision, InvalidEntryPoint, StrategyFailed
from strategy_core.domain.strategy import Action, Context, Decision, Strategy
from strategy_core.strategies.fib_rsi import FibRsi
from strategy_core.strategies.loading import as_strategy, canonical, known, load, resolve, validated, warmup_of
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
        ("", "neither package.module:Class nor a known name"),
        ("no_such_package.module:Alpha", "no module named 'no_such_package'"),
        (f"{OWNERS}:Nativ", "did you mean Native?"),
        (f"{OWNERS}:zzz", "its classes: .*Native"),
        (f"{OWNERS}:a_function", "a_function is not a class"),
        (f"{OWNERS}:NoParams", "it has no Params"),
        (f"{OWNERS}:NoWarmup", "it has no warmup_bars"),
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
    assert canonical(validated(OwnParams, {"n": 3}, "owner")) == {"period": 3, "bands": [1.0]}


@pytest.mark.parametrize("bars", [0, -1, 1.5, True, "9", 100_001, None])
def test_a_warm_up_that_is_no_number_of_candles_is_refused(bars: object) -> None:
    class Owner:
        warmup_bars = bars

    with pytest.raises(StrategyFailed, match=r"Owner.warmup_bars is .*; allowed: 1 to 100000 candles"):
        warmup_of(Owner(), OwnParams())


def test_an_engines_arguments_are_its_config() -> None:
    params_model = load(f"{OWNERS}:Engine").Params

    assert canonical(validated(params_model, {"strict": False}, "owner")) == {"answer": None, "strict": False}
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

    assert canonical(validated(Aliased, {"windows": [7], "level": 0.6}, "owner")) == {"period": 7, "level": 0.6}
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
        ({"decision": Action.BUY, "features": {"a": 1}, "b": 2, "reason": "so"},
         Decision(Action.BUY, 1.0, {"a": 1, "b": 2}, "so")),
    ],
)  # fmt: skip
def test_an_engines_answers_become_decisions(answer: object, decision: Decision) -> None:
    assert decided(as_strategy(Engine(answer), "owner"), {}) == decision


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("long", "action 'long' is not one of buy, sell, hold"),
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
