"""Open the candle source that a feed string names."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from pathlib import Path
from typing import TypeVar
from urllib.parse import parse_qsl, urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from strategy_core.domain.candles import timeframe_delta
from strategy_core.domain.errors import InvalidSetting, UnknownSymbol
from strategy_core.market.calendars import Calendar
from strategy_core.market.ccxt import CcxtVendor, open_ccxt
from strategy_core.market.files import SYMBOL, FileOptions, FileSource, spelling
from strategy_core.market.live import LiveSource, Vendor
from strategy_core.market.oanda import HOSTS, Account, Day, Oanda, Price
from strategy_core.market.source import CandleSource
from strategy_core.market.synthetic import DAYS, FIRST_CANDLE, INSTRUMENTS, SyntheticSource

OANDA, CCXT, SYNTHETIC = "oanda", "ccxt", "synthetic"
LIVE = (OANDA, CCXT)
_INSTRUMENT = {OANDA: re.compile(r"[A-Z0-9]+_[A-Z0-9]+"), CCXT: re.compile(r"[A-Za-z0-9]+/[A-Za-z0-9:._/-]+")}
_EXAMPLE = {OANDA: "oanda:GOLD=XAU_USD,SILVER=XAG_USD?account=practice", CCXT: "ccxt:binance:BTC=BTC/USDT,ETH=ETH/USDT"}

Options = TypeVar("Options", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class FeedAccess:
    """Access to the server of a live feed.

    Attributes:
        oanda_token: token of an OANDA account.
        oanda_url: address to use instead of OANDA's hosts.
        timeout: seconds for one answer.
    """

    oanda_token: SecretStr | None = None
    oanda_url: str | None = None
    timeout: float = 10.0


class _OandaOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")

    account: Account = "practice"
    price: Price = "MBA"
    day: Day = "utc"


class _NoOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _SyntheticOptions(BaseModel):
    """Options after the `?` of a synthetic feed."""

    model_config = ConfigDict(extra="forbid")

    seed: int = 7
    symbols: int = Field(default=10, ge=1, le=len(INSTRUMENTS))
    start: date = FIRST_CANDLE.date()
    days: int = DAYS


def open_source(
    feed: str,
    *,
    symbol: str | None = None,
    timeframe: str = "1h",
    now: datetime | None = None,
    calendar: Calendar | None = None,
    access: FeedAccess = FeedAccess(),
    day_zone: str | None = None,
) -> CandleSource:
    """Return the source that *feed* names.

    A feed is one of:
        `synthetic:GOLD?seed=7&symbols=10&start=2024-01-01&days=730`: made-up candles. Everything after the first word
            is optional. `symbols` is the number of instruments, the named one first.
        `oanda:GOLD=XAU_USD,XAG_USD?account=practice`: OANDA. Options: `account=live`, `price=M` for mid prices only,
            `day=new-york` for days that begin at 17:00 New York.
        `ccxt:binance:BTC=BTC/USDT`: a crypto exchange.
        `candles/GOLD.csv?tz=Europe/Athens&stamp=close`: the path of a file, or of a folder of files. Options: those of
            FileOptions. A path that exists as it is has none.

    Args:
        symbol: use only this symbol. For a single file, it names the file's symbol.
        timeframe: timeframe of the candles.
        now: time of opening. A candle that has not closed by then is left out. Required for a live feed.
        calendar: trading hours, required for a live feed. With it, a file is expected to continue after its last row.
            A synthetic feed ignores it.
        access: access to the server of a live feed.
        day_zone: zone of the days of files with dates alone, as in `calendars.DAY_ZONES`.

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
            raise InvalidSetting("feed", feed, "synthetic:…, or files: a replay cannot use a live feed")
        return open_live(
            kind, name, spec.query, symbol=symbol, timeframe=timeframe, now=now, calendar=calendar, access=access
        )
    path, options = read_file_feed(feed)
    return FileSource(
        path, timeframe=timeframe, symbol=symbol, now=now, calendar=calendar, options=options, day_zone=day_zone
    )


def read_file_feed(feed: str) -> tuple[Path, FileOptions]:
    """Return path and options of a feed of files. A path that exists as it is has no options.

    Raises:
        InvalidSetting: an option is not valid.
    """
    path, marked, query = feed.rpartition("?")
    if not marked or Path(feed).exists():
        return Path(feed), FileOptions()
    return Path(path), read_options(FileOptions, query)


def is_of_files(feed: str) -> bool:
    """Return whether *feed* names a file or a folder."""
    return feed.partition(":")[0].partition("?")[0] not in (SYNTHETIC, *LIVE)


def is_around_the_clock(feed: str) -> bool:
    """Return whether *feed* is a market that trades around the clock, judged by its name."""
    return feed.startswith(f"{CCXT}:")


@lru_cache(maxsize=2)  # a process that runs every minute draws its candles once
def _synthetic(name: str, query: str, symbol: str | None, timeframe: str) -> SyntheticSource:
    options = read_options(_SyntheticOptions, query)
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
    """Return a snapshot at *now* of a live feed.

    Args:
        kind: one of LIVE.
        name: the part of the feed between kind and `?`.
        query: the part after `?`.
        symbol: use only this symbol of the feed.

    Raises:
        InvalidSetting, UnknownSymbol, InvalidTimeframe, MissingExtra.
    """
    delta, by_new_york = timeframe_delta(timeframe), False
    vendor: Vendor
    if kind == OANDA:
        listed, options = name, read_options(_OandaOptions, query)
        instruments = _instruments(kind, listed, symbol)
        vendor = _oanda(options, timeframe, access)
        by_new_york = options.day == "new-york" and delta > timedelta(hours=1)  # shorter ones open on UTC's hours too
    else:
        exchange, _, listed = name.partition(":")
        read_options(_NoOptions, query)
        instruments = _instruments(kind, listed, symbol)
        vendor = CcxtVendor(open_ccxt(exchange, timeout=access.timeout), timeframe=timeframe)
    return LiveSource(vendor, instruments, now=now, calendar=calendar, by_new_york=by_new_york)


def _oanda(options: _OandaOptions, timeframe: str, access: FeedAccess) -> Oanda:
    if access.oanda_token is None:
        raise InvalidSetting("ROLLOUT_OANDA_TOKEN", None, "the token of an OANDA account")
    url = access.oanda_url or HOSTS[options.account]
    return Oanda(
        url,
        access.oanda_token,
        timeframe=timeframe,
        price=options.price,
        day=options.day,
        timeout=access.timeout,
    )


def _instruments(kind: str, listed: str, symbol: str | None) -> Mapping[str, str]:
    """Return the vendor's names by symbol.

    An entry is `GOLD=XAU_USD`, or an instrument without a symbol. Its symbol is then its name, with a dash for each
    character that a symbol cannot have: `BTC/USDT` becomes `BTC-USDT`.
    """
    found: dict[str, str] = {}
    for entry in listed.split(","):
        given, equals, instrument = entry.rpartition("=")
        named = given if equals else spelling(instrument)
        if not _INSTRUMENT[kind].fullmatch(instrument) or not SYMBOL.fullmatch(named):
            raise InvalidSetting("feed instrument", entry, f"as in {_EXAMPLE[kind]}")
        if named in found:
            raise InvalidSetting("feed instrument", entry, f"each symbol once; {named} is already {found[named]}")
        found[named] = instrument
    if symbol is None:
        return found
    if symbol not in found:
        raise UnknownSymbol(symbol, found)
    return {symbol: found[symbol]}


def read_options(model: type[Options], query: str) -> Options:
    """Return the options after the `?` of a feed. A bad option raises InvalidSetting with its name."""
    try:
        return model.model_validate(dict(parse_qsl(query, keep_blank_values=True)))
    except ValidationError as error:
        first = error.errors()[0]
        problem = first["msg"].removeprefix("Value error, ")
        own = first["type"] == "value_error"  # a check of ours, whose text says what is allowed
        allowed = problem if own else f"{', '.join(model.model_fields) or 'none'} ({problem})"
        raise InvalidSetting(f"feed option {first['loc'][0]}", first["input"], allowed) from None
