"""The platform's user directory. Each load replaces the previous one."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Session, col

from strategy_core.store.engine import insert_if_new
from strategy_core.store.tables import DirectoryTally, PlatformUser


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


def keep_counts(session: Session, counts: Mapping[str, tuple[int, bytes]]) -> None:
    """Replace the stored (users, users below each bucket) of each salt."""
    if not counts:
        return
    insert = postgresql.insert if _dialect(session) == "postgresql" else sqlite.insert
    given = insert(DirectoryTally)
    put = given.on_conflict_do_update(
        index_elements=["salt"], set_={"users": given.excluded.users, "below": given.excluded.below}
    )
    rows = [{"salt": salt, "users": users, "below": below} for salt, (users, below) in sorted(counts.items())]
    session.connection().execute(put, rows)


def _dialect(session: Session) -> str:
    return session.get_bind().dialect.name
