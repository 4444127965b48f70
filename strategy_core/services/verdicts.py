"""What a rollout's gates said over time; it changes nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Engine
from sqlmodel import Session

from strategy_core.domain.errors import InvalidName, UnknownRollout
from strategy_core.domain.gates import Freshness
from strategy_core.domain.plan import read_plan
from strategy_core.store import rollouts, versions
from strategy_core.store.engine import reading
from strategy_core.store.rollout_tables import GateVerdict, Rollout


@dataclass(frozen=True, slots=True)
class VerdictHistory:
    """One rollout's verdicts, oldest first.

    Attributes:
        verdicts: a row for each time that a gate said something new.
        values: of the one gate asked for, over the whole rollout, however few rows were asked for.
    """

    rollout: Rollout
    verdicts: Sequence[GateVerdict]
    values: Sequence[tuple[datetime, float]]


def read_verdicts(
    engine: Engine,
    strategy_name: str,
    *,
    gate: str | None = None,
    rollout_id: UUID | None = None,
    limit: int | None = None,
) -> VerdictHistory:
    """Return what the gates of the strategy's newest rollout said, or of the one named.

    Raises:
        UnknownStrategy
        UnknownRollout: it has none, or the one named is another's.
        InvalidName: no gate of that rollout is called *gate*.
    """
    with reading(engine) as session:
        versions.get_strategy(session, strategy_name)
        rollout = _rollout(session, strategy_name, rollout_id)
        if gate is not None:
            names = [Freshness().name, *(each.name for each in read_plan(rollout.plan).gates)]
            if gate not in names:
                raise InvalidName("gate of this rollout", gate, ", ".join(names))
        return VerdictHistory(
            rollout=rollout,
            verdicts=rollouts.verdict_history(session, rollout.id, gate=gate, limit=limit),
            values=rollouts.value_history(session, rollout.id, gate) if gate is not None else [],
        )


def _rollout(session: Session, strategy_name: str, rollout_id: UUID | None) -> Rollout:
    known = rollouts.list_rollouts(session, strategy_name)
    wanted = [rollout for rollout in known if rollout_id in (None, rollout.id)]
    if not wanted:
        raise UnknownRollout(f"of {strategy_name!r}" if rollout_id is None else f"{rollout_id} of {strategy_name!r}")
    return wanted[0]
