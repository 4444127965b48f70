"""Where strategies stand now: who serves whom, the rollout, what its gates last said; it changes nothing."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Engine
from sqlmodel import Session

from strategy_core.domain.gates import SEVERITY, Verdict
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import read_plan
from strategy_core.services.transition import standing
from strategy_core.store import audit, rollouts, versions
from strategy_core.store.engine import reading
from strategy_core.store.rollout_tables import AlertOutbox, AuditEvent, GateVerdict, Rollout

ALERTS_SHOWN = 5


@dataclass(frozen=True, slots=True)
class RolloutStatus:
    """A strategy's open rollout, or its last one.

    Attributes:
        stages: percents of the plan, of which `rollout.stage_index` is the present one.
        verdicts: each gate's newest, the worst first.
    """

    rollout: Rollout
    stages: tuple[float, ...]
    verdicts: Sequence[GateVerdict]


@dataclass(frozen=True, slots=True)
class StrategyStatus:
    """One strategy; *percent* is the canary's share of users, *shadows* its versions in shadow."""

    strategy_name: str
    active: str | None
    canary: str | None
    percent: float
    shadows: tuple[str, ...]
    rollout: RolloutStatus | None
    alerts: Sequence[AlertOutbox]


def read_status(engine: Engine, strategy_name: str | None = None) -> list[StrategyStatus]:
    """Return the status of one strategy, or of all of them by name.

    Raises:
        UnknownStrategy
    """
    with reading(engine) as session:
        if strategy_name is not None:
            versions.get_strategy(session, strategy_name)
        names = versions.strategy_names(session) if strategy_name is None else [strategy_name]
        return [_status(session, name) for name in names]


def read_audit(engine: Engine, strategy_name: str | None = None, *, limit: int | None = None) -> Sequence[AuditEvent]:
    """Return what was changed, oldest first; with *limit* the newest so many of it.

    Raises:
        UnknownStrategy
    """
    with reading(engine) as session:
        if strategy_name is not None:
            versions.get_strategy(session, strategy_name)
        return audit.events(session, strategy_name, limit=limit)


def _status(session: Session, strategy_name: str) -> StrategyStatus:
    now = standing(session, strategy_name)
    newest = rollouts.open_rollout(session, strategy_name) or next(
        iter(rollouts.list_rollouts(session, strategy_name)), None
    )
    return StrategyStatus(
        strategy_name=strategy_name,
        active=now["active"],
        canary=now["canary"],
        percent=now["percent"],
        shadows=tuple(v.version for v in versions.list_versions(session, strategy_name, Status.SHADOW)),
        rollout=_rollout_status(session, newest) if newest else None,
        alerts=audit.alerts(session, strategy_name, limit=ALERTS_SHOWN),
    )


def _rollout_status(session: Session, rollout: Rollout) -> RolloutStatus:
    said = rollouts.last_verdicts(session, rollout.id).values()
    return RolloutStatus(
        rollout=rollout,
        stages=tuple(stage.percent for stage in read_plan(rollout.plan).stages),
        verdicts=sorted(said, key=lambda verdict: (SEVERITY[Verdict(verdict.verdict)], verdict.gate)),
    )
