"""`rollout replay`, and what other commands show of it: the first commands of a new owner."""

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from strategy_core.domain.audit import Command
from strategy_core.domain.lifecycle import Status
from strategy_core.services.versions import register_version
from strategy_core.settings import Settings
from tests.builders import DAY, GOLD, MONDAY, OWNER
from tests.cli.conftest import FEED, Rollout, contents, set_clock
from tests.prepared import prepared
from tests.report.reading import Page

WEEK = ("--from", "2026-02-23", "--to", "2026-03-02")


@pytest.fixture
def registered(rollout: Rollout, database: Engine) -> Rollout:
    """Version 1 is active, version 2 in shadow, both registered on Monday."""
    prepared(database, register_both)
    return rollout


def register_both(engine: Engine) -> None:
    source = Settings(feed=FEED).open_candles(MONDAY)
    facts: dict[str, Any] = {"entry_point": "fib_rsi", "symbols": [GOLD], "timeframe": "1h"}
    for version, status, config in (("1", Status.ACTIVE, {}), ("2", Status.SHADOW, {"rsi_period": 10})):
        name: dict[str, Any] = {"strategy_name": "fib_rsi", "version": version, "status": status, "config": config}
        register_version(engine, Command(OWNER, MONDAY), source, **facts, **name)


def test_a_registration_names_the_next_step(rollout: Rollout) -> None:
    first = rollout("register", "fib_rsi", "1", "--symbols", "GOLD")
    replayed = rollout("replay", "fib_rsi", "1", "--from", "2026-02-23")
    rollout("activate", "fib_rsi", "1", "--yes")
    config = '{"rsi_period": 10}'
    second = rollout("register", "fib_rsi", "2", "--symbols", "GOLD", "--config", config)

    assert first.out.splitlines()[-1].startswith("Next: rollout activate fib_rsi 1   (no version is active")
    assert replayed.out.splitlines()[-1].startswith("Next: rollout activate fib_rsi 1   (no version is active")
    assert second.out.splitlines()[-1] == "Next: rollout replay fib_rsi 2   (evidence from past candles)"


def test_past_candles_are_decided_and_the_next_step_is_named(registered: Rollout, database: Engine) -> None:
    before = contents(database)

    said = registered("replay", "fib_rsi", "2", *WEEK)

    rows = [line.split() for line in said.out.splitlines()]
    assert (said.code, said.err) == (0, "")
    ours, theirs = (next(row for row in rows if row[:1] == [version]) for version in ("2", "1"))
    assert ours[1:3] == ["2026-02-23", "00:00"]
    assert ours[5:7] == theirs[5:7]  # both have decided on all candles
    assert said.out.splitlines()[-1] == "Next: rollout compare fib_rsi 2 --from 2026-02-23"
    assert contents(database) == before


def test_a_program_gets_a_replay_as_data(registered: Rollout) -> None:
    registered("replay", "fib_rsi", "2", *WEEK)

    ours, theirs = registered("replay", "fib_rsi", "2", *WEEK, "--json").data

    assert (ours["version"], theirs["version"]) == ("2", "1")
    assert ours["candles"] > 100
    assert (ours["decided"], ours["errors"], ours["revised"]) == (0, 0, 0)
    assert ours["notes"] == ["nothing new: 2 was replayed on these candles before"]


def test_a_comparison_says_what_is_from_replay(registered: Rollout) -> None:
    registered("replay", "fib_rsi", "2", *WEEK)

    said = registered("compare", "fib_rsi", "2", "--days", "7")
    data = registered("compare", "fib_rsi", "2", "--days", "7", "--json").data

    assert data["candles_replayed"] == data["candles_compared"] > 100
    assert said.out.splitlines()[0].startswith("no difference between 2 and 1 is shown: ")
    assert f"from replay  {data['candles_replayed']} of the candles" in said.out
    assert "R per trade" in said.out
    assert f"{data['shadow']['win_rate'] * 100:.1f} %" in said.out
    assert f"{data['shadow']['max_drawdown'] * 100:.1f} %" in said.out


def test_a_comparison_without_a_period_takes_the_replayed_one(registered: Rollout) -> None:
    registered("replay", "fib_rsi", "2", "--from", "2026-01-12", "--to", "2026-01-19")

    said = registered("compare", "fib_rsi", "2")
    asked = registered("compare", "fib_rsi", "2", "--days", "7")

    assert said.out.splitlines()[1] == (
        "2026-01-12 00:00 to 2026-01-19 00:00 UTC: all that is replayed, as nothing can be compared in the last 30 days"
    )
    assert "R per trade" in said.out
    assert "pnl" not in said.out.lower()  # in price units, beside R
    assert "R per trade" not in asked.out  # no table of zeros
    assert asked.out.splitlines()[-1] == "Next: rollout compare fib_rsi 2 --from 2026-01-12"


def test_the_names_of_periods_in_earlier_releases_still_work(registered: Rollout) -> None:
    registered("replay", "fib_rsi", "2", *WEEK)

    said = registered("compare", "fib_rsi", "2", "--start", "2026-02-23", "--end", "2026-03-02", "--json")

    assert said.data["candles_replayed"] > 100
    assert "--start" not in registered("compare", "--help").out


def test_zeros_say_why_and_what_to_do(registered: Rollout) -> None:
    compared = registered("compare", "fib_rsi", "2")
    planned = registered("plan", "fib_rsi", "2")
    calibrated = registered("calibrate", "fib_rsi", "2")

    assert "no candle was compared: 2 and 1 decide on live candles since 2026-03-02 00:00 UTC" in compared.out
    for said in (compared, planned):
        assert said.out.splitlines()[-1] == "Next: rollout replay fib_rsi 2"
    assert "unknown: 0 slots in 0 days of shadow are too few to plan by" in planned.out
    assert "replay more past candles first: rollout replay fib_rsi 2 --from TIME" in calibrated.err


@pytest.mark.full
def test_a_plan_and_a_calibration_say_what_is_from_replay(registered: Rollout) -> None:
    registered("replay", "fib_rsi", "2", "--from", "2026-01-05")

    planned = registered("plan", "fib_rsi", "2").out
    calibrated = registered("calibrate", "fib_rsi", "2", "--ramps", "2", "--scenario", "a_a").out

    assert "from replay: " in planned
    assert "From replay: " in calibrated


def test_a_rollout_on_past_candles_is_a_table(registered: Rollout, database: Engine) -> None:
    missing = registered("whatif", "fib_rsi", "2")
    registered("replay", "fib_rsi", "2", *WEEK)
    before = contents(database)

    said = registered("whatif", "fib_rsi", "2", "--from", "2026-02-24")
    data = registered("whatif", "fib_rsi", "2", "--from", "2026-02-24", "--json").data

    assert (missing.code, "run: rollout replay fib_rsi 2 --from TIME" in missing.err) == (5, True)
    assert (said.code, said.out.splitlines()[0]) == (0, data["notes"][0])
    assert said.out.splitlines()[2].split()[:3] == ["stage", "entered", "left"]
    assert data["ended"] in ("running", "rolled_back")
    assert data["stages"][0]["entered"] == "2026-02-24T00:00:00Z"
    assert contents(database) == before


def test_a_rollout_on_past_candles_is_a_page(registered: Rollout, tmp_path: Path) -> None:
    registered("replay", "fib_rsi", "2", *WEEK)
    file = tmp_path / "whatif.html"

    said = registered("whatif", "fib_rsi", "2", "--from", "2026-02-24", "--output", str(file))
    streamed = registered("whatif", "fib_rsi", "2", "--from", "2026-02-24", "--output", "-").out

    verdict, written = said.out.splitlines()
    page = Page(file.read_text())
    assert written == f"Written to {file}"
    assert page.text.index(verdict) < page.text.index("users on average:") < page.text.index("Stages")
    assert page.text.index("Stages") < page.text.index("gates without data in the past, left out: order_errors")
    assert page.tags.count("img") >= 1
    assert streamed == file.read_text()


def test_a_comparison_is_a_page(registered: Rollout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registered("replay", "fib_rsi", "2", *WEEK)
    monkeypatch.chdir(tmp_path)

    said = registered("compare", "fib_rsi", "2", "--days", "7", "--output", "page.html", "--json")
    empty = registered("compare", "fib_rsi", "2", "--from", "2026-01-05", "--to", "2026-01-06", "--output", "-")

    assert said.data["output"] == "page.html"
    assert said.data["candles_compared"] > 100
    page = Page(Path("page.html").read_text())
    assert page.text.count(f"{said.data['candles_compared']:,} of them from replay") == 1
    assert "no candle was compared: 2 and 1 decide on live candles since" in Page(empty.out).text


def test_a_bad_period_is_refused_in_one_line(registered: Rollout, monkeypatch: pytest.MonkeyPatch) -> None:
    set_clock(monkeypatch, MONDAY + DAY)

    empty = registered("replay", "fib_rsi", "2", "--from", "2026-03-03", "--to", "2026-03-02")
    long_ago = registered("replay", "fib_rsi", "2", "--from", "2010-01-01", "--to", "2010-02-01")
    unclear = registered("replay", "fib_rsi", "2", "--from", "yesterday")

    assert (empty.code, "start before end" in empty.err) == (2, True)
    assert long_ago.code == 2
    assert "no candle that '2' can be replayed on opened from 2010-01-01" in long_ago.err
    assert "the feed has candles until 2026-03-02 23:00 UTC" in long_ago.err
    assert (unclear.code, "time for --from" in unclear.err) == (2, True)
