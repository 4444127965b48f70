"""`rollout race simulate`: tables, JSON, a chart, and refusals."""

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.cli.conftest import Rollout

FEW = ("race", "simulate", "--runs", "2", "--days", "20", "--candidates", "2", "--scenario", "one_better")
SVG = "{http://www.w3.org/2000/svg}"


def test_ways_are_compared_on_the_same_markets(rollout: Rollout) -> None:
    said = rollout(*FEW)

    assert said.code == 0
    assert "one_better, 2 candidates, 60 days of shadow: the best from day 0 earns " in said.out
    lines = [line.split() for line in said.out.splitlines()]
    assert {"ramp", "thompson", "hedge", "leader", "patient"} <= {line[0] for line in lines if line}
    assert "2 races of 20 days each, seed 1. Gain and worst user in R against the active version." in said.out
    assert max(map(len, said.out.splitlines()[:9])) <= 80


def test_a_program_gets_data_that_does_not_depend_on_the_processes(rollout: Rollout) -> None:
    few = rollout(*FEW, "--policy", "hedge", "--policy", "leader", "--json")
    many = rollout(*FEW, "--policy", "hedge", "--policy", "leader", "--runs", "12", "--json")

    assert few.err == ""
    assert [(cell["policy"], cell["runs"], cell["candidates"]) for cell in few.data["cells"]] == [
        ("hedge", 2, 2),
        ("leader", 2, 2),
    ]
    assert few.data["cells"][0]["best_fixed"] == few.data["cells"][1]["best_fixed"]
    assert [cell["runs"] for cell in many.data["cells"]] == [12, 12]
    assert rollout(*FEW, "--policy", "hedge", "--json").data["cells"][0] == few.data["cells"][0]


def test_a_chart_has_a_row_for_each_way(rollout: Rollout, tmp_path: Path) -> None:
    file = tmp_path / "races.svg"

    rollout(*FEW, "--shadow-days", "0", "--shadow-days", "30", "--policy", "hedge", "--plot", str(file))

    labels = [label.text or "" for label in ET.parse(file).getroot().iter(f"{SVG}text")]
    assert "2 simulated races of 20 days each" in labels
    assert labels.count("hedge") == 2
    assert "one_better, 2 candidates, 30 days of shadow" in labels


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--scenario", "lucky"], "'lucky'"),
        (["--policy", "lucky"], "ramp, thompson, hedge, leader, patient"),
        (["--candidates", "33"], "a number from 1 to 32"),
        (["--shadow-days", "-1"], "a number from 0 to 365"),
        (["--plan", "missing.json"], "missing.json"),
    ],
)
def test_what_cannot_be_simulated_is_refused_in_a_line(rollout: Rollout, arguments: list[str], line: str) -> None:
    said = rollout("race", "simulate", *arguments)

    assert said.code == 2
    assert line in said.err
    assert len(said.err.splitlines()) == 1
