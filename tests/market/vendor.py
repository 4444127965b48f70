"""A server on this machine that answers as OANDA and as Binance do, also on a bad day, and keeps what it was asked."""

import json
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from strategy_core.domain.candles import TIMEFRAMES

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MOST_OF_OANDA, MOST_OF_BINANCE = 5_000, 1_000

Bar = tuple[Any, Any, Any, Any, Any]  # open, high, low, close, volume


@dataclass(frozen=True)
class BadDay:
    """One answer that is not the market's: None is as usual.

    Attributes:
        cut: how many bytes of the body are sent; the rest never comes.
        delay_s: before anything is said.
        trickle_s: between two bytes.
    """

    status: int = 200
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None
    delay_s: float = 0.0
    trickle_s: float = 0.0


HTML = BadDay(502, b"<html><head><title>502 Bad Gateway</title></head></html>", {"Content-Type": "text/html"})


@dataclass
class Market:
    """What the vendor knows, and how it is today.

    Attributes:
        bars: by instrument, as OANDA or Binance names it, and open time.
        now: the vendor's clock.
        lag: for how long after its close a candle is not complete yet.
        edge_twice: `to` includes the candle that opens then.
        gives: candles of an answer at most, whatever was asked for.
        backwards: the newest candle comes first.
        bad_days: of the next answers, one each; with `for_good`, of all that follow.
        asked: path, parameters and headers of each question about candles.
        listed: how often it was asked which instruments there are.
    """

    timeframe: str = "1h"
    now: datetime = EPOCH
    lag: timedelta = timedelta()
    bars: dict[str, dict[datetime, Bar]] = field(default_factory=dict)
    edge_twice: bool = False
    gives: int = MOST_OF_OANDA
    backwards: bool = False
    bad_days: deque[BadDay] = field(default_factory=deque)
    for_good: BadDay | None = None
    asked: list[tuple[str, dict[str, str], dict[str, str]]] = field(default_factory=list)
    listed: int = 0
    url: str = ""

    def oanda(self, instrument: str, asked: Mapping[str, str]) -> tuple[int, Any]:
        if instrument not in self.bars:
            return 404, {"errorMessage": f"no instrument {instrument}"}
        if int(asked["count"]) > MOST_OF_OANDA:
            return 400, {"errorMessage": "Maximum value for 'count' exceeded"}
        to = datetime.fromisoformat(asked["to"])
        if to > self.now:
            return 400, {"errorMessage": "Invalid value specified for 'to'. Time is in the future"}
        known = sorted(self.bars[instrument])
        opens = [at for at in known if at < to or (self.edge_twice and at == to)]
        opens = opens[-min(int(asked["count"]), self.gives) :]
        candles = [self._oanda_candle(at, self.bars[instrument][at], asked["price"]) for at in self._in_order(opens)]
        return 200, {"instrument": instrument, "granularity": asked["granularity"], "candles": candles}

    def _oanda_candle(self, at: datetime, bar: Bar, price: str) -> dict[str, Any]:
        def prices(shift: float) -> dict[str, str]:
            told = (f"{value + shift:.5f}" if isinstance(value, float) else value for value in bar[:4])
            return dict(zip("ohlc", told, strict=True))

        sides = {"mid": prices(0.0), "bid": prices(-0.25), "ask": prices(0.25)}
        return {
            "complete": at + TIMEFRAMES[self.timeframe] + self.lag <= self.now,
            "volume": int(bar[4]),
            "time": at.strftime("%Y-%m-%dT%H:%M:%S.000000000Z"),
            **{name: told for name, told in sides.items() if name[0].upper() in price},
        }

    def binance(self, asked: Mapping[str, str]) -> tuple[int, Any]:
        if asked["symbol"] not in self.bars:
            return 400, {"code": -1121, "msg": "Invalid symbol."}
        since = EPOCH + timedelta(milliseconds=int(asked.get("startTime", "0")))
        bars = self.bars[asked["symbol"]]
        opens = [at for at in sorted(bars) if since <= at <= self.now]
        rows = []
        for at in self._in_order(opens[: min(int(asked["limit"]), MOST_OF_BINANCE, self.gives)]):
            values = [f"{value:.8f}" if isinstance(value, float) else value for value in bars[at]]
            opened, closed = _ms(at), _ms(at + TIMEFRAMES[self.timeframe]) - 1
            rows.append([opened, *values, closed, "0", 10, "0", "0", "0"])
        return 200, rows

    def _in_order(self, opens: list[datetime]) -> list[datetime]:
        return opens[::-1] if self.backwards else opens

    def exchange_info(self) -> tuple[int, Any]:
        self.listed += 1
        names = {name: (name[:-4], name[-4:]) for name in self.bars}
        symbols = [
            {"symbol": name, "status": "TRADING", "baseAsset": base, "quoteAsset": quote, "filters": []}
            for name, (base, quote) in names.items()
        ]
        return 200, {"timezone": "UTC", "serverTime": _ms(self.now), "rateLimits": [], "symbols": symbols}


@contextmanager
def serving() -> Iterator[Market]:
    market = Market()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            asked = dict(parse_qsl(parts.query))
            try:
                if parts.path == "/api/v3/exchangeInfo":
                    self._say(BadDay(), *market.exchange_info())
                    return
                market.asked.append((parts.path, asked, dict(self.headers)))
                bad = market.bad_days.popleft() if market.bad_days else market.for_good or BadDay()
                time.sleep(bad.delay_s)
                if parts.path == "/api/v3/klines":
                    self._say(bad, *market.binance(asked))
                else:
                    _, _, _, instrument, _ = parts.path.split("/")
                    self._say(bad, *market.oanda(instrument, asked))
            except OSError:  # whoever asked did not wait
                self.close_connection = True

        def _say(self, bad: BadDay, status: int, told: Any) -> None:
            body = json.dumps(told).encode() if bad.body is None else bad.body
            self.send_response_only(status if bad.status == 200 else bad.status)
            for name, value in {"Content-Length": str(len(body)), **bad.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            body = body[: bad.cut]
            step = 1 if bad.trickle_s else max(1, len(body))
            for start in range(0, len(body), step):
                self.wfile.write(body[start : start + step])
                self.wfile.flush()
                time.sleep(bad.trickle_s)
            if bad.cut is not None:
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True  # one that trickles is not waited for
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    market.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield market
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _ms(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(milliseconds=1)
