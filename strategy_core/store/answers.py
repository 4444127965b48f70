"""What the HTTP API has answered, by idempotency key; kept for a day, never judged."""

from datetime import datetime
from typing import Any

from sqlalchemy import delete
from sqlmodel import Session, col

from strategy_core.store.api_tables import ApiAnswer
from strategy_core.store.engine import insert_if_new


def find_answer(session: Session, actor: str, idempotency_key: str) -> ApiAnswer | None:
    return session.get(ApiAnswer, (actor, idempotency_key))


def keep_answer(session: Session, row: dict[str, Any]) -> None:
    """Write the answer; the first one under a key stays."""
    insert_if_new(session, ApiAnswer, [row])


def forget_answers(session: Session, before: datetime) -> None:
    session.execute(delete(ApiAnswer).where(col(ApiAnswer.answered_at) < before))
