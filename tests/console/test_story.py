"""An owner's day in the Prefect UI, in a real browser: register, start, watch, approve, roll back."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from strategy_core.domain.ramp import State
from strategy_core.store import audit, rollouts, versions
from strategy_core.store.engine import reading
from strategy_core.store.tables import AuditEvent, Rollout
from tests.console.conftest import Up

pytestmark = [pytest.mark.full, pytest.mark.xdist_group("console")]
SYMBOLS = ("GOLD", "SILVER", "PLATINUM", "PALLADIUM")
Shoot = Callable[[str], None]
LOADED_MS = 15_000


def test_an_owner_registers_starts_watches_approves_and_rolls_back(up: Up, page: Any, shoot: Shoot) -> None:
    up.wait_for(lambda: True if status(up, "v2") == "shadow" else None, "the faulty canary is undone by its gates")
    page.goto(f"{up.ui}/v2/deployments")
    page.get_by_role("link", name="approve-stage", exact=True).first.wait_for()
    shoot("deployments")

    form(page, up, "register-version", {"Strategy": "seasonal", "Version": "v3", "Owner": "ana"})
    add_items(page, "Symbols", SYMBOLS)
    page.get_by_label("Entry point (Optional)").fill("fib_rsi")
    write_json(page, "Config (Optional)", '{"fib_lookback_bars": 56}')
    shoot("register-version")
    submit(page, up, "Completed", "seasonal v3 is registered as shadow")
    assert status(up, "v3") == "shadow"

    form(page, up, "start-canary", {"Strategy": "seasonal", "Version": "v3", "Owner": "ana"})
    page.get_by_label("Reason (Optional)", exact=True).fill("as good in the backtest, and quicker")
    shoot("start-canary")
    page.get_by_role("tab", name="Custom plan").click()
    approve_before(page).fill("10")
    submit(page, up, "Completed", "seasonal v3 serves 5 % of users against v1")
    started = rollout(up)
    assert (started.version, started.plan["approve_before"]) == ("v3", [10.0])
    assert len(started.plan["gates"]) == 13

    read(page, up, "rollout-seasonal-v3", "seasonal v3 against v1: running at 5 % of users")
    up.wait_for(lambda: True if rollout(up).state == State.AWAITING_APPROVAL else None, "an approval is asked for")
    read(page, up, "rollout-seasonal-v3", "seasonal v3 against v1: awaiting approval at 5 % of users")
    shoot("progress")

    form(page, up, "approve-stage", {"Strategy": "seasonal", "Owner": "ana"})
    shoot("approve-stage")
    submit(page, up, "Completed", "seasonal v3 may enter stage 2")
    up.wait_for(lambda: True if rollout(up).stage_index >= 1 else None, "the tick takes the step")
    read(page, up, "rollout-seasonal-v3", "seasonal v3 against v1: running at ", unlike="running at 5 %")

    form(page, up, "rollback", {"Strategy": "seasonal", "Owner": "ana", "Reason": "users complain of late entries"})
    submit(page, up, "Completed", "seasonal v3 is rolled back, no user gets it")
    shoot("rollback-run")
    read(page, up, "rollout-seasonal-v3", "seasonal v3 against v1: rolled back")
    read(page, up, "rollback-seasonal-v3", "users complain of late entries")
    shoot("rollback")
    read(page, up, "change-seasonal", "seasonal v3: roll back")
    shoot("change")
    page.get_by_role("link", name="Why, and what it cost").click()
    page.wait_for_url("**/v2/artifacts/key/rollback-seasonal-v3")
    assert status(up, "v3") == "shadow"
    assert rollout(up).state == State.ROLLED_BACK
    done = [(event.action, event.actor) for event in trail(up) if event.version == "v3" and event.role == "owner"]
    assert done == [
        ("register_version", "ana"),
        ("start_rollout", "ana"),
        ("approve", "ana"),
        ("roll_back", "ana"),
    ]


def test_what_a_form_lets_through_is_refused_in_a_line(up: Up, page: Any, shoot: Shoot) -> None:
    before = len(trail(up))

    form(page, up, "start-canary", {"Strategy": "seasonal", "Version": "v9", "Owner": "ana"})
    submit(page, up, "Failed", "no version 'v9' of 'seasonal'")
    shoot("refused")

    assert len(trail(up)) == before


def form(page: Any, up: Up, deployment: str, given: Mapping[str, str]) -> None:
    """Open a deployment's form and fill in what stands first."""
    page.goto(f"{up.ui}/v2/deployments/deployment/{up.deployment(deployment)}/run")
    for label, text in given.items():
        page.get_by_label(label, exact=True).fill(text)


def field(page: Any, label: str) -> Any:
    """Return what stands around a field's label: the field with its description."""
    return page.get_by_text(label, exact=True).locator("xpath=ancestor::div[.//button or .//textarea][2]")


def add_items(page: Any, label: str, items: Sequence[str]) -> None:
    around = field(page, label)
    for number, item in enumerate(items):
        around.get_by_role("button", name="Add item").click()
        around.get_by_role("textbox").nth(number).fill(item)


def write_json(page: Any, label: str, text: str) -> None:
    editor = page.locator(".cm-content").first
    editor.click()
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type(text)


def approve_before(page: Any) -> Any:
    return field(page, "Approve Before (Optional)").get_by_role("spinbutton").first


def submit(page: Any, up: Up, state: str, line: str) -> None:
    """Ask for the run, go to its page, and wait for its end with the line that an owner reads there."""
    known = up.owners_runs()

    def left() -> bool | None:
        """Click again where a click was lost: Prefect's page may not listen yet. A form that refuses a field stays."""
        if page.url.endswith("/run"):
            page.get_by_role("button", name="Submit").click()
            page.wait_for_timeout(10_000)
        return None if page.url.endswith("/run") and up.owners_runs() == known else True

    up.wait_for(left, f"the form at {page.url} is sent")
    asked = up.wait_for(lambda: next(iter(up.owners_runs() - known), None), "the run is created")
    details = f"{up.ui}/v2/runs/flow-run/{asked}?tab=Details"
    see(page, up, details, state)
    see(page, up, details, line)


def see(page: Any, up: Up, address: str, words: str) -> None:
    """Load a page until it shows *words*."""

    def found() -> bool | None:
        page.goto(address)
        return shows(page, words) or None

    up.wait_for(found, f"{words!r} at {address}")


def read(page: Any, up: Up, key: str, words: str, *, unlike: str = "") -> None:
    """Open the newest artifact of a key until it shows *words* without *unlike*. Ticks overwrite it."""

    def found() -> bool | None:
        page.goto(f"{up.ui}/v2/artifacts/key/{key}")
        if not shows(page, "", link := "a[href*='/artifacts/artifact/']"):
            return None
        page.locator(link).first.click()
        page.wait_for_url("**/artifacts/artifact/**")
        return (shows(page, words) and not (unlike and unlike in page.inner_text("body"))) or None

    up.wait_for(found, f"{words!r} in artifact {key}")


def shows(page: Any, words: str, part: str = "body") -> bool:
    """Return whether a part of the page shows *words* within a few seconds."""
    from playwright.sync_api import TimeoutError as TooSlow

    seen = "([part, words]) => document.querySelector(part)?.innerText.includes(words)"
    try:
        page.wait_for_function(seen, arg=[part, words], timeout=LOADED_MS)
    except TooSlow:
        return False
    return True


def status(up: Up, version: str) -> str:
    with reading(up.engine) as session:
        return versions.get_version(session, "seasonal", version).status


def rollout(up: Up) -> Rollout:
    with reading(up.engine) as session:
        return rollouts.list_rollouts(session, "seasonal")[0]


def trail(up: Up) -> Sequence[AuditEvent]:
    with reading(up.engine) as session:
        return audit.events(session, "seasonal")
