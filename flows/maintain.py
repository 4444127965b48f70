"""Flows that maintain monthly database partitions, and verify and export the audit trail."""

from prefect import flow

from flows.runtime import one_line, open_runtime
from strategy_core.services.audit import anchor_trail
from strategy_core.services.maintenance import maintain, summary_lines


@flow(flow_run_name="maintain the database")
@one_line
def maintain_database() -> str:
    """Create upcoming monthly partitions and drop expired ones (PostgreSQL only).

    ROLLOUT_KEEP_DAYS sets when a partition expires. The database role must own the tables. A partition that is in use
    is left for the next night.
    """
    with open_runtime() as runtime:
        return "; ".join(summary_lines(maintain(runtime.engine, now=runtime.now, keep_days=runtime.settings.keep_days)))


@flow(flow_run_name="verify the audit trail")
@one_line
def verify_audit() -> str:
    """Verify the audit trail and all rows that follow from it, and write a signed export.

    The export needs ROLLOUT_AUDIT_KEY_FILE and ROLLOUT_AUDIT_FOLDER, and the trail must continue the newest export in
    that folder. If the trail does not hold, a critical alert is raised and the run fails.
    """
    with open_runtime() as runtime:
        settings = runtime.settings
        return anchor_trail(
            runtime.engine, now=runtime.now, key_file=settings.audit_key_file, folder=settings.audit_folder
        )
