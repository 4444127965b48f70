"""Loading: resolve entry points, validate configs, and adapt engines to the strategy interface.

In production, only isolated workers load strategies.
"""

import asyncio
import dataclasses
import inspect
import json
import math
import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from decimal import Decimal
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import entry_points
from types import FunctionType, ModuleType
from typing import Any, cast, get_args, get_origin, get_type_hints

import numpy as np
import pandas as pd
from pydantic import (
    AliasChoices,
    AliasPath,
    BaseModel,
    ConfigDict,
    Secret,
    SecretBytes,
    SecretStr,
    ValidationError,
    create_model,
)
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from strategy_core.domain.errors import Invalid, InvalidConfig, InvalidDecision, InvalidEntryPoint, StrategyFailed
from strategy_core.domain.parsing import owners_time
from strategy_core.domain.strategy import Action, Context, Decision, Strategy
from strategy_core.strategies.adapters import adapted

MAX_WARMUP_BARS = 100_000
GROUP = "strategy_core.strategies"
OBJECT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
ACTION_KEYS = ("action", "signal", "decision")
SIDES = {"long": Action.BUY, "short": Action.SELL}
SECRETS = (SecretStr, SecretBytes, Secret)
BY_A_FUNCTION = "an argument that is an object is made by a function def make(**config): register it as module:make"
A_MODEL = "a model alone is no strategy: register a class that returns its file from model_files(params) and calls it"
NO_PLACE = "a version's config is stored and shown; it is no place for a secret"


def validated(params_model: type[BaseModel], config: Mapping[str, Any], entry_point: str) -> BaseModel:
    """Return *config* as an instance of *params_model*, with defaults filled in.

    Raises:
        InvalidConfig: an unknown key (even if the model's `extra` allows it), an invalid value, a secret, or a number
            that is not finite. One line per field.
    """
    fields = config_keys(params_model)
    free = issubclass(params_model, FreeConfig)
    problems = [f"{name}: {NO_PLACE}" for name in _secret_fields(params_model, set())]
    problems += [_unknown(key, fields) for key in config if key not in fields and not free]
    problems += [f"{name}: {value} is not a finite number" for name, value in _not_finite(config)]
    if problems:
        raise InvalidConfig(entry_point, problems)
    try:
        return params_model.model_validate(dict(config))
    except ValidationError as refused:
        missing = issubclass(params_model, EngineConfig) and any(e["type"] == "missing" for e in refused.errors())
        hint = [BY_A_FUNCTION] if missing else []
        raise InvalidConfig(entry_point, [*(_problem(dict(error)) for error in refused.errors()), *hint]) from None


def canonical(params: BaseModel, given: Mapping[str, Any], entry_point: str) -> dict[str, Any]:
    """Return the config as stored and fingerprinted: JSON that validates to the same *params* at each load.

    In most cases it is the dump of *params*, with all defaults. The dump of a model with an alias, a computed or
    excluded field, or a validator that converts its value does not validate to the same params. Then it is *given*,
    with each default that can be given.

    Raises:
        InvalidConfig: it holds a secret, or no config validates to the same params. One line per field.
    """
    if secrets := list(_secret_values(params, "")):
        raise InvalidConfig(entry_point, [f"{name}: {NO_PLACE}" for name in secrets])
    with suppress(ValueError):  # of a value that is not JSON
        dump = params.model_dump(mode="json")
        if not _lost(params, dump, entry_point):
            return dump
    stored = dict(given)
    lost = _lost(params, stored, entry_point)
    for key, value in _defaults(params, stored):
        filled = {**stored, key: value}
        then = _lost(params, filled, entry_point)
        if len(then) <= len(lost):
            stored, lost = filled, then
    if lost:
        raise InvalidConfig(entry_point, lost)
    return stored


def _lost(params: BaseModel, config: Mapping[str, Any], entry_point: str) -> list[str]:
    """Return a line for each field of *params* that *config* does not restore."""
    try:
        json.dumps(config, allow_nan=False)
        again = validated(type(params), config, entry_point)
    except InvalidConfig as refused:
        return list(refused.problems)
    except Exception as error:  # noqa: BLE001  a validator's own
        return [f"it cannot be validated twice: {type(error).__name__}: {error}"]
    return [
        f"{name}: {first!r:.60} when validated once, {then!r:.60} when validated again"
        for name, first, then in _differences(params, again, "")
    ]


def _differences(first: object, then: object, name: str) -> Iterator[tuple[str, object, object]]:
    inner = f"{name}." if name else ""
    if type(first) is not type(then):
        yield name, first, then
    elif isinstance(first, BaseModel):
        yield from _differences(_values(first), _values(cast(BaseModel, then)), name)
    elif isinstance(first, dict) and first.keys() == cast(dict[Any, Any], then).keys():
        for key, value in first.items():
            yield from _differences(value, cast(dict[Any, Any], then)[key], f"{inner}{key}")
    elif isinstance(first, list | tuple) and len(first) == len(cast(list[Any], then)):
        for i, value in enumerate(first):
            yield from _differences(value, cast(list[Any], then)[i], f"{inner}{i}")
    elif not _equal(first, then):
        yield name, first, then


def _values(params: BaseModel) -> dict[str, Any]:
    fields = {name: getattr(params, name) for name in type(params).model_fields}
    return fields | (params.model_extra or {}) | (params.__pydantic_private__ or {})


def _equal(first: object, then: object) -> bool:
    try:
        return bool(first == then) or (first != first and then != then)  # noqa: PLR0124  NaN equals NaN here
    except Exception:  # noqa: BLE001  a value's own, such as of an array
        return False


def _defaults(params: BaseModel, given: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield (key, JSON value) of each field that *given* leaves out and that can be given in JSON."""
    for name, field in type(params).model_fields.items():
        keys = _keys_of(name, field, by_name=_by_name(type(params)))
        if given.keys().isdisjoint(keys) and not isinstance(field.validation_alias, AliasPath):
            with suppress(ValueError):
                yield keys[0], to_jsonable_python(getattr(params, name))


def _secret_fields(model: type[BaseModel], seen: set[object]) -> Iterator[str]:
    """Yield the names of fields whose type is or contains a secret of pydantic."""
    for name, field in model.model_fields.items():
        yield from [name] if _may_hold_secret(field.annotation, seen) else []


def _may_hold_secret(annotation: object, seen: set[object]) -> bool:
    kind = get_origin(annotation) or annotation
    if isinstance(kind, type) and issubclass(kind, SECRETS):
        return True
    inner: Iterable[object] = get_args(annotation)
    if isinstance(kind, type) and kind not in seen:
        seen.add(kind)
        if issubclass(kind, BaseModel):
            return next(_secret_fields(kind, seen), None) is not None
        if dataclasses.is_dataclass(kind) or hasattr(kind, "__total__") or hasattr(kind, "_fields"):
            with suppress(NameError, TypeError):
                inner = get_type_hints(kind).values()
    return any(_may_hold_secret(each, seen) for each in inner)


def _secret_values(value: object, name: str) -> Iterator[str]:
    """Yield the names of secrets that a field of a wider type holds, such as `Any`."""
    inner = f"{name}." if name else ""
    if isinstance(value, SECRETS):
        yield name
    elif isinstance(value, BaseModel):
        yield from _secret_values(_values(value), name)
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _secret_values(each, f"{inner}{key}")
    elif isinstance(value, list | tuple | set | frozenset):
        for i, each in enumerate(value):
            yield from _secret_values(each, f"{inner}{i}")


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


def trained_until_of(owner: Any, params: BaseModel) -> datetime | None:
    """Return `trained_until` of a strategy, an engine or its params, or None. It is a time or a method of params."""
    until = getattr(owner, "trained_until", None)
    if callable(until):
        until = until(params)
    if until is None:
        return None
    with suppress(AttributeError, TypeError, Invalid):  # neither a time nor its text, or without a zone
        return owners_time(until if isinstance(until, str) else until.isoformat(), "trained_until")
    raise StrategyFailed(
        f"{type(owner).__name__}.trained_until is {until!r:.60}; "
        "allowed: a day, or a time with its zone, as a datetime or as text such as 2026-01-31 or 2026-01-31T12:00Z"
    )


def config_keys(params_model: type[BaseModel]) -> list[str]:
    """Return the keys that the model reads. A field with an alias is read by its alias only."""
    by_name = _by_name(params_model)
    return [key for name, field in params_model.model_fields.items() for key in _keys_of(name, field, by_name=by_name)]


def _by_name(params_model: type[BaseModel]) -> bool:
    settings = params_model.model_config
    return bool(settings.get("populate_by_name") or settings.get("validate_by_name"))


def _keys_of(name: str, field: FieldInfo, *, by_name: bool) -> list[str]:
    alias = field.validation_alias
    aliases = alias.choices if isinstance(alias, AliasChoices) else [alias]
    firsts = [one.path[0] if isinstance(one, AliasPath) else one for one in aliases]
    return [str(first) for first in firsts if first is not None] + ([name] if by_name or alias is None else [])


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


class EngineConfig(BaseModel):
    """The config of a class or function that makes an engine: its arguments."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, protected_namespaces=())


class ReadyConfig(BaseModel):
    """The empty config of an engine instance, which has its configuration already."""


class FreeConfig(BaseModel):
    """The config of a function with `**config`, which takes any key."""

    model_config = ConfigDict(extra="allow", frozen=True, arbitrary_types_allowed=True, protected_namespaces=())


class Adapted:
    """Adapt an engine with `generate_signal` to the strategy interface, or a function that returns an engine.

    The engine is created once per config, with the config as keyword arguments, and lives as long as its worker. If it
    keeps state between candles, the determinism and memory tests of the registration gate apply to it too. A function
    may also return an object with `decide(candles, params, context)`.
    `generate_signal`, async or not, gets the candles, the symbol, and the OPEN time of the last candle as timestamp.
    `warmup_bars` comes from the engine, or from its config.

    Accepted answers are a Decision, "buy", "sell", "hold", "long" or "short" in any case, null for hold, and a dict.
    The dict has one of action, signal or decision, else side, and optionally confidence, features and reason. Other
    keys become features: times as text, and numbers that are not finite as null. A signal without a confidence has
    confidence 1.0. Any other answer raises InvalidDecision.
    """

    def __init__(self, engine: Any, entry_point: str) -> None:
        self.source = engine
        self._entry_point = entry_point
        self._made: tuple[BaseModel, Any] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._maker = engine if isinstance(engine, type | FunctionType) else None
        self.Params = ReadyConfig if self._maker is None else _params_of(self._maker, entry_point)

    def warmup_bars(self, params: BaseModel) -> int:
        engine = self._engine(params)
        return warmup_of(
            engine if hasattr(engine, "warmup_bars") or not hasattr(params, "warmup_bars") else params, params
        )

    def trained_until(self, params: BaseModel) -> datetime | None:
        engine = self._engine(params)
        return trained_until_of(engine if hasattr(engine, "trained_until") else params, params)

    def decide(self, candles: pd.DataFrame, params: BaseModel, context: Context) -> Decision:
        engine = self._engine(params)
        if hasattr(engine, "decide"):
            return cast(Strategy, engine).decide(candles, params, context)
        answer = engine.generate_signal(candles, context.symbol, candles.index[-1])
        if inspect.isawaitable(answer):
            answer = self._running().run_until_complete(answer)
        return as_decision(answer)

    def _engine(self, params: BaseModel) -> Any:
        if self._maker is None:
            return self.source
        if self._made is None or self._made[0] != params:
            arguments = {name: getattr(params, name) for name in type(params).model_fields}
            engine = self._maker(**arguments, **(params.model_extra or {}))
            if not any(callable(getattr(engine, name, None)) for name in ("decide", "generate_signal")):
                hint = f"; {A_MODEL}" if hasattr(engine, "predict") else ""
                what = f"it returned {type(engine).__name__}, which has neither decide nor generate_signal{hint}"
                raise InvalidEntryPoint(self._entry_point, what)
            self._made = params, engine
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
    given = [key for key in ACTION_KEYS if key in rest] or [key for key in ["side"] if key in rest]
    if len(given) != 1:
        raise InvalidDecision(f"returned a dict with {' and '.join(given) or 'none'} of {', '.join(ACTION_KEYS)}")
    action = _action(rest.pop(given[0]))
    confidence = rest.pop("confidence", None)
    features, reason = rest.pop("features", None), rest.pop("reason", None)
    if not isinstance(features, Mapping | None):
        raise InvalidDecision(f"features is {type(features).__name__}, not a dict")
    if confidence is None:
        confidence = 0.0 if action is Action.HOLD else 1.0
    plain = {key: _plain(value) for key, value in {**(features or {}), **rest}.items()}
    return Decision(
        action, float(confidence) if isinstance(confidence, Decimal) else confidence, plain, str(reason or "")
    )


def _plain(value: Any) -> Any:
    """Return a feature as it is logged: times as text, numbers of other types as Python's, not finite ones as null."""
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Decimal):
        value = float(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _action(answer: object) -> Action:
    if answer is None:
        return Action.HOLD
    word = answer.strip().lower() if isinstance(answer, str) else None
    if word not in {*Action, *SIDES}:
        raise InvalidDecision(f"action {answer!r:.60} is not one of {', '.join([*Action, *SIDES])}")
    return SIDES.get(str(word)) or Action(str(word))


def _params_of(engine: Callable[..., Any], entry_point: str) -> type[BaseModel]:
    """Return the engine's `Params`, or a model of its arguments, which forbids all others unless it has `**config`.

    The constructor of a class may pass its `**kwargs` on, so those are not config.
    """
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
    if isinstance(engine, FunctionType) and engine.__code__.co_flags & inspect.CO_VARKEYWORDS:
        return create_model(f"{engine.__name__}Params", __base__=FreeConfig, **fields)
    return create_model(f"{engine.__name__}Params", __base__=EngineConfig, **fields)


def _arguments(engine: Callable[..., Any], entry_point: str) -> Mapping[str, inspect.Parameter]:
    if isinstance(engine, type) and engine.__init__ is object.__init__:  # type: ignore[misc]
        return {}
    try:
        return inspect.signature(engine, eval_str=True).parameters
    except NameError:
        return inspect.signature(engine).parameters  # annotations that only type checkers can resolve
    except (TypeError, ValueError):
        raise InvalidEntryPoint(entry_point, "its arguments cannot be read; give it a Params") from None


def known() -> list[str]:
    """Return the names of the entry points installed here, sorted."""
    return sorted({point.name for point in entry_points(group=GROUP)})


def resolve(entry_point: str) -> str:
    """Return *entry_point*, a known name or `package.module:Class`, as `package.module:Class`, without imports.

    Raises:
        InvalidEntryPoint: it has neither form, such as a file path.
    """
    module, _, name = entry_point.partition(":")
    plain = f"{module.removesuffix('.py').removeprefix('./').replace('/', '.')}:{name}"
    if module.endswith(".py") and OBJECT_PATH.fullmatch(plain):
        raise InvalidEntryPoint(entry_point, f"a module is named without .py; did you mean {plain!r}?")
    if OBJECT_PATH.fullmatch(entry_point):
        return entry_point
    for point in entry_points(group=GROUP, name=entry_point):
        return point.value.replace(" ", "")
    names = known()
    close = get_close_matches(entry_point, names, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known names: {', '.join(names) or 'none'}"
    raise InvalidEntryPoint(entry_point, f"neither package.module:Class nor a known name; {hint}")


def load(entry_point: str) -> Strategy:
    """Import and create the strategy. Engines with `generate_signal`, functions that return one, and strategies of
    freqtrade and backtesting.py are adapted.

    Raises:
        InvalidEntryPoint: the module, class or function does not exist, or is not a strategy.
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
    if isinstance(found, FunctionType):
        return Adapted(found, entry_point)
    if not isinstance(found, type):
        hint = f"; {A_MODEL}" if hasattr(found, "predict") else ""
        raise InvalidEntryPoint(entry_point, f"{class_name} is neither a class nor a function{hint}")
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
    if foreign := adapted(found, entry_point):
        return foreign
    what = "it has neither decide(candles, params, context) nor generate_signal(df, symbol, timestamp)"
    raise InvalidEntryPoint(entry_point, what)


def _no_such_class(module: ModuleType, class_name: str) -> str:
    classes = [name for name, value in vars(module).items() if isinstance(value, type) and not name.startswith("_")]
    close = get_close_matches(class_name, classes, n=1)
    hint = f"did you mean {close[0]}?" if close else f"its classes: {', '.join(sorted(classes)) or 'none'}"
    return f"module {module.__name__} has no {class_name}; {hint}"
