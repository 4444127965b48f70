"""The page on a strategy's toggles: rules, what a user gets, and rules that are previewed, set and removed."""

import re
from typing import Any

import pytest

from strategy_core.domain.audit import Command
from strategy_core.domain.lifecycle import Status
from strategy_core.services.audit import read_audit
from strategy_core.services.canary import activate_canary
from strategy_core.services.toggles import list_toggles, load_segments
from strategy_core.services.users import load_users
from tests.api.asking import Api
from tests.api.browsing import Browser, hidden_fields
from tests.api.signing import NOW
from tests.builders import OWNER, put_version

TOGGLES = "/strategies/fib_rsi/toggles"
SET = f"{TOGGLES}/risk_scale/set"
RISK = '{"risk_scale":{"default":1.0,"maximum":1.0,"minimum":0.25,"type":"number"}}'
BOTH = RISK[:-1] + ',"notify_only":{"default":false,"type":"boolean"}}'
MARKUP = "<script>alert(1)</script>"


@pytest.fixture
def owner(api: Api) -> Browser:
    """Version 1 serves, and its canary 2 declares a second toggle."""
    put_version(api.engine, "1", Status.ACTIVE, toggles=RISK)
    put_version(api.engine, "2", toggles=BOTH)
    put_version(api.engine, "1", Status.ACTIVE, strategy_name="plain")
    command = Command(OWNER, NOW)
    activate_canary(api.engine, command, strategy_name="fib_rsi", version="2", rollout_percent=25)
    load_segments(api.engine, command, [("u1", "new"), ("u2", "new")])
    load_users(api.engine, [("u1", 100.0), ("u2", 900.0)], now=NOW)
    return Browser(api).log_in()


def text_of(page: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", page.partition("<main")[2]).split())


def rules(owner: Browser, name: str = "risk_scale") -> list[tuple[Any, str]]:
    found = list_toggles(owner.api.engine, "fib_rsi").toggles
    return [(rule.value, rule.when.shown) for each in found if each.name == name for rule in each.rules]


def put(owner: Browser, **fields: Any) -> Any:
    """Fill the form, and confirm the page that follows."""
    address = f"{SET}?{'&'.join(f'{name}={value}' for name, value in fields.items())}"
    return owner.send(address, hidden_fields(owner.get(address).text) | {"reason": "a trial"})


def test_toggles_are_shown_with_the_versions_that_serve_first(owner: Browser) -> None:
    page = text_of(owner.get(TOGGLES).text)

    assert "notify_only 2 canary true, false; default false No rule: all users have the default." in page
    assert "risk_scale 1 active a number from 0.25 to 1; default 1.0 2 canary a number" in page
    assert "No version of plain declares toggles." in text_of(owner.get("/strategies/plain/toggles").text)


def test_the_page_on_the_strategy_leads_to_its_toggles(owner: Browser) -> None:
    put(owner, value="0.5")

    assert "risk_scale 1 rule" in text_of(owner.get("/strategies/fib_rsi").text)
    assert f'href="/console{TOGGLES}"' in owner.get("/strategies/fib_rsi").text
    assert "/toggles" not in owner.get("/strategies/plain").text


def test_a_rule_is_previewed_for_a_user_and_then_set(owner: Browser) -> None:
    before = len(read_audit(owner.api.engine))
    address = f"{SET}?value=0.5&segment=new&capital_at_least=500&user=u2&users=&percent=&place="

    shown = text_of(owner.get(address).text)
    assert "It becomes rule 1 of 1: segment new, capital &gt;= 500: 0.5." in shown
    assert "u2 has 1.0 now and gets 0.5 (rule 1: segment new, capital &gt;= 500)." in shown
    assert len(read_audit(owner.api.engine)) == before

    done = owner.send(address, hidden_fields(owner.get(address).text) | {"reason": "a trial"})
    assert "u2 gets version" in text_of(owner.follow(done).text)
    assert rules(owner) == [(0.5, "segment new, capital >= 500")]
    event = read_audit(owner.api.engine)[-1]
    assert (event.action, event.reason, event.source) == ("set_toggle", "a trial", "console")


def test_a_preview_says_when_the_user_keeps_the_value_or_has_no_such_toggle(owner: Browser) -> None:
    put(owner, value="0.5", users="u2")
    of_active = next(
        f"user_{i}" for i in range(99) if "gets version 1" in text_of(owner.get(f"{TOGGLES}?user=user_{i}").text)
    )

    keeps = text_of(owner.get(f"{SET}?value=0.25&segment=new&user=u2").text)
    without = text_of(owner.get(f"{TOGGLES}/notify_only/set?value=true&user={of_active}").text)

    assert "Earlier rules come first" in keeps
    assert "u2 keeps 0.5 (rule 1: one user)." in keeps
    assert f"{of_active} has no notify_only: version 1, which they get, does not declare it." in without


def test_rules_have_a_place_and_replace_the_rule_of_the_same_users(owner: Browser) -> None:
    put(owner, value="0.5", segment="new")
    put(owner, value="0.75")
    put(owner, value="0.25", users="u7, u8", place="1")

    address = f"{SET}?value=1&segment=new"
    assert "It replaces the rule of the same users: segment new: 0.5." in text_of(owner.get(address).text)
    put(owner, value="1", segment="new")

    assert rules(owner) == [(0.25, "one of 2 users"), (1, "segment new"), (0.75, "all users")]


def test_a_rule_is_removed_by_its_number(owner: Browser) -> None:
    put(owner, value="0.5", segment="new")
    put(owner, value="0.75")
    address = f"{TOGGLES}/risk_scale/remove?rule=1"

    shown = owner.get(address).text
    done = owner.send(address, hidden_fields(shown) | {"reason": "it ends"})

    assert "Rule 1 of 2 ends: segment new: 0.5." in text_of(shown)
    assert done.status_code == 303
    assert rules(owner) == [(0.75, "all users")]


def test_a_rule_whose_number_has_changed_since_is_not_removed(owner: Browser) -> None:
    put(owner, value="0.5", segment="new")
    put(owner, value="0.75")
    address = f"{TOGGLES}/risk_scale/remove?rule=1"
    fields = hidden_fields(owner.get(address).text)
    put(owner, value="0.25", users="u7", place="1")

    refused = owner.send(address, fields | {"reason": "it ends"})

    assert refused.status_code == 409
    assert "Rule 1 of 3 ends: one user: 0.25." in text_of(refused.text)
    assert len(rules(owner)) == 3


def test_the_same_form_sent_twice_sets_a_rule_once(owner: Browser) -> None:
    address = f"{SET}?value=0.5"
    fields = hidden_fields(owner.get(address).text)

    first, second = (owner.send(address, fields) for _ in range(2))

    assert (first.status_code, second.status_code) == (303, 303)
    assert [event.action for event in read_audit(owner.api.engine)].count("set_toggle") == 1


@pytest.mark.parametrize(
    ("path", "status", "problem"),
    [
        (f"{SET}?value=2", 422, "2 is not allowed; allowed: a number from 0.25 to 1"),
        (f"{SET}?value=", 422, "is not allowed"),
        (f"{SET}?value=0.5&percent=101", 422, "percent"),
        (f"{SET}?value=0.5&capital_at_least=many", 422, "capital_at_least"),
        (f"{SET}?value=0.5&segment=vip", 404, "no segment"),
        (f"{SET}?value=0.5&place=3", 404, "Rules: 1 to 1"),
        (f"{SET}?value=0.5&place=0", 422, "place"),
        (f"{TOGGLES}/leverage/set?value=1", 404, "leverage"),
        (f"{TOGGLES}/leverage/remove", 404, "leverage"),
        (f"{TOGGLES}/risk_scale/remove?rule=1", 404, "no rule 1"),
        (f"{TOGGLES}/risk_scale/remove?rule=0", 422, "rule"),
        (f"{TOGGLES}/1bad/set?value=1", 422, "name"),
        ("/strategies/nope/toggles", 404, "nope"),
    ],
)
def test_a_wrong_rule_is_refused_with_its_reason(owner: Browser, path: str, status: int, problem: str) -> None:
    response = owner.get(path)

    assert response.status_code == status
    assert problem.lower() in response.text.lower()


def test_a_strategy_that_serves_nobody_says_so_for_a_user(owner: Browser) -> None:
    put_version(owner.api.engine, "1", strategy_name="closed", toggles=RISK)

    response = owner.get("/strategies/closed/toggles?user=u1")

    assert response.status_code == 200
    assert "'closed' is closed" in response.text.replace("&#39;", "'")


def test_a_reader_sees_rules_and_no_form(owner: Browser) -> None:
    put(owner, value="0.5", segment="new")
    reader = Browser(owner.api).log_in("reader")

    page = reader.get(f"{TOGGLES}?user=u1").text

    assert "rule 1: segment new" in page
    assert "/set" not in page
    assert "/remove" not in page
    assert [reader.get(path).status_code for path in (f"{SET}?value=1", f"{TOGGLES}/risk_scale/remove")] == [403, 403]
    assert Browser(owner.api).log_in("other").get(TOGGLES).status_code == 403


def test_markup_in_a_user_and_a_value_stays_text(owner: Browser) -> None:
    pages = [owner.get(TOGGLES, params={"user": MARKUP}).text, owner.get(SET, params={"value": MARKUP}).text]

    assert MARKUP not in "".join(pages)
    assert all("&lt;script&gt;" in page for page in pages)
