"""Empty evidence for gates, to which tests add facts."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from strategy_core.domain.evidence import Evidence, Record
from strategy_core.domain.gates.base import Finding, Gate, Margins
from strategy_core.domain.pair_noise import History
from strategy_core.domain.slot_ledger import Totals

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
MARGINS = Margins(pnl_r=0.15, win=0.06)
NOTHING = Evidence(
    now=NOON,
    started_at=NOON - timedelta(days=5),
    stage_entered_at=NOON - timedelta(days=1),
    totals=Totals(),
    history=History(),
    pending_slots=0,
    canary=Record(),
    active=Record(),
    canary_drawdown=None,
    active_drawdown=None,
    risk_fraction=0.01,
    newest_candle=None,
    due_candle=None,
)


def judged(gate: Gate, **facts: Any) -> Finding:
    return gate.judge(replace(NOTHING, **facts), MARGINS)
