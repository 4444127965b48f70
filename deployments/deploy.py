"""`rollout deploy`: create or update work pools, deployments and automations on a Prefect server."""

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL

from deployments import automations
from deployments.serve import read_deployments, read_pools
from strategy_core.domain.errors import InvalidSetting, reason_of

_KEPT = {
    "concurrency_options",
    "description",
    "enforce_parameter_schema",
    "entrypoint",
    "job_variables",
    "parameter_openapi_schema",
    "parameters",
    "pull_steps",
    "tags",
    "work_pool_name",
    "work_queue_name",
}


def deploy(file: Path) -> list[str]:
    """Create or update work pools, deployments and automations. Return one line per change.

    Raises:
        InvalidSetting: the file is invalid, the Prefect server does not answer, or it refuses a request.
    """
    wanted = read_deployments(file)
    url = PREFECT_API_URL.value()
    if not url:
        raise InvalidSetting("PREFECT_API_URL", url, "the address of a Prefect server, as http://127.0.0.1:4200/api")
    try:
        with get_client(sync_client=True) as client:
            done = _put_pools(client, read_pools(file))
            before = _deployed(client, wanted)
            _prefect_deploy(file)
            after = _deployed(client, wanted)
            for name, each in after.items():
                if each != before.get(name):
                    done.append(f"{'updated' if name in before else 'created'} the deployment {name}")
            return done + automations.put(client, {name: each["id"] for name, each in after.items()})
    except httpx.HTTPError as error:
        raise InvalidSetting("PREFECT_API_URL", url, f"a server that accepts it: {reason_of(error)}") from None


def _put_pools(client: SyncPrefectClient, names: Iterable[str]) -> list[str]:
    done = []
    for name in names:
        try:
            client.read_work_pool(name)
        except ObjectNotFound:
            client.create_work_pool(WorkPoolCreate(name=name, type="process"))
            done.append(f"created the work pool {name}")
    return done


def _prefect_deploy(file: Path) -> None:
    """Deploy with Prefect's own command, so that workers get exactly what Prefect makes of the file."""
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(file)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  our own interpreter
    if run.returncode:
        raise InvalidSetting(
            "prefect.yaml", str(file), f"a file that Prefect accepts: {_one_line(run.stdout + run.stderr)}"
        )


def _deployed(client: SyncPrefectClient, wanted: Iterable[RunnerDeployment]) -> dict[str, dict[str, Any]]:
    """Return the deployments as the server has them, without timestamps."""
    found = {}
    for each in wanted:
        try:
            held = client.read_deployment_by_name(each.full_name)
        except ObjectNotFound:
            continue
        limit = held.global_concurrency_limit.limit if held.global_concurrency_limit else None
        kept = held.model_dump(mode="json", include=_KEPT)
        schedules = [(schedule.active, schedule.schedule.model_dump(mode="json")) for schedule in held.schedules]
        found[each.name] = kept | {"id": held.id, "limit": limit, "schedules": schedules}
    return found


def _one_line(text: str) -> str:
    return " ".join(text.split())[-500:]
