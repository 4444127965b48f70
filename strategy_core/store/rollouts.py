"""Canaries, rollouts and gate verdicts. Rollouts change by compare-and-set on their generation."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import and_, bindparam, func, or_, update
from sqlalchemy import select as select_columns
from sqlalchemy.orm import aliased
from sqlmodel import Session, col, select
from sqlmodel.sql.expression import SelectOfScalar

from strategy_core.domain.errors import LostRace, NoCanary, UnknownRollout
from strategy_core.domain.exclusions import excluded_data, read_excluded
from strategy_core.domain.gates.base import Finding
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.overlap import ServingCanary
from strategy_core.domain.ramp import ENDED, Position, State
from strategy_core.store import counters
from strategy_core.store.tables import (
    CanaryConfig,
    Counted,
    GateVerdict,
    Rollout,
    RolloutBook,
    StrategyRow,
    StrategyVersion,
)

_NEWEST = (
    select(GateVerdict.gate, func.max(GateVerdict.ticked_at).label("ticked_at"))
    .where(GateVerdict.rollout_id == bindparam("rollout_id"))
    .group_by(GateVerdict.gate)
    .subquery()
)
_OWN_VERSION = and_(
    col(StrategyVersion.strategy_name) == Rollout.strategy_name, col(StrategyVersion.version) == Rollout.version
)
_LAST_VERDICTS = (
    select(GateVerdict)
    .join(_NEWEST, (col(GateVerdict.gate) == _NEWEST.c.gate) & (col(GateVerdict.ticked_at) == _NEWEST.c.ticked_at))
    .where(GateVerdict.rollout_id == bindparam("rollout_id"))
)


def find_canary(session: Session, strategy_name: str) -> CanaryConfig | None:
    return session.exec(select(CanaryConfig).where(CanaryConfig.strategy_name == strategy_name)).one_or_none()


def get_canary(session: Session, strategy_name: str) -> CanaryConfig:
    found = find_canary(session, strategy_name)
    if found is None:
        raise NoCanary(strategy_name)
    return found


def older_canaries(session: Session, strategy_name: str) -> int:
    """Return how many canaries of other strategies serve users, have the same salt and began earlier.

    If the strategy has no canary, all of them began earlier.
    """
    mine = aliased(StrategyRow)
    serving = (
        select(CanaryConfig.strategy_name, CanaryConfig.started_at, StrategyVersion.status)
        .join(StrategyRow, col(StrategyRow.name) == CanaryConfig.strategy_name)
        .join(mine, and_(col(mine.name) == strategy_name, col(mine.salt) == StrategyRow.salt))
        .join(
            StrategyVersion,
            and_(
                col(StrategyVersion.strategy_name) == CanaryConfig.strategy_name,
                col(StrategyVersion.version) == CanaryConfig.version,
            ),
        )
        .where(
            StrategyVersion.status == Status.CANARY,
            or_(col(CanaryConfig.rollout_bp) > 0, col(CanaryConfig.strategy_name) == strategy_name),
        )
    )
    began = {name: (at, name) for name, at, _ in session.exec(serving)}
    own = began.pop(strategy_name, None)
    return sum(own is None or other < own for other in began.values())


def serving_canaries(session: Session, strategies: Collection[str] | None = None) -> list[ServingCanary]:
    """Return the canaries that serve users, by strategy.

    Args:
        strategies: only of these.
    """
    query = (
        select(CanaryConfig.strategy_name, CanaryConfig.rollout_bp, StrategyRow.salt)
        .join(StrategyRow, col(StrategyRow.name) == CanaryConfig.strategy_name)
        .join(
            StrategyVersion,
            and_(
                col(StrategyVersion.strategy_name) == CanaryConfig.strategy_name,
                col(StrategyVersion.version) == CanaryConfig.version,
            ),
        )
        .where(StrategyVersion.status == Status.CANARY, col(CanaryConfig.rollout_bp) > 0)
        .order_by(col(CanaryConfig.strategy_name))
    )
    if strategies is not None:
        query = query.where(col(CanaryConfig.strategy_name).in_(sorted(strategies)))
    return [ServingCanary(name, percent_bp, salt) for name, percent_bp, salt in session.exec(query)]


def point_canary(
    session: Session,
    strategy_name: str,
    version: str,
    *,
    rollout_bp: int,
    asked_bp: int | None = None,
    salt: str,
    now: datetime,
) -> CanaryConfig:
    """Route *rollout_bp* basis points of users to *version* from now on.

    Args:
        asked_bp: what its stage asks for, if the cap on capital makes *rollout_bp* smaller.
    """
    canary = find_canary(session, strategy_name)
    asked_bp = rollout_bp if asked_bp is None else asked_bp
    if canary is None:
        canary = CanaryConfig(
            strategy_name=strategy_name,
            version=version,
            rollout_bp=rollout_bp,
            asked_bp=asked_bp,
            salt=salt,
            started_at=now,
        )
    else:
        canary.asked_bp = asked_bp
        canary.version, canary.rollout_bp, canary.started_at, canary.excluded_symbols = version, rollout_bp, now, {}
        canary.generation += 1
    session.add(canary)
    session.flush()
    return canary


def set_canary_share(
    session: Session, strategy_name: str, rollout_bp: int, *, asked_bp: int | None = None
) -> CanaryConfig:
    """Route *rollout_bp* basis points of users to the canary. *asked_bp* is as in `point_canary`."""
    canary = get_canary(session, strategy_name)
    canary.rollout_bp, canary.asked_bp = rollout_bp, rollout_bp if asked_bp is None else asked_bp
    canary.generation += 1
    session.add(canary)
    session.flush()
    return canary


def set_excluded(session: Session, strategy_name: str, excluded: Mapping[str, datetime]) -> CanaryConfig:
    canary = get_canary(session, strategy_name)
    canary.excluded_symbols = excluded_data(excluded)
    canary.generation += 1
    session.add(canary)
    session.flush()
    return canary


def excluded_from(session: Session, rollout: Rollout) -> dict[str, datetime]:
    """Return by symbol since when it is excluded from the canary of an open rollout. One that has ended has none.

    Raises:
        EvidenceUnavailable: other software wrote them.
    """
    canary = find_canary(session, rollout.strategy_name)
    if canary is None or canary.version != rollout.version or rollout.ended_at is not None:
        return {}
    return read_excluded(canary.excluded_symbols)


def add_rollout(session: Session, rollout: Rollout, history: dict[str, Any]) -> None:
    session.add(rollout)
    session.flush()
    session.add(RolloutBook(rollout_id=rollout.id, history=history, totals={}))
    session.flush()


def get_rollout(session: Session, rollout_id: UUID) -> Rollout:
    found = session.get(Rollout, rollout_id)
    if found is None:
        raise UnknownRollout(str(rollout_id))
    return found


def risk_scales(session: Session, wanted: Iterable[tuple[str, str]]) -> dict[tuple[str, str], float]:
    """Return by (strategy, version) the scale of positions, as its newest rollout has frozen it. Others have none."""
    pairs = sorted(set(wanted))
    if not pairs:
        return {}
    mine = or_(*(and_(col(Rollout.strategy_name) == name, col(Rollout.version) == version) for name, version in pairs))
    rows = session.exec(
        select(Rollout.strategy_name, Rollout.version, Rollout.risk_scale).where(mine).order_by(col(Rollout.started_at))
    ).all()
    return {(name, version): scale for name, version, scale in rows}


def open_rollout(session: Session, strategy_name: str) -> Rollout | None:
    """Return the strategy's open rollout. There is at most one."""
    return session.exec(_open().where(Rollout.strategy_name == strategy_name)).one_or_none()


def open_rollouts(session: Session) -> Sequence[Rollout]:
    return session.exec(_open().order_by(Rollout.strategy_name)).all()


def list_rollouts(session: Session, strategy_name: str | None = None) -> Sequence[Rollout]:
    """Return rollouts, newest first."""
    query = select(Rollout).order_by(col(Rollout.started_at).desc(), col(Rollout.id))
    if strategy_name is not None:
        query = query.where(Rollout.strategy_name == strategy_name)
    return session.exec(query).all()


def completed_rollouts(session: Session, strategy_name: str | None = None) -> dict[str, Rollout]:
    """Return the newest completed rollout of each active version that has one, by strategy."""
    query = (
        select(Rollout)
        .join(StrategyVersion, _OWN_VERSION)
        .where(Rollout.state == State.COMPLETED, StrategyVersion.status == Status.ACTIVE)
        .order_by(Rollout.strategy_name, col(Rollout.ended_at))
    )
    if strategy_name is not None:
        query = query.where(Rollout.strategy_name == strategy_name)
    return {rollout.strategy_name: rollout for rollout in session.exec(query).all()}


def completed_controls(session: Session, strategy_name: str) -> Sequence[str]:
    """Return the versions that completed rollouts of the strategy have replaced."""
    done = (Rollout.strategy_name == strategy_name, Rollout.state == State.COMPLETED)
    return session.exec(select(Rollout.control_version).where(*done).distinct()).all()


def change_rollout(session: Session, rollout: Rollout, **changes: Any) -> None:
    """Apply *changes* if the row still has the generation that was read, and raise the generation by one.

    Raises:
        LostRace: another transaction has changed the row.
    """
    read = rollout.generation
    changed = session.execute(
        update(Rollout)
        .where(col(Rollout.id) == rollout.id, col(Rollout.generation) == read)
        .values(generation=read + 1, **changes)
        .execution_options(synchronize_session=False)
    )
    if changed.rowcount != 1:  # type: ignore[attr-defined]
        found = session.exec(select(Rollout.generation).where(Rollout.id == rollout.id)).first()
        raise LostRace(f"rollout {rollout.id}", read, found)
    session.refresh(rollout)


def touch_rollout(session: Session, rollout: Rollout, *, last_tick_at: datetime, blind_since: datetime | None) -> None:
    """Record a tick without other changes. The generation stays, so that owners can act on what they have read."""
    rollout.last_tick_at, rollout.blind_since = last_tick_at, blind_since
    session.add(rollout)
    session.flush()


def last_verdicts(session: Session, rollout_id: UUID) -> dict[str, GateVerdict]:
    """Return each gate's newest verdict, by gate."""
    return {row.gate: row for row in session.exec(_LAST_VERDICTS, params={"rollout_id": rollout_id}).all()}


def verdict_ids(session: Session, rollout_id: UUID) -> list[str]:
    """Return the ids of each gate's newest verdict, sorted by gate, as the evidence of a change."""
    return [str(row.id) for _, row in sorted(last_verdicts(session, rollout_id).items())]


def held_since(session: Session, last: GateVerdict) -> datetime:
    """Return since when the gate of *last*, its newest row, has had this verdict without interruption."""
    mine = (GateVerdict.rollout_id == last.rollout_id, GateVerdict.gate == last.gate)
    other = session.exec(
        select(func.max(GateVerdict.ticked_at)).where(*mine, GateVerdict.verdict != last.verdict)
    ).one()
    began = select(func.min(GateVerdict.ticked_at)).where(*mine)
    if other is not None:
        began = began.where(col(GateVerdict.ticked_at) > other)
    return session.exec(began).one()


def find_verdicts(session: Session, ids: Iterable[UUID]) -> Sequence[GateVerdict]:
    return session.exec(select(GateVerdict).where(col(GateVerdict.id).in_(list(ids))).order_by(GateVerdict.gate)).all()


def verdict_history(
    session: Session, rollout_id: UUID, *, gate: str | None = None, limit: int | None = None
) -> Sequence[GateVerdict]:
    """Return verdicts, oldest first. *limit* keeps the newest ones."""
    query = select(GateVerdict).where(GateVerdict.rollout_id == rollout_id)
    if gate is not None:
        query = query.where(GateVerdict.gate == gate)
    newest = query.order_by(col(GateVerdict.ticked_at).desc(), col(GateVerdict.gate).desc()).limit(limit)
    return session.exec(newest).all()[::-1]


def value_history(session: Session, rollout_id: UUID, gate: str) -> list[tuple[datetime, float]]:
    """Return (time, value) of a gate's verdicts with a value, oldest first."""
    rows = session.exec(
        select(GateVerdict.ticked_at, GateVerdict.value)
        .where(GateVerdict.rollout_id == rollout_id, GateVerdict.gate == gate)
        .order_by(col(GateVerdict.ticked_at))
    ).all()
    return [(at, value) for at, value in rows if value is not None]


def value_peaks(session: Session, rollout_id: UUID, gate: str, *, most: int) -> list[tuple[datetime, float]]:
    """Return at most *most* points (time, highest value since the previous point) of a gate, oldest first."""
    valued = (
        select(
            GateVerdict.ticked_at,
            GateVerdict.value,
            (func.row_number().over(order_by=col(GateVerdict.ticked_at)) - 1).label("place"),
            func.count().over().label("total"),
        )
        .where(GateVerdict.rollout_id == rollout_id, GateVerdict.gate == gate, col(GateVerdict.value).is_not(None))
        .subquery()
    )
    part = valued.c.place * most // valued.c.total
    peaks = select_columns(func.max(valued.c.ticked_at), func.max(valued.c.value)).group_by(part).order_by(part)
    return [(at, value) for at, value in session.execute(peaks)]


def interval_path(
    session: Session, rollout_id: UUID, gate: str, *, most: int
) -> list[tuple[datetime, float, float, float]]:
    """Return at most *most* + 1 points (time, value, low, limit) of a gate's verdicts with an interval, oldest first.

    They are evenly spaced, and the newest is among them.
    """
    names = ("ticked_at", "value", "low", "limit")
    columns: list[Any] = [col(getattr(GateVerdict, name)) for name in names]
    counted = (
        select_columns(
            *columns,
            (func.row_number().over(order_by=col(GateVerdict.ticked_at).desc()) - 1).label("place"),
            func.count().over().label("total"),
        )
        .where(
            col(GateVerdict.rollout_id) == rollout_id,
            col(GateVerdict.gate) == gate,
            *(each.is_not(None) for each in columns),
        )
        .subquery()
    )
    every = counted.c.place % ((counted.c.total + most - 1) // most) == 0
    found = select_columns(*(counted.c[name] for name in names)).where(every).order_by(counted.c.ticked_at)
    return [(at, value, low, limit) for at, value, low, limit in session.execute(found)]


def record_findings(session: Session, rollout: Rollout, findings: Sequence[Finding], now: datetime) -> list[Finding]:
    """Write the findings that differ from their gate's newest row, and return those with a changed verdict.

    A row is always later than the previous one of its gate, also after the clock was set back.
    """
    last = last_verdicts(session, rollout.id)
    # a tick that moved the rollout and is done again after a crash finds nothing at the new stage, and writes nothing
    moved = now if now in (rollout.stage_entered_at, rollout.promoted_at) else None
    turned, written = [], []
    for finding in findings:
        before = last.get(finding.gate)
        if before is not None and (_content_of(before) == _new_content(finding, rollout) or before.ticked_at == moved):
            continue
        session.add(
            GateVerdict(
                rollout_id=rollout.id,
                ticked_at=now if before is None else max(now, before.ticked_at + timedelta(microseconds=1)),
                stage_index=rollout.stage_index,
                **finding.model_dump(mode="json"),
            )
        )
        written.append((finding.gate, finding.verdict.value))
        if before is None or before.verdict != finding.verdict:
            turned.append(finding)
    counters.count(session, rollout.strategy_name, Counted.VERDICT, written)
    return turned


def _content_of(row: GateVerdict) -> tuple[object, ...]:
    return (row.stage_index, row.verdict, row.armed, row.n, row.value, row.limit, row.reason)


def _new_content(finding: Finding, rollout: Rollout) -> tuple[object, ...]:
    return (
        rollout.stage_index,
        finding.verdict.value,
        finding.armed,
        finding.n,
        finding.value,
        finding.limit,
        finding.reason,
    )


def _open() -> SelectOfScalar[Rollout]:
    return select(Rollout).where(col(Rollout.state).not_in(sorted(ENDED)))


def position(rollout: Any, excluded: Collection[str] = ()) -> Position:
    """Return where a rollout, or a row with its columns, stands: *excluded* are off its canary now."""
    return Position(
        state=State(rollout.state),
        stage_index=rollout.stage_index,
        stage_entered_at=rollout.stage_entered_at,
        stage_extended_at=rollout.stage_extended_at,
        approved_stage=rollout.approved_stage,
        blind_since=rollout.blind_since,
        promoted_at=rollout.promoted_at,
        excluded=tuple(sorted(excluded)),
    )
