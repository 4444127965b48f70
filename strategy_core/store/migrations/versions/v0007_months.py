"""On PostgreSQL the log, its outcomes and its marks stand in months, by the candle's open time in UTC.

What was there becomes the first partition, whole and uncopied: everything before next month. A default partition takes
whatever no month is there for, so that no write is ever refused for want of one.

`id` stays the key of each partition, without the time: it is derived from the natural key, which holds the time and is
unique over all of them. An outcome's foreign key stands between the two partitions of a month: one between the whole
tables would have every month that is dropped searched for in all outcomes, while nobody may read them.
"""

from datetime import datetime

import sqlalchemy as sa
from alembic import op

from strategy_core.store.migrations.versions.v0001_first_schema import refuse

revision = "v0007"
down_revision = "v0006"
branch_labels = None
depends_on = None

_AHEAD = 2  # months beside the first partition
_AS = "%Y-%m-%d 00:00+00"
_TABLES = ("shadow_decision_log", "outcome", "equity_mark")
_OF_THE_WHOLE = {  # beside what each partition has of its own
    "shadow_decision_log": (
        "ADD CONSTRAINT uq_decision UNIQUE (strategy_name, version, symbol, timestamp)",
        "ADD CONSTRAINT fk_decision_version FOREIGN KEY (strategy_name, version) "
        "REFERENCES strategy_version (strategy_name, version)",
    ),
    "outcome": ("ADD CONSTRAINT uq_outcome UNIQUE (strategy_name, version, symbol, timestamp)",),
    "equity_mark": ("ADD PRIMARY KEY (strategy_name, version, symbol, timestamp)",),
}
_OF_EACH = {
    "shadow_decision_log": ("ADD PRIMARY KEY (id)",),
    "outcome": (
        "ADD PRIMARY KEY (decision_id)",
        "ADD FOREIGN KEY (decision_id) REFERENCES shadow_decision_log_{month} (id)",
    ),
    "equity_mark": (),
}
_INDEXES = {
    "shadow_decision_log": "CREATE INDEX ix_decision_errors ON shadow_decision_log "
    "(strategy_name, version, timestamp) WHERE decision = 'error'",
    "outcome": "CREATE INDEX ix_outcome_closed ON outcome (strategy_name, version, closed_at)",
}
# As in v0006: one table is waited for while none is held, the others are had at once, or all are let go. Who reads the
# log and then changes a strategy, or the other way round, is never undone by this, nor is this by him.
_HOLD = """
DO $$
DECLARE
    wanted text[] := ARRAY[
        'strategy_version IN SHARE ROW EXCLUSIVE', 'shadow_decision_log IN ACCESS EXCLUSIVE',
        'outcome IN ACCESS EXCLUSIVE', 'equity_mark IN ACCESS EXCLUSIVE', 'alert_outbox IN SHARE'
    ];
    awaited text := wanted[1];
    asked text;
    until timestamptz := clock_timestamp() + current_setting('lock_timeout')::interval;
BEGIN
    LOOP
        BEGIN
            EXECUTE 'LOCK TABLE ' || awaited || ' MODE';
            FOREACH asked IN ARRAY wanted LOOP
                EXECUTE 'LOCK TABLE ' || asked || ' MODE NOWAIT';
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
_NEXT = """
SELECT date_trunc('month', greatest(
    now(), (SELECT max(timestamp) FROM shadow_decision_log), (SELECT max(timestamp) FROM outcome),
    (SELECT max(timestamp) FROM equity_mark)
) AT TIME ZONE 'UTC') + interval '1 month'
"""
_NAMES = "SELECT indexname FROM pg_indexes WHERE tablename = :table AND schemaname = current_schema()"
_GRANTS = """
DO $$
DECLARE
    granted record;
BEGIN
    FOR granted IN SELECT privilege_type, grantee, is_grantable FROM pg_class, aclexplode(relacl)
        WHERE pg_class.oid = '{source}'::regclass AND grantee <> relowner
    LOOP
        EXECUTE format('GRANT %s ON {target} TO %s%s', granted.privilege_type,
            CASE granted.grantee WHEN 0 THEN 'PUBLIC' ELSE granted.grantee::regrole::text END,
            CASE WHEN granted.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END);
    END LOOP;
    EXECUTE format('ALTER TABLE {target} OWNER TO %s',
        (SELECT relowner::regrole FROM pg_class WHERE oid = '{source}'::regclass));
END $$
"""


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute(_HOLD)  # first of all: who writes from here on waits, and holds nothing that is wanted here
    op.create_index("ix_alert_open", "alert_outbox", ["severity", "acknowledged_at", "id"], unique=False)
    op.create_index("ix_alert_strategy", "alert_outbox", ["strategy_name", "id"], unique=False)
    if op.get_bind().dialect.name == "postgresql":  # SQLite has no partitions
        stand_in_months()


def stand_in_months() -> None:
    first: datetime = op.get_bind().execute(sa.text(_NEXT)).scalar_one()
    for table in _TABLES:
        _take_over(table, first)
    for table in _TABLES:
        _make(table, "default", "DEFAULT")
        for ahead in range(_AHEAD):
            start, end = _later(first, ahead), _later(first, ahead + 1)
            _make(table, f"{start:%Y_%m}", f"FOR VALUES FROM ('{start:{_AS}}') TO ('{end:{_AS}}')")
    config = op.get_context().config
    if config is not None:
        config.attributes["uncounted"] = _TABLES  # of the whole, which autovacuum never counts; once nobody waits


def _take_over(table: str, end: datetime) -> None:
    """Make *table* anew, of partitions, the first of which is what it was."""
    first = f"{table}_before_{end:%Y_%m}"
    for change in ("update", "delete"):
        op.execute(f"DROP TRIGGER refuse_{change}_{table} ON {table}")
    op.execute(f"ALTER TABLE {table} RENAME TO {first}")
    for name in op.get_bind().execute(sa.text(_NAMES), {"table": first}).scalars().all():
        op.execute(f"ALTER INDEX {name} RENAME TO {first}_{name.removeprefix(f'{table}_')}")
    op.execute(
        f"CREATE TABLE {table} (LIKE {first} INCLUDING DEFAULTS INCLUDING CONSTRAINTS) PARTITION BY RANGE (timestamp)"
    )
    op.execute(_GRANTS.format(source=first, target=table))
    for clause in _OF_THE_WHOLE[table]:
        op.execute(f"ALTER TABLE {table} {clause}")
    if table in _INDEXES:
        op.execute(_INDEXES[table])
    op.execute(f"ALTER TABLE {table} ATTACH PARTITION {first} FOR VALUES FROM (MINVALUE) TO ('{end:{_AS}}')")
    refuse(True, table, "UPDATE", f"{table} is evidence: its rows are never changed")
    refuse(True, table, "DELETE", f"{table} is evidence: its rows are never deleted")
    _refuse_truncate(table, table)


def _make(table: str, month: str, bounds: str) -> None:
    partition = f"{table}_{month}"
    op.execute(f"CREATE TABLE {partition} PARTITION OF {table} {bounds}")
    for clause in _OF_EACH[table]:
        op.execute(f"ALTER TABLE {partition} {clause.format(month=month)}")
    _refuse_truncate(table, partition)  # PostgreSQL gives a partition the triggers of rows alone
    op.execute(_GRANTS.format(source=table, target=partition))  # a dump reads it by its own name


def _refuse_truncate(table: str, of: str) -> None:
    op.execute(
        f"CREATE TRIGGER refuse_truncate_{table} BEFORE TRUNCATE ON {of} FOR EACH STATEMENT "
        f"EXECUTE FUNCTION refuse_change('{table} is never emptied')"
    )


def _later(month: datetime, months: int) -> datetime:
    return month.replace(year=month.year + (month.month - 1 + months) // 12, month=(month.month - 1 + months) % 12 + 1)
