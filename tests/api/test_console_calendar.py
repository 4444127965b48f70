"""The console's calendar: what holds releases in a month, and the forms that freeze, lift and cancel."""

from datetime import timedelta

import pytest

from strategy_core.services.release_times import list_freezes
from strategy_core.services.scheduled_starts import list_starts
from tests.api.asking import START_ID, Api, World, put_start
from tests.api.browsing import Browser
from tests.api.signing import NOW


@pytest.fixture
def browser(api: Api, world: World) -> Browser:
    put_start(api.engine)
    return Browser(api).log_in()


def test_the_month_shows_freezes_and_scheduled_starts_on_their_days(browser: Browser) -> None:
    later = browser.get("/calendar?month=2026-04").text

    assert "April 2026, days in UTC" in later
    assert '<td class="day frozen">' in later
    assert "fib_rsi 3, " in later
    assert "Holidays." in later


def test_an_owner_freezes_all_strategies_and_lifts_that(browser: Browser) -> None:
    frozen = browser.post("/calendar/freeze", strategy="*", to="2026-03-20", reason="earnings")
    shown = browser.follow(frozen).text
    (number,) = [each.id for each in list_freezes(browser.api.engine) if each.covers_all]
    lifted = browser.follow(browser.post(f"/calendar/freezes/{number}/lift", reason="they are over")).text

    assert "Releases of all strategies are frozen" in shown
    assert f"Freeze {number} of all strategies is lifted." in lifted
    assert "lifted by ana" in lifted


def test_a_freeze_that_cannot_be_is_refused_with_what_was_typed(browser: Browser) -> None:
    refused = browser.post("/calendar/freeze", strategy="fib_rsi", to="2020-01-01", reason="earnings")

    assert refused.status_code == 422
    assert "it must end after it starts" in refused.text
    assert 'value="2020-01-01"' in refused.text


def test_an_owner_cancels_a_scheduled_start(browser: Browser) -> None:
    done = browser.post(f"/calendar/starts/{START_ID}/cancel", reason="not yet")

    assert "The start of fib_rsi 3 is cancelled." in browser.follow(done).text
    assert list_starts(browser.api.engine) == []


def test_a_reader_sees_the_calendar_without_buttons(api: Api, world: World) -> None:
    page = Browser(api).log_in("reader").get(f"/calendar?month={NOW:%Y-%m}").text

    assert "Freeze releases" not in page
    assert "Lift" not in page


def test_an_owner_of_one_strategy_does_not_freeze_all(api: Api, world: World) -> None:
    limited = Browser(api).log_in("other")

    refused = limited.post("/calendar/freeze", strategy="*", to="2026-03-20", reason="earnings")

    assert refused.status_code == 403
    assert list_freezes(api.engine, since=NOW, until=NOW + timedelta(days=1)) == []
    assert "all strategies</option>" not in limited.get("/calendar/freeze").text
