"""From a feed, written as one string, to the source of candles it names; never a candle read."""

from datetime import UTC, date, datetime, time
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

from strategy_core.domain.errors import InvalidSetting, UnknownSymbol
from strategy_core.market.calendars import Calendar
from strategy_core.market.files import FileSource
from strategy_core.market.remote import LIVE, Access, open_live, read_options
from strategy_core.market.source import CandleSource
from strategy_core.market.synthetic import DAYS, FIRST_CANDLE, INSTRUMENTS, SyntheticSource

SYNTHETIC = "synthetic"


def open_source(
    feed: str,
    *,
    symbol: str | None = None,
    timeframe: str = "1h",
    now: datetime | None = None,
    calendar: Calendar | None = None,
    access: Access = Access(),  # noqa: B008  frozen
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
