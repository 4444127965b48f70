"""Users that are kept with the active version in any bucket, and users that get every canary."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from strategy_core.domain.errors import InvalidExclusion
from strategy_core.domain.routing import Standing, refused_user

MOST_USERS = 10_000  # in one change, since its audit event names each of them
LONGEST_USER = 200  # characters, as in reports of trades


class ExclusionKind(StrEnum):
    OPT_OUT = "opt_out"  # the user's own wish
    NEVER = "never"  # an owner keeps the user with the active version
    ALWAYS = "always"  # an owner gives the user every canary from its first stage
    GUARD = "guard"  # the user's loss limit was hit: no new entries of the strategy, and no canary
    LARGE_ACCOUNT = "large_account"  # too large a share of all capital, written when a stage is entered


KEEPING = frozenset(ExclusionKind) - {ExclusionKind.ALWAYS}


@dataclass(frozen=True, slots=True)
class UserExclusion:
    """One user's exclusion for one strategy, or for all strategies (`*`).

    Attributes:
        since: when it began.
        until: when it ended or will end, or None.
    """

    strategy_name: str
    user_id: str
    kind: ExclusionKind
    since: datetime
    until: datetime | None


def standings(exclusions: Sequence[UserExclusion], start: datetime, end: datetime) -> set[Standing]:
    """Return each standing that a user had in [start, end], given the user's exclusions in any order."""
    moments = [start]
    for each in exclusions:
        moments += [edge for edge in (each.since, each.until) if edge is not None and start < edge <= end]
    return {_standing(exclusions, moment) for moment in moments}


def _standing(exclusions: Iterable[UserExclusion], moment: datetime) -> Standing:
    kinds = {each.kind for each in exclusions if each.since <= moment and (each.until is None or moment < each.until)}
    if kinds & KEEPING:
        return Standing.KEPT
    return Standing.ALWAYS if kinds else Standing.BUCKET


@dataclass(frozen=True, slots=True)
class UserSets:
    """The users of one strategy that have an exclusion now.

    Attributes:
        kept: get the active version.
        always: get the canary, unless they are also in *kept*.
        exit_only: open no new position of the strategy. They are in *kept* too while a canary serves.
    """

    kept: frozenset[str] = frozenset()
    always: frozenset[str] = frozenset()
    exit_only: frozenset[str] = frozenset()


def checked_users(user_ids: Iterable[str]) -> list[str]:
    """Return the users sorted, each once.

    Raises:
        InvalidName: an id is empty or cannot be encoded.
        InvalidExclusion: there is none, there are more than `MOST_USERS`, or one could not be in a report of a trade.
    """
    found = list(user_ids)
    if refused := next(filter(None, map(refused_user, found)), None):
        raise refused
    if not 0 < len(found) <= MOST_USERS:
        raise InvalidExclusion(f"{len(found):,} users were given", f"1 to {MOST_USERS:,} users in one change")
    if odd := next((user for user in found if len(user) > LONGEST_USER or min(user) < " "), None):
        raise InvalidExclusion(
            f"{odd[:40]!r} is not a user id", f"at most {LONGEST_USER} characters, without control characters"
        )
    return sorted(set(found))
