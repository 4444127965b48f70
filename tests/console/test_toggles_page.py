"""Toggles in a real browser: a rule is previewed for a user, confirmed, seen and removed."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from strategy_core.domain.lifecycle import Status
from strategy_core.services.toggles import list_toggles
from tests.builders import put_version
from tests.console.conftest import Site

pytestmark = [pytest.mark.full, pytest.mark.xdist_group("toggles page")]
OpenTab = Callable[..., Any]
DECLARED = (
    '{"notify_only":{"default":false,"type":"boolean"},'
    '"risk_scale":{"default":1.0,"maximum":1.0,"minimum":0.25,"type":"number"}}'
)
PAGES = {
    "toggles": "/strategies/scaled/toggles?user=user_123",
    "toggles-set": "/strategies/scaled/toggles/risk_scale/set?value=0.5&percent=100&user=user_123",
    "toggles-wrong": "/strategies/scaled/toggles/risk_scale/set?value=2",
}


@pytest.fixture(scope="module")
def scaled(site: Site) -> Site:
    put_version(site.engine, "1", Status.ACTIVE, strategy_name="scaled", toggles=DECLARED)
    return site


def log_in(scaled: Site, open_tab: OpenTab, path: str, **settings: Any) -> Any:
    page = open_tab(scaled.link(), **settings)
    page.wait_for_url(scaled.console)
    page.goto(scaled.console + path)
    return page


def rules(scaled: Site) -> list[tuple[Any, str]]:
    found = list_toggles(scaled.engine, "scaled").toggles
    return [(rule.value, rule.when.shown) for each in found for rule in each.rules]


def test_an_owner_previews_sets_and_removes_a_rule(scaled: Site, open_tab: OpenTab) -> None:
    page = log_in(scaled, open_tab, "/strategies/scaled")

    page.get_by_role("link", name="Rules, and what a user gets").click()
    page.get_by_text("Set a rule of risk_scale").click()
    form = page.locator("#set-risk_scale")
    form.get_by_label("Value").fill("0.5")
    form.get_by_label("Percent of users").fill("100")
    form.get_by_label("Preview for user").fill("user_123")
    form.get_by_role("button", name="Preview").click()
    effects = page.locator(".effects").inner_text()
    assert rules(scaled) == []
    page.get_by_label("Reason").fill("a trial")
    page.get_by_role("button", name="Set the rule").click()
    page.get_by_role("link", name="Remove rule 1 of risk_scale").wait_for()
    found = page.locator("main").inner_text()

    assert "user_123 has 1.0 now and gets 0.5 (rule 1: 100 % of users, bucket" in effects
    assert "user_123 gets version 1" in found
    assert rules(scaled) == [(0.5, "100 % of users")]
    page.get_by_role("link", name="Remove rule 1 of risk_scale").click()
    page.get_by_role("button", name="Remove the rule").click()
    page.get_by_text("is removed").wait_for()
    assert rules(scaled) == []


def test_the_pages_fit_and_axe_finds_nothing(scaled: Site, open_tab: OpenTab, tmp_path: Path) -> None:
    from axe_playwright_python.sync_playwright import Axe

    folder = Path(os.environ.get("ROLLOUT_SCREENSHOTS") or tmp_path)
    found, wide = [], []

    for kind, width, scheme in (("", 1280, "light"), ("-dark", 1280, "dark"), ("-narrow", 390, "light")):
        page = log_in(scaled, open_tab, "", color_scheme=scheme, viewport={"width": width, "height": 900})
        for name, path in PAGES.items():
            page.goto(scaled.console + path)
            page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
            violations = Axe().run(page).response["violations"]
            found += [(name, kind, each["id"], each["nodes"][0]["html"]) for each in violations]
            wide += [name + kind] if page.evaluate("document.documentElement.scrollWidth > innerWidth") else []
            page.screenshot(path=str(folder / f"console-{name}{kind}.png"), full_page=True)

    assert found == []
    assert wide == []
