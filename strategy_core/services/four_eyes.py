"""Four eyes: whoever started a rollout does not also let it go on. Nothing that takes users off a version asks this."""

from sqlmodel import Session

from strategy_core.domain.audit import Actor
from strategy_core.domain.errors import FourEyes
from strategy_core.store import audit
from strategy_core.store.rollout_tables import Rollout


def check_second_owner(session: Session, rollout: Rollout, actor: Actor, *, four_eyes: bool) -> None:
    """Raise FourEyes if *actor* started the rollout, where *four_eyes* are demanded."""
    if four_eyes and audit.starter(session, rollout.id) == actor.name:
        raise FourEyes(rollout.strategy_name, rollout.version, actor.name)
