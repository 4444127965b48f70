"""A file of candles as TradingView exports them, made of a synthetic market, to try things on.

    uv run python examples/tradingview.py
    uv run rollout candles check 'OANDA_XAUUSD, 60.csv'

The file has hourly candles of fifteen months, with times in seconds since 1970.
"""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from strategy_core.market.calendars import CALENDARS
from strategy_core.market.synthetic import SyntheticSource

FILE = Path("OANDA_XAUUSD, 60.csv")
END = datetime(2025, 3, 29, tzinfo=UTC)


def main() -> None:
    market = SyntheticSource(["GOLD"], start=datetime(2024, 1, 3, tzinfo=UTC), days=460)
    candles = market.candles("GOLD", closed_by=END)
    candles = candles[CALENDARS["metals"].open_candles(candles.index, timedelta(hours=1))]  # a holiday has no candles
    seconds, volume = candles.index.as_unit("s").asi8, candles["volume"].astype(int)
    table = candles[["open", "high", "low", "close"]].assign(time=seconds, Volume=volume)
    table[["time", "open", "high", "low", "close", "Volume"]].to_csv(FILE, index=False)
    print(f"{FILE}: {len(table):,} candles until {candles.index[-1]:%Y-%m-%d}")


if __name__ == "__main__":
    main()
