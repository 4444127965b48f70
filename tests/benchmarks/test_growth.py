"""How the cost of a candle run, a tick, a comparison and a scrape grows with the log of decisions.

`ROLLOUT_BENCHMARK_DECISIONS` says how long the longest log is; `ROLLOUT_BENCHMARK_IMAGES` names a folder for pictures.
"""

import math
import os
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from statistics import median
from uuid import UUID
from xml.etree import ElementTree as ET

import pytest
from sqlalchemy import Engine, text

from strategy_core.domain.audit import Command
from strategy_core.domain.plan import Plan
from strategy_core.domain.ramp import Step
from strategy_core.isolation.pool import WorkerPool
from strategy_core.market.synthetic import INSTRUMENTS, SyntheticSource
from strategy_core.observe.metrics import exposition
from strategy_core.report.charts import BLUE, GREEN, GRID, INK, ORANGE, RED, SOFT, canvas, draw_line, draw_text, render
from strategy_core.services.compare import compare_versions, period
from strategy_core.services.rollouts import start_rollout
from strategy_core.services.shadow import run_shadow
from strategy_core.services.tick import tick_rollout
from strategy_core.services.versions import activate_version, register_version
from strategy_core.store.engine import upgrade
from tests.benchmarks.filling import Names, count_again, settle
from tests.builders import DAY, HOUR, MONDAY, OWNER

pytestmark = pytest.mark.benchmark_suite

MOST = int(os.environ.get("ROLLOUT_BENCHMARK_DECISIONS", "10000000"))
IMAGES = os.environ.get("ROLLOUT_BENCHMARK_IMAGES")
LENGTHS = [MOST // 100, MOST // 10, MOST]
SYMBOLS = tuple(INSTRUMENTS)[:10]
VERSIONS, STRATEGIES = ("1", "2"), ("s0", "s1", "s2", "s3")  # the first ramps for a week, the others as long as a log
PAIRS = len(SYMBOLS) * len(VERSIONS) * len(STRATEGIES)
END = MONDAY + DAY  # the log grows into the past
TIMES = 5
MINUTE = timedelta(minutes=1)
FLAT = ("a tick", "a scrape")
LONG = "a tick, rollout as long as the log"
COLOURS = (BLUE, GREEN, RED, ORANGE, SOFT, INK)

Work = Callable[[], object]


@pytest.fixture
def grown(vast: Engine) -> Engine:
    upgrade(vast)
    return vast


def test_cost_grows_with_what_is_touched(grown: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is measured beside a log, beside ten times that log, and beside a hundred times."""
    market = SyntheticSource(SYMBOLS, start=END - 120 * DAY, days=150)
    took: dict[str, list[float]] = {}
    with WorkerPool() as workers:
        _register(grown, market)
        week = start_rollout(grown, Command(OWNER, END - 7 * DAY), strategy_name="s0", version="2", plan=Plan()).id
        clock = _Clock()
        for before, length, ramping in zip([0, *LENGTHS], LENGTHS, STRATEGIES[1:], strict=False):
            _fill(grown, before, length)
            began = END - math.ceil(length / PAIRS) * HOUR
            long = start_rollout(grown, Command(OWNER, began), strategy_name=ramping, version="2", plan=Plan()).id
            works: dict[str, Work] = {
                "a candle run": lambda: run_shadow(grown, market, workers, now=clock.next_candle()),
                "a tick": lambda: _tick(grown, market, week, clock.next_minute()),
                LONG: lambda rollout=long: _tick(grown, market, rollout, clock.next_minute()),  # type: ignore[misc]
                "a comparison of 30 days": lambda: _compare(grown, END - 30 * DAY),
                "a comparison of the whole log": lambda since=began: _compare(grown, since),  # type: ignore[misc]
                "a scrape": lambda: exposition(grown, now=END + HOUR),
            }
            for name, work in works.items():
                took.setdefault(name, []).append(_median_ms(work))

    with capsys.disabled():
        print(_table(grown.dialect.name, took))  # noqa: T201
    if IMAGES:
        (Path(IMAGES) / f"growth-{grown.dialect.name}.svg").write_text(_drawn(grown.dialect.name, took))
    for name in FLAT:
        assert took[name][-1] < 10 * took[name][0]  # a scan of a hundred times the rows would show


class _Clock:
    """The time of the next candle run, and of the next tick after it."""

    def __init__(self) -> None:
        self._now = END + HOUR

    def next_candle(self) -> datetime:
        self._now = self._now.replace(minute=0) + HOUR
        return self._now

    def next_minute(self) -> datetime:
        self._now += MINUTE
        return self._now


def _register(engine: Engine, market: SyntheticSource) -> None:
    for strategy_name in STRATEGIES:
        for version in VERSIONS:
            register_version(
                engine,
                Command(OWNER, END - 8 * DAY),
                market,
                strategy_name=strategy_name,
                version=version,
                config={"hours": 6, "buy": version == "1"},
                entry_point="tests.services.versions_under_test:Clockwork",
                symbols=SYMBOLS,
                timeframe="1h",
            )
        activate_version(
            engine, Command(OWNER, END - 8 * DAY, override_reason="measured"), strategy_name=strategy_name, version="1"
        )


def _tick(engine: Engine, market: SyntheticSource, rollout_id: UUID, now: datetime) -> None:
    ruled = tick_rollout(engine, market, rollout_id, now=now)
    assert ruled is not None
    assert ruled[0].step is not Step.ROLL_BACK


def _compare(engine: Engine, since: datetime) -> None:
    found = compare_versions(engine, strategy_name="s0", shadow_version="2", over=period(since, END))
    assert found.candles_compared


def _median_ms(work: Work) -> float:
    work()  # books what there is to book, and warms
    times = []
    for _ in range(TIMES):
        began = time.perf_counter()
        work()
        times.append((time.perf_counter() - began) * 1e3)
    return median(times)


def _fill(engine: Engine, first: int, length: int) -> None:
    """Put the decisions *first* to *length* there, the newest first, and what the signals among them were worth."""
    names = Names(engine)
    number, seconds = "d.n", f"{int((END - MONDAY).total_seconds())} - (d.n / {PAIRS} + 1) * 3600"
    symbol = " ".join(f"WHEN {place} THEN '{name}'" for place, name in enumerate(SYMBOLS))
    series = names.series("d", first, length - 1)
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO shadow_decision_log (id, strategy_name, version, symbol, timestamp, decision, confidence, "
                "features, reason, role, window_hash, duration_ms, error_kind, logged_at) "
                f"SELECT {names.uuid_of(number)}, 's' || (d.n / 20 % 4), CAST(d.n / 10 % 2 + 1 AS text), "
                f"CASE d.n % 10 {symbol} END, {names.at(seconds)}, "
                f"CASE WHEN d.n / {PAIRS} % 24 = 5 THEN 'buy' ELSE 'hold' END, 0.5, '{{}}', '', 'shadow', "
                f"'0123456789abcdef', 0.5, '', {names.at(seconds)} FROM {series}"
            )
        )
        connection.execute(
            text(
                "INSERT INTO outcome (decision_id, strategy_name, version, symbol, timestamp, opened_at, closed_at, "
                "entry_price, exit_price, exit_reason, risk, pnl, return_fraction, r_multiple) "
                f"SELECT {names.uuid_of(number)}, 's' || (d.n / 20 % 4), CAST(d.n / 10 % 2 + 1 AS text), "
                f"CASE d.n % 10 {symbol} END, {names.at(seconds)}, {names.at(seconds + ' + 3600')}, "
                f"{names.at(seconds + ' + 10800')}, 2000, 2010, 'horizon', 10, 10, 0.005, "
                f"CASE WHEN d.n / {PAIRS} / 24 % 3 = 0 THEN -1.0 ELSE 0.6 END "
                f"FROM {series} WHERE d.n / {PAIRS} % 24 = 5"
            )
        )
        connection.execute(
            text(
                "INSERT INTO equity_mark (strategy_name, version, symbol, timestamp, r) "
                "SELECT strategy_name, version, symbol, opened_at, r_multiple FROM outcome "
                f"WHERE timestamp >= {names.at(seconds.replace('d.n', str(length - 1)))} "
                f"AND timestamp <= {names.at(seconds.replace('d.n', str(first)))}"
            )
        )
    count_again(engine)
    settle(engine)


def _table(title: str, took: dict[str, list[float]]) -> str:
    heads = "".join(f"{length:>14,}" for length in LENGTHS)
    rows = [f"  {name:36}" + "".join(f"{each:11.1f} ms" for each in times) for name, times in took.items()]
    return "\n".join((f"\n{title:38}{heads} decisions", *rows))


def _drawn(title: str, took: dict[str, list[float]]) -> str:
    """Return the table as a picture on scales of powers of ten; the grey diagonal is what grows with the log."""
    svg = canvas(880, 460)
    left, right, top, bottom = 70.0, 560.0, 44.0, 400.0
    low = math.floor(math.log10(min(map(min, took.values()))))
    high = math.ceil(math.log10(max(map(max, took.values()))))

    def up(ms: float) -> float:
        return bottom - (math.log10(ms) - low) / (high - low) * (bottom - top)

    places = [left + place / (len(LENGTHS) - 1) * (right - left) for place in range(len(LENGTHS))]
    draw_text(svg, left, 24, f"{title}: milliseconds, by decisions in the log", size=15)
    for power in range(low, high + 1):
        draw_line(svg, left, up(10.0**power), right, up(10.0**power), stroke=GRID)
        draw_text(svg, left - 8, up(10.0**power) + 4, f"{10.0**power:g}", anchor="end")
    for x, length in zip(places, LENGTHS, strict=True):
        draw_text(svg, x, bottom + 22, f"{length:,}", anchor="middle")
    draw_line(svg, left, bottom, right, max(top, bottom - 2 / (high - low) * (bottom - top)), stroke=GRID)
    for place, (name, times) in enumerate(took.items()):
        points = " ".join(f"{x:.1f},{up(ms):.1f}" for x, ms in zip(places, times, strict=True))
        look = {"fill": "none", "stroke": COLOURS[place], "stroke-width": "2"}
        ET.SubElement(svg, "polyline", {"points": points, **look})
        draw_text(svg, right + 20, top + 20 + 24 * place, name, fill=COLOURS[place])
    return render(svg)
