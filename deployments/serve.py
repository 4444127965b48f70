"""Serve every deployment of prefect.yaml in one process; `prefect deploy --all` reads the same file for workers."""

import sys
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import yaml
from prefect import Flow, serve
from prefect.client.schemas.objects import ConcurrencyLimitConfig
from prefect.deployments.runner import RunnerDeployment
from prefect.flows import load_flow_from_entrypoint
from prefect.schedules import Cron, Interval, Schedule
from prefect.types.entrypoint import EntrypointType
from pydantic import BaseModel, ConfigDict, ValidationError

from deployments.files import prefect_yaml
from strategy_core.domain.errors import InvalidSetting


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


class DeploymentEntry(_Entry):
    name: str
    entrypoint: str
    tags: list[str]
    schedules: list[ScheduleEntry] = []
    parameters: dict[str, Any] = {}
    concurrency_limit: ConcurrencyLimitConfig | None = None
    work_pool: dict[Literal["name"], str]  # a served deployment has none


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
    try:
        entries = _File.model_validate(yaml.safe_load(file.read_text())).deployments
    except (ValidationError, yaml.YAMLError, OSError) as error:
        raise InvalidSetting("prefect.yaml", str(file), " ".join(str(error).split())) from None
    return [_deployment(entry) for entry in entries]


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


def main(arguments: Sequence[str]) -> None:
    """Serve the deployments of the file named, or of the project's own."""
    serve(*read_deployments(Path(arguments[0]) if arguments else prefect_yaml()))


if __name__ == "__main__":
    main(sys.argv[1:])
