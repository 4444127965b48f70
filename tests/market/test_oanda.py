"""OANDA is asked as its v20 API says, with the token for nobody else, and heard with suspicion."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from strategy_core.domain.candles import SIDES, TIMEFRAMES
from strategy_core.domain.errors import (
    EvidenceUnavailable,
    FeedUnavailable,
    InvalidCandles,
    InvalidSetting,
    InvalidTimeframe,
)
from strategy_core.market.calendars import CALENDARS, AlwaysOpen
from strategy_core.market.live import LiveSource
from strategy_core.market.oanda import Oanda
from strategy_core.market.open import FeedAccess, open_source
from tests.market.vendor import BadDay, Market, serving

TOKEN = "s3cr3t-t0ken"
START = datetime(2026, 3, 2, tzinfo=UTC)
NOW = START + timedelta(hours=48)


@pytest.fixture
def market() -> Iterator[Market]:
    with serving() as market:
        market.now = NOW
        grid = pd.date_range(START, periods=49, freq="h")
        for name in ("XAU_USD", "XAG_USD"):
            market.bars[name] = {at.to_pydatetime(): (2000.0, 2002.0, 1998.0, 2001.0, 7.0) for at in grid}
        yield market


def opened(market: Market, *, timeframe: str = "1h", timeout: float = 5.0, sides: bool = True) -> LiveSource:
    vendor = Oanda(
        market.url,
        SecretStr(TOKEN),
        timeframe=timeframe,
        price="MBA" if sides else "M",
        timeout=timeout,
        wait_s=0.001,
    )
    instruments = {"GOLD": "XAU_USD", "SILVER": "XAG_USD", "TIN": "TIN_USD"}
    return LiveSource(vendor, instruments, now=NOW, calendar=AlwaysOpen())


def test_a_question_is_as_the_v20_api_wants_it(market: Market) -> None:
    opened(market).candles("GOLD", closed_by=NOW, bars=30)

    ((path, asked, headers),) = market.asked
    assert path == "/v3/instruments/XAU_USD/candles"
    assert asked == {
        "granularity": "H1",
        "price": "MBA",
        "to": "2026-03-04T00:00:00Z",
        "count": "31",
        "smooth": "false",
        "alignmentTimezone": "UTC",
        "dailyAlignment": "0",
        "weeklyAlignment": "Monday",
    }
    assert headers["Authorization"] == f"Bearer {TOKEN}"
    assert headers["Accept-Datetime-Format"] == "RFC3339"


@pytest.mark.parametrize(
    ("timeframe", "granularity"), [("1m", "M1"), ("30m", "M30"), ("4h", "H4"), ("1d", "D"), ("1w", "W")]
)
def test_days_are_those_of_utc_whatever_the_timeframe(market: Market, timeframe: str, granularity: str) -> None:
    market.for_good = BadDay(400, b"{}")

    with pytest.raises(EvidenceUnavailable):
        opened(market, timeframe=timeframe).candles("GOLD", closed_by=NOW, bars=1)

    asked = market.asked[0][1]
    assert (asked["granularity"], asked["alignmentTimezone"], asked["dailyAlignment"]) == (granularity, "UTC", "0")


@pytest.mark.parametrize(("timeframe", "freq"), [("1d", "D"), ("4h", "4h")])
@pytest.mark.parametrize("changes", ["2025-03-09", "2025-11-02"])
def test_sessions_of_new_york_are_asked_for_and_expected_over_a_change_of_the_clock(
    market: Market, timeframe: str, freq: str, changes: str
) -> None:
    metals, delta, zone = CALENDARS["metals"], TIMEFRAMES[timeframe], "America/New_York"
    first = pd.Timestamp(changes) - pd.Timedelta(days=5, hours=7)
    walls = pd.date_range(first, periods=10 * pd.Timedelta("1D") // pd.Timedelta(delta), freq=freq)
    grid = walls.tz_localize(zone, ambiguous=np.ones(len(walls), dtype=bool), nonexistent="shift_forward").tz_convert(
        "UTC"
    )
    traded = grid[metals.open_candles(grid, delta)]
    market.timeframe = timeframe
    market.bars = {"XAU_USD": {at.to_pydatetime(): (2000.0, 2002.0, 1998.0, 2001.0, 7.0) for at in traded}}

    for at in traded[2:]:
        market.now = now = (at + delta).to_pydatetime()
        vendor = Oanda(market.url, SecretStr(TOKEN), timeframe=timeframe, day="new-york", timeout=5.0, wait_s=0.001)
        source = LiveSource(vendor, {"GOLD": "XAU_USD"}, now=now, calendar=metals, by_new_york=True)

        assert source.candles("GOLD", closed_by=now, bars=2).index[-1] == at
        assert source.expected_at("GOLD", now) == at
    asked = market.asked[0][1]
    assert asked["alignmentTimezone"] == "America/New_York"
    assert (asked["dailyAlignment"], asked["weeklyAlignment"]) == ("17", "Friday")


def test_the_days_of_a_feed_are_those_that_it_asks_for() -> None:
    access = FeedAccess(SecretStr(TOKEN), "http://127.0.0.1:9")
    now = datetime(2025, 7, 9, 21, tzinfo=UTC)

    def expected(options: str, timeframe: str) -> datetime | None:
        feed = f"oanda:GOLD=XAU_USD{options}"
        source = open_source(feed, timeframe=timeframe, now=now, calendar=CALENDARS["metals"], access=access)
        return source.expected_at("GOLD", now)

    assert expected("", "1d") == datetime(2025, 7, 8, tzinfo=UTC)
    assert expected("?day=new-york", "1d") == datetime(2025, 7, 8, 21, tzinfo=UTC)
    assert expected("?day=new-york", "1w") == datetime(2025, 6, 27, 21, tzinfo=UTC)
    assert expected("?day=new-york", "1h") == expected("", "1h") == datetime(2025, 7, 9, 20, tzinfo=UTC)
    with pytest.raises(InvalidSetting, match="feed option day = 'paris'"):
        expected("?day=paris", "1d")
    with pytest.raises(InvalidTimeframe, match="'3m' is not a timeframe; allowed: 1m, 5m"):
        expected("", "3m")


def test_sides_come_with_the_middle(market: Market) -> None:
    candles = opened(market).candles("GOLD", closed_by=NOW, bars=1)

    assert candles.iloc[0].tolist()[:5] == [2000.0, 2002.0, 1998.0, 2001.0, 7.0]
    bid, ask = [1999.75, 2001.75, 1997.75, 2000.75], [2000.25, 2002.25, 1998.25, 2001.25]
    assert candles.iloc[0][list(SIDES)].tolist() == bid + ask


def test_mid_prices_alone_are_asked_for_and_told_alone(market: Market) -> None:
    candles = opened(market, sides=False).candles("GOLD", closed_by=NOW, bars=1)

    assert list(candles.columns) == ["open", "high", "low", "close", "volume"]
    assert market.asked[0][1]["price"] == "M"


def test_a_closed_candle_that_the_server_has_not_completed_is_not_told(market: Market) -> None:
    market.lag = timedelta(seconds=1)

    assert opened(market).candles("GOLD", closed_by=NOW, bars=1).index[0] == NOW - timedelta(hours=2)


def test_nothing_is_asked_for_that_is_still_being_made(market: Market) -> None:
    """OANDA refuses a time in its future, and the two clocks are never the same."""
    token, later = SecretStr(TOKEN), NOW + timedelta(minutes=59, seconds=59)
    vendor = Oanda(market.url, token, timeframe="1h", timeout=5.0, wait_s=0.001)

    source = LiveSource(vendor, {"GOLD": "XAU_USD"}, now=later, calendar=AlwaysOpen())

    assert source.candles("GOLD", closed_by=later, bars=1).index[0] == NOW - timedelta(hours=1)
    assert market.asked[0][1]["to"] == "2026-03-04T00:00:00Z"


def test_a_server_whose_clock_is_a_moment_behind_is_given_that_moment(market: Market) -> None:
    _, future = market.oanda("XAU_USD", {"count": "1", "to": (NOW + timedelta(hours=1)).isoformat()})
    early = BadDay(400, json.dumps(future).encode())
    market.bad_days.extend([early, early])

    assert len(opened(market).candles("GOLD", closed_by=NOW, bars=3)) == 3
    market.for_good = early
    with pytest.raises(FeedUnavailable, match="this machine's clock is ahead of the server's"):
        opened(market).candles("GOLD", closed_by=NOW, bars=3)


@pytest.mark.parametrize("status", [401, 403])
def test_a_token_that_is_refused_is_not_sent_again_and_shown_nowhere(market: Market, status: int) -> None:
    market.for_good = BadDay(status, f'{{"errorMessage": "bad\\ntoken {TOKEN}"}}'.encode())
    source = opened(market)

    with capture_logs() as entries:
        for symbol in ("GOLD", "SILVER"):
            with pytest.raises(FeedUnavailable, match=rf"refuses ROLLOUT_OANDA_TOKEN: HTTP {status}: bad") as caught:
                source.candles(symbol, closed_by=NOW, bars=3)

    assert len(market.asked) == 1
    vendor = vars(source)["_vendor"]
    shown = (caught.value, vars(caught.value), entries, source, vars(source), vendor, vars(vendor))
    assert TOKEN not in str(caught.value) + "".join(map(repr, shown))


def test_an_instrument_that_oanda_does_not_know_harms_no_other(market: Market) -> None:
    source = opened(market)

    for _ in range(2):
        with pytest.raises(EvidenceUnavailable, match="TIN_USD: HTTP 404: no instrument TIN_USD"):
            source.candles("TIN", closed_by=NOW, bars=3)

    assert len(source.candles("GOLD", closed_by=NOW, bars=3)) == 3
    assert len(market.asked) == 2


@pytest.mark.parametrize(
    ("headers", "tries", "says"),
    [
        ({"Retry-After": "0"}, 3, "asked 3 times"),
        ({"Retry-After": "soon"}, 3, "asked 3 times"),
        ({"Retry-After": "-5"}, 3, "asked 3 times"),
        ({"Retry-After": "3600"}, 1, "it asks to wait 3600 s"),
        ({"Retry-After": "Wed, 04 Mar 2026 01:00:00 GMT", "Date": "Wed, 04 Mar 2026 00:00:00 GMT"}, 1, "wait 3600 s"),
        ({"Retry-After": "Wed, 04 Mar 2026 01:00:00 GMT", "Date": "Wed, 04 Mar 2026 01:00:01 GMT"}, 3, "3 times"),
    ],
)
def test_a_server_that_asks_for_patience_gets_as_much_as_a_run_has(
    market: Market, headers: dict[str, str], tries: int, says: str
) -> None:
    market.for_good = BadDay(429, b"{}", headers)

    with pytest.raises(FeedUnavailable, match=says):
        opened(market).candles("GOLD", closed_by=NOW, bars=3)

    assert len(market.asked) == tries


def test_an_answer_that_trickles_is_not_waited_for(market: Market) -> None:
    market.for_good = BadDay(trickle_s=0.01)

    with pytest.raises(FeedUnavailable, match=r"no answer within 0\.2 s"):
        opened(market, timeout=0.2).candles("GOLD", closed_by=NOW, bars=40)


def test_an_endless_answer_is_not_kept(market: Market) -> None:
    market.for_good = BadDay(200, b" " * 10_000_001)

    with pytest.raises(FeedUnavailable, match="the answer is larger than 10000000 bytes"):
        opened(market, timeout=60).candles("GOLD", closed_by=NOW, bars=3)


def test_a_server_that_is_not_there_is_blindness(market: Market) -> None:
    vendor = Oanda("http://127.0.0.1:1", SecretStr(TOKEN), timeframe="1h", timeout=1, wait_s=0.001)

    with pytest.raises(FeedUnavailable, match=r"OANDA at 127\.0\.0\.1:1: no answer: ConnectError"):
        LiveSource(vendor, {"GOLD": "XAU_USD"}, now=NOW, calendar=AlwaysOpen()).candles("GOLD", closed_by=NOW, bars=1)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"complete": true', '"complete": "yes"', "candles.0.complete: Input should be a valid boolean"),
        ('"o": "2000.00000"', '"o": 2000', "candles.0.mid.o: Input should be a valid string"),
        ('"volume": 7', '"volume": "7"', "candles.0.volume: Input should be a valid number"),
        ('"bid"', '"bud"', "no bid or ask at 2026-03-03T"),
        ('"granularity": "H1"', '"granularity": "H4"', "answered with XAU_USD H4"),
        ('"instrument": "XAU_USD"', '"instrument": "XAG_USD"', "answered with XAG_USD H1"),
    ],
)
def test_an_answer_of_another_shape_is_blindness(market: Market, old: str, new: str, says: str) -> None:
    asked = {"count": "3", "to": NOW.isoformat(), "price": "MBA", "granularity": "H1"}
    _, told = market.oanda("XAU_USD", asked)
    body = json.dumps(told).replace(old, new)
    market.for_good = BadDay(200, body.encode())

    with pytest.raises(EvidenceUnavailable) as caught:
        opened(market).candles("GOLD", closed_by=NOW, bars=3)

    assert says in str(caught.value)
    assert len(market.asked) == 1


def test_a_time_without_a_zone_is_refused(market: Market) -> None:
    prices = '{"o": "1.0", "h": "1.0", "l": "1.0", "c": "1.0"}'
    candle = f'{{"complete": true, "volume": 1, "time": "2026-03-03T10:00:00", "mid": {prices}}}'
    body = f'{{"instrument": "XAU_USD", "granularity": "H1", "candles": [{candle}]}}'
    market.for_good = BadDay(200, body.encode())

    with pytest.raises(InvalidCandles, match="has no time zone"):
        opened(market, sides=False).candles("GOLD", closed_by=NOW, bars=3)


def test_a_server_that_does_not_go_back_is_not_asked_for_ever(market: Market) -> None:
    """Else a short history were taken for all there is, and versions would say that they know too little."""
    asked = {"count": "5", "to": NOW.isoformat(), "price": "M", "granularity": "H1"}
    market.for_good = BadDay(200, json.dumps(market.oanda("XAU_USD", asked)[1]).encode())

    with pytest.raises(EvidenceUnavailable, match=r"asked for candles before .* but got only later ones"):
        opened(market, sides=False).candles("GOLD", closed_by=NOW, bars=10)
