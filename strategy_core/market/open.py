"""From a feed, written as one string, to the source of candles it names; never a candle read."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from typing import TypeVar
from urllib.parse import parse_qsl, urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from strategy_core.domain.candles import timeframe_delta
from strategy_core.domain.errors import InvalidSetting, UnknownSymbol
from strategy_core.market.calendars import Calendar
from strategy_core.market.ccxt import CcxtVendor, open_ccxt
from strategy_core.market.files import FileSource
from strategy_core.market.live import LiveSource, Vendor
from strategy_core.market.oanda import HOSTS, Account, Oanda, Price
from strategy_core.market.source import CandleSource
from strategy_core.market.synthetic import DAYS, FIRST_CANDLE, INSTRUMENTS, SyntheticSource

OANDA, CCXT = "oanda", "ccxt"
LIVE = (OANDA, CCXT)
_INSTRUMENT = {OANDA: re.compile(r"[A-Z0-9]+_[A-Z0-9]+"), CCXT: re.compile(r"[A-Za-z0-9]+/[A-Za-z0-9:._/-]+")}
_EXAMPLE = {OANDA: "oanda:GOLD=XAU_USD,SILVER=XAG_USD?account=practice", CCXT: "ccxt:binance:BTC=BTC/USDT,ETH=ETH/USDT"}
_SYMBOL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")

Options = TypeVar("Options", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class FeedAccess:
    """What a live feed needs beside its name.

    Attributes:
        oanda_token: of an OANDA account.
        oanda_url: instead of OANDA's own hosts.
        timeout: for one answer, in seconds.
    """

    oanda_token: SecretStr | None = None
    oanda_url: str | None = None
    timeout: float = 10.0


class _OandaOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")

    account: Account = "practice"
    price: Price = "MBA"


class _NoOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")


def is_around_the_clock(feed: str) -> bool:
    """Return whether what *feed* names trades without a pause, as far as its name can say."""
    return feed.startswith(f"{CCXT}:")


def read_options(model: type[Options], query: str) -> Options:
    """Return what follows the `?` of a feed; else raise InvalidSetting naming the option."""
    try:
        return model.model_validate(dict(parse_qsl(query, keep_blank_values=True)))
    except ValidationError as error:
        first = error.errors()[0]
        allowed = f"{', '.join(model.model_fields) or 'none'} ({first['msg']})"
        raise InvalidSetting(f"feed option {first['loc'][0]}", first["input"], allowed) from None


def open_live(
    kind: str,
    name: str,
    query: str,
    *,
    symbol: str | None,
    timeframe: str,
    now: datetime,
    calendar: Calendar,
    access: FeedAccess,
) -> LiveSource:
    """Return the snapshot at *now* of the feed of that kind, one of LIVE; *symbol* picks one of its symbols.

    Raises:
        InvalidSetting, UnknownSymbol, InvalidTimeframe, MissingExtra.
    """
    timeframe_delta(timeframe)
    vendor: Vendor
    if kind == OANDA:
        listed, options = name, read_options(_OandaOptions, query)
        instruments = _instruments(kind, listed, symbol)
        vendor = _oanda(options, timeframe, access)
    else:
        exchange, _, listed = name.partition(":")
        read_options(_NoOptions, query)
        instruments = _instruments(kind, listed, symbol)
        vendor = CcxtVendor(open_ccxt(exchange, timeout=access.timeout), timeframe=timeframe)
    return LiveSource(vendor, instruments, now=now, calendar=calendar)


def _oanda(options: _OandaOptions, timeframe: str, access: FeedAccess) -> Oanda:
    if access.oanda_token is None:
        raise InvalidSetting("ROLLOUT_OANDA_TOKEN", None, "the token of an OANDA account, which the feed needs")
    url = access.oanda_url or HOSTS[options.account]
    return Oanda(url, access.oanda_token, timeframe=timeframe, price=options.price, timeout=access.timeout)


def _instruments(kind: str, listed: str, symbol: str | None) -> Mapping[str, str]:
    """Return the vendor's names by symbol: `GOLD=XAU_USD`, or an instrument alone, whose symbol is its name.

    What a symbol cannot hold becomes a dash: `BTC/USDT` is served as `BTC-USDT`.
    """
    found: dict[str, str] = {}
    for entry in listed.split(","):
        given, equals, instrument = entry.rpartition("=")
        named = given if equals else re.sub(r"[^A-Za-z0-9._+-]", "-", instrument)
        if not _INSTRUMENT[kind].fullmatch(instrument) or not _SYMBOL.fullmatch(named):
            raise InvalidSetting("feed instrument", entry, f"as in {_EXAMPLE[kind]}")
        if named in found:
            raise InvalidSetting("feed instrument", entry, f"each symbol once; {named} is {found[named]} already")
        found[named] = instrument
    if symbol is None:
        return found
    if symbol not in found:
        raise UnknownSymbol(symbol, found)
    return {symbol: found[symbol]}


SYNTHETIC = "synthetic"


def open_source(
    feed: str,
    *,
    symbol: str | None = None,
    timeframe: str = "1h",
    now: datetime | None = None,
    calendar: Calendar | None = None,
    access: FeedAccess = FeedAccess(),
) -> CandleSource:
    """Return the source that *feed* names.

    Args:
        feed: `synthetic:GOLD?seed=7&symbols=10&start=2024-01-01&days=730`, all but its first word optional: the
            instrument named, and others after it, `symbols` in all; or `oanda:GOLD=XAU_USD,XAG_USD?account=practice`,
            with `account=live`, and `price=M` for mid prices alone; or `ccxt:binance:BTC=BTC/USDT`; or the path of a
            .csv, .csv.gz or .parquet file, or of a folder of them, one a symbol.
        symbol: serve this one alone; a single file's symbol is otherwise its stem.
        timeframe: of the candles.
        now: the moment of opening, when the feed may end in a candle that is still being made.
        calendar: when a file should go on: its candles are missed past its end as well. None: the data end there. A
            synthetic feed ends after its days, whatever the calendar.
        access: to the server of a live feed, which needs *now* and *calendar* too.

    Raises:
        InvalidSetting, UnknownSymbol, InvalidCandles, InvalidTimeframe, MissingExtra.
    """
    try:
        spec = urlsplit(feed)
    except ValueError as error:
        raise InvalidSetting("feed", feed, f"synthetic:…, or the path of a file or folder ({error})") from None
    kind, name = (spec.scheme, spec.path) if spec.scheme else (spec.path, "")
    if kind == SYNTHETIC:
        return _synthetic(name, spec.query, symbol, timeframe)
    if kind in LIVE:
        if now is None or calendar is None:
            raise InvalidSetting("feed", feed, "synthetic:…, or files, where the past is played: a server is of today")
        return open_live(
            kind, name, spec.query, symbol=symbol, timeframe=timeframe, now=now, calendar=calendar, access=access
        )
    return FileSource(feed, timeframe=timeframe, symbol=symbol, now=now, calendar=calendar)


class _Options(BaseModel):
    """What may follow the `?` of a synthetic feed."""

    model_config = ConfigDict(extra="forbid")

    seed: int = 7
    symbols: int = Field(default=10, ge=1, le=len(INSTRUMENTS))
    start: date = FIRST_CANDLE.date()
    days: int = DAYS


def _synthetic(name: str, query: str, symbol: str | None, timeframe: str) -> SyntheticSource:
    options = read_options(_Options, query)
    named = symbol or name or next(iter(INSTRUMENTS))
    if named not in INSTRUMENTS:
        raise UnknownSymbol(named, INSTRUMENTS)
    others = [other for other in INSTRUMENTS if other != named]
    return SyntheticSource(
        (named,) if symbol else (named, *others[: options.symbols - 1]),
        seed=options.seed,
        timeframe=timeframe,
        start=datetime.combine(options.start, time(), UTC),
        days=options.days,
    )
