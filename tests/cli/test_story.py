"""An owner's day at the command line: real versions in their workers, candles, and a clock that is moved by hand."""

import json
from datetime import datetime
from hashlib import sha256
from pathlib import Path

import pytest
from sqlalchemy import Engine

from tests.api.asking import Api
from tests.builders import DAY, HOUR, MONDAY, put_version
from tests.cli.conftest import Rollout, set_clock
from tests.services import versions_under_test

OFFENDER = ("--entry-point", "tests.cli.offenders:Offender", "--symbols", "GOLD")


@pytest.mark.full
def test_from_a_new_database_to_a_rollback(
    rollout: Rollout, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("owner")
    monkeypatch.setenv("ROLLOUT_DATABASE_URL", f"sqlite:///{folder / 'new.db'}")
    (folder / "plan.json").write_text(json.dumps({"bake": 3600.0, "approve_before": [5, 100]}))

    upgraded = rollout("db", "upgrade", "--json").data
    first = rollout("register", "fib_rsi", "1", "--symbols", "GOLD", "--status", "active", "--yes", "--json").data
    config = folder / "config.json"
    config.write_text('{"rsi_period": 10}')
    second = rollout("register", "fib_rsi", "2", "--config", f"@{config}", "--symbols", "GOLD", "--json").data
    listed = rollout("list", "--strategy", "fib_rsi", "--json").data
    shown = rollout("show", "fib_rsi", "2", "--json").data

    assert upgraded["database"] == f"sqlite:///{folder / 'new.db'}"
    assert (first["status"], first["config"]["rsi_period"]) == ("active", 14)
    assert (second["status"], second["config"]["rsi_period"]) == ("shadow", 10)
    assert [(each["version"], each["status"]) for each in listed] == [("1", "active"), ("2", "shadow")]
    assert shown["registration_report"]["passed"]
    assert shown["fingerprint"] == second["fingerprint"]

    set_clock(monkeypatch, MONDAY + 2 * DAY)
    started = rollout(
        "start", "fib_rsi", "2", "--plan", str(folder / "plan.json"), "--reason", "shadow was fine", "--yes"
    )
    set_clock(monkeypatch, MONDAY + 4 * DAY)
    ran = rollout("shadow", "--json").data
    again = rollout("shadow", "--json").data
    scored = rollout("score", "--json").data
    (ticked,) = rollout("tick", "--json").data
    decided = rollout("decisions", "fib_rsi", "2", "--start", "2026-03-04", "--limit", "3", "--json").data
    compared = rollout("compare", "fib_rsi", "2", "--start", "2026-03-02", "--json").data

    assert started.out.splitlines() == [
        "fib_rsi 2 started at 5 % of users",
        "the risk of 2 against 1 is unknown: 1 days in shadow together, 20 are needed; its users are sent the full"
        " size",
    ]
    assert [(run["version"], run["role"], run["logged"] > 80, run["errors"]) for run in ran] == [
        ("1", "active", True, 0),
        ("2", "canary", True, 0),
    ]
    assert [run["logged"] for run in again] == [0, 0]
    assert scored["lost"] == 0
    assert ticked["ruling"]["step"] == "hold"
    assert len(decided) == 3
    assert decided[-1]["timestamp"] == "2026-03-05T23:00:00Z"
    assert (compared["candles_compared"], compared["candles_excluded"]) == (ran[0]["logged"], 0)
    assert {"shadow_signal_count", "active_signal_count", "divergence_rate"} <= compared.keys()

    paused = rollout("pause", "fib_rsi", "--reason", "holidays", "--json").data
    widened = rollout("percent", "fib_rsi", "12.5", "--yes", "--json").data
    routed = rollout("route", "user_5", "fib_rsi", "--json").data
    resumed = rollout("resume", "fib_rsi", "--json").data
    (status,) = rollout("status", "fib_rsi", "--json").data
    rolled_back = rollout("rollback", "fib_rsi", "--reason", "users complain", "--actor", "ben", "--json").data
    (after,) = rollout("status", "--json").data
    audit = rollout("audit", "log", "fib_rsi", "--json").data

    assert (paused["state"], widened["rollout_percent"], resumed["state"]) == ("paused", 12.5, "running")
    assert routed["percent"] == 12.5
    assert (status["active"], status["canary"], status["percent"]) == ("1", "2", 5.0)
    assert status["rollout"]["stages"] == [5.0, 10.0, 25.0, 50.0, 100.0]
    assert {verdict["gate"] for verdict in status["rollout"]["verdicts"]} >= {
        "errors",
        "not_worse",
        "freshness",
    }
    assert rolled_back == {"strategy_name": "fib_rsi", "version": "2"}
    assert (after["canary"], after["shadows"], after["rollout"]["state"]) == (None, ["2"], "rolled_back")
    assert after["alerts"][-1]["text"] == "fib_rsi 2 rolled back by ben: users complain"
    assert [event["action"] for event in audit] == [
        *("register_version", "register_version", "start_rollout", "pause"),
        *("update_canary_percent", "resume", "roll_back"),
    ]
    assert {event["source"] for event in audit} == {"cli"}


@pytest.mark.full
@pytest.mark.parametrize(
    ("trick", "kind", "fact"),
    [
        ("write", "breach", "open for writing: "),
        ("connect", "breach", "socket: "),
        ("sleep", "deadline", "no answer within 0.5 s"),
        ("raise", "raised", "ValueError: no model"),
        ("nonsense", "invalid", "confidence nan is not within 0..1"),
    ],
)
def test_a_version_that_goes_wrong_gets_error_rows_and_disturbs_nobody(
    rollout: Rollout, monkeypatch: pytest.MonkeyPatch, trick: str, kind: str, fact: str
) -> None:
    turn = MONDAY + 5 * HOUR
    _register(rollout, "good", since=turn + 365 * DAY, trick=trick)
    _register(rollout, "bad", since=turn, trick=trick)
    set_clock(monkeypatch, MONDAY + 6 * HOUR)

    runs = {run["version"]: run for run in rollout("shadow", "--json").data}
    rows = rollout("decisions", "offender", "bad", "--json").data
    shown = rollout("decisions", "offender", "bad").out

    assert (runs["good"]["logged"], runs["good"]["errors"]) == (6, 0)
    assert (runs["bad"]["logged"], runs["bad"]["errors"]) == (6, 2)
    assert [row["error_kind"] for row in rows] == ["", "", "", "", kind, kind]
    assert all(fact in row["error"] for row in rows[-2:])
    assert f"{kind}: {fact}" in shown


def _register(rollout: Rollout, version: str, *, since: datetime, trick: str) -> None:
    config = json.dumps({"trick": trick, "since": since.isoformat(), "target": f"{version}.txt"})
    assert rollout("register", "offender", version, "--config", config, *OFFENDER).code == 0


def test_a_version_that_was_changed_is_refused_aloud(
    rollout: Rollout, database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other versions still decide, and the exit code is not 0."""
    put_version(
        database, "1", strategy_name="offender", entry_point=OFFENDER[1], config={"trick": "raise"}, warmup_bars=5
    )
    _register(rollout, "2", since=MONDAY + DAY, trick="raise")
    set_clock(monkeypatch, MONDAY + 3 * HOUR)

    said = rollout("shadow", "--json")

    tampered, sound = json.loads(said.out)
    assert said.code == 1
    assert "is not the build that was registered" in tampered["error"]
    assert (tampered["logged"], sound["logged"]) == (0, 3)


def test_the_model_files_of_a_version_are_shown_in_its_order(
    rollout: Rollout, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, database: Engine
) -> None:
    weights = [f"weights-{number}.bin" for number in range(11, 0, -1)]
    for name in weights:
        (tmp_path / name).write_text(name)
    (tmp_path / "a_strategy_with_weights.py").write_text(
        Path(versions_under_test.__file__).read_text()
        + "\n\nclass Weighted(Clockwork):\n    def model_files(self, params):\n"
        + f"        return [__import__('pathlib').Path(__file__).with_name(name) for name in {weights}]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    options = ("--entry-point", "a_strategy_with_weights:Weighted", "--symbols", "GOLD")
    files = [{"name": name, "fingerprint": sha256(name.encode()).hexdigest()} for name in weights]

    registered = rollout("register", "weighted", "1", *options, "--json").data
    shown = rollout("show", "weighted", "1").out.splitlines()
    answered = Api(database).get(f"/versions/{registered['id']}").json()

    assert registered["model_files"] == files
    assert rollout("show", "weighted", "1", "--json").data["model_files"] == files
    assert answered["model_files"] == files
    lines = [line.split() for line in shown if line.strip().startswith("weights-")]
    assert lines == [[each["name"], each["fingerprint"]] for each in files]
