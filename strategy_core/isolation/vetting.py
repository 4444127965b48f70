"""The checks at registration: whether a version's code is deterministic, isolated and free of look-ahead.

They repeat a fixed, bounded sample of decisions under changed conditions: in another order, in a new process, under
another clock, with a changed future, with a longer history, and vectorised. Neighbouring candles are asked in both
directions. A fit version gives the same decisions each time. The sample prefers decisions that are signals. Whether a
version is profitable is not checked here.

Tolerances. Determinism and look-ahead allow no difference (1e-9 in the numbers of a `decide_many`, whose sums may have
another order). Window: an indicator with infinite memory, such as Wilder's or an EMA, keeps a trace of its start. On a
history of twice `warmup_bars`, up to 2 % of the decisions and up to 2 % of the signals (rounded down) may change their
action or move their confidence by more than 0.01. On six years of hourly gold, Wilder's RSI(14) differs on 31 % of the
"oversold" and "overbought" candles with a warm-up of 30 candles, on 5.5 % with 55, 0.25 % with 100 and 0 % with 150.

Answers of a fit version are kept with their windows, so that each machine that runs it can be asked for the same ones.
"""

import gzip
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from hashlib import sha256
from io import BytesIO
from statistics import median
from typing import Self, TypeVar

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from strategy_core.domain.candles import Windows, timeframe_delta
from strategy_core.domain.errors import Invalid, IsolationBreach, StrategyFailed, StrategyOverdue, Untrusted
from strategy_core.domain.strategy import Action, Decision, Intent
from strategy_core.isolation import protocol
from strategy_core.isolation.client import DecisionRequest, IsolatedStrategy
from strategy_core.isolation.protocol import Answer

SURVEYED = 240  # decisions searched for signals
SURVEYED_AT_ONCE = 20_000  # with decide_many
SAMPLED = 40  # signals, and as many decisions spread over the history
FUTURE_BARS = 24
WINDOW_SHARE = 0.02
WINDOW_CONFIDENCE = 0.01
CLOSE = 1e-9
IN_A_ROW = (24, 120)  # neighbouring candles
IN_A_ROW_MS = 120.0
ANOTHER_CLOCK = timedelta(days=400, hours=13)  # another year, day of the week, and hour
KEPT_ANSWERS = 64
KEPT_MS = 100.0  # time to answer all of them again
KEPT_BYTES = 200_000

REMEMBERS = "it remembers something between candles"
CHANCE = "it draws random numbers, or depends on the time or on the order of a set"
CLOCK = "it reads the clock"
AHEAD = "it uses candles after the one that it decides on"
FRAME = "it depends on the number of candles that it gets, as a mean over the whole frame does, or its warm-up is short"

Place = tuple[str, int]  # symbol, position of the candle decided on
T = TypeVar("T")
Same = Callable[[Decision, Decision], bool]
Pair = tuple[Place, Decision, Answer]


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

    answers_digest: str = ""  # of the answers that each worker is asked again, "" without any
    answers_windows: int = 0
    trained_until: datetime | None = None  # what the version says of the candles that it was fitted to
    given_digest: str = ""  # of the config as it was given, before the defaults were filled in


@dataclass(frozen=True, slots=True)
class KnownAnswers:
    """A version's answers on some windows of its vetting.

    Attributes:
        asks: the windows, with their candles.
        decisions: the answers, in the order of the asks and their positions.
    """

    asks: Sequence[DecisionRequest]
    decisions: Sequence[Decision]

    @property
    def digest(self) -> str:
        """Return the sha256 hex of all actions, confidences rounded to 1e-9, and reasons."""
        rows = [[each.action.value, round(each.confidence, 9), each.reason, *_closing(each)] for each in self.decisions]
        return sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()

    def content(self) -> bytes:
        """Return everything as bytes, compressed."""
        windows = [Windows(ask.candles) for ask in self.asks if isinstance(ask.candles, pd.DataFrame)]
        header = {
            "asks": [
                [ask.symbol, ask.timeframe, ask.bars, each.columns, list(ask.positions)]
                for ask, each in zip(self.asks, windows, strict=True)
            ],
            "decisions": [
                [each.action.value, each.confidence, each.reason, *_closing(each)] for each in self.decisions
            ],
        }
        tables = [each.rows(0, len(each)) for each in windows]
        return gzip.compress(protocol.frame(header, tables), compresslevel=6, mtime=0)

    @classmethod
    def read(cls, content: bytes) -> Self:
        """Return what `content` was made of."""
        header, tables = protocol.read_frame(BytesIO(gzip.decompress(content)).read) or ({}, [])
        asks = [
            DecisionRequest(symbol, timeframe, _candles_in(columns, table), positions, bars)
            for (symbol, timeframe, bars, columns, positions), table in zip(header["asks"], tables, strict=True)
        ]
        decisions = [
            Decision(Action(action), sure, {}, reason, *map(Intent, intent))
            for action, sure, reason, *intent in header["decisions"]
        ]
        return cls(asks, decisions)


@dataclass(frozen=True, slots=True)
class Vetted:
    """The report, and the answers to keep: None for an unfit version, or if no window is small enough."""

    report: Report
    known_answers: bytes | None = None


def first_difference(strategy: IsolatedStrategy, known: KnownAnswers) -> str | None:
    """Ask a version for known answers. Return the first window with another answer, and both answers.

    Raises:
        IsolationBreach: the version tried to touch the outside.
        StrategyFailed: its worker died or did not answer in time, so that nothing is known.
    """
    answered = strategy.decide(known.asks, vectorised=True)
    places = [(ask, position) for ask in known.asks for position in ask.positions]
    given = [answer for answers in answered for answer in answers]
    for (ask, position), answer, before in zip(places, given, known.decisions, strict=True):
        if answer.kind == "breach":
            raise IsolationBreach(str(answer.error))
        if answer.kind in {"died", "deadline"}:
            failed = StrategyOverdue if answer.kind == "deadline" else StrategyFailed
            raise failed(f"asked for known answers: {answer.error}")
        if answer.decision is None or not _same_answer(before, answer.decision):
            at = f"{ask.symbol} {ask.candles.index[position]:%Y-%m-%d %H:%M}"  # type: ignore[union-attr]
            now = str(answer.error) if answer.decision is None else _format(answer.decision)
            return f"{at}: {_format(before)} at registration, {now} now"
    return None


def _candles_in(columns: Sequence[str], table: bytes) -> pd.DataFrame:
    rows = np.frombuffer(table, "<i8").reshape(-1, 1 + len(columns))
    index = pd.DatetimeIndex(rows[:, 0].astype("M8[ns]"), tz="UTC")
    return pd.DataFrame(rows[:, 1:].copy().view("<f8"), index=index, columns=pd.Index(list(columns)))


def _closing(decision: Decision) -> list[str]:
    """Return the intent if it is to close, else nothing: the answers of versions without one stay what they were."""
    return [decision.intent.value] if decision.intent is Intent.CLOSE else []


def _same_answer(a: Decision, b: Decision) -> bool:
    return (a.action, a.intent, a.reason) == (b.action, b.intent, b.reason) and abs(
        a.confidence - b.confidence
    ) <= CLOSE


def vet(strategy: IsolatedStrategy, candles: Mapping[str, pd.DataFrame], *, timeframe: str) -> Vetted:
    """Run all checks on a version. A version that fails is not an error.

    Args:
        strategy: the version. Its worker is restarted during the checks.
        candles: symbol -> history. A longer history exercises more signals.
        timeframe: of the candles.
    """
    delta = timeframe_delta(timeframe)
    try:
        described = strategy.describe()
    except (Untrusted, Invalid) as refused:
        return Vetted(_report([Check(name="loads", passed=False, detail=str(refused), decisions=0, signals=0)], {}))
    trial = _Trial(strategy, candles, timeframe, described.warmup_bars, described.vectorised, pd.Timedelta(delta))
    survey = trial.survey()
    sample = _sample(survey)
    answers = trial.ask(sample)
    known = {place: answer.decision for place, answer in answers.items() if answer.decision is not None}
    checks = [_validity(survey | answers, trial), _isolation(strategy, answers)]
    if not all(check.passed for check in checks):
        return Vetted(_report(checks, known))
    ms = median(answer.duration_ms for answer in answers.values())
    checks += _repetition(trial, known, ms)
    steady = all(check.passed for check in checks)
    at_once = trial.ask(known, at_once=True) if described.vectorised else {}
    checks += [
        *([_clock(trial, known, at_once)] if steady else []),
        _look_ahead(trial, known, cause=AHEAD if steady else ""),
        _window(trial, known, cause=FRAME if steady else ""),
        *([_vectorised(trial, known, at_once)] if described.vectorised else []),
    ]
    report = _report(checks, known)
    report = report.model_copy(update={"warnings": [*described.notes, *report.warnings]})
    if not report.passed:
        return Vetted(report)
    kept = _keep(trial, known, median(answer.duration_ms for answer in survey.values()) if described.vectorised else ms)
    if kept is None:
        return Vetted(report)
    known_answers, content = kept
    facts = {"answers_digest": known_answers.digest, "answers_windows": len(known_answers.decisions)}
    return Vetted(report.model_copy(update=facts), content)


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

    def in_a_row(self, ms: float) -> list[Place]:
        """Return the newest candles of each symbol, in their order."""
        least, most = IN_A_ROW
        each = int(min(most, max(least, IN_A_ROW_MS / max(ms, 1e-3)))) // max(1, len(self.candles)) + 1
        return [
            (symbol, p)
            for symbol, frame in self.candles.items()
            for p in range(max(self.bars - 1, len(frame) - each), len(frame))
        ]

    def cut(self, places: Iterable[Place]) -> list[DecisionRequest]:
        """Return requests for *places* with no more candles than they need."""
        by_symbol: dict[str, list[int]] = {}
        for symbol, position in sorted(places):
            by_symbol.setdefault(symbol, []).append(position)
        starts = {symbol: positions[0] - self.bars + 1 for symbol, positions in by_symbol.items()}
        return [
            DecisionRequest(
                symbol,
                self.timeframe,
                self.candles[symbol].iloc[starts[symbol] : positions[-1] + 1],
                [position - starts[symbol] for position in positions],
                self.bars,
            )
            for symbol, positions in by_symbol.items()
        ]

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


def _repetition(trial: _Trial, known: Mapping[Place, Decision], ms: float) -> list[Check]:
    """Ask again in reverse order, then in a new process. Ask neighbouring candles in a row, in both directions."""
    row = trial.in_a_row(ms)
    backwards, row_backwards = trial.ask(reversed(list(known))), trial.ask(reversed(row))
    trial.strategy.close()
    fresh, row_forwards = trial.ask(known), trial.ask(row)
    pairs = [(place, known[place], again[place]) for again in (backwards, fresh) for place in known]
    failed = _validity(row_forwards, trial)
    if not failed.passed:
        return [_compared("determinism", trial, pairs, same=_equal), failed.model_copy(update={"name": "memory"})]
    neighbours = _pairs(row_forwards, row_backwards)
    cause = ""
    if _differing(pairs, _equal) or _differing(neighbours, _equal):
        trial.strategy.close()
        cause = CHANCE if _differing(_pairs(fresh, trial.ask(known)), _equal) else REMEMBERS
    determinism = _compared("determinism", trial, pairs, same=_equal, cause=cause)
    memory = _compared("memory", trial, neighbours, same=_equal, cause=cause)
    if not memory.passed:
        symbol, position = _differing(neighbours, _equal)[0][0]
        last = len(trial.candles[symbol]) - 1
        before, after = trial.at((symbol, position - 1)), trial.at((symbol, min(position + 1, last)))
        memory = memory.model_copy(update={"detail": f"{memory.detail} (asked after {before}, then after {after})"})
    return [determinism, memory]


def _pairs(first: Mapping[Place, Answer], again: Mapping[Place, Answer]) -> list[Pair]:
    return [(place, answer.decision, again[place]) for place, answer in first.items() if answer.decision is not None]


def _clock(trial: _Trial, known: Mapping[Place, Decision], at_once: Mapping[Place, Answer]) -> Check:
    """Ask again in a process whose clock is moved, also what a decide_many has answered *at_once*."""
    with trial.strategy.under_clock(ANOTHER_CLOCK) as elsewhere:
        moved = replace(trial, strategy=elsewhere)
        pairs = [(place, known[place], answer) for place, answer in moved.ask(known).items()]
        pairs += _pairs(at_once, moved.ask(at_once, at_once=True))
    return _compared("clock", trial, pairs, same=_equal, cause=CLOCK)


def _keep(trial: _Trial, known: Mapping[Place, Decision], ms: float) -> tuple[KnownAnswers, bytes] | None:
    """Return up to 64 answers with their windows, also as bytes: the newest, if all are too slow or too large.

    Args:
        ms: for one decision, or for one row of a decide_many.
    """
    places = _spread(sorted(known, key=lambda place: (trial.candles[place[0]].index[place[1]], place)), KEPT_ANSWERS)
    while places:
        asks = trial.cut(places)
        work = sum(len(ask.candles) - ask.bars + 1 for ask in asks) if trial.vectorised else len(places)
        if work * ms <= KEPT_MS or len(places) == 1:
            answers = [each for answers in trial.strategy.decide(asks, vectorised=True) for each in answers]
            kept = KnownAnswers(asks, [answer.decision for answer in answers if answer.decision is not None])
            if len(kept.decisions) == len(places) and len(content := kept.content()) <= KEPT_BYTES:
                return kept, content
        places = places[-(-len(places) // 4) :]
    return None


def _look_ahead(trial: _Trial, known: Mapping[Place, Decision], *, cause: str) -> Check:
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
    return _compared("look-ahead", trial, pairs, same=_close, cause=cause)


def _window(trial: _Trial, known: Mapping[Place, Decision], *, cause: str) -> Check:
    """Ask again with twice the history, which changes the answers if `warmup_bars` is too short."""
    longer = 2 * trial.bars
    places = [place for place in known if place[1] >= longer - 1]
    answers = trial.ask(places, bars=longer)
    pairs = [(place, known[place], answers[place]) for place in places]
    if not pairs:
        detail = f"not exercised: no candle of the sample has a history of {longer} candles"
        return Check(name="window", passed=True, detail=detail, decisions=0, signals=0)
    failed = _validity(answers, trial)
    if not failed.passed:
        return failed.model_copy(update={"name": "window"})
    return _compared("window", trial, pairs, same=_alike, tolerated=WINDOW_SHARE, cause=cause)


def _vectorised(trial: _Trial, known: Mapping[Place, Decision], at_once: Mapping[Place, Answer]) -> Check:
    return _compared("vectorised", trial, [(place, known[place], at_once[place]) for place in known], same=_close)


def _compared(
    name: str,
    trial: _Trial,
    pairs: Sequence[Pair],
    *,
    same: Same,
    tolerated: float = 0.0,
    cause: str = "",
) -> Check:
    """Return the check. *cause* opens the detail of one that did not pass."""
    differ = _differing(pairs, same)
    signals = sum(_signal(pair) for pair in pairs)
    passed = len(differ) <= tolerated * len(pairs) and sum(map(_signal, differ)) <= tolerated * signals
    detail = f"{len(differ)} of {len(pairs)} decisions differ"
    if differ:
        place, before, after = differ[0]
        then = _format(after.decision) if after.decision is not None else str(after.error)
        detail += f", the first on {trial.at(place)}: {_format(before)}, then {then}"
    if cause and not passed:
        detail = f"{cause}: {detail}"
    return Check(name=name, passed=passed, detail=detail, decisions=len(pairs), signals=signals)


def _differing(pairs: Sequence[Pair], same: Same) -> list[Pair]:
    return [pair for pair in pairs if pair[2].decision is None or not same(pair[1], pair[2].decision)]


def _equal(a: Decision, b: Decision) -> bool:
    return a == b


def _signal(pair: tuple[Place, Decision, Answer]) -> bool:
    return pair[1].signals or (pair[2].decision is not None and pair[2].decision.signals)


def _close(a: Decision, b: Decision) -> bool:
    """Return whether two decisions are equal up to rounding of their numbers."""
    if (a.action, a.intent, a.reason, a.features.keys()) != (b.action, b.intent, b.reason, b.features.keys()):
        return False
    pairs = [(a.confidence, b.confidence), *((a.features[name], b.features[name]) for name in a.features)]
    return all(
        math.isclose(x, y, rel_tol=CLOSE, abs_tol=CLOSE) if isinstance(x, float) and isinstance(y, float) else x == y
        for x, y in pairs
    )


def _alike(a: Decision, b: Decision) -> bool:
    same = a.action is b.action and a.intent is b.intent
    return same and abs(a.confidence - b.confidence) <= WINDOW_CONFIDENCE


def _format(decision: Decision) -> str:
    return " ".join([decision.action, f"{decision.confidence:.4g}", *_closing(decision)])


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
