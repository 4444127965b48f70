"""prefect.yaml as served. test_up compares it with `prefect deploy` on a server."""

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from deployments import prefect_yaml
from deployments.serve import read_deployments
from strategy_core.domain.errors import InvalidSetting
from strategy_core.domain.plan import Plan


def test_what_moves_rollouts_is_scheduled_and_what_owners_do_is_not() -> None:
    scheduled = {each.name: each.schedules for each in read_deployments(prefect_yaml()) if "scheduled" in each.tags}
    owners = [each for each in read_deployments(prefect_yaml()) if "owner" in each.tags]

    assert set(scheduled) == {
        "shadow-run",
        "sample-metrics",
        "drain",
        "ramp-tick",
        "deliver-alerts",
        "race-tick",
        "nightly-comparison",
        "reports",
        "maintain-database",
        "verify-audit",
    }
    assert [getattr(schedule.schedule, "cron", None) for schedule in scheduled["shadow-run"] or []] == ["* * * * *"]
    assert [getattr(schedule.schedule, "interval", None) for schedule in scheduled["ramp-tick"] or []] == [
        timedelta(minutes=1)
    ]
    assert not any(each.schedules for each in owners)
    assert {each.name for each in owners} == {
        "register-version",
        "replay",
        "whatif",
        "retrain",
        "compare",
        "plan",
        "start-canary",
        "set-canary-percent",
        "approve-stage",
        "decide",
        "pause",
        "resume",
        "exclude",
        "freeze",
        "unfreeze",
        "exclude-users",
        "end-exclusions",
        "cancel-start",
        "set-toggle",
        "remove-toggle-rules",
        "activate",
        "promote",
        "retire",
        "start-race",
        "close-race",
        "hand-over",
        "flatten",
        "rollback",
        "acknowledge-alert",
    }


@pytest.mark.parametrize("name", ["ramp-tick", "drain", "deliver-alerts"])
def test_what_protects_and_what_tells_wait_for_no_other_run(name: str) -> None:
    """A run that was killed, or a Redis that was away, holds its place in a limit for minutes."""
    (deployment,) = (each for each in read_deployments(prefect_yaml()) if each.name == name)

    assert deployment.concurrency_limit is None
    assert deployment.concurrency_options is None


def test_every_deployment_and_every_parameter_is_described() -> None:
    for each in read_deployments(prefect_yaml()):
        assert each.description, each.name
        for name, schema in each._parameter_openapi_schema.properties.items():
            assert schema.get("description"), f"{each.name}: {name}"


def test_an_owners_form_reads_from_what_must_be_given_to_what_may_be() -> None:
    for each in read_deployments(prefect_yaml()):
        if "owner" not in each.tags:
            continue
        schema = each._parameter_openapi_schema
        fields = sorted(schema.properties, key=lambda name: int(schema.properties[name]["position"]))
        assert fields[: len(schema.required)] == schema.required, each.name
        for name, field in schema.properties.items():
            assert field["title"][0].isupper(), f"{each.name}: {name}"
            assert name in schema.required or field["default"] is not None, f"{each.name}: {name}"
        assert "Args:" not in (each.description or "")


def test_a_plan_in_a_form_is_the_standard_one_or_has_every_field() -> None:
    (schema,) = (
        each._parameter_openapi_schema for each in read_deployments(prefect_yaml()) if each.name == "start-canary"
    )
    field = schema.properties["plan"]
    usual, named, own = field["anyOf"]

    assert field["default"] == "usual"
    assert (usual["enum"], named["type"]) == (["usual"], "string")
    assert own["title"] == "Custom plan"
    assert {name: each["default"] for name, each in own["properties"].items()} == Plan().model_dump(mode="json")


def test_forms_and_api_know_the_bounds_and_the_choices() -> None:
    schemas = {each.name: each._parameter_openapi_schema for each in read_deployments(prefect_yaml())}

    percent = schemas["set-canary-percent"].properties["percent"]
    assert (percent["minimum"], percent["maximum"]) == (0, 100)
    assert schemas["decide"].properties["choice"]["enum"] == ["extend", "advance", "rollback"]
    assert schemas["register-version"].properties["status"]["enum"] == ["shadow", "canary", "active", "retired"]
    assert "1h" in schemas["register-version"].properties["timeframe"]["enum"]
    assert schemas["start-canary"].definitions["Stage"]["properties"]["percent"]["maximum"] == 100
    for name in ("rollback", "decide", "activate", "promote"):
        assert {"owner", "reason"} <= set(schemas[name].required)
        assert schemas[name].properties["reason"]["minLength"] == 1


@pytest.mark.parametrize(
    ("given", "meant"),
    [("collision_strategy: CANCEL_NEW", "collision_strategy: CANCEL_OLD"), ("tags:", "taggs:"), ("name: shadow", ":")],
)
def test_a_file_that_would_be_served_otherwise_than_deployed_is_refused(tmp_path: Path, given: str, meant: str) -> None:
    file = tmp_path / "prefect.yaml"
    file.write_text(prefect_yaml().read_text().replace(given, meant))

    with pytest.raises(InvalidSetting, match=r"prefect\.yaml"):
        read_deployments(file)


@pytest.mark.full
@pytest.mark.parametrize(("ends", "code"), [("pass", 0), ("raise OSError('gone')", 1)])
def test_a_thread_that_waits_for_ever_keeps_no_process(ends: str, code: int) -> None:
    """Otherwise a failed process would seem to run, and `up` would not end."""
    script = f"""
import threading
from deployments.serve import force_exit
threading.Thread(target=threading.Event().wait).start()
with force_exit(within_s=0.1):
    {ends}
"""

    ended = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=60)

    assert ended.returncode == code
    assert ("OSError: gone" in ended.stderr) == (code == 1)
