"""What `up` refuses before it starts anything."""

import socket
from pathlib import Path

import pytest

from deployments.up import up
from strategy_core.cli import main
from strategy_core.domain.errors import InvalidCandles, InvalidSetting


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

    assert printed == []
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
