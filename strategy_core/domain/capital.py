"""The cap on the capital of a canary: how many of the users that a stage asks for it may have."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from strategy_core.domain.arrays import FloatArray, IntArray
from strategy_core.domain.routing import BUCKETS

LARGEST_UNKNOWN = 0.2  # share of users without a known capital, above which the cap is blind
TOLERANCE = 1.25  # between two stages, how far the capital may leave the cap before users are moved
LARGE_MEANS = 4  # a large account has more than this many times the mean: in a small directory 0.5 % is nobody's
_ROUNDING = 1e-12
NO_DIRECTORY = "no user directory is loaded, so the percent of users alone applies"
NO_CAPITAL = "the user directory knows no capital, so the percent of users alone applies"


@dataclass(frozen=True)
class CapitalBelow:
    """The directory's users and their capital below each bucket under one salt.

    Attributes:
        users, unknown: all users, and those without a known capital. Shape (10,001,), for buckets 0 to 10,000.
        capital: known capital, in the platform's unit of account. Same shape.
    """

    users: IntArray
    unknown: IntArray
    capital: FloatArray

    @cached_property
    def mean(self) -> float | None:
        """The mean of the known capital, at which users without one are counted. None if none has any."""
        known = int(self.users[-1] - self.unknown[-1])
        return float(self.capital[-1]) / known if known and self.capital[-1] > 0 else None

    @property
    def total(self) -> float:
        """All capital, with the unknown at the mean."""
        return float(self.capital[-1]) + int(self.unknown[-1]) * (self.mean or 0.0)

    @property
    def unknown_share(self) -> float:
        return float(self.unknown[-1] / self.users[-1]) if self.users[-1] else 0.0

    def weight(self, capital: float | None) -> float:
        """Return what a user counts: the capital, or the mean if it is unknown."""
        return (self.mean or 0.0) if capital is None else capital

    def large_above(self, largest_percent: float | None) -> float | None:
        """Return the capital above which an account is large, or None if none is.

        It has more than *largest_percent* of all capital, and more than four times the mean. Without the second
        condition nearly every account of a directory of fifty users would be large.
        """
        if largest_percent is None or self.mean is None:
            return None
        return max(largest_percent / 100 * self.total, LARGE_MEANS * self.mean)


def capital_below(buckets: IntArray, capital: FloatArray) -> CapitalBelow:
    """Return the sums of a directory.

    Args:
        buckets: of the users under the salt, shape (users,).
        capital: of the same users, NaN if unknown.
    """
    known = ~np.isnan(capital)
    return CapitalBelow(
        users=np.concatenate([[0], np.bincount(buckets, minlength=BUCKETS).cumsum()]),
        unknown=np.concatenate([[0], np.bincount(buckets[~known], minlength=BUCKETS).cumsum()]),
        capital=_from_zero(np.bincount(buckets[known], capital[known], BUCKETS)),
    )


@dataclass(frozen=True, slots=True)
class Placed:
    """A user whose version does not follow from the bucket: its bucket, and the capital if it is known."""

    bucket: int
    capital: float | None


@dataclass(frozen=True, slots=True)
class Share:
    """The users that a canary serves when a stage asks for *asked_bp*.

    Attributes:
        asked_bp: basis points of users that the stage asks for.
        percent_bp: those that it gets. At most *asked_bp*.
        cap: largest share of all capital in the canary. None: no cap.
        capital: known capital in the canary then. None if none is known.
        capital_share: share of all capital in the canary then. None if it is unknown.
        users: in the canary then. None without a directory.
        left_out: users below *asked_bp* who stay with the active version at any percent.
        note: why there is no cap although the plan has one. Empty if there is one.
        blind: why the capital is known too badly to add users. Empty if it is not.
    """

    asked_bp: int
    percent_bp: int
    cap: float | None = None
    capital: float | None = None
    capital_share: float | None = None
    users: int | None = None
    left_out: int = 0
    note: str = ""
    blind: str = ""


def served_of_asked(percent: float, asked: float) -> str:
    """Return a canary's percent of users, with the percent asked for where the cap makes it smaller."""
    return f"{percent:g} %" if percent >= asked else f"{percent:g} % (asked {asked:g} %: capital)"


def share_of(
    below: CapitalBelow | None,
    asked_bp: int,
    cap_percent: float | None,
    *,
    kept: Sequence[Placed] = (),
    always: Sequence[Placed] = (),
    fixed_bp: int | None = None,
) -> Share:
    """Return the largest share of users up to *asked_bp* whose capital is at most *cap_percent* of all capital.

    At 100 % there is no cap: everyone gets the version. Without a directory, or without any known capital, the share
    is *asked_bp* as it is.

    Args:
        below: the directory under the strategy's salt, or None without one.
        cap_percent: of all capital. None: no cap.
        kept: listed users who stay with the active version.
        always: listed users who get the canary with any bucket. They count to the cap, and none is left out.
        fixed_bp: measure this share in place of the largest one.
    """
    if below is None or below.users[-1] == 0:
        return Share(asked_bp, asked_bp, note=_note(NO_DIRECTORY, asked_bp, cap_percent))

    def exposed(sums: FloatArray | IntArray, weigh: Callable[[Placed], float]) -> FloatArray:
        taken, added = ([(one.bucket, weigh(one)) for one in placed] for placed in (kept, always))
        return _exposed(sums, taken, added)

    users, known = exposed(below.users, lambda _: 1.0), exposed(below.capital, lambda one: one.capital or 0.0)
    served, cap, weights, note = asked_bp, None, None, ""
    if below.mean is None:
        note = _note(NO_CAPITAL, asked_bp, cap_percent)
    else:
        weights = exposed(below.capital + below.unknown * below.mean, lambda one: below.weight(one.capital))
        if cap_percent is not None and asked_bp < BUCKETS:
            cap = cap_percent / 100
            served = largest_within(weights, asked_bp, cap * below.total)
    served = served if fixed_bp is None else fixed_bp
    return Share(
        asked_bp,
        served,
        cap=cap,
        capital=float(known[served]),
        capital_share=None if weights is None else float(weights[served]) / below.total,
        users=round(users[served]),
        left_out=sum(one.bucket < asked_bp for one in kept),
        note=note,
        blind=_blind(below) if cap is not None else "",
    )


def largest_within(exposed: FloatArray, asked_bp: int, most: float) -> int:
    """Return the largest number of buckets up to *asked_bp* with at most *most* below it. 0 if not even that fits."""
    return max(0, int(np.searchsorted(exposed[: asked_bp + 1], most * (1 + _ROUNDING), side="right")) - 1)


def narrowed_bp(
    below: CapitalBelow,
    present_bp: int,
    cap_percent: float,
    *,
    kept: Sequence[Placed] = (),
    always: Sequence[Placed] = (),
) -> int:
    """Return the share that a canary should have after a load of the directory, between two stages.

    Capital moves every day, and users must not be moved with it. The share stays while the capital in the canary is
    at most 1.25 × the cap. Above, it is narrowed to the cap, which drops the highest buckets, and adds nobody.
    """
    measured = share_of(below, present_bp, cap_percent, kept=kept, always=always, fixed_bp=present_bp)
    if measured.cap is None or (measured.capital_share or 0.0) <= TOLERANCE * measured.cap:
        return present_bp
    return share_of(below, present_bp, cap_percent, kept=kept, always=always).percent_bp


def _from_zero(in_each: FloatArray | IntArray) -> FloatArray:
    return np.concatenate([[0.0], in_each.astype(np.float64).cumsum()])


def _exposed(
    below: FloatArray | IntArray, kept: Sequence[tuple[int, float]], always: Sequence[tuple[int, float]]
) -> FloatArray:
    """Return what is in the canary below each bucket, given (bucket, weight) of the users who do not follow it."""
    in_each = np.diff(below).astype(np.float64)
    for bucket, weight in (*kept, *always):
        in_each[bucket] -= weight
    in_each[in_each < _ROUNDING * float(below[-1])] = 0.0  # a bucket whose users are all taken out
    exposed = _from_zero(in_each) + sum(weight for _, weight in always)
    exposed[0] = 0.0  # a canary at 0 % serves nobody
    return exposed


def _blind(below: CapitalBelow) -> str:
    if below.unknown_share <= LARGEST_UNKNOWN:
        return ""
    return (
        f"the capital of {below.unknown_share:.0%} of the users is unknown, {LARGEST_UNKNOWN:.0%} at most may be. Load "
        "it with the user directory, or start with a plan whose capital_percent is null"
    )


def _note(why: str, asked_bp: int, cap_percent: float | None) -> str:
    return why if cap_percent is not None and asked_bp < BUCKETS else ""


@dataclass(frozen=True, slots=True)
class Sums:
    """Users, those of them whose capital is unknown, and the known capital: of a part of the directory, or of all."""

    users: int
    unknown: int
    capital: float


@dataclass(frozen=True, slots=True)
class Reach:
    """The users that a canary serves now.

    Attributes:
        percent_bp, asked_bp: basis points of users that it gets, and that its stage asks for.
        users: on the canary. None without a directory.
        capital_share: of all capital, with unknown capital at the mean. None if no capital is known.
        left_out: users below *asked_bp* who stay with the active version: large accounts and excluded users.
    """

    percent_bp: int
    asked_bp: int
    users: int | None = None
    capital_share: float | None = None
    left_out: int = 0


def reach_now(
    percent_bp: int,
    asked_bp: int,
    inside: Sums,
    everyone: Sums,
    *,
    kept: Sequence[Placed] = (),
    always: Sequence[Placed] = (),
) -> Reach:
    """Return the users that a canary at *percent_bp* serves.

    Args:
        inside: users of the directory below *percent_bp*.
        everyone: all of its users.
        kept, always: as in `share_of`.
    """
    left_out = sum(one.bucket < asked_bp for one in kept)
    if percent_bp == 0:
        return Reach(0, asked_bp, 0, 0.0 if everyone.capital else None, left_out)
    taken = [one for one in kept if one.bucket < percent_bp]
    added = [one for one in always if one.bucket >= percent_bp]
    known = everyone.users - everyone.unknown
    share = None
    if known and everyone.capital > 0:
        mean = everyone.capital / known
        weight = inside.capital + inside.unknown * mean
        weight += sum(mean if one.capital is None else one.capital for one in added)
        weight -= sum(mean if one.capital is None else one.capital for one in taken)
        share = min(1.0, max(0.0, weight / (everyone.capital + everyone.unknown * mean)))
    return Reach(percent_bp, asked_bp, inside.users - len(taken) + len(added), share, left_out)
