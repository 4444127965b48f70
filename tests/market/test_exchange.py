"""Exchanges as ccxt knows them: a real exchange class of it, asked at a server on this machine."""

import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import ccxt
import pandas as pd
import pytest

from strategy_core.domain.errors import (
    EvidenceUnavailable,
    FeedUnavailable,
    InvalidSetting,
    InvalidTimeframe,
    MissingExtra,
)
from strategy_core.market.calendars import AlwaysOpen
from strategy_core.market.ccxt import CcxtVendor, open_ccxt
from strategy_core.market.live import LiveSource
from tests.market.vendor import BadDay, Market, serving

START = datetime(2026, 3, 2, tzinfo=UTC)
NOW = START + timedelta(hours=48, minutes=20)
HOUR = timedelta(hours=1)


@pytest.fixture
def market() -> Iterator[Market]:
    with serving() as market:
        market.now = NOW
        grid = pd.date_range(START, periods=49, freq="h")
        market.bars["BTCUSDT"] = {at.to_pydatetime(): (2000.0, 2002.0, 1998.0, 2001.0, 7.5) for at in grid}
        yield market


def binance(market: Market) -> Any:
    exchange = open_ccxt("binance", timeout=5.0)
    exchange.urls["api"]["public"] = f"{market.url}/api/v3"
    exchange.options["fetchMarkets"] = {"types": ["spot"]}
    exchange.rateLimit = 0
    return exchange


def opened(market: Market) -> LiveSource:
    vendor = CcxtVendor(binance(market), timeframe="1h", wait_s=0.001)
    return LiveSource(vendor, {"BTC": "BTC/USDT", "TIN": "TIN/USDT"}, now=NOW, calendar=AlwaysOpen())


def test_a_question_is_as_the_exchange_wants_it_and_without_a_key(market: Market) -> None:
    candles = opened(market).candles("BTC", closed_by=NOW, bars=30)

    ((path, asked, headers),) = market.asked
    since = NOW.replace(minute=0) - 30 * HOUR
    assert path == "/api/v3/klines"
    assert asked == {
        "interval": "1h",
        "limit": "30",
        "symbol": "BTCUSDT",
        "startTime": str(int(since.timestamp() * 1000)),
    }
    assert not {"X-MBX-APIKEY", "Authorization"} & set(headers)
    assert candles.iloc[-1].tolist() == [2000.0, 2002.0, 1998.0, 2001.0, 7.5]
    assert candles.index[-1] == NOW.replace(minute=0) - HOUR


def test_markets_are_asked_for_once_and_only_when_candles_are(market: Market) -> None:
    source = opened(market)
    source.expected_at("BTC", NOW)
    assert market.listed == 0

    source.candles("BTC", closed_by=NOW, bars=3)
    source.candles("BTC", closed_by=NOW, bars=30)

    assert market.listed == 1


def test_a_market_that_the_exchange_does_not_know_harms_no_other(market: Market) -> None:
    source = opened(market)

    with pytest.raises(EvidenceUnavailable, match="binance by ccxt TIN/USDT: BadSymbol: binance does not have market"):
        source.candles("TIN", closed_by=NOW, bars=3)

    assert len(source.candles("BTC", closed_by=NOW, bars=3)) == 3


@pytest.mark.parametrize(
    ("status", "body", "error", "tries"),
    [
        (418, b'{"code": -1003, "msg": "banned"}', FeedUnavailable, 3),  # ccxt: DDoSProtection
        (429, b'{"code": -1003, "msg": "slow down"}', FeedUnavailable, 3),
        (401, b'{"code": -2015, "msg": "Invalid API-key"}', FeedUnavailable, 1),
        (400, b'{"code": -1121, "msg": "Invalid symbol."}', EvidenceUnavailable, 1),
    ],
)
def test_what_an_exchange_refuses_is_not_asked_again_and_what_passes_is(
    market: Market, status: int, body: bytes, error: type[Exception], tries: int
) -> None:
    market.for_good = BadDay(status, body)

    with pytest.raises(error) as caught:
        opened(market).candles("BTC", closed_by=NOW, bars=3)

    assert type(caught.value) is error
    assert len(market.asked) == tries


def test_a_volume_that_the_exchange_does_not_tell_stays_unknown(market: Market) -> None:
    market.bars["BTCUSDT"][START + 47 * HOUR] = (2000.0, 2002.0, 1998.0, 2001.0, None)

    assert opened(market).candles("BTC", closed_by=NOW, bars=2)["volume"].isna().tolist() == [False, True]


def test_a_clock_behind_the_exchanges_serves_nothing_that_has_not_closed_by_it(market: Market) -> None:
    market.now = NOW + 5 * HOUR
    behind = NOW - 5 * HOUR
    vendor = CcxtVendor(binance(market), timeframe="1h", wait_s=0.001)

    source = LiveSource(vendor, {"BTC": "BTC/USDT"}, now=behind, calendar=AlwaysOpen())

    assert source.candles("BTC", closed_by=NOW, bars=3).index[-1] == behind.replace(minute=0) - HOUR


def test_what_ccxt_cannot_be_asked_is_refused_before_anything_is(market: Market) -> None:
    exchange = binance(market)

    with pytest.raises(InvalidSetting, match="feed exchange = 'nasdaq' is not valid; allowed: an exchange of ccxt"):
        open_ccxt("nasdaq", timeout=1.0)
    with pytest.raises(InvalidTimeframe, match="'90m' is not a timeframe"):
        CcxtVendor(exchange, timeframe="90m")
    exchange.timeframes = {"1d": "1d"}
    with pytest.raises(InvalidTimeframe, match="'1h' is not a timeframe; allowed: 1d"):
        CcxtVendor(exchange, timeframe="1h")
    exchange.has["fetchOHLCV"] = "emulated"
    with pytest.raises(InvalidSetting, match="an exchange that serves candles"):
        CcxtVendor(exchange, timeframe="1d")


def test_without_ccxt_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ccxt", None)

    with pytest.raises(MissingExtra, match=r"pip install 'strategy-rollout\[live\]'"):
        open_ccxt("binance", timeout=1.0)


def test_an_exchange_keeps_its_own_rate_limit() -> None:
    exchange = open_ccxt("kraken", timeout=2.5)

    assert isinstance(exchange, ccxt.kraken)
    assert exchange.enableRateLimit
    assert exchange.rateLimit > 0
    assert exchange.timeout == 2500
