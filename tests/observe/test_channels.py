"""Alert channels report why a message failed, and do not show the secrets in an address."""

import json
import logging
import threading
import time
from dataclasses import replace
from datetime import timedelta
from typing import Any

import apprise
import pytest
import structlog
from pydantic import SecretStr
from sqlalchemy import Engine, text
from structlog.testing import capture_logs

from strategy_core.domain.alerts import AttachedPage, Message, Severity
from strategy_core.domain.errors import MissingExtra
from strategy_core.observe.channels import AppriseChannel, read_channels
from strategy_core.services.alerts import deliver
from strategy_core.settings import read_settings
from tests.builders import DAY, HOUR, MONDAY
from tests.endpoint import Endpoint
from tests.services.outbox import put_alert, url_of

SECRET = "s3cr3t-t0ken"
MESSAGE = Message(title="[critical] a <b> & c", body="line one\n*two* <script>", action="", id="x-1")


def names(urls: str) -> list[tuple[str, str]]:
    found = read_channels(SecretStr(urls))
    return [(each.name.rpartition("-")[0], each.at_least.value) for each in found]


@pytest.mark.parametrize(
    ("urls", "found"),
    [
        ("", []),
        (" , ", []),
        ("json://a", [("json", "info")]),
        ("json://a,slack://b/c/d", [("json", "info"), ("slack", "info")]),
        ("warning=json://a\n critical=tgram://1:x/2", [("json", "warning"), ("tgram", "critical")]),
        ("mailto://u:p@b.c?to=x@y.z,v@y.z json://a", [("mailto", "info"), ("json", "info")]),
        ("json://a slack//b, json://c ,", [("json", "info"), ("unreadable", "info"), ("json", "info")]),
        ("json://a json://a", [("json", "info")]),
        ("JSON://a", [("json", "info")]),
        ("slack//b/c/d, json://a", [("unreadable", "info"), ("json", "info")]),
        ("loud=json://a", [("unreadable", "info")]),
    ],
)
def test_addresses_are_read_with_their_severity(urls: str, found: list[tuple[str, str]]) -> None:
    assert names(urls) == found


def test_a_name_is_stable_and_hides_the_address() -> None:
    one, same, another = (AppriseChannel(SecretStr(url), scheme="json") for url in ("json://a", "json://a", "json://b"))

    assert one.name == same.name == "json-163de059"
    assert another.name != one.name
    assert repr(one) == "Channel(json-163de059, info+)"


def test_a_message_arrives_unchanged(endpoint: Endpoint) -> None:
    assert AppriseChannel(SecretStr(url_of(endpoint)), scheme="json").send(MESSAGE, Severity.CRITICAL) == ""

    (posted,) = endpoint.posted
    assert (posted["title"], posted["message"], posted["type"]) == (MESSAGE.title, MESSAGE.body, "failure")


def test_a_slow_start_of_a_channel_takes_no_time_from_its_message(
    engine: Engine, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The import of apprise took longer than a message may, so a message that had arrived was sent again."""

    class Slow(apprise.Apprise):
        def __init__(self, **given: Any) -> None:
            time.sleep(0.6)
            super().__init__(**given)

    monkeypatch.setattr(apprise, "Apprise", Slow)
    put_alert(engine, "users lose money")
    for minute in range(3):
        (channel,) = read_channels(SecretStr(url_of(endpoint)), timeout=0.5)
        tried = deliver(engine, [channel], now=MONDAY + minute * timedelta(minutes=1))
        assert [each.problem for each in tried] == ([""] if minute == 0 else [])

    assert len(endpoint.posted) == 1


def test_a_channel_that_is_never_ready_sends_nothing_and_says_so(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = threading.Event()

    class Stuck(apprise.Apprise):
        def __init__(self, **given: Any) -> None:
            opened.wait()
            super().__init__(**given)

    monkeypatch.setattr(apprise, "Apprise", Stuck)
    channel = AppriseChannel(SecretStr(url_of(endpoint)), scheme="json", ready_timeout=0.1)

    assert channel.send(MESSAGE, Severity.INFO) == "not ready within 0.1 s"
    assert endpoint.posted == []
    opened.set()


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("json://127.0.0.1:1/x", "cannot be reached"),
        ("nothing://of/the/kind", "apprise does not support this address"),
        ("slack://nonsense", "apprise does not support this address"),
        ("no address at all", "apprise does not support this address"),
    ],
)
def test_a_failed_message_has_a_problem_in_one_line(url: str, problem: str) -> None:
    assert AppriseChannel(SecretStr(url), scheme="x").send(MESSAGE, Severity.INFO) == problem


def test_a_redirect_is_not_followed(endpoint: Endpoint) -> None:
    """Messages go only to the server that the owner configured."""
    endpoint.status = 302
    endpoint.headers = {"Location": f"{endpoint.url}/elsewhere"}

    assert AppriseChannel(SecretStr(url_of(endpoint)), scheme="json").send(MESSAGE, Severity.INFO) == "HTTP 302"
    assert len(endpoint.posted) == 1
    assert endpoint.asked == []


def test_secrets_in_addresses_appear_nowhere(
    engine: Engine, endpoint: Endpoint, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """They are in no log at any level, and in no row, result, name or error."""
    caplog.set_level(logging.DEBUG)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG))
    port = endpoint.url.rpartition(":")[2]
    addresses = [
        f"json://ana:{SECRET}@127.0.0.1:{port}/{SECRET}?+X-Token={SECRET}",
        f"json://ana:{SECRET}@127.0.0.1:1/{SECRET}",
        f"slack://{SECRET}",
        f"tgram://{SECRET}",
        f"nothing://{SECRET}",
        f"mailto://ana:{SECRET}@127.0.0.1:1/?smtp=127.0.0.1",
        f"discord//{SECRET}",
    ]
    channels = read_channels(SecretStr(" ".join(addresses)), timeout=30)
    put_alert(engine, "users lose money", "critical")
    endpoint.status = 500

    with capture_logs() as logs:
        tried = [deliver(engine, channels, now=MONDAY + hour * HOUR) for hour in (0, 1, 25)]
    endpoint.status = 200
    deliver(engine, channels, now=MONDAY + 2 * DAY)

    assert {each.problem for each in tried[0]} >= {
        "HTTP 500",
        "cannot be reached",
        "apprise does not support this address",
    }
    assert any(entry["event"] == "alert.given_up" for entry in logs)
    assert len(endpoint.posted) == 4
    printed = capfd.readouterr()
    outputs = [repr(tried), repr(channels), json.dumps(logs, default=str), caplog.text, printed.out, printed.err]
    with engine.connect() as connection:
        for table in ("alert_outbox", "alert_delivery"):
            outputs += [repr(connection.execute(text(f"SELECT * FROM {table}")).all())]
    assert SECRET not in "".join(outputs)


def test_settings_hide_the_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROLLOUT_ALERT_URLS", f"critical=json://ana:{SECRET}@127.0.0.1")
    monkeypatch.setenv("ROLLOUT_ALERT_REPEAT_MINUTES", "5")
    settings = read_settings()

    (channel,) = settings.open_channels()

    assert (channel.at_least, channel.timeout) == (Severity.CRITICAL, 10.0)
    assert settings.alert_pace.repeat_after == timedelta(minutes=5)
    assert SECRET not in repr(settings) + settings.model_dump_json()


def test_without_apprise_the_error_names_the_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    assert read_channels(None) == []
    with pytest.raises(MissingExtra, match=r"strategy-rollout\[alerts\]"):
        read_channels(SecretStr("json://a"))


@pytest.mark.parametrize(("scheme", "takes_files"), [("json", True), ("gotify", False)])
def test_a_page_is_attached_where_files_are_taken_and_linked_everywhere(
    endpoint: Endpoint, scheme: str, takes_files: bool
) -> None:
    channel = AppriseChannel(SecretStr(url_of(endpoint, "/token").replace("json", scheme, 1)), scheme=scheme)
    page = AttachedPage(
        "note.html", "<!doctype html><p>all is well</p>", "https://rollout.example.org/console/reports/1"
    )

    assert channel.send(replace(MESSAGE, page=page), Severity.INFO) == ""

    (posted,) = endpoint.posted
    assert posted["message"].endswith(page.url)
    assert [each["filename"] for each in posted.get("attachments", [])] == (["note.html"] if takes_files else [])
