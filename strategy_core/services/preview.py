"""Show what a plan would take, from the shadow history of the pair; it changes nothing."""

from datetime import datetime

from sqlalchemy import Engine

from strategy_core.domain.audience import Audience
from strategy_core.domain.history import measure
from strategy_core.domain.lifecycle import utc
from strategy_core.domain.plan import Plan
from strategy_core.domain.preview import Preview, preview
from strategy_core.services.directory import plan_audience
from strategy_core.services.history import shadow_slots
from strategy_core.services.start import check_comparable
from strategy_core.store import versions
from strategy_core.store.engine import reading


def preview_plan(engine: Engine, *, strategy_name: str, version: str, plan: Plan, now: datetime) -> Preview:
    """Hold *plan* against what the version and the active one did in shadow, at most 180 days of it.

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
        slots, days = shadow_slots(session, chosen, active, now)
    return preview(plan, measure(slots, days), days)


def show_plan(
    engine: Engine, *, strategy_name: str, version: str, plan: Plan, now: datetime
) -> tuple[Preview, Audience]:
    """Return what *plan* would take, and whom its stages would reach; see `preview_plan` and `plan_audience`."""
    found = preview_plan(engine, strategy_name=strategy_name, version=version, plan=plan, now=now)
    return found, plan_audience(engine, strategy_name=strategy_name, plan=plan)
