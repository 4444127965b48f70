"""The console's alerts and audit trail, acts that are confirmed first, and texts that try to be markup."""

from typing import Any

import pytest
from sqlalchemy import Engine

from strategy_core.domain.audit import Actor, Command
from strategy_core.domain.lifecycle import Status
from strategy_core.services.versions import activate_version
from strategy_core.store import alerts
from strategy_core.store.engine import reading, transaction
from tests.api.asking import Api, World
from tests.api.browsing import Browser, hidden_fields
from tests.api.signing import NOW, token
from tests.builders import MONDAY, put_version

MARKUP = "<script>alert(1)</script>"
ESCAPED = "&lt;script&gt;alert(1)&lt;/script&gt;"


@pytest.fixture
def browser(api: Api, world: World) -> Browser:
    put_alert(api.engine, "fib_rsi")
    return Browser(api).log_in()


def put_alert(engine: Engine, strategy_name: str, text: str = "it runs no more", **facts: Any) -> None:
    with transaction(engine) as session:
        alerts.raise_alert(
            session,
            "version.refused",
            text,
            severity="critical",
            strategy_name=strategy_name,
            dedupe_key=f"{strategy_name} {text}",
            facts=facts,
            now=MONDAY,
        )


def newest_alert(engine: Engine) -> Any:
    with reading(engine) as session:
        return alerts.find_alerts(session)[-1]


def test_open_alerts_are_those_that_wait_for_an_owner(browser: Browser) -> None:
    still_open, past = browser.get("/alerts").text, browser.get("/alerts?shown=past").text

    assert "It runs no more." in still_open
    assert "Started" not in still_open
    assert "Started" in past  # news that needs no answer
    assert "It runs no more." not in past


def test_an_act_shows_what_it_will_do_and_then_does_it(browser: Browser) -> None:
    page = browser.get(f"/alerts/{newest_alert(browser.api.engine).id}/acknowledge").text
    browser.post(f"/alerts/{newest_alert(browser.api.engine).id}/acknowledge", reason="the disk is full")

    assert "It is not sent again" in page
    assert "the disk is full" in browser.client.get("/console/alerts?shown=past").text
    alert = newest_alert(browser.api.engine)
    assert (alert.acknowledged_by, alert.acknowledged_because) == ("ana", "the disk is full")


def test_the_line_of_an_act_is_shown_once(browser: Browser) -> None:
    response = browser.post(f"/alerts/{newest_alert(browser.api.engine).id}/acknowledge", reason="seen")

    first, second = browser.follow(response).text, browser.get("/alerts").text

    assert "is acknowledged by ana." in first
    assert "is acknowledged by ana." not in second


def test_a_refused_form_is_shown_again_with_what_was_typed(browser: Browser) -> None:
    long = "because " * 200

    response = browser.post(f"/alerts/{newest_alert(browser.api.engine).id}/acknowledge", reason=long)

    assert response.status_code == 422
    assert "at most 1,000 characters" in response.text
    assert long.strip() in response.text
    assert newest_alert(browser.api.engine).acknowledged_at is None


def test_an_act_on_nothing_gets_one_clear_line(browser: Browser) -> None:
    response = browser.get("/alerts/999/acknowledge")

    assert response.status_code == 404
    assert "999" in response.text
    assert '<a href="/console">Back</a>' in response.text


@pytest.mark.parametrize(
    "held", [token(scope="read"), token(strategies=["ppo_gold"])], ids=["read-only", "of another strategy"]
)
def test_who_may_not_change_a_strategy_sees_no_button_and_is_refused(api: Api, world: World, held: str) -> None:
    put_alert(api.engine, "fib_rsi")
    browser, path = Browser(api).log_in(held), f"/alerts/{newest_alert(api.engine).id}/acknowledge"
    page = browser.get("/alerts")

    response = browser.send(path, hidden_fields(browser.get().text) | {"reason": "let me"})

    assert page.status_code == 200
    assert f'{path}">Acknowledge<' not in page.text
    assert browser.get(path).status_code == 403
    assert response.status_code == 403
    assert newest_alert(api.engine).acknowledged_at is None


def test_the_audit_trail_shows_who_when_and_why_newest_first(browser: Browser) -> None:
    activate_version(
        browser.api.engine,
        Command(Actor("ben", role="admin", source="console"), NOW, "better in shadow"),
        strategy_name="ppo_gold",
        version="2",
    )

    page = browser.get("/audit").text

    assert page.index("better in shadow") < page.index("proven")
    assert "admin, console" in page
    assert "1 → 2" in page


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("?actor=ana&action=start_rollout", True),
        ("?strategy=ppo_gold", False),
        ("?since=2026-03-02&until=2026-03-02", True),
        ("?since=2026-03-03", False),
        ("?actor=ben", False),
    ],
)
def test_the_search_finds_changes(shared: tuple[Api, World], query: str, found: bool) -> None:
    page = Browser(shared[0]).log_in().get(f"/audit{query}").text

    assert ("proven" in page) is found


@pytest.mark.parametrize(
    ("query", "status", "line"),
    [
        ("?strategy=nobody", 404, "nobody"),
        ("?since=soon", 422, "a day such as 2026-03-02"),
        ("?before=x", 422, "before"),
    ],
)
def test_a_search_that_cannot_be_is_refused(shared: tuple[Api, World], query: str, status: int, line: str) -> None:
    response = Browser(shared[0]).log_in().get(f"/audit{query}")

    assert response.status_code == status
    assert line in response.text


def test_pages_of_the_trail_follow_each_other(browser: Browser) -> None:
    for number in range(60):  # more than a page
        activate_version(
            browser.api.engine,
            Command(Actor("ben"), NOW, f"change {number}."),
            strategy_name="ppo_gold",
            version="1" if number % 2 else "2",
        )

    first = browser.get("/audit?actor=ben").text
    second = browser.get("/audit" + first.split("/console/audit")[-1].split('"')[0].replace("&amp;", "&")).text

    assert [f"change {number}." in first for number in (59, 10, 9)] == [True, True, False]
    assert [f"change {number}." in second for number in (10, 9, 0)] == [False, True, True]


def test_texts_of_others_stay_texts(browser: Browser) -> None:
    engine = browser.api.engine
    put_version(engine, "1", Status.ACTIVE, strategy_name=MARKUP, at=MONDAY)
    put_alert(engine, MARKUP, text=MARKUP)
    command = Command(Actor(MARKUP), NOW, MARKUP)
    activate_version(engine, command, strategy_name="ppo_gold", version="2")

    pages = [browser.get(path).text for path in ("", "/alerts", "/audit", f"?q={MARKUP}", f"/audit?actor={MARKUP}")]

    for page in pages:
        assert ESCAPED in page
        assert MARKUP not in page
    assert f"{browser.get(f'/alerts/{newest_alert(engine).id}/acknowledge').text}".count(MARKUP) == 0
