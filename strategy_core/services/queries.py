"""Read-only queries by page and by id, for the API, the command line and flows."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from threading import Lock
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import Engine

from strategy_core.domain.alerts import SURE, ClockCheck, Severity, restricted
from strategy_core.domain.candles import timeframe_delta
from strategy_core.domain.capital import Reach
from strategy_core.domain.errors import NoCanary, UnknownSymbol
from strategy_core.domain.lifecycle import Status, utc
from strategy_core.domain.risk import FULL_SIZE
from strategy_core.domain.routing import Routing, Standing, as_percent, basis_points, bucket_of, refused_user
from strategy_core.domain.user_exclusions import ExclusionKind
from strategy_core.services.alerts import AlertStatus
from strategy_core.services.evidence import own_slots
from strategy_core.services.status import RolloutStatus, rollout_status
from strategy_core.store import alerts, audit, decisions, evidence, pagination, rollouts, user_exclusions, versions
from strategy_core.store.canary_reach import read_canary_reach
from strategy_core.store.engine import reading, transaction
from strategy_core.store.routing_reader import RoutingReader
from strategy_core.store.tables import (
    AlertOutbox,
    ApiAnswer,
    AuditEvent,
    BookedSlot,
    CanaryConfig,
    GateVerdict,
    Rollout,
    ShadowDecisionLog,
    StrategyVersion,
    UserExclusionRow,
)


@dataclass(frozen=True, slots=True)
class Scope:
    """The strategies of a query: *strategy_name* if given, else *strategies*, else all."""

    strategy_name: str | None = None
    strategies: Collection[str] | None = None

    @property
    def names(self) -> Collection[str] | None:
        return self.strategies if self.strategy_name is None else [self.strategy_name]


def list_versions(
    engine: Engine, scope: Scope, *, status: Status | None, after: tuple[str, datetime, str] | None, limit: int
) -> list[StrategyVersion]:
    """Return a page of versions by strategy, oldest first, after the cursor *after*.

    Raises:
        UnknownStrategy
    """
    with reading(engine) as session:
        if scope.strategy_name is not None:
            versions.get_strategy(session, scope.strategy_name)
        return pagination.page_versions(session, strategies=scope.names, status=status, after=after, limit=limit)


def find_version(engine: Engine, version_id: UUID) -> tuple[StrategyVersion, int]:
    """Return a version by its id, with the generation of its strategy.

    Raises:
        UnknownVersion
    """
    with reading(engine) as session:
        return pagination.version_at(session, version_id)


def all_versions(
    engine: Engine, strategy_name: str | None = None, *, status: Status | None = None
) -> Sequence[StrategyVersion]:
    """Return all versions, or those of one strategy or status, oldest first.

    Raises:
        UnknownStrategy
    """
    with reading(engine) as session:
        if strategy_name is not None:
            versions.get_strategy(session, strategy_name)
        return versions.list_versions(session, strategy_name, status)


def get_version(engine: Engine, strategy_name: str, version: str) -> StrategyVersion:
    """Return a version by its name.

    Raises:
        UnknownStrategy, UnknownVersion
    """
    with reading(engine) as session:
        return versions.get_version(session, strategy_name, version)


def get_active_version(engine: Engine, strategy_name: str) -> StrategyVersion:
    """Return the active version.

    Raises:
        UnknownStrategy, NoActiveVersion
    """
    with reading(engine) as session:
        return versions.active_version(session, strategy_name)


def list_rollouts(engine: Engine, scope: Scope, *, after: tuple[datetime, UUID] | None, limit: int) -> list[Rollout]:
    """Return a page of rollouts, newest first, after the cursor *after*.

    Raises:
        UnknownStrategy
    """
    with reading(engine) as session:
        if scope.strategy_name is not None:
            versions.get_strategy(session, scope.strategy_name)
        return pagination.page_rollouts(session, strategies=scope.names, after=after, limit=limit)


def find_rollout(engine: Engine, rollout_id: UUID) -> Rollout:
    """Return a rollout by its id.

    Raises:
        UnknownRollout
    """
    with reading(engine) as session:
        return rollouts.get_rollout(session, rollout_id)


def all_rollouts(engine: Engine, strategy_name: str) -> Sequence[Rollout]:
    """Return all rollouts of a strategy, newest first."""
    with reading(engine) as session:
        return rollouts.list_rollouts(session, strategy_name)


def last_verdicts(engine: Engine, rollout_id: UUID) -> Mapping[str, GateVerdict]:
    """Return the newest verdict of each gate of a rollout, by gate."""
    with reading(engine) as session:
        return rollouts.last_verdicts(session, rollout_id)


def count_slots(engine: Engine, rollout: Rollout) -> int:
    """Return the number of closed slots that a rollout has compared."""
    with reading(engine) as session:
        pair = (rollout.strategy_name, rollout.version, rollout.control_version)
        closed, _ = evidence.read_slots(session, *pair, start=rollout.started_at, end=rollout.ended_at)
    return len(closed)


def booked_slots(engine: Engine, rollout: Rollout) -> Sequence[BookedSlot]:
    """Return the closed slots that a rollout has compared, in the order in which its ticks counted them."""
    with reading(engine) as session:
        return evidence.booked(session, rollout.id, first=own_slots(session, rollout))


def read_rollout(
    engine: Engine, rollout_id: UUID, *, now: datetime, clock: ClockCheck = SURE
) -> tuple[RolloutStatus, int]:
    """Return a rollout's status and the generation of its strategy.

    Raises:
        UnknownRollout
    """
    with reading(engine) as session:
        rollout, generation = pagination.rollout_at(session, rollout_id)
        return rollout_status(session, rollout, utc(now, "now"), clock), generation


def list_canaries(engine: Engine, scope: Scope, *, now: datetime) -> list[tuple[CanaryConfig, int, Reach, float]]:
    """Return the present canaries by strategy, each with its strategy's generation, its reach and its risk scale.

    Raises:
        UnknownStrategy
        NoCanary: the named strategy has no canary.
    """
    with reading(engine) as session:
        if scope.strategy_name is not None:
            versions.get_strategy(session, scope.strategy_name)
        found = pagination.canaries(session, scope.names)
        reached = read_canary_reach(session, scope.names, utc(now, "now"))
        scales = rollouts.risk_scales(session, {(canary.strategy_name, canary.version) for canary, _ in found})
    if scope.strategy_name is not None and not found:
        raise NoCanary(scope.strategy_name)
    return [
        (
            canary,
            generation,
            reached[canary.strategy_name],
            scales.get((canary.strategy_name, canary.version), FULL_SIZE),
        )
        for canary, generation in found
    ]


def list_decisions(
    engine: Engine,
    *,
    strategy_name: str,
    version: str | None = None,
    symbol: str | None = None,
    start: datetime | None = None,
    end: datetime | None = None,
    after: tuple[str, str, datetime] | None = None,
    limit: int,
) -> list[ShadowDecisionLog]:
    """Return a page of decisions on candles in [start, end), by version and symbol, oldest first.

    Raises:
        UnknownStrategy, UnknownVersion
    """
    with reading(engine) as session:
        if version is None:
            versions.get_strategy(session, strategy_name)
        else:
            versions.get_version(session, strategy_name, version)
        return pagination.page_decisions(
            session,
            strategy_name=strategy_name,
            version=version,
            symbol=symbol,
            start=start,
            end=end,
            after=after,
            limit=limit,
        )


def newest_decisions(
    engine: Engine,
    *,
    strategy_name: str,
    version: str,
    symbol: str | None = None,
    start: datetime | None = None,
    end: datetime | None = None,
    limit: int,
) -> Sequence[ShadowDecisionLog]:
    """Return the newest *limit* decisions of a version on candles in [start, end), oldest first.

    Raises:
        UnknownStrategy, UnknownVersion
        UnknownSymbol: the version does not decide on *symbol*.
    """
    with reading(engine) as session:
        known = versions.get_version(session, strategy_name, version).symbols
        if symbol is not None and symbol not in known:
            raise UnknownSymbol(symbol, known)
        return decisions.find_decisions(session, strategy_name, version, symbol, start=start, end=end, limit=limit)


def count_decisions(engine: Engine, strategy_name: str) -> dict[tuple[str, str], int]:
    """Return the number of decisions of a strategy, by version and decision."""
    with reading(engine) as session:
        return decisions.decisions_by_kind(session, strategy_name)


def list_alerts(
    engine: Engine,
    scope: Scope,
    *,
    severity: Severity | None = None,
    unacknowledged: bool = False,
    only: Literal["open", "past"] | None = None,
    before_id: int | None = None,
    limit: int,
) -> list[AlertStatus]:
    """Return a page of alerts with their deliveries, newest first, before the cursor *before_id*.

    An alert about several strategies is listed for each of them.

    Args:
        only: `open` are warnings and critical alerts without an acknowledgement, `past` are all others.

    Raises:
        UnknownStrategy
    """
    with reading(engine) as session:
        if scope.strategy_name is not None:
            versions.get_strategy(session, scope.strategy_name)
        found = pagination.page_alerts(
            session,
            strategies=scope.names,
            severity=severity,
            unacknowledged=unacknowledged,
            only=only,
            before_id=before_id,
            limit=limit,
        )
        sent = alerts.of_alerts(session, [alert.id or 0 for alert in found])
    return [
        AlertStatus(visible_alert(alert, scope.strategies), [each for each in sent if each.alert_id == alert.id])
        for alert in found
    ]


def visible_alert(alert: AlertOutbox, may_see: Collection[str] | None) -> AlertOutbox:
    """Return the alert without the names of strategies outside *may_see*. None: all may be seen."""
    hidden = None if may_see is None or alert.strategy_name else restricted(alert.kind, alert.facts, may_see)
    if hidden is None:
        return alert
    text, facts = hidden
    return AlertOutbox(**alert.model_dump() | {"text": text, "facts": facts})


def find_alert(engine: Engine, alert_id: int) -> AlertOutbox:
    """Return an alert by its id.

    Raises:
        UnknownAlert
    """
    with reading(engine) as session:
        return alerts.get_alert(session, alert_id)


_EXCLUSIONS_S = 0.25  # for which a read of routing, and so a rollback, waits for another that reads exclusions


class RoutingTable:
    """The present routing of every strategy, for many readers: users' exclusions are read only after a change."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._reader = RoutingReader()
        self._lock = Lock()

    def read(self, now: datetime) -> dict[str, Routing | None]:
        """Return the routing by strategy, None without an active version.

        While another request reads exclusions, it is the routing of now with the exclusions that were read last.
        """
        with reading(self._engine) as session:
            found = versions.serving_routing(session)
            if not self._lock.acquire(timeout=_EXCLUSIONS_S if self._reader.has_read else -1):
                return self._reader.with_known_users(found[0])
            try:
                return self._reader.add_users(session, *found, now)
            finally:
                self._lock.release()


def read_serving(engine: Engine) -> dict[str, Routing | None]:
    """Return the routing of every strategy without users' exclusions, None without an active version."""
    with reading(engine) as session:
        return versions.serving_routing(session)[0]


def generation_of(engine: Engine, *, strategy_name: str, actor: str, request_id: str) -> int | None:
    """Return the generation that a request's change has made, if it has made one."""
    with reading(engine) as session:
        return pagination.generation_of(session, strategy_name, actor, request_id)


def change_of_request(engine: Engine, *, strategy_name: str, request_id: str) -> AuditEvent | None:
    """Return the strategy's newest audit event, if this request or flow run has made it."""
    with reading(engine) as session:
        return audit.made_by_request(session, strategy_name, request_id)


def change_under_key(engine: Engine, *, actor: str, idempotency_key: str) -> AuditEvent | None:
    """Return the change that the actor has made under this idempotency key, if there is one."""
    with reading(engine) as session:
        return audit.made_under_key(session, actor, idempotency_key)


@dataclass(frozen=True, slots=True)
class Activity:
    """Audit events and alerts, both oldest first."""

    events: Sequence[AuditEvent]
    alerts: Sequence[AlertOutbox]


def read_activity(engine: Engine, *, after_event: int = 0, after_alert: int = 0, limit: int | None = None) -> Activity:
    """Return the events and alerts with higher ids than these. With *limit*, the newest of each."""
    with reading(engine) as session:
        return Activity(
            audit.events(session, after_id=after_event, limit=limit),
            alerts.find_alerts(session, after_id=after_alert, limit=limit),
        )


def latest_moment(engine: Engine) -> datetime | None:
    """Return the latest time of an event, a tick or a decided candle, if there is one."""
    with reading(engine) as session:
        moments = [event.at for event in audit.events(session)]
        moments += [rollout.last_tick_at for rollout in rollouts.list_rollouts(session) if rollout.last_tick_at]
        for version in versions.list_versions(session):
            for symbol in version.symbols:
                newest = decisions.newest_decided(session, version.strategy_name, version.version, symbol)
                if newest is not None:
                    moments.append(newest + timeframe_delta(version.timeframe))
    return max(moments, default=None)


@dataclass(frozen=True, slots=True)
class Route:
    """The version a user gets, and why.

    Attributes:
        bucket: the user's bucket, in basis points.
        percent: the canary's share of users.
        stale: the router has lost the database for too long, so its canary admits no new users.
        excluded: the symbol that was asked for, if an owner has excluded it from the canary.
        standing: whether the bucket or an exclusion of the user decides.
        exit_only: the user may open no new position of the strategy, because the loss limit was hit.
        exclusion: the exclusion that decides, or would with a canary: its kind, who set it, and until when.
    """

    user_id: str
    strategy_name: str
    version: str
    bucket: int
    percent: float
    in_canary: bool
    generation: int
    stale: bool = False
    excluded: str | None = None
    standing: Standing = Standing.BUCKET
    exit_only: bool = False
    exclusion: str = ""

    @property
    def why(self) -> str:
        return f"{self._why}; loss limit hit: no new position" if self.exit_only else self._why

    @property
    def _why(self) -> str:
        if self.excluded is not None:
            return f"{self.excluded} is excluded from the canary"
        if self.exclusion and self.standing is not Standing.ALWAYS:
            return f"the user stays with the active version: {self.exclusion}"
        if self.standing is Standing.KEPT:
            return "the user is kept with the active version"
        if self.standing is Standing.ALWAYS:
            by = f": {self.exclusion}" if self.exclusion else ""
            return f"the user always gets the canary{by}{self._while_stale}"
        sign = "<" if self.bucket < basis_points(self.percent) else ">="
        return f"bucket {self.bucket / 100:.2f} {sign} canary percent {self.percent:.2f}{self._while_stale}"

    @property
    def _while_stale(self) -> str:
        if not self.stale:
            return ""
        return f"; {'admitted before' if self.in_canary else 'no new user'} while routing is stale"


def route_user(engine: Engine, *, user_id: str, strategy_name: str, now: datetime, symbol: str | None = None) -> Route:
    """Return the version that *user_id* gets at *now*, with the reason.

    Args:
        symbol: of the trade, since an owner may have excluded it from the canary.

    Raises:
        InvalidName: *user_id* is empty or cannot be encoded.
        UnknownStrategy
        NoActiveVersion: no version can serve the user.
    """
    if refused := refused_user(user_id):
        raise refused
    with reading(engine) as session:
        routing = versions.routing(session, strategy_name, utc(now, "now"))
        rows = user_exclusions.list_exclusions(session, [strategy_name], user_id=user_id, counting_at=now)
    bucket = bucket_of(user_id, routing.salt)
    standing = routing.standing_of(user_id)
    version = routing.version_of(bucket, symbol, user_id)
    return Route(
        user_id=user_id,
        strategy_name=strategy_name,
        version=version,
        bucket=bucket,
        percent=as_percent(routing.percent_bp),
        in_canary=version == routing.canary,
        generation=routing.generation,
        excluded=symbol if symbol in routing.excluded else None,
        standing=standing,
        exit_only=user_id in routing.exit_only,
        exclusion=_exclusion(rows, always=standing is Standing.ALWAYS),
    )


def _exclusion(rows: Sequence[UserExclusionRow], *, always: bool) -> str:
    """Return the newest of a user's exclusions that keeps the user, or with *always* that gives every canary."""
    for row in reversed(rows):
        if (row.kind == ExclusionKind.ALWAYS) is always:
            until = "" if row.until is None else f" until {row.until:%Y-%m-%d %H:%M} UTC"
            return f"{row.kind} by {row.actor}{until}"
    return ""


def find_stored_answer(engine: Engine, actor: str, idempotency_key: str, *, since: datetime) -> ApiAnswer | None:
    """Return the stored response under the key, unless it is older than *since*."""
    with reading(engine) as session:
        found = audit.find_answer(session, actor, idempotency_key)
    return found if found is not None and found.answered_at >= since else None


def store_answer(engine: Engine, row: dict[str, Any], *, forget_before: datetime) -> None:
    """Store a response, and delete those older than *forget_before*."""
    with transaction(engine) as session:
        audit.forget_answers(session, forget_before)
        audit.keep_answer(session, row)
