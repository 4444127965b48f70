"""Freezes: set, lift and list them, and check whether a strategy may be released now.

A freeze of all strategies concerns every strategy that there is, and is an event of each (`all_strategies`).
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import Engine
from sqlmodel import Session

from strategy_core.domain.audit import Command
from strategy_core.domain.errors import InvalidFreeze, InvalidPlan, ReleaseClosed
from strategy_core.domain.lifecycle import utc
from strategy_core.domain.policy import load_policy
from strategy_core.domain.release_times import (
    ALL_STRATEGIES,
    FARTHEST_FREEZE,
    LONGEST_FREEZE,
    Freeze,
    MarketHours,
    ReleaseTimes,
    ReleaseWindow,
)
from strategy_core.market.calendars import CALENDARS
from strategy_core.services.all_strategies import FACT_OF, complete_changes, record_others, set_facts
from strategy_core.services.transitions import recorded_change
from strategy_core.store import audit, release_times, rollouts, versions
from strategy_core.store.engine import reading, retry_transient, transaction
from strategy_core.store.tables import AuditEvent, FreezeRow

FREEZE, UNFREEZE = "freeze", "unfreeze"
MARKETS: MarketHours = {name: calendar.is_open for name, calendar in CALENDARS.items()}
_ROLES_KNOWN = ("api", "console")  # sources whose actors have a role from a token


def set_freeze(
    engine: Engine, command: Command, *, strategy_name: str, ends_at: datetime, starts_at: datetime | None = None
) -> FreezeRow:
    """Freeze a strategy, or all strategies: no rollout starts, advances or is promoted, and no version is activated.

    Rollbacks, pauses, exclusions and registrations in shadow go on. Freezes may overlap.

    Args:
        strategy_name: or `*` for all strategies, also those that are registered later.
        starts_at: by default now. An earlier time counts as now.

    Raises:
        UnknownStrategy
        LostRace: the command's generation is outdated. A freeze of all strategies does not ask for one.
        InvalidFreeze: it would end before it starts, last longer than 366 days, or start later than in 366 days.
    """
    now = utc(command.now, "now")
    starts_at = max(now, utc(starts_at or now, "starts_at"))
    ends_at = utc(ends_at, "ends_at")
    if strategy_name != ALL_STRATEGIES:
        with reading(engine) as session:
            versions.get_strategy(session, strategy_name)  # an unknown name is the first thing to correct
    if problem := _problem(starts_at, ends_at, now):
        raise InvalidFreeze(starts_at, ends_at, problem)
    frozen = FreezeRow(
        strategy_name=strategy_name,
        starts_at=starts_at,
        ends_at=ends_at,
        reason=command.reason,
        set_at=now,
        set_by=command.actor.shown,
    )
    if frozen.covers_all:
        complete_changes(engine)
    frozen, first = _set(engine, command, frozen)
    record_others(engine, first)
    return frozen


def lift_freeze(engine: Engine, command: Command, freeze_id: int) -> FreezeRow:
    """Lift a freeze at once, and return it. The first lifting is kept.

    Raises:
        UnknownFreeze
    """
    frozen = find_freeze(engine, freeze_id)
    if frozen.covers_all:
        complete_changes(engine)
    lifted, first = _lift(engine, command, frozen)
    record_others(engine, first)
    return lifted


def list_freezes(
    engine: Engine,
    strategy_name: str | None = None,
    *,
    strategies: Collection[str] | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> Sequence[FreezeRow]:
    """Return freezes in the order of their start, lifted ones included.

    Args:
        strategy_name: of this strategy, and of all strategies.
        strategies: of these strategies, and of all strategies. None: every freeze.
        since, until: those that cover a moment in [since, until), if they were not lifted before.

    Raises:
        UnknownStrategy
    """
    with reading(engine) as session:
        if strategy_name is not None:
            versions.get_strategy(session, strategy_name)
            strategies = [strategy_name]
        wanted = None if strategies is None else sorted(strategies)
        return release_times.list_freezes(session, wanted, since=since, until=until)


def find_freeze(engine: Engine, freeze_id: int) -> FreezeRow:
    """Return a freeze. Raises UnknownFreeze."""
    with reading(engine) as session:
        return release_times.get_freeze(session, freeze_id)


def load_times(session: Session, strategy_name: str, since: datetime) -> ReleaseTimes:
    """Return the freezes of a strategy that end after *since*, the hours of markets, and what else holds its stages.

    The last part is read when it is asked for, within the open transaction: a rollback must not wait for it.
    """
    return ReleaseTimes(
        release_times.freezes_of(session, strategy_name, since), MARKETS, partial(canaries_hold, session, strategy_name)
    )


def canaries_hold(session: Session, strategy_name: str) -> str:
    """Return why the strategy's canary has to wait for older canaries of other strategies, or an empty text.

    The older one is not held, so that two canaries do not wait for each other.
    """
    found = versions.find_policy(session, strategy_name)
    try:
        limit = None if found is None else load_policy(found.policy).max_canaries_per_user
    except InvalidPlan as error:
        return str(error)  # an unreadable policy may have a limit
    if limit is None:
        return ""
    older = rollouts.older_canaries(session, strategy_name)
    if older < limit:
        return ""
    return f"users are on {older} older canaries with the same salt, at most {limit} allowed: wait until one has ended"


def all_freezes(session: Session, since: datetime) -> list[Freeze]:
    """Return the freezes of all strategies that end after *since*."""
    return release_times.freezes_of(session, None, since)


def times_of(freezes: Sequence[Freeze], strategy_name: str) -> ReleaseTimes:
    """Return the part of *freezes* that concerns a strategy, and the hours of markets."""
    own = [each for each in freezes if each.strategy_name in (strategy_name, ALL_STRATEGIES)]
    return ReleaseTimes(own, MARKETS)


def freeze_now(session: Session, strategy_name: str, now: datetime) -> Freeze | None:
    """Return the freeze of a strategy that lasts longest of those that cover *now*, or None."""
    covering = [each for each in release_times.freezes_of(session, strategy_name, now) if each.covers(now)]
    return max(covering, key=lambda each: each.ends_at, default=None)


def closed_now(session: Session, strategy_name: str, now: datetime, windows: Sequence[ReleaseWindow] = ()) -> str:
    """Return why a strategy may not be released at *now*, or an empty text."""
    return load_times(session, strategy_name, now).closed(windows, now)


def closed_at(engine: Engine, strategy_name: str, moment: datetime, windows: Sequence[ReleaseWindow] = ()) -> str:
    """Return why a strategy may not be released at *moment*, as it is known now, or an empty text."""
    with reading(engine) as session:
        return closed_now(session, strategy_name, moment, windows)


def check_release(
    session: Session,
    command: Command,
    what: str,
    strategy_name: str,
    windows: Sequence[ReleaseWindow] = (),
    *,
    for_canary: bool = True,
) -> None:
    """Raise ReleaseClosed in a freeze or outside the *windows*, unless the command has an override reason.

    By the API an override needs the role admin. A rollback must not call this.

    Args:
        what: the refused change, as in "start a rollout of".
        for_canary: whether users get a canary by it. Otherwise other canaries do not matter.
    """
    times = load_times(session, strategy_name, command.now)
    closed = (times if for_canary else replace(times, held=str)).closed(windows, command.now)
    if not closed:
        return
    known = command.actor.source in _ROLES_KNOWN
    admin = command.actor.role == "admin" or not known
    if not admin:
        raise ReleaseClosed(what, strategy_name, closed, "have an admin give an override reason")
    if not command.override_reason.strip():
        raise ReleaseClosed(what, strategy_name, closed, "give an override reason")


def _problem(starts_at: datetime, ends_at: datetime, now: datetime) -> str:
    if ends_at <= starts_at:
        return "it must end after it starts, and after now"
    if ends_at - starts_at > LONGEST_FREEZE:
        return f"it may last at most {LONGEST_FREEZE.days} days"
    if starts_at - now > FARTHEST_FREEZE:
        return f"it may start at most {FARTHEST_FREEZE.days} days from now"
    return ""


@retry_transient()
def _set(engine: Engine, command: Command, frozen: FreezeRow) -> tuple[FreezeRow, AuditEvent | None]:
    """Store a freeze with its first event, and return both. Without a strategy there is no event."""
    with transaction(engine) as session:
        first, *others = _concerned(session, frozen) or [""]
        if not first:
            return release_times.add_freeze(session, FreezeRow(**frozen.model_dump(exclude={"id"}))), None
        versions.lock_strategy(session, first, None if frozen.covers_all else command.if_generation)
        with recorded_change(session, command, FREEZE, first) as change:
            kept = release_times.add_freeze(session, FreezeRow(**frozen.model_dump(exclude={"id"})))
            set_facts(change, FACT_OF[FREEZE], _facts(kept), others)
        return kept, audit.newest_event(session, first)


@retry_transient()
def _lift(engine: Engine, command: Command, frozen: FreezeRow) -> tuple[FreezeRow, AuditEvent | None]:
    """Lift a freeze with its first event, and return both. A repeated lifting has no event."""
    with transaction(engine) as session:
        first, *others = _concerned(session, frozen) or [""]
        if first:
            versions.lock_strategy(session, first, None if frozen.covers_all else command.if_generation)
        lifted, is_new = release_times.lift_freeze(
            session, frozen.id or 0, by=command.actor.shown, because=command.stated_reason, now=command.now
        )
        if not is_new or not first:
            return lifted, None
        with recorded_change(session, command, UNFREEZE, first) as change:
            set_facts(change, FACT_OF[UNFREEZE], _facts(lifted), others)
        return lifted, audit.newest_event(session, first)


def _concerned(session: Session, frozen: FreezeRow) -> list[str]:
    return list(versions.strategy_names(session)) if frozen.covers_all else [frozen.strategy_name]


def _facts(frozen: FreezeRow) -> dict[str, Any]:
    """Return what an audit event shows of a freeze."""
    return {
        "id": frozen.id,
        "strategies": "all" if frozen.covers_all else [frozen.strategy_name],
        "from": frozen.starts_at.isoformat(),
        "to": frozen.ends_at.isoformat(),
    }
