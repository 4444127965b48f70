"""What the shadow history of a pair says of the evidence to come: measured before a rollout, frozen at its start."""

from datetime import datetime, timedelta

from sqlmodel import Session

from strategy_core.domain.slots import Slots
from strategy_core.store import slots
from strategy_core.store.tables import StrategyVersion

LOOK_BACK = timedelta(days=180)  # older slots are of another market


def shadow_slots(
    session: Session, version: StrategyVersion, active: StrategyVersion, now: datetime
) -> tuple[Slots, float]:
    """Return the slots that the pair had in shadow, and over how many calendar days."""
    start = max(now - LOOK_BACK, version.created_at, active.created_at)
    closed, _ = slots.read_slots(session, version.strategy_name, version.version, active.version, start=start, end=now)
    return slots.as_slots(closed), (now - start).total_seconds() / 86_400
