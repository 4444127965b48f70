"""The flow that maintains monthly database partitions."""

from prefect import flow

from flows.runtime import one_line, open_runtime
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
