"""The shadow run as a class, for scripts and notebooks: one isolated decision at a time, without side effects."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime
from functools import partial
from typing import Any

import pandas as pd
from sqlalchemy import Engine

from strategy_core.domain.candles import checked_candles
from strategy_core.isolation.pool import WorkerPool
from strategy_core.services import compare
from strategy_core.services.database import current_time
from strategy_core.services.shadow import log_candle, recorded_answers
from strategy_core.services.versions import check_isolation
from strategy_core.store import decisions, versions
from strategy_core.store.engine import open_database, reading, upgrade
from strategy_core.store.tables import ShadowDecisionLog


class ShadowExecutor:
    """Run registered versions in isolation and log their decisions.

    Args:
        database: an address or an engine. Its schema is upgraded.
        deadline_s: time limit for one decision, in seconds.
        clock: returns the current time. Default: the real time, or the time of the replay that fills the database.
    """

    def __init__(
        self,
        database: str | Engine,
        *,
        deadline_s: float = 5.0,
        clock: Callable[[], datetime] | None = None,
    ) -> None:
        self.engine = open_database(database) if isinstance(database, str) else database
        self._deadline_s = deadline_s
        self._clock = clock or partial(current_time, self.engine)
        upgrade(self.engine)

    def execute_shadow(
        self,
        version: str,
        strategy_name: str,
        strategy_engine: object,
        df: pd.DataFrame,
        symbol: str,
        timestamp: datetime,
    ) -> ShadowDecisionLog:
        """Decide on the candle that opened at *timestamp*, and log the decision. A repeated call returns the same row.

        Args:
            strategy_engine: the entry point of the version, whose fingerprint is checked. Or an instance of its code,
                with `decide` or `generate_signal`, which is sent to the worker without a check.
            df: candles of *symbol*. The version does not see those after *timestamp*.
        """
        with reading(self.engine) as session:
            row = versions.get_version(session, strategy_name, version)
        candles = checked_candles(df, timeframe=row.timeframe, source=f"candles of {symbol}").candles
        with WorkerPool(deadline_s=self._deadline_s) as workers:
            worker = workers.for_engine(row, strategy_engine, partial(recorded_answers, self.engine))
            return log_candle(self.engine, worker, row, candles, symbol=symbol, timestamp=timestamp, now=self._clock())

    def get_shadow_decisions(
        self,
        strategy_name: str,
        version: str,
        symbol: str | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
        limit: int | None = None,
    ) -> Sequence[ShadowDecisionLog]:
        """Return decisions on candles in [start, end), oldest first. *limit* keeps the newest."""
        with reading(self.engine) as session:
            versions.get_version(session, strategy_name, version)
            return decisions.find_decisions(session, strategy_name, version, symbol, start=start, end=end, limit=limit)

    def compare_shadow_vs_active(
        self,
        shadow_version: str,
        strategy_name: str,
        symbol: str | None = None,
        days: float | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
    ) -> dict[str, Any]:
        """Compare over [start, end), or the last *days* (default 30). See `domain.comparison.Comparison`."""
        over = compare.chosen_period(days, start, end, self._clock())
        return compare.compare_versions(
            self.engine, strategy_name=strategy_name, shadow_version=shadow_version, symbol=symbol, over=over
        ).model_dump(mode="json")

    def validate_shadow_isolation(self, strategy_name: str, version: str) -> dict[str, Any]:
        """Return whether a worker is `isolated`, the attempts that were `tried`, and the `breaches` of the version."""
        with WorkerPool(deadline_s=self._deadline_s) as workers:
            found = check_isolation(self.engine, workers, strategy_name=strategy_name, version=version)
        breaches = [
            {"symbol": b.symbol, "timestamp": b.timestamp.isoformat(), "tried": b.error} for b in found.breaches
        ]
        if found.loading:
            breaches.append({"symbol": None, "timestamp": None, "tried": found.loading})
        return {"isolated": found.isolated, "tried": [asdict(each) for each in found.tried], "breaches": breaches}
