"""From the name of a live feed to its snapshot: which server, which instruments under which symbols; nothing is asked.

oanda:GOLD=XAU_USD,XAG_USD?account=practice&price=MBA
ccxt:binance:BTC=BTC/USDT,ETH/USDT
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar
from urllib.parse import parse_qsl

from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError

from strategy_core.domain.candles import timeframe_delta
from strategy_core.domain.errors import InvalidSetting, UnknownSymbol
from strategy_core.market.calendars import Calendar
from strategy_core.market.exchange import Exchange, open_exchange
from strategy_core.market.live import LiveSource, Vendor
from strategy_core.market.oanda import HOSTS, Account, Oanda, Price

OANDA, CCXT = "oanda", "ccxt"
LIVE = (OANDA, CCXT)
_INSTRUMENT = {OANDA: re.compile(r"[A-Z0-9]+_[A-Z0-9]+"), CCXT: re.compile(r"[A-Za-z0-9]+/[A-Za-z0-9:._/-]+")}
_EXAMPLE = {OANDA: "oanda:GOLD=XAU_USD,SILVER=XAG_USD?account=practice", CCXT: "ccxt:binance:BTC=BTC/USDT,ETH=ETH/USDT"}
_SYMBOL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")

Options = TypeVar("Options", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Access:
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
    access: Access,
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
        vendor = Exchange(open_exchange(exchange, timeout=access.timeout), timeframe=timeframe)
    return LiveSource(vendor, instruments, now=now, calendar=calendar)


def _oanda(options: _OandaOptions, timeframe: str, access: Access) -> Oanda:
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
