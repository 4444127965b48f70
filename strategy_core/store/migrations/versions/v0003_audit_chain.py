"""The audit trail becomes a chain of hashes, and a strategy counts its changes; routers are told of each.

Of its triggers `link_audit_event` refuses an event that does not follow its strategy's newest one, and
`count_strategy` a generation that does not grow by one. Neither can refuse a change that `store.audit.record` makes.
"""

import json
from datetime import UTC, datetime
from hashlib import sha256
from itertools import groupby
from typing import Any

import sqlalchemy as sa
from alembic import op

from strategy_core.store.migrations.versions.v0001_first_schema import JSON, TIME, refuse

revision = "v0003"
down_revision = "v0002"
branch_labels = None
depends_on = None

STRATEGY = sa.table(
    "strategy",
    sa.column("name", sa.String()),
    sa.column("generation", sa.Integer()),
    sa.column("audit_head", sa.String()),
)
EVENT = sa.table(
    "audit_event",
    sa.column("id", sa.Integer()),
    sa.column("at", TIME),
    sa.column("actor", sa.String()),
    sa.column("role", sa.String()),
    sa.column("source", sa.String()),
    sa.column("action", sa.String()),
    sa.column("strategy_name", sa.String()),
    sa.column("version", sa.String()),
    sa.column("rollout_id", sa.Uuid()),
    sa.column("before", JSON),
    sa.column("after", JSON),
    sa.column("reason", sa.Text()),
    sa.column("position", sa.Integer()),
    sa.column("previous_hash", sa.String()),
    sa.column("hash", sa.String()),
)
UNHASHED = ("id", "position", "previous_hash", "hash")
UNLINKED = "an audit event follows the newest one of its strategy"
UNCOUNTED = "the generation of a strategy grows by one with each change"
LINKED = (
    "EXISTS (SELECT 1 FROM strategy WHERE name = NEW.strategy_name AND generation + 1 = NEW.position "
    "AND coalesce(nullif(audit_head, ''), '" + "0" * 64 + "') = NEW.previous_hash)"
)


def upgrade() -> None:
    op.add_column("strategy", sa.Column("generation", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("strategy", sa.Column("audit_head", sa.String(), nullable=False, server_default=""))
    op.add_column("audit_event", sa.Column("evidence", JSON, nullable=False, server_default="[]"))
    op.add_column("audit_event", sa.Column("request_id", sa.String(), nullable=False, server_default=""))
    op.add_column("audit_event", sa.Column("idempotency_key", sa.String(), nullable=True))
    op.add_column("audit_event", sa.Column("position", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("audit_event", sa.Column("previous_hash", sa.String(), nullable=False, server_default=""))
    op.add_column("audit_event", sa.Column("hash", sa.String(), nullable=False, server_default=""))
    op.create_index("uq_audit_idempotency", "audit_event", ["actor", "idempotency_key"], unique=True)
    on_postgresql = op.get_bind().dialect.name == "postgresql"
    chain_what_was_recorded(on_postgresql)
    if on_postgresql:
        guard_on_postgresql()
    else:
        guard_on_sqlite()


def chain_what_was_recorded(on_postgresql: bool) -> None:
    """Give the events of earlier releases their places and hashes, in the order in which they were stored."""
    run = op.get_bind().execute
    events = run(sa.select(EVENT).order_by(EVENT.c.strategy_name, EVENT.c.id)).all()
    op.execute("DROP TRIGGER refuse_update_audit_event" + (" ON audit_event" if on_postgresql else ""))
    for strategy_name, trail in groupby(events, key=lambda event: event.strategy_name):
        position, previous = 0, "0" * 64
        for position, event in enumerate(trail, 1):
            facts = {name: value for name, value in event._asdict().items() if name not in UNHASHED}
            linked = _hash(
                previous, facts | {"position": position, "evidence": [], "request_id": "", "idempotency_key": None}
            )
            run(
                sa.update(EVENT)
                .where(EVENT.c.id == event.id)
                .values(position=position, previous_hash=previous, hash=linked)
            )
            previous = linked
        run(
            sa.update(STRATEGY).where(STRATEGY.c.name == strategy_name).values(generation=position, audit_head=previous)
        )
    refuse(on_postgresql, "audit_event", "UPDATE", "audit_event is evidence: its rows are never changed")


def guard_on_sqlite() -> None:
    op.execute(
        f"CREATE TRIGGER link_audit_event BEFORE INSERT ON audit_event FOR EACH ROW WHEN NOT {LINKED} "
        f"BEGIN SELECT RAISE(ABORT, '{UNLINKED}'); END"
    )
    op.execute(
        "CREATE TRIGGER count_strategy BEFORE UPDATE OF generation, audit_head ON strategy FOR EACH ROW "
        f"WHEN NEW.generation <> OLD.generation + 1 BEGIN SELECT RAISE(ABORT, '{UNCOUNTED}'); END"
    )


def guard_on_postgresql() -> None:
    op.execute(
        "CREATE FUNCTION link_audit_event() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        f"IF NOT {LINKED} THEN RAISE EXCEPTION '{UNLINKED}' USING ERRCODE = 'integrity_constraint_violation'; END IF; "
        "RETURN NEW; END $$"
    )
    op.execute(
        "CREATE TRIGGER link_audit_event BEFORE INSERT ON audit_event FOR EACH ROW EXECUTE FUNCTION link_audit_event()"
    )
    op.execute(
        "CREATE TRIGGER count_strategy BEFORE UPDATE OF generation, audit_head ON strategy FOR EACH ROW "
        f"WHEN (NEW.generation <> OLD.generation + 1) EXECUTE FUNCTION refuse_change('{UNCOUNTED}')"
    )
    op.execute(
        "CREATE FUNCTION tell_strategy() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM pg_notify('rollout_strategy', NEW.name); RETURN NULL; END $$"
    )
    op.execute(
        "CREATE TRIGGER tell_strategy AFTER INSERT OR UPDATE OF generation ON strategy "
        "FOR EACH ROW EXECUTE FUNCTION tell_strategy()"
    )


def _hash(previous: str, facts: dict[str, Any]) -> str:
    """Return what `domain.chain.event_hash` returned when this migration was written; a golden value pins both."""
    text = json.dumps(_plain(facts), sort_keys=True, separators=(",", ":"))
    return sha256(f"{previous}\n{text}".encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, datetime):  # SQLite forgets the zone, which is UTC
        moment = value if value.tzinfo else value.replace(tzinfo=UTC)
        return moment.astimezone(UTC).isoformat(timespec="microseconds")
    if isinstance(value, int | float) and not isinstance(value, bool):
        whole = abs(value) < 2**53 and value == int(value)
        return int(value) if whole else float(value)
    return value if value is None or isinstance(value, str | bool) else str(value)
