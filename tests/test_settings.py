"""Settings of the environment: what is wrong is named by its variable, and a secret is shown to nobody."""

import os
from datetime import UTC, datetime

import pytest

from deployments.up import _variables
from strategy_core.domain.errors import InvalidSetting
from strategy_core.settings import read_settings
from tests.endpoint import Endpoint

SECRET = "s3cr3t-t0ken"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("URL", "prometheus.example:9090"),
        ("URL", "ftp://prometheus.example"),
        ("URL", "http://"),
        ("URL", f"http://ana:{SECRET}@prometheus.example"),
        ("URL", f"https://prometheus.example/?key={SECRET}"),
        ("URL", "http://prometheus.example/#graph"),
        ("URL", "http://[x"),
        ("HEADER", SECRET),
        ("HEADER", f": {SECRET}"),
        ("HEADER", f"Authorization: Bearer {SECRET}\nX-Also: this"),
        ("HEADER", f"Authorization: Bearer {SECRET}ü"),
        ("HEADER", "Authorization:"),
        ("TIMEOUT", "0"),
        ("TIMEOUT", "nan"),
        ("TIMEOUT", "61"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_gives_no_secret_away(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"ROLLOUT_PROMETHEUS_{name}", value)

    with pytest.raises(InvalidSetting) as refused:
        read_settings()

    assert str(refused.value).startswith(f"ROLLOUT_PROMETHEUS_{name} = ")
    assert SECRET not in str(refused.value)
    assert SECRET not in repr(refused.value.__dict__)
    assert refused.value.__suppress_context__


@pytest.mark.parametrize(
    ("header", "name", "sent"),
    [
        (f"Authorization: Bearer {SECRET}", "Authorization", f"Bearer {SECRET}"),
        ("X-Scope-OrgID:gold", "X-Scope-OrgID", "gold"),
        ("X-Key: a: b", "X-Key", "a: b"),
    ],
)
def test_what_is_set_is_what_the_prometheus_gets(
    monkeypatch: pytest.MonkeyPatch, endpoint: Endpoint, header: str, name: str, sent: str
) -> None:
    monkeypatch.setenv("ROLLOUT_PROMETHEUS_URL", f"{endpoint.url}/")
    monkeypatch.setenv("ROLLOUT_PROMETHEUS_HEADER", header)
    monkeypatch.setenv("ROLLOUT_PROMETHEUS_TIMEOUT", "7.5")

    prometheus = read_settings().open_prometheus()

    assert (prometheus.url, prometheus.timeout) == (endpoint.url, 7.5)
    assert prometheus.query(["up"])["up"].value == 1.5
    assert endpoint.asked[0][0] == "/api/v1/query"
    assert endpoint.asked[0][2][name] == sent


def test_settings_are_shown_and_handed_on_without_the_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child inherits them from the environment; a masked one in its place would be sent as it stands."""
    monkeypatch.setenv("ROLLOUT_PROMETHEUS_HEADER", f"Authorization: Bearer {SECRET}")
    monkeypatch.setenv("ROLLOUT_OANDA_TOKEN", SECRET)
    monkeypatch.setenv("ROLLOUT_ALERT_URLS", f"slack://{SECRET}")
    settings = read_settings().model_copy(update={"replay_from": datetime(2026, 3, 2, tzinfo=UTC)})

    assert SECRET not in repr(settings)
    assert SECRET not in settings.model_dump_json()
    handed_on = {**os.environ, **_variables(settings)}
    assert handed_on["ROLLOUT_PROMETHEUS_HEADER"] == f"Authorization: Bearer {SECRET}"
    assert handed_on["ROLLOUT_OANDA_TOKEN"] == SECRET
    assert handed_on["ROLLOUT_ALERT_URLS"] == f"slack://{SECRET}"
    assert "ROLLOUT_REPLAY_FROM" not in _variables(settings)  # the clock is in the database


def test_a_choice_that_does_not_exist_is_refused_with_the_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROLLOUT_CALENDAR", "24/7")

    with pytest.raises(InvalidSetting) as refused:
        read_settings()

    assert str(refused.value) == "ROLLOUT_CALENDAR = '24/7' is not valid; allowed: 'metals' or 'always'"


@pytest.mark.parametrize(
    "url",
    [
        "rollout.example.org/console",
        "javascript:alert(1)",
        f"https://ana:{SECRET}@rollout.example.org/console",
        f"https://rollout.example.org/console?token={SECRET}",
        "https://rollout.example.org/a)[b](//evil.example",
    ],
)
def test_a_console_address_that_is_more_than_a_page_is_refused(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("ROLLOUT_CONSOLE_URL", url)

    with pytest.raises(InvalidSetting) as refused:
        read_settings()

    assert str(refused.value).startswith("ROLLOUT_CONSOLE_URL = ")
    assert SECRET not in str(refused.value)


def test_the_console_address_has_no_slash_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROLLOUT_CONSOLE_URL", "https://rollout.example.org/console/")

    settings = read_settings()

    assert str(settings.console_url) == "https://rollout.example.org/console"
    assert _variables(settings)["ROLLOUT_CONSOLE_URL"] == "https://rollout.example.org/console"
