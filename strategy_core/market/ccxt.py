"""A crypto exchange as a vendor of candles, through ccxt, without an account."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd

from strategy_core.domain.candles import PRICES, timeframe_delta
from strategy_core.domain.errors import (
    EvidenceUnavailable,
    FeedUnavailable,
    InvalidSetting,
    InvalidTimeframe,
    MissingExtra,
    RolloutError,
)
from strategy_core.market.live import BEGINNING, CandlePage, TransientError, ask_with_retries

MOST = 1_000  # candles per request; some exchanges return fewer
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)
_LONGEST = 200  # characters of an error message


def open_ccxt(name: str, *, timeout: float) -> Any:
    """Return ccxt's exchange with this name. It limits its own request rate, and connects later.

    Raises:
        MissingExtra: ccxt is not installed.
        InvalidSetting: ccxt knows no such exchange.
    """
    try:
        import ccxt
    except ImportError:
        raise MissingExtra(f"the feed of {name}", "live") from None
    if name not in ccxt.exchanges:
        raise InvalidSetting("feed exchange", name, "an exchange of ccxt, such as binance, kraken or coinbase")
    return getattr(ccxt, name)({"enableRateLimit": True, "timeout": int(timeout * 1000)})


class CcxtVendor:
    """A vendor for `market.live` whose markets trade around the clock, so every slot is requested.

    Exchanges do not mark a candle that is still open, so `market.live` leaves it out by its time.

    Args:
        exchange: a ccxt exchange.
        timeframe: a timeframe that the exchange offers.
        wait_s: seconds before the second try.
    """

    most = MOST

    def __init__(self, exchange: Any, *, timeframe: str, wait_s: float = 0.5) -> None:
        timeframe_delta(timeframe)
        if exchange.has.get("fetchOHLCV") is not True:  # 'emulated' candles cover only the newest trades
            raise InvalidSetting("feed exchange", exchange.id, "an exchange that serves candles")
        if timeframe not in (exchange.timeframes or {}):
            raise InvalidTimeframe(timeframe, exchange.timeframes or {})
        self.name = f"{exchange.id} by ccxt"
        self.timeframe = timeframe
        self._exchange = exchange
        self._delta = timeframe_delta(timeframe)
        self._wait_s = wait_s

    def page(self, instrument: str, *, before: datetime, count: int) -> CandlePage:
        for slots in (count, MOST):  # a short page may lie within an outage, so look at a long one as well
            since = before - slots * self._delta
            if rows := self._between(instrument, since, before):
                columns = ["timestamp", *PRICES, "volume"]
                frame = pd.DataFrame([row[:6] for row in rows], columns=columns)
                frame["timestamp"] = pd.to_datetime(frame["timestamp"], unit="ms", utc=True)
                return CandlePage(frame, since)
        return CandlePage(pd.DataFrame(), BEGINNING)

    def _between(self, instrument: str, since: datetime, end: datetime) -> list[list[Any]]:
        """Return the candles that opened in since <= t < end, requested oldest first."""
        rows: list[list[Any]] = []
        while since < end:
            limit = min(MOST, (end - since) // self._delta)
            page = self._request(instrument, since, limit)
            new = [row for row in page if _ms(since) <= row[0] < _ms(end)]
            rows += new
            if new:  # some exchanges return fewer than *limit*
                since = _EPOCH + max(row[0] for row in new) * _MS + self._delta
            else:
                since += limit * self._delta
        return rows

    def _request(self, instrument: str, since: datetime, limit: int) -> Sequence[list[Any]]:
        page = ask_with_retries(lambda: self._ask(instrument, _ms(since), limit), feed=self.name, wait_s=self._wait_s)
        if not isinstance(page, list) or not all(map(_is_candle, page)):
            raise self._unavailable(instrument, "the answer is not a list of candles")
        return page

    def _ask(self, instrument: str, since_ms: int, limit: int) -> Any:
        import ccxt

        try:
            return self._exchange.fetch_ohlcv(instrument, self.timeframe, since=since_ms, limit=limit)
        except ccxt.NetworkError as error:  # also rate limits, maintenance and timeouts
            raise TransientError(f"no answer: {type(error).__name__}") from None
        except (ccxt.AuthenticationError, ccxt.PermissionDenied) as error:
            raise FeedUnavailable(f"{self.name}: refuses: {_one_line(error)}") from None
        except ccxt.BaseError as error:
            raise self._unavailable(instrument, _one_line(error)) from None
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise self._unavailable(instrument, f"the answer cannot be read: {type(error).__name__}") from None

    def _unavailable(self, instrument: str, why: str) -> RolloutError:
        return EvidenceUnavailable(f"{self.name} {instrument}: {why}")


def _is_candle(row: Any) -> bool:
    """Return whether *row* is a time in milliseconds and five numbers, some of which may be null."""
    if not isinstance(row, list) or len(row) < 6 or not isinstance(row[0], int) or isinstance(row[0], bool):
        return False
    return all(value is None or isinstance(value, (int, float)) for value in row[1:6])


def _ms(moment: datetime) -> int:
    return (moment - _EPOCH) // _MS


def _one_line(error: Exception) -> str:
    text = f"{type(error).__name__}: {error}"
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())[:_LONGEST]
