"""A real Prometheus and Alertmanager on the real exporter and API, with the shipped files: what they ask and do."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import httpx
import pytest
import yaml
from sqlalchemy import Engine
from sqlmodel import select

from strategy_core.api.routes import PREFIX
from strategy_core.domain.audit import Command
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services.compare import compare_all
from strategy_core.services.rollouts import start_rollout
from strategy_core.services.tick import tick
from strategy_core.services.users import load_users
from strategy_core.store.engine import open_database, reading
from strategy_core.store.tables import AuditEvent
from tests.api import processes
from tests.builders import GOLD, MONDAY, OWNER, put_version
from tests.deployments.monitoring import (
    PROMETHEUS,
    RULES,
    expressions_of_dashboards,
    expressions_of_rules,
    read,
)
from tests.docs.pages import commands_of
from tests.endpoint import serving
from tests.services.ramping import days

pytestmark = [pytest.mark.full, pytest.mark.xdist_group("prefect")]  # one heavy server at a time

PATIENCE_S = 120.0
EMPTY = {  # no freezes, rollbacks, failures, capital, positions or live trades yet
    *(f"rollout-{board}: Freezes" for board in ("one", "overview", "operations", "shadow")),
    "rollout-overview: Share of users on the canary C",
    *(f"rollout-overview: Open positions by manager {query}" for query in "ABC"),
    "rollout-one: Rollbacks",
    "rollout-overview: Rollbacks",
    "rollout-operations: Rollbacks",
    "rollout-shadow: Rollbacks",
    "rollout-overview: Rollbacks by cause, 30 d A",
    "rollout-overview: Activations, 30 d A",
    "rollout-overview: New verdicts per hour A",
    "rollout-operations: Alerts per hour A",
    "rollout-operations: Alerts in 24 h A",
    "rollout-operations: Alerts waiting, by channel A",
    "rollout-operations: Oldest waiting alert A",
    "rollout-shadow: Agreement of shadow and live results A",
    "rollout-shadow: Errors per hour, by kind A",
    "rollout-shadow: Errors in 24 h, by kind A",
}
CHOSEN = {"strategy": "fib_rsi", "version": "2", "gate": "errors"}


@dataclass
class Watched:
    """A platform with two rollouts, of which no tick has looked at the first for months, and what watches it."""

    engine: Engine
    folder: Path
    api: str
    exporter: str
    prometheus: str
    alertmanager_port: int

    def asked(self, query: str) -> list[Any]:
        """Return what Prometheus answers to *query* now."""
        answer = httpx.get(f"{self.prometheus}/api/v1/query", params={"query": query}).json()
        assert answer["status"] == "success", (query, answer)
        assert not answer.get("warnings"), (query, answer)
        found: list[Any] = answer["data"]["result"]
        return found

    def canaries(self) -> set[str]:
        held = {"Authorization": f"Bearer {processes.token_of('ana')}"}
        items = httpx.get(f"{self.api}{PREFIX}/canary", headers=held).json()["items"]
        return {each["strategy_name"] for each in items}


def run(*command: str | Path) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextmanager
def program(log: Path, ready: str, *command: str) -> Iterator[None]:
    """Run a program until the block ends, which begins once the address *ready* answers."""
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        wait_for(lambda: answers(ready), f"{command[0]}: {log.read_text()[-2_000:]}")
        yield
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


def wait_for(happened: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < deadline, f"in vain: {what}"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def watched(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    file = shutil.copy(sqlite_template, folder / "rollout.db")
    engine = open_database(f"sqlite:///{file}")
    put_platform(engine)
    exporter, prometheus, alertmanager = processes.free_port(), processes.free_port(), processes.free_port()
    url = f"http://127.0.0.1:{prometheus}"
    with ExitStack() as stack:
        api = stack.enter_context(processes.serving(f"sqlite:///{file}", folder / "api.log"))
        stack.enter_context(
            program(
                folder / "exporter.log",
                f"http://127.0.0.1:{exporter}/metrics",
                *(sys.executable, "-m", "strategy_core.cli", "exporter"),
                *("--port", str(exporter), "--database-url", f"sqlite:///{file}"),
            )
        )
        write_prometheus(folder, exporter, api, alertmanager, documented_token(folder, "prometheus"))
        stack.enter_context(
            program(
                folder / "prometheus.log",
                f"{url}/-/ready",
                "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{prometheus}",
                "--rules.alert.resend-delay=1s",
            )
        )
        yield Watched(engine, folder, api, f"http://127.0.0.1:{exporter}/metrics", url, alertmanager)
    engine.dispose()


def put_platform(engine: Engine) -> None:
    """Let `fib_rsi` 2 be a canary that was last ticked in March, and `ppo_gold` 2 one that began just now."""
    for name in ("fib_rsi", "ppo_gold"):
        put_version(engine, "1", Status.ACTIVE, strategy_name=name)
        put_version(engine, "2", strategy_name=name)
    load_users(engine, ((f"u{number}", None) for number in range(400)), now=MONDAY)
    plan = Plan()
    start_rollout(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", plan=plan)
    market = SyntheticSource((GOLD, "SILVER"), start=MONDAY.replace(month=1, day=1), days=300)
    ticked_at = days(engine, MONDAY, 4)
    tick(engine, market, now=ticked_at)
    compare_all(engine, market, now=ticked_at)
    start_rollout(engine, Command(OWNER, datetime.now(UTC)), strategy_name="ppo_gold", version="2", plan=plan)


def documented_token(folder: Path, program: str) -> Path:
    """Make a program's token by the command in its shipped file, exactly as it stands there, and return its file."""
    (command,) = re.findall(r"# +(rollout token .*)", (PROMETHEUS / f"{program}.yml").read_text())
    here = folder / program
    here.mkdir()
    given = {"ROLLOUT_DATABASE_URL": f"sqlite:///{folder / 'rollout.db'}", "ROLLOUT_API_SECRET": processes.SECRET}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-ec", command],
        cwd=here,
        env=os.environ | given | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [(file.name, file.stat().st_mode & 0o777) for file in here.iterdir()] == [("rollout.token", 0o600)]
    return here / "rollout.token"


def write_prometheus(folder: Path, exporter: int, api: str, alertmanager: int, token: Path) -> None:
    """Write the shipped configuration with both of its variants, for this machine's ports, and for one in a hurry."""
    config = read("prometheus.yml")
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{exporter}"]}]
    config["scrape_configs"][1]["static_configs"] = [{"targets": [f"127.0.0.1:{alertmanager}"]}]
    config["scrape_configs"].append(
        {
            "job_name": "guarded",
            "metrics_path": f"{PREFIX}/metrics",
            "authorization": {"credentials_file": str(token)},
            "static_configs": [{"targets": [api.removeprefix("http://")]}],
        }
    )
    config["alerting"]["alertmanagers"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{alertmanager}"]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    rules = read(RULES.name)
    for group in rules["groups"]:
        for rule in group["rules"]:
            rule.pop("for", None)
            rule["expr"] = rule["expr"].replace("offset 5m", "offset 5s")
    (folder / RULES.name).write_text(yaml.safe_dump(rules))


def write_alertmanager(folder: Path, api: str, owners: str, token: Path) -> Path:
    """Write the shipped configuration with this test's addresses, and a webhook for owners."""
    config = read("alertmanager.yml")
    for route in (config["route"], *config["route"]["routes"]):
        route |= {"group_wait": "0s", "group_interval": "1s"}
    (webhook,) = config["receivers"][0]["webhook_configs"]
    webhook["url"] = f"{api}{PREFIX}/alertmanager"
    webhook["http_config"]["authorization"]["credentials_file"] = str(token)
    config["receivers"][1]["webhook_configs"] = [{"url": owners, "send_resolved": True}]
    (folder / "alertmanager.yml").write_text(yaml.safe_dump(config))
    return folder / "alertmanager.yml"


@contextmanager
def alerting(watched: Watched, owners: str, token: Path) -> Iterator[None]:
    """Run a new Alertmanager that rolls back with *token*."""
    listen = f"127.0.0.1:{watched.alertmanager_port}"
    config = write_alertmanager(watched.folder, watched.api, owners, token)
    with program(
        watched.folder / "alertmanager.log",
        f"http://{listen}/-/ready",
        "prometheus-alertmanager",
        f"--config.file={config}",
        f"--storage.path={mkdtemp(dir=watched.folder)}",
        f"--web.listen-address={listen}",
        "--cluster.listen-address=",
    ):
        yield


def test_the_shipped_files_are_what_their_programs_take() -> None:
    run("promtool", "check", "config", PROMETHEUS / "prometheus.yml")
    run("promtool", "check", "rules", "--lint-fatal", PROMETHEUS / RULES.name)
    run("amtool", "check-config", PROMETHEUS / "alertmanager.yml")


@pytest.mark.parametrize(
    "command",
    sorted({command for tool in ("promtool", "amtool check-config") for _, command in commands_of(tool)}),
)
def test_the_checks_in_pages_and_comments_succeed_beside_the_shipped_files(command: str, tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", "-ec", command],
        cwd=shutil.copytree(PROMETHEUS, tmp_path / "here"),
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr


def test_the_silences_in_pages_are_taken_by_an_alertmanager_with_the_shipped_file(tmp_path: Path) -> None:
    pages = [line for tool in ("amtool --", "docker compose exec alertmanager amtool --") for line in commands_of(tool)]
    address = f"127.0.0.1:{processes.free_port()}"
    with program(
        tmp_path / "alertmanager.log",
        f"http://{address}/-/ready",
        "prometheus-alertmanager",
        f"--config.file={PROMETHEUS / 'alertmanager.yml'}",
        f"--storage.path={tmp_path / 'data'}",
        f"--web.listen-address={address}",
        "--cluster.listen-address=",
    ):
        for _, line in pages:
            run(
                "bash", "-ec", line.removeprefix("docker compose exec alertmanager ").replace("127.0.0.1:9093", address)
            )
        silences = httpx.get(f"http://{address}/api/v2/silences").json()
        for silence in silences:
            run("amtool", f"--alertmanager.url=http://{address}", "silence", "expire", silence["id"])

    assert len(pages) == 2
    assert [(each["matchers"][0]["value"], each["createdBy"]) for each in silences] == [
        ("RolloutUnprotected", "ana")
    ] * 2


def test_every_rule_fires_when_it_should_and_not_when_it_should_not() -> None:
    assert "SUCCESS" in run("promtool", "test", "rules", PROMETHEUS / "rollout.rules.test.yml")


def test_what_is_exported_is_well_formed(watched: Watched) -> None:
    text = httpx.get(watched.exporter).content

    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)

    assert checked.returncode in (0, 3), checked.stderr  # 3: names kept from others' dashboards are not to its taste
    assert b"error while linting" not in checked.stderr


def test_prometheus_reads_the_exporter_and_the_guarded_route_alike(watched: Watched) -> None:
    wait_for(lambda: len(watched.asked("up == 1")) == 2, "both targets are up")

    both = watched.asked('rollout_stages{strategy="fib_rsi",version="2"}')

    assert {each["metric"]["job"]: each["value"][1] for each in both} == {"rollout": "5", "guarded": "5"}


def test_prometheus_understands_every_expression_of_rules_and_dashboards(watched: Watched) -> None:
    wait_for(lambda: watched.asked("rollout_open"), "the exporter is scraped")

    found = {where: watched.asked(query) for where, query in expressions_of_dashboards(**CHOSEN)}
    for _, query in expressions_of_rules():
        watched.asked(query)

    empty = {where for where, result in found.items() if not result}
    assert empty == EMPTY


def test_a_rollback_that_the_api_refuses_is_told(watched: Watched) -> None:
    """A token expires, and only Alertmanager's log has the error."""
    undelivered = 'ALERTS{alertname="RolloutRollbackUndelivered",alertstate="firing"}'
    token = watched.folder / "wrong.token"
    token.write_text("of-another-secret\n")
    with serving() as owners, alerting(watched, owners.url, token):
        wait_for(lambda: ("RolloutRollbackUndelivered", "firing") in told(owners.posted), "the owners are told")

        assert watched.asked(undelivered)
    assert watched.canaries() == {"fib_rsi", "ppo_gold"}


def test_an_alert_that_fires_is_resolved_by_the_rollback_that_it_asked_for(watched: Watched) -> None:
    """From the exporter to Prometheus, Alertmanager, the API, the database, and back."""
    firing = 'ALERTS{alertname="RolloutUnprotected",alertstate="firing"}'
    wait_for(lambda: watched.asked(firing), "the alert fires")
    before = watched.canaries()
    token = documented_token(watched.folder, "alertmanager")
    with serving() as owners, alerting(watched, owners.url, token):
        wait_for(lambda: watched.canaries() == {"ppo_gold"}, "the rollback")
        wait_for(lambda: not watched.asked(firing), "the alert is resolved")
        wait_for(lambda: ("RolloutUnprotected", "resolved") in told(owners.posted), "the owners are told so")

    assert before == {"fib_rsi", "ppo_gold"}
    assert ("RolloutUnprotected", "firing") in told(owners.posted)
    counted = watched.asked('rollbacks_total{job="rollout"} > 0')
    assert [(each["metric"]["strategy"], each["value"][1]) for each in counted] == [("fib_rsi", "1")]
    with reading(watched.engine) as session:
        (event,) = session.exec(select(AuditEvent).where(AuditEvent.action == "roll_back")).all()
    assert (event.actor, event.source, event.version) == ("alertmanager", "api", "2")
    assert event.reason.startswith("alert RolloutUnprotected, firing since ")
    assert "fib_rsi 2: unprotected for too long, it is rolled back" in event.reason


def told(posted: list[Any]) -> set[tuple[str, str]]:
    return {(each["labels"]["alertname"], each["status"]) for body in posted for each in body["alerts"]}
