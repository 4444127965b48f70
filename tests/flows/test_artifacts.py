"""Artifacts come after everything else: what a run did stands, whether Prefect can show it or not."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urljoin, urlsplit

import pytest
from markdown_it import MarkdownIt
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_CSRF_SUPPORT_ENABLED, temporary_settings
from sqlalchemy import Engine

from flows.artifacts import key_of, link_to
from flows.ramp import pause, ramp_tick, start_canary
from flows.rollback import rollback
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.ramp import State
from strategy_core.store import rollouts
from strategy_core.store.engine import reading
from tests.builders import DAY, HOUR, MONDAY, put_day, put_version
from tests.endpoint import Endpoint
from tests.flows.conftest import Clock
from tests.report.reading import tables

RUN = "0a1b2c3d-0000-4000-8000-000000000001"
PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "read-a-report.md"
FORM = "0a1b2c3d-0000-4000-8000-000000000002"


@pytest.fixture
def started(engine: Engine, at: Clock) -> Engine:
    put_version(engine, "v1", Status.ACTIVE)
    put_version(engine, "v2")
    assert start_canary.fn("fib_rsi", "v2", owner="ana").is_completed()
    return engine


@contextmanager
def in_a_run(monkeypatch: pytest.MonkeyPatch, url: str) -> Iterator[None]:
    """Let flows believe that a server at *url* runs them."""
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", RUN)
    told = {PREFECT_API_URL: f"{url}/api", PREFECT_CLIENT_CSRF_SUPPORT_ENABLED: False}
    with temporary_settings(told):
        yield


def made(server: Endpoint) -> list[dict[str, Any]]:
    """Return the artifacts that were asked to be made."""
    return [each for each in server.posted if "data" in each]


def known(*keys: str) -> bytes:
    """Return the answer of a server that has artifacts of these keys, and the deployments of two forms."""
    artifacts = [{"key": key, "latest_id": RUN, "updated": "2026-03-02T00:00:00Z"} for key in keys]
    forms = [{"name": name, "id": FORM, **artifacts[0]} for name in ("rollback", "pause")]
    return json.dumps([*artifacts, *forms]).encode()


@pytest.fixture
def server(endpoint: Endpoint) -> Endpoint:
    """A server that knows no artifact yet."""
    endpoint.body = b"[]"
    return endpoint


@pytest.mark.full
@pytest.mark.parametrize("broken", ["closed", "refuses", "nonsense"])
def test_a_tick_does_what_it_does_though_nothing_can_be_shown(
    started: Engine, at: Clock, server: Endpoint, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    at(MONDAY + HOUR)
    server.status = 500 if broken == "refuses" else 200
    server.body = b"<html>" if broken == "nonsense" else b"{}"

    with in_a_run(monkeypatch, "http://127.0.0.1:1" if broken == "closed" else server.url):
        state = ramp_tick.fn()

    assert state.is_completed()
    assert (state.message or "").startswith("fib_rsi v2: hold, dwells at 5 %")
    with reading(started) as session:
        assert rollouts.list_rollouts(session)[0].last_tick_at == MONDAY + HOUR


def test_a_rollback_is_done_though_nothing_can_be_shown(started: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with in_a_run(monkeypatch, "http://127.0.0.1:1"):
        state = rollback.fn("fib_rsi", owner="ana", reason="odd fills")

    assert state.message == "fib_rsi v2 is rolled back, no user gets it"
    with reading(started) as session:
        assert rollouts.list_rollouts(session)[0].state == State.ROLLED_BACK


def test_a_tick_that_rolls_back_shows_why_and_how_it_stands(
    started: Engine, at: Clock, server: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    for day in range(4):
        worth = {"v1": 0.4, "v2": -1.0}
        put_day(started, MONDAY + day * DAY, dict.fromkeys(worth, "buy"), worth, signal_hours=range(0, 20, 2))
    at(MONDAY + 4 * DAY)

    with in_a_run(monkeypatch, server.url):
        ramp_tick.fn()

    undone, progress = made(server)
    assert (undone["key"], progress["key"]) == ("rollback-fib-rsi-v2", "rollout-fib-rsi-v2")
    assert undone["flow_run_id"] == progress["flow_run_id"] == RUN
    assert "losing\\_streak: **breach**" in undone["data"]
    assert "against v1: rolled back\n" in progress["data"]
    assert "(../key/rollback-fib-rsi-v2)" in progress["data"]


def test_an_owners_run_shows_what_it_changed_and_who_and_why(
    started: Engine, server: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    with in_a_run(monkeypatch, server.url):
        pause.fn("fib_rsi", owner="ana", reason="a | holiday")

    progress, change = made(server)
    assert (progress["key"], change["key"]) == ("rollout-fib-rsi-v2", "change-fib-rsi")
    assert change["description"] == "fib_rsi v2: pause by ana (unverified)"
    (changed,) = tables(change["data"])
    assert {row["what"] for row in changed} == {"active version", "canary", "users of the canary", "rollout"}
    assert changed[-1] == {"what": "rollout", "before": "running\\, stage 1", "after": "**paused\\, stage 1**"}
    assert "a \\| holiday" in change["data"]
    assert "(../key/rollout-fib-rsi-v2)" in change["data"]


def test_an_owners_rollback_shows_its_report_beside_the_change(
    started: Engine, server: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    with in_a_run(monkeypatch, server.url):
        rollback.fn("fib_rsi", owner="ana", reason="odd fills")

    assert [each["key"] for each in made(server)] == ["rollback-fib-rsi-v2", "rollout-fib-rsi-v2", "change-fib-rsi"]
    assert "(../key/rollback-fib-rsi-v2)" in made(server)[1]["data"]


def test_what_was_refused_or_changed_nothing_shows_nothing(
    started: Engine, at: Clock, server: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    with in_a_run(monkeypatch, server.url):
        assert start_canary.fn("fib_rsi", "v2", owner="bob").is_failed()

    assert made(server) == []


def test_outside_of_a_run_nothing_is_asked_of_any_server(started: Engine, at: Clock, server: Endpoint) -> None:
    with temporary_settings({PREFECT_API_URL: f"{server.url}/api"}):
        ramp_tick.fn()

    assert server.posted == []


def test_a_rollout_that_has_an_artifact_gets_no_other(
    started: Engine, at: Clock, server: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.body = known("rollout-fib-rsi-v2")

    with in_a_run(monkeypatch, server.url):
        ramp_tick.fn()

    assert made(server) == []
    ((path, change),) = server.patched
    assert path == f"/api/artifacts/{RUN}"
    assert set(change) == {"data", "description"}
    assert "../key/" not in change["data"]
    assert change["data"].startswith("# fib\\_rsi v2 against v1: running at 5 % of users")


def test_a_progress_links_to_what_exists_to_filled_in_forms_and_to_the_console(
    started: Engine, server: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROLLOUT_CONSOLE_URL", "https://rollout.example.org/console/")
    server.body = known("rollout-fib-rsi-v2", "change-fib-rsi")

    with in_a_run(monkeypatch, server.url):
        ramp_tick.fn()

    ((_, change),) = server.patched
    with reading(started) as session:
        (rollout,) = rollouts.list_rollouts(session)
    given = "%7B%22strategy_name%22%3A%20%22fib_rsi%22"
    forms = f"../../deployments/deployment/{FORM}/run?parameters={given}"
    assert change["data"].splitlines()[-3:] == [
        f"**Forms, filled in:** [Pause]({forms}%7D) · [Roll back]({forms}%2C%20%22version%22%3A%20%22v2%22%7D)",
        "",
        f"[What owners changed](../artifact/{RUN}) · [In the console]"
        f"(https://rollout.example.org/console/strategies/fib_rsi/rollouts/{rollout.id})",
    ]


def test_a_name_cannot_break_out_of_a_link(
    engine: Engine, at: Clock, server: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "a](//evil.example)<img src=x>|`%41"
    put_version(engine, "v1", Status.ACTIVE, strategy_name=name)
    put_version(engine, "v2", strategy_name=name)
    monkeypatch.setenv("ROLLOUT_CONSOLE_URL", "https://rollout.example.org/console")
    server.body = known("nightly-comparison")

    with in_a_run(monkeypatch, server.url):
        assert start_canary.fn(name, "v2", owner="ana").is_completed()

    for page in made(server):
        links, images = addresses(page["data"])
        assert {urlsplit(link).netloc for link in links} == {"", "rollout.example.org"}
        assert [image for image in images if not image.startswith("data:")] == []
        assert "<img" not in MarkdownIt("commonmark").render(page["data"])
    filled_in = parse_qs(urlsplit(next(link for link in links_of(made(server)) if "version" in link)).query)
    assert json.loads(filled_in["parameters"][0]) == {"strategy_name": name, "version": "v2"}


def addresses(text: str) -> tuple[list[str], list[str]]:
    """Return the addresses of all links and images of a Markdown text."""
    inline = [each for token in MarkdownIt("commonmark").parse(text) for each in token.children or []]
    links = [str(each.attrs["href"]) for each in inline if each.type == "link_open"]
    return links, [str(each.attrs["src"]) for each in inline if each.type == "image"]


def links_of(pages: list[dict[str, Any]]) -> list[str]:
    return [link for page in pages for link in addresses(page["data"])[0]]


def test_the_documented_keys_are_those_of_the_artifacts() -> None:
    """Prefect's page of a key that does not exist is an error."""
    documented = re.findall(r"`([a-z]+(?:-[a-z]+)*-fib-rsi(?:-2-0-0)?)`", PAGE.read_text())
    kinds = ("rollout", "rollback", "comparison", "plan", "whatif", "training")

    assert set(documented) == {*(key_of(kind, "fib_rsi", "2.0.0") for kind in kinds), key_of("change", "fib_rsi")}
    assert re.findall(r"-<\w+>|rollout-fib_rsi", PAGE.read_text()) == []


@pytest.mark.parametrize(
    ("names", "key"),
    [
        (("fib_rsi", "2.0.0"), "rollout-fib-rsi-2-0-0"),
        (("fib_rsi", ""), "rollout-fib-rsi"),
        (("fib-rsi", "2.0.0"), "rollout-fib-rsi-2-0-0-"),
        (("Fib_RSI", "2.0.0"), "rollout-fib-rsi-2-0-0-"),
        (("fib_rsi", "2.0.0-rc1+x"), "rollout-fib-rsi-2-0-0-rc1-x-"),
    ],
)
def test_a_key_is_lower_case_digits_and_dashes(names: tuple[str, str], key: str) -> None:
    found = key_of("rollout", *names)

    assert found == key if not key.endswith("-") else len(found) == len(key) + 8
    assert set(found) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


def test_names_that_look_alike_share_no_page() -> None:
    names = [
        ("fib_rsi", "2.0.0"),
        ("fib-rsi", "2.0.0"),
        ("FIB_RSI", "2.0.0"),
        ("fib", "rsi-2.0.0"),
        ("fib-rsi", "2-0.0"),
    ]

    assert len({key_of("rollout", *each) for each in names}) == len(names)


@pytest.mark.parametrize("page", ["http://h:4200/artifacts/artifact/1", "https://ui.example/v2/artifacts/artifact/1"])
def test_a_link_stays_in_the_user_interface_that_is_read(page: str) -> None:
    for artifact_id, path in (("", "key/change-fib-rsi"), ("2", "artifact/2")):
        link = link_to("change-fib-rsi", "changes", {"change-fib-rsi": (artifact_id, "")})

        assert urljoin(page, link.removeprefix("[changes](").removesuffix(")")) == f"{page[:-11]}/{path}"
