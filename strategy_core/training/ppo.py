"""PPO for `ppo_gold`: each signal is an episode of one step, whose reward is the R of its trade."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256

import numpy as np
import pandas as pd

from strategy_core.domain.arrays import BoolArray, FloatArray
from strategy_core.domain.errors import TrainingFailed
from strategy_core.domain.scoring import ScoringRule, score
from strategy_core.strategies import ppo_gold
from strategy_core.strategies.ppo_gold import BARS, FEATURES, HIDDEN, LARGEST, ONE, Model, ModelCard, features, scores

UPDATES = 150
EPOCHS, BATCH = 4, 2_048
CLIP, ENTROPY = 0.2, 0.005
STEP, BETAS, TINY = 3e-3, (0.9, 0.999), 1e-8  # of Adam
MOST_R = 3.0  # of a reward: single trades must not decide a batch
SIGNALS_PER_DAY = 1.0  # in sample, by which `hold` is chosen
FEWEST, MOST = 0.3, 3.0  # signals a day, in every year of the training
LEAST_SIDE = 0.25  # share of the signals of either side
DEFAULT_RULE = ScoringRule()
_BUY, _SELL, _HOLD = 0, 1, 2
_MIRRORED = np.array([-1.0] * (len(FEATURES) - 1) + [1.0])

Weights = dict[str, FloatArray]
Progress = Callable[[int, float], None]  # number of updates so far, mean reward of the newest


@dataclass(frozen=True, slots=True)
class Lesson:
    """What the policy learns from, of shape (candles,): features and the R of a buy and of a sell."""

    opened_at: pd.DatetimeIndex
    rows: ppo_gold.IntArray
    rewards: FloatArray  # (candles, 2), NaN where the trade has not closed


def lesson(candles: pd.DataFrame, rule: ScoringRule) -> Lesson:
    """Return the features of each candle with BARS candles, and the R of its buy and its sell by *rule*."""
    if len(candles) <= BARS:
        raise TrainingFailed(f"{len(candles)} candles, needed are more than {BARS}")
    positions = np.arange(BARS - 1, len(candles))
    both = [score(candles, positions, np.full(len(positions), side), rule).r_multiple for side in (1.0, -1.0)]
    return Lesson(pd.DatetimeIndex(candles.index[BARS - 1 :]), features(candles), np.stack(both, axis=1))


def train(
    candles: pd.DataFrame,
    until: datetime,
    *,
    seed: int,
    tries: int = 5,
    updates: int = UPDATES,
    rule: ScoringRule = DEFAULT_RULE,
    progress: Progress = lambda _done, _reward: None,
) -> Model:
    """Train on the candles before *until*, with *tries* seeds from *seed* on, and return the median model by mean R.

    On one machine the same call gives the same model. Another machine may round differently while training, so the
    file of the model is its identity.

    Source: Schulman et al. (2017), "Proximal Policy Optimization Algorithms", with the clipped objective.

    Raises:
        TrainingFailed: too few candles, or no try is accepted: too few or too many signals in a year, or one side only.
    """
    used = candles[candles.index < pd.Timestamp(until)]
    learned = lesson(used, rule)
    known: BoolArray = np.asarray(~np.isnan(learned.rewards).any(axis=1))
    accepted: list[Model] = []
    problem = ""
    for number in range(tries):
        weights = _fit(
            learned.rows[known] / ONE,
            np.clip(learned.rewards[known], -MOST_R, MOST_R),
            np.random.default_rng(seed + number),
            updates,
            lambda done, reward, number=number: progress(number * updates + done, reward),  # type: ignore[misc]
        )
        model = _model(weights, learned, known, used, until, seed + number, tries, updates, rule)
        if not (problem := problem_of(model, learned)):
            accepted.append(model)
    if not accepted:
        raise TrainingFailed(f"none of {tries} tries is accepted, the last one because of {problem}")
    return sorted(accepted, key=lambda model: (model.card.mean_r, model.card.seed))[(len(accepted) - 1) // 2]


def signals(model: Model, learned: Lesson) -> tuple[ppo_gold.IntArray, ppo_gold.IntArray]:
    """Return the places of the signals in the lesson and their sides: 0 for a buy, 1 for a sell."""
    buy, sell = scores(model, learned.rows)
    places = np.flatnonzero((np.maximum(buy, sell) > model.hold) & (buy != sell))
    return places, (sell > buy)[places].astype(np.int64)


@dataclass(frozen=True, slots=True)
class Year:
    """What a model earned in a year, or in the part of it that *candles* cover.

    Attributes:
        mean_r, error: R a signal, and its standard error, with the trades of a day taken together.
    """

    year: int
    in_sample: bool
    signals: int
    win_rate: float
    mean_r: float
    error: float


def by_year(model: Model, candles: pd.DataFrame, rule: ScoringRule = DEFAULT_RULE) -> list[Year]:
    """Return what the model earns on *candles*, in and out of its sample."""
    learned = lesson(candles, rule)
    places, sides = signals(model, learned)
    earned = learned.rewards[places, sides]
    when = learned.opened_at[places]
    inside = when < pd.Timestamp(model.card.trained_until)
    found = []
    for year, in_sample in dict.fromkeys(zip(when.year.tolist(), inside.tolist(), strict=True)):
        mine = (when.year == year) & (inside == in_sample) & ~np.isnan(earned)
        r = earned[mine]
        if len(r) == 0:
            continue
        by_day = pd.Series(r - r.mean()).groupby(when[mine].floor("D")).sum()
        error = float(np.sqrt((by_day**2).sum()) / len(r))
        found.append(Year(year, in_sample, len(r), float((r > 0).mean()), float(r.mean()), error))
    return found


def problem_of(model: Model, learned: Lesson) -> str:
    """Return why a model is not accepted, or an empty text."""
    places, sides = signals(model, learned)
    for year in sorted(set(learned.opened_at.year)):
        mine = learned.opened_at.year == year
        days = len(set(learned.opened_at[mine].date))
        rate = float(mine[places].sum()) / days
        if not FEWEST <= rate <= MOST:
            return f"{rate:.2f} signals a day in {year}, allowed are {FEWEST:g} to {MOST:g}"
    least = min(float(np.mean(sides == side)) for side in (_BUY, _SELL))
    return "" if least >= LEAST_SIDE else f"{least:.0%} of the signals on one side, allowed is {LEAST_SIDE:.0%} or more"


def _fit(
    x: FloatArray, rewards: FloatArray, rng: np.random.Generator, updates: int, progress: Callable[[int, float], None]
) -> Weights:
    """Return the weights after *updates* rollouts over all rows of *x*, each learned from in EPOCHS epochs."""
    weights: Weights = {
        "w1": rng.normal(0, 1 / np.sqrt(x.shape[1]), (HIDDEN, x.shape[1])),
        "b1": np.full(HIDDEN, 0.1),
        "w2": rng.normal(0, 0.1, HIDDEN),
        "b2": np.zeros(1),
    }
    moments = {name: (np.zeros_like(each), np.zeros_like(each)) for name, each in weights.items()}
    paid = np.concatenate([rewards, np.zeros((len(rewards), 1))], axis=1)
    steps = 0
    for update in range(updates):
        chances, _ = _policy(weights, x)
        actions = (chances.cumsum(axis=1) < rng.random((len(x), 1))).sum(axis=1).clip(max=_HOLD)
        rows = np.arange(len(x))
        earned = paid[rows, actions]
        advantage = (earned - earned.mean()) / (earned.std() + TINY)
        before = np.log(chances[rows, actions])
        for _ in range(EPOCHS):
            for batch in np.array_split(rng.permutation(len(x)), max(1, len(x) // BATCH)):
                gradients = _gradients(weights, x[batch], actions[batch], advantage[batch], before[batch])
                steps += 1
                for name, gradient in gradients.items():
                    _adam(weights[name], gradient, moments[name], steps)
        progress(update + 1, float(earned.mean()))
    return weights


def _policy(weights: Weights, x: FloatArray) -> tuple[FloatArray, list[tuple[FloatArray, FloatArray]]]:
    """Return the chances of buy, sell and hold, shape (rows, 3), and (input, hidden) of both sides."""
    parts = []
    logits = np.zeros((len(x), 3))  # a hold's stays 0
    for action, side in ((_BUY, x), (_SELL, x * _MIRRORED)):
        hidden = np.clip(side @ weights["w1"].T + weights["b1"], 0, LARGEST / ONE)
        logits[:, action] = hidden @ weights["w2"] + weights["b2"]
        parts.append((side, hidden))
    logits -= logits.max(axis=1, keepdims=True)
    chances = np.exp(logits)
    return chances / chances.sum(axis=1, keepdims=True), parts


def _gradients(
    weights: Weights, x: FloatArray, actions: ppo_gold.IntArray, advantage: FloatArray, before: FloatArray
) -> Weights:
    """Return the gradients of the clipped objective with its bonus for entropy, to ascend."""
    chances, parts = _policy(weights, x)
    rows = np.arange(len(x))
    ratio = np.exp(np.log(chances[rows, actions]) - before)
    held = ((advantage > 0) & (ratio > 1 + CLIP)) | ((advantage < 0) & (ratio < 1 - CLIP))
    taken = np.zeros_like(chances)
    taken[rows, actions] = 1.0
    of_logits = np.where(held, 0.0, advantage * ratio)[:, None] * (taken - chances)
    logs = np.log(np.maximum(chances, TINY))
    of_logits -= ENTROPY * chances * (logs - (chances * logs).sum(axis=1, keepdims=True))
    of_logits /= len(x)
    found: Weights = {name: np.zeros_like(each) for name, each in weights.items()}
    for action, (side, hidden) in zip((_BUY, _SELL), parts, strict=True):
        of_score = of_logits[:, action]
        found["w2"] += of_score @ hidden
        found["b2"] += of_score.sum()
        inside = (hidden > 0) & (hidden < LARGEST / ONE)
        of_hidden = np.outer(of_score, weights["w2"]) * inside
        found["w1"] += of_hidden.T @ side
        found["b1"] += of_hidden.sum(axis=0)
    return found


def _adam(weight: FloatArray, gradient: FloatArray, moments: tuple[FloatArray, FloatArray], step: int) -> None:
    first, second = moments
    first += (1 - BETAS[0]) * (gradient - first)
    second += (1 - BETAS[1]) * (gradient**2 - second)
    weight += STEP * (first / (1 - BETAS[0] ** step)) / (np.sqrt(second / (1 - BETAS[1] ** step)) + TINY)


def _model(
    weights: Weights,
    learned: Lesson,
    known: BoolArray,
    used: pd.DataFrame,
    until: datetime,
    seed: int,
    tries: int,
    updates: int,
    rule: ScoringRule,
) -> Model:
    """Return the weights as whole numbers, with the `hold` that gives SIGNALS_PER_DAY, and the card."""
    whole = {name: np.rint(each * ONE).astype(int) for name, each in weights.items()}
    empty = {"mean_r": 0.0, "win_rate": 0.0, "signals_per_day": 0.0, "buys": 0.0}
    card = ModelCard(
        candles=candles_digest(used),
        first=used.index[0].isoformat(),
        trained_until=until.isoformat(),
        seed=seed,
        tries=tries,
        updates=updates,
        code=sha256((inspect.getsource(ppo_gold) + inspect.getsource(inspect.getmodule(_model))).encode()).hexdigest(),  # type: ignore[arg-type]
        rule=rule.model_dump(mode="json"),
        **empty,
    )
    w1, b1, w2, b2 = (whole[name].tolist() for name in ("w1", "b1", "w2", "b2"))
    draft = Model(w1=w1, b1=b1, w2=w2, b2=b2[0], hold=0, card=card)
    best = np.sort(np.maximum(*scores(draft, learned.rows)))
    days = len(set(learned.opened_at.date))
    wanted = min(len(best) - 1, round(SIGNALS_PER_DAY * days))
    model = draft.model_copy(update={"hold": int(best[-1 - wanted])})
    places, sides = signals(model, learned)
    earned = learned.rewards[places, sides]
    earned = earned[known[places]]
    if len(earned) == 0:
        return model
    facts = {
        "mean_r": round(float(earned.mean()), 6),
        "win_rate": round(float((earned > 0).mean()), 6),
        "signals_per_day": round(len(places) / days, 6),
        "buys": round(float((sides == _BUY).mean()), 6),
    }
    return model.model_copy(update={"card": card.model_copy(update=facts)})


def candles_digest(candles: pd.DataFrame) -> str:
    """Return the sha256 of the times and prices that training reads."""
    prices = candles[["open", "high", "low", "close"]].to_numpy(np.float64)
    times = pd.DatetimeIndex(candles.index).as_unit("ns").asi8
    return sha256(times.astype("<i8").tobytes() + np.ascontiguousarray(prices, "<f8").tobytes()).hexdigest()
