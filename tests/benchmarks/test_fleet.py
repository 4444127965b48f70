"""What the console's first page costs the server with 200 strategies, as the logs behind it grow."""

import time
from collections.abc import Iterator
from statistics import median
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine, insert
from sqlmodel import SQLModel

from strategy_core.settings import Settings
from strategy_core.store.engine import upgrade
from strategy_core.store.tables import AlertOutbox, GateVerdict, ShadowDecisionLog
from tests.api.asking import FEED, Api, Clock
from tests.api.browsing import Browser
from tests.benchmarks.filling import settle
from tests.builders import HOUR, MONDAY, decision_row
from tests.fleets import LIKELY_HARM, PASSES, put_rollout, put_strategy

pytestmark = pytest.mark.benchmark_suite

STRATEGIES, SHORT, TIMES = 200, 50, 10  # rows a strategy in each log, and how much longer the other one is
READS = 15
NOW = MONDAY + 9 * HOUR + HOUR / 2  # as the tokens of the tests have it


def test_the_fleet_page_is_flat_in_the_length_of_the_log(vast: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    upgrade(vast)
    names = [f"s{number:03}" for number in range(STRATEGIES)]
    ids = {
        name: put_rollout(vast, name, NOW, (*PASSES[:2], LIKELY_HARM) if number % 4 else PASSES)
        for number, name in enumerate(names[::2])
    }
    for name in names[1::2]:
        put_strategy(vast, name, NOW)
    browser = Browser(Api(vast, Settings(feed=FEED), Clock(NOW))).log_in()
    told, medians = [], []
    for first, last in ((0, SHORT), (SHORT, SHORT * TIMES)):
        fill(vast, names, ids, first, last)
        settle(vast)
        (cold, _), *warm = (read(browser) for _ in range(READS))
        times, worked = zip(*warm, strict=True)
        medians.append(median(worked))
        told.append(
            f"{vast.dialect.name}: {STRATEGIES} strategies, {last * STRATEGIES:,} rows a log: "
            f"first {cold * 1e3:.0f} ms, p50 {median(times) * 1e3:.0f} ms, max {max(times) * 1e3:.0f} ms, "
            f"of which {median(worked) * 1e3:.0f} ms its own work"
        )
    with capsys.disabled():
        print("\n" + "\n".join(told))  # noqa: T201

    assert medians[1] < 1.5 * medians[0]


def read(browser: Browser) -> tuple[float, float]:
    """Return the seconds until the page is there, and those that this process works for it."""
    began, began_work = time.perf_counter(), time.process_time()
    page = browser.get().text
    took = time.perf_counter() - began, time.process_time() - began_work
    assert page.count('<th scope="row"') == STRATEGIES
    return took


def fill(engine: Engine, names: list[str], ids: dict[str, UUID], first: int, last: int) -> None:
    """Add rows *first* to *last* of each strategy to each log, all older than what the page shows."""
    for name in names:
        at = [NOW - (number + 100) * HOUR for number in range(first, last)]
        put(engine, ShadowDecisionLog, (decision_row("1.0.0", each, strategy_name=name) for each in at))
        put(engine, AlertOutbox, (alert(name, each) for each in at))
        if name in ids:
            put(engine, GateVerdict, (verdict(ids[name], each) for each in at))


def put(engine: Engine, table: type[SQLModel], rows: Iterator[dict[str, Any]]) -> None:
    with engine.begin() as connection:
        connection.execute(insert(table), list(rows))


def alert(name: str, at: Any) -> dict[str, Any]:
    facts: dict[str, Any] = {"severity": "warning", "kind": "feed.stale", "strategy_name": name, "text": "it was stale"}
    done = {"acknowledged_at": at + HOUR, "acknowledged_by": "ana", "acknowledged_because": "seen"}
    return {"at": at, "facts": {}, "dedupe_key": uuid4().hex, **facts, **done}


def verdict(rollout_id: UUID, at: Any) -> dict[str, Any]:
    facts: dict[str, Any] = {"gate": "errors", "verdict": "pass", "armed": True, "reason": "0 failed", "n": 1}
    return {"id": uuid4(), "rollout_id": rollout_id, "ticked_at": at, "stage_index": 0, **facts}
