"""Attacks on the console in a real browser: markup in stored texts, frames and forms of other sites, old tokens."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import jwt
import pytest

from strategy_core.domain.audit import Actor, Command
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan
from strategy_core.services.queries import find_rollout
from strategy_core.services.release_times import set_freeze
from strategy_core.services.rollback import roll_back
from strategy_core.services.rollouts import start_rollout
from strategy_core.services.scheduled_starts import schedule_start
from tests.api.processes import SECRET
from tests.builders import DAY, decision_row, put_decisions, put_version
from tests.console.conftest import Site
from tests.fleets import raise_alert

pytestmark = [pytest.mark.full, pytest.mark.xdist_group("web console")]
OpenTab = Callable[..., Any]
MARKUP = "<script>ran()</script><img src=x onerror=ran()>'\"><svg onload=ran()>"
COUNT = "window.times = 0; window.ran = () => { window.times += 1; }"
VICTIM = "markup"


@pytest.fixture(scope="module")
def poisoned(site: Site) -> Site:
    """Add a strategy whose texts are all markup, and another one whose name is markup too."""
    engine, now = site.engine, datetime.now(UTC) - timedelta(minutes=5)
    odd = Command(Actor(MARKUP, role=MARKUP, source="console"), now, MARKUP)
    report = {"checks": [{"name": MARKUP, "passed": True, "detail": MARKUP}], "warnings": [MARKUP], "signals": MARKUP}
    texts: dict[str, Any] = {"config": {MARKUP: MARKUP}, "registration_report": report, "entry_point": MARKUP}
    for version, status in (("1", Status.ACTIVE), ("2", Status.SHADOW), (MARKUP, Status.SHADOW), ("3", Status.SHADOW)):
        put_version(engine, version, status, strategy_name=VICTIM, **texts, at=now - 3 * DAY)
    put_version(engine, MARKUP, Status.ACTIVE, strategy_name=MARKUP, **texts, at=now - 3 * DAY)
    decision = decision_row("1", now, "buy", strategy_name=VICTIM, reason=MARKUP)
    put_decisions(engine, {**decision, "features": {MARKUP: MARKUP}})
    rollout = start_rollout(engine, odd, strategy_name=VICTIM, version="2", plan=Plan())
    roll_back(engine, odd, strategy_name=VICTIM)
    schedule_start(engine, odd, strategy_name=VICTIM, version="3", plan=Plan(), start_at=now + DAY)
    set_freeze(engine, odd, strategy_name=VICTIM, ends_at=now + 2 * DAY)
    raise_alert(engine, VICTIM, MARKUP, "critical", MARKUP, now)
    raise_alert(engine, MARKUP, "version.refused", "critical", MARKUP, now)
    return Site(site.address, engine, {**site.rollouts, VICTIM: rollout.id})


@contextmanager
def other_site(page: str) -> Iterator[str]:
    """Serve *page* from another port: another origin, to which browsers still send cookies of this host."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(page.encode())

        def log_message(self, *_: Any) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


def log_in(site: Site, open_tab: OpenTab, name: str = "ana", **claims: Any) -> Any:
    page = open_tab(site.link(name, **claims))
    page.wait_for_url(site.console)
    return page


def test_markup_in_stored_texts_is_shown_and_not_run(poisoned: Site, open_tab: OpenTab) -> None:
    """The fixture `open_tab` also fails for a script that the Content-Security-Policy had to block."""
    page = log_in(poisoned, open_tab, MARKUP)
    page.add_init_script(COUNT)
    rollout = f"/strategies/{VICTIM}/rollouts/{poisoned.rollouts[VICTIM]}"
    paths = [
        "",
        "/alerts?shown=all",
        "/audit",
        "/calendar",
        f"/strategies/{VICTIM}",
        f"/strategies/{VICTIM}?one=1&other=2",
        f"/strategies/{VICTIM}/start",
        f"/strategies/{VICTIM}/register?like=1",
        f"/strategies/{VICTIM}/compare?one=1&other=2",
        f"/strategies/{VICTIM}/versions/2/activate",
        rollout,
        f"{rollout}/results",
        f"{rollout}/report",
    ]

    literal, ran, elements = [], {}, {}
    for path in paths:
        page.goto(poisoned.console + path)
        page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        page.evaluate(
            "document.querySelectorAll('[title]').forEach((one) => one.dispatchEvent(new Event('mouseover')))"
        )
        if "<script>ran()</script>" in page.locator("body").inner_text():
            literal.append(path)
        ran[path] = page.evaluate("window.times")
        elements[path] = page.locator("img[src='x'], svg[onload], script:not([src])").count()

    assert {path: times for path, times in ran.items() if times} == {}
    assert {path: number for path, number in elements.items() if number} == {}
    assert set(paths) - set(literal) <= {f"/strategies/{VICTIM}/versions/2/activate"}


def test_a_page_in_a_frame_of_another_site_stays_empty(site: Site, chromium: Any) -> None:
    context, refusals = chromium.new_context(), []
    page = context.new_page()
    page.on("console", lambda message: refusals.append(message.text))
    page.goto(site.link())
    page.wait_for_url(site.console)
    framed = f'<iframe src="{site.console}"></iframe><iframe src="{site.console}/login"></iframe>'

    with other_site(framed) as address:
        page.goto(address)
        page.wait_for_function("document.querySelectorAll('iframe').length === 2")
        page.wait_for_load_state("networkidle")
        frames = [frame for frame in page.frames if frame is not page.main_frame]
        shown = [frame.url for frame in frames]
        texts = [frame.locator("body").inner_text() for frame in frames]

    context.close()
    assert sum("frame-ancestors" in each for each in refusals) == 2
    assert shown == ["chrome-error://chromewebdata/"] * 2
    assert not any("Fleet" in text or "Token" in text for text in texts)


def test_a_form_on_another_site_rolls_nothing_back(site: Site, open_tab: OpenTab) -> None:
    rollout = site.rollouts["oil_breakout"]
    path = f"{site.console}/strategies/oil_breakout/rollouts/{rollout}/rollback"
    page = log_in(site, open_tab)
    form = f'<form method="post" action="{path}"><input name="reason" value="x"><button>Win</button></form>'

    with other_site(form) as address:
        page.goto(address)
        with page.expect_navigation() as answer:
            page.get_by_role("button", name="Win").click()

    assert answer.value.status == 403
    assert "not sent from a page of this console" in page.inner_text("main")
    assert find_rollout(site.engine, rollout).state == "running"


@pytest.mark.parametrize("whose", ["missing", "wrong", "of another session"])
def test_a_form_whose_secret_is_not_of_this_session_does_nothing(site: Site, open_tab: OpenTab, whose: str) -> None:
    rollout = site.rollouts["oil_breakout"]
    path = f"{site.console}/strategies/oil_breakout/rollouts/{rollout}/rollback"
    other = log_in(site, open_tab, "ben")
    other.goto(path)
    secrets = {"missing": None, "wrong": "0" * 64}
    secret = secrets.get(whose, other.locator("form.act [name=form_secret]").input_value())
    page = log_in(site, open_tab)
    page.goto(path)

    replaced = "([secret]) => { const field = document.querySelector('form.act [name=form_secret]'); "
    page.evaluate(replaced + "if (secret === null) field.remove(); else field.value = secret; }", [secret])
    page.get_by_label("Reason").fill("late entries")
    with page.expect_navigation() as answer:
        page.get_by_role("button", name="Roll back now").click()

    assert answer.value.status == 403
    assert "belongs to another login" in page.inner_text("main")
    assert find_rollout(site.engine, rollout).state == "running"


def test_an_expired_token_shows_the_login_and_no_page(site: Site, open_tab: OpenTab) -> None:
    claims = {"sub": "ana", "role": "owner", "aud": "strategy-rollout", "exp": datetime.now(UTC) - timedelta(hours=1)}
    expired = jwt.encode(claims, SECRET, algorithm="HS256")
    page = open_tab(f"{site.console}/login")
    page.context.add_cookies([{"name": "rollout_console", "value": expired, "domain": "127.0.0.1", "path": "/console"}])

    answer = page.goto(f"{site.console}/audit")

    assert answer.status == 401
    assert "expired" in page.inner_text("main")
    assert page.get_by_label("Token").is_visible()
    assert page.locator("nav").count() == 0
    assert [each for each in page.context.cookies() if each["name"] == "rollout_console"] == []


def test_an_owner_of_one_strategy_reaches_no_page_with_another_one(poisoned: Site, open_tab: OpenTab) -> None:
    """Follow all links from the first page on, as a crawler does."""
    others = set(poisoned.rollouts) - {"oil_breakout"} | {"copper_scalp", "platinum_slow"}
    page = log_in(poisoned, open_tab, "olga", strategies=["oil_breakout"])
    waiting, seen, found = ["", "/alerts?shown=all", "/audit", "/calendar", "?q=gold", "/reports"], set(), []

    while waiting:
        path = waiting.pop(0)
        if path in seen or "/report.json" in path:
            continue
        seen.add(path)
        page.goto(poisoned.console + path)
        text = page.content()
        found += [(path, name) for name in others if name in text]
        links = page.evaluate("[...document.querySelectorAll('a[href]')].map((one) => one.href.split('#')[0])")
        own = [link.removeprefix(poisoned.console) for link in links if link.startswith(poisoned.console)]
        waiting += [link for link in own if "?month=" not in link and link not in seen]

    assert found == []
    assert f"/strategies/oil_breakout/rollouts/{poisoned.rollouts['oil_breakout']}" in seen
    assert len(seen) > 15
