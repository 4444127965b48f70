"""A race: many candidates against the active version at once, and which of them may be nominated for a rollout.

Every version decides on every candle, so a race needs no users to learn: each pair of versions has a result on each of
its slots. The unit of evidence is the UTC day, so that slots of one day may be correlated in any way.

With D the difference of two versions on one day, the sum of R over its slots, the process

    exp(λ·ΣD - λ²/2·Q),   Q = Σ(D² + 2·v) / 3

is a supermartingale if E[D] ≤ 0 and v bounds the variance of D (Delyon 2009, "Exponential inequalities for sums of
weakly dependent variables", through exp(x - x²/6) ≤ 1 + x + x²/3). Large losses and wild markets count through D²
itself, only two thirds of the charge are an estimate. Its mean over λ, half normal with variance 1/ρ, is the evidence

    E = 2·sqrt(ρ / (Q + ρ))·exp(S² / (2(Q + ρ)))·Φ(S / sqrt(Q + ρ)),   S = ΣD

that one version earns more than the other (Robbins 1970; Howard, Ramdas, McAuliffe & Sekhon 2021, proposition 6). It
starts at 1, and against a version that earns no more it ever reaches x with a probability of at most 1/x (Ville 1939).
v is 1.5 times the mean square a slot of all earlier days, times the slots of the day. The first days of a pair only
measure it. It is an estimate: docs/explanation/race.md shows how often the claims were wrong in simulated markets.

**Elimination.** A version is out for good once another has evidence of `limit` against it. The limits of all ordered
pairs sum to α, those of the versions that began the race to α/2 and those of later ones to α/2 as well, however many
enter (a union bound, as e-values of different pairs depend on each other). So with a probability of 1 - α no version is
eliminated that is as good as every other.

**Decline.** The sums of a race do not show that a version has turned. So each pair also has a CUSUM of its days
(Page 1954): max(0, S - D/σ - `SLACK`), with D/σ cut at plus and minus `MOST_A_DAY`. It is no evidence and eliminates
nothing: it keeps users from a version, or gives them back to one that they had before.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Any

import numpy as np
from scipy.special import log_ndtr  # not scipy.stats, which takes half a second to import

from strategy_core.domain.arrays import BoolArray, FloatArray, IntArray

ALPHA = 0.05
DOUBT = 1.5  # factor on the measured mean square of a slot
WARM_UP_DAYS = 7  # of a pair with slots, that only measure its noise
TUNED_DAYS = 60  # at which evidence is greatest for a given difference
TUNED_LOG = 12.0  # about 2·ln(limit): ρ = Q / TUNED_LOG
LEAST_SLOTS, LEAST_DAYS = 30, 14  # before a nomination
LEAST_Z = 1.0
CLONE_SHARE = 0.01  # of slots on which two versions differ: below, they are the same for users
MOST_ERRORS = 0.02  # of a version's candles
SUPERSEDE_UP_TO = 25.0  # percent of users
SUPERSEDE_EVERY_DAYS = 7
SLACK = 0.25  # standard deviations of a day: half of the fall that a decline is to find
MOST_A_DAY = 2.0  # so that no single day is a decline
HOLD_AT, DECLINED_AT = 2.0, 5.0  # standard deviations of a day
_BISECTIONS = 60


class Status(StrEnum):
    """Where a version stands in a race."""

    RUNNING = "running"
    SAME = "same"  # decides as another one does, which stands for both
    ELIMINATED = "eliminated"
    WITHDRAWN = "withdrawn"  # by its owner, or for its errors


@dataclass(frozen=True, slots=True)
class Day:
    """The results of all versions of a race on one UTC day. Arrays have shape (slots, versions).

    Attributes:
        r: R of the version's trade. 0 where it held.
        decided: whether the version decided on the slot's candle, and its trade has closed.
        signalled: whether it signalled.
    """

    r: FloatArray
    decided: BoolArray
    signalled: BoolArray


@dataclass(frozen=True, slots=True)
class Pairs:
    """Sums over closed days, by ordered pair: row i, column j is version i against version j. Shape (k, k).

    Attributes:
        days: with a slot of the pair.
        slots: candles of which both decided and at least one signalled.
        unlike: of them, those with a different decision or another R.
        difference, squares: Σ D and Σ D² over all days.
        measured, measured_slots: the same Σ D² and slots, with the days before the race: they measure the noise.
        rho: of the mixture, 0 before the pair's warm-up ends.
        x, xx, xn, n, nn, v: Σ D, Σ D², Σ D·n, Σ n, Σ n² and Σ v over the days with bets.
        peak: the largest ln E so far.
        decline: how far version i has lately fallen behind version j, in standard deviations of a day. At least 0.
    """

    days: IntArray
    slots: IntArray
    unlike: IntArray
    difference: FloatArray
    squares: FloatArray
    measured: FloatArray
    measured_slots: IntArray
    rho: FloatArray
    x: FloatArray
    xx: FloatArray
    xn: FloatArray
    n: FloatArray
    nn: FloatArray
    v: FloatArray
    peak: FloatArray
    decline: FloatArray

    def __len__(self) -> int:
        return len(self.days)

    @property
    def log_e(self) -> FloatArray:
        """ln E that version i earns more than version j."""
        return _log_e(self.x, (self.xx + 2 * self.v) / 3, self.rho)

    @property
    def mean(self) -> FloatArray:
        """R per slot that version i earns more than version j. NaN without a slot."""
        with np.errstate(invalid="ignore", divide="ignore"):
            mean: FloatArray = self.difference / self.slots
        return mean

    def stored(self) -> dict[str, Any]:
        """Return the sums as JSON."""
        return {each.name: getattr(self, each.name).tolist() for each in fields(self)}


_INTEGERS = frozenset({"days", "slots", "unlike", "measured_slots"})


def begin(versions: int) -> Pairs:
    """Return the pairs of a race that has seen no day."""
    return read_pairs({each.name: np.zeros((versions, versions)) for each in fields(Pairs)})


def read_pairs(data: Mapping[str, Any]) -> Pairs:
    """Return stored pairs. Those of earlier releases have no decline: it begins at 0."""
    size = (len(data["days"]),) * 2
    data = {"decline": np.zeros(size), **data}
    kinds = {each.name: np.int64 if each.name in _INTEGERS else np.float64 for each in fields(Pairs)}
    arrays: dict[str, Any] = {name: np.array(data[name], kind).reshape(size) for name, kind in kinds.items()}
    return Pairs(**arrays)


def enter(pairs: Pairs, more: int) -> Pairs:
    """Return the pairs with *more* versions behind the others. Their evidence starts at 1, that of the others stays."""
    size = len(pairs) + more
    grown = begin(size)
    for each in fields(Pairs):
        getattr(grown, each.name)[: len(pairs), : len(pairs)] = getattr(pairs, each.name)
    return grown


def measure_noise(pairs: Pairs, day: Day) -> Pairs:
    """Return the pairs with a day before the race. It measures noise, and is no evidence."""
    d, n, _ = _of_day(day)
    return replace(pairs, measured=pairs.measured + d**2, measured_slots=pairs.measured_slots + n)


def add_day(pairs: Pairs, day: Day) -> Pairs:
    """Return the pairs with one more closed day."""
    d, n, unlike = _of_day(day)
    traded = n > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        square = np.where(pairs.measured_slots > 0, pairs.measured / pairs.measured_slots, 0.0)
        per_day = np.where(pairs.days > 0, pairs.slots / pairs.days, 0.0)
    warm = (pairs.days >= WARM_UP_DAYS) & (square > 0)
    rho = np.where((pairs.rho == 0) & warm, DOUBT * square * per_day * TUNED_DAYS / TUNED_LOG, pairs.rho)
    bets = traded & (rho > 0)
    deviation = np.sqrt(square * n)
    scaled = np.divide(d, deviation, out=np.zeros_like(d), where=bets & (deviation > 0))
    fall = -np.clip(scaled, -MOST_A_DAY, MOST_A_DAY) - SLACK
    count = n * bets
    after = Pairs(
        days=pairs.days + traded,
        slots=pairs.slots + n,
        unlike=pairs.unlike + unlike,
        difference=pairs.difference + d,
        squares=pairs.squares + d**2,
        measured=pairs.measured + d**2,
        measured_slots=pairs.measured_slots + n,
        rho=rho,
        x=pairs.x + d * bets,
        xx=pairs.xx + d**2 * bets,
        xn=pairs.xn + d * count,
        n=pairs.n + count,
        nn=pairs.nn + count.astype(np.float64) ** 2,
        v=pairs.v + DOUBT * square * count,
        peak=pairs.peak,
        decline=np.where(bets, np.maximum(0.0, pairs.decline + fall), pairs.decline),
    )
    return replace(after, peak=np.maximum(pairs.peak, after.log_e))


def bounds(pairs: Pairs, alpha: float) -> tuple[FloatArray, FloatArray]:
    """Return the lower and upper bound of the mean R per slot of version i over version j, each shape (k, k).

    Each bound holds at all days together with a probability of 1 - *alpha*. Without a bet it is infinite.
    """
    low = _lower(pairs, math.log(1 / alpha))
    return low, -low.T


def _lower(pairs: Pairs, limit: float) -> FloatArray:
    """Return the mean below which ln E exceeds *limit*: E falls as the mean that it is set against rises."""
    with np.errstate(invalid="ignore", divide="ignore"):
        middle = np.where(pairs.n > 0, pairs.x / pairs.n, 0.0)
        reach = np.where(pairs.n > 0, np.sqrt((pairs.xx + pairs.v + pairs.rho) * 2 * (limit + 8)) / pairs.n, np.inf)

    def against(mean: FloatArray) -> FloatArray:
        s = pairs.x - mean * pairs.n
        squares = pairs.xx - 2 * mean * pairs.xn + mean**2 * pairs.nn
        return _log_e(s, (squares + 2 * pairs.v) / 3, pairs.rho)

    above, below = middle, middle - np.where(np.isfinite(reach), reach, 0.0)
    found = (pairs.n > 0) & (against(below) >= limit)
    for _ in range(_BISECTIONS):
        half = (above + below) / 2
        beyond = against(half) >= limit
        below, above = np.where(beyond, half, below), np.where(beyond, above, half)
    return np.where(found, below, -np.inf)


def log_limits(began: int, entered: int, alpha: float = ALPHA) -> FloatArray:
    """Return by ordered pair the ln E at which the second version is eliminated. Shape (k, k) with k = *entered*.

    Args:
        began: versions at the start of the race, with the active one.
        entered: versions that have ever been in the race. The later ones stand behind them.

    Late version l = 1, 2, ... has a share 1 / (l(l + 1)) of α/2 for the pairs that it brings. The shares sum to 1.
    """
    order = np.maximum(np.arange(entered)[:, None], np.arange(entered)[None, :])  # the pair's later version
    late = np.maximum(order - began + 1, 1).astype(np.float64)
    pairs = np.where(order < began, max(1, began * (began - 1)), 2.0 * np.maximum(order, 1))
    share = np.where(order < began, 1.0, 1 / (late * (late + 1)))
    limits: FloatArray = np.log(pairs / (share * alpha / 2))
    return limits


def _of_day(day: Day) -> tuple[FloatArray, IntArray, IntArray]:
    """Return the day's D, slots and unlike slots, by ordered pair."""
    decided = day.decided.astype(np.float64)
    r = np.where(day.decided, day.r, 0.0)
    silent = decided * ~day.signalled
    slots = decided.T @ decided - silent.T @ silent
    difference = r.T @ decided - decided.T @ r
    both = day.decided[:, :, None] & day.decided[:, None, :]
    unlike = (r[:, :, None] != r[:, None, :]) | (day.signalled[:, :, None] != day.signalled[:, None, :])
    return difference, np.rint(slots).astype(np.int64), np.sum(both & unlike, axis=0, dtype=np.int64)


def _log_e(s: FloatArray, q: FloatArray, rho: FloatArray) -> FloatArray:
    """Return ln E, 0 where no bet was made."""
    bets = rho > 0
    rho = np.where(bets, rho, 1.0)
    width = np.where(bets, q, 0.0) + rho
    log_e = np.log(2.0) + np.log(rho / width) / 2 + s**2 / (2 * width) + log_ndtr(s / np.sqrt(width))
    found: FloatArray = np.where(bets, log_e, 0.0)
    return found


@dataclass(frozen=True, slots=True)
class Entry:
    """A version in a race.

    Attributes:
        withdrawn: why it is out, if not by evidence.
        eliminated_by: the version that beat it, kept for good.
    """

    version: str
    withdrawn: str = ""
    eliminated_by: str | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """How a version stands against the active one.

    Attributes:
        slots, days: of the pair.
        mean: R per slot more than the active version. None without a slot, and for the active version itself.
        low, high: bounds that hold for all versions and at all days together, with 95 %. Infinite before the warm-up.
        z: the mean in its standard errors, of days.
        log10_e: evidence that it earns more than the active version.
        by: the version that beats it, that it is the same as, or why it is withdrawn.
        decline: how far it has lately fallen behind the active version, as in `Pairs`.
        overtaken: how far the active version has lately fallen behind it.
    """

    version: str
    status: Status
    slots: int
    days: int
    mean: float | None
    low: float
    high: float
    z: float
    log10_e: float
    by: str = ""
    decline: float = 0.0
    overtaken: float = 0.0


@dataclass(frozen=True, slots=True)
class Standings:
    """All versions of a race, and their entries with what was decided today.

    Attributes:
        tried: versions that were ever set against the active one. It never falls.
    """

    active: str
    rows: Sequence[Standing]
    entries: Sequence[Entry]
    tried: int

    @property
    def leader(self) -> Standing | None:
        """The running version with the greatest mean, if it is above the active one's."""
        running = [row for row in self.rows if row.status is Status.RUNNING and row.mean is not None and row.mean > 0]
        return max(running, key=lambda row: row.mean or 0.0, default=None)


def standings(
    pairs: Pairs,
    entries: Sequence[Entry],
    *,
    active: str,
    began: int,
    errors: Mapping[str, float] | None = None,
    bounded: bool = True,
) -> Standings:
    """Return how the versions stand after a day.

    Args:
        entries: in the order of the pairs' rows, with what was decided on earlier days.
        active: the version that serves the users now. It is one of the entries.
        began: entries at the start of the race.
        errors: share of each version's candles with an error.
        bounded: False leaves the bounds infinite, for a simulation that reads none.
    """
    names = [each.version for each in entries]
    k, base = len(entries), names.index(active)
    beaten = pairs.peak >= log_limits(began, k)
    if bounded:
        low, high = bounds(pairs, ALPHA / (2 * max(1, k - 1)))
    else:
        low, high = np.full((k, k), -math.inf), np.full((k, k), math.inf)
    log_e = pairs.log_e

    def settle(j: int, entry: Entry) -> Entry:
        share = (errors or {}).get(entry.version, 0.0)
        if not entry.withdrawn and share > MOST_ERRORS:
            entry = replace(entry, withdrawn=f"errors on {share:.1%} of its candles, at most {MOST_ERRORS:.0%}")
        if entry.eliminated_by is None and beaten[:, j].any():
            worst = int(np.argmax(np.where(beaten[:, j], pairs.peak[:, j], -1.0)))
            entry = replace(entry, eliminated_by=names[worst])
        return entry

    settled = [settle(j, entry) for j, entry in enumerate(entries)]

    def row(j: int) -> Standing:
        entry, n = settled[j], int(pairs.slots[j, base])
        status, by = Status.RUNNING, ""
        if entry.withdrawn:
            status, by = Status.WITHDRAWN, entry.withdrawn
        elif entry.eliminated_by is not None:
            status, by = Status.ELIMINATED, entry.eliminated_by
        elif (like := _stands_for(pairs, settled, j)) is not None:
            status, by = Status.SAME, names[like]
        root = math.sqrt(pairs.squares[j, base])
        return Standing(
            version=entry.version,
            status=status,
            slots=n,
            days=int(pairs.days[j, base]),
            mean=float(pairs.difference[j, base]) / n if n and j != base else None,
            low=float(low[j, base]),
            high=float(high[j, base]),
            z=float(pairs.difference[j, base]) / root if root > 0 else 0.0,
            log10_e=float(log_e[j, base]) / math.log(10),
            by=by,
            decline=float(pairs.decline[j, base]),
            overtaken=float(pairs.decline[base, j]),
        )

    return Standings(active, [row(j) for j in range(k)], settled, max(0, k - 1))


def _stands_for(pairs: Pairs, entries: Sequence[Entry], j: int) -> int | None:
    """Return the first version before *j* that does the same on nearly all slots and is still in the race."""
    for i in range(j):
        able = not entries[i].withdrawn and entries[i].eliminated_by is None
        if able and pairs.slots[i, j] >= LEAST_SLOTS and pairs.unlike[i, j] < CLONE_SHARE * pairs.slots[i, j]:
            return i
    return None


class Step(StrEnum):
    """What a race asks for."""

    WAIT = "wait"
    NOMINATE = "nominate"  # start a rollout of the version
    SUPERSEDE = "supersede"  # end the open rollout without quarantine, and start one of the version
    WITHDRAW = "withdraw"  # end the open rollout without quarantine: the version's lead is gone
    RETURN = "return"  # give all users back to the predecessor of the active version


@dataclass(frozen=True, slots=True)
class Ruling:
    """The step of a race today, with the version that it concerns and the reason for owners.

    Attributes:
        hold: the open rollout must not widen today.
    """

    step: Step
    version: str | None
    reason: str
    hold: bool = False


@dataclass(frozen=True, slots=True)
class Canary:
    """The open rollout: its version, percent of users, and the evidence of each other version against it (log10)."""

    version: str
    percent: float
    log10_e_against: Mapping[str, float]


def rule(
    at: Standings,
    canary: Canary | None,
    *,
    refused: Sequence[str] = (),
    days_since_superseded: float = math.inf,
    predecessor: str | None = None,
) -> Ruling:
    """Return what the race asks for today.

    A nomination is no claim: the rollout's own gates judge the version on slots that the race has not seen.

    Args:
        canary: the open rollout, or None.
        refused: versions that were rolled back and may not be nominated.
        days_since_superseded: since the race last ended an open rollout.
        predecessor: of the active version, if the race may give users back to it.
    """
    before = next((row for row in at.rows if row.version == predecessor), None)
    # Also to one that was eliminated: the past, which its successor has won, is over.
    if before is not None and before.status is not Status.WITHDRAWN and before.overtaken >= DECLINED_AT:
        fell = _fell(at.active, before.version, before.overtaken)
        return Ruling(Step.RETURN, before.version, fell)
    if canary is not None:
        return _supersede(at, canary, refused, days_since_superseded)
    able = [row for row in at.rows if row.status is Status.RUNNING and row.version not in (at.active, *refused)]
    if not able:
        return Ruling(Step.WAIT, None, f"no version is left to nominate: {_gone(at, refused)}")
    best = max(able, key=lambda row: -math.inf if row.mean is None else row.mean)
    if best.slots < LEAST_SLOTS or best.days < LEAST_DAYS:
        seen = f"{best.slots:,} of {LEAST_SLOTS} slots, {best.days:,} of {LEAST_DAYS} days"
        return Ruling(Step.WAIT, best.version, f"{best.version} leads with {seen}")
    lead = f"{best.version} leads with {best.mean:+.3f} R a slot over {best.slots:,} slots"
    if best.z < LEAST_Z:
        return Ruling(Step.WAIT, best.version, f"{lead}, {best.z:.1f} standard errors of at least {LEAST_Z:g}")
    if best.decline >= HOLD_AT:
        return Ruling(Step.WAIT, best.version, f"{lead}, but {_fell(best.version, at.active, best.decline)}")
    return Ruling(Step.NOMINATE, best.version, f"{lead}, {best.z:.1f} standard errors above {at.active}")


def _supersede(at: Standings, canary: Canary, refused: Sequence[str], days: float) -> Ruling:
    limit = math.log10(20 * max(1, at.tried))
    running = {row.version for row in at.rows if row.status is Status.RUNNING} - {canary.version, at.active, *refused}
    best = max(running, key=lambda name: canary.log10_e_against.get(name, 0.0), default=None)
    own = next(row for row in at.rows if row.version == canary.version)
    fell = _fell(canary.version, at.active, own.decline)
    if own.decline >= DECLINED_AT:
        return Ruling(Step.WITHDRAW, canary.version, fell)
    if best is not None and (evidence := canary.log10_e_against.get(best, 0.0)) >= limit:
        step, said = (
            Step.SUPERSEDE,
            f"{best} earns more than {canary.version}: E = {10**evidence:,.0f} of {10**limit:,.0f}",
        )
    elif own.z < 0:
        step, best = Step.WITHDRAW, canary.version
        said = f"the lead of {canary.version} is gone: {own.mean or 0.0:+.3f} R a slot over {own.slots:,} slots"
    elif own.decline >= HOLD_AT:
        return Ruling(Step.WAIT, canary.version, fell, hold=True)
    else:
        return Ruling(Step.WAIT, canary.version, f"{canary.version} is in a rollout")
    if canary.percent > SUPERSEDE_UP_TO:
        return Ruling(Step.WAIT, canary.version, f"{said}, but {canary.percent:g} % of users have {canary.version}")
    if days < SUPERSEDE_EVERY_DAYS:
        return Ruling(Step.WAIT, canary.version, f"{said}, but a rollout was ended {days:.1f} days ago")
    return Ruling(step, best, said)


def _fell(version: str, other: str, decline: float) -> str:
    return f"{version} has lately fallen {decline:.1f} standard deviations of a day behind {other}"


def _gone(at: Standings, refused: Sequence[str]) -> str:
    counts: dict[str, int] = {}
    for row in at.rows:
        if row.version != at.active:
            what = "rolled back" if row.version in refused else row.status.value
            counts[what] = counts.get(what, 0) + 1
    return ", ".join(f"{count} {what}" for what, count in counts.items()) or "it has none"
