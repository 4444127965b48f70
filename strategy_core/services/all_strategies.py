"""Events of changes that concern all strategies: exclusions of users and freezes.

The transaction of the change writes the first event, which names the other strategies. The event of each of them has a
transaction of its own: one for all would hold the locks of all, which rollbacks wait for. A process that is killed in
between leaves strategies without their event. The next such change and each tick write what is missing.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from sqlmodel import Session

from strategy_core.domain.audit import Actor, Command
from strategy_core.services.transitions import Change, recorded_change
from strategy_core.store import audit, versions
from strategy_core.store.engine import reading, retry_transient, transaction
from strategy_core.store.tables import AuditEvent

FACT_OF = {**dict.fromkeys(audit.OF_USERS, "users"), "freeze": "freeze", "unfreeze": "freeze"}
_OTHERS = "others"  # of an event's fact: the strategies whose event is written later
_AMONG = 5_000  # newest events that are searched: the other events of a change follow its first one at once

log = structlog.get_logger(__name__)


def set_facts(change: Change, fact: str, facts: Mapping[str, Any], others: Sequence[str]) -> None:
    """Set what the first event of a change shows, with the other strategies that it concerns."""
    change.after[fact] = {**facts, _OTHERS: list(others)} if others else dict(facts)


def record_others(engine: Engine, first: AuditEvent | None) -> None:
    """Write the event of each other strategy that the first event of a change names. Repeated it writes none twice."""
    if first is not None:
        for strategy_name in _facts(first).get(_OTHERS, ()):
            _record_one(engine, first, strategy_name)


def complete_changes(engine: Engine) -> None:
    """Write the events that a killed process has left out."""
    with reading(engine) as session:
        firsts = audit.concerning_others(session, FACT_OF, _OTHERS, among=_AMONG)
        if not firsts:
            return
        wanted = Counter((_key(first), name) for first in firsts for name in _facts(first)[_OTHERS])
        there = Counter((_key(row), row.strategy_name) for row in audit.keys_since(session, firsts[0].id, FACT_OF))
    missing = wanted - there
    for first in firsts:
        for strategy_name in _facts(first)[_OTHERS]:
            if missing[_key(first), strategy_name]:
                _record_one(engine, first, strategy_name)


def try_complete_changes(engine: Engine) -> None:
    """Do what `complete_changes` does. A failure is left for the next tick."""
    try:
        complete_changes(engine)
    except DBAPIError as error:
        log.warning("audit.events_not_completed", error=type(error).__name__)


@retry_transient()
def _record_one(engine: Engine, first: AuditEvent, strategy_name: str) -> None:
    actor = Actor(first.actor, role=first.role, source=first.source, request_id=first.request_id)
    fact = FACT_OF[first.action]
    facts = {name: value for name, value in _facts(first).items() if name != _OTHERS}
    with transaction(engine) as session:
        versions.lock_strategy(session, strategy_name)
        if _is_recorded(session, first, strategy_name, facts):
            return
        command = Command(actor, first.at, first.reason)
        with recorded_change(session, command, first.action, strategy_name) as change:
            change.after[fact] = facts


def _is_recorded(session: Session, first: AuditEvent, strategy_name: str, facts: Mapping[str, Any]) -> bool:
    since = audit.find_events(
        session, limit=None, newest=False, strategy_name=strategy_name, action=first.action, after_id=first.id
    )
    return any(_key(each) == _key(first) and _facts(each) == facts for each in since)


def _facts(event: AuditEvent) -> Mapping[str, Any]:
    found: Mapping[str, Any] = event.after[FACT_OF[event.action]]
    return found


def _key(event: Any) -> tuple[Any, ...]:
    return event.action, event.at, event.actor, event.request_id
