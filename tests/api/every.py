"""The routes by what holds of them, and the one form of a refusal: for tests of every route."""

from typing import Any

import pytest

from strategy_core.api.problems import MEDIA_TYPE
from strategy_core.api.routes import PREFIX
from tests.api.asking import SAMPLES, Api, Sample

OPEN = {"health"}
GUARDED = {name: sample for name, sample in SAMPLES.items() if name not in OPEN}
CHANGES = {name: sample for name, sample in SAMPLES.items() if sample.changes}
ABOUT_ONE = {
    name: sample
    for name, sample in GUARDED.items()
    if name
    not in (
        "read_routing",
        "read_toggles",
        "metrics",
    )  # of all strategies: they leave out what the token does not cover
}
NO_CHANGE_OF_A_STRATEGY = (
    "report_outcomes",
    "reconcile",
    "replay",
    "acknowledge",
    "reject_proposal",
)  # evidence, and what an owner knows of
ROLLBACKS = ("roll_back_rollout", "roll_back_strategy", "roll_back_on_alerts")
OURS = {  # whose body is of this API's own form
    name: sample for name, sample in SAMPLES.items() if sample.json is not None and name != "roll_back_on_alerts"
}
UNCONDITIONAL = ("register", "approve_proposal", *NO_CHANGE_OF_A_STRATEGY, *ROLLBACKS)
NOBODY = "11111111-1111-4111-8111-111111111111"


def each(samples: dict[str, Sample]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("name", list(samples))


def refused(response: Any, status: int) -> dict[str, Any]:
    """Return the problem document that this answer must be."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == MEDIA_TYPE
    problem: dict[str, Any] = response.json()
    assert problem["status"] == status
    assert problem["type"].startswith("/problems/")
    assert problem["instance"].startswith(PREFIX)
    assert problem["title"]
    assert problem["detail"]
    return problem


def fields(problem: dict[str, Any]) -> list[str]:
    return [each["field"] for each in problem["errors"]]


def operations(api: Api) -> dict[str, dict[str, Any]]:
    """Return the operations of the API by id, without deprecated aliases."""
    found = {}
    for path, methods in api.app.openapi()["paths"].items():
        for method, operation in methods.items():
            if not operation.get("deprecated"):
                found[operation["operationId"]] = {**operation, "method": method.upper(), "path": path}
    return found
