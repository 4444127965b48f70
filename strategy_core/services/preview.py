"""Show what a plan would take, from the shadow history of the pair; it changes nothing."""

from datetime import datetime, timedelta

from sqlalchemy import Engine

from strategy_core.domain.lifecycle import utc
from strategy_core.domain.plan import Plan
from strategy_core.domain.preview import Preview, preview
from strategy_core.services.start import check_comparable
from strategy_core.store import evidence, versions
from strategy_core.store.engine import reading

HISTORY = timedelta(days=60)


def preview_plan(engine: Engine, *, strategy_name: str, version: str, plan: Plan, now: datetime) -> Preview:
    """Hold *plan* against what the version and the active one did in the last 60 days, or since it was registered.

    Raises:
        UnknownStrategy, UnknownVersion, NoActiveVersion
        UnarmedPlan, Incomparable: it could not start.
    """
    now = utc(now, "now")
    plan.check_armed()
    with reading(engine) as session:
        chosen = versions.get_version(session, strategy_name, version)
        active = versions.active_version(session, strategy_name)
        check_comparable(chosen, active)
        start = max(now - HISTORY, chosen.created_at)
        slots, _ = evidence.read_slots(session, strategy_name, version, active.version, start=start, end=now)
    return preview(plan, slots, (now - start).total_seconds() / 86_400)
