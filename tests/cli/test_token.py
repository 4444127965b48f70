"""`rollout token`: a server with the same settings accepts the token, which is the only output."""

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jwt
import pytest

from strategy_core.api.auth import Authenticator, Failures, Principal
from strategy_core.api.settings import read_api_settings
from tests.api.signing import SECRET, ec_key, private_pem, public_pem, rsa_key
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


def test_without_the_extra_it_says_which(rollout: Rollout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jwt", None)
    for name in [name for name in sys.modules if name.startswith("strategy_core.api.")]:
        monkeypatch.delitem(sys.modules, name)

    said = rollout("token")

    assert said.code == 2
    assert "rollout token needs an optional dependency: pip install 'strategy-rollout[api]'" in said.err
