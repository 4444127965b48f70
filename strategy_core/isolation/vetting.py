"""The registration gate: is a version's code fit to be run beside others at all; never whether it is any good.

It asks a bounded, fixed sample of decisions, those that signal first among them, again under changed circumstances:
in another order, in a fresh process, with a changed future, with a longer history, all at once. A fit version answers
the same each time.

Tolerances. Determinism and look-ahead have none (1e-9 in the numbers of a `decide_many`, whose sums may run in another
order). Window: an indicator with an infinite memory, such as Wilder's or an EMA, always carries a trace of its start,
so on a history of twice `warmup_bars` up to 2 % of the decisions, and up to 2 % of the signals (rounded down), may
change their action or move their confidence by more than 0.01. On six years of hourly gold, Wilder's RSI(14) answers
"oversold" or "overbought" otherwise on 31 % of such candles when it warms up on 30 candles, 5.5 % on 55, 0.25 % on 100
and none on 150.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from strategy_core.domain.candles import timeframe_delta
from strategy_core.domain.errors import Invalid, Untrusted
from strategy_core.domain.strategy import Decision
from strategy_core.isolation.client import DecisionRequest, IsolatedStrategy
from strategy_core.isolation.protocol import Answer

SURVEYED = 240  # decisions looked at for signals
SURVEYED_AT_ONCE = 20_000  # the same by decide_many
SAMPLED = 40  # signals, and as many more spread over the history
FUTURE_BARS = 24
WINDOW_SHARE = 0.02
WINDOW_CONFIDENCE = 0.01
CLOSE = 1e-9

Place = tuple[str, int]  # symbol, position of the candle decided on
T = TypeVar("T")
Same = Callable[[Decision, Decision], bool]


class Check(BaseModel):
    """One check: *decisions* compared, and how many of them were *signals*, without which it proves little."""

    model_config = ConfigDict(frozen=True)

    name: str
    passed: bool
    detail: str
    decisions: int
    signals: int


class Report(BaseModel):
    model_config = ConfigDict(frozen=True)

    passed: bool
    checks: list[Check]
    decisions: int
    signals: int
    warnings: list[str]

    @property
    def failures(self) -> list[str]:
        return [f"{check.name}: {check.detail}" for check in self.checks if not check.passed]


def vet(strategy: IsolatedStrategy, candles: Mapping[str, pd.DataFrame], *, timeframe: str) -> Report:
    """Return the registration gate's report on a version; an unfit one is a report that did not pass, never an error.

    Args:
        strategy: the version; its worker is restarted on the way.
        candles: symbol -> its history; the longer, the more signals are exercised.
        timeframe: of the candles.
    """
    delta = timeframe_delta(timeframe)
    try:
        described = strategy.describe()
    except (Untrusted, Invalid) as refused:
        return _report([Check(name="loads", passed=False, detail=str(refused), decisions=0, signals=0)], {})
    trial = _Trial(strategy, candles, timeframe, described.warmup_bars, described.vectorised, pd.Timedelta(delta))
    survey = trial.survey()
    sample = _sample(survey)
    answers = trial.ask(sample)
    known = {place: answer.decision for place, answer in answers.items() if answer.decision is not None}
    checks = [_validity(survey | answers, trial), _isolation(strategy, answers)]
    if all(check.passed for check in checks):
        checks += [
            _determinism(trial, known),
            _look_ahead(trial, known),
            _window(trial, known),
            *([_vectorised(trial, known)] if described.vectorised else []),
        ]
    return _report(checks, known)


@dataclass(frozen=True, slots=True)
class _Trial:
    """The version and the candles it is tried on."""

    strategy: IsolatedStrategy
    candles: Mapping[str, pd.DataFrame]
    timeframe: str
    bars: int
    vectorised: bool
    delta: pd.Timedelta

    def survey(self) -> dict[Place, Answer]:
        """Return answers from all over the history, to find signals in; by decide_many, the last of the history."""
        if self.vectorised:
            rows = SURVEYED_AT_ONCE // max(1, len(self.candles))
            recent = [
                (symbol, p)
                for symbol, frame in self.candles.items()
                for p in range(max(self.bars - 1, len(frame) - rows), len(frame))
            ]
            return self.ask(recent, at_once=True)
        each = max(1, SURVEYED // max(1, len(self.candles)))
        spread = [
            (symbol, p)
            for symbol, frame in self.candles.items()
            for p in _spread(range(self.bars - 1, len(frame)), each)
        ]
        return self.ask(spread)

    def ask(self, places: Iterable[Place], *, bars: int | None = None, at_once: bool = False) -> dict[Place, Answer]:
        """Return the answers, asked in the order of *places* symbol by symbol."""
        by_symbol: dict[str, list[int]] = {}
        for symbol, position in places:
            by_symbol.setdefault(symbol, []).append(position)
        asks = [
            DecisionRequest(symbol, self.timeframe, self.candles[symbol], positions, bars or self.bars)
            for symbol, positions in by_symbol.items()
        ]
        answered = self.strategy.decide(asks, vectorised=at_once)
        return {
            (ask.symbol, position): answer
            for ask, answers in zip(asks, answered, strict=True)
            for position, answer in zip(ask.positions, answers, strict=True)
        }

    def with_changed_future(self, place: Place) -> pd.DataFrame:
        """Return the window that ends at *place* and a future that never was: real rows shuffled and rescaled."""
        symbol, position = place
        window = self.candles[symbol].iloc[position - self.bars + 1 : position + 1]
        rng = np.random.default_rng(position)
        rows = rng.choice(len(window), FUTURE_BARS)
        future = window.iloc[rows] * rng.uniform(0.5, 2.0, (FUTURE_BARS, 1))
        future.index = pd.DatetimeIndex([window.index[-1] + self.delta * (k + 1) for k in range(FUTURE_BARS)])
        return pd.concat([window, future])

    def at(self, place: Place) -> str:
        symbol, position = place
        return f"{symbol} {self.candles[symbol].index[position]:%Y-%m-%d %H:%M}"


def _validity(answers: Mapping[Place, Answer], trial: _Trial) -> Check:
    wrong = {place: answer for place, answer in answers.items() if answer.kind not in {"", "breach"}}
    if not answers:
        longest = max((len(frame) for frame in trial.candles.values()), default=0)
        detail = f"nothing to decide on: a decision takes {trial.bars} candles, the longest history has {longest}"
    elif wrong:
        place, first = next(iter(wrong.items()))
        detail = f"{len(wrong)} of {len(answers)} decisions failed, the first on {trial.at(place)}: {first.error}"
    else:
        detail = "every answer was a decision"
    signals = sum(answer.decision is not None and answer.decision.signals for answer in answers.values())
    passed = bool(answers) and not wrong
    return Check(name="validity", passed=passed, detail=detail, decisions=len(answers), signals=signals)


def _isolation(strategy: IsolatedStrategy, answers: Mapping[Place, Answer]) -> Check:
    tried = list(dict.fromkeys(strategy.breaches))
    detail = f"it tried to touch the outside: {'; '.join(tried[:3])}" if tried else "it touched nothing outside"
    signals = sum(answer.decision is not None and answer.decision.signals for answer in answers.values())
    return Check(name="isolation", passed=not tried, detail=detail, decisions=len(answers), signals=signals)


def _determinism(trial: _Trial, known: Mapping[Place, Decision]) -> Check:
    """Ask again in the same process in the opposite order, then in a fresh process."""
    backwards = trial.ask(reversed(list(known)))
    trial.strategy.close()
    fresh = trial.ask(known)
    pairs = [(place, known[place], again[place]) for again in (backwards, fresh) for place in known]
    return _compared("determinism", trial, pairs, same=lambda a, b: a == b)


def _look_ahead(trial: _Trial, known: Mapping[Place, Decision]) -> Check:
    """Ask again when another future was decided on just before, and where a decide_many could see it."""
    asks, places = [], list(known)
    for place in places:
        frame = trial.with_changed_future(place)
        asks.append(
            DecisionRequest(place[0], trial.timeframe, frame, [trial.bars, trial.bars + 1, trial.bars - 1], trial.bars)
        )
    answered = trial.strategy.decide(asks)
    if trial.vectorised:
        answered += trial.strategy.decide(
            [
                DecisionRequest(
                    ask.symbol, ask.timeframe, ask.candles, [len(ask.candles) - 1, trial.bars - 1], ask.bars
                )
                for ask in asks
            ],
            vectorised=True,
        )
    pairs = [(place, known[place], answers[-1]) for place, answers in zip(places * 2, answered, strict=False)]
    return _compared("look-ahead", trial, pairs, same=_close)


def _window(trial: _Trial, known: Mapping[Place, Decision]) -> Check:
    """Ask again with twice the history; a version that needs more warm-up than it says answers otherwise."""
    longer = 2 * trial.bars
    places = [place for place in known if place[1] >= longer - 1]
    answers = trial.ask(places, bars=longer)
    pairs = [(place, known[place], answers[place]) for place in places]
    if not pairs:
        detail = f"no candle of the sample has a history of {longer} candles: not exercised"
        return Check(name="window", passed=True, detail=detail, decisions=0, signals=0)
    return _compared("window", trial, pairs, same=_alike, tolerated=WINDOW_SHARE)


def _vectorised(trial: _Trial, known: Mapping[Place, Decision]) -> Check:
    answers = trial.ask(known, at_once=True)
    return _compared("vectorised", trial, [(place, known[place], answers[place]) for place in known], same=_close)


def _compared(
    name: str,
    trial: _Trial,
    pairs: Sequence[tuple[Place, Decision, Answer]],
    *,
    same: Same,
    tolerated: float = 0.0,
) -> Check:
    differ = [pair for pair in pairs if pair[2].decision is None or not same(pair[1], pair[2].decision)]
    signals = sum(_signal(pair) for pair in pairs)
    passed = len(differ) <= tolerated * len(pairs) and sum(map(_signal, differ)) <= tolerated * signals
    detail = f"{len(differ)} of {len(pairs)} decisions differ"
    if differ:
        place, before, after = differ[0]
        then = _said(after.decision) if after.decision is not None else str(after.error)
        detail += f", the first on {trial.at(place)}: {_said(before)}, then {then}"
    return Check(name=name, passed=passed, detail=detail, decisions=len(pairs), signals=signals)


def _signal(pair: tuple[Place, Decision, Answer]) -> bool:
    return pair[1].signals or (pair[2].decision is not None and pair[2].decision.signals)


def _close(a: Decision, b: Decision) -> bool:
    """Return whether two decisions are equal but for the last digits of their numbers."""
    if (a.action, a.reason, a.features.keys()) != (b.action, b.reason, b.features.keys()):
        return False
    pairs = [(a.confidence, b.confidence), *((a.features[name], b.features[name]) for name in a.features)]
    return all(
        math.isclose(x, y, rel_tol=CLOSE, abs_tol=CLOSE) if isinstance(x, float) and isinstance(y, float) else x == y
        for x, y in pairs
    )


def _alike(a: Decision, b: Decision) -> bool:
    return a.action is b.action and abs(a.confidence - b.confidence) <= WINDOW_CONFIDENCE


def _said(decision: Decision) -> str:
    return f"{decision.action} {decision.confidence:.4g}"


def _sample(survey: Mapping[Place, Answer]) -> list[Place]:
    """Return places that signal, then places spread over all; the same for the same survey."""
    signals = [place for place, answer in survey.items() if answer.decision is not None and answer.decision.signals]
    return sorted({*_spread(signals, SAMPLED), *_spread(list(survey), SAMPLED)})


def _spread(items: Sequence[T], most: int) -> list[T]:
    """Return at most *most* of *items*, evenly spaced, the last one included."""
    if len(items) <= most:
        return list(items)
    return [items[-1 - (k * len(items)) // most] for k in reversed(range(most))]


def _report(checks: list[Check], known: Mapping[Place, Decision]) -> Report:
    signals = sum(decision.signals for decision in known.values())
    warnings = [] if signals else ["no decision of the sample was a signal: the checks say nothing about its signals"]
    unexercised = [f"{check.name} was exercised on no signal" for check in checks if signals and not check.signals]
    return Report(
        passed=all(check.passed for check in checks),
        checks=checks,
        decisions=len(known),
        signals=signals,
        warnings=warnings + unexercised,
    )
