"""What a newcomer finds: a version that serves, a better one on its way, and a replay that makes both move."""

from collections.abc import Iterator
from datetime import UTC, datetime

from sqlalchemy import Engine
from sqlmodel import Session

from strategy_core.domain.audit import Actor
from strategy_core.domain.candles import timeframe_delta
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan
from strategy_core.market.source import CandleSource
from strategy_core.services.register import register_version
from strategy_core.services.start import start_rollout
from strategy_core.store import audit, decisions, rollouts, versions
from strategy_core.store.engine import reading

HISTORY = 2_000  # candles before the replay begins: what a registration is vetted on
STRATEGY = "fib_rsi"
_ACTOR = Actor("rollout up", role="system", source="cli")
_FOREVER = datetime(2200, 1, 1, tzinfo=UTC)


def replay_span(engine: Engine, source: CandleSource) -> tuple[datetime, datetime]:
    """Return the moments between which the replay plays: from where the database stands, to the last candle's close.

    A new database begins `HISTORY` candles into the feed, or in its middle if it is shorter.
    """
    candles = source.candles(source.symbols()[0], closed_by=_FOREVER)
    opened_at = [
        moment.to_pydatetime() for moment in (candles.index[min(HISTORY, len(candles) // 2)], candles.index[-1])
    ]
    with reading(engine) as session:
        start = max([opened_at[0], *_moments(session)])
    return start, opened_at[1] + timeframe_delta(source.timeframe)


def seed(engine: Engine, source: CandleSource, *, now: datetime, speed: float) -> bool:
    """Register v1 as active and v2 in shadow, and start v2's rollout, unless there are versions; say whether it did."""
    with reading(engine) as session:
        if versions.list_versions(session):
            return False
    for version, config, status in (("v1", {}, Status.ACTIVE), ("v2", {"rsi_period": 13}, Status.SHADOW)):
        register_version(
            engine,
            source,
            strategy_name=STRATEGY,
            version=version,
            config=config,
            entry_point=STRATEGY,
            symbols=source.symbols(),
            timeframe=source.timeframe,
            status=status,
            actor=_ACTOR,
            now=now,
            reason="so that there is something to see",
        )
    start_rollout(
        engine,
        strategy_name=STRATEGY,
        version="v2",
        plan=Plan().at_speed(speed, timeframe_delta(source.timeframe)),
        actor=_ACTOR,
        now=now,
        reason="so that there is something to see",
    )
    return True


def _moments(session: Session) -> Iterator[datetime]:
    """Yield what the database knows of the time: a replay goes on from the latest, it never goes back."""
    yield from (event.at for event in audit.events(session))
    yield from (rollout.last_tick_at for rollout in rollouts.list_rollouts(session) if rollout.last_tick_at)
    for version in versions.list_versions(session):
        for symbol in version.symbols:
            newest = decisions.newest_decided(session, version.strategy_name, version.version, symbol)
            if newest is not None:
                yield newest + timeframe_delta(version.timeframe)
