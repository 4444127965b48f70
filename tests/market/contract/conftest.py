"""The same market told by every kind of source, each through its own real means."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import ccxt
import pandas as pd
import pytest
from pydantic import SecretStr

from strategy_core.domain.candles import TIMEFRAMES
from strategy_core.market.calendars import AlwaysOpen, Calendar
from strategy_core.market.ccxt import CcxtVendor
from strategy_core.market.files import FileSource
from strategy_core.market.live import LiveSource, Vendor
from strategy_core.market.oanda import Oanda
from strategy_core.market.source import CandleSource
from strategy_core.market.synthetic import SyntheticSource
from tests.market.vendor import Bar, Market, serving

TOKEN = "s3cr3t-t0ken"
INSTRUMENTS = {"oanda": "XAU_USD", "ccxt": "BTC/USDT"}


@dataclass
class Told:
    """A market of GOLD, and a source of one kind that tells it.

    Attributes:
        bars: what is to be told, by open time; changed, it is what the next snapshot finds.
        market: the server, of a kind that has one.
    """

    kind: str
    folder: Path
    market: Market
    calendar: Calendar = field(default_factory=AlwaysOpen)
    timeframe: str = "1h"
    bars: dict[datetime, Bar] = field(default_factory=dict)
    timeout: float = 5.0

    def open(self, now: datetime) -> CandleSource:
        """Return a new snapshot at *now*."""
        if self.kind == "file":
            file = self.folder / "GOLD.csv"
            lines = [f"{at.isoformat()},{','.join(map(str, bar))}\n" for at, bar in self.bars.items()]
            rows = "".join(reversed(lines) if self.market.backwards else lines)
            file.write_text(f"timestamp,open,high,low,close,volume\n{rows}")
            return FileSource(file, timeframe=self.timeframe, now=now, calendar=self.calendar)
        name = INSTRUMENTS[self.kind]
        self.market.timeframe, self.market.now = self.timeframe, now
        self.market.bars = {name.replace("/", ""): self.bars}
        return LiveSource(self._vendor(), {"GOLD": name}, now=now, calendar=self.calendar)

    def _vendor(self) -> Vendor:
        if self.kind == "oanda":
            url, token = self.market.url, SecretStr(TOKEN)
            return Oanda(url, token, timeframe=self.timeframe, price="M", timeout=self.timeout, wait_s=0.001)
        exchange = ccxt.binance({"timeout": int(self.timeout * 1000), "options": {"fetchMarkets": {"types": ["spot"]}}})
        exchange.urls["api"]["public"] = f"{self.market.url}/api/v3"
        exchange.rateLimit = 0
        return CcxtVendor(exchange, timeframe=self.timeframe, wait_s=0.001)

    def fill(self, opens: pd.DatetimeIndex) -> "Told":
        """Tell one bar at each of *opens*, each like no other."""
        for i, at in enumerate(opens):
            price = 1000.0 + i
            self.bars[at.to_pydatetime()] = (price, price + 2.0, price - 2.0, price + 1.0, 10.0 + i)
        return self

    @property
    def delta(self) -> pd.Timedelta:
        return pd.Timedelta(TIMEFRAMES[self.timeframe])


Tell = Callable[[str], Told]


@pytest.fixture
def tell(tmp_path: Path) -> Iterator[Tell]:
    with ExitStack() as stack:

        def told(kind: str) -> Told:
            return Told(kind, tmp_path, stack.enter_context(serving()))

        yield told


@pytest.fixture(params=["file", "oanda", "ccxt"])
def told(request: pytest.FixtureRequest, tell: Tell) -> Told:
    return tell(request.param)


@pytest.fixture(params=["oanda", "ccxt"])
def served(request: pytest.FixtureRequest, tell: Tell) -> Told:
    return tell(request.param)


@pytest.fixture(params=["synthetic", "file", "oanda", "ccxt"])
def source(request: pytest.FixtureRequest, tell: Tell) -> CandleSource:
    """Ten weeks of GOLD, of which HISTORY is known at NOW."""
    if request.param == "synthetic":
        return SyntheticSource(("GOLD",), days=70)
    grid = pd.date_range("2024-01-01", periods=70 * 24, freq="h", tz="UTC")
    return tell(request.param).fill(grid).open(grid[-1].to_pydatetime())
