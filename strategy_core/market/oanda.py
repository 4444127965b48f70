"""Candles of OANDA's v20 API: one page of one instrument as it was told; never an order, never a secret shown.

Days and longer candles are asked for aligned to midnight UTC, not to New York's evening as OANDA does by itself, so
that no candle's hours change with summer time.

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
from strategy_core.domain.errors import EvidenceUnavailable, FeedUnavailable
from strategy_core.domain.lifecycle import utc
from strategy_core.market.live import CandlePage, TransientError, ask_again

Account = Literal["practice", "live"]
Price = Literal["M", "MBA"]
HOSTS: Mapping[Account, str] = MappingProxyType(
    {"practice": "https://api-fxpractice.oanda.com", "live": "https://api-fxtrade.oanda.com"}
)
MOST = 4_999  # candles of a page; the server allows one more
GRANULARITIES = MappingProxyType(
    {"1m": "M1", "5m": "M5", "15m": "M15", "30m": "M30", "1h": "H1", "2h": "H2", "4h": "H4", "1d": "D"}
)
_LARGEST = 10_000_000  # bytes of an answer: 5000 candles with their sides are two
_LONGEST = 200  # characters of what a server says of its error
_BUSY = 429


class _Prices(BaseModel):
    model_config = ConfigDict(strict=True)

    o: str
    h: str
    l: str  # noqa: E741  as OANDA calls it
    c: str

    def told(self) -> tuple[str, str, str, str]:
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


class Oanda:
    """A vendor as `market.live` asks it. Redirects are not followed: the token is for the named server alone.

    Args:
        url: of the server, such as one of HOSTS.
        token: of an OANDA account; reading candles moves no money, but a token may.
        timeframe: a name in GRANULARITIES.
        price: M for mid candles alone, MBA with their bid and ask sides.
        timeout: in seconds, for one whole answer.
        wait_s: before a second try.
    """

    most = MOST

    def __init__(
        self, url: str, token: SecretStr, *, timeframe: str, price: Price = "MBA", timeout: float, wait_s: float = 0.5
    ) -> None:
        self.name = f"OANDA at {urlsplit(url).netloc}"
        self.timeframe = timeframe
        self._url = url.rstrip("/")
        self._token = token
        self._price = price
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
            "count": str(min(count, MOST) + 1),  # should the one that opens then be told too
            "smooth": "false",
            "alignmentTimezone": "UTC",
            "dailyAlignment": "0",
        }
        answer = ask_again(lambda: self._answer(instrument, asked), feed=self.name, wait_s=self._wait_s)
        if (answer.instrument, answer.granularity) != (instrument, asked["granularity"]):
            raise self._none(instrument, f"answered with {answer.instrument} {answer.granularity}")
        return CandlePage(self._rows(instrument, [candle for candle in answer.candles if candle.complete]))

    def _answer(self, instrument: str, asked: Mapping[str, str]) -> _Candles:
        try:
            response, body = self._fetch(f"{self._url}/v3/instruments/{instrument}/candles", asked)
        except httpx.TimeoutException:
            raise TransientError(f"no answer within {self._timeout:g} s") from None
        except httpx.HTTPError as error:  # its text may quote what was sent
            raise TransientError(f"no answer: {type(error).__name__}") from None
        if response.status_code != httpx.codes.OK:
            raise self._refusal(instrument, response, body)
        try:
            return _Candles.model_validate_json(body)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            if first["type"] == "json_invalid":  # cut on its way, or from somebody in between
                raise TransientError("the answer is not JSON") from None
            where = ".".join(str(part) for part in first["loc"])
            raise self._none(instrument, f"the answer is not OANDA's: {where}: {first['msg']}") from None

    def _fetch(self, url: str, asked: Mapping[str, str]) -> tuple[httpx.Response, bytes]:
        """Return the answer and its body; httpx itself limits each read alone, so that a trickle would never end."""
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
        status, said = response.status_code, self._said(body)
        if status == _BUSY or status >= httpx.codes.INTERNAL_SERVER_ERROR:
            return TransientError(f"HTTP {status}{said}", _seconds(response.headers))
        if status == httpx.codes.BAD_REQUEST and "Time is in the future" in said:  # a candle closed by our clock alone
            return TransientError(f"this machine's clock is ahead of the server's{said}")
        if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            return FeedUnavailable(f"{self.name}: refuses ROLLOUT_OANDA_TOKEN: HTTP {status}{said}")
        return self._none(instrument, f"HTTP {status}{said}")

    def _said(self, body: bytes) -> str:
        """Return what the server says of its error, as a line without the token, which it may echo."""
        try:
            said = _Refusal.model_validate_json(body).errorMessage
        except ValidationError:
            return ""
        said = said.replace(self._token.get_secret_value(), "***")
        return ": " + "".join(char if char.isprintable() else " " for char in said)[:_LONGEST]

    def _rows(self, instrument: str, candles: Sequence[_Candle]) -> pd.DataFrame:
        told: list[tuple[str | float, ...]] = []
        for candle in candles:
            row: tuple[str | float, ...] = (candle.time, *candle.mid.told(), candle.volume)
            if self._price == "MBA":
                if candle.bid is None or candle.ask is None:
                    raise self._none(instrument, f"the answer is not OANDA's: no bid or ask at {candle.time}")
                row += (*candle.bid.told(), *candle.ask.told())
            told.append(row)
        columns = COLUMNS if self._price == "MBA" else (*PRICES, "volume")
        return pd.DataFrame(told, columns=["timestamp", *columns])

    def _none(self, instrument: str, why: str) -> EvidenceUnavailable:
        return EvidenceUnavailable(f"{self.name} {instrument}: {why}")


class _Refusal(BaseModel):
    errorMessage: str  # noqa: N815  as OANDA calls it


def _seconds(headers: httpx.Headers) -> float:
    """Return for how long the server asks to be left alone; 0 when it does not say."""
    told = headers.get("Retry-After", "0")
    try:
        return max(0.0, float(told))
    except ValueError:
        pass
    try:  # a date, by the server's own clock
        wait = parsedate_to_datetime(told) - parsedate_to_datetime(headers.get("Date", ""))
    except (ValueError, TypeError):
        return 0.0
    return max(0.0, wait.total_seconds())
