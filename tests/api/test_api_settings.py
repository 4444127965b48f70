"""Whose tokens are accepted: said by exactly one key, without which no server starts, and which nobody is shown."""

from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from strategy_core.api.jwks import FixedKey, RemoteKeys
from strategy_core.api.settings import DEVELOPMENT_SECRET, read_api_settings
from strategy_core.domain.errors import InvalidSetting
from tests.api.signing import NOW, SECRET, ec_key, private_pem, public_pem, rsa_key

ED25519 = ed25519.Ed25519PrivateKey.from_private_bytes(b"7" * 32).public_key()
SSH = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0dummy ana@example"


@pytest.fixture
def put(monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in ("SECRET", "PUBLIC_KEY", "JWKS_URL", "DEVELOPMENT"):
        monkeypatch.delenv(f"ROLLOUT_API_{name}", raising=False)

    def put(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(f"ROLLOUT_API_{name}", value)

    return put


def test_without_a_key_nothing_starts(put: Any) -> None:
    with pytest.raises(InvalidSetting) as refused:
        read_api_settings()

    assert str(refused.value) == (
        "ROLLOUT_API_SECRET = None is not valid; allowed: a secret of at least 32 bytes here, or a key in "
        "ROLLOUT_API_PUBLIC_KEY or ROLLOUT_API_JWKS_URL; to try the API on this machine only: ROLLOUT_API_DEVELOPMENT=1"
    )


def test_a_secret_alone_is_enough(put: Any) -> None:
    put(SECRET=SECRET)

    settings = read_api_settings()

    assert (settings.host, settings.port) == ("127.0.0.1", 8321)
    assert (settings.audience, settings.issuer, settings.leeway_s) == ("strategy-rollout", None, 10)
    keys = settings.open_keys()
    assert isinstance(keys, FixedKey)
    assert keys.algorithms == ("HS256",)
    assert keys.find("HS256", None, NOW) == SECRET.encode()


@pytest.mark.parametrize(("key", "algorithm"), [(rsa_key(), "RS256"), (ec_key(), "ES256")], ids=["rsa", "ec"])
@pytest.mark.parametrize("in_file", [True, False], ids=["file", "text"])
def test_a_public_key_says_its_algorithm(put: Any, tmp_path: Path, key: Any, algorithm: str, in_file: bool) -> None:
    file = tmp_path / "key.pem"
    file.write_text(public_pem(key))
    put(PUBLIC_KEY=f"@{file}" if in_file else public_pem(key))

    keys = read_api_settings().open_keys()

    assert keys.algorithms == (algorithm,)
    assert keys.find(algorithm, "any", NOW) == key.public_key()


@pytest.mark.parametrize(
    ("variables", "algorithms"),
    [
        ({}, ("RS256", "ES256")),
        ({"ALGORITHMS": "ES256"}, ("ES256",)),
        ({"ALGORITHMS": " ES256, RS256,ES256"}, ("ES256", "RS256")),
    ],
)
def test_published_keys_may_be_of_several_kinds(put: Any, variables: Any, algorithms: tuple[str, ...]) -> None:
    put(JWKS_URL="https://id.example/keys?tenant=7", **variables)

    keys = read_api_settings().open_keys()

    assert isinstance(keys, RemoteKeys)
    assert (keys.url, keys.algorithms) == ("https://id.example/keys?tenant=7", algorithms)


def test_development_takes_a_secret_that_everybody_knows(put: Any) -> None:
    put(DEVELOPMENT="1", HOST="localhost")

    assert read_api_settings().open_keys().find("HS256", None, NOW) == DEVELOPMENT_SECRET.encode()


@pytest.mark.parametrize(
    ("variables", "named", "said"),
    [
        ({"SECRET": ""}, "SECRET = '***'", "at least 32 bytes, for example from: openssl rand -base64 32"),
        ({"SECRET": "x" * 31}, "SECRET = '***'", "at least 32 bytes"),
        ({"SECRET": SSH}, "SECRET = '***'", "a shared secret; set a public key in ROLLOUT_API_PUBLIC_KEY"),
        ({"SECRET": public_pem(ec_key())}, "SECRET = '***'", "a shared secret; set a public key in"),
        ({"SECRET": DEVELOPMENT_SECRET}, "SECRET = '***'", "your own secret, not the development secret"),
        ({"PUBLIC_KEY": ""}, "PUBLIC_KEY = '***'", "a public key as PEM text, or @FILE that contains it"),
        ({"PUBLIC_KEY": "ana"}, "PUBLIC_KEY = '***'", "a public key as PEM text, or @FILE that contains it"),
        ({"PUBLIC_KEY": "@nowhere.pem"}, "PUBLIC_KEY = '***'", "a readable @FILE (No such file or directory)"),
        ({"PUBLIC_KEY": "@"}, "PUBLIC_KEY = '***'", "a readable @FILE (Is a directory)"),
        (
            {"PUBLIC_KEY": private_pem(ec_key())},
            "PUBLIC_KEY = '***'",
            "the public half of the key pair, not a private key",
        ),
        (
            {"PUBLIC_KEY": public_pem(rsa_key("short", 1024))},
            "PUBLIC_KEY = '***'",
            "an RSA key of at least 2048 bits, or an EC key on P-256",
        ),
        (
            {"PUBLIC_KEY": public_pem(ec.derive_private_key(7, ec.SECP384R1()))},
            "PUBLIC_KEY = '***'",
            "an RSA key of at least 2048 bits, or an EC key on P-256",
        ),
        (
            {"PUBLIC_KEY": ED25519.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()},
            "PUBLIC_KEY = '***'",
            "an RSA key of at least 2048 bits, or an EC key on P-256",
        ),
        ({"JWKS_URL": "id.example/keys"}, "JWKS_URL = '***'", "Input should be a valid URL"),
        ({"JWKS_URL": "ftp://id.example"}, "JWKS_URL = '***'", "URL scheme should be 'http' or 'https'"),
        (
            {"JWKS_URL": "http://id.example/keys"},
            "JWKS_URL = '***'",
            "an https address; http is allowed only to this machine",
        ),
        ({"JWKS_URL": "http://127.0.0.1.evil.example"}, "JWKS_URL = '***'", "an https address"),
        ({"JWKS_URL": "http://10.0.0.1/keys"}, "JWKS_URL = '***'", "an https address"),
        ({"JWKS_URL": f"https://ana:{SECRET}@id.example"}, "JWKS_URL = '***'", "without a password or fragment"),
        ({"SECRET": SECRET, "JWKS_URL": "https://id.example"}, "JWKS_URL = '***'", "only without ROLLOUT_API_SECRET"),
        (
            {"SECRET": SECRET, "PUBLIC_KEY": public_pem(ec_key())},
            "PUBLIC_KEY = '***'",
            "only without ROLLOUT_API_SECRET: set exactly one key",
        ),
        ({"SECRET": SECRET, "ALGORITHMS": "RS256"}, "ALGORITHMS = 'RS256'", "allowed: HS256"),
        ({"SECRET": SECRET, "ALGORITHMS": "HS256,RS256"}, "ALGORITHMS = 'HS256,RS256'", "allowed: HS256"),
        (
            {"SECRET": SECRET, "ALGORITHMS": "none"},
            "ALGORITHMS = 'none'",
            "Input should be 'HS256', 'RS256' or 'ES256'",
        ),
        ({"SECRET": SECRET, "ALGORITHMS": ""}, "ALGORITHMS = ''", "Input should be 'HS256', 'RS256' or 'ES256'"),
        ({"PUBLIC_KEY": public_pem(ec_key()), "ALGORITHMS": "RS256"}, "ALGORITHMS = 'RS256'", "allowed: ES256"),
        ({"PUBLIC_KEY": public_pem(rsa_key()), "ALGORITHMS": "HS256"}, "ALGORITHMS = 'HS256'", "allowed: RS256"),
        (
            {"JWKS_URL": "https://id.example", "ALGORITHMS": "ES256,HS256"},
            "ALGORITHMS = 'ES256,HS256'",
            "allowed: RS256,ES256",
        ),
        ({"SECRET": SECRET, "AUDIENCE": ""}, "AUDIENCE = ''", "at least 1 character"),
        ({"SECRET": SECRET, "ISSUER": ""}, "ISSUER = ''", "at least 1 character"),
        ({"SECRET": SECRET, "LEEWAY_S": "61"}, "LEEWAY_S = '61'", "less than or equal to 60"),
        ({"SECRET": SECRET, "LEEWAY_S": "-1"}, "LEEWAY_S = '-1'", "greater than or equal to 0"),
        ({"SECRET": SECRET, "PORT": "65536"}, "PORT = '65536'", "less than or equal to 65535"),
        ({"DEVELOPMENT": "1", "SECRET": SECRET}, "DEVELOPMENT = True", "only without ROLLOUT_API_SECRET"),
        ({"DEVELOPMENT": "1", "JWKS_URL": "https://id.example"}, "DEVELOPMENT = True", "only without ROLLOUT_API_JWKS"),
        (
            {"DEVELOPMENT": "1", "HOST": "0.0.0.0"},
            "HOST = '0.0.0.0'",
            "127.0.0.1, ::1 or localhost with ROLLOUT_API_DEV",
        ),
        ({"DEVELOPMENT": "1", "HOST": ""}, "HOST = ''", "127.0.0.1, ::1 or localhost"),
        (
            {"DEVELOPMENT": "1", "HOST": "localhost.evil.example"},
            "HOST = 'localhost.evil.example'",
            "127.0.0.1, ::1 or",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else value[:30],
)
def test_what_cannot_be_meant_is_refused_in_a_line_that_names_it(
    put: Any, variables: dict[str, str], named: str, said: str
) -> None:
    put(**variables)

    with pytest.raises(InvalidSetting) as refused:
        read_api_settings()

    text = str(refused.value)
    assert text.startswith(f"ROLLOUT_API_{named} is not valid; allowed: ")
    assert said in text
    assert "\n" not in text


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "localhost", "[::1]"])
def test_keys_from_this_machine_need_no_encryption(put: Any, host: str) -> None:
    put(JWKS_URL=f"http://{host}:8080/keys")

    assert isinstance(read_api_settings().open_keys(), RemoteKeys)


@pytest.mark.parametrize(
    "variables",
    [
        {"SECRET": SECRET, "PORT": "x"},
        {"SECRET": SECRET, "ALGORITHMS": "RS256"},
        {"SECRET": SECRET, "DEVELOPMENT": "1"},
        {"SECRET": SECRET, "PUBLIC_KEY": private_pem(ec_key())},
        {"SECRET": SECRET[:31]},
        {"JWKS_URL": f"http://ana:{SECRET}@id.example"},
    ],
    ids=lambda value: "+".join(value),
)
def test_no_refusal_shows_a_secret(put: Any, variables: dict[str, str]) -> None:
    put(**variables)

    with pytest.raises(InvalidSetting) as refused:
        read_api_settings()

    shown = f"{refused.value} {refused.value.__dict__}"
    assert SECRET[:31] not in shown
    assert private_pem(ec_key()).splitlines()[1] not in shown
    assert refused.value.__suppress_context__ or refused.value.__context__ is None


def test_settings_are_shown_without_the_secret(put: Any) -> None:
    put(SECRET=SECRET)
    settings = read_api_settings()

    assert SECRET not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"
    assert SECRET not in f"{settings.open_keys()!r}"
