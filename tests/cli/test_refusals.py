"""Invalid input: one line with the problem and what is allowed, and no change in the database."""

import json
import socket
from pathlib import Path

import pytest
from sqlalchemy import Engine

from strategy_core.cli import main
from tests.builders import put_pair
from tests.cli.conftest import Rollout, contents
from tests.prepared import prepared

OFFENDER = ("--entry-point", "tests.cli.offenders:Offender", "--symbols", "GOLD")


@pytest.fixture
def pair(database: Engine) -> Engine:
    """Version 1 is active, version 2 in shadow."""
    prepared(database, put_pair)
    return database


def refused(rollout: Rollout, *arguments: str) -> tuple[int, str]:
    """Return the exit code and the error line of a refusal, with an empty standard output. Warnings may precede it."""
    said = rollout(*arguments)
    *warnings, line = said.err.splitlines()
    assert all(each.startswith("warning: ") for each in warnings)
    assert said.code != 0
    assert said.out == ""
    return said.code, line.removeprefix("error: ")


@pytest.mark.parametrize(
    ("command", "code", "facts"),
    [
        ("show nope 1", 4, "no strategy 'nope'; known strategies: fib_rsi"),
        ("list --strategy nope", 4, "no strategy 'nope'; known strategies: fib_rsi"),
        ("activate nope 1 --yes", 4, "no strategy 'nope'; known strategies: fib_rsi"),
        ("status nope", 4, "no strategy 'nope'; known strategies: fib_rsi"),
        ("audit log nope", 4, "no strategy 'nope'; known strategies: fib_rsi"),
        ("rollback nope --reason harm", 4, "no strategy 'nope'; known strategies: fib_rsi"),
        ("route user_1 nope", 4, "no strategy 'nope'; known strategies: fib_rsi"),
        ("start fib_rsi 9 --yes", 4, "no version '9' of 'fib_rsi'; known versions: 1, 2"),
        ("decisions fib_rsi 9", 4, "no version '9' of 'fib_rsi'; known versions: 1, 2"),
        ("compare fib_rsi 9", 4, "no version '9' of 'fib_rsi'; known versions: 1, 2"),
        ("compare fib_rsi 2 --symbol NOPE", 4, "no candles of 'NOPE'; known symbols: GOLD"),
        ("percent fib_rsi 10 --yes", 4, "'fib_rsi' has no canary; activate one first"),
        ("approve fib_rsi", 4, "no rollout of 'fib_rsi' is open"),
        ("register fib_rsi 1", 5, "'fib_rsi' already has a version '1'"),
        ("activate fib_rsi 1 --yes", 5, "cannot move active -> active; allowed: retired, shadow"),
        ("retire fib_rsi 1", 5, "cannot move active -> retired"),
        ("retire fib_rsi 1 --close", 5, "not confirmed, nothing was changed: fib_rsi is closed: its users get no"),
        ("retire fib_rsi 1 --close --yes", 5, "cannot be closed while other versions decide: 2; retire them first"),
        ("rollback fib_rsi --reason harm", 5, "name the active version (1)"),
        ("canary fib_rsi 2 150", 2, "'150' is not a rollout percent; allowed: 0.00 to 100.00, two decimals at most"),
        ("canary fib_rsi 2 -1", 2, "'-1' is not a rollout percent"),
        ("canary fib_rsi 2 33.333", 2, "'33.333' is not a rollout percent"),
        ("canary fib_rsi 2 nan", 2, "'nan' is not a rollout percent"),
        ("percent fib_rsi half", 2, "'half' is not a rollout percent"),
        ("percent fib_rsi -0.01", 2, "'-0.01' is not a rollout percent"),
        ("register fib_rsi 3 --timeframe 7m", 2, "'7m' is not a timeframe; allowed: 1m, 3m, 5m, 15m, 30m, 1h, 2h"),
        (
            "register fib_rsi 3 --timeframe 4h",
            2,
            "--timeframe = '4h' is not valid; allowed: 1h, as the feed is read, or set ROLLOUT_TIMEFRAME=4h first",
        ),
        ("register fib_rsi 3 --symbols OIL", 4, "no candles of 'OIL'; known symbols: GOLD, SILVER"),
        ("register fib_rsi 3 --symbols ", 2, "[] is not a list of symbols; allowed: one symbol or more"),
        ("register fib_rsi 3 --symbols GOLD,,SILVER", 2, "'' is not a symbol; allowed: 1 to 64 letters"),
        ("decisions fib_rsi 2 --symbol NOPE", 4, "no candles of 'NOPE'; known symbols: GOLD"),
        ("register fib_rsi ../3", 2, "'../3' is not a version; allowed: 1 to 64 letters"),
        ("register fib_rsj 3", 2, "neither package.module:Class nor a known name; did you mean 'fib_rsi'?"),
        ("register fib_rsi 3 --entry-point ./mine.py", 2, "neither package.module:Class nor a known name"),
        ("register fib_rsi 3 --config [1]", 2, "a JSON object is needed, got: [1]"),
        ("register fib_rsi 3 --config {", 2, "not JSON: Expecting property name"),
        ("register fib_rsi 3 --config @none.json", 2, "cannot read none.json: No such file or directory"),
        ('register fib_rsi 3 --config {"a":1,"a":2}', 2, "not JSON: 'a' occurs twice"),
        ('register fib_rsi 3 --config {"rsi_period":NaN}', 2, "rsi_period: nan is not a finite number"),
        ('register fib_rsi 3 --config {"rsi_oversold":-Infinity}', 2, "rsi_oversold: -inf is not a finite number"),
        ('register fib_rsi 3 --config {"rsi_perid":14}', 2, "rsi_perid: no such key; did you mean rsi_period?"),
        ('register fib_rsi 3 --config {"rsi_period":1}', 2, "rsi_period: Input should be greater than or equal to 2"),
        ("start fib_rsi 2 --plan none.json --yes", 2, "plan is not valid: cannot read none.json"),
        ("compare fib_rsi 2 --days nan", 2, "days = nan is not valid; allowed: above 0, at most 36500"),
        ("compare fib_rsi 2 --days 3 --from 2026-01-01", 2, "allowed: --days alone, or --from and --to without it"),
        ("compare fib_rsi 2 --to 2026-01-01", 2, "--to = '2026-01-01' is not valid; allowed: --to only with --from"),
        ("compare fib_rsi 2 --from 2026-01-02 --to 2026-01-01", 2, "is empty; allowed: start before end"),
        ("compare fib_rsi 2 --from 2026-01-02T10:00", 2, "--from has no time zone"),
        ("replay fib_rsi 2 --from 2026-01-02 --to 2026-01-02T10:00", 2, "--to has no time zone"),
        ("whatif fib_rsi 2 --from 2026-01-02T10:00", 2, "--from has no time zone"),
        ("decisions fib_rsi 2 --start 2026-01-02T10:00", 2, "--from has no time zone"),
        ("decisions fib_rsi 2 --to tomorrow", 2, "'tomorrow' is not a time for --to; allowed: 2026-01-31, or"),
        ("decisions fib_rsi 2 --from 0001-01-01T00:00+14:00", 2, "--from 0001-01-01T00:00:00+14:00 is out of range"),
        ("decisions fib_rsi 2 --to 9999-12-31T23:59-12:00", 2, "is out of range; allowed: the years 1678 to 2261"),
        ("compare fib_rsi 2 --from 1000-01-01", 2, "--from 1000-01-01T00:00:00+00:00 is out of range"),
        ("compare fib_rsi 2 --from 2026-01-01 --to 9999-12-31", 2, "--to 9999-12-31T00:00:00+00:00 is out of range"),
        ("route \udcff fib_rsi", 2, "'\\udcff' is not a readable text; allowed: UTF-8"),
        ("show \udcff 1", 2, "'\\udcff' is not a readable text; allowed: UTF-8"),
        ("db dump \udcff", 5, "'utf-8' codec can't encode"),
        ("list --actor \udcff", 2, "'\\udcff' is not a readable text; allowed: UTF-8"),
        ("route  fib_rsi", 2, "'' is not a user id; allowed: text in UTF-8, one character or more"),
        ("list --database-url postgresql://u@h:abc/d", 2, "database_url = 'postgresql://u@h:abc/d' is not valid; "),
        ("decisions fib_rsi 2 --limit 0", 2, "Invalid value for '--limit'"),
        ("audit log --limit 99999999999999999999", 2, "Invalid value for '--limit'"),
        ("alerts acknowledge 99999999999999999999 --reason x", 2, "Invalid value for 'ID...'"),
        ("decide fib_rsi perhaps --reason x", 2, "'perhaps' is not one of 'extend', 'advance'"),
        ("decide fib_rsi extend", 2, "Missing option '--reason'. See: rollout decide --help"),
        ("list --status paused", 2, "'paused' is not one of 'shadow', 'canary', 'active', 'retired'"),
        ("list --colour", 2, "No such option: --colour"),
        ("lst", 2, "No such command 'lst'"),
    ],
)
def test_a_refusal_is_one_line_and_changes_nothing(
    rollout: Rollout, pair: Engine, command: str, code: int, facts: str
) -> None:
    before = contents(pair)

    found = refused(rollout, *command.split(" "))

    assert found[0] == code
    assert facts in found[1]
    assert contents(pair) == before


@pytest.mark.parametrize(
    "command",
    [
        "activate fib_rsi 2",
        "canary fib_rsi 2 5",
        "percent fib_rsi 5",
        "start fib_rsi 2",
        "register x 1 --status active",
    ],
)
def test_what_moves_users_is_confirmed_first(rollout: Rollout, pair: Engine, command: str) -> None:
    before = contents(pair)

    code, line = refused(rollout, *command.split(" "))

    assert code == 5
    assert line.startswith("not confirmed, nothing was changed: ")
    assert line.endswith("; --yes skips the question")
    assert contents(pair) == before


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        ({"stages": []}, "stages must rise from above 0 %"),
        ({"stages": [{"percent": 150, "minimum_time": 60, "margins": {"pnl_r": 0.1, "win": 0.1}}]}, "stages.0.percent"),
        ({"late_candles": float("nan")}, "late_candles: Input should be a finite number"),
        ({"bake": float("inf")}, "bake: "),
        ({"approve": []}, "approve: Extra inputs are not permitted"),
    ],
)
def test_a_plan_is_refused_by_its_field(
    rollout: Rollout, pair: Engine, tmp_path: Path, content: dict[str, object], facts: str
) -> None:
    before = contents(pair)
    (tmp_path / "plan.json").write_text(json.dumps(content))

    code, line = refused(rollout, "start", "fib_rsi", "2", "--plan", str(tmp_path / "plan.json"), "--yes")

    assert code == 2
    assert facts in line
    assert contents(pair) == before


@pytest.mark.parametrize(
    ("feed", "facts"),
    [
        ("empty.csv", "empty.csv: has no candles: the file is empty"),
        ("header.csv", "header.csv: has no candles"),
        ("text.csv", "text.csv: has no column timestamp"),
        ("none.csv", "none.csv: no such file or folder"),
        ("synthetic:GOLD?sead=1", "feed option sead"),
        ("http://[x", "feed = 'http://[x' is not valid; allowed: synthetic:…, or the path of a file or folder"),
    ],
)
def test_candles_that_cannot_be_read_are_named(
    rollout: Rollout, pair: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, feed: str, facts: str
) -> None:
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "header.csv").write_text("timestamp,open,high,low,close,volume\n")
    (tmp_path / "text.csv").write_text("not candles\nat all\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROLLOUT_FEED", feed)
    before = contents(pair)

    code, line = refused(rollout, "register", "fib_rsi", "3")

    assert code == 2
    assert facts in line
    assert contents(pair) == before


@pytest.mark.full
@pytest.mark.parametrize(
    ("trick", "facts"),
    [
        ("write", "isolation: it tried to touch the outside: open for writing: "),
        ("connect", "isolation: it tried to touch the outside: socket: "),
        ("sleep", "no answer within 0.5 s"),
        ("raise", "ValueError: no model"),
        ("nonsense", "confidence nan is not within 0..1"),
    ],
)
def test_a_version_that_offends_is_not_registered(
    rollout: Rollout, pair: Engine, tmp_path: Path, trick: str, facts: str
) -> None:
    before = contents(pair)
    config = json.dumps({"trick": trick, "target": str(tmp_path / "written.txt")})

    code, line = refused(rollout, "register", "offender", "1", "--config", config, *OFFENDER)

    assert code == 5
    assert facts in line
    assert contents(pair) == before
    assert not (tmp_path / "written.txt").exists()


def test_a_config_file_that_is_not_text_is_refused(rollout: Rollout, pair: Engine, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00")

    code, line = refused(rollout, "register", "fib_rsi", "3", "--config", f"@{tmp_path / 'config.json'}")

    assert code == 2
    assert "not JSON: 'utf-8' codec can't decode" in line


def test_a_file_whose_name_is_no_text_is_named_as_far_as_can_be(rollout: Rollout, pair: Engine) -> None:
    """Such file names are valid, but the output streams cannot encode them."""
    code, line = refused(rollout, "db", "restore", "\udcff")

    assert (code, line) == (5, "\\udcff: there is no such file")


def test_a_database_that_is_not_migrated_says_what_to_do(rollout: Rollout, tmp_path: Path) -> None:
    (tmp_path / "blank.db").touch()

    code, line = refused(rollout, "list", "--database-url", f"sqlite:///{tmp_path / 'blank.db'}")

    assert code == 5
    assert "blank.db has no schema, needed is v" in line
    assert line.endswith("; run: rollout db upgrade")


@pytest.mark.parametrize("command", ["list", "status", "audit", "tick", "shadow", "rollback fib_rsi --reason harm"])
def test_no_command_but_upgrade_makes_a_database(rollout: Rollout, tmp_path: Path, command: str) -> None:
    code, line = refused(rollout, *command.split(" "), "--database-url", f"sqlite:///{tmp_path / 'new.db'}")

    assert code == 5
    assert line.endswith("; run: rollout db upgrade")
    assert not (tmp_path / "new.db").exists()


def test_a_database_that_cannot_be_had_is_one_line_without_its_password(rollout: Rollout, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a database, but long enough to be taken for one at first sight " * 20)
    with socket.socket() as nobody:  # bound, but not listening
        nobody.bind(("127.0.0.1", 0))
        absent = f"postgresql://ana:secret@127.0.0.1:{nobody.getsockname()[1]}/rollout"

        code, line = refused(rollout, "list", "--database-url", absent)

    assert (code, "secret" in line) == (1, False)
    assert "Connection refused" in line
    assert refused(rollout, "list", "--database-url", f"sqlite:///{tmp_path / 'notes.txt'}") == (
        1,
        "the database refuses to work: file is not a database",
    )
    assert refused(rollout, "db", "upgrade", "--database-url", f"sqlite:///{tmp_path / 'none' / 'new.db'}") == (
        1,
        "the database refuses to work: unable to open database file",
    )
    code, line = refused(rollout, "list", "--database-url", "mysql://ana:secret@host/rollout")
    assert (code, "secret" in line) == (2, False)


@pytest.mark.parametrize(
    ("settings", "facts"),
    [
        ({"REPLAY_SPEED": "fast"}, "ROLLOUT_REPLAY_SPEED = 'fast' is not valid"),
        ({"REPLAY_FROM": "9999-12-31T23:00Z"}, "replay_from 9999-12-31T23:00:00+00:00 is out of range"),
        (
            {"REPLAY_SPEED": "1000000", "REPLAY_STARTED_AT": "2000-01-01T00:00Z"},
            "replay_speed = 1000000.0 is not valid",
        ),
    ],
)
def test_a_setting_that_is_wrong_is_named(
    rollout: Rollout, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], facts: str
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(f"ROLLOUT_{name}", value)

    code, line = refused(rollout, "shadow")

    assert code == 2
    assert line.startswith(facts)


def test_a_fault_of_the_software_keeps_its_traceback() -> None:
    """A bug keeps its traceback, because developers need it."""
    with pytest.raises(TypeError):
        main([1])  # type: ignore[list-item]
