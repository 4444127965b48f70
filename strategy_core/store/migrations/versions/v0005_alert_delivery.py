"""Alerts are delivered, channel by channel, and acknowledged; what an alert says is never edited.

What stood in the outbox until now counts as acknowledged: nobody delivered it, and an old alarm must wake nobody.
"""

import sqlalchemy as sa
from alembic import op

from strategy_core.store.migrations.versions.v0001_first_schema import TIME, refuse

revision = "v0005"
down_revision = "v0004"
branch_labels = None
depends_on = None

FROZEN = ("id", "at", "severity", "kind", "strategy_name", "rollout_id", "text", "facts", "dedupe_key")
ACKNOWLEDGEMENT = ("acknowledged_at", "acknowledged_by", "acknowledged_because")
ONCE = "an alert is acknowledged once"


def upgrade() -> None:
    op.drop_column("alert_outbox", "sent_at")  # nothing ever wrote to it
    op.add_column("alert_outbox", sa.Column("acknowledged_at", TIME, nullable=True))
    op.add_column("alert_outbox", sa.Column("acknowledged_by", sa.String(), nullable=False, server_default=""))
    op.add_column("alert_outbox", sa.Column("acknowledged_because", sa.String(), nullable=False, server_default=""))
    op.execute(
        "UPDATE alert_outbox SET acknowledged_at = at, acknowledged_by = 'upgrade', "
        "acknowledged_because = 'raised before alerts were delivered'"
    )
    op.create_table(
        "alert_delivery",
        sa.Column("alert_id", sa.Integer(), nullable=False),
        sa.Column("channel", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("due_at", TIME, nullable=False),
        sa.Column("next_try_at", TIME, nullable=True),
        sa.Column("claimed_until", TIME, nullable=True),
        sa.Column("claimed_by", sa.String(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("sent_at", TIME, nullable=True),
        sa.Column("failed_at", TIME, nullable=True),
        sa.Column("given_up_at", TIME, nullable=True),
        sa.Column("last_error", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["alert_id"], ["alert_outbox.id"]),
        sa.PrimaryKeyConstraint("alert_id", "channel"),
    )
    op.create_index("ix_delivery_due", "alert_delivery", ["channel", "next_try_at"], unique=False)

    on_postgresql = op.get_bind().dialect.name == "postgresql"
    refuse(
        on_postgresql, "alert_outbox", f"UPDATE OF {', '.join(FROZEN)}", "alert_outbox is never edited: raise another"
    )
    refuse(on_postgresql, "alert_outbox", "DELETE", "alert_outbox is never deleted")
    when = "OLD.acknowledged_at IS NOT NULL"
    once = f"CREATE TRIGGER acknowledge_once BEFORE UPDATE OF {', '.join(ACKNOWLEDGEMENT)} ON alert_outbox FOR EACH ROW"
    if on_postgresql:
        op.execute(f"{once} WHEN ({when}) EXECUTE FUNCTION refuse_change('{ONCE}')")
        op.execute(
            "CREATE TRIGGER refuse_truncate_alert_outbox BEFORE TRUNCATE ON alert_outbox FOR EACH STATEMENT "
            "EXECUTE FUNCTION refuse_change('alert_outbox is never emptied')"
        )
    else:
        op.execute(f"{once} WHEN {when} BEGIN SELECT RAISE(ABORT, '{ONCE}'); END")
