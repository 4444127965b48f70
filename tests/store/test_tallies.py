"""The counts that a scrape reads follow from the rows that were ever written, however often that was tried."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import count
from threading import Barrier
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, func, select, text
from sqlmodel import col

from strategy_core.domain.audit import Command
from strategy_core.domain.plan import Plan
from strategy_core.domain.ramp import Step
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services.rollback import roll_back
from strategy_core.services.rollouts import start_rollout
from strategy_core.services.tick import tick
from strategy_core.services.versions import activate_version
from strategy_core.store import audit, decisions, rollouts
from strategy_core.store.engine import open_database, reading, transaction
from strategy_core.store.tables import Counted, DecisionTally, GateVerdict, ShadowDecisionLog, Tally
from tests.builders import DAY, GOLD, HOUR, MONDAY, OWNER, decision_row, put_decisions, put_version
from tests.effort import examples
from tests.services.ramping import ruled

LOG = ShadowDecisionLog
VERSIONS, SYMBOLS = ("1", "2"), ("GOLD", "SILVER")
KINDS = ("", "", "", "", "raised", "deadline", "breach")
_HOURS = count(step=50)  # each example has candles of its own: the database is the same


@pytest.fixture
def log(engine: Engine) -> Engine:
    for version in VERSIONS:
        put_version(engine, version, symbols=SYMBOLS)
    return engine


def told(engine: Engine) -> dict[tuple[str, str], tuple[Counter[str], int]]:
    """Return the stored counts and the newest candle by version and symbol."""
    with reading(engine) as session:
        rows = session.execute(select(*DecisionTally.__table__.c)).all()  # type: ignore[attr-defined]
    return {
        (row.version, row.symbol): (
            Counter({"buy": row.buy, "sell": row.sell, "hold": row.hold, "error": row.error}),
            row.newest_candle_s,
        )
        for row in rows
    }


def logged(engine: Engine) -> dict[tuple[str, str], tuple[Counter[str], int]]:
    """Return the same, as it follows from the log."""
    found: dict[tuple[str, str], tuple[Counter[str], int]] = {}
    with reading(engine) as session:
        rows = session.execute(select(col(LOG.version), col(LOG.symbol), col(LOG.decision), col(LOG.timestamp)))
        for version, symbol, decision, at in rows:
            counted, newest = found.setdefault((version, symbol), (Counter(buy=0, sell=0, hold=0, error=0), 0))
            counted[decision] += 1
            found[version, symbol] = (counted, max(newest, int(at.timestamp())))
    return found


def tallied(engine: Engine, what: Counted) -> dict[tuple[str, ...], int]:
    with reading(engine) as session:
        rows = session.execute(
            select(col(Tally.name), col(Tally.detail), col(Tally.total)).where(col(Tally.what) == what)
        )
        return {tuple(each for each in (name, detail) if each): total for name, detail, total in rows}


CANDLES = st.tuples(
    st.sampled_from(VERSIONS), st.sampled_from(SYMBOLS), st.integers(0, 11), st.sampled_from(KINDS), st.booleans()
)
RUNS = st.lists(st.lists(CANDLES, min_size=1, max_size=12), min_size=1, max_size=4)


@settings(max_examples=examples(12), suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(runs=RUNS)
def test_counts_follow_from_the_log_however_runs_come(
    log: Engine, runs: Sequence[Sequence[tuple[str, str, int, str, bool]]]
) -> None:
    """Doubled, late, overlapping and at once: a candle is counted when it is logged, and then only."""
    first = next(_HOURS)
    start = Barrier(len(runs))

    def run(said: Sequence[tuple[str, str, int, str, bool]]) -> None:
        rows = [
            decision_row(
                version,
                MONDAY + (first + hour) * HOUR,
                "error" if kind else "buy" if buys else "hold",
                symbol=symbol,
                error_kind=kind,
            )
            for version, symbol, hour, kind, buys in said
        ]
        start.wait()
        for version in VERSIONS:  # one transaction each, as in alternating runs, then all again in one
            put_decisions(log, *(row for row in rows if row["version"] == version))
        with transaction(log) as session:
            for version in VERSIONS:
                decisions.log_decisions(session, [row for row in rows if row["version"] == version])

    with ThreadPoolExecutor(len(runs)) as threads:
        for done in [threads.submit(run, said) for said in runs]:
            done.result()

    assert told(log) == logged(log)
    with reading(log) as session:
        kinds = select(col(LOG.version), col(LOG.error_kind), func.count()).where(col(LOG.decision) == "error")
        rows = session.execute(kinds.group_by(col(LOG.version), col(LOG.error_kind))).all()
    assert tallied(log, Counted.ERROR) == {(version, kind): total for version, kind, total in rows}


@pytest.mark.full
def test_two_runs_of_the_same_candles_never_wait_for_each_other(postgresql_url: str) -> None:
    """One logs candles 0 to 5,999, the other 3,000 to 8,999, by several statements each: neither is undone."""
    engine = open_database(postgresql_url)
    put_version(engine, "1")
    rows = [decision_row("1", MONDAY + minute * timedelta(minutes=1)) for minute in range(9_000)]
    start = Barrier(2)

    def run(mine: Sequence[dict[str, Any]]) -> int:
        start.wait()
        with transaction(engine) as session:
            return decisions.log_decisions(session, mine)

    with ThreadPoolExecutor(2) as threads:
        done = list(threads.map(run, (rows[:6_000], rows[3_000:])))

    assert sum(done) == 9_000
    assert told(engine)["1", GOLD][0]["hold"] == 9_000
    engine.dispose()


def test_a_run_that_is_killed_counts_nothing(log: Engine) -> None:
    with pytest.raises(RuntimeError, match="killed"), transaction(log) as session:  # noqa: PT012
        decisions.log_decisions(session, [decision_row("1", MONDAY)])
        raise RuntimeError("killed")

    assert told(log) == {}


def test_what_a_batch_holds_twice_is_counted_once(log: Engine) -> None:
    put_decisions(
        log, decision_row("1", MONDAY, "buy"), decision_row("1", MONDAY, "sell"), decision_row("1", MONDAY + HOUR)
    )

    assert told(log) == logged(log)
    assert sum(told(log)["1", GOLD][0].values()) == 2


def test_a_late_candle_does_not_put_the_newest_back(log: Engine) -> None:
    put_decisions(log, decision_row("1", MONDAY + 5 * HOUR))
    put_decisions(log, decision_row("1", MONDAY))

    assert told(log)["1", GOLD][1] == (MONDAY + 5 * HOUR).timestamp()


def test_counts_never_fall_when_old_rows_are_deleted(sqlite_url: str) -> None:
    engine = open_database(sqlite_url)
    put_version(engine, "1")
    put_decisions(engine, *(decision_row("1", MONDAY + hour * HOUR, "buy") for hour in range(4)))
    with engine.begin() as connection:
        connection.execute(text("DROP TRIGGER refuse_delete_shadow_decision_log"))
        connection.execute(text("DELETE FROM shadow_decision_log"))
    put_decisions(engine, decision_row("1", MONDAY + 9 * HOUR, "buy"))

    assert told(engine)["1", GOLD][0]["buy"] == 5
    engine.dispose()


def test_verdicts_activations_and_rollbacks_are_counted_with_the_change(engine: Engine) -> None:
    market = SyntheticSource((GOLD,), start=MONDAY - 60 * DAY, days=90)
    for version in ("1", "2", "3"):
        put_version(engine, version)
    activate_version(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="1")
    start_rollout(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", plan=Plan())
    for hour in range(3):
        put_decisions(engine, decision_row("1", MONDAY + hour * HOUR))
        put_decisions(engine, decision_row("2", MONDAY + hour * HOUR, "error", error_kind="raised"))
    assert ruled(tick(engine, market, now=MONDAY + 4 * HOUR))[0] is Step.ROLL_BACK
    tick(engine, market, now=MONDAY + 5 * HOUR)
    start_rollout(engine, Command(OWNER, MONDAY + 5 * HOUR), strategy_name="fib_rsi", version="3", plan=Plan())
    tick(engine, market, now=MONDAY + 6 * HOUR)
    tick(engine, market, now=MONDAY + 34 * HOUR)
    assert ruled(tick(engine, market, now=MONDAY + 60 * HOUR))[0] is Step.ROLL_BACK
    activate_version(
        engine, Command(OWNER, MONDAY + 61 * HOUR, override_reason="x"), strategy_name="fib_rsi", version="3"
    )
    roll_back(engine, Command(OWNER, MONDAY + 62 * HOUR, "no"), strategy_name="fib_rsi", version="3")

    assert tallied(engine, Counted.ROLLBACK) == {("errors",): 1, ("blind",): 1, ("owner",): 1}
    assert tallied(engine, Counted.ACTIVATION) == {("1",): 2, ("3",): 1}
    with reading(engine) as session:
        rows = session.execute(
            select(col(GateVerdict.gate), col(GateVerdict.verdict), func.count()).group_by(
                col(GateVerdict.gate), col(GateVerdict.verdict)
            )
        )
        said = {(gate, verdict): total for gate, verdict, total in rows}
        assert rollouts.open_rollouts(session) == []
        assert sum(event.action == "roll_back" for event in audit.events(session)) == 3
    assert tallied(engine, Counted.VERDICT) == said
