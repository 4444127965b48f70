"""Servers on their bad days: what passes is asked again, what does not is blindness, and nothing is asked in vain."""

import time
from datetime import UTC, datetime, timedelta

import pandas as pd
import pytest
from structlog.testing import capture_logs

from strategy_core.domain.errors import EvidenceUnavailable, FeedUnavailable, InvalidCandles
from strategy_core.market.calendars import CALENDARS
from strategy_core.market.live import TRIES
from tests.market.contract.conftest import Told
from tests.market.vendor import HTML, BadDay

HOUR = timedelta(hours=1)
START = datetime(2022, 1, 3, tzinfo=UTC)


def hours(count: int) -> pd.DatetimeIndex:
    return pd.date_range(START, periods=count, freq="h").as_unit("ns")


def asked_for(served: Told) -> list[int]:
    return [int(asked.get("count") or asked["limit"]) for _, asked, _ in served.market.asked]


@pytest.mark.parametrize("edge_twice", [False, pytest.param(True, marks=pytest.mark.full)])
def test_a_long_span_is_paged_without_a_seam(served: Told, edge_twice: bool) -> None:
    grid = hours(12_345)
    now = START + 12_345 * HOUR
    served.fill(grid).market.edge_twice = edge_twice

    with capture_logs() as entries:
        candles = served.open(now).candles("GOLD", closed_by=now, since=START)

    assert candles.index.equals(grid)
    assert candles["open"].tolist() == [1000.0 + i for i in range(12_345)]
    assert max(asked_for(served)) <= (5_000 if served.kind == "oanda" else 1_000)
    assert not [entry for entry in entries if entry["event"] == "candles.repaired"], (
        "a candle told twice at an edge is no fault to be repaired"
    )


def test_a_server_that_gives_less_than_asked_for_is_asked_again(served: Told) -> None:
    grid = hours(100)
    served.fill(grid).market.gives = 7

    source = served.open(START + 100 * HOUR)

    assert source.candles("GOLD", closed_by=START + 100 * HOUR, bars=50).index.equals(grid[-50:])


def test_no_more_is_asked_for_than_is_needed_and_nothing_twice(served: Told) -> None:
    """A shadow run asks every minute: for the newest candles, then for these and a warm-up before them."""
    now = START + 1000 * HOUR
    source = served.fill(hours(1000)).open(now)

    recent = source.candles("GOLD", closed_by=now, since=now - 24 * HOUR)
    window = source.candles("GOLD", closed_by=now, bars=24 + 120)
    again = source.candles("GOLD", closed_by=now - 5 * HOUR, bars=100)

    assert (len(recent), len(window), len(again)) == (24, 144, 100)
    in_the_making = 1 if served.kind == "oanda" else 0  # a candle that the exchange need not be asked for
    assert asked_for(served) == [24 + in_the_making, 120]


def test_a_snapshot_that_is_opened_and_asked_what_is_expected_asks_nobody(served: Told) -> None:
    """A tick must not wait for a vendor's server: it may have users to take off a canary."""
    served.market.for_good = HTML
    now = START + 10 * HOUR

    assert served.open(now).expected_at("GOLD", now) == now - HOUR
    assert served.market.asked == []


def test_candles_before_an_outage_are_found(served: Told) -> None:
    grid = hours(600)
    served.fill(grid.delete(range(100, 580)))
    now = START + 600 * HOUR

    found = served.open(now).candles("GOLD", closed_by=now, bars=60)

    assert found.index.equals(grid.delete(range(100, 580))[60:])


def test_a_closed_market_is_silent_without_fault(served: Told) -> None:
    served.calendar = CALENDARS["metals"]
    saturday = datetime(2022, 1, 8, tzinfo=UTC)
    served.fill(hours(118))  # to Friday's end

    assert served.open(saturday + 9 * HOUR).candles("GOLD", closed_by=saturday + 9 * HOUR, since=saturday).empty


@pytest.mark.parametrize(
    "bad",
    [
        HTML,
        BadDay(500),
        BadDay(503, b"", {"Retry-After": "0"}),
        BadDay(429, b"{}", {"Retry-After": "0.01"}),
    ],
    ids=["502 in HTML", "500", "503 without a word", "429"],
)
def test_what_passes_is_asked_again(served: Told, bad: BadDay) -> None:
    now = START + 48 * HOUR
    source = served.fill(hours(48)).open(now)
    served.market.bad_days.extend([bad] * (TRIES - 1))

    assert len(source.candles("GOLD", closed_by=now, bars=20)) == 20
    assert len(served.market.asked) == TRIES


def test_a_slow_answer_is_not_waited_for_but_asked_for_again(served: Told) -> None:
    served.timeout = 1.5
    now = START + 48 * HOUR
    source = served.fill(hours(48)).open(now)
    served.market.bad_days.append(BadDay(delay_s=4.0))

    assert len(source.candles("GOLD", closed_by=now, bars=20)) == 20


def test_a_server_that_stays_silent_is_given_up_and_not_asked_again_by_the_same_snapshot(served: Told) -> None:
    """A run over thirty symbols must not wait for each of them."""
    served.timeout = 0.1
    now = START + 48 * HOUR
    source = served.fill(hours(48)).open(now)
    served.market.for_good = BadDay(delay_s=0.5)

    for _ in range(3):
        with pytest.raises(FeedUnavailable, match=r"no answer.*\(asked 3 times\)"):
            source.candles("GOLD", closed_by=now, bars=20)
    assert source.expected_at("GOLD", now) == now - HOUR

    time.sleep(0.6)
    served.market.for_good = None
    served.timeout = 5.0
    assert len(served.market.asked) == TRIES
    assert len(served.open(now).candles("GOLD", closed_by=now, bars=20)) == 20, "the next snapshot asks anew"


@pytest.mark.parametrize(
    "bad",
    [
        HTML,
        BadDay(200, b"<html>sign in to this network</html>"),
        BadDay(cut=300),
        BadDay(200, b'{"candles": [{"complete": true, "time": "2022-01-0'),
        BadDay(200, b""),
        BadDay(200, b"null"),
        BadDay(200, b"{}"),
        BadDay(200, b"[]"),
        BadDay(200, b'"candles"'),
        BadDay(200, b"[" * 20_000),
        BadDay(200, b'{"instrument": "XAU_USD", "granularity": "H1", "candles": null}'),
        BadDay(200, b'{"instrument": "XAG_USD", "granularity": "H1", "candles": []}'),
        BadDay(200, b'[[1641168000000, "1", "1", "1"]]'),
        BadDay(200, b'[["today", 1, 1, 1, 1, 1]]'),
        BadDay(200, b'[{"open": 1}]'),
        BadDay(200, b"[1, 2, 3]"),
        BadDay(302, b"", {"Location": "https://elsewhere.example/"}),
        BadDay(404, b"{}"),
        BadDay(418, b"\xff\xfe"),
    ],
)
def test_a_broken_answer_is_blindness_never_an_empty_market(served: Told, bad: BadDay) -> None:
    now = START + 48 * HOUR
    source = served.fill(hours(48)).open(now)
    served.market.for_good = bad
    served.timeout = 1.0

    with pytest.raises((EvidenceUnavailable, InvalidCandles)) as caught:
        source.candles("GOLD", closed_by=now, bars=20)

    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_what_was_told_before_the_server_failed_stays_told(served: Told) -> None:
    now = START + 48 * HOUR
    source = served.fill(hours(48)).open(now)
    before = source.candles("GOLD", closed_by=now, bars=10)
    served.market.for_good = HTML

    with pytest.raises(EvidenceUnavailable):
        source.candles("GOLD", closed_by=now, bars=20)

    assert source.candles("GOLD", closed_by=now, bars=10).equals(before)
