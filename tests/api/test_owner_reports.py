"""Reports and nightly comparisons over HTTP."""

from hashlib import sha256
from xml.etree import ElementTree as ET

import pytest
from sqlalchemy import Engine

from strategy_core.report.owner import owner_report_page
from strategy_core.services.compare import compare_all
from strategy_core.services.owner_reports import write_reports
from tests.api.asking import Api, World
from tests.api.browsing import Browser
from tests.api.every import NOBODY, refused
from tests.api.signing import token
from tests.builders import DAY, MONDAY, put_pair
from tests.services.ramping import days

ATOM = "{http://www.w3.org/2005/Atom}"
NOW = MONDAY + 8 * DAY


@pytest.fixture
def written(api: Api, engine: Engine) -> Api:
    """The API with two nightly comparisons and the reports of the second night."""
    put_pair(engine)
    days(engine, MONDAY, 8, {"1": 0.4, "2": 0.2})
    source = api.settings.open_candles(NOW)
    for night in (NOW - DAY, NOW):
        compare_all(engine, source, now=night)
    assert write_reports(engine, owner_report_page, now=NOW).problems == []
    return api


def test_a_report_is_listed_and_its_page_has_the_listed_digest(written: Api) -> None:
    (listed,) = written.get("/reports").json()["items"]

    page = written.get(f"/reports/{listed['id']}.html")

    assert (listed["kind"], listed["subject"]) == ("weekly", "2026-W10")
    assert "; next: " in listed["sentence"]
    assert sha256(page.content).hexdigest() == listed["html_sha256"]
    assert page.headers["content-security-policy"].startswith("default-src 'none'")


def test_the_feed_has_each_report_with_a_link_to_its_page(written: Api) -> None:
    (listed,) = written.get("/reports").json()["items"]

    answer = written.get("/reports.atom")

    assert answer.headers["content-type"] == "application/atom+xml"
    feed = ET.fromstring(answer.content)
    (entry,) = feed.findall(f"{ATOM}entry")
    assert entry.findtext(f"{ATOM}id") == f"urn:uuid:{listed['id']}"
    assert entry.findtext(f"{ATOM}title") == "fib_rsi: weekly report"
    assert entry.findtext(f"{ATOM}summary") == listed["sentence"]
    assert entry.find(f"{ATOM}link").attrib["href"] == f"/api/v1/strategy/reports/{listed['id']}.html"  # type: ignore[union-attr]
    assert feed.findtext(f"{ATOM}updated") == entry.findtext(f"{ATOM}updated")


def test_comparisons_are_narrowed_and_shown_in_full(written: Api) -> None:
    both = written.get("/comparisons?strategy_name=fib_rsi&limit=1").json()
    (new,) = written.get("/comparisons", params={"version": "2", "since": NOW.isoformat()}).json()["items"]
    older = written.get("/comparisons", params={"limit": 1, "cursor": both["next_cursor"]}).json()["items"]

    assert [both["items"][0]["id"], older[0]["created_at"]] == [new["id"], "2026-03-09T00:00:00Z"]
    assert written.get("/comparisons?version=9").json()["items"] == []
    full = written.get(f"/comparisons/{new['id']}").json()
    assert full["verdict"] == new["verdict"]
    assert len(full["days"]) == 8
    assert full["comparison"]["slots"] == new["slots"] == 80
    assert "2 against 1" in written.get(f"/comparisons/{new['id']}.html").text


@pytest.mark.parametrize("path", ["/comparisons/{}", "/comparisons/{}.html", "/reports/{}.html"])
def test_what_is_unknown_is_not_found(shared: tuple[Api, World], path: str) -> None:
    problem = refused(shared[0].get(path.format(NOBODY)), 404)

    assert problem["detail"].startswith(f"no report or comparison {NOBODY}")


def test_a_token_lists_its_own_strategies_alone(written: Api) -> None:
    other = token(strategies=["other"])

    assert written.get("/reports", held=other).json()["items"] == []
    assert written.get("/comparisons", held=other).json()["items"] == []
    assert "<entry" not in written.get("/reports.atom", held=other).text


def test_the_console_shows_the_page_to_which_a_message_links(api: Api, world: World) -> None:
    owner, other = Browser(api).log_in(), Browser(api).log_in("other")

    page = owner.get(f"/reports/{world.report}")

    assert page.status_code == 200
    assert "Nothing can be concluded yet: 3 of 30 slots; next: wait." in page.text
    assert "style-src 'unsafe-inline'" in page.headers["content-security-policy"]
    assert other.get(f"/reports/{world.report}").status_code == 403
    assert Browser(api).get(f"/reports/{world.report}").headers["location"].startswith("/console/login")
