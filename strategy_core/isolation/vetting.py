"""The checks at registration: whether a version's code is deterministic, isolated and free of look-ahead.

They repeat a fixed, bounded sample of decisions under changed conditions: in another order, in a new process, with a
changed future, with a longer history, and vectorised. A fit version gives the same decisions each time. The sample
prefers decisions that are signals. Whether a version is profitable is not checked here.

Tolerances. Determinism and look-ahead allow no difference (1e-9 in the numbers of a `decide_many`, whose sums may have
another order). Window: an indicator with infinite memory, such as Wilder's or an EMA, keeps a trace of its start. On a
history of twice `warmup_bars`, up to 2 % of the decisions and up to 2 % of the signals (rounded down) may change their
action or move their confidence by more than 0.01. On six years of hourly gold, Wilder's RSI(14) differs on 31 % of the
"oversold" and "overbought" candles with a warm-up of 30 candles, on 5.5 % with 55, 0.25 % with 100 and 0 % with 150.
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

SURVEYED = 240  # decisions searched for signals
SURVEYED_AT_ONCE = 20_000  # with decide_many
SAMPLED = 40  # signals, and as many decisions spread over the history
FUTURE_BARS = 24
WINDOW_SHARE = 0.02
WINDOW_CONFIDENCE = 0.01
CLOSE = 1e-9

Place = tuple[str, int]  # symbol, position of the candle decided on
T = TypeVar("T")
Same = Callable[[Decision, Decision], bool]


class Check(BaseModel):
    """The result of one check: how many decisions it compared, and how many of them were signals."""

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
    """Run all checks on a version and return the report. A version that fails is not an error.

    Args:
        strategy: the version. Its worker is restarted during the checks.
        candles: symbol -> history. A longer history exercises more signals.
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
    """The version and the candles to check it on."""

    strategy: IsolatedStrategy
    candles: Mapping[str, pd.DataFrame]
    timeframe: str
    bars: int
    vectorised: bool
    delta: pd.Timedelta

    def survey(self) -> dict[Place, Answer]:
        """Return answers spread over the history, or with decide_many of its newest part, to find signals in."""
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
        """Return the answers for *places*, asked in their order, symbol by symbol."""
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
        """Return the window that ends at *place*, followed by an invented future of shuffled and rescaled rows."""
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
        detail = f"too little history: a decision needs {trial.bars} candles, the longest history has {longest}"
    elif wrong:
        place, first = next(iter(wrong.items()))
        detail = f"{len(wrong)} of {len(answers)} decisions failed, the first on {trial.at(place)}: {first.error}"
    else:
        detail = "all answers were valid decisions"
    signals = sum(answer.decision is not None and answer.decision.signals for answer in answers.values())
    passed = bool(answers) and not wrong
    return Check(name="validity", passed=passed, detail=detail, decisions=len(answers), signals=signals)


def _isolation(strategy: IsolatedStrategy, answers: Mapping[Place, Answer]) -> Check:
    tried = list(dict.fromkeys(strategy.breaches))
    detail = f"it tried to touch the outside: {'; '.join(tried[:3])}" if tried else "it stayed inside its sandbox"
    signals = sum(answer.decision is not None and answer.decision.signals for answer in answers.values())
    return Check(name="isolation", passed=not tried, detail=detail, decisions=len(answers), signals=signals)


def _determinism(trial: _Trial, known: Mapping[Place, Decision]) -> Check:
    """Ask again in the same process in reverse order, then in a new process."""
    backwards = trial.ask(reversed(list(known)))
    trial.strategy.close()
    fresh = trial.ask(known)
    pairs = [(place, known[place], again[place]) for again in (backwards, fresh) for place in known]
    return _compared("determinism", trial, pairs, same=lambda a, b: a == b)


def _look_ahead(trial: _Trial, known: Mapping[Place, Decision]) -> Check:
    """Ask again after decisions on another future, and with that future visible to a decide_many."""
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
    """Ask again with twice the history, which changes the answers if `warmup_bars` is too short."""
    longer = 2 * trial.bars
    places = [place for place in known if place[1] >= longer - 1]
    answers = trial.ask(places, bars=longer)
    pairs = [(place, known[place], answers[place]) for place in places]
    if not pairs:
        detail = f"not exercised: no candle of the sample has a history of {longer} candles"
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
        then = _format(after.decision) if after.decision is not None else str(after.error)
        detail += f", the first on {trial.at(place)}: {_format(before)}, then {then}"
    return Check(name=name, passed=passed, detail=detail, decisions=len(pairs), signals=signals)


def _signal(pair: tuple[Place, Decision, Answer]) -> bool:
    return pair[1].signals or (pair[2].decision is not None and pair[2].decision.signals)


def _close(a: Decision, b: Decision) -> bool:
    """Return whether two decisions are equal up to rounding of their numbers."""
    if (a.action, a.reason, a.features.keys()) != (b.action, b.reason, b.features.keys()):
        return False
    pairs = [(a.confidence, b.confidence), *((a.features[name], b.features[name]) for name in a.features)]
    return all(
        math.isclose(x, y, rel_tol=CLOSE, abs_tol=CLOSE) if isinstance(x, float) and isinstance(y, float) else x == y
        for x, y in pairs
    )


def _alike(a: Decision, b: Decision) -> bool:
    return a.action is b.action and abs(a.confidence - b.confidence) <= WINDOW_CONFIDENCE


def _format(decision: Decision) -> str:
    return f"{decision.action} {decision.confidence:.4g}"


def _sample(survey: Mapping[Place, Answer]) -> list[Place]:
    """Return places that signal and places spread over all. Deterministic for a survey."""
    signals = [place for place, answer in survey.items() if answer.decision is not None and answer.decision.signals]
    return sorted({*_spread(signals, SAMPLED), *_spread(list(survey), SAMPLED)})


def _spread(items: Sequence[T], most: int) -> list[T]:
    """Return at most *most* of *items*, evenly spaced and including the last one."""
    if len(items) <= most:
        return list(items)
    return [items[-1 - (k * len(items)) // most] for k in reversed(range(most))]


def _report(checks: list[Check], known: Mapping[Place, Decision]) -> Report:
    signals = sum(decision.signals for decision in known.values())
    warnings = [] if signals else ["no decision of the sample was a signal, so signals were not checked"]
    unexercised = [f"{check.name} was not exercised on any signal" for check in checks if signals and not check.signals]
    return Report(
        passed=all(check.passed for check in checks),
        checks=checks,
        decisions=len(known),
        signals=signals,
        warnings=warnings + unexercised,
    )
