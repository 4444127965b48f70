"""Service tokens are listed: a row is not edited or deleted, and is revoked once."""

import sqlalchemy as sa
from alembic import op

from strategy_core.store.migrations.versions.v0001_first_schema import JSON, TIME, refuse

revision = "v0010"
down_revision = "v0009"
branch_labels = None
depends_on = None

_TABLE = "service_token"
_FROZEN = ("id", "name", "role", "strategies", "read_only", "issued_at", "expires_at", "issued_by")
_REVOCATION = ("revoked_at", "revoked_by", "revoked_because")
_ONCE = "a service token is revoked once"


def upgrade() -> None:
    op.create_table(
        _TABLE,
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("strategies", JSON, nullable=False),
        sa.Column("read_only", sa.Boolean(), nullable=False),
        sa.Column("issued_at", TIME, nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.Column("issued_by", sa.String(), nullable=False),
        sa.Column("revoked_at", TIME, nullable=True),
        sa.Column("revoked_by", sa.String(), nullable=False),
        sa.Column("revoked_because", sa.Text(), nullable=False),
        sa.CheckConstraint("(revoked_at IS NULL) = (revoked_by = '')", name="ck_token_revoked"),
        sa.PrimaryKeyConstraint("id"),
    )
    on_postgresql = op.get_bind().dialect.name == "postgresql"
    refuse(on_postgresql, _TABLE, f"UPDATE OF {', '.join(_FROZEN)}", f"{_TABLE} is never edited: issue another")
    refuse(on_postgresql, _TABLE, "DELETE", f"{_TABLE} is never deleted")
    when = "OLD.revoked_at IS NOT NULL"
    once = f"CREATE TRIGGER revoke_once BEFORE UPDATE OF {', '.join(_REVOCATION)} ON {_TABLE} FOR EACH ROW"
    if on_postgresql:
        op.execute(f"{once} WHEN ({when}) EXECUTE FUNCTION refuse_change('{_ONCE}')")
        op.execute(
            f"CREATE TRIGGER refuse_truncate_{_TABLE} BEFORE TRUNCATE ON {_TABLE} FOR EACH STATEMENT "
            f"EXECUTE FUNCTION refuse_change('{_TABLE} is never emptied')"
        )
    else:
        op.execute(f"{once} WHEN {when} BEGIN SELECT RAISE(ABORT, '{_ONCE}'); END")
