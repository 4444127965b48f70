"""The platform's user directory. Each load replaces the previous one."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Session, col

from strategy_core.domain.capital import CapitalBelow
from strategy_core.domain.routing import BUCKETS
from strategy_core.store.engine import insert_if_new
from strategy_core.store.tables import DirectoryTally, PlatformUser, StrategyRow


def hold_directory(session: Session) -> None:
    """Block other loads and counts of the directory until the transaction ends. Reads continue.

    On SQLite there is only one writer at a time.
    """
    if _dialect(session) == "postgresql":
        session.connection().execute(sa.text("LOCK TABLE platform_user IN SHARE ROW EXCLUSIVE MODE"))


def read_users(session: Session) -> dict[str, float | None]:
    """Return capital by user (None: unknown)."""
    rows = session.connection().execute(sa.select(col(PlatformUser.user_id), col(PlatformUser.capital)))
    return dict(rows.tuples().all())


def count_users(session: Session) -> int:
    return session.connection().execute(sa.select(sa.func.count()).select_from(PlatformUser)).scalar_one()


def add_users(session: Session, rows: Sequence[Mapping[str, Any]]) -> int:
    return insert_if_new(session, PlatformUser, rows)


def remove_users(session: Session, user_ids: Iterable[str]) -> None:
    gone = [{"gone": user_id} for user_id in user_ids]
    if gone:
        session.connection().execute(
            sa.delete(PlatformUser).where(col(PlatformUser.user_id) == sa.bindparam("gone")), gone
        )


def is_counted(session: Session, salt: str) -> bool:
    return session.get(DirectoryTally, salt) is not None


def uncounted_salts(session: Session) -> Sequence[str]:
    """Return the salts of strategies under which the loaded directory is not counted."""
    missing = (
        sa.select(col(StrategyRow.salt))
        .distinct()
        .outerjoin(DirectoryTally, col(DirectoryTally.salt) == col(StrategyRow.salt))
        .where(col(DirectoryTally.salt).is_(None), sa.exists(sa.select(col(PlatformUser.user_id))))
    )
    return session.connection().execute(missing).scalars().all()


def is_uncounted(session: Session, salt: str) -> bool:
    """Return whether a directory is loaded that is not counted under the salt."""
    loaded = sa.select(col(PlatformUser.user_id)).limit(1)
    return not is_counted(session, salt) and session.connection().execute(loaded).first() is not None


def users_below(session: Session, salt: str, buckets: Sequence[int]) -> dict[int, int] | None:
    """Return the number of users below each of *buckets* (0 to 10,000), or None if no directory is loaded.

    The time does not depend on the number of users.
    """
    places = [sa.func.substr(col(DirectoryTally.below), 4 * bucket + 1, 4) for bucket in buckets]
    query = sa.select(*places).where(col(DirectoryTally.salt) == salt, col(DirectoryTally.users) > 0)
    found = session.connection().execute(query).first()
    if found is None:
        return None
    return {bucket: int.from_bytes(below, "big") for bucket, below in zip(buckets, found, strict=True)}


def read_below(session: Session, salt: str) -> CapitalBelow | None:
    """Return the users and their capital below each bucket, or None if no directory is loaded.

    The time does not depend on the number of users.
    """
    row = (
        session.connection()
        .execute(
            sa.select(
                *(col(getattr(DirectoryTally, name)) for name in ("below", "unknown_below", "capital_below"))
            ).where(col(DirectoryTally.salt) == salt, col(DirectoryTally.users) > 0)
        )
        .first()
    )
    if row is None:
        return None
    users = np.frombuffer(row.below, ">u4").astype(np.int64)
    if not row.capital_below:  # counted by an earlier release
        return CapitalBelow(users, users, np.zeros(BUCKETS + 1))
    return CapitalBelow(
        users,
        np.frombuffer(row.unknown_below, ">u4").astype(np.int64),
        np.frombuffer(row.capital_below, ">f8").astype(np.float64),
    )


def accounts_above(session: Session, capital: float) -> dict[str, float]:
    """Return capital by user of the accounts with more than *capital*. They are found by an index."""
    query = sa.select(col(PlatformUser.user_id), col(PlatformUser.capital)).where(col(PlatformUser.capital) > capital)
    return {user_id: float(found) for user_id, found in session.connection().execute(query)}


def capital_of(session: Session, user_ids: Iterable[str]) -> dict[str, float | None]:
    """Return capital by user of those who are in the directory, in one statement for any number of them.

    Stage entries ask for all listed users while they hold the strategy.
    """
    asked = json.dumps(sorted(user_ids))
    if _dialect(session) == "postgresql":
        listed = sa.func.json_array_elements_text(sa.cast(sa.literal(asked, sa.Text), sa.JSON)).table_valued("value")
    else:
        listed = sa.func.json_each(asked).table_valued("value")
    query = sa.select(col(PlatformUser.user_id), col(PlatformUser.capital)).where(
        col(PlatformUser.user_id).in_(sa.select(listed.c.value))
    )
    return dict(session.connection().execute(query).tuples().all())


def keep_counts(session: Session, counts: Mapping[str, CapitalBelow]) -> None:
    """Replace the stored sums of each salt."""
    if not counts:
        return
    insert = postgresql.insert if _dialect(session) == "postgresql" else sqlite.insert
    given = insert(DirectoryTally)
    names = ("users", "below", "unknown_below", "capital_below")
    put = given.on_conflict_do_update(
        index_elements=["salt"], set_={name: getattr(given.excluded, name) for name in names}
    )
    rows = [
        {
            "salt": salt,
            "users": int(below.users[-1]),
            "below": below.users.astype(">u4").tobytes(),
            "unknown_below": below.unknown.astype(">u4").tobytes(),
            "capital_below": below.capital.astype(">f8").tobytes(),
        }
        for salt, below in sorted(counts.items())
    ]
    session.connection().execute(put, rows)


def _dialect(session: Session) -> str:
    return session.get_bind().dialect.name
