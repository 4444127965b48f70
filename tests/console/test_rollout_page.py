"""An owner in a real browser: logs in by a link, finds what needs him, approves it, and rolls it back."""

import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from strategy_core.domain.ramp import State
from strategy_core.market.source import ReplayClock
from strategy_core.router.router import Router
from strategy_core.services.database import start_clock
from strategy_core.services.users import load_users
from tests.api.asking import World, put_state, put_world
from tests.api.processes import serving, token_of
from tests.api.signing import NOW
from tests.builders import MONDAY
from tests.console.conftest import HIGH, WIDE

pytestmark = [pytest.mark.full, pytest.mark.xdist_group("web console")]

PATIENCE_S = 60.0
USERS = [f"u{number}" for number in range(6_240)]


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    return sqlite_url


@pytest.fixture
def world(engine: Engine) -> World:
    """Two strategies. The rollout of one waits for an approval. The market's time goes on from Monday morning."""
    made = put_world(engine)
    load_users(engine, [(user, None) for user in USERS], now=MONDAY)
    put_state(engine, State.AWAITING_APPROVAL)
    start_clock(engine, ReplayClock(datetime.now(UTC), NOW))
    return made


@pytest.fixture
def address(world: World, database_url: str, tmp_path: Path) -> Iterator[str]:
    with serving(database_url, tmp_path / "api.log") as address:
        yield address


@pytest.fixture
def owner(address: str, open_tab: Callable[..., Any]) -> Any:
    """A browser that has opened the login link of an owner."""
    page = open_tab(f"{address}/console/login#{token_of('bea')}")
    page.wait_for_url("**/console")
    return page


@pytest.fixture
def shoot(owner: Any, tmp_path: Path) -> Callable[[str], None]:
    """Return how to keep pictures of the page in ROLLOUT_SCREENSHOTS: wide in light and dark, and narrow."""
    folder = Path(os.environ.get("ROLLOUT_SCREENSHOTS") or tmp_path)

    def keep(name: str) -> None:
        for kind, width, scheme in (("", WIDE, "light"), ("-dark", WIDE, "dark"), ("-narrow", 390, "light")):
            owner.set_viewport_size({"width": width, "height": HIGH})
            owner.emulate_media(color_scheme=scheme)
            owner.screenshot(path=str(folder / f"console-{name}{kind}.png"), full_page=True)
            assert owner.evaluate("document.documentElement.scrollWidth") <= width
        owner.set_viewport_size({"width": WIDE, "height": HIGH})

    return keep


def test_an_owner_approves_and_rolls_back_and_routers_follow(
    owner: Any, shoot: Callable[[str], None], database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = owner.locator("table.fleet tbody th").all_text_contents()
    assert [name.strip() for name in rows] == ["fib_rsi", "ppo_gold"]  # the one that needs him comes first

    owner.get_by_role("link", name="fib_rsi", exact=True).click()
    owner.get_by_text("Waits for your approval of 100 %").wait_for()
    shoot("rollout")
    owner.get_by_role("link", name="Approve 100 %").click()
    assert "more users get 2 at their next signal" in owner.locator(".effects").inner_text()
    shoot("approve")
    owner.get_by_label("Reason").fill("as good as the old one")
    owner.get_by_role("button", name="Approve").click()
    owner.get_by_role("status").get_by_text("fib_rsi 2 is approved for 100 %").wait_for()

    with Router(database_url) as router:
        canaries = [user for user in USERS if router.version_for(user, "fib_rsi") == "2"]
        owner.get_by_role("link", name="Roll back to 1").click()
        assert (
            f"{len(canaries)} users of 6,240 return to 1 at their next signal" in owner.locator(".effects").inner_text()
        )
        shoot("rollback")
        owner.get_by_label("Reason").fill("users complain of late entries")
        clicked = time.monotonic()
        owner.get_by_role("button", name="Roll back now").click(no_wait_after=True)
        while router.version_for(canaries[0], "fib_rsi") == "2":
            assert time.monotonic() < clicked + PATIENCE_S
            time.sleep(0.005)
        took = time.monotonic() - clicked

    owner.get_by_text("Rolled back at 5 %: by bea: users complain of late entries").wait_for()
    shoot("rolled-back")
    with capsys.disabled():
        print(f"\nfrom the click to a Router that answers with the old version: {took:.2f} s")  # noqa: T201


def test_a_viewer_sees_no_button_and_a_stranger_the_login(
    address: str, world: World, open_tab: Callable[..., Any]
) -> None:
    path = f"{address}/console/strategies/fib_rsi/rollouts/{world.rollout}"
    page = open_tab(f"{path}/rollback")
    assert "/console/login" in page.url

    page.goto(f"{address}/console/login#{token_of('vera', scope='read')}")
    page.wait_for_url("**/console")
    page.goto(path)

    assert page.get_by_text("Your token may read this rollout").is_visible()
    assert page.get_by_role("link", name="Roll back").count() == 0
    assert page.goto(f"{path}/rollback").status == 403


def test_without_script_an_owner_rolls_back_in_two_steps(
    address: str, world: World, database_url: str, open_tab: Callable[..., Any]
) -> None:
    path = f"{address}/console/strategies/fib_rsi/rollouts/{world.rollout}"
    page = open_tab(path, java_script_enabled=False)
    page.get_by_label("Token").fill(token_of("bea"))
    page.get_by_role("button", name="Log in").click()

    page.get_by_role("link", name="Roll back to 1").click()
    page.get_by_label("Reason").fill("late entries")
    page.get_by_role("button", name="Roll back now").click()

    page.get_by_text("Rolled back at 5 %: by bea: late entries").wait_for()
    with Router(database_url) as router:
        assert set(router.assign(USERS, "fib_rsi")) == {"1"}
    page.get_by_role("link", name="Equity, regimes and live orders").click()
    assert page.get_by_role("heading", name="Results of fib_rsi 2 against 1").is_visible()
