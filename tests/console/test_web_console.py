"""The web console in a real browser: login by link, refresh without a reload, the keyboard, and axe-core."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.console.conftest import Site
from tests.fleets import raise_alert

pytestmark = [pytest.mark.full, pytest.mark.xdist_group("web console")]
OpenTab = Callable[..., Any]
PAGES = ("", "/alerts", "/alerts?shown=past", "/audit", "/alerts/1/acknowledge", "/nowhere")
AT_ONCE_MS = 60_000  # a refresh comes every ten seconds


def test_a_link_logs_in_and_leaves_no_token_behind(site: Site, open_tab: OpenTab) -> None:
    requests: list[str] = []
    page = open_tab(site.console)
    page.on("request", lambda request: requests.append(request.url))

    page.goto(site.link())
    page.wait_for_url(site.console)

    assert page.get_by_role("heading", name="Fleet").is_visible()
    assert not any("eyJ" in url for url in requests)
    assert page.evaluate("document.cookie") == ""
    page.go_back()
    assert "eyJ" not in page.url


def test_without_script_an_owner_pastes_the_token_and_acts(site: Site, open_tab: OpenTab) -> None:
    link = site.link()
    page = open_tab(f"{site.console}/alerts", java_script_enabled=False)

    page.get_by_label("Token").fill(link.partition("#")[2])
    page.get_by_role("button", name="Log in").click()
    page.get_by_role("link", name="Acknowledge alert 1").click()
    page.get_by_label("Reason").fill("the disk is full")
    page.get_by_role("button", name="Acknowledge").click()

    assert page.get_by_text("Alert 1 is acknowledged by ana.").is_visible()
    assert page.get_by_role("link", name="Acknowledge alert 1").count() == 0


def test_a_page_shows_news_without_a_reload_and_keeps_what_is_typed(site: Site, open_tab: OpenTab) -> None:
    page = open_tab(site.link())
    page.wait_for_url(site.console)
    page.evaluate("window.unloaded = 'no'")
    field = page.get_by_label("Strategy or version")
    field.fill("oil")

    raise_alert(site.engine, "platinum_slow", "feed.stale", "warning", "no candle since noon", datetime.now(UTC))
    page.get_by_text("A warning is open").wait_for(timeout=AT_ONCE_MS)

    assert page.evaluate("window.unloaded") == "no"
    assert field.input_value() == "oil"
    assert field.evaluate("field => field === document.activeElement")
    assert "Last read" in page.locator("#freshness").inner_text()
    assert "need you" in page.locator("#announcement").inner_text()


def test_a_server_that_does_not_answer_is_announced(site: Site, open_tab: OpenTab) -> None:
    page = open_tab(site.link())
    page.wait_for_url(site.console)

    page.route("**/console", lambda route: route.abort())
    page.locator("#freshness.stopped").wait_for(timeout=AT_ONCE_MS)

    assert page.locator("#freshness").inner_text().startswith("The server does not answer. What you see is ")
    assert page.locator("#announcement").inner_text() == "The server does not answer."


def test_the_keyboard_reaches_the_content_and_shows_where_it_is(site: Site, open_tab: OpenTab) -> None:
    page = open_tab(site.link())
    page.wait_for_url(site.console)

    page.keyboard.press("Tab")
    skip = page.evaluate("document.activeElement.textContent")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")

    assert skip == "Skip to the content"
    assert page.evaluate("document.activeElement.id") == "q"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing_serious_and_nothing_scrolls_sideways(
    site: Site, open_tab: OpenTab, scheme: str, width: int
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page = open_tab(site.link(), color_scheme=scheme, viewport={"width": width, "height": 800})
    page.wait_for_url(site.console)
    found, wide = [], []
    rollouts = [f"/strategies/{name}/rollouts/{number}" for name, number in site.rollouts.items()]

    for path in (*PAGES, *rollouts[:3], f"{rollouts[0]}/results", f"{rollouts[0]}/rollback", f"{rollouts[0]}/exclude"):
        page.goto(site.console + path)
        violations = Axe().run(page).response["violations"]
        found += [(path, each["id"], each["nodes"][0]["html"]) for each in violations]
        wide += [path] if page.evaluate("document.documentElement.scrollWidth > innerWidth") else []

    assert found == []
    assert wide == []
