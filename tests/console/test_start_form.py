"""The form that starts a rollout in a real browser: the preview follows the typing, and the start is confirmed."""

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from strategy_core.services.users import load_users
from strategy_core.store import rollouts
from strategy_core.store.engine import reading
from tests.builders import DAY, put_day, put_pair
from tests.console.conftest import Site

pytestmark = [pytest.mark.full, pytest.mark.xdist_group("start form")]
OpenTab = Callable[..., Any]
BOTH = {"1": "buy", "2": "buy"}
PAGES = {
    "strategy": "/strategies/fib_rsi",
    "start": "/strategies/fib_rsi/start",
    "start-confirm": "/strategies/fib_rsi/start/confirm?version=2",
    "start-wrong": "/strategies/fib_rsi/start/confirm?version=2&stage-0-percent=5&gate-errors-share=500",
    "register": "/strategies/fib_rsi/register",
    "compare": "/strategies/fib_rsi/compare?one=1&other=2",
}


@pytest.fixture(scope="module")
def fleet(site: Site) -> Site:
    """Add a pair with 40 days in shadow, and 6,240 users."""
    put_pair(site.engine)
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    for number in range(1, 41):
        worth = {"1": 1.0 if number % 3 else -1.0, "2": 1.1 if number % 4 else -1.0}
        put_day(site.engine, today - number * DAY, BOTH, worth, signal_hours=(4, 9, 14))
    load_users(site.engine, [(f"u{number}", 100.0) for number in range(6_240)], now=today - timedelta(days=1))
    return site


def log_in(fleet: Site, open_tab: OpenTab, path: str = "", **settings: Any) -> Any:
    page = open_tab(fleet.link(), **settings)
    page.wait_for_url(fleet.console)
    page.goto(fleet.console + path)
    return page


def test_the_pages_fit_and_axe_finds_nothing(fleet: Site, open_tab: OpenTab, tmp_path: Path) -> None:
    from axe_playwright_python.sync_playwright import Axe

    folder = Path(os.environ.get("ROLLOUT_SCREENSHOTS") or tmp_path)
    found, wide = [], []

    for kind, width, scheme in (("", 1280, "light"), ("-dark", 1280, "dark"), ("-narrow", 390, "light")):
        page = log_in(fleet, open_tab, color_scheme=scheme, viewport={"width": width, "height": 900})
        for name, path in PAGES.items():
            page.goto(fleet.console + path)
            if name == "start":
                page.locator("#preview table").wait_for()
            violations = Axe().run(page).response["violations"]
            found += [(name, kind, each["id"], each["nodes"][0]["html"]) for each in violations]
            wide += [name + kind] if page.evaluate("document.documentElement.scrollWidth > innerWidth") else []
            page.screenshot(path=str(folder / f"console-{name}{kind}.png"), full_page=True)

    assert found == []
    assert wide == []


def test_an_owner_starts_a_rollout_after_the_preview_follows_the_typing(fleet: Site, open_tab: OpenTab) -> None:
    page = log_in(fleet, open_tab, "/strategies/fib_rsi")

    page.get_by_role("link", name="Start a rollout", exact=True).click()
    preview = page.locator("#preview")
    preview.get_by_role("row", name="5 %").first.wait_for()
    first = preview.inner_text()
    page.get_by_label("Stage 1, users in percent").fill("2.5")
    preview.get_by_role("row", name="2.5 %").wait_for()
    page.get_by_label("Stage 1, at least, in days").fill("90")
    preview.get_by_text("maximum_stage_time must exceed every stage's minimum_time").wait_for()
    page.get_by_label("Stage 1, at least, in days").fill("2")
    preview.get_by_role("row", name="2.5 %").wait_for()
    page.get_by_role("button", name="Continue").click()
    effects = page.locator(".effects").inner_text()
    page.get_by_label("Reason").fill("better in shadow for 40 days")
    page.get_by_role("button", name="Start the rollout").click()
    page.wait_for_url("**/strategies/fib_rsi/rollouts/*")

    assert "Of 6,240 users" in first
    assert "of 6,240 users get it from their next signal on" in effects
    assert "the stage of 2.5 %" in effects
    with reading(fleet.engine) as session:
        rollout = rollouts.open_rollout(session, "fib_rsi")
    assert rollout is not None
    assert (rollout.version, rollout.plan["stages"][0]["percent"]) == ("2", 2.5)
    assert rollout.plan["stages"][0]["minimum_time"] == 2 * 86_400


def test_without_script_the_preview_is_a_button(fleet: Site, open_tab: OpenTab) -> None:
    link = fleet.link()
    page = open_tab(f"{fleet.console}/strategies/platinum_slow/start", java_script_enabled=False)
    page.get_by_label("Token").fill(link.partition("#")[2])

    page.get_by_role("button", name="Log in").click()

    assert page.get_by_text("Start a rollout of platinum_slow").first.is_visible()
