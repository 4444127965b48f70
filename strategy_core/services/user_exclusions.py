"""Exclusions of users: set, end and list them.

An exclusion for all strategies concerns every strategy that there is, and is an event of each (`all_strategies`).
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Engine
from sqlmodel import Session

from strategy_core.domain.audit import Command
from strategy_core.domain.errors import InvalidExclusion, UnknownStrategy
from strategy_core.domain.lifecycle import utc
from strategy_core.domain.parsing import is_padded
from strategy_core.domain.release_times import ALL_STRATEGIES
from strategy_core.domain.user_exclusions import ExclusionKind, checked_users
from strategy_core.services.all_strategies import FACT_OF, complete_changes, record_others, set_facts
from strategy_core.services.transitions import recorded_change
from strategy_core.store import audit, user_exclusions, versions
from strategy_core.store.engine import reading, retry_transient, transaction
from strategy_core.store.tables import AuditEvent, UserExclusionRow

EXCLUDE, END = audit.OF_USERS
BY_HAND = frozenset({ExclusionKind.OPT_OUT, ExclusionKind.NEVER, ExclusionKind.ALWAYS})


@dataclass(frozen=True, slots=True)
class ChangedUsers:
    """The result of a change: the users that it concerned. The others had the exclusion already, or had none."""

    strategy_name: str
    kinds: Sequence[ExclusionKind]
    users: Sequence[str]
    until: datetime | None = None

    @property
    def shown_strategy(self) -> str:
        return "all strategies" if self.strategy_name == ALL_STRATEGIES else self.strategy_name


def exclude_users(
    engine: Engine,
    command: Command,
    *,
    strategy_name: str,
    user_ids: Sequence[str],
    kind: ExclusionKind,
    until: datetime | None = None,
) -> ChangedUsers:
    """Keep users with the active version, or give them every canary (`always`). Repeated it changes nothing.

    It counts from the next read of each Router. A user that is kept for any reason gets no canary, also an `always`
    user.

    Args:
        strategy_name: or `*` for all strategies, also those that are registered later.
        user_ids: at most 10,000.
        until: when it runs out by itself. Given again with another time, the new time counts.

    Raises:
        UnknownStrategy
        LostRace: the command's generation is outdated. An exclusion for all strategies does not ask for one.
        InvalidName, InvalidExclusion: an id is no user id, *until* is not in the future, or the kind is set by the
            software alone.
    """
    users, now = checked_users(user_ids), utc(command.now, "now")
    if padded := next(filter(is_padded, users), None):
        raise InvalidExclusion(f"{padded[:40]!r} is not a user id", "an id without white space around it")
    if kind not in BY_HAND:
        allowed = ", ".join(sorted(BY_HAND))
        raise InvalidExclusion(f"{kind.value} is set by the software alone", allowed)
    if until is not None and utc(until, "until") <= now:
        raise InvalidExclusion(
            f"it would run out at {until:%Y-%m-%d %H:%M} UTC", f"a time after {now:%Y-%m-%d %H:%M} UTC"
        )

    def change(session: Session) -> list[str]:
        return user_exclusions.exclude(
            session,
            strategy_name,
            kind,
            users,
            now=now,
            reason=command.stated_reason,
            actor=command.actor.shown,
            until=until,
        )

    return _change(engine, command, EXCLUDE, ChangedUsers(strategy_name, [kind], users, until), change)


def end_exclusions(
    engine: Engine,
    command: Command,
    *,
    strategy_name: str,
    user_ids: Sequence[str],
    kinds: Collection[ExclusionKind] = BY_HAND,
) -> ChangedUsers:
    """End users' exclusions, so that their bucket decides again. Users without one are passed over.

    Args:
        strategy_name: as it was set: an exclusion for all strategies (`*`) is not ended for one of them.
        kinds: which exclusions to end. A loss limit that was hit (`guard`) ends only if it is named.

    Raises:
        UnknownStrategy, LostRace, InvalidName, InvalidExclusion
    """
    users, now, ending = checked_users(user_ids), utc(command.now, "now"), sorted(kinds)

    def change(session: Session) -> list[str]:
        return user_exclusions.end(session, strategy_name, ending, users, now=now)

    return _change(engine, command, END, ChangedUsers(strategy_name, ending, users), change)


def list_exclusions(
    engine: Engine,
    strategy_name: str | None = None,
    *,
    strategies: Collection[str] | None = None,
    user_id: str | None = None,
    counting_at: datetime | None = None,
    after_id: int = 0,
    limit: int | None = None,
    newest: bool = False,
) -> Sequence[UserExclusionRow]:
    """Return exclusions in the order in which they were set.

    Args:
        strategy_name: of this strategy, and of all strategies.
        strategies: of these strategies, and of all strategies. None: every exclusion.
        user_id: of this user.
        counting_at: only those that count at this moment. None: also those that have ended.
        limit, newest: at most this many: the first ones, or with *newest* the last ones.

    Raises:
        UnknownStrategy
    """
    with reading(engine) as session:
        if strategy_name is not None:
            versions.get_strategy(session, strategy_name)
            strategies = [strategy_name]
        return user_exclusions.list_exclusions(
            session,
            None if strategies is None else sorted(strategies),
            user_id=user_id,
            counting_at=counting_at,
            after_id=after_id,
            limit=limit,
            newest=newest,
        )


def _change(
    engine: Engine, command: Command, action: str, asked: ChangedUsers, change: Callable[[Session], list[str]]
) -> ChangedUsers:
    if asked.strategy_name == ALL_STRATEGIES:
        complete_changes(engine)  # of an earlier change, perhaps of this one
    changed, first = _change_first(engine, command, action, asked, change)
    record_others(engine, first)
    return changed


@retry_transient()
def _change_first(
    engine: Engine, command: Command, action: str, asked: ChangedUsers, change: Callable[[Session], list[str]]
) -> tuple[ChangedUsers, AuditEvent | None]:
    """Make the change with its first event. Return both. Without a change there is no event."""
    for_all = asked.strategy_name == ALL_STRATEGIES
    with transaction(engine) as session:
        names = versions.strategy_names(session) if for_all else [asked.strategy_name]
        if not names:
            raise UnknownStrategy(ALL_STRATEGIES)  # without an event there would be no trail of it
        first, *others = names
        versions.lock_strategy(session, first, None if for_all else command.if_generation)
        changed = replace(asked, users=change(session))
        if not changed.users:
            return changed, None
        with recorded_change(session, command, action, first) as event:
            set_facts(event, FACT_OF[action], _facts(changed), others)
        return changed, audit.newest_event(session, first)


def _facts(changed: ChangedUsers) -> dict[str, Any]:
    """Return what an audit event shows of a change."""
    until = {} if changed.until is None else {"until": changed.until.isoformat()}
    strategies = "all" if changed.strategy_name == ALL_STRATEGIES else [changed.strategy_name]
    return {
        "kinds": [str(kind) for kind in changed.kinds],
        "ids": list(changed.users),
        "strategies": strategies,
        **until,
    }
