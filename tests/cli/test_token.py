"""`rollout token`: a server with the same settings accepts the token, which is the only output."""

import shutil
import sqlite3
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jwt
import pytest
from sqlalchemy import Engine

from strategy_core.api.auth import Authenticator, Failures, Principal
from strategy_core.api.settings import read_api_settings
from strategy_core.domain.lifecycle import Status
from tests.api.signing import SECRET, ec_key, private_pem, public_pem, rsa_key
from tests.builders import put_version
from tests.cli.conftest import Rollout


@pytest.fixture
def put(monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in ("SECRET", "PUBLIC_KEY", "JWKS_URL", "DEVELOPMENT"):
        monkeypatch.delenv(f"ROLLOUT_API_{name}", raising=False)

    def put(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(f"ROLLOUT_API_{name}", value)

    return put


def enter(printed: str) -> Principal:
    settings = read_api_settings()
    return Authenticator(settings, settings.open_keys(), Failures()).authenticate(f"Bearer {printed.strip()}", "")


def test_the_token_stands_alone_and_is_let_in(rollout: Rollout, put: Any) -> None:
    put(SECRET=SECRET)

    said = rollout("token", "--name", "ana")

    assert (said.code, said.err) == (0, "")
    assert len(said.out.splitlines()) == 1
    principal = enter(said.out)
    assert (principal.name, principal.role, principal.strategies, principal.read_only) == ("ana", "owner", None, False)
    assert len(principal.token_id) == 32


def test_a_token_says_what_was_asked_for(rollout: Rollout, put: Any) -> None:
    put(SECRET=SECRET, ISSUER="https://us.example", AUDIENCE="gold")
    strategies = ("--strategy", "fib_rsi", "--strategy", "ema")
    asked = ("--name", "router", "--role", "admin", "--hours", "1.5", *strategies, "--read-only", "--json")

    data = rollout("token", *asked).data

    assert data["claims"] == jwt.decode(data["token"], SECRET, ["HS256"], audience="gold")
    assert data["claims"]["exp"] - data["claims"]["iat"] == 5_400
    assert data["claims"]["iss"] == "https://us.example"
    principal = enter(data["token"])
    assert (principal.name, principal.role) == ("router", "admin")
    assert (principal.strategies, principal.read_only) == (frozenset({"fib_rsi", "ema"}), True)


@pytest.mark.parametrize(
    ("variables", "address"),
    [
        ({}, "http://127.0.0.1:8321/console"),
        ({"ROLLOUT_API_HOST": "::", "ROLLOUT_API_PORT": "9000"}, "http://127.0.0.1:9000/console"),
        ({"ROLLOUT_API_HOST": "::1"}, "http://[::1]:8321/console"),
        ({"ROLLOUT_CONSOLE_URL": "https://rollout.example.org/console"}, "https://rollout.example.org/console"),
    ],
    ids=["default", "all addresses", "IPv6", "set"],
)
def test_a_link_logs_in_to_the_console(
    rollout: Rollout, put: Any, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], address: str
) -> None:
    put(SECRET=SECRET)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    said = rollout("token", "--name", "ana", "--link")

    login, _, held = said.out.strip().partition("#")
    assert login == f"{address}/login"
    assert enter(held).name == "ana"


def test_a_token_lives_in_the_real_time_while_a_feed_is_replayed(rollout: Rollout, put: Any) -> None:
    put(DEVELOPMENT="1")
    before = datetime.now(UTC).timestamp()

    data = rollout("token", "--json").data

    assert before - 1 <= data["claims"]["iat"] <= datetime.now(UTC).timestamp()
    assert data["claims"]["exp"] - data["claims"]["iat"] == 12 * 3_600


@pytest.mark.parametrize("key", [rsa_key(), ec_key()], ids=["RS256", "ES256"])
def test_a_private_key_signs_what_its_public_half_lets_in(rollout: Rollout, put: Any, tmp_path: Path, key: Any) -> None:
    (tmp_path / "key.pem").write_text(private_pem(key))
    put(PUBLIC_KEY=public_pem(key))

    said = rollout("token", "--name", "ana", "--private-key", str(tmp_path / "key.pem"))

    assert said.code == 0, said.err
    assert enter(said.out).name == "ana"


@pytest.mark.parametrize(
    ("variables", "options", "said"),
    [
        ({}, [], "ROLLOUT_API_SECRET = None is not valid; allowed: a secret of at least 32 bytes here"),
        ({"SECRET": SECRET}, ["--hours", "721"], "hours = 721.0 is not valid; allowed: above 0, at most 720"),
        ({"SECRET": SECRET}, ["--hours", "8760"], "at most 720; for a program: --service --days 365"),
        (
            {"SECRET": SECRET},
            ["--hours", "9", "--service"],
            "--hours = 9.0 is not valid; allowed: --days with --service",
        ),
        ({"SECRET": SECRET}, ["--days", "9"], "--days = 9.0 is not valid; allowed: only with --service"),
        (
            {"SECRET": SECRET},
            ["--service", "--days", "731"],
            "days = 731.0 is not valid; allowed: above 0, at most 730",
        ),
        (
            {"SECRET": SECRET},
            ["--output", "/dev/null"],
            "--output = '/dev/null' is not valid; allowed: a file in a folder",
        ),
        ({"SECRET": SECRET}, ["--output", "/none/file"], "a file in a folder that you can write to (No such file"),
        ({"SECRET": SECRET}, ["--revoke", "t-1"], "'' is not a reason; allowed: a text that is not blank"),
        ({"SECRET": SECRET}, ["--hours", "0"], "hours = 0.0 is not valid"),
        ({"SECRET": SECRET}, ["--hours", "nan"], "hours = nan is not valid"),
        ({"SECRET": SECRET}, ["--hours", "inf"], "hours = inf is not valid"),
        ({"SECRET": SECRET}, ["--role", "user"], "'user' is not one of 'owner', 'admin'"),
        ({"SECRET": SECRET}, ["--name", ""], "'' is not a name; allowed: 1 to 128 printable characters"),
        ({"SECRET": SECRET}, ["--name", "a\x07"], "'a\\x07' is not a name"),
        ({"SECRET": SECRET}, ["--name", "x" * 129], "is not a name"),
        ({"SECRET": SECRET}, ["--strategy", "x" * 7_000], "strategies = 1 is not valid; allowed: fewer"),
        (
            {"SECRET": SECRET},
            ["--private-key", "KEY"],
            "only with ROLLOUT_API_PUBLIC_KEY; this installation signs with a secret",
        ),
        ({"PUBLIC_KEY": public_pem(ec_key())}, [], "--private-key = None is not valid; allowed: the file with the"),
        (
            {"PUBLIC_KEY": public_pem(rsa_key())},
            ["--private-key", "KEY"],
            "the private key that belongs to ROLLOUT_API_PUBLIC_KEY",
        ),
        (
            {"PUBLIC_KEY": public_pem(ec_key("b"))},
            ["--private-key", "KEY"],
            "the private key that belongs to ROLLOUT_API_PUBLIC_KEY",
        ),
        ({"PUBLIC_KEY": public_pem(ec_key())}, ["--private-key", "PUBLIC"], "a private key as unencrypted PEM"),
        ({"PUBLIC_KEY": public_pem(ec_key())}, ["--private-key", "none"], "(No such file or directory)"),
        ({"JWKS_URL": "https://id.example"}, [], "allowed: tokens from that identity provider only"),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list | dict) else value[:30],
)
def test_a_token_that_nobody_would_accept_is_not_made(
    rollout: Rollout, put: Any, tmp_path: Path, variables: dict[str, str], options: list[str], said: str
) -> None:
    (tmp_path / "KEY").write_text(private_pem(ec_key()))
    (tmp_path / "PUBLIC").write_text(public_pem(ec_key()))
    put(**variables)

    refused = rollout("token", *(str(tmp_path / each) if each in ("KEY", "PUBLIC") else each for each in options))

    assert (refused.code, refused.out) == (2, "")
    assert said in refused.err
    assert len(refused.err.splitlines()) == 1
    assert SECRET not in refused.err
    assert private_pem(ec_key()).splitlines()[1] not in refused.err


def test_a_service_token_is_in_a_file_of_its_owner_in_the_list_and_in_the_trail(
    rollout: Rollout, put: Any, tmp_path: Path, database: Engine
) -> None:
    put(SECRET=SECRET)
    put_version(database, "1", Status.ACTIVE)
    file = tmp_path / "rollout.token"
    file.write_text("the last one")
    file.chmod(0o644)
    asked = ("--service", "--days", "365", "--name", "router", "--read-only", "--output", str(file), "--reason", "why")

    said = rollout("token", *asked)

    principal = enter(file.read_text())
    assert said.code == 0, said.err
    assert file.read_text().strip() not in said.out
    assert (file.stat().st_mode & 0o777, [each.name for each in tmp_path.glob("*token*")]) == (0o600, [file.name])
    (listed,) = rollout("token", "--list", "--json").data
    assert (listed["id"], listed["name"], listed["read_only"]) == (principal.token_id, "router", True)
    (event,) = rollout("audit", "log", "fib_rsi", "--json").data
    assert (event["action"], event["reason"], event["after"]["token"]["id"]) == ("issue_token", "why", listed["id"])
    revoked = rollout("token", "--revoke", listed["id"], "--reason", "it leaked")
    assert revoked.code == 0, revoked.err
    assert "by " in revoked.out
    assert rollout("token", "--list", "--json").data[0]["revoked_because"] == "it leaked"


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--hours", "721"], 2),
        (["--service", "--strategy", "no_such"], 4),
        (["--service", "--database-url", "sqlite:///none.db"], 5),
    ],
)
def test_a_command_that_fails_leaves_the_file_as_it_was(
    rollout: Rollout, put: Any, tmp_path: Path, options: list[str], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(SECRET=SECRET)
    folder = tmp_path / "etc"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "rollout.token").write_text("the last one")

    refused = rollout("token", *options, "--output", "rollout.token")
    new = rollout("token", *options, "--output", "new.token")

    assert (refused.code, new.code) == (code, code)
    assert {each.name: each.read_text() for each in folder.iterdir()} == {"rollout.token": "the last one"}


def vanish(file: Path) -> None:
    shutil.rmtree(file.parent)


@pytest.mark.parametrize("spoil", [Path.mkdir, vanish], ids=["the file is a folder", "its folder has vanished"])
def test_a_token_whose_file_cannot_be_put_in_place_is_revoked(
    rollout: Rollout, put: Any, tmp_path: Path, database: Engine, spoil: Callable[[Path], None]
) -> None:
    """The file is spoiled while the command waits for the database to list the token."""
    put(SECRET=SECRET)
    put_version(database, "1", Status.ACTIVE)
    file = tmp_path / "etc" / "rollout.token"
    file.parent.mkdir()
    locked, ended = threading.Event(), threading.Event()

    def spoil_meanwhile() -> None:
        with closing(sqlite3.connect(str(database.url.database), isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            locked.set()
            while not ended.is_set() and not any(file.parent.iterdir()):
                ended.wait(0.01)
            spoil(file)
            other.execute("ROLLBACK")

    meanwhile = threading.Thread(target=spoil_meanwhile)
    meanwhile.start()
    locked.wait()
    refused = rollout("token", "--service", "--output", str(file))
    ended.set()
    meanwhile.join()

    assert (refused.code, refused.out, len(refused.err.splitlines())) == (2, "", 1), refused.err
    assert "a file in a folder that you can write to" in refused.err
    assert [each.name for each in tmp_path.glob("etc/*token*")] == (["rollout.token"] if spoil == Path.mkdir else [])
    (listed,) = rollout("token", "--list", "--json").data
    assert listed["revoked_because"] == "its file was not written"
    events = rollout("audit", "log", "fib_rsi", "--json").data
    assert sorted(each["action"] for each in events) == ["issue_token", "revoke_token"]


def test_a_token_whose_issue_is_recorded_in_part_is_revoked(
    rollout: Rollout, put: Any, tmp_path: Path, database: Engine
) -> None:
    put(SECRET=SECRET)
    put_version(database, "1", Status.ACTIVE)
    with database.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER no_issue BEFORE INSERT ON audit_event WHEN NEW.action = 'issue_token' "
            "BEGIN SELECT RAISE(ABORT, 'the disk is full'); END"
        )

    refused = rollout("token", "--service", "--output", str(tmp_path / "rollout.token"))

    assert refused.code != 0
    assert not (tmp_path / "rollout.token").exists()
    (listed,) = rollout("token", "--list", "--json").data
    assert listed["revoked_because"] == "its file was not written"


def test_without_the_extra_it_says_which(rollout: Rollout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jwt", None)
    for name in [name for name in sys.modules if name.startswith("strategy_core.api.")]:
        monkeypatch.delitem(sys.modules, name)

    said = rollout("token")

    assert said.code == 2
    assert "rollout token needs an optional dependency: pip install 'strategy-rollout[api]'" in said.err
