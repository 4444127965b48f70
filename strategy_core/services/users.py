"""The directory of the platform's users: load it, and count the users that a plan or a share reaches."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from strategy_core.domain.alerts import CountUsers, Exposed
from strategy_core.domain.arrays import IntArray
from strategy_core.domain.errors import InvalidReport, RolloutError
from strategy_core.domain.lifecycle import Status, utc
from strategy_core.domain.parsing import checked_rows
from strategy_core.domain.plan import Plan
from strategy_core.domain.preview import Account, Audience, OtherCanary, audience
from strategy_core.domain.routing import BUCKETS, buckets_of
from strategy_core.services.live_trades import FIRST_ROW, read_csv
from strategy_core.store import rollouts, versions
from strategy_core.store import users as user_store
from strategy_core.store.engine import reading, retry_transient, transaction


@dataclass(frozen=True, slots=True)
class Loaded:
    """The result of a load: users in the directory now, and how many were added, removed or have another capital."""

    users: int
    added: int
    removed: int
    changed: int


def load_users_csv(engine: Engine, path: Path, *, now: datetime) -> Loaded:
    """Load a CSV file with the columns `user_id` and optionally `capital`, as `load_users` does."""
    return _load(engine, read_csv(path, Account), now=now, source=str(path), first_row=FIRST_ROW)


def load_users(engine: Engine, users: Iterable[tuple[str, float | None]], *, now: datetime) -> Loaded:
    """Replace the directory with *users*: pairs of a user id and the capital, or None if it is unknown.

    Raises:
        InvalidReport: with the row and the problem. An empty list is refused.
    """
    rows = ({"user_id": user_id, "capital": capital} for user_id, capital in users)
    return _load(engine, rows, now=now, source="users", first_row=1)


def plan_audience(engine: Engine, *, strategy_name: str, plan: Plan) -> Audience:
    """Return the users that *plan* would reach, by the present directory and canaries.

    Raises:
        UnknownStrategy
    """
    with reading(engine) as session:
        salt = versions.get_strategy(session, strategy_name).salt
        users = user_store.read_users(session)
        others = [
            OtherCanary(
                strategy_name=other.strategy_name,
                version=other.version,
                percent_bp=rollouts.get_canary(session, other.strategy_name).rollout_bp,
                same_salt=versions.get_strategy(session, other.strategy_name).salt == salt,
            )
            for other in versions.list_versions(session, status=Status.CANARY)
            if other.strategy_name != strategy_name
        ]
    capital = np.array(list(users.values()), np.float64)  # None becomes NaN
    return audience(plan, buckets_of(list(users), salt), capital, others)


def counted(engine: Engine) -> CountUsers:
    """Return a function that counts the directory users of a share. Each strategy's users are read on first use.


    The count is None if no directory is loaded or it is unreadable: alerts are sent anyway.
    """
    known: dict[str, IntArray] = {}

    def count(strategy_name: str, exposed: Exposed) -> int | None:
        try:
            if strategy_name not in known:
                known[strategy_name] = _sorted_buckets(engine, strategy_name)
        except (RolloutError, DBAPIError):
            return None
        buckets = known[strategy_name]
        if not len(buckets):
            return None
        share = exposed.percent if exposed.role == "canary" else 100 - exposed.percent
        below = int(np.searchsorted(buckets, round(share / 100 * BUCKETS)))
        return below if exposed.role == "canary" else len(buckets) - below

    return count


@retry_transient()
def count_under(engine: Engine, salt: str) -> None:
    """Store the directory's counts under the salt of a strategy that was registered after the load."""
    with reading(engine) as session:
        if user_store.is_counted(session, salt):
            return
    with transaction(engine) as session:
        user_store.hold_directory(session)
        if user_store.is_counted(session, salt):  # by a concurrent load, or for another strategy with this salt
            return
        users = list(user_store.read_users(session))
        if users:
            user_store.keep_counts(session, {salt: (len(users), _below(users, salt))})


def _below(user_ids: Sequence[str], salt: str) -> bytes:
    """Return the number of users below each bucket, as `directory_tally` stores it."""
    in_each = np.bincount(buckets_of(user_ids, salt), minlength=BUCKETS)
    return np.concatenate([[0], in_each.cumsum()]).astype(">u4").tobytes()


def _sorted_buckets(engine: Engine, strategy_name: str) -> IntArray:
    with reading(engine) as session:
        salt = versions.get_strategy(session, strategy_name).salt
        users = user_store.read_users(session)
    return np.sort(buckets_of(list(users), salt))


def _load(engine: Engine, rows: Iterable[Mapping[str, Any]], *, now: datetime, source: str, first_row: int) -> Loaded:
    now = utc(now, "now")
    wanted: dict[str, float | None] = {}
    for number, account in enumerate(checked_rows(Account, rows, source=source, first_row=first_row), first_row):
        if account.user_id in wanted:
            raise InvalidReport(source, f"user_id: {account.user_id!r} is listed twice", number)
        wanted[account.user_id] = account.capital
    if not wanted:
        raise InvalidReport(source, "holds no users, and each load replaces the previous user list")
    with reading(engine) as session:
        salts = versions.salts(session)
    below = {
        salt: _below(list(wanted), salt) for salt in salts
    }  # takes a second for a million users, so it runs outside the transaction
    return _replace(engine, wanted, below, now=now)


@retry_transient()
def _replace(
    engine: Engine, wanted: Mapping[str, float | None], counted: Mapping[str, bytes], *, now: datetime
) -> Loaded:
    """Replace the directory with *wanted*, and store the counts under each salt."""
    with transaction(engine) as session:
        user_store.hold_directory(session)
        salts = versions.salts(session)
        below = {salt: counted[salt] if salt in counted else _below(list(wanted), salt) for salt in salts}
        known = user_store.read_users(session)
        removed = known.keys() - wanted.keys()
        changed = {user for user in known.keys() & wanted.keys() if known[user] != wanted[user]}
        added = wanted.keys() - known.keys()
        user_store.remove_users(session, removed | changed)
        user_store.add_users(
            session,
            [{"user_id": user, "capital": wanted[user], "loaded_at": now} for user in sorted(added | changed)],
        )
        user_store.keep_counts(session, {salt: (len(wanted), counts) for salt, counts in below.items()})
    return Loaded(users=len(wanted), added=len(added), removed=len(removed), changed=len(changed))
