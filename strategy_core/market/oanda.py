"""OANDA's v20 API as a vendor of candles.

Daily candles are requested aligned to midnight UTC, and weekly ones to Monday, unless the feed asks for the sessions of
New York, which begin at 17:00 there, and on Friday. Those move with daylight saving time.

Source: OANDA v20 REST API, "Instrument Endpoints", GET /v3/instruments/{instrument}/candles.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from email.utils import parsedate_to_datetime
from time import monotonic
from types import MappingProxyType
from typing import Literal
from urllib.parse import urlsplit
from weakref import finalize

import httpx
import pandas as pd
from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError

from strategy_core.domain.candles import COLUMNS, PRICES
from strategy_core.domain.errors import EvidenceUnavailable, FeedUnavailable, InvalidTimeframe
from strategy_core.domain.lifecycle import utc
from strategy_core.market.live import CandlePage, TransientError, ask_with_retries

Account = Literal["practice", "live"]
Price = Literal["M", "MBA"]
Day = Literal["utc", "new-york"]
_ALIGNMENT: Mapping[Day, Mapping[str, str]] = MappingProxyType(
    {
        "utc": {"alignmentTimezone": "UTC", "dailyAlignment": "0", "weeklyAlignment": "Monday"},
        "new-york": {"alignmentTimezone": "America/New_York", "dailyAlignment": "17", "weeklyAlignment": "Friday"},
    }
)
HOSTS: Mapping[Account, str] = MappingProxyType(
    {"practice": "https://api-fxpractice.oanda.com", "live": "https://api-fxtrade.oanda.com"}
)
MOST = 4_999  # candles on a page, one less than the server's limit: see `page`
GRANULARITIES = MappingProxyType(
    {
        **{"1m": "M1", "5m": "M5", "15m": "M15", "30m": "M30", "1h": "H1", "2h": "H2", "4h": "H4"},
        **{"6h": "H6", "8h": "H8", "12h": "H12", "1d": "D", "1w": "W"},
    }
)
_LARGEST = 10_000_000  # bytes of an answer; 5000 candles with bid and ask take about two million
_LONGEST = 200  # characters of an error message


class _Prices(BaseModel):
    model_config = ConfigDict(strict=True)

    o: str
    h: str
    l: str  # noqa: E741  OANDA's name
    c: str

    def values(self) -> tuple[str, str, str, str]:
        return self.o, self.h, self.l, self.c


class _Candle(BaseModel):
    model_config = ConfigDict(strict=True)

    complete: bool
    time: str
    volume: float
    mid: _Prices
    bid: _Prices | None = None
    ask: _Prices | None = None


class _Candles(BaseModel):
    model_config = ConfigDict(strict=True)

    instrument: str
    granularity: str
    candles: list[_Candle]


class _Refusal(BaseModel):
    errorMessage: str  # noqa: N815  OANDA's name


class Oanda:
    """A vendor for `market.live`. Redirects are not followed, because the token is for the named server only.

    Args:
        url: address of the server, such as one of HOSTS.
        token: token of an OANDA account. It can also be used to trade, so it must stay secret.
        timeframe: a name in GRANULARITIES.
        price: M for mid candles, MBA for mid, bid and ask candles.
        day: when days begin: at midnight UTC, or at 17:00 New York.
        timeout: seconds for one whole answer.
        wait_s: seconds before the second try.
    """

    most = MOST

    def __init__(
        self,
        url: str,
        token: SecretStr,
        *,
        timeframe: str,
        price: Price = "MBA",
        day: Day = "utc",
        timeout: float,
        wait_s: float = 0.5,
    ) -> None:
        if timeframe not in GRANULARITIES:
            raise InvalidTimeframe(timeframe, GRANULARITIES)
        self.name = f"OANDA at {urlsplit(url).netloc}"
        self.timeframe = timeframe
        self._url = url.rstrip("/")
        self._token = token
        self._price = price
        self._day = day
        self._timeout = timeout
        self._wait_s = wait_s
        headers = {"Authorization": f"Bearer {token.get_secret_value()}", "Accept-Datetime-Format": "RFC3339"}
        self._client = httpx.Client(headers=headers, timeout=timeout)
        finalize(self, self._client.close)

    def page(self, instrument: str, *, before: datetime, count: int) -> CandlePage:
        asked = {
            "granularity": GRANULARITIES[self.timeframe],
            "price": self._price,
            "to": utc(before).isoformat().replace("+00:00", "Z"),
            "count": str(min(count, MOST) + 1),  # the answer may include the candle that opens at `to`
            "smooth": "false",
            **_ALIGNMENT[self._day],
        }
        answer = ask_with_retries(lambda: self._answer(instrument, asked), feed=self.name, wait_s=self._wait_s)
        if (answer.instrument, answer.granularity) != (instrument, asked["granularity"]):
            raise self._unavailable(instrument, f"answered with {answer.instrument} {answer.granularity}")
        return CandlePage(self._rows(instrument, [candle for candle in answer.candles if candle.complete]))

    def _answer(self, instrument: str, asked: Mapping[str, str]) -> _Candles:
        try:
            response, body = self._fetch(f"{self._url}/v3/instruments/{instrument}/candles", asked)
        except httpx.TimeoutException:
            raise TransientError(f"no answer within {self._timeout:g} s") from None
        except httpx.HTTPError as error:  # its message may contain the token
            raise TransientError(f"no answer: {type(error).__name__}") from None
        if response.status_code != httpx.codes.OK:
            raise self._refusal(instrument, response, body)
        try:
            return _Candles.model_validate_json(body)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            if first["type"] == "json_invalid":  # truncated, or from a proxy
                raise TransientError("the answer is not JSON") from None
            where = ".".join(str(part) for part in first["loc"])
            raise self._unavailable(instrument, f"the answer is not OANDA's: {where}: {first['msg']}") from None

    def _fetch(self, url: str, asked: Mapping[str, str]) -> tuple[httpx.Response, bytes]:
        """Return the answer and its body. httpx limits only single reads, so a slow trickle needs its own deadline."""
        deadline = monotonic() + self._timeout
        body = bytearray()
        with self._client.stream("GET", url, params=asked) as response:
            for chunk in response.iter_bytes():
                body += chunk
                if len(body) > _LARGEST:
                    raise TransientError(f"the answer is larger than {_LARGEST} bytes")
                if monotonic() > deadline:
                    raise TransientError(f"no answer within {self._timeout:g} s")
            return response, bytes(body)

    def _refusal(self, instrument: str, response: httpx.Response, body: bytes) -> Exception:
        status, reason = response.status_code, self._reason(body)
        if status == httpx.codes.TOO_MANY_REQUESTS or status >= httpx.codes.INTERNAL_SERVER_ERROR:
            return TransientError(f"HTTP {status}{reason}", _retry_after(response.headers))
        if status == httpx.codes.BAD_REQUEST and "Time is in the future" in reason:  # only our clock is that far
            return TransientError(f"this machine's clock is ahead of the server's{reason}")
        if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            return FeedUnavailable(f"{self.name}: refuses ROLLOUT_OANDA_TOKEN: HTTP {status}{reason}")
        return self._unavailable(instrument, f"HTTP {status}{reason}")

    def _reason(self, body: bytes) -> str:
        """Return the server's error message as one line, without the token, which it may repeat."""
        try:
            reason = _Refusal.model_validate_json(body).errorMessage
        except ValidationError:
            return ""
        reason = reason.replace(self._token.get_secret_value(), "***")
        return ": " + "".join(char if char.isprintable() else " " for char in reason)[:_LONGEST]

    def _rows(self, instrument: str, candles: Sequence[_Candle]) -> pd.DataFrame:
        rows: list[tuple[str | float, ...]] = []
        for candle in candles:
            row: tuple[str | float, ...] = (candle.time, *candle.mid.values(), candle.volume)
            if self._price == "MBA":
                if candle.bid is None or candle.ask is None:
                    raise self._unavailable(instrument, f"the answer is not OANDA's: no bid or ask at {candle.time}")
                row += (*candle.bid.values(), *candle.ask.values())
            rows.append(row)
        columns = COLUMNS if self._price == "MBA" else (*PRICES, "volume")
        return pd.DataFrame(rows, columns=["timestamp", *columns])

    def _unavailable(self, instrument: str, why: str) -> EvidenceUnavailable:
        return EvidenceUnavailable(f"{self.name} {instrument}: {why}")


def _retry_after(headers: httpx.Headers) -> float:
    """Return the wait that the server asks for, in seconds, or 0."""
    value = headers.get("Retry-After", "0")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:  # a date, by the server's clock
        wait = parsedate_to_datetime(value) - parsedate_to_datetime(headers.get("Date", ""))
    except (ValueError, TypeError):
        return 0.0
    return max(0.0, wait.total_seconds())
