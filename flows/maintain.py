"""Keep the database's months: made ahead, and dropped when they are old enough."""

from prefect import flow

from flows.runtime import one_line, open_runtime
from strategy_core.services.maintenance import maintain, summary_lines


@flow(flow_run_name="maintain the database")
@one_line
def maintain_database() -> str:
    """Make the months ahead, and drop those that ROLLOUT_KEEP_DAYS lets go of and no running rollout needs.

    It needs the role that owns the tables. Nobody waits for it: what is in use is left for the next night.
    """
    with open_runtime() as runtime:
        return "; ".join(summary_lines(maintain(runtime.engine, now=runtime.now, keep_days=runtime.settings.keep_days)))
