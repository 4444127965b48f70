"""Requests of owners, made in forms: written down before they are done, and taken over if nobody does them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Engine, or_, update
from sqlmodel import Session, col, select

from strategy_core.domain.alerts import REQUEST_WAITING, Severity
from strategy_core.domain.lifecycle import utc
from strategy_core.store import alerts, audit
from strategy_core.store.engine import insert_if_new, reading, transaction
from strategy_core.store.tables import OwnerRequest

LEASE = timedelta(seconds=60)  # a request that is not done by then is taken over
ALERT_AFTER = timedelta(seconds=20)


@dataclass(frozen=True, slots=True)
class Request:
    """What an owner asked for.

    Attributes:
        id: of the flow run.
        action: name of the flow.
        signed_in: the owner's name if a proxy has verified it, or an empty text.
    """

    id: UUID
    action: str
    parameters: Mapping[str, Any]
    signed_in: str = ""


def take(engine: Engine, request: Request, *, by: str, now: datetime) -> OwnerRequest | None:
    """Write the request down and claim it for `LEASE`.

    Args:
        by: the process that does it.
        now: real time, also in a replay.

    Returns:
        Its row, which has ended if the request is done. None: another process has claimed it.
    """
    now = utc(now, "now")
    row = OwnerRequest(**_fields(request), asked_at=now).model_dump()
    with transaction(engine) as session:
        insert_if_new(session, OwnerRequest, [row])
        free = or_(
            col(OwnerRequest.taken_until).is_(None),
            col(OwnerRequest.taken_until) <= now,
            col(OwnerRequest.taken_by) == by,
        )
        claimed = session.connection().execute(
            update(OwnerRequest)
            .where(col(OwnerRequest.id) == request.id, col(OwnerRequest.ended_at).is_(None), free)
            .values(taken_by=by, taken_until=now + LEASE)
        )
        found = session.get_one(OwnerRequest, request.id)
        return found if claimed.rowcount or found.ended_at is not None else None


def renew(engine: Engine, request_ids: Sequence[UUID], *, by: str, now: datetime) -> None:
    """Extend the claims of *by* to `LEASE` from *now* on, for requests that it still works on."""
    if not request_ids:
        return
    with transaction(engine) as session:
        session.connection().execute(
            update(OwnerRequest)
            .where(
                col(OwnerRequest.id).in_(request_ids),
                col(OwnerRequest.taken_by) == by,
                col(OwnerRequest.ended_at).is_(None),
            )
            .values(taken_until=utc(now, "now") + LEASE)
        )


def end(engine: Engine, request_id: UUID, line: str, *, failed: bool, now: datetime) -> None:
    """Store the result of a request, once."""
    with transaction(engine) as session:
        session.connection().execute(
            update(OwnerRequest)
            .where(col(OwnerRequest.id) == request_id, col(OwnerRequest.ended_at).is_(None))
            .values(ended_at=utc(now, "now"), failed=failed, line=line)
        )


def is_made(engine: Engine, request: Request) -> bool:
    """Return whether the audit trail has the change of this request: it was done, but its end was not stored."""
    name = str(request.parameters.get("strategy_name", ""))
    with reading(engine) as session:
        return audit.made_by_request(session, name, str(request.id)) is not None


def left_undone(engine: Engine, *, now: datetime) -> list[Request]:
    """Return the requests whose claim has expired, oldest first."""
    with reading(engine) as session:
        found = session.exec(
            select(OwnerRequest)
            .where(col(OwnerRequest.ended_at).is_(None), col(OwnerRequest.taken_until) <= utc(now, "now"))
            .order_by(col(OwnerRequest.asked_at))
        ).all()
    return [Request(each.id, each.action, each.parameters, each.signed_in) for each in found]


def alert_waiting(engine: Engine, request: Request, *, waited: timedelta, now: datetime) -> None:
    """Raise an alert that a request has not begun, once per request.

    Args:
        now: the time of the settings, as for every alert.
    """
    name = str(request.parameters.get("strategy_name", ""))
    with transaction(engine) as session:
        _raise(session, request, name, waited, now)


def _raise(session: Session, request: Request, name: str, waited: timedelta, now: datetime) -> None:
    about = f"{request.action} of {name}" if name else request.action
    alerts.raise_alert(
        session,
        REQUEST_WAITING,
        f"an owner's request has not begun after {waited.total_seconds():.0f} s: {about}. It is done from the database",
        severity=Severity.CRITICAL.value if request.action == "rollback" else Severity.WARNING.value,
        strategy_name=name,
        dedupe_key=f"{REQUEST_WAITING} {request.id}",
        facts={"request": str(request.id)},
        now=utc(now, "now"),
    )


def _fields(request: Request) -> dict[str, Any]:
    return {
        "id": request.id,
        "action": request.action,
        "parameters": dict(request.parameters),
        "signed_in": request.signed_in,
    }
