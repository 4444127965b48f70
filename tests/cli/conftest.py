"""The command line, called in this process: a migrated SQLite file, an hourly market, a clock that stands still."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pytest
import structlog
from sqlalchemy import Engine, text

from strategy_core.cli import main
from strategy_core.store.engine import open_database
from tests.builders import MONDAY

TABLES = ["strategy_version", "canary_config", "rollout", "shadow_decision_log", "audit_event", "alert_outbox"]
FEED = "synthetic:GOLD?symbols=2&start=2026-01-01&days=120"


@dataclass(frozen=True, slots=True)
class Said:
    """What one call of the command answered."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)


Rollout = Callable[..., Said]


@pytest.fixture
def rollout(sqlite_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Rollout]:
    monkeypatch.setenv("ROLLOUT_DATABASE_URL", sqlite_url)
    monkeypatch.setenv("ROLLOUT_FEED", FEED)
    monkeypatch.setenv("ROLLOUT_DECISION_DEADLINE_S", "0.5")
    monkeypatch.setenv("ROLLOUT_REPLAY_STARTED_AT", "2199-01-01T00:00Z")  # until then the clock stands still
    set_clock(monkeypatch, MONDAY)

    def call(*arguments: str) -> Said:
        code = main(arguments)
        captured = capsys.readouterr()
        return Said(code, captured.out, captured.err)

    yield call
    structlog.reset_defaults()  # the logs' stream was this test's


def set_clock(monkeypatch: pytest.MonkeyPatch, now: datetime) -> None:
    monkeypatch.setenv("ROLLOUT_REPLAY_FROM", now.isoformat())


@pytest.fixture
def database(sqlite_url: str) -> Iterator[Engine]:
    """The database behind the command."""
    engine = open_database(sqlite_url)
    yield engine
    engine.dispose()


def contents(engine: Engine) -> dict[str, list[Any]]:
    """Return every row of every table that a refused command must leave alone."""
    with engine.connect() as connection:
        return {table: [*connection.execute(text(f"SELECT * FROM {table} ORDER BY 1"))] for table in TABLES}
