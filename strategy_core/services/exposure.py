"""Whom a version has served, how many users, and for how long, as the audit trail has it; it changes nothing."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
from sqlmodel import Session

from strategy_core.domain.arrays import IntArray
from strategy_core.domain.live import Serving, serving_at
from strategy_core.domain.routing import BUCKETS, as_percent, buckets_of
from strategy_core.store import audit, directory, versions


@dataclass(frozen=True, slots=True)
class Served:
    """A version's share of users over one span of time; *users* are those of the directory, None where none is loaded.

    Attributes:
        until: when the share changed, or the moment that is asked about.
    """

    since: datetime
    until: datetime
    percent: float
    users: int | None = None


class Census:
    """The directory's users, read when first asked for, and counted by share.

    A directory of more than *most* users is taken for none: hashing a million users takes a second.
    """

    def __init__(self, session: Session, *, most: int | None = None) -> None:
        self._session = session
        self._most = most
        self._buckets: dict[str, IntArray] = {}
        self._user_ids: list[str] | None = None

    def users(self, strategy_name: str, from_bp: int = 0, to_bp: int = BUCKETS) -> int | None:
        """Return how many users routing has in [from_bp, to_bp); None where no directory is loaded."""
        if self._user_ids is None:
            too_many = self._most is not None and directory.count_users(self._session) > self._most
            self._user_ids = [] if too_many else list(directory.read_users(self._session))
        if not self._user_ids:
            return None
        salt = versions.get_strategy(self._session, strategy_name).salt
        if salt not in self._buckets:
            self._buckets[salt] = np.sort(buckets_of(self._user_ids, salt))
        first, last = np.searchsorted(self._buckets[salt], [from_bp, to_bp])
        return int(last - first)


def served(
    session: Session, strategy_name: str, version: str, census: Census, *, since: datetime | None, until: datetime
) -> list[Served]:
    """Return each share of users that a version has served up to *until*, oldest first; none while nobody got it.

    Args:
        since: from then on; from when it last began to serve anybody, unless given.
    """
    history = [one for one in audit.serving_history(session, strategy_name) if one.since < until]
    spans = list(_spans(history, version, until, lambda low, high: census.users(strategy_name, low, high)))
    if since is not None:
        return [replace(one, since=max(one.since, since)) for one in spans if one.until > since]
    begun = len(spans)
    while begun > 0 and (begun == len(spans) or spans[begun - 1].until == spans[begun].since):
        begun -= 1
    return spans[begun:]


def share_at(session: Session, strategy_name: str, version: str, moment: datetime) -> tuple[int, int]:
    """Return which buckets routing gave the version at a moment: from the first, to before the second."""
    serving = serving_at(audit.serving_history(session, strategy_name), moment)
    return (0, 0) if serving is None else _share(serving, version)


def _spans(
    history: Sequence[Serving], version: str, until: datetime, count: Callable[[int, int], int | None]
) -> Iterator[Served]:
    ends = [*(one.since for one in history[1:]), *([until] if history else [])]
    last: tuple[datetime, datetime, tuple[int, int]] | None = None
    for one, end in zip(history, ends, strict=True):
        share = _share(one, version)
        if last is not None and last[1] == one.since and last[2] == share:
            last = (last[0], end, share)
            continue
        if last is not None:
            yield _served(*last, count)
        last = (one.since, end, share) if share[1] > share[0] and end > one.since else None
    if last is not None:
        yield _served(*last, count)


def _share(serving: Serving, version: str) -> tuple[int, int]:
    """Return which buckets get the version: from the first, to before the second."""
    if serving.canary == version:
        return 0, serving.canary_bp
    if serving.active == version:
        return (serving.canary_bp if serving.canary is not None else 0), BUCKETS
    return 0, 0


def _served(
    since: datetime, until: datetime, share: tuple[int, int], count: Callable[[int, int], int | None]
) -> Served:
    return Served(since, until, as_percent(share[1] - share[0]), count(*share))
