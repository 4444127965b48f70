"""Service tokens: long-lived tokens of programs, with their issue and revocation in the audit trail.

A token concerns the strategies that it is limited to, or else every strategy that there is. The event of each strategy
has a transaction of its own: one for all would hold the locks of all, which rollbacks wait for.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Engine
from sqlmodel import Session

from strategy_core.domain.audit import Command
from strategy_core.domain.lifecycle import utc
from strategy_core.services.transitions import recorded_change
from strategy_core.store import audit, versions
from strategy_core.store.engine import reading, retry_transient, transaction
from strategy_core.store.tables import ServiceToken

_ISSUE, _REVOKE = "issue_token", "revoke_token"


def record_token(
    engine: Engine,
    command: Command,
    *,
    token_id: str,
    name: str,
    role: str,
    strategies: Sequence[str],
    read_only: bool,
    issued_at: datetime,
    expires_at: datetime,
) -> ServiceToken:
    """List a service token before it is handed out, and record its issue with each strategy that it concerns.

    Args:
        strategies: that it is limited to. Empty: all.
        issued_at, expires_at: real time, by which tokens expire. The command has the market's time.

    Raises:
        UnknownStrategy: one of *strategies* does not exist.
    """
    token = ServiceToken(
        id=token_id,
        name=name,
        role=role,
        strategies=sorted(set(strategies)),
        read_only=read_only,
        issued_at=utc(issued_at, "issued_at"),
        expires_at=utc(expires_at, "expires_at"),
        issued_by=command.actor.shown,
    )
    _add(engine, token)
    _record(engine, command, _ISSUE, token)
    return token


def revoke_token(engine: Engine, command: Command, token_id: str, *, at: datetime) -> ServiceToken:
    """Revoke a service token at once, then record it with each strategy that it concerns, and return the token.

    The first revocation is kept. A repeated call adds the events that an interrupted one has left out.

    Args:
        at: real time.

    Raises:
        UnknownToken
    """
    token, is_new = _revoke(engine, command, token_id, utc(at, "at"))
    _record(engine, command, _REVOKE, token, again=not is_new)
    return token


def list_tokens(engine: Engine) -> Sequence[ServiceToken]:
    """Return all service tokens, revoked ones included, oldest first."""
    with reading(engine) as session:
        return audit.list_tokens(session)


def is_revoked(engine: Engine, token_id: str) -> bool:
    """Return whether the service token is revoked.

    A token that is not listed is not: its signature is valid, and a restored backup may be older than the token.
    """
    with reading(engine) as session:
        found = audit.find_token(session, token_id)
    return found is not None and found.revoked_at is not None


@retry_transient()
def _add(engine: Engine, token: ServiceToken) -> None:
    with transaction(engine) as session:
        for strategy_name in token.strategies:
            versions.get_strategy(session, strategy_name)
        audit.add_token(session, token)


@retry_transient()
def _revoke(engine: Engine, command: Command, token_id: str, at: datetime) -> tuple[ServiceToken, bool]:
    with transaction(engine) as session:
        return audit.revoke_token(session, token_id, by=command.actor.shown, because=command.stated_reason, now=at)


def _record(engine: Engine, command: Command, action: str, token: ServiceToken, *, again: bool = False) -> None:
    with reading(engine) as session:
        concerned = token.strategies or versions.strategy_names(session)
        if again:  # before any lock is taken: a long trail takes seconds
            concerned = [name for name in concerned if not _has_event(session, action, name, token)]
    for strategy_name in concerned:
        _record_one(engine, command, action, strategy_name, token)


def _has_event(session: Session, action: str, strategy_name: str, token: ServiceToken) -> bool:
    found = audit.find_events(session, limit=None, newest=False, strategy_name=strategy_name, action=action)
    return any(event.after.get("token", {}).get("id") == token.id for event in found)


@retry_transient()
def _record_one(engine: Engine, command: Command, action: str, strategy_name: str, token: ServiceToken) -> None:
    with transaction(engine) as session:
        versions.lock_strategy(session, strategy_name)
        with recorded_change(session, command, action, strategy_name) as change:
            change.after["token"] = _facts(token)


def _facts(token: ServiceToken) -> dict[str, Any]:
    """Return what an audit event shows of a token."""
    return {
        "id": token.id,
        "name": token.name,
        "role": token.role,
        "strategies": token.strategies or "all",
        "read_only": token.read_only,
        "expires_at": token.expires_at.isoformat(),
    }
