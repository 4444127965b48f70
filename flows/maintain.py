"""Flows that maintain monthly database partitions and Prefect's old runs, and verify and export the audit trail."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from time import monotonic

import httpx
import structlog
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterTags,
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterEndTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import TERMINAL_STATES
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from flows.runtime import one_line, open_runtime
from strategy_core.services.audit import anchor_trail
from strategy_core.services.maintenance import maintain, summary_lines

KEPT = {"scheduled": timedelta(days=7), "owner": timedelta(days=90)}  # finished runs, by the tag of their deployment
AT_ONCE = 50  # runs in one request, the most that a server accepts
PATIENCE_S = 900.0  # for one night. A server that was never cleaned up takes some nights

log = structlog.get_logger(__name__)


@flow(flow_run_name="maintain the database")
@one_line
def maintain_database() -> str:
    """Create upcoming monthly partitions and drop expired ones (PostgreSQL only), and delete old calls and flow runs.

    ROLLOUT_KEEP_DAYS sets when a partition expires. The database role must own the tables. A partition that is in use
    is left for the next night. Finished runs of schedules are deleted after 7 days, those of owners and calls of
    assistants after 90 days.
    """
    try:
        with open_runtime() as runtime:
            done = summary_lines(maintain(runtime.engine, now=runtime.now, keep_days=runtime.settings.keep_days))
    finally:
        pruned = prune_own_runs()
    return "; ".join([*done, *pruned])


def prune_own_runs() -> list[str]:
    """Delete old runs from the Prefect server of this run. Return a line about it, or none outside a run."""
    if not flow_run.id or not PREFECT_API_URL.value():
        return []
    try:
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}), get_client(sync_client=True) as client:
            deleted = prune_runs(client, now=datetime.now(UTC))  # real time: Prefect knows no other
    except Exception as error:  # noqa: BLE001  it must not affect the database's own maintenance
        log.warning("maintain.runs_not_deleted", error=type(error).__name__)
        return [f"old flow runs are left for the next night: {type(error).__name__}"]
    return [f"{deleted:,} old flow runs deleted"]


def prune_runs(client: SyncPrefectClient, *, now: datetime, within_s: float = PATIENCE_S) -> int:
    """Delete finished runs of our deployments that ended longer ago than `KEPT`, and return how many.

    Runs of other deployments are not touched. It stops after *within_s* seconds.
    """
    deadline, deleted = monotonic() + within_s, 0
    for old in _old_runs(client, now):
        while monotonic() < deadline:
            found = client._client.post(
                "/flow_runs/bulk_delete", json={"flow_runs": old, "limit": AT_ONCE}, timeout=httpx.Timeout(30.0)
            )
            count = len(found.raise_for_status().json()["deleted"])
            deleted += count
            if not count:
                break
    return deleted


def _old_runs(client: SyncPrefectClient, now: datetime) -> Iterator[dict[str, object]]:
    """Yield, per tag, the filter for the runs to delete."""
    for tag, kept in KEPT.items():
        tags = DeploymentFilterTags(all_=["rollout", tag])
        ours = client.read_deployments(deployment_filter=DeploymentFilter(tags=tags))
        if not ours:
            continue  # a filter without a deployment would mean the runs of all deployments
        yield FlowRunFilter(
            deployment_id=FlowRunFilterDeploymentId(any_=[each.id for each in ours]),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(TERMINAL_STATES))),
            end_time=FlowRunFilterEndTime(before_=now - kept),
        ).model_dump(mode="json", exclude_unset=True)


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
