"""Links to the console and to Prefect's forms: encoded in every part, and none without an address."""

import json
import re
from urllib.parse import unquote, urlsplit
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from strategy_core.domain.links import Links

ROLLOUT = UUID("0a1b2c3d-0000-4000-8000-000000000001")
LINKS = Links("https://rollout.example.org/console", {"rollback": "../../deployments/deployment/7/run"})
NAMES = st.text(st.characters(codec="utf-8"), min_size=1)
INERT = re.compile(r"[A-Za-z0-9\-._~%/:?=]*")  # in Markdown, HTML and a shell


@given(NAMES)
def test_a_page_is_one_segment_a_name_whatever_the_name(name: str) -> None:
    page = LINKS.page(name, ROLLOUT)

    assert INERT.fullmatch(page)
    path = urlsplit(page).path.split("/")
    assert [unquote(part) for part in path] == ["", "console", "strategies", name, "rollouts", str(ROLLOUT)]


@given(NAMES, NAMES)
def test_a_form_is_filled_in_with_what_is_given_by_both_user_interfaces(name: str, version: str) -> None:
    form = LINKS.form("rollback", strategy_name=name, version=version)

    assert INERT.fullmatch(form)
    given_once = unquote(form.partition("?parameters=")[2])
    for read in (given_once, unquote(given_once)):  # the older interface decodes it twice
        assert json.loads(read) == {"strategy_name": name, "version": version}


def test_what_has_no_page_of_its_own_is_among_the_alerts() -> None:
    assert LINKS.page() == "https://rollout.example.org/console/alerts"
    assert LINKS.page("fib_rsi") == "https://rollout.example.org/console/strategies/fib_rsi"


def test_without_an_address_there_is_no_link() -> None:
    assert Links().page("fib_rsi", ROLLOUT) == ""
    assert LINKS.form("decide", strategy_name="fib_rsi") == ""
