"""Roll back what a firing alert of the platform's monitoring names: once for each firing, never what began later."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from sqlalchemy import Engine

from strategy_core.domain.audit import Actor
from strategy_core.domain.errors import AlreadyDone, NotAwaiting, NothingToRollBack
from strategy_core.domain.firing import Firing
from strategy_core.domain.lifecycle import utc
from strategy_core.domain.ramp import ALERT
from strategy_core.services.rollback import roll_back
from strategy_core.services.transition import standing
from strategy_core.store import rollouts, versions
from strategy_core.store.engine import reading
from strategy_core.store.retry import OF_A_ROLLBACK, tried_again


class Outcome(StrEnum):
    ROLLED_BACK = "rolled_back"
    CAME_AGAIN = "came_again"  # this firing has rolled back already
    BEGAN_LATER = "began_later"  # what serves now did not when the alert began to fire
    NOTHING_SERVES = "nothing_serves"  # it was rolled back by others, or has never begun


@dataclass(frozen=True, slots=True)
class _Serving:
    version: str
    rollout_id: UUID | None
    since: datetime | None


def roll_back_on(
    engine: Engine, firing: Firing, *, fired_at: datetime, actor: Actor, now: datetime
) -> tuple[Outcome, str | None]:
    """Return what became of it, and the version that users were taken off.

    Args:
        fired_at: when the alert began to fire, by the clock that *now* is of.
        actor: with the firing's key: under it the database rolls back once.

    Raises:
        UnknownStrategy, UnknownVersion
        NothingToRollBack: what is named serves, and nothing was active before it.
    """
    fired_at, now = utc(fired_at, "fired_at"), utc(now, "now")
    found = _serving(engine, firing)
    while found is not None:
        if found.since is not None and fired_at < found.since <= now:  # beyond now a clock that ran ahead has put it
            return Outcome.BEGAN_LATER, None
        try:
            version = roll_back(
                engine,
                strategy_name=firing.strategy_name,
                version=found.version,
                rollout_id=found.rollout_id,
                actor=actor,
                now=now,
                reason=firing.reason,
                cause=ALERT,
            )
        except AlreadyDone:
            return Outcome.CAME_AGAIN, None
        except (NotAwaiting, NothingToRollBack):
            before, found = found, _serving(engine, firing)
            if found == before:  # else it has changed meanwhile: a rollout that was completed is undone by its name
                raise
        else:
            return Outcome.ROLLED_BACK, version
    return Outcome.NOTHING_SERVES, None


@tried_again(OF_A_ROLLBACK)
def _serving(engine: Engine, firing: Firing) -> _Serving | None:
    """Return what the firing means of all that serves users now."""
    name, wanted = firing.strategy_name, firing.version
    with reading(engine) as session:
        versions.get_strategy(session, name)
        if wanted is not None:
            versions.get_version(session, name, wanted)
        rollout = rollouts.open_rollout(session, name)
        if rollout is not None and wanted in (None, rollout.version):
            return _Serving(rollout.version, rollout.id, rollout.started_at)
        stands = standing(session, name)
        if stands["canary"] is not None and wanted in (None, stands["canary"]):
            canary = rollouts.get_canary(session, name)
            return _Serving(canary.version, None, canary.started_at)
        if wanted is not None and wanted == stands["active"]:
            return _Serving(wanted, None, versions.get_version(session, name, wanted).activated_at)
    return None
