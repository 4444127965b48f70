"""Loading: resolve entry points, validate configs, and adapt engines to the strategy interface.

In production, only isolated workers load strategies.
"""

import asyncio
import inspect
import math
import re
import weakref
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any, cast

import pandas as pd
from pydantic import AliasChoices, AliasPath, BaseModel, ConfigDict, ValidationError, create_model

from strategy_core.domain.errors import InvalidConfig, InvalidDecision, InvalidEntryPoint, StrategyFailed
from strategy_core.domain.strategy import Action, Context, Decision, Strategy

MAX_WARMUP_BARS = 100_000
GROUP = "strategy_core.strategies"
OBJECT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
ACTION_KEYS = ("action", "signal", "decision")


def validated(params_model: type[BaseModel], config: Mapping[str, Any], entry_point: str) -> BaseModel:
    """Return *config* as an instance of *params_model*, with defaults filled in.

    Raises:
        InvalidConfig: an unknown key (even if the model's `extra` allows it), an invalid value, or a number that is not
            finite. One line per field.
    """
    fields = _keys(params_model)
    problems = [_unknown(key, fields) for key in config if key not in fields]
    problems += [f"{name}: {value} is not a finite number" for name, value in _not_finite(config)]
    if problems:
        raise InvalidConfig(entry_point, problems)
    try:
        return params_model.model_validate(dict(config))
    except ValidationError as refused:
        raise InvalidConfig(entry_point, [_problem(dict(error)) for error in refused.errors()]) from None


def canonical(params: BaseModel) -> dict[str, Any]:
    """Return the config as stored and fingerprinted: JSON values, with all defaults filled in."""
    return params.model_dump(mode="json")


def warmup_of(owner: Any, params: BaseModel) -> int:
    """Return `warmup_bars` of a strategy, an engine or its params. It is a number or a method of params."""
    bars = getattr(owner, "warmup_bars", None)
    if callable(bars):
        bars = bars(params)
    if not isinstance(bars, int) or isinstance(bars, bool) or not 1 <= bars <= MAX_WARMUP_BARS:
        raise StrategyFailed(
            f"{type(owner).__name__}.warmup_bars is {bars!r}; "
            f"allowed: 1 to {MAX_WARMUP_BARS} candles, as an int or as a method of params"
        )
    return bars


def _keys(params_model: type[BaseModel]) -> list[str]:
    """Return the keys that the model reads. A field with an alias is read by its alias only."""
    settings = params_model.model_config
    by_name = settings.get("populate_by_name") or settings.get("validate_by_name")
    keys: list[str] = []
    for name, field in params_model.model_fields.items():
        alias = field.validation_alias
        aliases = alias.choices if isinstance(alias, AliasChoices) else [alias]
        firsts = [one.path[0] if isinstance(one, AliasPath) else one for one in aliases]
        keys += [str(first) for first in firsts if first is not None]
        keys += [name] if by_name or alias is None else []
    return keys


def _unknown(key: str, fields: list[str]) -> str:
    close = get_close_matches(key, fields, n=1)
    return f"{key}: no such key; " + (
        f"did you mean {close[0]}?" if close else f"allowed: {', '.join(fields) or 'none'}"
    )


def _not_finite(value: object, name: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(value, float) and not math.isfinite(value):
        yield name, value
    items: Iterator[tuple[object, object]] = iter(())
    if isinstance(value, Mapping):
        items = iter(value.items())
    elif isinstance(value, list | tuple):
        items = iter(enumerate(value))
    for key, inner in items:
        yield from _not_finite(inner, f"{name}.{key}" if name else str(key))


def _problem(error: dict[str, Any]) -> str:
    where = ".".join(str(part) for part in error["loc"])
    what = error["msg"].removeprefix("Value error, ")
    return f"{where}: {what} (given {error['input']!r:.60})" if where else what


class ReadyConfig(BaseModel):
    """The empty config of an engine instance, which has its configuration already."""


class Adapted:
    """Adapt an engine with `generate_signal` to the strategy interface.

    The engine is created once per config, with the config as keyword arguments, and lives as long as its worker. If it
    keeps state between candles, the determinism and window tests of the registration gate apply to it too.
    `generate_signal`, async or not, gets the candles, the symbol, and the OPEN time of the last candle as timestamp.
    `warmup_bars` comes from the engine, or from its config.

    Accepted answers are a Decision, "buy", "sell" or "hold" in any case, null for hold, and a dict. The dict has one of
    action, signal or decision, and optionally confidence, features and reason. Other keys become features. A signal
    without a confidence has confidence 1.0. Any other answer raises InvalidDecision.
    """

    def __init__(self, engine: Any, entry_point: str) -> None:
        self._source = engine
        self._made: tuple[BaseModel, Any] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.Params = _params_of(engine, entry_point) if isinstance(engine, type) else ReadyConfig

    def warmup_bars(self, params: BaseModel) -> int:
        engine = self._engine(params)
        return warmup_of(
            engine if hasattr(engine, "warmup_bars") or not hasattr(params, "warmup_bars") else params, params
        )

    def decide(self, candles: pd.DataFrame, params: BaseModel, context: Context) -> Decision:
        answer = self._engine(params).generate_signal(candles, context.symbol, candles.index[-1])
        if inspect.isawaitable(answer):
            answer = self._running().run_until_complete(answer)
        return as_decision(answer)

    def _engine(self, params: BaseModel) -> Any:
        if not isinstance(self._source, type):
            return self._source
        if self._made is None or self._made[0] != params:
            arguments = {name: getattr(params, name) for name in type(params).model_fields}
            self._made = params, self._source(**arguments)
        return self._made[1]

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()  # one for all candles: creating one each is slower than most engines
            weakref.finalize(self, self._loop.close)
        return self._loop


def as_decision(answer: object) -> Decision:
    """Return an engine's *answer* as a Decision, or raise InvalidDecision. See Adapted."""
    if isinstance(answer, Decision):
        return answer
    if answer is None:
        return Decision(Action.HOLD, reason="no signal")
    if isinstance(answer, str):
        action = _action(answer)
        return Decision(action, confidence=0.0 if action is Action.HOLD else 1.0)
    if not isinstance(answer, Mapping):
        raise InvalidDecision(f"returned {type(answer).__name__}, not a Decision, dict, str or None")
    rest = dict(answer)
    given = [key for key in ACTION_KEYS if key in rest]
    if len(given) != 1:
        raise InvalidDecision(f"returned a dict with {' and '.join(given) or 'none'} of {', '.join(ACTION_KEYS)}")
    action = _action(rest.pop(given[0]))
    confidence = rest.pop("confidence", None)
    features, reason = rest.pop("features", None), rest.pop("reason", None)
    if not isinstance(features, Mapping | None):
        raise InvalidDecision(f"features is {type(features).__name__}, not a dict")
    if confidence is None:
        confidence = 0.0 if action is Action.HOLD else 1.0
    return Decision(action, confidence, {**(features or {}), **rest}, str(reason or ""))


def _action(answer: object) -> Action:
    if answer is None:
        return Action.HOLD
    if not isinstance(answer, str) or answer.strip().lower() not in set(Action):
        raise InvalidDecision(f"action {answer!r:.60} is not one of {', '.join(Action)}")
    return Action(answer.strip().lower())


def _params_of(engine: type, entry_point: str) -> type[BaseModel]:
    """Return the engine's `Params`, or a model of its constructor arguments that forbids all others."""
    own = getattr(engine, "Params", None)
    if isinstance(own, type) and issubclass(own, BaseModel):
        return own
    fields: dict[str, Any] = {}
    for name, argument in _arguments(engine, entry_point).items():
        if argument.kind in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD):
            continue
        if argument.kind is argument.POSITIONAL_ONLY:
            raise InvalidEntryPoint(entry_point, f"its argument {name!r} cannot be given by name, as config is")
        unread = argument.annotation is argument.empty or isinstance(argument.annotation, str)
        annotation = Any if unread else argument.annotation
        fields[name] = (annotation, ... if argument.default is argument.empty else argument.default)
    settings = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, protected_namespaces=())
    return create_model(f"{engine.__name__}Params", __config__=settings, **fields)


def _arguments(engine: type, entry_point: str) -> Mapping[str, inspect.Parameter]:
    if engine.__init__ is object.__init__:  # type: ignore[misc]
        return {}
    try:
        return inspect.signature(engine, eval_str=True).parameters
    except NameError:
        return inspect.signature(engine).parameters  # annotations that only type checkers can resolve
    except (TypeError, ValueError):
        raise InvalidEntryPoint(entry_point, "its constructor's arguments cannot be read; give it a Params") from None


def known() -> list[str]:
    """Return the names of the entry points installed here, sorted."""
    return sorted({point.name for point in entry_points(group=GROUP)})


def resolve(entry_point: str) -> str:
    """Return *entry_point*, a known name or `package.module:Class`, as `package.module:Class`, without imports.

    Raises:
        InvalidEntryPoint: it has neither form, such as a file path.
    """
    if OBJECT_PATH.fullmatch(entry_point):
        return entry_point
    for point in entry_points(group=GROUP, name=entry_point):
        return point.value.replace(" ", "")
    names = known()
    close = get_close_matches(entry_point, names, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known names: {', '.join(names) or 'none'}"
    raise InvalidEntryPoint(entry_point, f"neither package.module:Class nor a known name; {hint}")


def load(entry_point: str) -> Strategy:
    """Import and create the strategy. Engines with `generate_signal` are adapted.

    Raises:
        InvalidEntryPoint: the module or class does not exist, or is not a strategy.
        Exception: any exception of the strategy's code, unchanged.
    """
    module_name, _, class_name = resolve(entry_point).partition(":")
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as missing:
        raise InvalidEntryPoint(entry_point, f"no module named {missing.name!r}") from None
    found = getattr(module, class_name, None)
    if found is None:
        raise InvalidEntryPoint(entry_point, _no_such_class(module, class_name))
    if not isinstance(found, type):
        raise InvalidEntryPoint(entry_point, f"{class_name} is not a class")
    return as_strategy(found, entry_point)


def as_strategy(found: Any, entry_point: str) -> Strategy:
    """Return a class or an engine instance as a strategy.

    Raises:
        InvalidEntryPoint: it has neither `decide` nor `generate_signal`, or lacks `Params` or `warmup_bars`.
    """
    if callable(getattr(found, "decide", None)):
        strategy = found() if isinstance(found, type) else found
        params_model = getattr(strategy, "Params", None)
        if not isinstance(params_model, type) or not issubclass(params_model, BaseModel):
            raise InvalidEntryPoint(entry_point, "it has no Params, the pydantic model of its config")
        if not hasattr(strategy, "warmup_bars"):
            raise InvalidEntryPoint(entry_point, "it has no warmup_bars, an int or a method of params")
        return cast(Strategy, strategy)
    if callable(getattr(found, "generate_signal", None)):
        return Adapted(found, entry_point)
    raise InvalidEntryPoint(
        entry_point, "it has neither decide(candles, params, context) nor generate_signal(df, symbol, timestamp)"
    )


def _no_such_class(module: ModuleType, class_name: str) -> str:
    classes = [name for name, value in vars(module).items() if isinstance(value, type) and not name.startswith("_")]
    close = get_close_matches(class_name, classes, n=1)
    hint = f"did you mean {close[0]}?" if close else f"its classes: {', '.join(sorted(classes)) or 'none'}"
    return f"module {module.__name__} has no {class_name}; {hint}"
