"""Positions: list them, hand them over, flatten them, and compare them with what the platform has open."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import structlog
from sqlalchemy import Engine
from sqlmodel import Session

from strategy_core.domain.audit import DRAIN, Command
from strategy_core.domain.candles import timeframe_delta
from strategy_core.domain.errors import ExitsLost, HandOverRefused, InvalidReport, NoPositions, PositionsOpen
from strategy_core.domain.lifecycle import Status, utc
from strategy_core.domain.live_trades import CLOCK_SKEW, Serving
from strategy_core.domain.positions import Holding, count_suppressed, hand_over_problem, share_by
from strategy_core.services.transitions import recorded_change
from strategy_core.store import audit, decisions, positions, user_exclusions, versions
from strategy_core.store.engine import reading, retry_transient, transaction
from strategy_core.store.tables import Position, PositionExit, StrategyVersion

HOLDINGS_READ = 100_000  # positions of other versions, the newest, among which suppressed entries are counted
SHOWN_FOR = timedelta(days=7)  # a version that has drained is shown for so long
AT_ONCE = 1_000  # positions that one transaction changes: others wait for it, also rollbacks
FLATTEN = "flatten"  # in place of a version: to be closed by the platform

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Draining:
    """A version that serves no users and still manages open positions, or did until a short while ago.

    Attributes:
        since: when it last stopped serving users.
        at_first: number of its positions that were open then.
        left: number that is open now.
    """

    version: str
    since: datetime
    at_first: int
    left: int

    def __str__(self) -> str:
        return f"{self.version} draining {self.at_first} → {self.left}"


@dataclass(frozen=True, slots=True)
class Held:
    """The open positions of a strategy.

    Attributes:
        by_manager: number by the version that manages them. "" counts those that no version decides on, because an
            owner flattens them.
        draining: versions that serve no users and manage positions until these are closed.
        missing: number of positions that were not in the platform's last snapshot.
        suppressed: by version that serves users, entries of the last SHOWN_FOR that users could not take, because a
            position of another version was open.
    """

    strategy_name: str
    by_manager: dict[str, int]
    draining: dict[str, int]
    missing: int = 0
    suppressed: Mapping[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(self.by_manager.values())


def held_positions(engine: Engine, strategy_name: str, *, now: datetime | None = None) -> Held:
    """Return how many positions each version of the strategy manages.

    Args:
        now: count suppressed entries too, of the time from SHOWN_FOR ago. None leaves them out.

    Raises:
        UnknownStrategy
    """
    with reading(engine) as session:
        versions.get_strategy(session, strategy_name)
        held = read_held(session, strategy_name)
        if now is None:
            return held
        serving = [versions.with_status(session, strategy_name, each) for each in (Status.ACTIVE, Status.CANARY)]
        names = [each.version for each in serving if each is not None]
        counts = {name: suppressed_entries(session, strategy_name, name, now - SHOWN_FOR, now) for name in names}
        return replace(held, suppressed=counts)


def suppressed_entries(session: Session, strategy_name: str, version: str, since: datetime, until: datetime) -> int:
    """Return how many entries of the version in [since, until) its users could not take (see `count_suppressed`)."""
    found = positions.opened_by_others(session, strategy_name, version, since=since, until=until, at_most=HOLDINGS_READ)
    if not found:
        return 0
    delta = timeframe_delta(versions.get_version(session, strategy_name, version).timeframe)
    signals = decisions.find_signals(session, strategy_name, version, since=since - delta, until=until - delta)
    if not signals:
        return 0
    users = (user for user, _, _, _ in found)
    excluded = user_exclusions.exclusions_of(session, [strategy_name], users, since=since, until=until)
    return count_suppressed(
        version,
        [(symbol, candle + delta) for symbol, candle in signals],
        [Holding(*row) for row in found],
        audit.serving_history(session, strategy_name),
        versions.get_strategy(session, strategy_name).salt,
        excluded,
    )


def read_held(session: Session, strategy_name: str) -> Held:
    """Return `held_positions` within the open transaction."""
    managers = positions.managers(session, strategy_name)
    in_shadow = {each.version for each in versions.list_versions(session, strategy_name, Status.SHADOW)}
    draining = {name: count for name, count in share_by(managers).items() if name in in_shadow}
    return Held(strategy_name, share_by(managers), draining, positions.count_missing(session, strategy_name))


def list_draining(engine: Engine, strategy_name: str, *, now: datetime) -> list[Draining]:
    """Return `read_draining` of a strategy.

    Raises:
        UnknownStrategy
    """
    with reading(engine) as session:
        versions.get_strategy(session, strategy_name)
        return read_draining(session, strategy_name, utc(now, "now"))


def read_draining(session: Session, strategy_name: str, now: datetime) -> list[Draining]:
    """Return the versions in shadow that manage open positions, and those that have drained since SHOWN_FOR ago."""
    left = share_by(positions.managers(session, strategy_name))
    in_shadow = versions.list_versions(session, strategy_name, Status.SHADOW)
    if not positions.holds_any(session, strategy_name):
        return []
    stopped = _stopped_serving(audit.serving_history(session, strategy_name))
    found = []
    for version in (each.version for each in in_shadow):
        since = stopped.get(version)
        count = left.get(version, 0)
        if since is None or (not count and now - since > SHOWN_FOR):
            if count and since is None:  # its trades were reported without a serving: an order by hand
                found.append(Draining(version, now, count, count))
            continue
        at_first = positions.count_managed_at(session, strategy_name, version, since)
        if at_first or count:
            found.append(Draining(version, since, max(at_first, count), count))
    return found


def _stopped_serving(history: Sequence[Serving]) -> dict[str, datetime]:
    """Return by version when it last stopped serving users."""
    stopped: dict[str, datetime] = {}
    for before, after in pairwise(history):
        for version in {before.active, before.canary} - {after.active, after.canary, None}:
            stopped[str(version)] = after.since
    return stopped


def list_positions(
    engine: Engine,
    strategies: Iterable[str] | None,
    *,
    strategy_name: str | None = None,
    version: str | None = None,
    user_id: str | None = None,
    open_only: bool = True,
    after: tuple[datetime, str] | None = None,
    limit: int | None = None,
) -> Sequence[Position]:
    """Return positions of these strategies, by the time they were opened, oldest first.

    Args:
        strategy_name: one of them, which must exist.
        version: only those that it manages. It must exist if *strategy_name* is given.

    Raises:
        UnknownStrategy, UnknownVersion
    """
    with reading(engine) as session:
        if strategy_name is not None:
            versions.get_strategy(session, strategy_name)
            if version is not None:
                versions.get_version(session, strategy_name, version)
        return positions.find_positions(
            session, strategies, manager=version, user_id=user_id, open_only=open_only, after=after, limit=limit
        )


def list_exits(
    engine: Engine,
    strategies: Iterable[str] | None,
    *,
    strategy_name: str | None = None,
    since: int = 0,
    limit: int = 500,
) -> Sequence[PositionExit]:
    """Return the exits that were announced after the one with id *since*, in order.

    Args:
        strategy_name: one of the strategies, which must exist.

    Raises:
        UnknownStrategy
        ExitsLost: no exit has an id as high as *since*, so that the next ones would be missed.
    """
    with reading(engine) as session:
        if strategy_name is not None:
            versions.get_strategy(session, strategy_name)
        if since and (newest := positions.newest_exit(session)) < since:
            raise ExitsLost(since, newest)
        return positions.find_exits(session, strategies, since=since, limit=limit)


def hand_over(
    engine: Engine,
    command: Command,
    *,
    strategy_name: str,
    version: str,
    to_version: str,
    symbols: Sequence[str] | None = None,
) -> int:
    """Give the open positions that *version* manages to *to_version*, and return their number.

    From now on the exits of *to_version* count for them. Stop, target and horizon stay: the rule is the strategy's.

    AT_ONCE of them change in one transaction, and a rollback waits for no more than these. The audit event is written
    with the first. Each position has one manager at any time: an interrupted hand-over leaves the others with
    *version*, and asking again, under a new idempotency key, hands these over.

    Args:
        symbols: only positions on these. The default is all.

    Raises:
        UnknownStrategy, UnknownVersion
        HandOverRefused: the version cannot take them over. The error names those that can.
        NoPositions: it manages none.
        LostRace: the command's generation is outdated.
    """

    @retry_transient()
    def give_some(after: str) -> Sequence[str]:
        with transaction(engine) as session:
            versions.lock_strategy(session, strategy_name, None if after else command.if_generation)
            leaving = versions.get_version(session, strategy_name, version)
            on = positions.open_symbols(session, strategy_name, version, symbols)
            check_hand_over(session, leaving, to_version, on)
            if after:
                return _give(session, command, leaving, to_version, symbols=symbols, after=after)
            count = positions.count_open(session, strategy_name, manager=version, symbols=symbols)
            if not count:
                raise NoPositions(strategy_name, version)
            with recorded_change(session, command, "hand_over_positions", strategy_name, version) as change:
                change.after |= {"positions": count, "to": to_version, "symbols": list(on)}
            return _give(session, command, leaving, to_version, symbols=symbols)

    return _in_turns(give_some)


def _in_turns(change_some: Callable[[str], Sequence[str]]) -> int:
    """Call *change_some* with the trade id after which it goes on, until it finds no more. Return their number."""
    done = change_some("")
    count = len(done)
    while len(done) == AT_ONCE:
        done = change_some(done[-1])
        count += len(done)
    return count


def _give(
    session: Session,
    command: Command,
    leaving: StrategyVersion,
    to_version: str,
    *,
    symbols: Sequence[str] | None = None,
    after: str = "",
) -> list[str]:
    """Give AT_ONCE positions to another manager, within a transaction that has checked it. Return their trade ids."""
    name = leaving.strategy_name
    found = positions.lock_open(session, name, manager=leaving.version, symbols=symbols, after=after, limit=AT_ONCE)
    ids = [trade_id for trade_id, _, _ in found]
    positions.change_positions(session, ids, {"manager": to_version, "managed_since": command.now})
    _note(session, command, name, "hand_over", [(trade_id, leaving.version, to_version) for trade_id in ids])
    return ids


def check_hand_over(session: Session, leaving: StrategyVersion, to_version: str, symbols: Sequence[str]) -> None:
    """Raise HandOverRefused unless *to_version* can take over positions on *symbols*."""
    target = versions.get_version(session, leaving.strategy_name, to_version)
    problem = "it manages them already" if target.id == leaving.id else _problem(leaving, target, symbols)
    if problem:
        others = versions.list_versions(session, leaving.strategy_name)
        able = [each.version for each in others if each.id != leaving.id and not _problem(leaving, each, symbols)]
        raise HandOverRefused(leaving.strategy_name, leaving.version, to_version, problem, [*able, FLATTEN])


def _problem(leaving: StrategyVersion, target: StrategyVersion, symbols: Sequence[str]) -> str:
    return hand_over_problem(
        status=target.status,
        quarantined=target.quarantined_at is not None,
        timeframes=(leaving.timeframe, target.timeframe),
        symbols=target.symbols,
        missing=[symbol for symbol in symbols if symbol not in target.symbols],
    )


def flatten(
    engine: Engine,
    command: Command,
    *,
    strategy_name: str,
    version: str,
    symbols: Sequence[str] | None = None,
    after: timedelta = timedelta(0),
) -> int:
    """Ask the platform to close the open positions that *version* manages, and return their number.

    The next drain announces their exits, once *after* has passed. Until they are closed, the version manages them.

    AT_ONCE of them change in one transaction, and a rollback waits for no more than these. The audit event is written
    with the first. Asking again, under a new idempotency key, completes an interrupted request.

    Args:
        symbols: only positions on these. The default is all.

    Raises:
        UnknownStrategy, UnknownVersion
        NoPositions: it manages none, or all of them are to be closed by then.
        LostRace: the command's generation is outdated.
    """
    at = utc(command.now, "now") + after

    @retry_transient()
    def flatten_some(last: str) -> Sequence[str]:
        with transaction(engine) as session:
            versions.lock_strategy(session, strategy_name, None if last else command.if_generation)
            if not last:
                versions.get_version(session, strategy_name, version)
                count = positions.count_open(session, strategy_name, manager=version, symbols=symbols, not_flat_by=at)
                if not count:
                    raise NoPositions(strategy_name, version)
                with recorded_change(session, command, "flatten_positions", strategy_name, version) as change:
                    change.after |= {"positions": count, "at": at.isoformat()}
            found = positions.lock_open(
                session,
                strategy_name,
                manager=version,
                symbols=symbols,
                not_flat_by=at,
                after=last,
                limit=AT_ONCE,
            )
            return _mark_flat(session, command, strategy_name, [name for name, _, _ in found], {"flatten_at": at})

    return _in_turns(flatten_some)


def _mark_flat(
    session: Session, command: Command, strategy_name: str, ids: list[str], changes: Mapping[str, Any]
) -> list[str]:
    """Set from when on these positions are to be closed, within a transaction that has locked them. Return them."""
    positions.change_positions(session, ids, changes)
    at = changes["flatten_at"].isoformat()
    _note(session, command, strategy_name, "flatten", [(trade_id, "", at) for trade_id in ids])
    return ids


def check_orphans(session: Session, command: Command, leaving: StrategyVersion, orphans_to: str) -> int:
    """Return how many open positions a version manages that is about to be retired.

    Args:
        orphans_to: a version, or FLATTEN. Empty: the version may manage no position.

    Raises:
        PositionsOpen: it manages positions, and *orphans_to* or the command's reason is missing.
        HandOverRefused: the version cannot take them over.
    """
    name, version = leaving.strategy_name, leaving.version
    count = positions.count_managed(session, name, version)
    if count and (not orphans_to or not command.stated_reason.strip()):
        raise PositionsOpen(name, version, count)
    if count and orphans_to != FLATTEN:
        check_hand_over(session, leaving, orphans_to, positions.open_symbols(session, name, version))
    return count


def release_some(session: Session, command: Command, leaving: StrategyVersion, orphans_to: str) -> None:
    """Let a version that is about to be retired give up AT_ONCE positions, after `check_orphans`."""
    if orphans_to != FLATTEN:
        _give(session, command, leaving, orphans_to)
        return
    name = leaving.strategy_name
    found = positions.lock_open(session, name, manager=leaving.version, limit=AT_ONCE)
    changes = {"flatten_at": command.now, "manager": None}  # no version decides on them any more
    _mark_flat(session, command, name, [trade_id for trade_id, _, _ in found], changes)


def manages_positions(session: Session, version: StrategyVersion) -> bool:
    """Whether the version manages an open position, so that it may not be retired."""
    return positions.count_managed(session, version.strategy_name, version.version) > 0


def keep_managers(engine: Engine, *, now: datetime) -> list[tuple[str, str]]:
    """Put each retired version that manages an open position back into shadow, and return those.

    A trade may be reported after its version was retired. Its exits are still that version's: it decides again until
    they are closed. One that fails is logged and stops neither the others nor the caller: the next drain tries again.
    """
    returned: list[tuple[str, str]] = []
    try:
        with reading(engine) as session:
            found = [(each.strategy_name, each.version) for each in positions.retired_managers(session)]
    except Exception as error:  # noqa: BLE001  see above
        log.warning("positions.managers_unread", error=str(error))
        return returned
    for strategy_name, version in found:
        try:
            if _return_to_shadow(engine, Command(DRAIN, now), strategy_name, version):
                returned.append((strategy_name, version))
        except Exception as error:  # noqa: BLE001  see above
            log.warning("positions.not_returned", strategy=strategy_name, version=version, error=str(error))
    return returned


@retry_transient()
def _return_to_shadow(engine: Engine, command: Command, strategy_name: str, version: str) -> bool:
    with transaction(engine) as session:
        versions.lock_strategy(session, strategy_name)
        retired = versions.get_version(session, strategy_name, version)
        count = positions.count_managed(session, strategy_name, version)
        if retired.status != Status.RETIRED or not count:
            return False
        reason = f"it manages {count} open positions that were reported after it was retired"
        with recorded_change(session, command, "return_to_shadow", strategy_name, version, reason=reason) as change:
            versions.move(session, retired, Status.SHADOW, command.now)
            change.after |= {"positions": count}
        return True


@dataclass(frozen=True, slots=True)
class OpenTrade:
    """A trade that the platform has open. *size* is what is left of it, or None if it is not reported."""

    trade_id: str
    size: float | None = None


@dataclass(frozen=True, slots=True)
class Reconciled:
    """The result of comparing a snapshot of the platform with the open positions.

    Attributes:
        matched: positions that both have open.
        missing: trades that are open here and not on the platform: a report of their close is missing.
        unknown: trades that are open on the platform and were never reported.
        closed: trades that are open on the platform and were reported as closed.
        resized: positions of which another size is left.
    """

    matched: int
    missing: Sequence[str]
    unknown: Sequence[str]
    closed: Sequence[str]
    resized: int


def reconcile(
    engine: Engine, command: Command, *, strategy_name: str, taken_at: datetime, trades: Sequence[OpenTrade]
) -> Reconciled:
    """Compare all trades of a strategy that the platform had open at *taken_at* with the open positions.

    Nothing is guessed: a position that the platform does not have stays open, marked as missing, until its close is
    reported. Sizes are taken over. Positions that were opened later than *taken_at* are left alone.

    AT_ONCE positions are changed in one transaction, so that reports and rollbacks wait for no more than these. An
    interrupted snapshot has changed the positions with the first trade ids. Sent again, it changes the others.

    Raises:
        UnknownStrategy
        InvalidReport: *taken_at* is later than now or before the last snapshot, which may arrive while this one is
            taken over, a trade occurs twice, or a size is below 0 or not finite.
    """
    taken_at, now = utc(taken_at, "taken_at"), utc(command.now, "now")
    if taken_at > now + CLOCK_SKEW:
        raise InvalidReport("snapshot", f"taken_at: later than now, {now:%Y-%m-%d %H:%M:%S} UTC")
    sizes = {trade.trade_id: trade.size for trade in trades}
    if len(sizes) < len(trades):
        raise InvalidReport("snapshot", "trades: a trade occurs twice")
    for name, size in sizes.items():
        if size is not None and not 0 <= size < math.inf:
            raise InvalidReport("snapshot", f"size: {size} of trade {name}; allowed: a finite number from 0")
    _take_over(engine, command, strategy_name, taken_at, sizes, ())
    with reading(engine) as session:
        ours = [each for each in positions.find_positions(session, [strategy_name]) if each.opened_at <= taken_at]
        known = positions.find_trades(session, strategy_name, sizes)
    differing = sorted(each.trade_id for each in ours if _differs(each.size, each.missing_since, sizes, each.trade_id))
    resized = 0
    for start in range(0, len(differing), AT_ONCE):
        resized += _take_over(engine, command, strategy_name, taken_at, sizes, differing[start : start + AT_ONCE])
    return Reconciled(
        matched=sum(each.trade_id in sizes for each in ours),
        missing=[each.trade_id for each in ours if each.trade_id not in sizes],
        unknown=[name for name in sizes if name not in known],
        closed=[name for name in sizes if name in known and known[name].closed_at is not None],
        resized=resized,
    )


def _differs(
    size: float | None, missing_since: datetime | None, sizes: Mapping[str, float | None], trade_id: str
) -> bool:
    if trade_id not in sizes:
        return missing_since is None
    return missing_since is not None or sizes[trade_id] not in (None, size)


@retry_transient()
def _take_over(
    engine: Engine,
    command: Command,
    strategy_name: str,
    taken_at: datetime,
    sizes: Mapping[str, float | None],
    trade_ids: Sequence[str],
) -> int:
    """Mark, unmark and resize these positions, if they are still open. Return how many were resized."""
    with transaction(engine) as session:
        versions.get_strategy(session, strategy_name)
        newest = positions.note_snapshot(session, strategy_name, taken_at)
        if newest > taken_at:
            raise InvalidReport("snapshot", f"taken_at: the last one was taken later, {newest:%Y-%m-%d %H:%M:%S} UTC")
        if not trade_ids:
            return 0
        found = positions.lock_open(session, strategy_name, trade_ids=trade_ids)
        missing = [name for name, _, since in found if name not in sizes and since is None]
        back = [name for name, _, since in found if name in sizes and since is not None]
        left = {
            name: (before, size)
            for name, before, _ in found
            if (size := sizes.get(name)) is not None and size != before
        }
        positions.change_positions(session, missing, {"missing_since": taken_at})
        positions.change_positions(session, back, {"missing_since": None})
        positions.resize_positions(session, {name: size for name, (_, size) in left.items()})
        _note(session, command, strategy_name, "missing", [(name, "", "") for name in missing])
        _note(session, command, strategy_name, "found", [(name, "", "") for name in back])
        shown = [(name, _shown(before), _shown(size)) for name, (before, size) in left.items()]
        _note(session, command, strategy_name, "size", shown)
        return len(left)


def _note(
    session: Session, command: Command, strategy_name: str, kind: str, changed: Sequence[tuple[str, str, str]]
) -> None:
    actor, reason = command.actor.shown, command.stated_reason
    positions.note_changes(session, strategy_name, kind, changed, actor=actor, reason=reason, now=command.now)


def _shown(size: float | None) -> str:
    return "" if size is None else f"{size:g}"
