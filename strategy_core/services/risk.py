"""Risk of a pair, measured in shadow when a rollout starts, and the open risk of its canary."""

from datetime import datetime

import numpy as np
from sqlmodel import Session

from strategy_core.domain.arrays import FloatArray
from strategy_core.domain.candles import timeframe_delta
from strategy_core.domain.errors import RolloutError, reason_of
from strategy_core.domain.risk import (
    HOUR,
    LOOK_BACK,
    OpenRisk,
    Risk,
    at_full_size,
    decided_alike,
    measure_risk,
    open_risk,
    unmeasured,
)
from strategy_core.domain.scoring import ScoringRule
from strategy_core.services.evidence import live_since, shared_symbols
from strategy_core.store import evidence, outcomes, positions, rollouts, versions
from strategy_core.store.tables import StrategyVersion


def measure_pair(
    session: Session, version: StrategyVersion, active: StrategyVersion, now: datetime, *, applied: bool
) -> Risk:
    """Return the risk of *version* against the active one, from at most the last 45 days of their live shadow.

    Both are measured on the same hours, each on all of its symbols: a user of a version is sent the trades of all. The
    hours begin once a trade from before the younger version's first candle must have closed.

    Args:
        applied: whether the plan applies the scale. If it does not, it is measured all the same.
    """
    name = version.strategy_name
    scale = rollouts.risk_scales(session, [(name, active.version)]).get((name, active.version), 1.0)
    try:
        found = _measured(session, version, active, now, scale)
    except RolloutError as error:  # a size is not worth a start that fails
        found = unmeasured(reason_of(error), scale, 0.0)
    return found if applied else at_full_size(found)


def _measured(session: Session, version: StrategyVersion, active: StrategyVersion, now: datetime, scale: float) -> Risk:
    horizon = ScoringRule.model_validate(versions.get_strategy(session, version.strategy_name).scoring).horizon
    first = live_since(version, active) + horizon * timeframe_delta(version.timeframe)
    start = max(now - LOOK_BACK, first)
    days = max(0.0, (now - start).total_seconds() / 86_400)
    shared = shared_symbols(version, active)
    decided = [
        evidence.count_candles(session, each.strategy_name, each.version, shared, start=start, end=now)
        for each in (version, active)
    ]
    if not decided_alike(*decided):
        less, more = sorted(decided)
        return unmeasured(f"one has decided on {less:,} candles, the other on {more:,}", scale, days)
    ours, theirs = (_hourly_r(session, each, start, now) for each in (version, active))
    unit = "hours" if timeframe_delta(version.timeframe) <= HOUR else "candles"
    return measure_risk(ours, theirs, days, active_scale=scale, unit=unit)


def _hourly_r(session: Session, version: StrategyVersion, start: datetime, end: datetime) -> FloatArray:
    """Return the changes of marked-to-market R over the hours, or longer candles, of [start, end) with a trade."""
    of, stretch = version.symbols, max(HOUR, timeframe_delta(version.timeframe))
    found = outcomes.marks_by_stretch(
        session, version.strategy_name, version.version, of, start=start, end=end, stretch=stretch
    )
    return np.array([r for _, r in found.values()], np.float64)


def read_open_risk(session: Session, strategy_name: str, canary: str) -> OpenRisk:
    """Return the canary's part of the strategy's open risk."""
    held = positions.held_by_opener(session, strategy_name)
    scales = rollouts.risk_scales(session, {(strategy_name, each.version) for each in held})
    return open_risk(held, canary, {version: scale for (_, version), scale in scales.items()})
