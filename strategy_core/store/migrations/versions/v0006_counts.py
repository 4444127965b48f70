"""Counts that are kept as rows are written, so that a scrape never counts a log; filled from what is there by now."""

import numpy as np
import sqlalchemy as sa
from alembic import op

from strategy_core.domain.routing import BUCKETS, buckets_of
from strategy_core.store.migrations.versions.v0001_first_schema import JSON

revision = "v0006"
down_revision = "v0005"
branch_labels = None
depends_on = None

_ALERT = sa.table(
    "alert_outbox", sa.column("strategy_name", sa.String()), sa.column("kind", sa.String()), sa.column("facts", JSON)
)
_EVENT = sa.table(
    "audit_event", sa.column("strategy_name", sa.String()), sa.column("before", JSON), sa.column("after", JSON)
)
_DIRECTORY = sa.table(
    "directory_tally", sa.column("salt", sa.String()), sa.column("users"), sa.column("below", sa.LargeBinary())
)
_LOG = "shadow_decision_log"
_KEY = ("strategy_name", "version", "symbol")
_DECISIONS = ("buy", "sell", "hold", "error")
# Writers take these tables in no one order: a shadow run alerts before it logs one version, and again after that.
# So one table is waited for while none is held; the others are had at once, or all are let go: neither side is undone
# by the other. The first is what a change of a strategy locks first. NOWAIT alone would never turn a vacuum out.
_HOLD = """
DO $$
DECLARE
    tables text[] := ARRAY[
        'strategy', 'shadow_decision_log', 'alert_outbox', 'gate_verdict', 'audit_event', 'comparison_report',
        'platform_user'
    ];
    awaited text := 'strategy';
    asked text;
    until timestamptz := clock_timestamp() + current_setting('lock_timeout')::interval;
BEGIN
    LOOP
        BEGIN
            EXECUTE 'LOCK TABLE ' || awaited || ' IN EXCLUSIVE MODE';
            FOREACH asked IN ARRAY tables LOOP
                EXECUTE 'LOCK TABLE ' || asked || ' IN EXCLUSIVE MODE NOWAIT';
            END LOOP;
            RETURN;
        EXCEPTION WHEN lock_not_available THEN
            IF clock_timestamp() > until THEN
                RAISE;
            END IF;
            awaited := asked;
        END;
    END LOOP;
END $$
"""


def upgrade() -> None:
    on_postgresql = op.get_bind().dialect.name == "postgresql"
    if on_postgresql:
        op.execute(_HOLD)  # first of all: who writes from here on waits, and holds nothing that is wanted here
    op.create_table(
        "decision_tally",
        sa.Column("strategy_name", sa.String(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("symbol", sa.String(), nullable=False),
        sa.Column("buy", sa.BigInteger(), nullable=False),
        sa.Column("sell", sa.BigInteger(), nullable=False),
        sa.Column("hold", sa.BigInteger(), nullable=False),
        sa.Column("error", sa.BigInteger(), nullable=False),
        sa.Column("newest_candle_s", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("strategy_name", "version", "symbol"),
    )
    op.create_table(
        "tally",
        sa.Column("strategy_name", sa.String(), nullable=False),
        sa.Column("what", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("detail", sa.String(), nullable=False),
        sa.Column("total", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("strategy_name", "what", "name", "detail"),
    )
    op.create_table(
        "directory_tally",
        sa.Column("salt", sa.String(), nullable=False),
        sa.Column("users", sa.Integer(), nullable=False),
        sa.Column("below", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("salt"),
    )
    op.create_index(
        "ix_alert_counted", "alert_outbox", ["kind", "severity", "strategy_name", "acknowledged_at"], unique=False
    )
    op.create_index(
        "ix_report_newest",
        "comparison_report",
        ["strategy_name", "shadow_version", "symbol", "created_at"],
        unique=False,
    )
    if on_postgresql:
        for table in ("decision_tally", "tally"):
            op.execute(f"ALTER TABLE {table} SET (fillfactor = 50)")  # updated in place, all day
    count_what_was_logged()
    count_what_has_happened()
    count_the_directory()


def count_what_was_logged() -> None:
    on_postgresql = op.get_bind().dialect.name == "postgresql"
    seconds = "extract(epoch FROM max(timestamp))" if on_postgresql else "strftime('%s', max(timestamp))"
    said = [f"sum(CASE WHEN decision = '{decision}' THEN 1 ELSE 0 END)" for decision in _DECISIONS]
    counted = sa.select(*map(sa.text, (*_KEY, *said, f"CAST({seconds} AS BIGINT)"))).select_from(sa.text(_LOG))
    into = [*_KEY, *_DECISIONS, "newest_candle_s"]
    table = sa.table("decision_tally", *map(sa.column, into))
    op.execute(sa.insert(table).from_select(into, counted.group_by(*map(sa.text, _KEY))))
    op.execute(
        "INSERT INTO tally (strategy_name, what, name, detail, total) "
        "SELECT strategy_name, 'error', version, error_kind, count(*) "
        "FROM shadow_decision_log WHERE decision = 'error' GROUP BY strategy_name, version, error_kind"
    )


def count_what_has_happened() -> None:
    op.execute(
        "INSERT INTO tally (strategy_name, what, name, detail, total) "
        "SELECT rollout.strategy_name, 'verdict', gate, verdict, count(*) FROM gate_verdict "
        "JOIN rollout ON rollout.id = gate_verdict.rollout_id GROUP BY rollout.strategy_name, gate, verdict"
    )
    run = op.get_bind().execute
    found: dict[tuple[str, str, str], int] = {}
    for strategy_name, before, after in run(sa.select(_EVENT.c.strategy_name, _EVENT.c.before, _EVENT.c.after)):
        active = after.get("active")
        if active is not None and active != before.get("active"):
            key = (strategy_name, "activation", active)
            found[key] = found.get(key, 0) + 1
    rolled_back = sa.select(_ALERT.c.strategy_name, _ALERT.c.facts).where(_ALERT.c.kind == "rollout.rolled_back")
    for strategy_name, facts in run(rolled_back):
        key = (strategy_name, "rollback", _cause(facts.get("gate"), facts.get("verdict")))
        found[key] = found.get(key, 0) + 1
    rows = [
        {"strategy_name": strategy_name, "what": what, "name": name, "total": total}
        for (strategy_name, what, name), total in sorted(found.items())
    ]
    if rows:
        into = "INSERT INTO tally (strategy_name, what, name, detail, total) VALUES"
        run(sa.text(f"{into} (:strategy_name, :what, :name, '', :total)"), rows)


def _cause(gate: str | None, verdict: str | None) -> str:
    """Return what `domain.ramp.Ruling.cause` said when this migration was written."""
    if gate is None:
        return "owner"
    if verdict in ("breach", "fail"):
        return gate
    return "blind" if verdict == "blind" else "unanswered"


def count_the_directory() -> None:
    run = op.get_bind().execute
    users = list(run(sa.text("SELECT user_id FROM platform_user")).scalars())
    if not users:
        return
    for salt in run(sa.text("SELECT DISTINCT salt FROM strategy")).scalars().all():
        in_each = np.bincount(buckets_of(users, salt), minlength=BUCKETS)  # whose values are golden
        below = np.concatenate([[0], in_each.cumsum()]).astype(">u4").tobytes()
        run(sa.insert(_DIRECTORY).values(salt=salt, users=len(users), below=below))
