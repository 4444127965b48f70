"""What stands in the database, in pages and by id, for programs that ask; it changes nothing."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Engine

from strategy_core.domain.alert import Severity
from strategy_core.domain.errors import NoCanary
from strategy_core.domain.lifecycle import Status, utc
from strategy_core.domain.routing import Routing
from strategy_core.services.alerts import AlertStatus
from strategy_core.services.status import RolloutStatus, rollout_status
from strategy_core.store import deliveries, pages, rollouts, versions
from strategy_core.store.engine import reading
from strategy_core.store.rollout_tables import AlertOutbox, Rollout
from strategy_core.store.tables import CanaryConfig, ShadowDecisionLog, StrategyVersion


@dataclass(frozen=True, slots=True)
class Scope:
    """Which strategies are asked for: one by its name, and none beyond *strategies*, unless that is None."""

    strategy_name: str | None = None
    strategies: Collection[str] | None = None

    @property
    def names(self) -> Collection[str] | None:
        return self.strategies if self.strategy_name is None else [self.strategy_name]


def list_versions(
    engine: Engine, scope: Scope, *, status: Status | None, after: tuple[str, datetime, str] | None, limit: int
) -> list[StrategyVersion]:
    """Return versions by strategy, oldest first, from behind *after* on.

    Raises:
        UnknownStrategy
    """
    with reading(engine) as session:
        if scope.strategy_name is not None:
            versions.get_strategy(session, scope.strategy_name)
        return pages.page_versions(session, strategies=scope.names, status=status, after=after, limit=limit)


def find_version(engine: Engine, version_id: UUID) -> tuple[StrategyVersion, int]:
    """Return a version and the generation of its strategy; else raise UnknownVersion."""
    with reading(engine) as session:
        return pages.version_at(session, version_id)


def list_rollouts(engine: Engine, scope: Scope, *, after: tuple[datetime, UUID] | None, limit: int) -> list[Rollout]:
    """Return rollouts, newest first, from behind *after* on.

    Raises:
        UnknownStrategy
    """
    with reading(engine) as session:
        if scope.strategy_name is not None:
            versions.get_strategy(session, scope.strategy_name)
        return pages.page_rollouts(session, strategies=scope.names, after=after, limit=limit)


def find_rollout(engine: Engine, rollout_id: UUID) -> Rollout:
    """Return a rollout; else raise UnknownRollout."""
    with reading(engine) as session:
        return rollouts.get_rollout(session, rollout_id)


def read_rollout(engine: Engine, rollout_id: UUID, *, now: datetime) -> tuple[RolloutStatus, int]:
    """Return a rollout with what its gates say and what it waits for, and the generation that it was read at.

    Raises:
        UnknownRollout
    """
    with reading(engine) as session:
        rollout, generation = pages.rollout_at(session, rollout_id)
        return rollout_status(session, rollout, utc(now, "now")), generation


def list_canaries(engine: Engine, scope: Scope) -> list[tuple[CanaryConfig, int]]:
    """Return the canaries of now, by strategy, each with the generation of its strategy.

    Raises:
        UnknownStrategy, NoCanary: of the strategy that is named.
    """
    with reading(engine) as session:
        if scope.strategy_name is not None:
            versions.get_strategy(session, scope.strategy_name)
        found = pages.canaries(session, scope.names)
    if scope.strategy_name is not None and not found:
        raise NoCanary(scope.strategy_name)
    return found


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
    """Return decisions on candles in [start, end), by version and symbol, oldest first, from behind *after* on.

    Raises:
        UnknownStrategy, UnknownVersion
    """
    with reading(engine) as session:
        if version is None:
            versions.get_strategy(session, strategy_name)
        else:
            versions.get_version(session, strategy_name, version)
        return pages.page_decisions(
            session,
            strategy_name=strategy_name,
            version=version,
            symbol=symbol,
            start=start,
            end=end,
            after=after,
            limit=limit,
        )


def list_alerts(
    engine: Engine,
    scope: Scope,
    *,
    severity: Severity | None = None,
    unacknowledged: bool = False,
    before_id: int | None = None,
    limit: int,
) -> list[AlertStatus]:
    """Return alerts, newest first, from before *before_id* on, each with how far it has come.

    Raises:
        UnknownStrategy
    """
    with reading(engine) as session:
        if scope.strategy_name is not None:
            versions.get_strategy(session, scope.strategy_name)
        found = pages.page_alerts(
            session,
            strategies=scope.names,
            severity=severity,
            unacknowledged=unacknowledged,
            before_id=before_id,
            limit=limit,
        )
        sent = deliveries.of_alerts(session, [alert.id or 0 for alert in found])
    return [AlertStatus(alert, [each for each in sent if each.alert_id == alert.id]) for alert in found]


def find_alert(engine: Engine, alert_id: int) -> AlertOutbox:
    """Return an alert; else raise UnknownAlert."""
    with reading(engine) as session:
        return deliveries.get_alert(session, alert_id)


def read_routing(engine: Engine) -> dict[str, Routing | None]:
    """Return what the routing of every strategy obeys now, by one statement; None where no version is active."""
    with reading(engine) as session:
        return versions.all_routing(session)


def generation_of(engine: Engine, *, strategy_name: str, actor: str, request_id: str) -> int | None:
    """Return the generation that a request's change has made; None if it has made none."""
    with reading(engine) as session:
        return pages.generation_of(session, strategy_name, actor, request_id)
