"""Calls of assistants may be deleted once they are 90 days older than the newest."""

from alembic import op

revision = "v0019"
down_revision = "v0018"
branch_labels = None
depends_on = None

_WHY = "agent_call is evidence: only rows 90 days older than the newest are deleted"
_NEWEST = "(SELECT {at} FROM agent_call ORDER BY id DESC LIMIT 1)"


def upgrade() -> None:
    trigger = "CREATE TRIGGER refuse_delete_agent_call BEFORE DELETE ON agent_call FOR EACH ROW"
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP TRIGGER refuse_delete_agent_call ON agent_call")
        op.execute(
            "CREATE FUNCTION refuse_recent_agent_call() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            f"IF OLD.at > {_NEWEST.format(at='at')} - interval '90 days' THEN "
            f"RAISE EXCEPTION '{_WHY}' USING ERRCODE = 'integrity_constraint_violation'; END IF; RETURN OLD; END $$"
        )
        op.execute(f"{trigger} EXECUTE FUNCTION refuse_recent_agent_call()")
    else:
        op.execute("DROP TRIGGER refuse_delete_agent_call")
        oldest = _NEWEST.format(at="datetime(at, '-90 days')")
        op.execute(f"{trigger} WHEN datetime(OLD.at) > {oldest} BEGIN SELECT RAISE(ABORT, '{_WHY}'); END")
