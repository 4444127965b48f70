"""`rollout calibrate`: tables, JSON, a chart, and refusals."""

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from sqlalchemy import Engine

from strategy_core.domain.lifecycle import Status
from tests.builders import DAY, MONDAY, put_day, put_pair, put_version
from tests.cli.conftest import Rollout, contents, set_clock
from tests.prepared import prepared

FEW = ("--ramps", "4", "--scenario", "equivalent", "--scenario", "severe")
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def pair(database: Engine, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """Twelve days on which version 2 loses what version 1 wins, three times a day."""
    prepared(database, put_twelve_days)
    set_clock(monkeypatch, MONDAY + 13 * DAY)
    return database


def put_twelve_days(database: Engine) -> None:
    put_pair(database)
    for day in range(12):
        said, worth = {"1": "buy", "2": "sell"}, {"1": 1.0, "2": -1.0}
        put_day(database, MONDAY + day * DAY, said, worth, signal_hours=[3, 9, 15])


def words(file: Path) -> list[str]:
    return [label.text or "" for label in ET.parse(file).getroot().iter(f"{SVG}text")]


def test_healthy_and_harmful_canaries_are_told_apart(rollout: Rollout) -> None:
    said = rollout("calibrate", *FEW)

    assert said.code == 0
    lines = [line.split() for line in said.out.splitlines()]
    assert next(line for line in lines if "equivalent" in line)[:3] == ["equivalent", "0.00%", "52.71%"]
    assert next(line for line in lines if "severe" in line)[:4] == ["severe", "100.00%", "harm", "4"]
    assert "\n4 ramps of 20 days each, seed 1.\nNot simulated: " in said.out


def test_a_program_gets_data_and_nothing_else(rollout: Rollout) -> None:
    said = rollout("calibrate", *FEW, "--json")

    healthy, harmful = said.data["scenarios"]
    assert said.err == ""
    assert (said.data["days"], said.data["seed"], said.data["ramps"]) == (20, 1, 4)
    assert "order_errors" in said.data["left_out"]
    assert (said.data["strategy_name"], said.data["version"]) == (None, None)
    assert (healthy["scenario"], healthy["rolled_back"], healthy["median_slots"]) == ("equivalent", 0.0, None)
    assert harmful["by_gate"] == {"harm": 4}
    assert harmful["median_over_bound"] == pytest.approx(harmful["median_slots"] / harmful["bound_slots"])


@pytest.mark.full
def test_one_kind_of_scenario_makes_one_table(rollout: Rollout) -> None:
    assert "harmful" not in rollout("calibrate", "--ramps", "1", "--scenario", "identical").out
    assert "healthy" not in rollout("calibrate", "--ramps", "1", "--scenario", "severe").out


@pytest.mark.full
def test_gates_that_cannot_be_simulated_are_named(rollout: Rollout, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    metric = {"kind": "metric", "metric": "slippage", "query": "slippage", "maximum": 3}
    plan.write_text(json.dumps({"gates": [{"kind": "harm"}, metric]}))

    out = rollout("calibrate", "--plan", str(plan), "--ramps", "1", "--scenario", "severe").out

    assert "Not simulated: metric:slippage.\n" in out


@pytest.mark.full
def test_a_pairs_own_past_is_drawn_from_and_nothing_changes(rollout: Rollout, pair: Engine) -> None:
    before = contents(pair)
    data = rollout("calibrate", "fib_rsi", "2", "--ramps", "4", "--json").data

    assert [one["scenario"] for one in data["scenarios"]] == [
        "a_a",
        "severe",
        "mild",
        "every_trade_loses",
        "goes_silent",
        "drawdown_spike",
    ]
    assert (data["strategy_name"], data["version"]) == ("fib_rsi", "2")
    out = rollout("calibrate", "fib_rsi", "2", "--ramps", "1", "--scenario", "a_a").out
    assert "Sampled from 36 slots on 12 days in shadow, design effect 3.00, assumed: too few days.\n" in out
    assert contents(pair) == before


@pytest.mark.full
def test_the_picture_shows_each_scenario_its_bound_and_what_is_tolerated(rollout: Rollout, tmp_path: Path) -> None:
    file = tmp_path / "gates.svg"
    names = ["equivalent", "severe", "drawdown_spike", "rare_signals_severe"]
    few = [part for name in names for part in ("--scenario", name)]

    said = rollout("calibrate", "--ramps", "4", *few, "--plot", str(file))

    shown = words(file)
    assert said.code == 0
    assert shown[0] == "simulated markets: 4 ramps of 20 days a scenario"
    assert set(names) <= set(shown)
    assert "1%" in shown
    assert "0.00%, at most 52.71%" in shown
    assert any(word.startswith("median ") and " slots, bound " in word for word in shown)
    assert any(word.startswith("median ") and word.endswith(" slots") for word in shown)
    assert any(word.startswith("median not reached") for word in shown)
    curves = list(ET.parse(file).getroot().iter(f"{SVG}polyline"))
    assert len(curves) == 3
    for curve in curves:
        points = [tuple(map(float, point.split(","))) for point in curve.attrib["points"].split()]
        assert points == sorted(points, key=lambda point: (point[0], -point[1]))


@pytest.mark.full
@pytest.mark.parametrize(("scenario", "absent"), [("severe", "healthy"), ("identical", "harmful")])
def test_a_picture_of_one_kind_has_no_room_for_the_other(
    rollout: Rollout, tmp_path: Path, scenario: str, absent: str
) -> None:
    file = tmp_path / "gates.svg"
    rollout("calibrate", "--ramps", "2", "--scenario", scenario, "--plot", str(file))

    assert not any(absent in word for word in words(file))


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ("fib_rsi", 2, "VERSION of fib_rsi is missing. Give both, or neither."),
        ("fib_rsi 9", 4, "no version '9' of 'fib_rsi'; known versions: 1, 2"),
        ("nope 1", 4, "no strategy 'nope'; known strategies: fib_rsi"),
        ("--scenario sevre", 2, "'sevre' is not a scenario; allowed: identical, equivalent, independent, "),
        ("fib_rsi 2 --scenario identical", 2, "'identical' is not a scenario; allowed: a_a, severe, "),
        ("--days 10", 2, "days = 10 is not valid; allowed: more than 10, when the fault of severe_from_day_10 begins"),
        ("--days 0", 2, "Invalid value for '--days'"),
        ("--ramps 0", 2, "Invalid value for '--ramps'"),
        ("--seed -1", 2, "Invalid value for '--seed'"),
        ("--plan nowhere.json", 2, "plan is not valid: cannot read nowhere.json"),
        ("--plot nowhere/gates.svg", 2, "allowed: a file in a folder that exists"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(rollout: Rollout, pair: Engine, arguments: str, code: int, says: str) -> None:
    said = rollout("calibrate", *arguments.split())

    (line,) = said.err.splitlines()
    assert (said.code, said.out) == (code, "")
    assert says in line


def test_a_pair_without_a_past_is_refused(rollout: Rollout, database: Engine) -> None:
    put_version(database, "1", Status.ACTIVE)
    put_version(database, "2")

    said = rollout("calibrate", "fib_rsi", "2")

    assert said.code == 5
    assert "0 closed slots on 0 days in shadow, needed are 30 on 2" in said.err
