"""Simulated races: how owners' candidates would fare under several ways to give users to versions.

All randomness comes from the generator that is passed in. A policy sees each UTC day after it has closed, and all of
them begin with the same days of shadow.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

import numpy as np

from strategy_core.domain import race
from strategy_core.domain.allocation import reallocate
from strategy_core.domain.arrays import BoolArray, FloatArray, IntArray
from strategy_core.domain.calibration import RampResult, run_ramp, simulable, upper_limit
from strategy_core.domain.pair_noise import measure
from strategy_core.domain.plan import Plan
from strategy_core.domain.race import Canary, Day, Entry, Pairs, Ruling, Standings, Step
from strategy_core.domain.simulation import MEAN_SIZE, ROOT_MEAN_SQUARE_R, SIZE_SPREAD, Ramp
from strategy_core.domain.slots import Slots

USERS = 200  # whose versions are followed one by one
ACTIVE = "active"
WORSE_BY = 0.02  # R a slot: a version is worse than the active one if its mean is lower by more


@dataclass(frozen=True, slots=True)
class RaceScenario:
    """Candidates against an active version of 55 % wins.

    Attributes:
        edges: R per slot that each candidate earns more than the active version. The last one is for all others.
        slots_per_day: spread evenly.
        apart: share of slots on which a candidate decides for itself. On the others it does what the active one does.
        together: share of these on which all candidates that are apart have the same result.
        clones: the candidates come in pairs that differ on 0.4 % of slots.
        turns_on: day of the race from which the first candidate earns 0.15 R a slot less than the active version.
        tail: sizes follow a Student t with these degrees of freedom. 0: lognormal.
        day_swing: standard deviation of each candidate's win rate between days, on its own slots.
    """

    name: str
    edges: tuple[float, ...]
    slots_per_day: int = 24
    apart: float = 0.4
    together: float = 0.0
    clones: bool = False
    turns_on: int | None = None
    tail: float = 0.0
    day_swing: float = 0.0


SCENARIOS = {
    each.name: each
    for each in (
        RaceScenario("all_equal", (0.0,)),
        RaceScenario("one_better", (0.05, 0.0)),
        RaceScenario("one_better_among_worse", (0.05, -0.15)),
        RaceScenario("all_worse", (-0.1,)),
        RaceScenario("one_turns_bad", (0.05, 0.0), turns_on=30),
        RaceScenario("near_clones", (0.05, 0.0), clones=True),
        RaceScenario("correlated", (0.05, 0.0), together=0.8),
        RaceScenario("heavy_tails", (0.05, 0.0), tail=2.5),
        RaceScenario("days_that_differ", (0.05, 0.0), day_swing=0.1),
    )
}
ACTIVE_WINS, HOLDS, IDLE = 0.55, 0.15, 0.1


@dataclass(frozen=True, slots=True)
class Market:
    """The results of a race, by slot. Column 0 is the active version's.

    Attributes:
        r: R, 0 where a version held, shape (slots, versions).
        signalled: shape (slots, versions).
        day: of each slot, from minus the days of shadow on.
        edges: R per slot that each version truly earns more than the active one, shape (days of the race, versions).
    """

    r: FloatArray
    signalled: BoolArray
    day: IntArray
    edges: FloatArray

    def of_day(self, day: int) -> Day:
        rows = slice(*np.searchsorted(self.day, [day, day + 1]).tolist())
        return Day(self.r[rows], np.ones(self.r[rows].shape, np.bool_), self.signalled[rows])

    def pair(self, candidate: int, active: int, first: int, last: int) -> Slots:
        """Return the slots of two versions on the days [first, last)."""
        rows = slice(*np.searchsorted(self.day, [first, last]).tolist())
        side = self.signalled[rows].astype(np.int64)
        found = Slots(
            self.day[rows],
            self.r[rows, candidate],
            self.r[rows, active],
            side[:, candidate],
            side[:, active],
            np.zeros(len(side), np.int64),
        )
        return found.take((side[:, candidate] + side[:, active]) > 0)


def simulate_market(
    scenario: RaceScenario, candidates: int, rng: np.random.Generator, *, days: int, shadow_days: int
) -> Market:
    """Return the results of *candidates* and the active version."""
    n, k = (days + shadow_days) * scenario.slots_per_day, candidates
    day = np.repeat(np.arange(-shadow_days, days), scenario.slots_per_day)
    edges = np.array([scenario.edges[min(i, len(scenario.edges) - 1)] for i in range(k)])
    by_day = np.tile(edges, (days + shadow_days, 1))
    if scenario.clones:
        by_day[:, 1::2] = by_day[:, 0 : k - k % 2 : 2]
    if scenario.turns_on is not None:
        by_day[shadow_days + scenario.turns_on :, 0] = -0.15
    swing = scenario.day_swing * rng.standard_normal(by_day.shape)

    active_on = rng.random(n) >= IDLE
    common = np.where(active_on, _trades(scenario, rng, np.full(n, ACTIVE_WINS)), 0.0)
    own_on = rng.random((n, k)) < scenario.apart
    held = rng.random((n, k)) < HOLDS
    needed = (by_day / MEAN_SIZE + scenario.apart * (1 - IDLE) * (2 * ACTIVE_WINS - 1)) / (scenario.apart * (1 - HOLDS))
    wins = np.clip((1 + needed) / 2 + swing, 0.02, 0.98)[day + shadow_days]
    luck, size = rng.random((n, k)), _sizes(scenario, rng, (n, k))
    shared = rng.random(n) < scenario.together
    luck[shared], size[shared] = rng.random((int(shared.sum()), 1)), _sizes(scenario, rng, (int(shared.sum()), 1))
    own_on[shared], held[shared] = own_on[shared][:, :1], held[shared][:, :1]
    own = np.where(held, 0.0, np.where(luck < wins, size, -size))
    if scenario.clones:
        alike = rng.random((n, k // 2)) >= 0.01
        for each, twin in ((own, 1), (own_on, 1)):
            each[:, twin::2] = np.where(alike, each[:, 0 : k - k % 2 : 2], each[:, twin::2])
    r = np.column_stack([common, np.where(own_on, own, common[:, None])])
    signalled = np.column_stack([active_on, np.where(own_on, own != 0, active_on[:, None])])
    return Market(r, signalled, day, np.column_stack([np.zeros(days), by_day[shadow_days:]]))


def _sizes(scenario: RaceScenario, rng: np.random.Generator, shape: tuple[int, ...]) -> FloatArray:
    if scenario.tail:
        drawn = np.abs(rng.standard_t(scenario.tail, shape))
        sizes: FloatArray = drawn * MEAN_SIZE / float(np.abs(rng.standard_t(scenario.tail, 100_000)).mean())
        return sizes
    lognormal: FloatArray = (
        np.exp(SIZE_SPREAD * rng.standard_normal(shape)) * ROOT_MEAN_SQUARE_R / np.exp(SIZE_SPREAD**2)
    )
    return lognormal


def _trades(scenario: RaceScenario, rng: np.random.Generator, wins: FloatArray) -> FloatArray:
    size = _sizes(scenario, rng, wins.shape)
    trades: FloatArray = np.where(rng.random(wins.shape) < wins, size, -size)
    return trades


@dataclass(slots=True)
class Served:
    """What a policy did: the version of each user on each day of the race, shape (days, users), and its claims.

    Attributes:
        promoted: versions that came to serve all users, with the day.
        eliminated: versions that the race ruled out.
        events: (day, version, what happened to it), of a policy that starts rollouts.
        at_end: standings after the last day, of a policy with a race.
    """

    versions: IntArray
    promoted: list[tuple[int, int]] = field(default_factory=list)
    eliminated: set[int] = field(default_factory=set)
    events: list[tuple[int, int, str]] = field(default_factory=list)
    at_end: Standings | None = None


@dataclass(frozen=True, slots=True)
class Known:
    """What a policy is given.

    Attributes:
        shadow_days: that every policy knows when it begins.
        plan: of the rollouts.
        places: of the users among all, in [0, 1), shape (users,). Those below a canary's percent are served by it.
        rng: for policies that draw.
        names: of the versions, for the words of a race. Default: `active`, then their numbers.
    """

    market: Market
    shadow_days: int
    plan: Plan
    places: FloatArray
    rng: np.random.Generator
    names: Sequence[str] = ()


Policy: TypeAlias = Callable[[Known], Served]
Weigh: TypeAlias = Callable[[FloatArray, np.random.Generator], FloatArray]


_SAID = {
    Step.NOMINATE: "its rollout starts",
    Step.SUPERSEDE: "its rollout is ended",
    Step.WITHDRAW: "its rollout is ended",
    Step.RETURN: "its users go back",
}


def race_by_ramp(case: Known, *, foreseen: bool = False) -> Served:
    """Nominate the leader, and give it users by a rollout with the gates of the plan.

    Args:
        foreseen: nominate the truly best version on the eve of the first day, and stay with it. No rule can know that:
            it bounds what any nomination could earn through the same rollouts.
    """
    market, places = case.market, case.places
    days, k = market.edges.shape
    names = list(case.names) or [ACTIVE, *(str(number) for number in range(1, k))]
    path = _path(market, case.shadow_days)
    falls = np.stack([each.decline for each in path])  # no matter who has users: a rollout can look up when it is held
    entries: Sequence[Entry] = [Entry(name) for name in names]
    served = Served(np.zeros((days, len(places)), np.int64))
    plan = simulable(case.plan)[0].model_copy(update={"approve_before": ()})  # an owner approves at once
    steady = market.edges.mean(axis=0)
    now = _Serving()
    for day in range(days):
        served.events += now.end_what_is_over(day)
        at = race.standings(path[day], entries, active=names[now.active], began=k, bounded=False)
        entries = at.entries
        ruling = race.rule(
            at,
            now.canary(day, path[day], names),
            refused=[names[version] for version in now.refused],
            days_since_superseded=day - now.ended,
            predecessor=None if now.predecessor is None else names[now.predecessor],
        )
        if foreseen:
            wanted = day == 0 and steady.max() > 0
            ruling = Ruling(Step.NOMINATE if wanted else Step.WAIT, names[int(steady.argmax())], "foreseen")
        version = names.index(ruling.version or names[0])
        served.events += now.obey(day, ruling, version)
        if ruling.step in (Step.NOMINATE, Step.SUPERSEDE):
            held = frozenset(np.flatnonzero(falls[day + 1 :, version, now.active] >= race.HOLD_AT).tolist())
            now.rollout = _Rollout.begin(case, plan, version, now.active, day, frozenset() if foreseen else held)
        if now.rollout is not None and now.rollout.is_promoted_on(day):
            served.promoted.append((now.rollout.version, day))
            served.events.append((day, now.rollout.version, "promoted"))
        share, canary = (0.0, now.active) if now.rollout is None else (now.rollout.share(day), now.rollout.version)
        served.versions[day] = np.where(places < share, canary, now.active)
    served.at_end = race.standings(path[-1], entries, active=names[now.active], began=k, bounded=False)
    out = [each.version for each in served.at_end.entries if each.eliminated_by is not None]
    served.eliminated = set(map(names.index, out))
    return served


@dataclass(slots=True)
class _Serving:
    """Who serves users in a race by ramp.

    Attributes:
        watched: the rollout that made the active version active, while it is watched.
        ended: day on which the race last ended a rollout.
        refused: versions that were rolled back.
    """

    active: int = 0
    predecessor: int | None = None
    rollout: "_Rollout | None" = None
    watched: "_Rollout | None" = None
    ended: float = -np.inf
    refused: list[int] = field(default_factory=list)

    def end_what_is_over(self, day: int) -> list[tuple[int, int, str]]:
        """End the rollout that gates rolled back, or whose bake is over, or whose watch has proven harm."""
        events = []
        rollout = self.rollout
        if rollout is not None and day >= rollout.rolled_back:
            self.refused.append(rollout.version)
            events.append((day, rollout.version, f"rolled back by the gate {rollout.result.gate}"))
            self.rollout = None
        elif rollout is not None and day >= rollout.completed:
            self.active, self.predecessor = rollout.version, self.active
            self.watched, self.rollout = rollout, None
        if self.watched is not None and self.predecessor is not None and day >= self.watched.harm_proven:
            self.refused.append(self.active)
            events.append((day, self.active, "rolled back by the standing watch"))
            self._go_back()
        return events

    def canary(self, day: int, pairs: Pairs, names: Sequence[str]) -> Canary | None:
        """Return the open rollout as the rules of a race see it."""
        if self.rollout is None:
            return None
        against = pairs.log_e[:, self.rollout.version] / np.log(10)
        percent = self.rollout.share(day) * 100
        return Canary(names[self.rollout.version], percent, dict(zip(names, against.tolist(), strict=True)))

    def obey(self, day: int, ruling: Ruling, version: int) -> list[tuple[int, int, str]]:
        """End what the ruling ends. A rollout that it nominates is started by the caller."""
        if ruling.step is Step.WAIT:
            return []
        concerned = version if self.rollout is None else self.rollout.version
        if ruling.step is Step.RETURN:
            concerned = self.active
            self._go_back()
        elif ruling.step in (Step.WITHDRAW, Step.SUPERSEDE):
            self.ended, self.rollout = day, None
        return [(day, concerned, f"{_SAID[ruling.step]}: {ruling.reason}")]

    def _go_back(self) -> None:
        self.active = self.active if self.predecessor is None else self.predecessor
        self.predecessor = self.watched = self.rollout = None


def _path(market: Market, shadow_days: int) -> list[Pairs]:
    """Return the pairs before each day of the race, and after the last."""
    path = [warmed(market, shadow_days)]
    for day in range(len(market.edges)):
        path.append(race.add_day(path[-1], market.of_day(day)))
    return path


@dataclass(frozen=True, slots=True)
class _Rollout:
    version: int
    began: int
    result: RampResult

    @classmethod
    def begin(cls, case: Known, plan: Plan, version: int, active: int, day: int, held: Set[int]) -> "_Rollout":
        market, shadow_days = case.market, case.shadow_days
        days = len(market.edges) - day
        history = measure(market.pair(version, active, -shadow_days, day), shadow_days + day, symbols=["S0"])
        slots = market.pair(version, active, day, day + days)
        _, places = np.unique(slots.day, return_index=True)
        counts = np.diff([*places, len(slots)])
        within = np.concatenate([(np.arange(count) + 1) / count for count in counts.tolist()] or [np.zeros(0)])
        ramp = Ramp(slots, slots.day - day + within, np.zeros(len(slots), np.bool_))
        return cls(version, day, run_ramp(plan, history, ramp, days=days, every_hours=24, held_days=held))

    @property
    def promoted_on(self) -> float | None:
        return None if self.result.promoted_on is None else self.began + self.result.promoted_on

    @property
    def completed(self) -> float:
        """The day on which its bake ends."""
        return self.began + (np.inf if self.result.completed_on is None else self.result.completed_on)

    @property
    def rolled_back(self) -> float:
        """The day on which a gate rolls it back before its bake has ended."""
        return self._ended if self.result.completed_on is None else np.inf

    @property
    def harm_proven(self) -> float:
        """The day on which the standing watch proves harm."""
        return np.inf if self.result.completed_on is None else self._ended

    @property
    def _ended(self) -> float:
        return self.began + (np.inf if self.result.days is None else self.result.days)

    def is_promoted_on(self, day: int) -> bool:
        return self.promoted_on is not None and int(self.promoted_on) == day

    def share(self, day: int) -> float:
        """The share of users that it serves on that day: of the stage that the day began with."""
        entered = [percent for at, percent in self.result.stages if self.began + at <= day]
        return entered[-1] / 100 if entered else 0.0


def warmed(market: Market, shadow_days: int) -> Pairs:
    """Return the pairs with the days of shadow as evidence: a race counts from the registration of its versions."""
    pairs = race.begin(market.edges.shape[1])
    for day in range(-shadow_days, 0):
        pairs = race.add_day(pairs, market.of_day(day))
    return pairs


def by_weights(weigh: Weigh) -> Policy:
    """Return the policy that gives users to versions by weights, which *weigh* draws each night.

    Args:
        weigh: from the sums of R of all closed days, shape (days, versions), to weights that sum to 1.
    """

    def policy(case: Known) -> Served:
        days, k = case.market.edges.shape
        shadow_days = case.shadow_days
        sums = np.stack([case.market.of_day(day).r.sum(axis=0) for day in range(-shadow_days, days)])
        served = Served(np.zeros((days, len(case.places)), np.int64))
        present = served.versions[0]
        for day in range(days):
            weights = weigh(sums[: shadow_days + day], case.rng) if shadow_days + day else np.eye(k)[0]
            served.versions[day] = present = reallocate(present, weights)
            if weights.max() > 0.99 and (best := int(weights.argmax())):
                served.promoted.append((best, day))
        return served

    return policy


def thompson(sums: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Give each version the users that it wins in 500 draws from the normal posterior of its mean day, at least 1 %.

    Source: Thompson (1933). The versions' days are not paired, as in bandits that see the results of users.
    """
    days, k = sums.shape
    weights: FloatArray = np.eye(k)[0]
    if days < 2:
        return weights
    mean, error = sums.mean(axis=0), sums.std(axis=0, ddof=1) / np.sqrt(days)
    drawn = rng.normal(mean, error, (500, k)).argmax(axis=1)
    weights = np.maximum(np.bincount(drawn, minlength=k) / 500, 0.01)
    weights /= weights.sum()
    return weights


def hedge(sums: FloatArray, _rng: np.random.Generator) -> FloatArray:
    """Give weights that grow with exp(η·ΣR), η = sqrt(8 ln k / days) over the range of a day's R.

    Source: Freund & Schapire (1997), with the rate of Cesa-Bianchi & Lugosi (2006), theorem 2.3.
    """
    days, k = sums.shape
    spread = float(np.quantile(sums.max(axis=1) - sums.min(axis=1), 0.95)) or 1.0
    total = sums.sum(axis=0)
    rate = float(np.sqrt(8 * np.log(k) / days)) / spread
    weights: FloatArray = np.exp(rate * (total - total.max()))
    weights /= weights.sum()
    return weights


def follow_the_leader(sums: FloatArray, _rng: np.random.Generator) -> FloatArray:
    """Give all users to the version with the greatest sum of R so far."""
    weights: FloatArray = np.eye(sums.shape[1])[int(sums.sum(axis=0).argmax())]
    return weights


def patient() -> Weigh:
    """Give all users to the leader once it is one standard error of the difference ahead of the version that serves."""
    serving = 0

    def weigh(sums: FloatArray, _rng: np.random.Generator) -> FloatArray:
        nonlocal serving
        ahead = sums - sums[:, [serving]]
        z = ahead.sum(axis=0) / np.maximum(np.sqrt((ahead**2).sum(axis=0)), 1e-9)
        best = int(sums.sum(axis=0).argmax())
        if len(sums) >= race.LEAST_DAYS and z[best] >= 1:
            serving = best
        weights: FloatArray = np.eye(sums.shape[1])[serving]
        return weights

    return weigh


POLICIES: Mapping[str, Callable[[], Policy]] = {
    "ramp": lambda: race_by_ramp,
    "thompson": lambda: by_weights(thompson),
    "hedge": lambda: by_weights(hedge),
    "leader": lambda: by_weights(follow_the_leader),
    "patient": lambda: by_weights(patient()),
    "foreseen": lambda: partial(race_by_ramp, foreseen=True),
}


@dataclass(frozen=True, slots=True)
class RaceResult:
    """The outcome of one simulated race. R is what a user earned more than with the active version.

    Attributes:
        gain: R a user, over all users.
        worst: R of the worst user.
        best_fixed: R of the best version, if it had served all users from the first day on. At least 0.
        worse_days: share of user-days on a version that was truly worse than the active one.
        switches: a user, on average.
        served_all_on: first day on which a truly best version served all users, or None.
        best_eliminated, worse_promoted: whether that happened.
    """

    gain: float
    worst: float
    best_fixed: float
    worse_days: float
    switches: float
    served_all_on: int | None
    best_eliminated: bool
    worse_promoted: bool


@dataclass(frozen=True, slots=True)
class RaceCase:
    """A scenario, a number of candidates and a policy, tried over *days* after *shadow_days* that all policies know."""

    scenario: RaceScenario
    candidates: int
    policy: str
    plan: Plan
    days: int
    shadow_days: int


def run_race(case: RaceCase, seed: int, number: int) -> RaceResult:
    """Run race *number*. The same number has the same market under every policy."""
    market = simulate_market(
        case.scenario,
        case.candidates,
        np.random.default_rng([seed, number, 0]),
        days=case.days,
        shadow_days=case.shadow_days,
    )
    places = (np.arange(USERS) + 0.5) / USERS
    known = Known(market, case.shadow_days, case.plan, places, np.random.default_rng([seed, number, 1]))
    return judge_race(market, POLICIES[case.policy]()(known))


def judge_race(market: Market, served: Served) -> RaceResult:
    """Return the figures of a race."""
    days = len(market.edges)
    sums = np.stack([market.of_day(day).r.sum(axis=0) for day in range(days)])
    ahead = sums - sums[:, :1]
    each = np.take_along_axis(ahead, served.versions, axis=1).sum(axis=0)
    edges = np.take_along_axis(market.edges, served.versions, axis=1)
    steady = market.edges.mean(axis=0)
    best = set(np.flatnonzero(steady >= steady.max() - 1e-12).tolist())
    before = np.vstack([np.zeros((1, served.versions.shape[1]), np.int64), served.versions[:-1]])
    everyone = [day for day in range(days) if set(served.versions[day].tolist()) <= best - {0}]
    return RaceResult(
        gain=float(each.mean()),
        worst=float(each.min()),
        best_fixed=max(0.0, float(ahead.sum(axis=0)[sorted(best)].mean())),
        worse_days=float(np.mean(edges < -WORSE_BY)),
        switches=float(np.mean(np.sum(served.versions != before, axis=0))),
        served_all_on=everyone[0] if everyone else None,
        best_eliminated=bool(best & served.eliminated),
        worse_promoted=any(market.edges[day, version] < -WORSE_BY for version, day in served.promoted),
    )


@dataclass(frozen=True, slots=True)
class Cell:
    """The figures of all races of one case. Limits are one-sided, 95 % (Clopper & Pearson 1934).

    Attributes:
        gain: R a user, mean over the races, with its standard error *gain_error*.
        worst: mean over the races of the worst user's R.
        served_all: share of races in which a best version came to serve all users, on day *median_days*.
    """

    scenario: str
    candidates: int
    shadow_days: int
    policy: str
    runs: int
    gain_error: float
    gain: float
    worst: float
    best_fixed: float
    worse_days: float
    switches: float
    served_all: float
    median_days: float | None
    best_eliminated: float
    best_eliminated_limit: float
    worse_promoted: float
    worse_promoted_limit: float


def summarise(case: RaceCase, results: Sequence[RaceResult]) -> Cell:
    """Return the figures of all races of a case."""
    n = len(results)
    lost, wrong = (sum(getattr(each, name) for each in results) for name in ("best_eliminated", "worse_promoted"))
    days = [each.served_all_on for each in results if each.served_all_on is not None]

    def mean(name: str) -> float:
        return float(np.mean([getattr(each, name) for each in results]))

    return Cell(
        scenario=case.scenario.name,
        candidates=case.candidates,
        shadow_days=case.shadow_days,
        policy=case.policy,
        runs=n,
        gain_error=float(np.std([each.gain for each in results])) / n**0.5,
        gain=mean("gain"),
        worst=mean("worst"),
        best_fixed=mean("best_fixed"),
        worse_days=mean("worse_days"),
        switches=mean("switches"),
        served_all=len(days) / n,
        median_days=float(np.median(days)) if days else None,
        best_eliminated=lost / n,
        best_eliminated_limit=upper_limit(lost, n),
        worse_promoted=wrong / n,
        worse_promoted_limit=upper_limit(wrong, n),
    )
