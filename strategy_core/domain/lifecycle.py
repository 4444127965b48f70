"""What a version may do now, and which status may follow which; never who asks or where it is stored."""

from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum

from strategy_core.domain.errors import IllegalTransition, NaiveTime, TimeOutOfRange

_YEARS = (1678, 2261)  # the whole ones that pandas counts in nanoseconds


class Status(StrEnum):
    SHADOW = "shadow"  # decides on every candle, nobody is routed to it
    CANARY = "canary"  # serves a percent of users
    ACTIVE = "active"  # serves everybody else
    RETIRED = "retired"  # decides nothing


MAY_FOLLOW: Mapping[Status, frozenset[Status]] = {
    Status.SHADOW: frozenset({Status.CANARY, Status.ACTIVE, Status.RETIRED}),
    Status.CANARY: frozenset({Status.ACTIVE, Status.SHADOW, Status.RETIRED}),
    Status.ACTIVE: frozenset({Status.RETIRED, Status.SHADOW}),  # shadow while its successor bakes
    Status.RETIRED: frozenset({Status.ACTIVE, Status.SHADOW}),
}


def check_move(current: Status, target: Status) -> None:
    """Raise IllegalTransition, naming the allowed statuses, unless *target* may follow *current*."""
    if target not in MAY_FOLLOW[current]:
        raise IllegalTransition(current, target, MAY_FOLLOW[current])


def utc(moment: datetime, what: str = "time") -> datetime:
    """Return *moment* in UTC.

    Raises:
        NaiveTime: it has no zone, and guessing one moves money by hours.
        TimeOutOfRange: its year in UTC is not within 1678 to 2261, where candles can be.
    """
    if moment.tzinfo is None:
        raise NaiveTime(what)
    try:
        found = moment.astimezone(UTC)
    except OverflowError:  # the first or last day there is, in a zone that has it before or after UTC
        found = moment
    if not _YEARS[0] <= found.year <= _YEARS[1]:
        raise TimeOutOfRange(what, moment, _YEARS)
    return found
