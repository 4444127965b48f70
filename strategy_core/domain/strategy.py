"""The interface of a strategy: decisions, context and the protocol that a version implements."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

from strategy_core.domain.errors import InvalidDecision

if TYPE_CHECKING:
    import pandas as pd
    from pydantic import BaseModel

INSUFFICIENT_HISTORY = "insufficient_history"


class Action(StrEnum):
    BUY = "buy"
    SELL = "sell"
    HOLD = "hold"


class Intent(StrEnum):
    """What a decision means for positions that are open.

    `close` leaves every position on the symbol that the version manages, long or short. It never opens or reverses one:
    only a hold may have it.
    """

    OPEN = "open"
    CLOSE = "close"


@dataclass(frozen=True, slots=True)
class Decision:
    """The decision of a version on one candle.

    Attributes:
        action: buy, sell or hold.
        confidence: 0..1.
        features: inputs of the decision, by name: finite numbers, strings, booleans or null.
        reason: in a word or two. `insufficient_history` is not counted as a decision.
        intent: `close` with hold leaves the open positions at the open of the next candle. The default leaves them to
            the scoring rule's stop, target and horizon.
    """

    action: Action
    confidence: float = 0.0
    features: Mapping[str, float | int | str | bool | None] = field(default_factory=dict)
    reason: str = ""
    intent: Intent = Intent.OPEN

    @property
    def signals(self) -> bool:
        return self.action is not Action.HOLD


@dataclass(frozen=True, slots=True)
class Context:
    """Where and when a decision is made. *now* is the close of the last candle."""

    symbol: str
    timeframe: str
    now: datetime


class Strategy(Protocol):
    """The code of a version: synchronous and pure. Its class is constructed without arguments.

    `Params` is the pydantic model of its config. `decide` gets at least `warmup_bars(params)` candles, the last of
    which has just closed: float64 open, high, low, close, volume (and bid_*/ask_* where the source has them), indexed
    by UTC open time. The frame is a copy that it may change.

    Three methods are optional. `decide_many(candles, params, context) -> Sequence[Decision]` returns one decision per
    row from row `warmup_bars - 1` on, each equal to `decide` on the `warmup_bars` candles that end there.
    `model_files(params) -> Iterable[Path]` returns files whose contents become part of the fingerprint.
    `trained_until(params) -> datetime` returns the end of the candles that the version was fitted to. It may be an
    attribute too, and a text in ISO 8601: comparisons show what the version did before it apart. A class attribute
    `Toggles`, a pydantic model, declares values that users may have after the decision: see `domain.toggles`.
    """

    Params: "type[BaseModel]"

    def warmup_bars(self, params: Any) -> int: ...

    def decide(self, candles: "pd.DataFrame", params: Any, context: Context) -> Decision: ...


class VectorisedStrategy(Strategy, Protocol):
    def decide_many(self, candles: "pd.DataFrame", params: Any, context: Context) -> Sequence[Decision]: ...


def checked_decision(answer: object) -> Decision:
    """Return *answer* if it is a decision that can be logged and scored, or raise InvalidDecision."""
    if not isinstance(answer, Decision):
        raise InvalidDecision(f"returned {type(answer).__name__}, not a Decision")
    if not isinstance(answer.action, Action):
        raise InvalidDecision(f"action {answer.action!r} is not one of {', '.join(Action)}")
    if answer.signals and answer.reason == INSUFFICIENT_HISTORY:
        raise InvalidDecision(f"{answer.action} for {INSUFFICIENT_HISTORY}, which is a hold")
    if not isinstance(answer.intent, Intent):
        raise InvalidDecision(f"intent {answer.intent!r} is not one of {', '.join(Intent)}")
    if answer.intent is Intent.CLOSE and answer.signals:
        raise InvalidDecision(f"{answer.action} to close; allowed: hold to close, and a later candle opens")
    confidence = answer.confidence
    if not _is_number(confidence) or not 0.0 <= confidence <= 1.0:  # NaN fails the comparison too
        raise InvalidDecision(f"confidence {confidence!r} is not within 0..1")
    for name, value in answer.features.items():
        if not isinstance(name, str) or not (value is None or isinstance(value, str | bool) or _is_number(value)):
            raise InvalidDecision(f"feature {name!r} is {type(value).__name__}, not a number, string, boolean or None")
        if isinstance(value, float) and not math.isfinite(value):
            raise InvalidDecision(f"feature {name!r} is {value}")
    return answer


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
