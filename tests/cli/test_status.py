"""`rollout status` and `verdicts`: the next step, verdicts over time, and metric values."""

import re
from datetime import timedelta
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from sqlalchemy import Engine

from strategy_core.cli import main
from strategy_core.cli.context import fit, spark, table
from strategy_core.domain.lifecycle import Status
from tests.builders import HOUR, MONDAY, decision_row, put_decisions, put_version
from tests.cli.conftest import Rollout, set_clock
from tests.endpoint import Endpoint, vector

PLAN = """{"gates": [
    {"kind": "errors"},
    {"kind": "metric", "metric": "slippage", "query": "slippage", "maximum": 3, "minimum_samples": 1}
]}"""


@pytest.fixture
def started(database: Engine, rollout: Rollout, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """Version 2 at 5 % since Monday, under a plan with a metric."""
    monkeypatch.setenv("ROLLOUT_PROMETHEUS_URL", endpoint.url)
    plan = Path(str(database.url.database)).parent / "plan.json"
    plan.write_text(PLAN)
    put_version(database, "1", Status.ACTIVE)
    put_version(database, "2")
    assert rollout("start", "fib_rsi", "2", "--plan", str(plan), "--yes").code == 0
    return database


def test_status_says_what_must_happen_before_it_goes_on(
    rollout: Rollout, started: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_decisions(started, *(decision_row(version, MONDAY) for version in ("1", "2")))
    set_clock(monkeypatch, MONDAY + HOUR)
    rollout("sample")
    rollout("tick")

    shown = rollout("status", "--all").out
    (known,) = rollout("status", "--json").data

    assert "minimum left    23 h" in shown
    assert "maximum left    60 days" in shown
    needs = "the stage's minimum time lasts another 23 h, until 2026-03-03 00:00 UTC"
    assert f"before it advances:\n  - {needs}\n" in shown
    assert known["rollout"]["needs"] == [needs]
    assert (known["rollout"]["minimum_left"], known["rollout"]["maximum_left"]) == (82_800.0, 5_180_400.0)
    assert {verdict["since"] for verdict in known["rollout"]["verdicts"]} == {"2026-03-02T01:00:00Z"}


def test_an_excluded_symbol_is_shown_wherever_the_canary_is(
    rollout: Rollout, database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version, status in (("1", Status.ACTIVE), ("2", Status.SHADOW)):
        put_version(database, version, status, symbols=("GOLD", "SILVER"))
    assert rollout("start", "fib_rsi", "2", "--yes").code == 0
    command = ("exclude", "fib_rsi", "SILVER", "--yes", "--reason", "its feed is odd")
    refused = rollout(*command)
    assert (refused.code, refused.err) == (
        5,
        "error: cannot exclude SILVER from the canary of 'fib_rsi': the platform is not known to route by symbol; "
        "allowed: ROLLOUT_ROUTES_BY_SYMBOL=1 once it does\n",
    )
    monkeypatch.setenv("ROLLOUT_ROUTES_BY_SYMBOL", "1")

    assert rollout(*command).out == "fib_rsi 2 no longer serves SILVER\n"

    shown, (known,) = rollout("status").out, rollout("status", "--json").data
    assert "canary     2 for 5 % of users, not on SILVER" in shown
    assert known["excluded_symbols"] == ["SILVER"]
    routed = rollout("route", "u13", "fib_rsi", "--symbol", "SILVER").out
    assert routed == "u13 gets fib_rsi 1: SILVER is excluded from the canary\n"
    assert re.search(r"excluded +SILVER", rollout("audit", "at", "fib_rsi", "2026-03-02T00:00Z").out)


def test_a_metric_is_sampled_told_and_judged(
    rollout: Rollout, started: Engine, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    for minute, value in enumerate(("1", "2.5", "9"), start=1):
        endpoint.body = vector(value)
        set_clock(monkeypatch, MONDAY + timedelta(minutes=minute))
        (sampled,) = rollout("sample", "--json").data
        assert (sampled["gate"], sampled["value"]) == ("metric:slippage", float(value))
        rollout("tick")

    shown = rollout("verdicts", "fib_rsi", "--gate", "metric:slippage").out
    data = rollout("verdicts", "fib_rsi", "--gate", "metric:slippage", "--limit", "2", "--json").data

    assert shown.startswith("fib_rsi 2: running\n")
    assert "9, allowed at most 3; 1 of 3 samples in a row outside" in shown
    assert "▁" * 29 + "▂" * 30 + "█  1 to 9, limit 3, 2026-03-02 00:01 to 2026-03-02 00:03 UTC\n" in shown
    assert [row["verdict"] for row in data["verdicts"]] == ["pass", "inconclusive"]
    assert data["values"] == [
        [f"2026-03-02T00:0{minute}:00Z", value] for minute, value in ((1, 1.0), (2, 2.5), (3, 9.0))
    ]


def test_a_metric_without_an_answer_fails_the_command_and_is_kept(
    rollout: Rollout, started: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ROLLOUT_PROMETHEUS_URL")

    said = rollout("sample")
    ticked = rollout("tick").out

    assert said.code == 1
    assert "metric:slippage" in said.out
    assert "ROLLOUT_PROMETHEUS_URL is not set" in said.out
    assert "metric:slippage: no value: ROLLOUT_PROMETHEUS_URL is not set; blind for 0 s of at most 24 h" in ticked


def test_a_start_says_when_its_metrics_cannot_be_asked_for(
    rollout: Rollout, started: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollout("rollback", "fib_rsi", "--reason", "anew")
    monkeypatch.delenv("ROLLOUT_PROMETHEUS_URL")
    again = ("start", "fib_rsi", "2", "--override-reason", "anew", "--yes")
    plan = str(Path(str(started.url.database)).parent / "plan.json")

    said = rollout(*again, "--plan", plan)
    rollout("rollback", "fib_rsi", "--reason", "anew")

    assert "\nROLLOUT_PROMETHEUS_URL is not set here. " in said.out
    assert "ROLLOUT_PROMETHEUS_URL" not in rollout(*again).out


def test_a_rollout_without_metrics_has_nothing_to_sample(rollout: Rollout, database: Engine) -> None:
    assert rollout("sample").out == "no open rollout has a metric gate\n"


def test_all_gates_are_told_in_the_order_of_time(rollout: Rollout, started: Engine) -> None:
    assert "no verdicts yet" in rollout("verdicts", "fib_rsi").out
    rollout("tick")
    known = rollout("verdicts", "fib_rsi", "--json").data

    assert [row["gate"] for row in known["verdicts"]] == ["errors", "freshness", "metric:slippage"]
    assert known["values"] == []
    assert known["rollout_id"] == rollout("status", "--json").data[0]["rollout"]["id"]
    assert rollout("verdicts", "fib_rsi", "--rollout", known["rollout_id"], "--json").data == known


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (("fib_rsy",), 4, "no strategy 'fib_rsy'"),
        (("fib_rsi", "--rollout", "7"), 2, "Invalid value for '--rollout'"),
        (("fib_rsi", "--rollout", "00000000-0000-0000-0000-000000000000"), 4, "no rollout 00000000"),
        (("fib_rsi", "--gate", "slippage"), 2, "allowed: freshness, errors, metric:slippage"),
    ],
)
def test_a_history_that_is_not_there_is_refused_in_a_line(
    rollout: Rollout, started: Engine, arguments: tuple[str, ...], code: int, line: str
) -> None:
    said = rollout("verdicts", *arguments)

    assert said.code == code
    assert line in said.err


@pytest.mark.parametrize(
    ("hours", "values", "drawn"),
    [
        ([0], [5.0], "▁▁▁▁"),
        ([0, 4], [1.0, 1.0], "▁▁▁▁"),
        ([0, 1, 2, 3, 4], [0.0, 1.0, 2.0, 3.0, 7.0], "▂▃▄█"),
        ([0, 3, 4], [7.0, 0.0, 3.5], "██▁▅"),
    ],
)
def test_a_value_stands_until_the_next(hours: list[int], values: list[float], drawn: str) -> None:
    assert spark([MONDAY + hour * HOUR for hour in hours], values, width=4) == drawn


def test_a_start_without_shadow_says_what_its_gates_lack(rollout: Rollout, database: Engine) -> None:
    put_version(database, "1", Status.ACTIVE)
    put_version(database, "2")

    said = rollout("start", "fib_rsi", "2", "--yes")

    assert said.out.splitlines() == [
        "fib_rsi 2 started at 5 % of users",
        "the risk of 2 against 1 is unknown: 0 days in shadow together, 20 are needed; "
        "its users are sent the full size",
    ]
    assert said.err.startswith(
        "warning: 2 has 0 slots on 0 days in shadow, 30 days are enough. In this rollout the gates"
    )
    assert "How long it takes: rollout plan fib_rsi 2. " in said.err


def test_commands_are_suggested_as_the_owner_called_them(
    rollout: Rollout, database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_version(database, "1", Status.ACTIVE)
    put_version(database, "2")
    monkeypatch.setenv("UV_RUN_RECURSION_DEPTH", "1")  # as `uv run` sets it

    warned = rollout("start", "fib_rsi", "2", "--yes").err
    planned = rollout("plan", "fib_rsi", "2").out
    refused = rollout("whatif", "fib_rsi", "2").err

    assert "before you start: uv run rollout shadow && uv run rollout score" in warned
    assert planned.splitlines()[-1] == "Next: uv run rollout replay fib_rsi 2"
    assert "run: uv run rollout replay fib_rsi 2 --from TIME" in refused


def test_a_file_that_ended_long_ago_is_named(
    rollout: Rollout, database: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put_version(database, "1", Status.ACTIVE)
    (tmp_path / "GOLD.csv").write_text("time,open,high,low,close\n2026-02-02T10:00Z,1,1,1,1\n")
    monkeypatch.setenv("ROLLOUT_FEED", str(tmp_path / "GOLD.csv"))

    ended = rollout("status").err
    shadowed = rollout("shadow").err
    put_decisions(database, decision_row("1", MONDAY - HOUR))
    decided = rollout("status").err
    monkeypatch.setenv("ROLLOUT_FEED", str(tmp_path / "SILVER.csv"))
    set_clock(monkeypatch, MONDAY + 200 * HOUR)
    absent = rollout("status")

    assert "the newest candle of " in ended
    assert "GOLD.csv is of 2026-02-02 10:00 UTC, 27 days ago: no version decides now. Append newer candles" in ended
    assert ended == shadowed
    assert decided == ""
    assert (absent.code, absent.err) == (0, "")


def test_in_a_narrow_terminal_the_longest_column_is_below_its_row() -> None:
    reason = "every gate passed at 5 %: difference +0.060 R per slot, lower bound -0.147, margin -0.150, 50 slots"
    made = table(["gate", "verdict", "reason", "since"], [("excess_drawdown", "pass", reason, MONDAY)] * 2)
    narrow, wide = (Console(width=width, file=StringIO()) for width in (80, 200))

    with narrow.capture() as shown:
        narrow.print(fit(made, narrow))

    lines = [line.rstrip() for line in shown.get().splitlines()]
    assert lines[1].split() == ["gate", "verdict", "since"]
    assert lines[3].split() == ["excess_drawdown", "pass", "2026-03-02", "00:00"]
    assert " ".join([lines[4].strip(), lines[5].strip()]) == reason
    assert lines[6] == lines[3]
    assert fit(made, wide) is made


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def test_the_status_of_a_rollout_fits_a_screen_of_80_columns(
    rollout: Rollout, database: Engine, monkeypatch: pytest.MonkeyPatch, narrow: None
) -> None:
    put_version(database, "1", Status.ACTIVE)
    put_version(database, "2")
    rollout("start", "fib_rsi", "2", "--yes")
    put_decisions(database, *(decision_row(version, MONDAY) for version in ("1", "2")))
    set_clock(monkeypatch, MONDAY + HOUR)
    rollout("tick")

    shown = [line.rstrip() for line in rollout("status").out.splitlines()]

    assert (len(shown) < 25, max(map(len, shown)) <= 80) == (True, True)
    assert shown[0] == "Nothing can be concluded yet: 0 of 30 slots, day 0 of at least 3."
    assert "stage      [5] → 10 → 25 → 50 → 100 %, since 2026-03-02 00:00" in shown
    assert "other gates: 4 pass, 5 need no data. See: rollout status fib_rsi --all" in shown
    assert "next: the stage's minimum time lasts another 23 h, until 2026-03-03 00:00 UTC" in shown
    assert any(re.fullmatch(r"not worse +insufficient +0 of 30 slots, day 0 of at least 3", line) for line in shown)
    silent = "unlike in shadow, excess drawdown, harm, losing streak"
    assert f"no data yet  hold it       {silent}".rsplit(" ", 1)[0] in shown


def test_several_strategies_have_two_lines_each(rollout: Rollout, database: Engine, narrow: None) -> None:
    for name in ("fib_rsi", "plain"):
        put_version(database, "1", Status.ACTIVE, strategy_name=name)
    put_version(database, "2")
    rollout("start", "fib_rsi", "2", "--yes")

    shown = [line.rstrip() for line in rollout("status").out.splitlines()]

    assert shown == [
        "fib_rsi: 1, 2 for 5 % of users",
        "  Started at 5 %: no tick has judged it yet.",
        "plain: 1",
        "  1 serves all users.",
    ]


def test_a_rollout_that_needs_its_owner_shows_the_commands(rollout: Rollout, started: Engine, narrow: None) -> None:
    rollout("pause", "fib_rsi", "--reason", "the broker is down", "--actor", "anna")

    shown = rollout("status").out

    assert shown.startswith("Paused by anna: the broker is down. Resume it, or roll back.\n")
    assert 'do: rollout resume fib_rsi --reason "..."\ndo: rollout rollback fib_rsi --reason "..."\n' in shown


def test_watch_prints_a_line_when_a_verdict_changes(
    rollout: Rollout, started: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter(["unchanged", "rolled back"])

    def sleep(_seconds: float) -> None:
        look = next(looks, None)
        if look is None:
            raise KeyboardInterrupt
        if look == "rolled back":
            main(["rollback", "fib_rsi", "--reason", "odd", "--actor", "anna"])

    monkeypatch.setattr("time.sleep", sleep)

    watched = rollout("watch", "--every", "1")

    assert (watched.code, watched.out.splitlines()) == (
        0,
        [
            "2026-03-02 00:00 fib_rsi: Started at 5 %: no tick has judged it yet.",
            "fib_rsi 2 is rolled back. No user gets it.",
            "2026-03-02 00:00 fib_rsi: 1 serves all users. Last rollout, 2: Rolled back at 5 %: by anna: odd.",
        ],
    )
