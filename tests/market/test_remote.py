"""The name of a live feed says server, instruments and symbols; what cannot be is refused before anything is asked."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import SecretStr

from strategy_core.domain.errors import InvalidSetting, InvalidTimeframe, RolloutError, UnknownSymbol
from strategy_core.market.calendars import AlwaysOpen
from strategy_core.market.open import FeedAccess, open_source
from strategy_core.market.source import AbsentSource
from strategy_core.settings import Settings, read_settings

NOW = datetime(2026, 3, 4, 12, tzinfo=UTC)
SATURDAY = datetime(2026, 3, 7, 12, tzinfo=UTC)
TOKEN = "s3cr3t-t0ken"
LIVE: dict[str, Any] = {"now": NOW, "calendar": AlwaysOpen(), "access": FeedAccess(SecretStr(TOKEN))}


@pytest.mark.parametrize(
    ("feed", "name", "symbols"),
    [
        ("oanda:XAU_USD", "OANDA at api-fxpractice.oanda.com", ("XAU_USD",)),
        ("oanda:GOLD=XAU_USD,XAG_USD", "OANDA at api-fxpractice.oanda.com", ("GOLD", "XAG_USD")),
        ("oanda:XAU_USD?price=M&account=practice", "OANDA at api-fxpractice.oanda.com", ("XAU_USD",)),
        ("oanda:XAU_USD?account=live", "OANDA at api-fxtrade.oanda.com", ("XAU_USD",)),
        ("ccxt:kraken:BTC/USD", "kraken by ccxt", ("BTC-USD",)),
        ("ccxt:binance:BTC=BTC/USDT,BTC/USDT:USDT", "binance by ccxt", ("BTC", "BTC-USDT-USDT")),
    ],
)
def test_a_feed_names_its_server_and_its_symbols(feed: str, name: str, symbols: tuple[str, ...]) -> None:
    source = open_source(feed, **LIVE)

    assert (source.name, source.symbols(), source.timeframe) == (name, symbols, "1h")


def test_a_symbol_asked_for_is_served_alone() -> None:
    assert open_source("oanda:GOLD=XAU_USD,XAG_USD", symbol="GOLD", **LIVE).symbols() == ("GOLD",)
    with pytest.raises(UnknownSymbol, match="no candles of 'TIN'; known symbols: GOLD, XAG_USD"):
        open_source("oanda:GOLD=XAU_USD,XAG_USD", symbol="TIN", **LIVE)


@pytest.mark.parametrize(
    ("feed", "error", "says"),
    [
        ("oanda", InvalidSetting, "feed instrument = '' is not valid; allowed: as in oanda:GOLD=XAU_USD"),
        ("oanda:", InvalidSetting, "feed instrument = ''"),
        ("oanda:XAU_USD,", InvalidSetting, "feed instrument = ''"),
        ("oanda:xau_usd", InvalidSetting, "feed instrument = 'xau_usd'"),
        ("oanda:../accounts", InvalidSetting, "feed instrument = '../accounts'"),
        ("oanda:G/D=XAU_USD", InvalidSetting, "feed instrument = 'G/D=XAU_USD'"),
        ("oanda:=XAU_USD", InvalidSetting, "feed instrument = '=XAU_USD'"),
        ("oanda:XAU_USD,XAU_USD", InvalidSetting, "each symbol once; XAU_USD is already XAU_USD"),
        (
            "oanda:XAU_USD?acount=live",
            InvalidSetting,
            "feed option acount = 'live' is not valid; allowed: account, pri",
        ),
        ("oanda:XAU_USD?account=mine", InvalidSetting, "feed option account = 'mine'"),
        ("oanda:XAU_USD?price=B", InvalidSetting, "feed option price = 'B'"),
        ("ccxt", InvalidSetting, "feed instrument = '' is not valid; allowed: as in ccxt:binance:BTC=BTC/USDT"),
        ("ccxt:binance", InvalidSetting, "feed instrument = ''"),
        ("ccxt:binance:BTCUSDT", InvalidSetting, "feed instrument = 'BTCUSDT'"),
        ("ccxt:nasdaq:BTC/USDT", InvalidSetting, "feed exchange = 'nasdaq'"),
        ("ccxt:__class__:BTC/USDT", InvalidSetting, "feed exchange = '__class__'"),
        ("ccxt:binance:BTC/USDT?key=1", InvalidSetting, "feed option key = '1' is not valid; allowed: none"),
    ],
)
def test_a_feed_that_cannot_be_is_refused(feed: str, error: type[RolloutError], says: str) -> None:
    with pytest.raises(error) as caught:
        open_source(feed, **LIVE)

    assert says in str(caught.value)


def test_an_unknown_timeframe_is_refused_at_once() -> None:
    for feed in ("oanda:XAU_USD", "ccxt:binance:BTC/USDT"):
        with pytest.raises(InvalidTimeframe):
            open_source(feed, timeframe="90m", **LIVE)


def test_a_live_feed_is_not_played_as_if_it_were_the_past() -> None:
    replayed = Settings(feed="oanda:XAU_USD", oanda_token=SecretStr(TOKEN), replay_from=NOW)

    with pytest.raises(InvalidSetting, match=r"allowed: synthetic:…, or files: a replay cannot use a live feed"):
        replayed.open_candles(NOW)


def test_without_a_token_candles_are_refused_and_a_tick_is_blind() -> None:
    settings = Settings(feed="oanda:XAU_USD", oanda_token=None)

    with pytest.raises(InvalidSetting, match="ROLLOUT_OANDA_TOKEN"):
        settings.open_candles(NOW)
    source = settings.candles_if_any(NOW)
    assert isinstance(source, AbsentSource)
    with pytest.raises(InvalidSetting, match="ROLLOUT_OANDA_TOKEN"):
        source.expected_at("XAU_USD", NOW)


def test_each_feed_is_expected_by_its_own_market_unless_the_owner_says_otherwise() -> None:
    token = SecretStr(TOKEN)
    gold = Settings(feed="oanda:GOLD=XAU_USD", oanda_token=token).open_candles(SATURDAY)
    euro = Settings(feed="oanda:GOLD=XAU_USD", oanda_token=token, calendar="always").open_candles(SATURDAY)
    bitcoin = Settings(feed="ccxt:binance:BTC=BTC/USDT").open_candles(SATURDAY)

    assert gold.expected_at("GOLD", SATURDAY) == datetime(2026, 3, 6, 21, tzinfo=UTC)
    assert euro.expected_at("GOLD", SATURDAY) == SATURDAY - timedelta(hours=1)
    assert bitcoin.expected_at("BTC", SATURDAY) == SATURDAY - timedelta(hours=1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OANDA_URL", "api.example"),
        ("OANDA_URL", "http://api.example"),
        ("OANDA_URL", "http://127.0.0.1.example"),
        ("OANDA_URL", f"https://ana:{TOKEN}@api.example"),
        ("OANDA_URL", f"https://api.example/?token={TOKEN}"),
        ("OANDA_TOKEN", ""),
        ("OANDA_TOKEN", f"Bearer {TOKEN}"),
        ("OANDA_TOKEN", f"{TOKEN}\n"),
        ("OANDA_TOKEN", f"{TOKEN}ü"),
        ("FEED_TIMEOUT", "0"),
        ("FEED_TIMEOUT", "61"),
        ("CALENDAR", "lunar"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_gives_no_secret_away(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"ROLLOUT_{name}", value)

    with pytest.raises(InvalidSetting) as refused:
        read_settings()

    assert str(refused.value).startswith(f"ROLLOUT_{name} = ")
    assert TOKEN not in str(refused.value) + repr(vars(refused.value))


def test_what_is_set_is_what_the_feed_is_read_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROLLOUT_FEED", "oanda:GOLD=XAU_USD")
    monkeypatch.setenv("ROLLOUT_OANDA_TOKEN", TOKEN)
    monkeypatch.setenv("ROLLOUT_OANDA_URL", "https://broker.example:8443/")
    settings = read_settings()

    assert settings.open_candles(NOW).name == "OANDA at broker.example:8443"
    assert TOKEN not in repr(settings) + settings.model_dump_json()
