"""The paper broker of the examples as a process of its own, which may kill itself in the middle of its work.

python -m tests.paper DATABASE_URL BOOK STATUS DIES_AT
"""

import importlib
import json
import os
import signal
import sys
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

from strategy_core import Router, SignalFeed
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services.database import current_time
from strategy_core.store.engine import open_database
from tests.builders import GOLD, MONDAY

ROOT = Path(__file__).parents[1]
SYMBOLS = (GOLD, "SILVER")
ATTEMPTS = """
CREATE TABLE IF NOT EXISTS attempt (trade_id TEXT);
CREATE TRIGGER IF NOT EXISTS note_attempt BEFORE INSERT ON trade BEGIN INSERT INTO attempt VALUES (NEW.trade_id); END;
"""


def market() -> SyntheticSource:
    return SyntheticSource(SYMBOLS, timeframe="4h", start=MONDAY - timedelta(days=90), days=170, seed=3)


def example() -> Any:
    if str(ROOT / "examples") not in sys.path:
        sys.path.insert(0, str(ROOT / "examples"))
    return importlib.import_module("paper_broker")


def main(url: str, book: str, status: str, dies_at: int) -> None:
    """Copy signals until the process is ended. It kills itself before the statement of its book with that number."""
    paper, source, engine = example(), market(), open_database(url)
    broker = paper.PaperBroker(book, paper.USERS, lambda _: source)
    broker.book.execute("PRAGMA synchronous = OFF")
    broker.book.executescript(ATTEMPTS)
    numbers = count(1)

    def die(_: str) -> None:
        if next(numbers) == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)

    asked: list[datetime] = []

    def clock() -> datetime:
        asked.append(current_time(engine))
        return asked[-1]

    broker.book.set_trace_callback(die)
    with Router(url) as router, SignalFeed(url, since=broker.place[0]) as feed:
        while True:
            broker.step(engine, router, feed, clock, wait_s=0.05)
            now = asked[-1]
            cursor, exits = broker.place
            done = {
                "now": now.isoformat(),
                "cursor": cursor,
                "exits": exits,
                "generation": router.generation("fib_rsi"),
            }
            Path(f"{status}.new").write_text(json.dumps(done))
            Path(f"{status}.new").replace(status)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
