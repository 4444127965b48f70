"""Automations of the Prefect server, created and updated by name. Other automations are not changed."""

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

HEARTBEAT_S = 30  # Prefect's minimum, set for served runs and for workers
ZOMBIE_AFTER = timedelta(minutes=4)  # longer than Prefect's default heartbeat of 180 s
ABSENT_AFTER = timedelta(minutes=10)
_ALIVE = {
    "prefect.flow-run.Running",
    "prefect.flow-run.heartbeat",
}  # a run can end before its first heartbeat
_FINAL = ("Completed", "Failed", "Cancelled", "Crashed")
_RUNS = ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"})


def automations(deployments: Mapping[str, UUID]) -> list[AutomationCore]:
    """Return the automations for these deployments, given as name and id. Missing deployments get no automation."""
    wanted = [
        AutomationCore(
            name="rollout: end runs without a heartbeat",
            description="Marks a run whose process was killed as crashed. This frees its slot for the next run.",
            trigger=EventTrigger(
                posture=Posture.Proactive,
                after=_ALIVE,
                expect={*_ALIVE, *(f"prefect.flow-run.{state}" for state in _FINAL)},
                match=_RUNS,
                match_related=_related("tag", "prefect.tag.rollout"),
                for_each={"prefect.resource.id"},
                within=ZOMBIE_AFTER,
            ),
            actions=[ChangeFlowRunState(state=StateType.CRASHED, message="No heartbeat: its process has ended.")],
        )
    ]
    if "deliver-alerts" not in deployments:
        return wanted
    deliver = RunDeployment(source="selected", deployment_id=deployments["deliver-alerts"])
    wanted.append(
        AutomationCore(
            name="rollout: tell owners of a failed gate at once",
            description="Delivers alerts as soon as a gate fails, without waiting for the schedule.",
            trigger=EventTrigger(
                posture=Posture.Reactive,
                expect={GATE_FAILED},
                match=ResourceSpecification({"prefect.resource.id": "rollout.*"}),
            ),
            actions=[deliver],
        )
    )
    watched = {"shadow-run": "no shadow run", "ramp-tick": "no tick"}
    return wanted + [
        _absence(f"rollout: tell owners that {what} completes", deployments[name], deliver)
        for name, what in watched.items()
        if name in deployments
    ]


def put(client: SyncPrefectClient, deployments: Mapping[str, UUID]) -> list[str]:
    """Create or update the automations, and return one line per change.

    A disabled automation stays disabled.
    """
    done = []
    for wanted in automations(deployments):
        known = client.read_automations_by_name(wanted.name)
        if not known:
            client.create_automation(wanted)
            done.append(f"created the automation {wanted.name!r}")
        elif _normalized(known[0]) != _normalized(wanted):
            client.update_automation(known[0].id, wanted.model_copy(update={"enabled": known[0].enabled}))
            done.append(f"updated the automation {wanted.name!r}")
    return done


def _absence(name: str, deployment: UUID, deliver: RunDeployment) -> AutomationCore:
    completed = {"prefect.flow-run.Completed"}
    return AutomationCore(
        name=name,
        description="Delivers alerts, which also checks for overdue runs. Active from the first completed run.",
        trigger=EventTrigger(
            posture=Posture.Proactive,
            after=completed,
            expect=completed,
            match=_RUNS,
            match_related=_related("deployment", f"prefect.deployment.{deployment}"),
            within=ABSENT_AFTER,
        ),
        actions=[deliver],
    )


def _related(role: str, resource: str) -> ResourceSpecification:
    return ResourceSpecification({"prefect.resource.role": role, "prefect.resource.id": resource})


def _normalized(automation: AutomationCore) -> dict[str, Any]:
    """Return what an automation does, with sorted lists: the server returns sets in any order."""
    fields = automation.model_dump(mode="json", include={"description", "trigger", "actions"})
    return {name: _sorted(value) for name, value in fields.items()}


def _sorted(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _sorted(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        plain = [_sorted(each) for each in value]
        return sorted(plain) if all(isinstance(each, str) for each in plain) else plain
    return value
