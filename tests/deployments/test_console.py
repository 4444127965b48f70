"""Who Prefect's server lets in, and whom it takes for the creator of a run."""

import base64
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

import pytest
from starlette.requests import Request

from deployments.console import creator_from
from deployments.processes import addresses, password


def request(client: str, headers: Mapping[str, str]) -> Request:
    lines = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "client": (client, 1), "headers": lines})


@pytest.mark.parametrize(
    ("client", "headers", "name"),
    [
        ("10.1.2.3", {"X-User": "ana"}, "ana"),
        ("10.1.2.3", {"X-User": " "}, None),
        ("10.1.2.3", {}, None),
        ("10.1.2.3", {"X-Other": "ana"}, None),
        ("10.2.0.1", {"X-User": "ana"}, None),
        ("127.0.0.1", {"X-User": "ana", "X-Forwarded-For": "10.1.2.3"}, None),
        ("::1", {"X-User": "ana"}, "ana"),
    ],
)
def test_the_header_counts_from_a_trusted_proxy_alone(client: str, headers: dict[str, str], name: str | None) -> None:
    created = creator_from("X-User", ["10.1.0.0/16", "::1"])(request(client, headers))

    assert (created.display_value if created else None) == name


def test_an_automation_stays_the_creator_of_its_runs() -> None:
    told = base64.b64encode(b"deliver").decode()
    headers = {"Prefect-Automation-Id": str(uuid4()), "Prefect-Automation-Name": told}

    created = creator_from("X-User", ["10.1.0.0/16"])(request("127.0.0.1", headers))

    assert created is not None
    assert (created.type, created.display_value) == ("AUTOMATION", "deliver")


def test_browsers_find_the_server_at_its_own_addresses_alone() -> None:
    assert addresses(4200, None) == ["http://127.0.0.1:4200", "http://localhost:4200"]
    assert addresses(80, None) == ["http://127.0.0.1", "http://localhost"]
    assert addresses(4200, "https://prefect.example/ui")[2:] == ["https://prefect.example"]


def test_a_password_is_made_once_and_random(tmp_path: Path) -> None:
    first = password(tmp_path / "one")

    assert password(tmp_path / "one") == first
    assert password(tmp_path / "other") != first
    assert len(first) > len("owner:") + 30
