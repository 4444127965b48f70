"""Read the rules and dashboards, and their PromQL expressions, for tests."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

PROMETHEUS = Path(__file__).parent.parent.parent / "deployments" / "prometheus"
GRAFANA = PROMETHEUS.parent / "grafana"
RULES = PROMETHEUS / "rollout.rules.yml"
DASHBOARDS = {file.stem: json.loads(file.read_text()) for file in sorted(GRAFANA.glob("dashboards/*.json"))}
GRAFANAS_OWN = {"$__interval": "1m", "$__rate_interval": "1m", "$__range": "1h"}
_QUERIED = re.compile(r'printf "((?:[^"\\]|\\.)*)"[^|}]*\| query')
_VALUES = re.compile(r"label_values\((.*), (\w+)\)")


def read(name: str) -> Any:
    return yaml.safe_load((PROMETHEUS / name).read_text())


def rules() -> list[dict[str, Any]]:
    return [rule for group in read(RULES.name)["groups"] for rule in group["rules"]]


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = dashboard["panels"]
    return found


def expressions_of_rules() -> Iterator[tuple[str, str]]:
    """Yield each expression by the rule that asks it, those of its texts included."""
    for rule in rules():
        yield rule["alert"], rule["expr"]
        for text in rule["annotations"].values():
            for query in _QUERIED.findall(text):
                yield f"{rule['alert']}, in a text", query.replace("%q", '"x"')


def expressions_of_dashboards(**chosen: str) -> Iterator[tuple[str, str]]:
    """Yield each expression by where it stands, as asked when variables are *chosen*: of panels, lists and marks."""
    for name, dashboard in DASHBOARDS.items():
        for panel in panels(dashboard):
            for target in panel["targets"]:
                yield f"{name}: {panel['title']} {target['refId']}", filled(target["expr"], **chosen)
        for mark in dashboard["annotations"]["list"]:
            yield f"{name}: {mark['name']}", filled(mark["expr"], **chosen)
        for variable in dashboard["templating"]["list"]:
            if variable["type"] == "query":
                query, label = _VALUES.fullmatch(variable["query"]["query"]).groups()  # type: ignore[union-attr]
                yield f"{name}: ${variable['name']}", f"count by ({label}) ({filled(query, **chosen)})"


def filled(expression: str, **chosen: str) -> str:
    """Return the query with the *chosen* variables, and `x` for all others."""
    for name, value in {**GRAFANAS_OWN, **{f"${name}": value for name, value in chosen.items()}}.items():
        expression = expression.replace(name, value)
    return re.sub(r"\$\w+", "x", expression)
