"""What a running installation keeps: owners' requests, service tokens, incidents, failed runs and a replay's clock.

- What owners ask for in forms is written down before it is done, so that it cannot be lost with a process.
- Service tokens are listed: a row is not edited or deleted, and is revoked once.
- An incident has one alert at its start and one at its end. Of each version the newest failed run is kept.
- Every process that opens the database of a replayed market uses its clock.
"""

import sqlalchemy as sa
from alembic import op

from strategy_core.store.migrations.versions.v0001_first_schema import JSON, TIME, refuse

revision = "v0009"
down_revision = "v0008"
branch_labels = None
depends_on = None

_TOKEN = "service_token"  # noqa: S105  a table
_FROZEN = ("id", "name", "role", "strategies", "read_only", "issued_at", "expires_at", "issued_by")
_REVOCATION = ("revoked_at", "revoked_by", "revoked_because")
_ONCE = "a service token is revoked once"
_OPEN = sa.text("ended_at IS NULL")


def upgrade() -> None:
    _keep_requests()
    _keep_tokens()
    _keep_incidents()
    _keep_clock()


def _keep_requests() -> None:
    op.create_table(
        "owner_request",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("parameters", JSON, nullable=False),
        sa.Column("signed_in", sa.String(), nullable=False),
        sa.Column("asked_at", TIME, nullable=False),
        sa.Column("taken_by", sa.String(), nullable=False),
        sa.Column("taken_until", TIME, nullable=True),
        sa.Column("ended_at", TIME, nullable=True),
        sa.Column("failed", sa.Boolean(), nullable=False),
        sa.Column("line", sa.Text(), nullable=False),
        sa.CheckConstraint("ended_at IS NOT NULL OR (NOT failed AND line = '')", name="ck_request_ended"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "ix_request_open",
        "owner_request",
        ["taken_until"],
        sqlite_where=_OPEN,
        postgresql_where=_OPEN,
    )


def _keep_tokens() -> None:
    op.create_table(
        _TOKEN,
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
    refuse(on_postgresql, _TOKEN, f"UPDATE OF {', '.join(_FROZEN)}", f"{_TOKEN} is never edited: issue another")
    refuse(on_postgresql, _TOKEN, "DELETE", f"{_TOKEN} is never deleted")
    when = "OLD.revoked_at IS NOT NULL"
    once = f"CREATE TRIGGER revoke_once BEFORE UPDATE OF {', '.join(_REVOCATION)} ON {_TOKEN} FOR EACH ROW"
    if on_postgresql:
        op.execute(f"{once} WHEN ({when}) EXECUTE FUNCTION refuse_change('{_ONCE}')")
        op.execute(
            f"CREATE TRIGGER refuse_truncate_{_TOKEN} BEFORE TRUNCATE ON {_TOKEN} FOR EACH STATEMENT "
            f"EXECUTE FUNCTION refuse_change('{_TOKEN} is never emptied')"
        )
    else:
        op.execute(f"{once} WHEN {when} BEGIN SELECT RAISE(ABORT, '{_ONCE}'); END")


def _keep_incidents() -> None:
    op.create_table(
        "incident",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("cause", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("started_at", TIME, nullable=False),
        sa.Column("seen_at", TIME, nullable=False),
        sa.Column("ended_at", TIME, nullable=True),
        sa.Column("affected", JSON, nullable=False),
        sa.Column("alerted", JSON, nullable=False),
        sa.Column("alerted_at", TIME, nullable=False),
        sa.Column("alerts", sa.Integer(), nullable=False),
        sa.CheckConstraint("alerts >= 1", name="ck_incident_alerts"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "failed_run",
        sa.Column("strategy_name", sa.String(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("hit", sa.Boolean(), nullable=False),
        sa.Column("host_fault", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["strategy_name", "version"],
            ["strategy_version.strategy_name", "strategy_version.version"],
            name="fk_failed_run_version",
        ),
        sa.PrimaryKeyConstraint("strategy_name", "version"),
    )
    op.create_index("one_open_incident", "incident", ["cause"], unique=True, sqlite_where=_OPEN, postgresql_where=_OPEN)


def _keep_clock() -> None:
    op.create_table(
        "replay_clock",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("replay_from", TIME, nullable=False),
        sa.Column("started_at", TIME, nullable=True),
        sa.Column("speed", sa.Float(), nullable=False),
        sa.CheckConstraint("id = 1", name="ck_one_clock"),
        sa.CheckConstraint("speed > 0 AND speed <= 1000000", name="ck_clock_speed"),
        sa.PrimaryKeyConstraint("id"),
    )
