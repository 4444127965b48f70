"""The console's login, its cookie, its headers, and what forged or wrong requests get."""

from typing import Any

import pytest
from sqlalchemy import Engine

from tests.api.asking import HELD, Api, World
from tests.api.browsing import SAME_ORIGIN, Browser, hidden_fields
from tests.api.signing import NOW, token
from tests.api.test_service_tokens import SERVICE, api_that_asks

FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@pytest.fixture
def browser(shared: tuple[Api, World]) -> Browser:
    return Browser(shared[0])


def test_a_login_sets_a_cookie_that_scripts_and_other_sites_do_not_get(browser: Browser) -> None:
    response = browser.send("/login", {"token": HELD["owner"], "next": "/console/alerts"})

    assert (response.status_code, response.headers["location"]) == (303, "/console/alerts")
    cookie = response.headers["set-cookie"]
    assert "Path=/console; SameSite=strict" in cookie
    assert "HttpOnly; Max-Age=3600;" in cookie  # of a token that is valid for an hour
    assert "Secure" not in cookie


def test_the_cookie_is_sent_over_https_only_if_the_console_is(browser: Browser) -> None:
    sent = {"Origin": "https://testserver"}

    response = browser.send("/login", {"token": HELD["owner"]}, headers=sent)

    assert "Secure" in response.headers["set-cookie"]


@pytest.mark.parametrize(
    ("sent", "status", "line"),
    [
        pytest.param("", 401, "it is empty", id="nothing"),
        pytest.param("a.b.c", 401, "it is not a JWT", id="no token"),
        pytest.param(token(exp=1), 401, "expired", id="expired"),
        pytest.param(token(role="user"), 403, "owner or admin", id="another role"),
        pytest.param("a" * 4_000, 422, "longer than 3,900 characters", id="too long"),
    ],
)
def test_a_wrong_token_gets_the_login_page_with_the_reason(browser: Browser, sent: str, status: int, line: str) -> None:
    response = browser.send("/login", {"token": sent})

    assert response.status_code == status
    assert line in response.text
    assert "set-cookie" not in response.headers


def test_a_stranger_gets_the_login_page_and_then_the_page_that_was_asked_for(browser: Browser) -> None:
    response = browser.get("/audit?actor=ana")

    assert response.headers["location"] == "/console/login?next=/console/audit%3Factor%3Dana"
    fields = hidden_fields(browser.follow(response).text)
    there = browser.send("/login", {**fields, "token": HELD["owner"]})
    assert there.headers["location"] == "/console/audit?actor=ana"


@pytest.mark.parametrize("path", ["https://evil.example/", "//evil.example", "/console\\@evil.example", "/api/v1"])
def test_a_login_leads_to_no_other_site(browser: Browser, path: str) -> None:
    response = browser.send("/login", {"token": HELD["owner"], "next": path})

    assert response.headers["location"] == "/console"


def test_a_link_from_another_site_loads_itself_once_more_because_the_cookie_was_not_sent(browser: Browser) -> None:
    response = browser.get("/alerts", headers={"Sec-Fetch-Site": "cross-site"})

    assert '<meta http-equiv="refresh" content="0;url=/console/alerts">' in response.text


def test_the_address_with_a_slash_at_its_end_leads_to_the_first_page(browser: Browser) -> None:
    assert browser.log_in().get("/").headers["location"] == "/console"


def test_a_logout_ends_the_session(browser: Browser) -> None:
    browser.log_in()

    browser.send("/logout", hidden_fields(browser.get().text))

    assert browser.get().status_code == 303


def test_every_page_forbids_what_a_page_of_the_console_does_not_need(browser: Browser) -> None:
    pages = [browser.get("/login"), browser.log_in().get(), browser.get("/nowhere")]

    assert [page.status_code for page in pages] == [200, 200, 404]
    for page in pages:
        assert page.headers["content-security-policy"] == (
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
            "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
        )
        assert page.headers["x-frame-options"] == "DENY"
        assert page.headers["x-content-type-options"] == "nosniff"
        assert page.headers["cache-control"] == "no-store"
        assert page.headers["referrer-policy"] == "same-origin"
        assert page.headers["x-request-id"]


def test_static_files_are_kept_by_browsers_and_change_their_address(browser: Browser) -> None:
    page = browser.get("/login").text
    path = page.split('<script src="/console')[1].split('"')[0]

    response = browser.get(path)

    assert response.headers["content-type"].startswith("text/javascript")
    assert "immutable" in response.headers["cache-control"]
    assert browser.get("/static/0/secrets.txt").status_code == 404


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({"Sec-Fetch-Site": "cross-site"}, id="another site"),
        pytest.param({"Sec-Fetch-Site": "same-site"}, id="a sister of this host"),
        pytest.param({"Origin": "https://evil.example"}, id="an old browser, another site"),
        pytest.param({"Origin": "null"}, id="a hidden origin"),
        pytest.param({}, id="no word of it"),
    ],
)
def test_a_form_from_elsewhere_is_refused(browser: Browser, headers: dict[str, str]) -> None:
    fields = hidden_fields(browser.log_in().get().text)

    response = browser.client.post("/console/logout", data=fields, headers=headers)

    assert response.status_code == 403
    assert "not sent from a page of this console" in response.text
    assert browser.get().status_code == 200


@pytest.mark.parametrize(
    "fields", [{}, {"form_secret": "0" * 64}, {"form_secret": "ä"}], ids=["none", "a guess", "odd"]
)
def test_a_form_without_the_secret_of_the_session_is_refused(browser: Browser, fields: dict[str, str]) -> None:
    response = browser.log_in().send("/logout", fields)

    assert response.status_code == 403
    assert "belongs to another login" in response.text


def test_a_form_of_another_session_is_refused(browser: Browser, shared: tuple[Api, World]) -> None:
    other = Browser(shared[0]).log_in("reader")

    response = browser.log_in().send("/logout", hidden_fields(other.get().text))

    assert response.status_code == 403


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        pytest.param("application/json", b"{}", 415, id="JSON"),
        pytest.param("text/plain", b"a=b", 415, id="plain text"),
        pytest.param("application/x-www-form-urlencoded; charset=utf-7", b"a=b", 415, id="another charset"),
        pytest.param("application/x-www-form-urlencoded", b"token=%ff", 422, id="no UTF-8"),
        pytest.param("application/x-www-form-urlencoded", b"token=\xff", 422, id="raw bytes"),
        pytest.param("application/x-www-form-urlencoded", b"token=%00", 422, id="NUL"),
        pytest.param("application/x-www-form-urlencoded", b"&".join([b"a=b"] * 1_001), 422, id="too many fields"),
        pytest.param("application/x-www-form-urlencoded", b"a=" + b"b" * 5_000_000, 413, id="huge"),
    ],
)
def test_a_strange_body_is_refused(browser: Browser, kind: str, body: bytes, status: int) -> None:
    headers: dict[str, Any] = {**SAME_ORIGIN, "Content-Type": kind}

    response = browser.client.post("/console/login", content=body, headers=headers)

    assert response.status_code == status
    assert 'role="alert"' in response.text


def test_a_token_that_ended_shows_the_login_with_the_reason(browser: Browser) -> None:
    browser.client.cookies.set("rollout_console", token(exp=1), path="/console")

    response = browser.get("/alerts")

    assert response.status_code == 401
    assert "expired" in response.text
    assert 'rollout_console=""; HttpOnly; Max-Age=0' in response.headers["set-cookie"]


def test_a_revoked_service_token_is_logged_out_at_the_next_page(engine: Engine, world: World) -> None:
    revoked: set[str] = set()
    browser = Browser(api_that_asks(engine, revoked.__contains__, now=NOW)).log_in(SERVICE)

    before = browser.get()
    revoked.add("t-1")
    after = browser.get()

    assert (before.status_code, after.status_code) == (200, 401)
    assert "it was revoked" in after.text


def test_while_revocations_cannot_be_looked_up_a_service_token_reads_nothing(engine: Engine, world: World) -> None:
    def lookup(token_id: str) -> bool:
        raise TimeoutError(token_id)

    response = Browser(api_that_asks(engine, lookup, now=NOW)).log_in(SERVICE).get()

    assert response.status_code == 503
    assert "fib_rsi" not in response.text
