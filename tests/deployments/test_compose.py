"""compose.yaml and the image: named commands, variables and paths exist, and no service is more open than needed."""

import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from prefect.cli._app import _app as prefects_app
from prefect.settings import Settings as PrefectSettings
from prefect.settings.legacy import _get_valid_setting_names
from prefect_redis.client import RedisMessagingSettings
from pydantic_settings import BaseSettings

from strategy_core.api.settings import ApiSettings
from strategy_core.cli import app
from strategy_core.settings import Settings

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "deployments"
FILE = FOLDER / "compose.yaml"
COMPOSE: dict[str, Any] = yaml.safe_load(FILE.read_text())
PREFECT: dict[str, Any] = yaml.safe_load((ROOT / "prefect.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: each for name, each in SERVICES.items() if "build" in each}
ONCE = ("upgrade", "prefect-upgrade", "deploy")
VARIABLE = re.compile(r"(?<!\$)\$\{(\w+)(:[-?])?")


@pytest.mark.parametrize("name", [name for name, each in OURS.items() if each["command"][0] == "rollout"])
def test_a_command_of_ours_is_one_and_takes_its_options(name: str) -> None:
    command: Any = typer.main.get_command(app)
    arguments = list(OURS[name]["command"][1:])
    while hasattr(command, "commands"):
        command = command.commands[arguments.pop(0)]

    context = command.make_context(name, arguments)

    assert context.args == []


@pytest.mark.parametrize("name", [name for name, each in OURS.items() if each["command"][0] == "prefect"])
def test_a_command_of_prefects_is_one_and_takes_its_options(name: str) -> None:
    arguments = OURS[name]["command"][1:]

    parsed = prefects_app.parse_args(arguments, exit_on_error=False, print_error=False)

    assert parsed[0].__module__.startswith("prefect.cli")


@pytest.mark.parametrize("name", SERVICES)
def test_every_variable_is_a_setting_of_the_program_that_gets_it(name: str) -> None:
    given = {key for key in SERVICES[name].get("environment", {}) if key.startswith(("ROLLOUT_", "PREFECT_"))}

    assert given <= known(name), given - known(name)


def known(service: str) -> set[str]:
    if service == "postgresql":
        return set(re.findall(r"\$(\w+_PASSWORD)", (FOLDER / "containers" / "roles.sh").read_text()))
    return names(Settings, "ROLLOUT_") | names(ApiSettings, "ROLLOUT_API_") | prefects()


def names(settings: type[BaseSettings], prefix: str) -> set[str]:
    return {f"{prefix}{field.upper()}" for field in settings.model_fields}


@cache
def prefects() -> set[str]:
    return names(RedisMessagingSettings, "PREFECT_REDIS_MESSAGING_") | _get_valid_setting_names(PrefectSettings)


def test_what_an_owner_must_set_is_told_and_nothing_else() -> None:
    told = re.findall(r"^(# )?([A-Z_]+)=(.*)$", (FOLDER / ".env.example").read_text(), re.MULTILINE)
    needed = {name for name, how in VARIABLE.findall(FILE.read_text()) if how == ":?"}
    may = {name for name, how in VARIABLE.findall(FILE.read_text()) if how != ":?"}
    passed = {key for each in SERVICES.values() for key, value in each.get("environment", {}).items() if value is None}

    assert {name for optional, name, _ in told if not optional} == needed
    assert {name for optional, name, _ in told if optional} == may | passed
    assert [value for optional, _, value in told if not optional and value] == [], "a value that works would be kept"


def test_every_path_of_ours_that_is_mounted_exists() -> None:
    mounted = [each.split(":")[0] for service in SERVICES.values() for each in service.get("volumes", [])]
    paths = [each for each in mounted if each.startswith(".")]

    assert paths
    assert [path for path in paths if not (FOLDER / path).exists()] == []
    named = {each for each in mounted if not each.startswith((".", "$"))}
    assert named == set(COMPOSE["volumes"])


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_limits_is_looked_after_and_holds_no_right_it_does_not_need(name: str) -> None:
    service = SERVICES[name]

    assert {"cpus", "memory"} <= set(service["deploy"]["resources"]["limits"])
    assert service["restart"] == ("on-failure:5" if name in ONCE else "unless-stopped")
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service.get("read_only") or name == "postgresql"
    assert "healthcheck" in service or name in (*ONCE, "prefect-services")
    assert all(port.startswith("${PUBLISH_ON:-127.0.0.1}:") for port in service.get("ports", []))
    assert "build" in service or re.search(r":\D*\d", service["image"]), "an image is pinned"


@pytest.mark.parametrize("name", SERVICES)
def test_what_waits_for_another_waits_for_what_that_can_tell(name: str) -> None:
    for other, how in SERVICES[name].get("depends_on", {}).items():
        finishes = other in ONCE
        assert how["condition"] == ("service_completed_successfully" if finishes else "service_healthy")
        assert finishes or "healthcheck" in SERVICES[other]
        assert set(SERVICES[name]["networks"]) & set(SERVICES[other]["networks"])


@pytest.mark.parametrize(
    ("between_containers", "on_one_machine", "addresses"),
    [
        ("prometheus.yml", "prometheus/prometheus.yml", {"exporter:9464": 9464, "alertmanager:9093": 9093}),
        ("alertmanager.yml", "prometheus/alertmanager.yml", {"api:8321": 8321}),
        ("datasource.yml", "grafana/provisioning/datasources/prometheus.yml", {"prometheus:9090": 9090}),
    ],
)
def test_what_is_watched_between_containers_is_what_is_watched_on_one_machine(
    between_containers: str, on_one_machine: str, addresses: dict[str, int]
) -> None:
    text = (FOLDER / "containers" / between_containers).read_text()
    for address, port in addresses.items():
        service = address.partition(":")[0]
        assert service in SERVICES
        text = text.replace(address, f"127.0.0.1:{port}")
    text = text.replace("/run/secrets/", "/etc/alertmanager/")

    assert yaml.safe_load(text) == yaml.safe_load((FOLDER / on_one_machine).read_text())


def test_what_holds_data_is_reached_by_nobody_outside() -> None:
    assert COMPOSE["networks"]["data"]["internal"] is True
    for name in ("postgresql", "redis"):
        assert SERVICES[name]["networks"] == ["data"]
        assert "ports" not in SERVICES[name]


def test_the_owners_password_is_known_to_what_makes_tables_alone() -> None:
    """Neither to what runs versions' code, nor to what anybody may ask."""
    who = [name for name, each in SERVICES.items() if "ROLLOUT_OWNER_PASSWORD" in str(each.get("environment"))]

    assert who == ["postgresql", "upgrade", "maintainer"]


def test_each_queue_has_its_worker_and_the_owners_flow_comes_to_the_owners() -> None:
    queues = {
        name: each["command"][each["command"].index("--work-queue") + 1]
        for name, each in SERVICES.items()
        if "--work-queue" in each.get("command", [])
    }
    wanted = {each["work_pool"].get("work_queue_name", "default") for each in PREFECT["deployments"]}

    assert queues == {"maintainer": "maintain"}
    assert wanted == {"default", "maintain"}
    assert SERVICES["worker"]["command"][:2] == ["rollout", "clock"]  # it runs all that has no queue of its own


def test_the_exporter_holds_the_readers_password_and_nothing_else() -> None:
    """It needs no token, so it gets only what it needs."""
    exporter = SERVICES["exporter"]

    assert set(exporter["environment"]) == {"ROLLOUT_DATABASE_URL"}
    assert "rollout_reader:" in exporter["environment"]["ROLLOUT_DATABASE_URL"]
    assert "volumes" not in exporter


def test_artifacts_link_to_where_a_browser_finds_prefect() -> None:
    """The name by which a flow run reaches the server is known between containers alone."""
    told = {
        name: each["environment"].get("PREFECT_UI_URL")
        for name, each in SERVICES.items()
        if "PREFECT_API_URL" in each.get("environment", {})
    }
    browsers = SERVICES["prefect"]["environment"]["PREFECT_UI_API_URL"].split(":-")[1].rstrip("}")

    assert "worker" in told
    assert set(told.values()) == {f"${{PREFECT_UI_URL:-{browsers.removesuffix('/api')}}}"}


def test_versions_find_their_model_files_wherever_they_run_and_a_worker_can_write_them() -> None:
    running = ("worker", "api")
    mounted = [next(each for each in SERVICES[name]["volumes"] if each.startswith("models:")) for name in running]

    assert {SERVICES[name]["environment"]["ROLLOUT_MODELS"] for name in running} == {"/models"}
    assert mounted == ["models:/models", "models:/models:ro"]
    assert re.search(r"--owner=10001 .*/models$", (FOLDER / "Dockerfile").read_text(), re.MULTILINE)


def test_what_makes_links_knows_the_console_where_a_browser_finds_it() -> None:
    told = {name: each.get("environment", {}).get("ROLLOUT_CONSOLE_URL") for name, each in SERVICES.items()}
    (port,) = [each.split(":")[-2] for each in SERVICES["api"]["ports"]]

    assert {name for name, url in told.items() if url} == {"deploy", "worker"}
    assert f":-http://127.0.0.1:{port}/console}}" in str(told["worker"])


def test_the_image_is_made_of_what_is_there() -> None:
    file = (FOLDER / "Dockerfile").read_text()
    extras = re.findall(r"--extra=(\w+)", file)
    let_in = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [each for line in re.findall(r"^COPY (?!--)(.*) \S+$", file, re.MULTILINE) for each in line.split()]

    assert set(extras) <= set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    assert sorted(copied) == sorted(let_in)
    assert [each for each in copied if not (ROOT / each).exists()] == []
    assert re.search(r"^ARG PYTHON=3\.\d+\.\d+-slim", file, re.MULTILINE)
    assert re.findall(r"^USER (.*)$", file, re.MULTILINE) == ["10001:10001"]
