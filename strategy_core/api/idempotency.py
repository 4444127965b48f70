"""A wish that comes again under its idempotency key gets the first answer again; the database alone makes it once."""

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256

import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from starlette.responses import Response

from strategy_core.services import answers
from strategy_core.store.api_tables import ApiAnswer

KEEP = timedelta(hours=24)
VISIBLE = r"^[!-~]{1,255}$"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Wish:
    """A request that carries a key; *digest* tells it from another one under the same key."""

    actor: str
    key: str
    digest: str


def wish_of(actor: str, key: str | None, method: str, path: str, query: bytes, body: bytes) -> Wish | None:
    """Return the wish; None without a key, or with one that validation will refuse."""
    if key is None or re.fullmatch(VISIBLE, key) is None:
        return None
    digest = sha256(b"\n".join([method.encode(), path.encode(), query, body]))
    return Wish(actor, key, digest.hexdigest())


def recall(engine: Engine, wish: Wish, now: datetime) -> ApiAnswer | None:
    """Return what stands under the wish's key, of this wish or of another one.

    A store of answers that cannot be read keeps nobody from his wish: the audit trail still refuses a second one.
    """
    try:
        return answers.find(engine, wish.actor, wish.key, since=now - KEEP)
    except SQLAlchemyError as error:
        log.warning("api.answer_not_read", error=type(error).__name__)
        return None


def replay(answer: ApiAnswer) -> Response:
    headers = {**answer.headers, "Idempotency-Replayed": "true"}
    return Response(answer.body, answer.status, headers=headers, media_type="application/json")


def keep(engine: Engine, wish: Wish, response: Response, strategies: list[str], now: datetime) -> None:
    """Keep the answer; when that fails, what was wished is done all the same, and the answer goes out."""
    headers = {name: response.headers[name] for name in ("ETag", "Location") if name in response.headers}
    row = {
        "actor": wish.actor,
        "idempotency_key": wish.key,
        "digest": wish.digest,
        "strategies": strategies,
        "status": response.status_code,
        "headers": headers,
        "body": bytes(response.body).decode(),
        "answered_at": now,
    }
    try:
        answers.keep(engine, row, forget_before=now - KEEP)
    except Exception as error:  # noqa: BLE001  a rollback that is done must not be answered with a failure
        log.warning("api.answer_not_kept", error=type(error).__name__)
