"""Rules and dashboards use exported metrics, name existing commands, and refer to each other correctly."""

import json
import re
from itertools import combinations
from typing import Any

import pytest
import typer.main
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from deployments.dashboards import FOLDER, MARKS, rendered
from strategy_core.api.routes import PREFIX
from strategy_core.api.settings import ApiSettings
from strategy_core.cli import app
from strategy_core.domain.alerts import ACTION, ROLLBACK
from strategy_core.observe.metrics import FAMILIES
from tests.deployments.monitoring import (
    DASHBOARDS,
    PROMETHEUS,
    RULES,
    expressions_of_dashboards,
    expressions_of_rules,
    panels,
    read,
    rules,
)
from tests.docs.pages import ROOT
from tests.promql import grouped, metrics

EVERY = sorted({*expressions_of_rules(), *expressions_of_dashboards()})
SCRAPED: dict[str, set[str]] = {"up": set(), "scrape_duration_seconds": set()}  # Prometheus' own, of each target
ALERTMANAGERS = {"alertmanager_notifications_failed_total": {"integration"}}  # newer versions have `reason` too
HOURS_OF_PEOPLE = {"rollout token --name ana --hours 8"}
TARGET = {"job", "instance"}
EXPORTED = {family.name: set(family.labels) for family in FAMILIES}


def each_dashboard() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("name", list(DASHBOARDS))


def test_every_metric_and_label_that_is_asked_for_is_exported() -> None:
    known = {**EXPORTED, **SCRAPED, **ALERTMANAGERS}
    strange = [
        (where, name, labels)
        for where, expression in EVERY
        for name, labels in metrics(expression).items()
        if name not in known or not labels <= known[name] | TARGET
    ]
    ungrouped = [
        (where, grouped(expression))
        for where, expression in EVERY
        if not grouped(expression) <= set().union(TARGET, *(known[name] for name in metrics(expression)))
    ]

    shown = {name for _, expression in EVERY for name in metrics(expression)}
    assert strange == []
    assert set(EXPORTED) - shown == set()
    assert ungrouped == []
    assert len(EVERY) > 60


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_a_rule_says_how_bad_it_is_what_it_saw_and_which_command_acts(rule: dict[str, Any]) -> None:
    said = rule["annotations"]
    commands = re.findall(r"rollout ([a-z]+(?: [a-z]+)?)", said["runbook"])

    assert rule["labels"]["severity"] in ("critical", "warning")
    assert set(said) == {"summary", "description", "runbook"}
    assert "$value" in said["description"] or "| query" in said["description"] or "up{" in rule["expr"]
    assert said["runbook"].startswith("rollout ") or "}}rollout " in said["runbook"]
    assert [command for command in commands if not known(command)] == []


def known(command: str) -> bool:
    """Return whether the command line has it."""
    first, *rest = command.split()
    found: Any = typer.main.get_command(app)
    group = found.commands.get(first)
    return group is not None and (not hasattr(group, "commands") or bool(rest and rest[0] in group.commands))


def test_every_rule_is_tested_for_firing_and_for_silence() -> None:
    tests = read("rollout.rules.test.yml")["tests"]
    shown = {each["alertname"] for test in tests for each in test.get("alert_rule_test", [])}
    firing = {
        name
        for test in tests
        for asked in test["promql_expr_test"]
        for sample in asked.get("exp_samples", [])
        for name in re.findall(r'alertname="(\w+)"', sample["labels"])
    }
    silent = [asked for test in tests for asked in test["promql_expr_test"] if not asked.get("exp_samples")]

    assert firing == shown == {rule["alert"] for rule in rules()}
    assert len(silent) > len(firing)


def test_only_an_alert_that_is_labelled_for_it_is_sent_where_it_rolls_back() -> None:
    config = read("alertmanager.yml")
    receivers = {each["name"]: each for each in config["receivers"]}
    (route,) = [each for each in config["route"]["routes"] if each.get("matchers")]
    (webhook,) = receivers[route["receiver"]]["webhook_configs"]
    labelled = [rule["alert"] for rule in rules() if ACTION in rule["labels"]]

    assert route["matchers"] == [f'{ACTION}="{ROLLBACK}"']
    assert route["continue"] is True
    assert webhook["url"] == f"http://127.0.0.1:{ApiSettings.model_fields['port'].default}{PREFIX}/alertmanager"
    assert (webhook["send_resolved"], webhook["max_alerts"]) == (False, 0)
    assert labelled == ["RolloutUnprotected"]
    assert all({"strategy", "version"} <= grouped(rule["expr"]) for rule in rules() if rule["alert"] in labelled)


def test_every_page_and_file_names_the_same_commands_for_tokens() -> None:
    """A command that is refused leaves Alertmanager without a token, and nobody notices until a rollback is needed."""
    wanted = {
        "rollout token --service --days 365 --name alertmanager --output rollout.token",
        "rollout token --service --days 365 --name prometheus --read-only --output rollout.token",
        "rollout token --service --days 365 --name my-router --read-only --output rollout.token",
        "rollout token --service --days 365 --name {{ $labels.name }} --output rollout.token",
    }
    found = {
        file: re.findall(r"rollout token [^`#;]*?(?:--output rollout\.token|--hours \d+)", " ".join(text.split()))
        for file in [*PROMETHEUS.parent.rglob("*"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")]
        if file.is_file() and file.suffix in (".md", ".yml", ".yaml") and (text := file.read_text())
    }
    named = [file.name for file, commands in found.items() if commands]

    assert {command for commands in found.values() for command in commands} - wanted <= HOURS_OF_PEOPLE
    assert {"alertmanager.yml", "prometheus.yml", "compose.yaml", "rollout.rules.yml", RULES.name} <= set(named)


def test_of_two_exporters_the_freshest_says_how_old_a_tick_is() -> None:
    """One that reads a standby which stands still would roll production back."""
    aged = [rule["expr"] for rule in rules() if "rollout_tick_age_seconds" in rule["expr"]]

    assert len(aged) == 2
    assert [expr for expr in aged if not expr.startswith("min by (strategy, version) (")] == []


def test_prometheus_loads_the_rules_and_names_the_exporter_as_they_do() -> None:
    config = read("prometheus.yml")
    jobs = {label for _, expression in EVERY for label in re.findall(r'job="([^"]*)"', expression)}

    assert config["rule_files"] == [RULES.name]
    assert {each["job_name"] for each in config["scrape_configs"]} == jobs | {"alertmanager"}


def test_the_alertmanager_that_rolls_back_is_the_one_that_is_watched() -> None:
    config = read("prometheus.yml")
    (job,) = [each for each in config["scrape_configs"] if each["job_name"] == "alertmanager"]

    assert job["static_configs"] == config["alerting"]["alertmanagers"][0]["static_configs"]


def test_the_dashboards_are_what_their_module_writes() -> None:
    """Else write them again: `python -m deployments.dashboards`."""
    written = {file.name: file.read_text() for file in FOLDER.iterdir()}

    assert written == rendered()


@each_dashboard()
def test_grafanas_schema_knows_every_key_of_a_dashboard_but_those_of_its_marks(name: str) -> None:
    register_default_plugins()
    dashboard = DASHBOARDS[name]

    read = json.loads(json.dumps(Dashboard.from_json(dashboard), cls=JSONEncoder))

    for mark in read["annotations"]["list"]:
        mark.update(MARKS[mark["name"]])
    assert dashboard == read


@each_dashboard()
def test_a_dashboard_is_where_its_links_look_and_nothing_covers_another(name: str) -> None:
    dashboard = DASHBOARDS[name]
    places = [(panel["title"], panel["gridPos"]) for panel in panels(dashboard)]

    assert dashboard["uid"] == name
    assert dashboard["tags"] == dashboard["links"][0]["tags"]
    assert len({panel["id"] for panel in panels(dashboard)}) == len(places)
    assert all(place["x"] + place["w"] <= 24 for _, place in places)
    assert [(one, other) for (one, a), (other, b) in combinations(places, 2) if covers(a, b)] == []


def covers(a: dict[str, int], b: dict[str, int]) -> bool:
    return (
        a["x"] < b["x"] + b["w"] and b["x"] < a["x"] + a["w"] and a["y"] < b["y"] + b["h"] and b["y"] < a["y"] + a["h"]
    )


@each_dashboard()
def test_a_panel_has_a_unit_a_legend_and_variables_that_are_there(name: str) -> None:
    dashboard = DASHBOARDS[name]
    variables = {each["name"] for each in dashboard["templating"]["list"]} | {"__interval"}
    used = set(re.findall(r"\$\{?(\w+)", str(dashboard).replace("$__all", "")))

    assert used <= variables
    for panel in panels(dashboard):
        assert panel["title"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        if panel["type"] in ("timeseries", "bargauge", "stat"):
            assert panel["fieldConfig"]["defaults"]["unit"]
        if panel["type"] in ("timeseries", "bargauge", "state-timeline"):
            assert all(target["legendFormat"] != "__auto" for target in panel["targets"]), panel["title"]
            for target in panel["targets"]:
                told = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
                assert told <= grouped(target["expr"]), panel["title"]


@each_dashboard()
def test_a_series_is_one_however_many_exporters_tell_of_it(name: str) -> None:
    """Two exporters count the same database, so panels must not add them up."""
    bare = [
        panel["title"]
        for panel in panels(DASHBOARDS[name])
        for target in panel["targets"]
        if "up{" not in target["expr"] and "max" not in target["expr"]
    ]

    assert bare == []
