"""A worker that fails ends what it was asked for, and nothing that another has answered."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine

from strategy_core.domain.audit import Command
from strategy_core.domain.errors import StrategyFailed
from strategy_core.isolation.client import IsolatedStrategy
from strategy_core.isolation.pool import ReadAnswers, WorkerPool
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services import shadow
from strategy_core.services.alerts import acknowledge, alert_message, deliver
from strategy_core.services.shadow import run_shadow
from strategy_core.services.versions import register_version
from strategy_core.store import alerts, decisions
from strategy_core.store.engine import reading
from strategy_core.store.tables import StrategyVersion
from tests.builders import GOLD, HOUR, MONDAY, OWNER
from tests.services import versions_under_test
from tests.services.outbox import outbox


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


def register(
    engine: Engine, market: SyntheticSource, entry_point: str = "tests.services.versions_under_test:Clockwork"
) -> None:
    register_version(
        engine,
        Command(OWNER, MONDAY),
        market,
        strategy_name="clockwork",
        version="1",
        entry_point=entry_point,
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


def test_that_a_version_whose_code_was_away_runs_again_is_told_once(
    engine: Engine, market: SyntheticSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if an owner has acknowledged that it was refused."""
    monkeypatch.syspath_prepend(str(tmp_path))
    code = tmp_path / "a_strategy_that_goes_away.py"
    code.write_text(Path(versions_under_test.__file__).read_text())
    register(engine, market, f"{code.stem}:Clockwork")

    def run(minute: int) -> str:
        now = MONDAY + 2 * HOUR + timedelta(minutes=minute)
        with WorkerPool() as workers:
            (ran,) = run_shadow(engine, market, workers, now=now)
        deliver(engine, [], now=now)
        return ran.error

    away = code.rename(tmp_path / "away")
    refused = [run(0), run(1)]
    (alert,) = outbox(engine)
    acknowledge(engine, Command(OWNER, MONDAY + 3 * HOUR, "it is being deployed"), [alert.id or 0])
    away.rename(code)
    again = [run(2), run(5)]
    told_before = len(outbox(engine))
    later = [run(11), run(80)]

    assert [each.endswith(f"no module named {code.stem!r}") for each in refused] == [True, True]
    assert again + later == [""] * 4
    assert told_before == 1
    _, over = outbox(engine)
    assert (over.kind, over.severity, over.strategy_name) == ("incident.ended", "info", "clockwork")
    assert over.text == "clockwork 1 refused to run: over after 60 s"
    assert alert_message(over).title == "[info] clockwork 1: over: refused to run"
    assert over.facts["incident"] == "version.refused"


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
