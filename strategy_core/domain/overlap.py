"""Users on the canaries of several strategies, by bucket arithmetic: without exclusions and without a user list.

Canaries of one salt serve the same users first, and those of different salts meet by chance.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

from strategy_core.domain.routing import BUCKETS


@dataclass(frozen=True, slots=True)
class ServingCanary:
    """A canary that serves users: its strategy, its share of them, and the salt of its buckets."""

    strategy_name: str
    percent_bp: int
    salt: str


def on_two_or_more(canaries: Iterable[ServingCanary]) -> float:
    """Return the share of all users who are on two canaries or more."""
    by_salt: dict[str, list[float]] = {}
    for each in canaries:
        by_salt.setdefault(each.salt, []).append(each.percent_bp / BUCKETS)
    none, one = 1.0, 0.0
    for shares in by_salt.values():
        first, second = sorted([*shares, 0.0], reverse=True)[:2]
        none, one = none * (1 - first), one * (1 - first) + none * (first - second)
    return max(0.0, 1 - none - one)


def on_another_too(canary: ServingCanary, others: Iterable[ServingCanary]) -> float:
    """Return the share of all users who are on the canary, and on at least one of the others."""
    widest: dict[str, float] = {}
    for each in others:
        widest[each.salt] = max(widest.get(each.salt, 0.0), each.percent_bp / BUCKETS)
    mine = canary.percent_bp / BUCKETS
    surely = min(mine, widest.pop(canary.salt, 0.0))
    return surely + (mine - surely) * (1 - prod(1 - each for each in widest.values()))


def overlap_line(canaries: Sequence[ServingCanary]) -> str:
    """Return how many users are on several canaries, and why. Empty if there are not two."""
    if len(canaries) < 2:
        return ""
    line = f"{on_two_or_more(canaries):.1%} of users are on two canaries or more, by their buckets"
    most = max(Counter(each.salt for each in canaries).values())
    return line if most < 2 else f"{line}: {most} canaries have one salt, so they serve the same users first"
