"""How many users of the directory a canary serves at a moment, as routing does: with exclusions as they were then."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import or_, select
from sqlmodel import Session, col

from strategy_core.domain.release_times import ALL_STRATEGIES
from strategy_core.domain.routing import bucket_of
from strategy_core.domain.user_exclusions import ExclusionKind
from strategy_core.store import users
from strategy_core.store.tables import PlatformUser, UserExclusionRow


@dataclass(frozen=True, slots=True)
class ServedUsers:
    """Users of the directory by bucket, and those of them with an exclusion.

    Attributes:
        everyone: all users.
        below: users by bucket, as asked for.
        excluded: exclusions by bucket and user, in (kind, since, until).
        is_exact: whether all exclusions were read.
    """

    everyone: int
    below: Mapping[int, int]
    excluded: Mapping[tuple[int, str], Sequence[tuple[str, datetime, datetime | None]]]
    is_exact: bool = True

    def on_canary(self, percent_bp: int, at: datetime, *, without: Collection[ExclusionKind] = ()) -> int:
        """Return the users that a canary of this share serves at a moment.

        Args:
            without: kinds that do not count.
        """
        if percent_bp == 0:
            return 0
        count = self.below[percent_bp]
        for (bucket, _), found in self.excluded.items():
            kinds = {kind for kind, since, until in found if since <= at and (until is None or at < until)} - {*without}
            if kinds - {ExclusionKind.ALWAYS}:
                count -= bucket < percent_bp
            elif kinds:
                count += bucket >= percent_bp
        return count


def read_served_users(
    session: Session,
    strategy_name: str,
    salt: str,
    shares_bp: Collection[int],
    *,
    since: datetime,
    until: datetime,
    most: int | None = None,
) -> ServedUsers | None:
    """Return what counts the users of canaries in [since, until], or None if no directory is loaded.

    Args:
        shares_bp: of the canaries that will be asked for.
        most: read at most this many exclusions.
    """
    below = users.users_below(session, salt, sorted({*shares_bp, 10_000}))
    if below is None:
        return None
    ends = (col(UserExclusionRow.valid_to), col(UserExclusionRow.until))
    query: Any = (
        select(
            col(UserExclusionRow.user_id),
            col(UserExclusionRow.kind),
            col(UserExclusionRow.valid_from),
            *ends,
        )
        .join(PlatformUser, col(PlatformUser.user_id) == col(UserExclusionRow.user_id))
        .where(
            col(UserExclusionRow.strategy_name).in_([strategy_name, ALL_STRATEGIES]),
            col(UserExclusionRow.valid_from) <= until,
            *(or_(end.is_(None), end > since) for end in ends),
        )
    )
    rows = session.connection().execute(query if most is None else query.limit(most + 1)).all()
    excluded: dict[tuple[int, str], list[tuple[str, datetime, datetime | None]]] = defaultdict(list)
    for user, kind, began, valid_to, runs_out in rows:
        ended = min((end for end in (valid_to, runs_out) if end is not None), default=None)
        excluded[bucket_of(user, salt), user].append((kind, began, ended))
    return ServedUsers(below[10_000], below, excluded, most is None or len(rows) <= most)
