"""A served API and those who connect to it: behind a proxy, without one, and slowly."""

import json
import socket
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from strategy_core.api.settings import ApiSettings, read_api_settings
from strategy_core.domain.errors import InvalidSetting
from tests.api.processes import SECRET, serving, token_of

LIMIT = 20  # rejected tokens a minute, after which an address gets 429
BODY = b'{"strategy_name": "fib_rsi", "reason": "slow"}'
REQUEST = (
    "POST /api/v1/strategy/rollback HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
    "Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
)


def rejected(address: str, forwarded_for: str) -> int:
    return httpx.get(f"{address}/api/v1/strategy/canary", headers={"X-Forwarded-For": forwarded_for}).status_code


def clients(log: Path) -> set[str]:
    lines = [json.loads(line) for line in log.read_text().splitlines() if "api.answered" in line]
    return {each["client"] for each in lines if each["status"] in (401, 429)}


@pytest.mark.full  # a server's start
@pytest.mark.parametrize(
    ("trusted", "last", "seen"),
    [
        ({}, 429, {"127.0.0.1"}),
        ({"trusted_proxies": "192.0.2.7"}, 429, {"127.0.0.1"}),
        ({"trusted_proxies": "192.0.2.7, 127.0.0.0/8"}, 401, {f"198.51.100.{each}" for each in range(LIMIT + 1)}),
    ],
)
def test_the_forwarded_address_counts_from_a_trusted_proxy_alone(
    sqlite_url: str, tmp_path: Path, trusted: dict[str, str], last: int, seen: set[str]
) -> None:
    log = tmp_path / "api.log"
    with serving(sqlite_url, log, **trusted) as address:
        statuses = [rejected(address, f"198.51.100.{each}") for each in range(LIMIT + 1)]

    assert statuses == [*[401] * LIMIT, last]
    assert clients(log) == seen


@pytest.mark.parametrize("given", ["*", "proxy.example", "10.0.0.1/8", "10.0.0.256"])
def test_a_proxy_is_an_address_or_a_network(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("ROLLOUT_API_SECRET", SECRET)
    monkeypatch.setenv("ROLLOUT_API_TRUSTED_PROXIES", given)

    with pytest.raises(InvalidSetting, match="ROLLOUT_API_TRUSTED_PROXIES"):
        read_api_settings()


def test_without_settings_no_proxy_is_trusted_and_a_body_has_ten_seconds() -> None:
    settings = ApiSettings(secret=SECRET)

    assert (settings.trusted_proxies, settings.body_timeout_s) == ((), 10.0)


@pytest.mark.full  # a server's start
def test_a_body_that_does_not_arrive_is_answered_408_and_the_connection_ends(sqlite_url: str, tmp_path: Path) -> None:
    with serving(sqlite_url, tmp_path / "api.log", body_timeout_s="0.3") as address:
        where = urlsplit(address)
        with socket.create_connection((where.hostname, where.port), timeout=60) as slow:
            head = REQUEST.format(token=token_of("ana"), length=len(BODY))
            slow.sendall(head.encode() + BODY[:10])
            answer = b"".join(iter(lambda: slow.recv(65_536), b""))
        whole = httpx.post(
            f"{address}/api/v1/strategy/rollback",
            content=BODY,
            headers={"Authorization": f"Bearer {token_of('ana')}", "Content-Type": "application/json"},
        )

    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in answer.lower()
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["detail"] == "the body did not arrive within 0.3 s"
    assert whole.status_code == 404, "no such strategy"
