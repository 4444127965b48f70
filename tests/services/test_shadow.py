"""Real versions in real worker processes, on a market with a simulated clock."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sqlalchemy import Connection, Engine
from sqlalchemy.event import listen, remove

from strategy_core.domain.audit import Command
from strategy_core.domain.lifecycle import Status
from strategy_core.isolation.pool import WorkerPool
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services.shadow import ShadowRun, run_shadow
from strategy_core.services.versions import register_version
from strategy_core.store import alerts, decisions
from strategy_core.store.engine import reading, transaction
from strategy_core.store.tables import ShadowDecisionLog, StrategyVersion, decision_id
from tests.builders import DAY, GOLD, HOUR, MONDAY, OWNER, decision_row, put_version

CODE = "tests.services.versions_under_test"


@pytest.fixture
def workers() -> Iterator[WorkerPool]:
    with WorkerPool(deadline_s=0.5) as workers:
        yield workers


def register(
    engine: Engine, market: SyntheticSource, version: str, code: str = "Clockwork", **changes: Any
) -> StrategyVersion:
    facts: dict[str, Any] = {
        "strategy_name": "clockwork",
        "config": {},
        "entry_point": f"{CODE}:{code}",
        "symbols": [GOLD],
        "timeframe": "1h",
    }
    command = Command(OWNER, changes.pop("now", MONDAY), changes.pop("reason", ""))
    return register_version(engine, command, market, version=version, **facts | changes)


def failing(engine: Engine, market: SyntheticSource, how: str) -> StrategyVersion:
    return register(engine, market, how, "Failing", config={"how": how, "after": (MONDAY + 2 * HOUR).isoformat()})


def log(engine: Engine, version: str, symbol: str = GOLD) -> list[ShadowDecisionLog]:
    with reading(engine) as session:
        return list(decisions.find_decisions(session, "clockwork", version, symbol))


def said(rows: list[ShadowDecisionLog]) -> list[tuple[datetime, str, float, str]]:
    return [(row.timestamp, row.decision, row.confidence, row.window_hash) for row in rows]


def test_every_candle_is_decided_once_by_every_version_that_is_not_retired(
    engine: Engine, market: SyntheticSource, workers: WorkerPool
) -> None:
    register(engine, market, "1", status=Status.ACTIVE)
    register(engine, market, "2", config={"hours": 4}, symbols=[GOLD, "SILVER"])
    put_version(engine, "0", Status.RETIRED, strategy_name="clockwork")

    first = run_shadow(engine, market, workers, now=MONDAY + 12 * HOUR)
    again = run_shadow(engine, market, workers, now=MONDAY + 12 * HOUR)

    assert [(run.version, run.role, run.logged, run.signals, run.errors) for run in first] == [
        ("1", "active", 12, 2, 0),
        ("2", "shadow", 24, 6, 0),
    ]
    assert [run.logged for run in again] == [0, 0]
    rows = log(engine, "1")
    assert [row.timestamp for row in rows] == [MONDAY + hour * HOUR for hour in range(12)]
    assert [row.timestamp.hour for row in rows if row.decision == "buy"] == [5, 11]  # stamped by their open time
    assert rows[5].features["close"] == market.candles(GOLD, closed_by=MONDAY + 6 * HOUR, bars=1)["close"].iloc[-1]


@pytest.mark.full
def test_late_and_early_runs_leave_the_same_log(engine: Engine, market: SyntheticSource, workers: WorkerPool) -> None:
    """Hour by hour, or two days at once: a decision sees the same window, so it says the same."""
    register(engine, market, "hourly")
    for hour in range(1, 31):
        run_shadow(engine, market, workers, now=MONDAY + hour * HOUR)
    register(engine, market, "once", config={"hours": 6, "buy": True}, strategy_name="twin")
    run_shadow(engine, market, workers, now=MONDAY + 30 * HOUR)

    with reading(engine) as session:
        late = decisions.find_decisions(session, "twin", "once", GOLD)
    assert said(log(engine, "hourly")) == said(list(late))
    assert len(late) == 29  # of 30 hours, one is the market's daily break


def test_two_runs_at_once_leave_one_row_a_candle(engine: Engine, market: SyntheticSource) -> None:
    register(engine, market, "1")

    def run(_: int) -> int:
        with WorkerPool() as own:
            return run_shadow(engine, market, own, now=MONDAY + 20 * HOUR)[0].logged

    with ThreadPoolExecutor(2) as threads:
        logged = list(threads.map(run, range(2)))

    assert sum(logged) == len(log(engine, "1")) == 20


@pytest.mark.parametrize(
    ("how", "kind", "error"),
    [
        ("raise", "raised", "ZeroDivisionError"),
        pytest.param("sleep", "deadline", "no answer within 0.5 s", marks=pytest.mark.full),
        pytest.param("write", "breach", "stolen.txt", marks=pytest.mark.full),
        pytest.param("confidence", "invalid", "confidence 2.0 is not within 0..1", marks=pytest.mark.full),
    ],
)
def test_a_version_that_fails_gets_error_rows_and_touches_no_other(
    engine: Engine, market: SyntheticSource, workers: WorkerPool, how: str, kind: str, error: str
) -> None:
    register(engine, market, "sound", status=Status.ACTIVE)
    failing(engine, market, how)

    run_shadow(engine, market, workers, now=MONDAY + 4 * HOUR)

    rows = log(engine, how)
    assert [row.decision for row in rows] == ["hold", "error", "error", "error"]
    assert {row.error_kind for row in rows[1:]} == {kind}
    assert error in (rows[1].error or "")
    assert [row.decision for row in log(engine, "sound")] == ["hold"] * 4


def test_a_version_whose_build_has_changed_does_not_run_and_alerts_once(
    engine: Engine, market: SyntheticSource, workers: WorkerPool
) -> None:
    version = register(engine, market, "1", strategy_name="genuine")
    parts = dict(version.fingerprint_parts) | {"numpy": "1.0"}
    put_version(
        engine,
        "tampered",
        strategy_name="clockwork",
        entry_point=version.entry_point,
        config=version.config,
        warmup_bars=version.warmup_bars,
        fingerprint="something else",
        fingerprint_parts=parts,
        at=MONDAY,
    )

    for hour in (3, 4):
        runs = run_shadow(engine, market, workers, now=MONDAY + hour * HOUR)

    tampered = next(run for run in runs if run.version == "tampered")
    assert (tampered.logged, "changed: numpy" in tampered.error) == (0, True)
    assert log(engine, "tampered") == []
    with reading(engine) as session:
        (alert,) = alerts.find_alerts(session)
    assert (alert.kind, alert.severity) == ("version.tampered", "critical")


class Revised(SyntheticSource):
    """The same market after its vendor has corrected one candle."""

    corrected = pd.Timestamp(MONDAY + 5 * HOUR)

    def candles(self, symbol: str, **period: Any) -> pd.DataFrame:
        candles = super().candles(symbol, **period)
        candles["close"] += np.where(candles.index == self.corrected, 0.01, 0.0)
        return candles


def test_a_candle_revised_after_the_decision_is_seen_and_the_decision_stays(
    engine: Engine, market: SyntheticSource, workers: WorkerPool
) -> None:
    register(engine, market, "1")
    run_shadow(engine, market, workers, now=MONDAY + 6 * HOUR)
    before = said(log(engine, "1"))

    revised = Revised((GOLD, "SILVER"), start=MONDAY.replace(month=1, day=1), days=300)
    run_shadow(engine, revised, workers, now=MONDAY + 6 * HOUR)

    assert said(log(engine, "1")) == before
    with reading(engine) as session:
        (alert,) = alerts.find_alerts(session)
    assert alert.kind == "candle.revised"
    assert "GOLD 2026-03-02 05:00 UTC" in alert.text


class Gappy(SyntheticSource):
    """The same market with a candle that its vendor has not delivered yet."""

    def candles(self, symbol: str, **period: Any) -> pd.DataFrame:
        candles = super().candles(symbol, **period)
        return candles[candles.index != pd.Timestamp(MONDAY + 5 * HOUR)]


def test_a_candle_delivered_late_is_caught_up(engine: Engine, market: SyntheticSource, workers: WorkerPool) -> None:
    register(engine, market, "1")
    gappy = Gappy((GOLD, "SILVER"), start=MONDAY.replace(month=1, day=1), days=300)
    run_shadow(engine, gappy, workers, now=MONDAY + 8 * HOUR)
    late = run_shadow(engine, market, workers, now=MONDAY + 8 * HOUR)

    assert late[0].logged == 1
    assert [row.timestamp.hour for row in log(engine, "1")] == list(range(8))


def test_a_long_outage_is_caught_up_run_by_run_and_loses_no_candle(
    engine: Engine, market: SyntheticSource, workers: WorkerPool
) -> None:
    register(engine, market, "1")
    logged = [run_shadow(engine, market, workers, now=MONDAY + 3 * DAY, catch_up=30)[0].logged for _ in range(4)]

    candles = market.candles(GOLD, closed_by=MONDAY + 3 * DAY, since=MONDAY)
    assert logged == [30, 30, len(candles) - 60, 0]
    assert [row.timestamp for row in log(engine, "1")] == [at.to_pydatetime() for at in candles.index]


def test_too_little_history_is_a_hold_that_does_not_count(engine: Engine, workers: WorkerPool) -> None:
    young = SyntheticSource((GOLD,), start=MONDAY, days=20)
    put = register(engine, SyntheticSource((GOLD,), start=MONDAY - 90 * DAY, days=120), "1", now=MONDAY)
    assert put.warmup_bars == 20

    run_shadow(engine, young, workers, now=MONDAY + 21 * HOUR)

    reasons = [row.reason for row in log(engine, "1")]
    assert reasons[:19] == ["insufficient_history"] * 19
    assert reasons[19:] == [""] * 2


def test_nothing_is_run_where_nothing_is_registered(
    engine: Engine, market: SyntheticSource, workers: WorkerPool
) -> None:
    assert run_shadow(engine, market, workers, now=MONDAY) == []


def test_the_run_says_the_role_of_that_time(engine: Engine, market: SyntheticSource, workers: WorkerPool) -> None:
    register(engine, market, "1", status=Status.ACTIVE)
    (run,) = run_shadow(engine, market, workers, now=MONDAY + HOUR)

    assert run == ShadowRun("clockwork", "1", "active", logged=1)
    assert log(engine, "1")[0].role == "active"


def test_versions_of_a_strategy_are_logged_in_one_transaction(
    engine: Engine, market: SyntheticSource, workers: WorkerPool
) -> None:
    """A tick between the active version's rows and the canary's would take the canary for silent."""
    register(engine, market, "1", status=Status.ACTIVE)
    register(engine, market, "2", config={"hours": 4})
    seen = []

    def committed(_: Connection) -> None:
        seen.append((len(log(engine, "1")), len(log(engine, "2"))))

    listen(engine, "commit", committed)
    run_shadow(engine, market, workers, now=MONDAY + 5 * HOUR)
    remove(engine, "commit", committed)

    assert set(seen) <= {(0, 0), (5, 5)}
    assert (len(log(engine, "1")), len(log(engine, "2"))) == (5, 5)


def test_a_row_the_database_refuses_keeps_out_no_other_versions(
    engine: Engine, market: SyntheticSource, workers: WorkerPool
) -> None:
    register(engine, market, "1")
    register(engine, market, "2", config={"hours": 4})
    with transaction(engine) as session:  # the id of the row to come is taken by another key
        row = decision_row("1", MONDAY + 2 * HOUR) | {"strategy_name": "clockwork", "symbol": "SILVER"}
        row["id"] = decision_id("clockwork", "1", GOLD, MONDAY)
        decisions.log_decisions(session, [row])

    one, two = run_shadow(engine, market, workers, now=MONDAY + 3 * HOUR)

    assert (one.logged, two.logged) == (2, 3)


def test_a_symbol_that_left_the_feed_stops_no_other_symbol(
    engine: Engine, market: SyntheticSource, workers: WorkerPool
) -> None:
    """Or its version would look silent where it is not."""
    register(engine, market, "1", status=Status.ACTIVE)
    register(engine, market, "2", symbols=[GOLD, "SILVER"])
    gold_only = SyntheticSource((GOLD,), start=MONDAY.replace(month=1, day=1), days=300)

    one, two = run_shadow(engine, gold_only, workers, now=MONDAY + 3 * HOUR)
    run_shadow(engine, gold_only, workers, now=MONDAY + 3 * HOUR)

    assert (one.logged, two.logged) == (3, 3)
    assert "SILVER" in two.error
    with reading(engine) as session:
        assert [alert.kind for alert in alerts.find_alerts(session)] == ["candles.absent"]


def test_strategies_that_run_one_build_are_asked_through_workers_of_their_own(
    engine: Engine, market: SyntheticSource, workers: WorkerPool
) -> None:
    """Both are asked at once: two conversations over one pipe would end the worker, or mix their answers."""
    for strategy in ("clockwork", "watch"):
        register(engine, market, "1", status=Status.ACTIVE, strategy_name=strategy)

    runs = run_shadow(engine, market, workers, now=MONDAY + 12 * HOUR)

    assert [(run.strategy_name, run.logged, run.errors) for run in runs] == [("clockwork", 12, 0), ("watch", 12, 0)]
    assert len({key for key, _ in workers._idle}) == 2
