"""The directory of the platform's users: load it, and count the users that a plan or a share reaches."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from sqlmodel import Session

from strategy_core.domain.alerts import CountUsers, Exposed
from strategy_core.domain.arrays import IntArray
from strategy_core.domain.capital import CapitalBelow, Placed, capital_below
from strategy_core.domain.errors import InvalidReport, InvariantRefused, RolloutError
from strategy_core.domain.lifecycle import Status, utc
from strategy_core.domain.parsing import checked_rows
from strategy_core.domain.plan import Plan
from strategy_core.domain.policy import load_policy
from strategy_core.domain.preview import Account, Audience, OtherCanary, audience
from strategy_core.domain.release_times import ALL_STRATEGIES
from strategy_core.domain.routing import BUCKETS, bucket_of, buckets_of
from strategy_core.domain.user_exclusions import ExclusionKind, UserSets
from strategy_core.services.canary_capital import review_caps
from strategy_core.services.live_trades import FIRST_ROW, read_csv
from strategy_core.store import rollouts, toggles, user_exclusions, versions
from strategy_core.store import users as user_store
from strategy_core.store.engine import reading, retry_transient, transaction

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Loaded:
    """The result of a load: users in the directory now, and how many were added, removed or have another capital.

    Attributes:
        reviewed: a line for each canary whose share of users was changed, because of its cap on capital.
    """

    users: int
    added: int
    removed: int
    changed: int
    reviewed: tuple[str, ...] = ()


Confirm: TypeAlias = Callable[[int, int], None]  # raises to stop: how many of how many would be removed
_MOST_REMOVED = 100  # without a question, or any number up to half


def confirm_removal(removed: int, before: int, confirm: Confirm | None) -> None:
    """Call *confirm* if a load removes more than half of what is there, and more than 100."""
    if confirm is not None and removed > max(_MOST_REMOVED, before / 2):
        confirm(removed, before)


def load_users_csv(engine: Engine, path: Path, *, now: datetime, confirm: Confirm | None = None) -> Loaded:
    """Load a CSV file with the columns `user_id` and optionally `capital`, as `load_users` does.

    Args:
        confirm: asked before a load that removes more than half of the users, and more than 100. It raises to stop.
    """
    source, rows = str(path), read_csv(path, Account)
    return _load(engine, rows, now=now, source=source, first_row=FIRST_ROW, confirm=confirm)


def load_users(engine: Engine, users: Iterable[tuple[str, float | None]], *, now: datetime) -> Loaded:
    """Replace the directory with *users*: pairs of a user id and the capital, or None if it is unknown.

    Then the cap on capital of each canary is reviewed, as `review_caps` does.

    Raises:
        InvalidReport: with the row and the problem. An empty list is refused.
    """
    rows = ({"user_id": user_id, "capital": capital} for user_id, capital in users)
    return _load(engine, rows, now=now, source="users", first_row=1)


def plan_audience(engine: Engine, *, strategy_name: str, plan: Plan, now: datetime) -> Audience:
    """Return the users that *plan* would reach, by the directory, the canaries, exclusions and holdout at *now*.

    Raises:
        UnknownStrategy
        InvalidPlan: this release cannot read the policy.
    """
    with reading(engine) as session:
        salt = versions.get_strategy(session, strategy_name).salt
        below = user_store.read_below(session, salt)
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
        mine = _excluded(session, strategy_name, utc(now, "now"))
        large = large_accounts(session, below, plan)
        earlier = user_exclusions.users_with(session, strategy_name, ExclusionKind.LARGE_ACCOUNT)
        kept = user_store.capital_of(session, mine.kept.difference(earlier))
        always = user_store.capital_of(session, mine.always - mine.kept)
        policy = versions.find_policy(session, strategy_name)
        holdout = 0.0 if policy is None else load_policy(policy.policy).holdout_percent
    large = {user: capital for user, capital in large.items() if user not in kept and user not in always}
    return audience(
        plan,
        below,
        others,
        kept=placed(kept, salt),
        always=placed(always, salt),
        large=placed(large, salt),
        holdout_percent=holdout,
    )


def large_accounts(session: Session, below: CapitalBelow | None, plan: Plan) -> dict[str, float]:
    """Return capital by user of the accounts that stay with the active version until 100 % by *plan*."""
    above = None if below is None else below.large_above(plan.largest_account_percent)
    return {} if above is None else user_store.accounts_above(session, above)


def placed(users: Mapping[str, float | None] | Mapping[str, float], salt: str) -> list[Placed]:
    """Return users of the directory with their buckets, given capital by user."""
    return [Placed(bucket_of(user_id, salt), capital) for user_id, capital in users.items()]


def counted(engine: Engine, now: datetime) -> CountUsers:
    """Return a function that counts the directory users of a share. Each strategy's users are read on first use.

    It counts kept users with the active version, and those that always get the canary with it. The count is None if no
    directory is loaded or it is unreadable: alerts are sent anyway.
    """
    known: dict[str, IntArray] = {}

    def count(strategy_name: str, exposed: Exposed) -> int | None:
        try:
            if strategy_name not in known:
                known[strategy_name] = _sorted_buckets(engine, strategy_name, now)
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
        users = user_store.read_users(session)
        if users:
            user_store.keep_counts(session, {salt: _below(users, salt)})


def count_missing(engine: Engine) -> None:
    """Do `count_under` for each strategy whose counts are missing. A failure is left to the next call."""
    try:
        with reading(engine) as session:
            salts = user_store.uncounted_salts(session)
        for salt in salts:
            count_under(engine, salt)
    except (DBAPIError, InvariantRefused) as error:
        log.warning("users.not_counted", error=type(error).__name__)


def _below(users: Mapping[str, float | None], salt: str) -> CapitalBelow:
    capital = np.array(list(users.values()), np.float64)  # None becomes NaN
    return capital_below(buckets_of(list(users), salt), capital)


def _sorted_buckets(engine: Engine, strategy_name: str, now: datetime) -> IntArray:
    with reading(engine) as session:
        salt = versions.get_strategy(session, strategy_name).salt
        excluded = _excluded(session, strategy_name, now)
        return np.sort(_placed(list(user_store.read_users(session)), salt, excluded))


def _excluded(session: Session, strategy_name: str, now: datetime) -> UserSets:
    sets = user_exclusions.current_sets(session, [strategy_name], now)[0]
    return sets.get(strategy_name) or sets.get(ALL_STRATEGIES) or UserSets()


def _placed(users: Sequence[str], salt: str, excluded: UserSets) -> IntArray:
    """Return the users' buckets. Of those that are kept it is beyond the last one, and 0 of those in every canary."""
    buckets = buckets_of(users, salt)
    if excluded.kept or excluded.always:
        buckets[[user in excluded.always for user in users]] = 0
        buckets[[user in excluded.kept for user in users]] = BUCKETS
    return buckets


def _load(
    engine: Engine,
    rows: Iterable[Mapping[str, Any]],
    *,
    now: datetime,
    source: str,
    first_row: int,
    confirm: Confirm | None = None,
) -> Loaded:
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
        known = set(user_store.read_users(session)) if confirm is not None else set()
    confirm_removal(len(known - wanted.keys()), len(known), confirm)
    below = {
        salt: _below(wanted, salt) for salt in salts
    }  # takes a second for a million users, so it runs outside the transaction
    loaded = _replace(engine, wanted, below, now=now)
    return replace(loaded, reviewed=tuple(review_caps(engine, now=now)))


@retry_transient()
def _replace(
    engine: Engine, wanted: Mapping[str, float | None], counted: Mapping[str, CapitalBelow], *, now: datetime
) -> Loaded:
    """Replace the directory with *wanted*, and store the counts under each salt."""
    with transaction(engine) as session:
        user_store.hold_directory(session)
        salts = versions.salts(session)
        below = {salt: counted[salt] if salt in counted else _below(wanted, salt) for salt in salts}
        known = user_store.read_users(session)
        removed = known.keys() - wanted.keys()
        changed = {user for user in known.keys() & wanted.keys() if known[user] != wanted[user]}
        added = wanted.keys() - known.keys()
        user_store.remove_users(session, removed | changed)
        user_store.add_users(
            session,
            [{"user_id": user, "capital": wanted[user], "loaded_at": now} for user in sorted(added | changed)],
        )
        user_store.keep_counts(session, below)
        if added or removed or changed:
            toggles.touch(session)
    return Loaded(users=len(wanted), added=len(added), removed=len(removed), changed=len(changed))
