"""Serve every deployment of prefect.yaml in one process; `rollout deploy` reads the same file for workers."""

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
from strategy_core.domain.errors import InvalidSetting

LEFT_WITHIN_S = 10.0
AT_ONCE = 12  # runs: where five scheduled ones take a minute each, a rollback must not wait for a place


class _Entry(BaseModel):
    """What is understood of prefect.yaml; a key that only `prefect deploy` would follow is refused, not passed over."""

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
    tags: list[str]
    schedules: list[ScheduleEntry] = []
    parameters: dict[str, Any] = {}
    concurrency_limit: ConcurrencyLimitConfig | None = None
    work_pool: WorkPoolEntry  # a served deployment has none


class _File(_Entry):
    name: str
    pull: list[dict[str, Any]]
    definitions: dict[str, Any] = {}
    deployments: list[DeploymentEntry]


def read_deployments(file: Path) -> list[RunnerDeployment]:
    """Return the deployments that *file* describes, as `prefect deploy --all` would make them, but for the work pool.

    Raises:
        InvalidSetting: it is not such a file.
    """
    return [_deployment(entry) for entry in _read(file).deployments]


def read_pools(file: Path) -> list[str]:
    """Return the work pools that *file* names."""
    return sorted({entry.work_pool.name for entry in _read(file).deployments})


def _read(file: Path) -> _File:
    try:
        return _File.model_validate(yaml.safe_load(file.read_text()))
    except (ValidationError, yaml.YAMLError, OSError) as error:
        raise InvalidSetting("prefect.yaml", str(file), " ".join(str(error).split())) from None


def _deployment(entry: DeploymentEntry) -> RunnerDeployment:
    flow: Flow[..., Any] = load_flow_from_entrypoint(entry.entrypoint)
    return RunnerDeployment.from_flow(
        flow,
        entry.name,
        schedules=[schedule.schedule() for schedule in entry.schedules],
        parameters=entry.parameters,
        tags=entry.tags,
        concurrency_limit=entry.concurrency_limit,
        paused=False,  # they are paused while nobody serves them: a restart must say that they go on
        entrypoint_type=EntrypointType.MODULE_PATH,  # the path form would load a twin of the module
    )


def end_abandoned(client: SyncPrefectClient, deployments: Collection[UUID]) -> int:
    """Mark as crashed what is said to run of these deployments, and return how many; for whoever alone runs them.

    Left by a process that was killed, such a run would keep its place, and the server would cancel every later one.
    """
    active = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
    found = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=active))),
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=list(deployments))),
    )
    for run in found:
        client.set_flow_run_state(run.id, Crashed(message="The process that ran it was killed."))
    return len(found)


def main(arguments: Sequence[str]) -> None:
    """Serve the deployments of the file named, or of the project's own; `--alone` says that nobody else runs them."""
    files = [each for each in arguments if each != "--alone"]
    served = read_deployments(Path(files[0]) if files else prefect_yaml())
    runner = Runner(heartbeat_seconds=automations.HEARTBEAT_S, limit=AT_ONCE)
    ids = {each.name: cast("UUID", runner.add_deployment(each)) for each in served}  # a coroutine in a loop alone
    with get_client(sync_client=True) as client:
        if "--alone" in arguments:
            end_abandoned(client, ids.values())
        automations.put(client, ids)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(runner.start())


@contextlib.contextmanager
def force_exit(within_s: float = LEFT_WITHIN_S) -> Iterator[None]:
    """End this process soon after what is inside, whoever else still runs in it.

    A thread that Prefect's runner leaves behind now and then waits for ever for work, and the interpreter for it: what
    was asked to end would stay, and what failed would not be started again.
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
