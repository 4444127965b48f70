"""Serve the deployments of prefect.yaml in one process. `rollout deploy` deploys the same file for workers."""

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import Collection, Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast
from uuid import UUID

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
from prefect.flows import load_flow_from_entrypoint
from prefect.runner import Runner
from prefect.schedules import Cron, Interval, Schedule
from prefect.states import Crashed
from prefect.types.entrypoint import EntrypointType
from pydantic import BaseModel, ConfigDict, ValidationError

from deployments import automations, prefect_yaml
from strategy_core.domain.errors import InvalidSetting, reason_of

LEFT_WITHIN_S = 10.0
AT_ONCE = 12  # concurrent runs: a rollback must find a free slot beside the scheduled runs


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
    keep its slot, and the server would cancel later runs.
    """
    active = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
    found = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=active))),
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=list(deployments))),
    )
    for run in found:
        client.set_flow_run_state(run.id, Crashed(message="Its process was killed."))
    return len(found)


def main(arguments: Sequence[str]) -> None:
    """Serve the deployments of a file, by default the packaged one. `--alone`: the server has no other runners."""
    files = [each for each in arguments if each != "--alone"]
    served = read_deployments(Path(files[0]) if files else prefect_yaml())
    runner = Runner(heartbeat_seconds=automations.HEARTBEAT_S, limit=AT_ONCE)
    ids = {
        each.name: cast("UUID", runner.add_deployment(each)) for each in served
    }  # returns a coroutine only inside an event loop
    with get_client(sync_client=True) as client:
        if "--alone" in arguments:
            end_abandoned(client, ids.values())
        automations.put(client, ids)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(runner.start())


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
        main(sys.argv[1:])
