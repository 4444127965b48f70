"""What `up` refuses before it starts anything."""

import socket
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import pytest

from deployments.up import _set_clock, up
from strategy_core.cli import main
from strategy_core.domain.errors import InvalidCandles, InvalidSetting
from strategy_core.domain.lifecycle import Status
from strategy_core.market.source import ReplayClock
from strategy_core.services.database import open_database, read_clock, start_clock
from tests.builders import MONDAY, put_version

REAL = datetime(2026, 1, 1, tzinfo=UTC)


def test_what_is_not_usable_is_refused_before_anything_is_started(tmp_path: Path) -> None:
    printed: list[str] = []
    with pytest.raises(InvalidCandles, match=r"/nowhere\.csv"):
        up(
            database_url=None,
            feed="/nowhere.csv",
            symbol=None,
            speed=60,
            port=None,
            state=tmp_path,
            echo=printed.append,
        )
    with pytest.raises(InvalidSetting, match="speed"):
        up(database_url=None, feed=None, symbol=None, speed=0, port=None, state=tmp_path, echo=printed.append)

    assert not (tmp_path / "logs").exists()


def test_a_port_of_another_program_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would look like a healthy server, and clients would send it the password."""
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    printed: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(InvalidSetting, match=f"port = {port} is not valid; allowed: a port that no other program"):
            up(database_url=None, feed=None, symbol=None, speed=60, port=port, state=tmp_path, echo=printed.append)

    assert [line.split()[0] for line in printed] == ["Opening"], "no address and no start of a server"
    assert not (tmp_path / "logs").exists()


def test_the_database_of_the_environment_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay must not write to a database that serves users."""
    monkeypatch.setenv("ROLLOUT_DATABASE_URL", f"sqlite:///{tmp_path}/served.db")

    assert main(["up", "--candles", "/nowhere.csv", "--state", str(tmp_path / "state")]) != 0

    assert not (tmp_path / "served.db").exists()
    assert (tmp_path / "state" / "rollout.db").exists()


def test_a_database_of_the_command_line_is_used(tmp_path: Path) -> None:
    own = f"sqlite:///{tmp_path}/own.db"

    assert main(["up", "--candles", "/nowhere.csv", "--state", str(tmp_path / "state"), "--database-url", own]) != 0

    assert (tmp_path / "own.db").exists()
    assert not (tmp_path / "state" / "rollout.db").exists()


def test_the_clock_of_a_replay_is_kept_out_of_a_database_that_may_serve_users(sqlite_url: str, tmp_path: Path) -> None:
    engine = open_database(sqlite_url)
    put_version(engine, "1", Status.ACTIVE)

    with pytest.raises(InvalidSetting, match="allowed: a new database, or one that `rollout up` has made"):
        up(database_url=sqlite_url, feed=None, symbol=None, speed=60, port=None, state=tmp_path / "state")

    assert read_clock(engine) is None
    start_clock(engine, ReplayClock(None, MONDAY))
    with pytest.raises(InvalidCandles, match="nowhere"):  # then one of an earlier `up`
        up(database_url=sqlite_url, feed="/nowhere.csv", symbol=None, speed=60, port=None, state=tmp_path / "state")
    engine.dispose()


def test_the_clock_stands_still_once_everything_has_ended(sqlite_url: str) -> None:
    engine = open_database(sqlite_url)
    with ExitStack() as stack:
        _set_clock(engine, ReplayClock(REAL, MONDAY, 60.0), stack)
        running = read_clock(engine)

    stopped = read_clock(engine)
    engine.dispose()
    assert running == ReplayClock(REAL, MONDAY, 60.0)
    assert stopped is not None
    assert (stopped.started_at, stopped.replay_from > MONDAY) == (None, True)
