"""A worker that fails ends what it was asked for, and nothing that another has answered."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from sqlalchemy import Engine

from strategy_core.domain.audit import Command
from strategy_core.domain.errors import StrategyFailed
from strategy_core.isolation.client import IsolatedStrategy
from strategy_core.isolation.pool import ReadAnswers, WorkerPool
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services import shadow
from strategy_core.services.shadow import run_shadow
from strategy_core.services.versions import register_version
from strategy_core.store import alerts, decisions
from strategy_core.store.engine import reading
from strategy_core.store.tables import StrategyVersion
from tests.builders import GOLD, HOUR, MONDAY, OWNER


class OneOnly(WorkerPool):
    """A machine with room for one worker of a version in a run."""

    lendings = 0

    @contextmanager
    def borrow(self, version: StrategyVersion, read_answers: ReadAnswers) -> Iterator[IsolatedStrategy]:
        self.lendings += 1
        if self.lendings > 1:
            raise StrategyFailed("out of memory")
        with super().borrow(version, read_answers) as worker:
            yield worker


def register(engine: Engine, market: SyntheticSource) -> None:
    register_version(
        engine,
        Command(OWNER, MONDAY),
        market,
        strategy_name="clockwork",
        version="1",
        entry_point="tests.services.versions_under_test:Clockwork",
        config={},
        symbols=[GOLD, "SILVER"],
        timeframe="1h",
    )


def test_a_worker_that_cannot_be_started_takes_nothing_from_what_another_has_answered(
    engine: Engine, market: SyntheticSource
) -> None:
    register(engine, market)
    with WorkerPool() as workers:
        run_shadow(engine, market, workers, now=MONDAY + 2 * HOUR, symbols=["SILVER"])

    for hour, logged in ((3, 3), (4, 1)):
        with OneOnly(at_once=1) as few:  # one symbol has one candle, the other more: two lendings
            (run,) = run_shadow(engine, market, few, now=MONDAY + hour * HOUR)
            assert (run.logged, run.error) == (logged, "out of memory")
    with WorkerPool() as workers:
        (rest,) = run_shadow(engine, market, workers, now=MONDAY + 4 * HOUR)

    assert (rest.logged, rest.error) == (2, "")
    with reading(engine) as session:
        assert len(decisions.find_decisions(session, "clockwork", "1")) == 8
        assert [alert.kind for alert in alerts.find_alerts(session)] == ["version.refused"]


def test_an_outage_of_many_symbols_is_caught_up_in_runs_that_memory_holds(
    engine: Engine, market: SyntheticSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(engine, market)
    monkeypatch.setattr(shadow, "DECISIONS_A_RUN", 7)

    with WorkerPool() as workers:
        logged = [run_shadow(engine, market, workers, now=MONDAY + 8 * HOUR)[0].logged for _ in range(4)]

    assert logged == [6, 6, 4, 0]


def test_a_call_that_fails_ends_the_others_after_what_they_are_at() -> None:
    """Or an interrupt would wait for a catch-up of a thousand candles."""
    failed, calls = threading.Event(), []

    def ask(key: str, items: Sequence[int]) -> None:
        calls.append((key, len(items)))
        if key == "fails":
            raise ZeroDivisionError
        failed.wait(5.0)

    with WorkerPool(at_once=2) as workers:
        with pytest.raises(ZeroDivisionError):
            workers.share_out([{"fails": range(8), "works": range(7)}], ask)
        failed.set()

    assert calls in ([("fails", 4)], [("fails", 4), ("works", 4)], [("works", 4), ("fails", 4)])
