"""A candle run on two hosts with a link each: one's worker is killed and the other's link cut, in mid-candle."""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import Engine, text

from strategy_core.domain.lifecycle import Status
from strategy_core.isolation.client import IsolatedStrategy
from strategy_core.isolation.pool import build_of
from strategy_core.store.engine import open_database, upgrade
from tests.benchmarks.many_symbols import Walks
from tests.builders import HOUR, MONDAY, put_version
from tests.deployments import hosts
from tests.deployments.hosts import Ended, Site, Worker
from tests.lending import address

pytestmark = [pytest.mark.full, pytest.mark.xdist_group("two hosts")]

SYMBOLS = [f"SYM{number:03d}" for number in range(500)]
VERSIONS = [f"{number}.0.0" for number in range(1, 6)]
FEW = SYMBOLS[:100]  # of the run whose link is cut, so that the test waits for little but the timeouts
BARS = 200
_DECISIONS = "SELECT * FROM shadow_decision_log ORDER BY version, symbol, timestamp"
_COUNTS = "SELECT * FROM decision_tally ORDER BY version, symbol"
_ACTIONS = ("buy", "sell", "hold", "error")
_WAITING = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = 'rollout' AND wait_event_type = 'Lock' AND host(client_addr) = ANY(:hosts)
"""


@dataclass(frozen=True)
class Log:
    """Decisions and their counts, without how long each decision took."""

    decisions: list[dict[str, Any]]
    counts: list[dict[str, Any]]

    def of(self, symbols: Sequence[str]) -> "Log":
        """Return the part of some symbols."""
        decisions, counts = (
            [row for row in rows if row["symbol"] in symbols] for rows in (self.decisions, self.counts)
        )
        return Log(decisions, counts)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Hosts without workers, the candles of 500 symbols, and five versions that have decided on none."""
    folder = tmp_path_factory.mktemp("hosts")
    feed = folder / "feed"
    feed.mkdir()
    source = Walks(SYMBOLS)
    for symbol in SYMBOLS:
        source.candles(symbol, closed_by=MONDAY + HOUR, bars=BARS).to_csv(feed / f"{symbol}.csv")
    settings = {
        "ROLLOUT_FEED": str(feed),
        "ROLLOUT_REPLAY_FROM": (MONDAY + HOUR).isoformat(),
        "ROLLOUT_REPLAY_STARTED_AT": "2199-01-01T00:00Z",  # until then the clock stands still
        "ROLLOUT_SHADOW_WORKERS": "1",  # per host
    }
    with hosts.site(folder, **settings) as found:
        for name, symbols in (("all", SYMBOLS), ("few", FEW)):
            _order(found, f"CREATE DATABASE {name}_symbols")
            engine = open_database(address(found.admin.url.set(database=f"{name}_symbols")))
            upgrade(engine)
            for number, version in enumerate(VERSIONS):
                status = Status.SHADOW if number else Status.ACTIVE
                _put(engine, version, status, symbols, {"rsi_period": 10 + number})
            engine.dispose()
        yield found


def _put(engine: Engine, version: str, status: Status, symbols: Sequence[str], config: dict[str, Any]) -> None:
    with IsolatedStrategy("fib_rsi", config) as strategy:
        described = strategy.describe()
    build = build_of("fib_rsi", described, symbols, "1h")
    put_version(
        engine,
        version,
        status,
        symbols=symbols,
        at=MONDAY,
        entry_point="fib_rsi",
        config=described.config,
        warmup_bars=described.warmup_bars,
        fingerprint=build.digest,
        fingerprint_parts=build.parts,
    )


def _order(site: Site, statement: str) -> None:
    with site.admin.connect() as connection:
        connection.execute(text(statement))


@pytest.fixture(scope="module")
def first(site: Site) -> Iterator[Worker]:
    with site.worker(0) as worker:
        yield worker


@pytest.fixture(scope="module")
def alone(site: Site, first: Worker) -> Log:
    """The log that a run on one host leaves."""
    with candle(site, first) as run:
        ended = run()
        found = logged(site)
    _report("one host", SYMBOLS, ended)
    assert ended.state == "COMPLETED", ended.line
    return found


@pytest.fixture(scope="module")
def second(site: Site, alone: Log) -> Iterator[Worker]:
    with site.worker(1) as worker:
        yield worker


@contextmanager
def candle(site: Site, *workers: Worker, prepared: str = "all_symbols") -> Iterator[Callable[[], Ended]]:
    """Start a run of one candle on *workers* and a new copy of a prepared database."""
    hosts.wait_for(lambda: all(map(site.has_joined, workers)) or None)
    _order(site, f"CREATE DATABASE rollout TEMPLATE {prepared}")
    try:
        with site.run() as run:
            yield run
    finally:
        _order(site, "DROP DATABASE rollout WITH (FORCE)")


def logged(site: Site) -> Log:
    engine = open_database(address(site.admin.url.set(database="rollout")))
    with engine.connect() as connection:
        decisions, counts = (
            [dict(row) for row in connection.execute(text(query)).mappings()] for query in (_DECISIONS, _COUNTS)
        )
    engine.dispose()
    for row in decisions:
        del row["duration_ms"]
    return Log(decisions, counts)


@contextmanager
def all_waiting_to_commit(site: Site, *workers: Worker) -> Iterator[None]:
    """Hold the workers' transactions between the rows of the candle and their counts."""
    engine = open_database(address(site.admin.url.set(database="rollout")))
    try:
        with engine.begin() as connection:
            connection.execute(text("LOCK TABLE decision_tally IN EXCLUSIVE MODE"))
            waiting = {"hosts": [worker.address for worker in workers]}
            with site.admin.connect() as looking:
                hosts.wait_for(lambda: looking.execute(text(_WAITING), waiting).scalar_one() == len(workers) or None)
            yield
    finally:
        engine.dispose()


def _report(name: str, symbols: Sequence[str], ended: Ended) -> None:
    print(f"\n{len(symbols)} x {len(VERSIONS)}, {name}: {ended.seconds:.1f} s")  # noqa: T201


def test_two_hosts_leave_the_log_of_one(site: Site, alone: Log, first: Worker, second: Worker) -> None:
    with candle(site, first, second) as run:
        ended = run()
        found = logged(site)

    _report("two hosts", SYMBOLS, ended)
    assert ended.state == "COMPLETED", ended.line
    assert found == alone
    assert len(found.decisions) == len(SYMBOLS) * len(VERSIONS)
    assert sum(row[action] for row in found.counts for action in _ACTIONS) == len(found.decisions)


def test_a_worker_killed_in_mid_candle_leaves_no_trace(site: Site, alone: Log, first: Worker, second: Worker) -> None:
    with candle(site, first, second) as run:
        with all_waiting_to_commit(site, first, second):
            os.kill(second.pid(), signal.SIGKILL)  # its supervisor starts another one
        ended = run()
        found = logged(site)

    _report("a worker killed", SYMBOLS, ended)
    assert ended.state == "COMPLETED", ended.line
    assert found == alone


def test_a_link_cut_in_mid_candle_leaves_no_trace(site: Site, alone: Log, first: Worker, second: Worker) -> None:
    """The cut host's transaction has written its rows. Until the server ends it, these rows are locked."""
    with candle(site, first, second, prepared="few_symbols") as run:
        with all_waiting_to_commit(site, first, second):
            site.hosts.cut(first.number)
        ended = run()
        found = logged(site)
        left = site.connected()

    _report("a link cut", FEW, ended)
    assert ended.state == "COMPLETED", ended.line
    assert found == alone.of(FEW)
    assert first.address not in left
