"""The console's pages leave the server's threads to acts: a rollback goes on while no page is answered."""

from collections.abc import Iterator
from uuid import UUID

import pytest

from strategy_core.api.app import THREADS
from strategy_core.api.console.page import BUSY_RETRY_S
from strategy_core.api.dependencies import HEAVY_AT_ONCE, PAGES_AT_ONCE
from strategy_core.domain.ramp import State
from strategy_core.services.queries import find_rollout
from tests.api.asking import Api, World
from tests.api.browsing import Browser, console_routes

NOT_LIMITED = {
    "/console/login",
    "/console/static/{_digest}/{name}",
    "/console/strategies/{strategy_name}/rollouts/{rollout_id}/rollback",
}


@pytest.fixture
def browser(api: Api, world: World) -> Browser:
    return Browser(api).log_in()


@pytest.fixture
def crowd(browser: Browser) -> Iterator[None]:
    """As many pages in progress as may be."""
    pages = browser.api.app.state.backend.pages
    for _ in range(PAGES_AT_ONCE):
        assert pages.acquire(blocking=False)
    yield
    pages.release(PAGES_AT_ONCE)


def test_pages_leave_most_threads_to_acts() -> None:
    assert (PAGES_AT_ONCE + HEAVY_AT_ONCE) * 10 < THREADS
    assert HEAVY_AT_ONCE < PAGES_AT_ONCE  # slow pages leave some of the places to others


def test_each_page_is_limited_but_the_login_and_the_rollback(api: Api) -> None:
    routes = console_routes(api)

    assert len(routes) > 30
    assert {each.path for each in routes if not each.is_limited} == NOT_LIMITED


@pytest.mark.usefixtures("crowd")
def test_a_page_among_too_many_is_refused_with_the_time_to_wait(browser: Browser) -> None:
    response = browser.get()

    assert (response.status_code, response.headers["retry-after"]) == (503, str(BUSY_RETRY_S))
    assert f'<meta http-equiv="refresh" content="{BUSY_RETRY_S}">' in response.text
    assert response.headers["x-frame-options"] == "DENY"


@pytest.mark.usefixtures("crowd")
def test_a_rollback_goes_on_while_no_page_is_answered(browser: Browser, world: World) -> None:
    path = f"/strategies/fib_rsi/rollouts/{world.rollout}/rollback"

    shown = browser.get(path)
    done = browser.post(path, reason="late entries")

    assert shown.status_code == 200
    assert done.status_code == 303
    assert find_rollout(browser.api.engine, UUID(world.rollout)).state == State.ROLLED_BACK


@pytest.mark.usefixtures("crowd")
def test_the_api_rolls_back_while_no_page_is_answered(browser: Browser, world: World) -> None:
    answer = browser.api.post(f"/rollouts/{world.rollout}/rollback", {"reason": "late entries"})

    assert answer.status_code == 200


@pytest.mark.usefixtures("crowd")
def test_an_owner_logs_in_while_no_page_is_answered(api: Api) -> None:
    Browser(api).log_in()


@pytest.mark.parametrize("path", ["", "/nowhere", "/rollouts/none", "/alerts/999/acknowledge"])
def test_a_place_is_free_again_after_each_page_also_a_refused_one(browser: Browser, path: str) -> None:
    statuses = {browser.get(path).status_code for _ in range(PAGES_AT_ONCE + 1)}

    assert len(statuses) == 1
    assert 503 not in statuses
