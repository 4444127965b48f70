"""Keep and find what the HTTP API has answered under idempotency keys; what was done stands in the audit trail."""

from datetime import datetime
from typing import Any

from sqlalchemy import Engine

from strategy_core.store import answers
from strategy_core.store.api_tables import ApiAnswer
from strategy_core.store.engine import reading, transaction


def find(engine: Engine, actor: str, idempotency_key: str, *, since: datetime) -> ApiAnswer | None:
    """Return the answer under the key, unless it is older than *since*."""
    with reading(engine) as session:
        found = answers.find_answer(session, actor, idempotency_key)
    return found if found is not None and found.answered_at >= since else None


def keep(engine: Engine, row: dict[str, Any], *, forget_before: datetime) -> None:
    """Keep an answer, and forget those that are older than *forget_before*."""
    with transaction(engine) as session:
        answers.forget_answers(session, forget_before)
        answers.keep_answer(session, row)
