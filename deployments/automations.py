"""What the Prefect server does by itself: automations kept by name, which leave every other automation alone."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState, RunDeployment
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

from flows.events import GATE_FAILED

HEARTBEAT_S = 30  # Prefect's least; said to every run, served or in a worker
ZOMBIE_AFTER = timedelta(minutes=4)  # longer than Prefect's own heartbeat of 180 s: no healthy run is given up
ABSENT_AFTER = timedelta(minutes=10)
_ALIVE = {"prefect.flow-run.Running", "prefect.flow-run.heartbeat"}  # it may be killed before its first heartbeat
_FINAL = ("Completed", "Failed", "Cancelled", "Crashed")
_RUNS = ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"})


def automations(deployments: Mapping[str, UUID]) -> list[AutomationCore]:
    """Return what is wanted, given the deployments' ids by their names; less where one is not there."""
    wanted = [
        AutomationCore(
            name="rollout: end runs without a heartbeat",
            description="A run whose process was killed is marked as crashed, which frees its place for the next one.",
            trigger=EventTrigger(
                posture=Posture.Proactive,
                after=_ALIVE,
                expect={*_ALIVE, *(f"prefect.flow-run.{state}" for state in _FINAL)},
                match=_RUNS,
                match_related=_related("tag", "prefect.tag.rollout"),
                for_each={"prefect.resource.id"},
                within=ZOMBIE_AFTER,
            ),
            actions=[ChangeFlowRunState(state=StateType.CRASHED, message="No heartbeat: its process is gone.")],
        )
    ]
    if "deliver-alerts" not in deployments:
        return wanted
    tell = RunDeployment(source="selected", deployment_id=deployments["deliver-alerts"])
    wanted.append(
        AutomationCore(
            name="rollout: tell owners of a failed gate at once",
            description="Delivers alerts as soon as a gate has failed, without waiting for the minute.",
            trigger=EventTrigger(
                posture=Posture.Reactive,
                expect={GATE_FAILED},
                match=ResourceSpecification({"prefect.resource.id": "rollout.*"}),
            ),
            actions=[tell],
        )
    )
    watched = {"shadow-run": "no shadow run", "ramp-tick": "no tick"}
    return wanted + [
        _absence(f"rollout: tell owners that {what} completes", deployments[name], tell)
        for name, what in watched.items()
        if name in deployments
    ]


def put(client: SyncPrefectClient, deployments: Mapping[str, UUID]) -> list[str]:
    """Create or update what is wanted, and return what was done, a line each; nothing when all of it stood already.

    One that somebody has switched off stays off.
    """
    done = []
    for wanted in automations(deployments):
        known = client.read_automations_by_name(wanted.name)
        if not known:
            client.create_automation(wanted)
            done.append(f"created the automation {wanted.name!r}")
        elif _said(known[0]) != _said(wanted):
            client.update_automation(known[0].id, wanted.model_copy(update={"enabled": known[0].enabled}))
            done.append(f"updated the automation {wanted.name!r}")
    return done


def _absence(name: str, deployment: UUID, tell: RunDeployment) -> AutomationCore:
    completed = {"prefect.flow-run.Completed"}
    return AutomationCore(
        name=name,
        description="It arms with the first completed run; the runs that deliver alerts look by themselves as well.",
        trigger=EventTrigger(
            posture=Posture.Proactive,
            after=completed,
            expect=completed,
            match=_RUNS,
            match_related=_related("deployment", f"prefect.deployment.{deployment}"),
            within=ABSENT_AFTER,
        ),
        actions=[tell],
    )


def _related(role: str, resource: str) -> ResourceSpecification:
    return ResourceSpecification({"prefect.resource.role": role, "prefect.resource.id": resource})


def _said(automation: AutomationCore) -> dict[str, Any]:
    """Return what an automation does, in one spelling: the server sorts no set, and lists what it was given once."""
    said = automation.model_dump(mode="json", include={"description", "trigger", "actions"})
    return {name: _plain(value) for name, value in said.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        plain = [_plain(each) for each in value]
        return sorted(plain) if all(isinstance(each, str) for each in plain) else plain
    return value
