"""The statuses of a version, the moves between them, and checks of times."""

from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum

from strategy_core.domain.errors import IllegalTransition, NaiveTime, TimeOutOfRange

_YEARS = (1678, 2261)  # whole years within the range of pandas nanosecond times


class Status(StrEnum):
    """What a version does now. Owners move it, and so do the ticks of its rollout.

    A version is kept in every status, with its decisions, trades and audit events.
    """

    # Decides on every candle and serves no users. The first status of a new version, and the one it returns to after
    # a rollback. Ends when a rollout starts, or when an owner activates or retires the version.
    SHADOW = "shadow"

    # Serves a percent of the users, one version per strategy. Started with a rollout, or by an owner by hand. Ends
    # with a promotion (to active), a rollback (to shadow and quarantined) or a retirement.
    CANARY = "canary"

    # Serves all other users, one version per strategy. Ends when a successor replaces it: it is retired, or stays in
    # shadow while the successor bakes and is watched, or as long as it manages open positions.
    ACTIVE = "active"

    # Makes no decisions, serves no users and manages no position, but its simulated trades are still scored. An owner
    # may activate it again. A rollback of its successor also reinstates it, and a trade of it that is reported late
    # brings it back into shadow.
    RETIRED = "retired"


MAY_FOLLOW: Mapping[Status, frozenset[Status]] = {
    Status.SHADOW: frozenset({Status.CANARY, Status.ACTIVE, Status.RETIRED}),
    Status.CANARY: frozenset({Status.ACTIVE, Status.SHADOW, Status.RETIRED}),
    Status.ACTIVE: frozenset({Status.RETIRED, Status.SHADOW}),  # shadow while its successor bakes or is watched
    Status.RETIRED: frozenset({Status.ACTIVE, Status.SHADOW}),
}


def check_move(current: Status, target: Status) -> None:
    """Raise IllegalTransition, which names the allowed statuses, unless *target* may follow *current*."""
    if target not in MAY_FOLLOW[current]:
        raise IllegalTransition(current, target, MAY_FOLLOW[current])


def utc(moment: datetime, what: str = "time") -> datetime:
    """Return *moment* in UTC.

    Raises:
        NaiveTime: it has no time zone. A wrong guess would shift trades by hours.
        TimeOutOfRange: its year in UTC is outside 1678 to 2261, the range of candle times.
    """
    if moment.tzinfo is None:
        raise NaiveTime(what)
    try:
        found = moment.astimezone(UTC)
    except OverflowError:  # the first or last representable day, in another zone than UTC
        found = moment
    if not _YEARS[0] <= found.year <= _YEARS[1]:
        raise TimeOutOfRange(what, moment, _YEARS)
    return found
