"""From a feed, written as one string, to the source of candles it names; never a candle read."""

from datetime import UTC, date, datetime, time
from urllib.parse import parse_qsl, urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from strategy_core.domain.errors import InvalidSetting, UnknownSymbol
from strategy_core.market.calendars import Calendar
from strategy_core.market.files import FileSource
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
) -> CandleSource:
    """Return the source that *feed* names.

    Args:
        feed: `synthetic:GOLD?seed=7&symbols=10&start=2024-01-01&days=730`, all but its first word optional: the
            instrument named, and others after it, `symbols` in all; or the path of a .csv, .csv.gz or .parquet file, or
            of a folder of them, one a symbol.
        symbol: serve this one alone; a single file's symbol is otherwise its stem.
        timeframe: of the candles.
        now: the moment of opening, when a file may end in a candle that is still being made.
        calendar: when a file should go on: its candles are missed past its end as well. None: the data end there. A
            synthetic feed ends after its days, whatever the calendar.

    Raises:
        InvalidSetting, UnknownSymbol, InvalidCandles, InvalidTimeframe.
    """
    try:
        spec = urlsplit(feed)
    except ValueError as error:
        raise InvalidSetting("feed", feed, f"synthetic:…, or the path of a file or folder ({error})") from None
    if SYNTHETIC in (spec.scheme, spec.path):
        return _synthetic(spec.path if spec.scheme else "", spec.query, symbol, timeframe)
    return FileSource(feed, timeframe=timeframe, symbol=symbol, now=now, calendar=calendar)


class _Options(BaseModel):
    """What may follow the `?` of a synthetic feed."""

    model_config = ConfigDict(extra="forbid")

    seed: int = 7
    symbols: int = Field(default=10, ge=1, le=len(INSTRUMENTS))
    start: date = FIRST_CANDLE.date()
    days: int = DAYS


def _synthetic(name: str, query: str, symbol: str | None, timeframe: str) -> SyntheticSource:
    try:
        options = _Options.model_validate(dict(parse_qsl(query, keep_blank_values=True)))
    except ValidationError as error:
        first = error.errors()[0]
        allowed = f"{', '.join(_Options.model_fields)} ({first['msg']})"
        raise InvalidSetting(f"feed option {first['loc'][0]}", first["input"], allowed) from None
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
