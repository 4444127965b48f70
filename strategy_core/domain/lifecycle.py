"""What a version may do now, and which status may follow which; never who asks or where it is stored."""

from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum

from strategy_core.domain.errors import IllegalTransition, NaiveTime


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
    """Return *moment* in UTC; a naive one raises NaiveTime, because guessing a zone moves money by hours."""
    if moment.tzinfo is None:
        raise NaiveTime(what)
    return moment.astimezone(UTC)
