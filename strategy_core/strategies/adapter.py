"""Engines written for `generate_signal(df, symbol, timestamp)`, taken as strategies; never changed or subclassed."""

import asyncio
import inspect
import weakref
from collections.abc import Mapping
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict, create_model

from strategy_core.domain.errors import InvalidDecision, InvalidEntryPoint
from strategy_core.domain.strategy import Action, Context, Decision
from strategy_core.strategies.params import warmup_of

ACTION_KEYS = ("action", "signal", "decision")


class ReadyConfig(BaseModel):
    """The config of an engine that was given ready-made: it carries its own."""


class Adapted:
    """A strategy whose decisions are an engine's answers.

    The engine is made once per config, with the config as keyword arguments, and lives as long as its worker: one
    that keeps state between candles meets the registration gate's determinism and window tests like any other.
    `generate_signal`, async or not, gets the candles, the symbol, and the OPEN time of the last candle as timestamp.
    `warmup_bars` is the engine's, or else its config's.

    Answers taken: a Decision; a dict with one of action, signal or decision, and maybe confidence, features, reason
    (other keys join the features); "buy", "sell" or "hold" in any case; None for hold. A signal without a confidence
    is a sure one (1.0). Anything else raises InvalidDecision.
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
            self._loop = (
                asyncio.new_event_loop()
            )  # one for all candles: a new one each would cost more than most engines
            weakref.finalize(self, self._loop.close)
        return self._loop


def as_decision(answer: object) -> Decision:
    """Return an engine's *answer* as a Decision; raise InvalidDecision when it is none that Adapted takes."""
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


def _action(said: object) -> Action:
    if said is None:
        return Action.HOLD
    if not isinstance(said, str) or said.strip().lower() not in set(Action):
        raise InvalidDecision(f"action {said!r:.60} is not one of {', '.join(Action)}")
    return Action(said.strip().lower())


def _params_of(engine: type, entry_point: str) -> type[BaseModel]:
    """Return the engine's own `Params`, or a model of its constructor's arguments that forbids any other."""
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
        return inspect.signature(engine).parameters  # annotations that exist for type checkers alone
    except (TypeError, ValueError):
        raise InvalidEntryPoint(entry_point, "its constructor's arguments cannot be read; give it a Params") from None
