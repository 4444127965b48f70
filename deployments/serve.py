"""The deployments of prefect.yaml: read, served by `rollout up`, and run by `rollout clock`."""

import contextlib
import os
import sys
import threading
from collections.abc import Collection, Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import httpx
import yaml
from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import ConcurrencyLimitConfig, StateType
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound
from prefect.flows import load_flow_from_entrypoint
from prefect.schedules import Cron, Interval, Schedule
from prefect.settings import PREFECT_API_URL
from prefect.states import Crashed
from prefect.types.entrypoint import EntrypointType
from pydantic import BaseModel, ConfigDict, ValidationError

from deployments import automations
from deployments.clock import Served, run_clock
from strategy_core.domain.errors import InvalidSetting, reason_of

LEFT_WITHIN_S = 10.0


class _Entry(BaseModel):
    """A part of prefect.yaml. Unknown keys are refused, because `prefect deploy` would use them."""

    model_config = ConfigDict(extra="forbid")


class ScheduleEntry(_Entry):
    cron: str | None = None
    interval: float | None = None  # seconds
    anchor_date: datetime | None = None
    timezone: str = "UTC"

    def schedule(self) -> Schedule:
        if self.cron is not None:
            return Cron(self.cron, timezone=self.timezone)
        return Interval(timedelta(seconds=self.interval or 0), anchor_date=self.anchor_date, timezone=self.timezone)


class WorkPoolEntry(_Entry):
    name: str
    job_variables: dict[str, Any] = {}
    work_queue_name: str | None = None


class DeploymentEntry(_Entry):
    name: str
    entrypoint: str
    description: str | None = None  # default: the docstring of the flow
    tags: list[str]
    schedules: list[ScheduleEntry] = []
    parameters: dict[str, Any] = {}
    concurrency_limit: ConcurrencyLimitConfig | None = None
    work_pool: WorkPoolEntry  # unused when served

    @property
    def every_s(self) -> float | None:
        """The seconds between its runs if it is due every minute or more often, otherwise None."""
        due = [60.0 if each.cron == "* * * * *" else each.interval for each in self.schedules]
        often = [each for each in due if each is not None and each <= 60]
        return min(often, default=None)


class _File(_Entry):
    name: str
    pull: list[dict[str, Any]]
    definitions: dict[str, Any] = {}
    deployments: list[DeploymentEntry]


def read_deployments(file: Path) -> list[RunnerDeployment]:
    """Return the deployments of *file*, as `prefect deploy --all` makes them, except for the work pool.

    Raises:
        InvalidSetting: the file cannot be read or is invalid.
    """
    return [_deployment(entry) for entry in _read(file).deployments]


def read_pools(file: Path) -> list[str]:
    """Return the names of the work pools in *file*."""
    return sorted({entry.work_pool.name for entry in _read(file).deployments})


def _read(file: Path) -> _File:
    try:
        return _File.model_validate(yaml.safe_load(file.read_text()))
    except (ValidationError, yaml.YAMLError, OSError) as error:
        raise InvalidSetting("prefect.yaml", str(file), reason_of(error)) from None


def _deployment(entry: DeploymentEntry) -> RunnerDeployment:
    flow: Flow[..., Any] = load_flow_from_entrypoint(entry.entrypoint)
    return RunnerDeployment.from_flow(
        flow,
        entry.name,
        description=entry.description,
        schedules=[schedule.schedule() for schedule in entry.schedules],
        parameters=entry.parameters,
        tags=entry.tags,
        concurrency_limit=entry.concurrency_limit,
        paused=False,  # a deployment is paused while it is not served: resume it after a restart
        entrypoint_type=EntrypointType.MODULE_PATH,  # a file path would load the module a second time
    )


def end_abandoned(client: SyncPrefectClient, deployments: Collection[UUID]) -> int:
    """Mark the active runs of these deployments as crashed, and return how many.

    Call it only before the sole process that serves them starts its runs. A run that a killed process left behind would
    keep its slot, and the server would cancel later runs. What an owner asked for in such a run is taken over.
    """
    active = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
    found = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=active))),
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=list(deployments))),
    )
    for run in found:
        client.set_flow_run_state(run.id, Crashed(message="Its process was killed."))
    return len(found)


def put(file: Path, *, only: Collection[str] | None = None, schedules: bool = True) -> dict[str, UUID]:
    """Create or update the deployments of *file* without a work pool, and return their ids by name.

    Args:
        only: the names of the wanted ones. Default: all.
        schedules: whether they are scheduled.
    """
    ids = {}
    for each in read_deployments(file):
        if only is None or each.name in only:
            if not schedules:
                each.schedules = []
            ids[each.name] = cast("UUID", each.apply())  # a coroutine only inside an event loop
    return ids


def serve(file: Path, *, alone: bool) -> None:
    """Create or update the deployments of *file*, and run them.

    Args:
        alone: no other process runs deployments of this server.
    """
    ids = put(file)
    with get_client(sync_client=True) as client:
        if alone:
            end_abandoned(client, ids.values())
        automations.put(client, ids)
    run_clock(deployed(file, ids))


def run_deployed(file: Path, *, alive: Path | None = None) -> None:
    """Run the deployments of *file* that `rollout deploy` has brought to the server.

    Those with a work queue of their own are left to the worker of that queue.

    Args:
        alive: a file to touch every few seconds.

    Raises:
        InvalidSetting: the server does not answer, or has none of them.
    """
    left = {entry.name for entry in _read(file).deployments if entry.work_pool.work_queue_name is not None}
    url, ids = PREFECT_API_URL.value(), {}
    if not url:
        raise InvalidSetting("PREFECT_API_URL", url, "the address of a Prefect server, as http://127.0.0.1:4200/api")
    try:
        with get_client(sync_client=True) as client:
            for each in read_deployments(file):
                with contextlib.suppress(ObjectNotFound):
                    ids[each.name] = client.read_deployment_by_name(each.full_name).id
    except httpx.HTTPError as error:
        raise InvalidSetting("PREFECT_API_URL", url, f"a server that answers ({type(error).__name__})") from None
    if not ids:
        raise InvalidSetting("PREFECT_API_URL", url, "a server with the deployments: run `rollout deploy`")
    with force_exit():
        run_clock([each for each in deployed(file, ids) if each.name not in left], alive=alive)


def deployed(file: Path, ids: Mapping[str, UUID]) -> list[Served]:
    """Return the deployments of *file* that are on the server, with their *ids*."""
    found = []
    for entry in _read(file).deployments:
        if entry.name in ids:
            flow: Flow[..., Any] = load_flow_from_entrypoint(entry.entrypoint)
            found.append(Served(ids[entry.name], entry.name, flow, entry.every_s))
    return found


@contextlib.contextmanager
def force_exit(within_s: float = LEFT_WITHIN_S) -> Iterator[None]:
    """End this process at most *within_s* seconds after the block, also if other threads still run.

    Prefect's runner sometimes leaves a thread that waits for work. The interpreter would wait for it, and `rollout up`
    would take a failed process for a running one.
    """
    code = 1
    try:
        yield
        code = 0
    finally:
        last = threading.Timer(within_s, os._exit, [code])
        last.daemon = True
        last.start()


if __name__ == "__main__":
    with force_exit():
        serve(Path(sys.argv[1]), alone="--alone" in sys.argv[2:])
