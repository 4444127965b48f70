"""The console's first page: what it shows of each strategy, to which owners, and what the filter leaves."""

import re

import pytest

from strategy_core.domain.audit import Command
from strategy_core.services.canary import set_share
from tests.api.asking import Api, World
from tests.api.browsing import Browser
from tests.api.signing import NOW, token
from tests.builders import OWNER


@pytest.fixture
def browser(shared: tuple[Api, World]) -> Browser:
    return Browser(shared[0])


def rows(page: str) -> dict[str, str]:
    """Return the text of each row of the table, by strategy."""
    found = re.findall(r"<tr>\s*<th scope=\"row\".*?</tr>", page, re.DOTALL)
    texts = [" ".join(re.sub(r"<[^>]+>", " ", row).split()) for row in found]
    return {text.split()[0]: text for text in texts}


def test_each_strategy_has_a_row_with_its_rollout_in_words(browser: Browser) -> None:
    page = browser.log_in().get().text

    found = rows(page)
    assert list(found) == ["fib_rsi", "ppo_gold"]  # the one that needs an owner first
    assert "Its gates have not run for 9.5 h" in found["fib_rsi"]
    assert "No decisions for 6 candles" in found["fib_rsi"]
    assert "1 active 2 canary 3 draining, 1 open position" in found["fib_rsi"]
    assert "stage 1 of 2, day 0 of at least 1" in found["fib_rsi"]
    assert "5 %" in found["fib_rsi"]
    assert "1 active 2, 3 shadow" in found["ppo_gold"]
    assert "2 of 2 strategies need you." in page


def test_what_has_stopped_is_at_the_top(browser: Browser) -> None:
    page = browser.log_in().get().text

    assert "Something has stopped" in page
    assert "the users of these canaries are not protected: fib_rsi 2 for 9.5 h." in page


@pytest.mark.parametrize(
    ("query", "left"),
    [("?q=ppo", ["ppo_gold"]), ("?q=GOLD+PPO", ["ppo_gold"]), ("?needs=1&q=fib", ["fib_rsi"]), ("?q=nothing", [])],
)
def test_the_filter_leaves_what_matches(browser: Browser, query: str, left: list[str]) -> None:
    page = browser.log_in().get(query).text

    assert list(rows(page)) == left
    assert "of 2 strategies" in page


def test_a_limited_token_sees_its_own_strategies(browser: Browser) -> None:
    page = browser.log_in(token(strategies=["ppo_gold"])).get().text

    assert list(rows(page)) == ["ppo_gold"]
    assert "fib_rsi" not in page


def test_an_unchanged_page_is_not_sent_again(browser: Browser) -> None:
    first = browser.log_in().get()

    again = browser.get(headers={"If-None-Match": first.headers["etag"]})

    assert (again.status_code, again.content) == (304, b"")


def test_a_share_that_was_set_by_hand_is_under_what_needs_an_owner(api: Api, world: World) -> None:
    set_share(api.engine, Command(OWNER, NOW), strategy_name="ppo_gold", version="2", percent=10)

    page = Browser(api).log_in().get("?needs=1").text

    assert "No gate judges its canary" in rows(page)["ppo_gold"]
