"""A gate's value against its limit, as a bar."""

import math
from dataclasses import dataclass

from strategy_core.domain.gates.base import Gate, Verdict
from strategy_core.domain.gates.on_live_orders import ExecutionGate, RoutingAudit
from strategy_core.domain.gates.on_metrics import MetricThreshold
from strategy_core.domain.gates.on_slots import NotWorse
from strategy_core.store.tables import GateVerdict

LIMIT_AT = 80.0  # place of the limit on bars that must not reach it


@dataclass(frozen=True, slots=True)
class GateBar:
    """Places on a bar from 0 to 100.

    Attributes:
        fill: the bar reaches from *start* to here.
        limit: where the verdict changes. None on a bar that fills up to 100.
        value: the measured value, if the bar is an interval.
        wanted: whether the value has to pass the limit. Else it must not reach it.
    """

    fill: float
    limit: float | None
    start: float = 0.0
    value: float | None = None
    wanted: bool = False


def gate_bar(gate: Gate, row: GateVerdict) -> GateBar | None:
    """Return the bar of a verdict that has a value and a limit which can be compared on one scale."""
    value, limit = row.value, row.limit
    if value is None or limit is None:
        return None
    if isinstance(gate, NotWorse):
        return _interval(value, row.low, limit) if row.low is not None else _filling(row, value, limit)
    if isinstance(gate, ExecutionGate) and not isinstance(gate, RoutingAudit):  # E, not its logarithm
        value, limit = math.log(max(value, 1.0)), math.log(max(limit, 1.0))
    if isinstance(gate, MetricThreshold) and gate.maximum is None:
        return None
    if limit <= 0:
        return None
    return GateBar(fill=min(100.0, max(0.0, value / limit * LIMIT_AT)), limit=LIMIT_AT)


def _filling(row: GateVerdict, value: float, limit: float) -> GateBar | None:
    """Return how many of the needed slots there are."""
    if row.verdict != Verdict.INSUFFICIENT or limit <= 0:
        return None
    return GateBar(fill=min(100.0, 100 * value / limit), limit=None, wanted=True)


def _interval(value: float, low: float, limit: float) -> GateBar | None:
    """Return the value with its lower bound, which has to pass the limit. Bounds far below are cut off."""
    reach = 2.5 * max(abs(limit), abs(value - limit) / 2)
    if reach <= 0:
        return None

    def place(number: float) -> float:
        return min(100.0, max(0.0, 50 + 50 * (number - limit) / reach))

    return GateBar(fill=place(2 * value - low), limit=50.0, start=place(low), value=place(value), wanted=True)
