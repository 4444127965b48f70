"""Example rollouts for a new database of `rollout up`: a healthy one, and a faulty one that is soon rolled back.

The services produce them from real candles before the start of the replay.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Engine

from strategy_core.domain.audit import Actor, Command
from strategy_core.domain.candles import timeframe_delta
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan
from strategy_core.isolation.pool import WorkerPool
from strategy_core.market.source import CandleSource
from strategy_core.services.queries import all_versions, latest_moment
from strategy_core.services.rollouts import start_rollout
from strategy_core.services.score import score_outcomes
from strategy_core.services.shadow import run_shadow
from strategy_core.services.tick import tick
from strategy_core.services.versions import register_version

HISTORY = 2_000  # candles before the first registration, for its validation
SHADOW = 1140  # candles in shadow before the rollouts start, to measure the noise of a pair
RAMP = 132  # candles of the healthy rollout before the replay
_LATER = 60  # candles of the faulty rollout before the replay: its first ticks roll it back
_ENDED = 10  # candles since the faulty version's table ended, at the start of the replay
_STEP = 12  # candles between two ticks
_FEW = 4  # symbols of the faulty pair: enough for its gates, and fast to validate
SEEDER = "rollout up"  # in the audit trail
_ACTOR = Actor(SEEDER, role="system", source="cli")
_WHY = "example data"
_FOREVER = datetime(2200, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class _Pair:
    """A strategy with v1 (`fib_rsi` with defaults), and the v2 of a rollout that starts at `started`."""

    strategy: str
    entry_point: str
    config: dict[str, Any]
    symbols: list[str]
    started: datetime


def replay_span(engine: Engine, source: CandleSource) -> tuple[datetime, datetime]:
    """Return start and end of the replay: from the newest entry of the database to the close of the last candle.

    A new database starts after the candles that its examples need, or in the middle of a shorter feed.
    """
    candles = source.candles(source.symbols()[0], closed_by=_FOREVER)
    first = min(HISTORY + SHADOW + RAMP, len(candles) // 2)
    opened_at = [moment.to_pydatetime() for moment in (candles.index[first], candles.index[-1])]
    start = max(opened_at[0], latest_moment(engine) or opened_at[0])
    return start, opened_at[1] + timeframe_delta(source.timeframe)


def seed(
    engine: Engine,
    source: CandleSource,
    *,
    now: datetime,
    speed: float,
    echo: Callable[[str], None] = lambda _: None,
) -> bool:
    """Create two rollouts, up to *now*, unless the database has versions. Return whether it did.

    Prints each step with *echo*, because together they take a minute or two.

    `fib_rsi` v2 looks back a little further than v1 and is as good. `seasonal` v2 decides like v1 until its table ends.
    Then it chases the price, and the first ticks of the replay roll it back.
    """
    if all_versions(engine):
        return False
    opened_at = source.candles(source.symbols()[0], closed_by=now).index
    registered, healthy, faulty, ended = (
        opened_at[-min(candles, len(opened_at) // share)].to_pydatetime()
        for candles, share in ((SHADOW + RAMP, 2), (RAMP, 3), (_LATER, 4), (_ENDED, 5))  # less of a short feed
    )
    symbols, until = list(source.symbols()), {"fitted_until": ended.isoformat()}
    pairs = [
        _Pair("fib_rsi", "fib_rsi", {"fib_lookback_bars": 60}, symbols, healthy),
        _Pair("seasonal", "strategy_core.demo.versions:FibRsiSeasonal", until, symbols[:_FEW], faulty),
    ]
    echo("New database: making two example rollouts from past candles, which takes a minute or two.")
    for pair in pairs:
        echo(f"  Registering {pair.strategy} v1 and v2 on {', '.join(pair.symbols)} …")
        _register(engine, source, pair, registered)
    with WorkerPool() as workers:
        moment = registered
        for pair, until_next in zip(pairs, (faulty, now), strict=True):
            moment = max(moment, pair.started)
            echo(f"  Deciding and scoring in shadow until {moment:%Y-%m-%d}, then the rollout of {pair.strategy} v2 …")
            _run_until(engine, source, workers, moment)
            _start(engine, pair, source.timeframe, speed)
            while moment < until_next:
                moment = min(moment + _STEP * timeframe_delta(source.timeframe), until_next)
                _run_until(engine, source, workers, moment)
                tick(engine, source, now=moment)
    return True


def _register(engine: Engine, source: CandleSource, pair: _Pair, now: datetime) -> None:
    first = ("v1", "fib_rsi", dict[str, Any](), Status.ACTIVE)
    for version, entry_point, config, status in (first, ("v2", pair.entry_point, pair.config, Status.SHADOW)):
        register_version(
            engine,
            Command(_ACTOR, now, _WHY),
            source,
            strategy_name=pair.strategy,
            version=version,
            config=config,
            entry_point=entry_point,
            symbols=pair.symbols,
            timeframe=source.timeframe,
            status=status,
        )


def _start(engine: Engine, pair: _Pair, timeframe: str, speed: float) -> None:
    start_rollout(
        engine,
        Command(_ACTOR, pair.started, _WHY),
        strategy_name=pair.strategy,
        version="v2",
        plan=Plan().at_speed(speed, timeframe_delta(timeframe)),
    )


def _run_until(engine: Engine, source: CandleSource, workers: WorkerPool, now: datetime) -> None:
    run_shadow(engine, source, workers, now=now, catch_up=SHADOW + RAMP)
    score_outcomes(engine, source, now=now)
