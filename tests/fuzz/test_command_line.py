"""Whatever an owner types, hands in or has set: an exit code; what is refused is one line, and changes nothing."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
import typer
from hypothesis import given
from hypothesis import strategies as st

from strategy_core.cli import app, main
from strategy_core.domain.live_trades import TradeReport
from strategy_core.services.audit import export
from strategy_core.settings import Settings
from tests.builders import MONDAY
from tests.cli.conftest import FEED
from tests.fuzz.conftest import Kept
from tests.fuzz.damage import TOKENS, damaged, rules

LONG = {"demo", "up", "api", "exporter", "deploy", "watch"}  # go on until they are stopped, or ask a server
WORKING = {"shadow", "register", "calibrate"}  # start processes, or compute for minutes
ENDED = range(7)
REFUSED = range(2, 7)
IN_SPITE = {"tick", "audit verify", "db check"}  # a tick rules first; the others answer, and their code says what
WORDS = [
    *(token.decode("utf-8", "surrogateescape") for token in TOKENS if b"\x00" not in token),
    "1", "3", "5", "33.333", "nope", "-", "--", "--help", "@", "@/dev/null", "@missing", "/dev/null", ".", "missing/x",
    "2026-01-01", "2026-W01-1", "now", "GOLD,SILVER", ",,", "1h", "7m", "active", "extend", "%s", "$(id)", "[bold]x",
    "00000000-0000-0000-0000-000000000000",
]  # fmt: skip
VALUES = [
    *(word for word in WORDS if word.isascii()), "synthetic", "synthetic:GOLD?seed=-1", "synthetic:GOLD?days=1e99",
    "synthetic:GOLD?start=9999-01-01", "synthetic:GOLD?a=b&a=c", "synthetic:NOPE", "://", "http://[", "nope://x",
    "critical=json://x", "always", "metals", "2026-01-01T00:00Z", "2026-01-01T00:00",
]  # fmt: skip


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if path and not (path[0] in LONG or path[0] == "token"):
        yield path, command
    for name, each in getattr(command, "commands", {}).items():
        yield from commands(each, (*path, name))


COMMANDS = [
    (path, command)
    for path, command in commands(typer.main.get_command(app))
    if path[-1] not in WORKING and (command.params[:-1] or path[0] not in ("db", "alerts"))
]


@st.composite
def lines(draw: st.DrawFn) -> tuple[str, list[str]]:
    """Return a command's name, and a command line that begins with it."""
    path, command = draw(st.sampled_from(COMMANDS))
    said = list(path)
    likely = {"strategy": "fib_rsi", "version": "2", "user_id": "u1", "percent": "5", "reason": "so"}
    words = st.sampled_from(WORDS)
    for parameter in command.params:
        word = st.one_of(words, st.just(likely[parameter.name])) if parameter.name in likely else words
        if parameter.param_type_name == "argument":
            said += [draw(word)] if draw(st.integers(0, 9)) else []
        elif parameter.name == "yes":
            said.append("--yes")
        elif parameter.name not in ("help", "database_url") and draw(st.integers(0, 3)) == 0:
            said += [parameter.opts[0]] if parameter.is_flag else [parameter.opts[0], draw(word)]
    return " ".join(path), said


SETTINGS = sorted(set(Settings.model_fields) - {"database_url", "oanda_url", "prometheus_url", "alert_urls"})
ENVIRONMENTS = st.dictionaries(st.sampled_from(SETTINGS), st.sampled_from(VALUES), max_size=2)
TRADE = {
    "trade_id": "t1",
    "user_id": "u1",
    "strategy_name": "fib_rsi",
    "version": "1",
    "symbol": "GOLD",
    "opened_at": "2026-03-02T00:30:00Z",
}
STAGE = {"percent": 5, "minimum_time": 3600, "margins": {"pnl_r": 0.1, "win": 0.05}}
PLAN = {
    "stages": [STAGE, STAGE | {"percent": 100}],
    "gates": [{"kind": "errors", "in_a_row": 3}, {"kind": "metric", "metric": "x", "query": "up", "maximum": 1}],
    "approve_before": [100],
    "blind_limit": 86_400,
}
CONFIG = {"rsi_period": 14, "rsi_overbought": 70, "rsi_oversold": 30, "fib_lookback_bars": 55}
TRADES = [",".join(TradeReport.model_fields), ",".join(TRADE.get(name, "") for name in TradeReport.model_fields), ""]
FILES = {
    "plan": (json.dumps(PLAN).encode(), ["start", "ppo_gold", "2", "--yes", "--plan", "FILE"]),
    "preview": (json.dumps(PLAN).encode(), ["plan", "ppo_gold", "2", "--plan", "FILE"]),
    "config": (json.dumps(CONFIG).encode(), ["register", "fib_rsi", "9", "--timeframe", "4h", "--config", "@FILE"]),
    "trades": ("\n".join(TRADES).encode(), ["outcomes", "FILE"]),
    "users": (b"user_id,capital\nu1,100\nu2,\nu3,1e3\n", ["users", "FILE"]),
}


@pytest.fixture(autouse=True)
def quiet(kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in [each for each in os.environ if each.startswith("ROLLOUT_")]:
        monkeypatch.delenv(name)
    usual = {"feed": FEED, "replay_from": MONDAY.isoformat(), "replay_started_at": "2199-01-01T00:00Z"}
    for name, value in {**usual, "database_url": kept.url}.items():
        monkeypatch.setenv(f"ROLLOUT_{name.upper()}", value)
    yield
    structlog.reset_defaults()


def run(kept: Kept, said: list[str], capsys: pytest.CaptureFixture[str], *, in_spite: bool = False) -> int:
    code = main(said)
    told = capsys.readouterr()
    assert code in ENDED
    if code in REFUSED:
        lines = [each for each in told.err.splitlines() if not each.startswith("warning: ")]
        assert len(lines) == 1, told.err
        assert in_spite or kept.unchanged
    if not kept.unchanged:
        kept.put_back()
    return code


@pytest.mark.full
@rules(120)
@given(line=lines(), environment=ENVIRONMENTS)
def test_any_line_in_any_environment_ends_with_a_code(
    kept: Kept, capsys: pytest.CaptureFixture[str], line: tuple[str, list[str]], environment: dict[str, str]
) -> None:
    name, said = line
    with pytest.MonkeyPatch.context() as patch:
        for setting, value in environment.items():
            patch.setenv(f"ROLLOUT_{setting.upper()}", value)

        run(kept, said, capsys, in_spite=name in IN_SPITE)


@pytest.mark.full
@pytest.mark.drawn
@pytest.mark.parametrize("kind", FILES)
def test_any_file_is_taken_whole_or_refused_whole(
    kept: Kept, capsys: pytest.CaptureFixture[str], tmp_path: Path, kind: str
) -> None:
    sound, said = FILES[kind]
    file = tmp_path / "file"

    @rules(25)
    @given(content=damaged(sound))
    def hand_in(content: bytes) -> None:
        file.write_bytes(content)
        run(kept, [word.replace("FILE", str(file)) for word in said], capsys)

    hand_in()


@pytest.mark.drawn
def test_any_export_is_followed_or_refused(kept: Kept, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    sound = "".join(export(kept.engine)).encode()
    file = tmp_path / "trail.jsonl"

    @rules(30)
    @given(content=damaged(sound))
    def verify(content: bytes) -> None:
        file.write_bytes(content)
        run(kept, ["audit", "verify", "--export", str(file)], capsys)

    verify()


@pytest.mark.drawn
def test_any_dump_is_restored_whole_or_not_at_all(
    kept: Kept, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file, target = tmp_path / "dump.db", tmp_path / "restored.db"

    @rules(20)
    @given(content=damaged(kept.file.with_suffix(".kept").read_bytes()))
    def restore(content: bytes) -> None:
        file.write_bytes(content)
        code = run(kept, ["db", "restore", str(file), "--database-url", f"sqlite:///{target}"], capsys)
        left = sorted(each.name for each in tmp_path.glob("restored*"))
        assert left == ([] if code else [target.name])
        target.unlink(missing_ok=True)

    restore()
