"""The registry of versions as a class, for scripts and notebooks. Each method calls one service."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import Engine

from strategy_core.domain.audit import Actor, Command
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.scoring import ScoringRule
from strategy_core.market.source import CandleSource
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services import canary, queries
from strategy_core.services import versions as version_service
from strategy_core.services.database import current_time
from strategy_core.store import versions
from strategy_core.store.engine import open_database, reading, upgrade
from strategy_core.store.tables import CanaryConfig, StrategyVersion


class VersionRegistry:
    """Register, activate, route and retire versions.

    Args:
        database: an address or an engine. Its schema is upgraded.
        source: candles for the validation of new versions. Default: the built-in synthetic market.
        actor: recorded in the audit trail.
        clock: returns the current time. Default: the real time, or the time of the replay that fills the database.
    """

    def __init__(
        self,
        database: str | Engine,
        *,
        source: CandleSource | None = None,
        actor: Actor = Actor("sdk"),  # noqa: B008  frozen
        clock: Callable[[], datetime] | None = None,
    ) -> None:
        self.engine = open_database(database) if isinstance(database, str) else database
        self._source = source
        self._actor = actor
        self._clock = clock or partial(current_time, self.engine)
        upgrade(self.engine)

    def _command(self, reason: str, override_reason: str = "") -> Command:
        return Command(self._actor, self._clock(), reason, override_reason)

    def register_version(
        self,
        strategy_name: str,
        version: str,
        config: Mapping[str, Any],
        *,
        entry_point: str | None = None,
        symbols: Sequence[str] = ("GOLD",),
        timeframe: str = "1h",
        status: Status | str = Status.SHADOW,
        scoring: ScoringRule | None = None,
        salt: str | None = None,
        reason: str = "",
    ) -> StrategyVersion:
        """Validate and register an immutable version. See `services.versions.register_version`.

        Args:
            config: validated by the strategy's `Params`.
            entry_point: a known name or `package.module:Class`. Default: *strategy_name*.
        """
        return version_service.register_version(
            self.engine,
            self._command(reason),
            self._source or SyntheticSource(timeframe=timeframe),
            strategy_name=strategy_name,
            version=version,
            config=config,
            entry_point=entry_point or strategy_name,
            symbols=symbols,
            timeframe=timeframe,
            status=Status(status),
            scoring=scoring,
            salt=salt,
        )

    def activate_version(
        self, strategy_name: str, version: str, *, reason: str = "", override_reason: str = ""
    ) -> StrategyVersion:
        """Make the version active and retire its predecessor, in one transaction."""
        return version_service.activate_version(
            self.engine,
            self._command(reason, override_reason),
            strategy_name=strategy_name,
            version=version,
        )

    def activate_canary(
        self,
        strategy_name: str,
        version: str,
        rollout_percent: float,
        *,
        reason: str = "",
        override_reason: str = "",
    ) -> tuple[StrategyVersion, CanaryConfig]:
        """Route a percent of users to a shadow version, without a rollout."""
        return canary.activate_canary(
            self.engine,
            self._command(reason, override_reason),
            strategy_name=strategy_name,
            version=version,
            rollout_percent=rollout_percent,
        )

    def update_canary_percent(self, strategy_name: str, percent: float, *, reason: str = "") -> CanaryConfig:
        """Set the percent of users on the canary, 0.00 to 100.00, while no rollout moves it."""
        return canary.update_canary_percent(
            self.engine,
            self._command(reason),
            strategy_name=strategy_name,
            percent=percent,
        )

    def retire_version(
        self, strategy_name: str, version: str, *, reason: str = "", close: bool = False
    ) -> StrategyVersion:
        """Retire a version. With *close* also the active one, if it is the last: the strategy is then closed."""
        return version_service.retire_version(
            self.engine,
            self._command(reason),
            strategy_name=strategy_name,
            version=version,
            close=close,
        )

    def route_user_to_version(self, user_id: str, strategy_name: str, symbol: str | None = None) -> str:
        """Return the version that serves *user_id* now, on *symbol* or on the symbols that are not excluded."""
        found = queries.route_user(
            self.engine, user_id=user_id, strategy_name=strategy_name, now=self._clock(), symbol=symbol
        )
        return found.version

    def get_version(self, strategy_name: str, version: str) -> StrategyVersion:
        with reading(self.engine) as session:
            return versions.get_version(session, strategy_name, version)

    def list_versions(
        self, strategy_name: str | None = None, status: Status | str | None = None
    ) -> Sequence[StrategyVersion]:
        with reading(self.engine) as session:
            return versions.list_versions(session, strategy_name, Status(status) if status else None)
