"""The measured risk of a rollout's version, with the scale of its positions, and the entry price of live trades."""

import sqlalchemy as sa
from alembic import op

from strategy_core.store.migrations.versions.v0001_first_schema import JSON

revision = "v0021"
down_revision = "v0020"
branch_labels = None
depends_on = None

_ENTRY = "CONSTRAINT ck_live_entry CHECK (entry_price > 0)"
_SCALE = "CONSTRAINT ck_risk_scale CHECK (risk_scale BETWEEN 0.5 AND 1)"
_WHY = "rollout is never edited: make a new one"


# As in v0017: who writes waits from the first statement on, and both tables are had together or none is held.
_HOLD = """
DO $$
DECLARE
    until timestamptz := clock_timestamp() + current_setting('lock_timeout')::interval;
BEGIN
    LOOP
        BEGIN
            LOCK TABLE live_trade IN ACCESS EXCLUSIVE MODE;
            LOCK TABLE rollout IN ACCESS EXCLUSIVE MODE NOWAIT;
            RETURN;
        EXCEPTION WHEN lock_not_available THEN
            IF clock_timestamp() > until THEN
                RAISE;
            END IF;
            PERFORM pg_sleep(0.05);
        END;
    END LOOP;
END $$
"""


def upgrade() -> None:
    on_postgresql = op.get_bind().dialect.name == "postgresql"
    if on_postgresql:
        op.execute(_HOLD)
        op.execute("ALTER TABLE live_trade ADD COLUMN entry_price FLOAT")
        op.execute(f"ALTER TABLE live_trade ADD {_ENTRY} NOT VALID")  # no scan of the rows that are there
        op.execute(f"ALTER TABLE rollout ADD COLUMN risk_scale FLOAT DEFAULT 1 NOT NULL {_SCALE}")
    else:
        op.execute(f"ALTER TABLE live_trade ADD COLUMN entry_price FLOAT {_ENTRY}")
        op.execute(f"ALTER TABLE rollout ADD COLUMN risk_scale FLOAT DEFAULT 1 NOT NULL {_SCALE}")
    op.add_column("rollout", sa.Column("risk", JSON, nullable=True))
    change = "CREATE TRIGGER keep_risk_rollout BEFORE UPDATE OF risk_scale, risk ON rollout FOR EACH ROW"
    if on_postgresql:
        op.execute(f"{change} EXECUTE FUNCTION refuse_change('{_WHY}')")
    else:
        op.execute(f"{change} BEGIN SELECT RAISE(ABORT, '{_WHY}'); END")
