"""What a token may not see or do in the console: each act refuses a reader, and a scope hides all other strategies."""

import re
from html import unescape

import pytest
from sqlalchemy import Engine

from strategy_core.domain.audit import AGENT, Actor, Command
from strategy_core.services.proposals import Proposed, propose
from strategy_core.services.rollout_page import OwnerChoice
from strategy_core.services.transitions import strategy_state
from strategy_core.store import audit
from strategy_core.store.engine import reading
from tests.api.asking import START_ID, Api, World, put_start
from tests.api.browsing import Browser, console_routes, hidden_fields
from tests.api.signing import token
from tests.builders import MONDAY

LINK = re.compile(r'href="(/console[^"#]*)')
OPEN = ("/console/login", "/console/logout", "/console/{path:path}")


def acts(api: Api) -> list[str]:
    """Return the paths of all forms that change something."""
    posts = [each for each in console_routes(api) if "POST" in (each.methods or ())]
    return [each.path for each in posts if each.path not in OPEN]


def placed(path: str, world: World, proposal: str) -> str:
    ids = {
        "strategy_name": "fib_rsi",
        "rollout_id": world.rollout,
        "version": "3",
        "alert_id": world.alert,
        "freeze_id": world.freeze,
        "start_id": str(START_ID),
        "proposal_id": proposal,
        "name": "notify_only",
        "choice": "pause",
    }
    return path.removeprefix("/console").format_map(ids)


def trail(engine: Engine) -> list[int | None]:
    with reading(engine) as session:
        assert strategy_state(session, "fib_rsi")["percent"] == 5
        return [each.id for each in audit.events(session)]


@pytest.mark.parametrize("held", [token(scope="read"), token(strategies=["ppo_gold"])], ids=["reader", "other scope"])
def test_each_act_is_refused_to_who_may_not_change_the_strategy(api: Api, world: World, held: str) -> None:
    put_start(api.engine)
    wish = Command(Actor("assistant", role=AGENT), MONDAY, "better in shadow")
    proposal = propose(api.engine, wish, strategy_name="fib_rsi", action=Proposed.ADVANCE)
    before, browser = trail(api.engine), Browser(api).log_in(held)
    secret = hidden_fields(browser.get().text)
    paths, statuses = acts(api), {}

    for path in paths:
        fields = secret | {"reason": "let me", "strategy": "fib_rsi", "to": "2026-03-20", "version": "3"}
        statuses[path] = browser.send(placed(path, world, str(proposal.id)), fields).status_code

    assert len(paths) > 10
    assert {path: status for path, status in statuses.items() if status != 403} == {}
    assert trail(api.engine) == before


def test_a_reader_finds_no_way_to_an_act(api: Api, world: World) -> None:
    choices = "|".join(OwnerChoice)
    ways = [re.sub(r"\{[^}]+\}", "[^/?]+", each.replace("{choice}", f"({choices})")) for each in acts(api)]
    pages = crawl(Browser(api).log_in("reader"), "/console/strategies/ppo_gold")

    links = {link for page in pages.values() for link in LINK.findall(page)}

    assert {link for link in links for way in ways if re.fullmatch(way, unescape(link).partition("?")[0])} == set()


def test_no_page_that_a_limited_owner_reaches_names_another_strategy(api: Api, world: World) -> None:
    put_start(api.engine)
    limited = Browser(api).log_in(token(strategies=["ppo_gold"]))

    pages = crawl(
        limited, "/console?q=fib", "/console/audit?actor=ana", "/console/alerts?shown=all", "/console/calendar"
    )

    assert len(pages) > 10
    marks = re.compile(rf"strategies/fib_rsi|fib_rsi \d|{world.rollout}|holidays", re.IGNORECASE)
    assert {path: found.group() for path, page in pages.items() if (found := marks.search(page))} == {}


@pytest.mark.parametrize("path", ["/audit?strategy=fib_rsi", "/alerts?strategy=fib_rsi", "/strategies/fib_rsi"])
def test_another_strategy_that_is_asked_for_by_name_shows_nothing(api: Api, world: World, path: str) -> None:
    response = Browser(api).log_in(token(strategies=["ppo_gold"])).get(path)

    assert response.status_code == 403
    assert world.rollout not in response.text


@pytest.mark.parametrize(
    "path", ["/reports", "/reports.atom", "/comparisons", "/audit", "/alerts", "/rollouts", "/freezes", "/starts"]
)
def test_listings_and_feeds_of_a_limited_token_name_no_other_strategy(api: Api, world: World, path: str) -> None:
    put_start(api.engine)
    whole = api.get(path)
    limited = api.get(path, held=token(strategies=["ppo_gold"]))

    assert "fib_rsi" in whole.text
    assert limited.status_code == 200
    assert "fib_rsi" not in limited.text


def crawl(browser: Browser, *more: str) -> dict[str, str]:
    """Follow all links from the first page on, and return the pages by path."""
    pages: dict[str, str] = {}
    waiting = ["/console", *more]
    while waiting:
        path = waiting.pop()
        if path not in pages and "/static/" not in path and path.count("month=") == more.count(path):
            response = browser.client.get(path, follow_redirects=True)
            pages[path] = response.text
            waiting += [unescape(link) for link in LINK.findall(response.text)]
    return pages
