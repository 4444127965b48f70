"""Exits are announced in order and once: as the manager decides, by the scoring rule, or because an owner flattens."""

import re
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import pytest
from sqlalchemy import Engine, event

from strategy_core.domain.alerts import ORPHANED, POSITIONS_OVERDUE
from strategy_core.domain.audit import Command
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.live_trades import TradeReport
from strategy_core.domain.plan import Plan
from strategy_core.isolation.pool import WorkerPool
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services.alerts import read_alerts
from strategy_core.services.drain import drain
from strategy_core.services.live_trades import ingest
from strategy_core.services.positions import flatten, hand_over, held_positions, list_draining, list_exits
from strategy_core.services.queries import get_version
from strategy_core.services.rollback import roll_back
from strategy_core.services.rollouts import start_rollout
from strategy_core.services.score import score_outcomes
from strategy_core.services.shadow import run_shadow
from strategy_core.services.versions import activate_version, retire_version
from strategy_core.store import decisions, outcomes, positions
from strategy_core.store.engine import reading, transaction
from strategy_core.store.metrics import read_positions
from tests.builders import DAY, HOUR, MONDAY, OWNER, decision_row, outcome_row, put_decisions, put_outcomes, put_version
from tests.faults.killing import boundaries
from tests.services.test_positions import NAME, closed, opened
from tests.services.test_shadow import register

NOW = MONDAY + 12 * HOUR
BY = Command(OWNER, NOW, "it is time")


def put_history(engine: Engine, hours: int = 12, **said: dict[int, str]) -> None:
    """Log hours of decisions of versions 1 and 2: hold, except where *said* (by v1, v2) has another or `close`."""
    put_version(engine, "1", Status.ACTIVE, recorded=True)
    put_version(engine, "2", recorded=True)
    for version in ("1", "2"):
        words = said.get(f"v{version}", {})
        rows = []
        for hour in range(hours):
            word = words.get(hour, "hold")
            action, intent = ("hold", "close") if word == "close" else (word, "open")
            rows.append(decision_row(version, MONDAY + hour * HOUR, action, intent=intent))
        put_decisions(engine, *rows)


def exits(engine: Engine) -> list[tuple[str, str | None, str, datetime | None]]:
    return [(each.trade_id, each.manager, each.why, each.candle) for each in list_exits(engine, None)]


def test_a_close_of_the_manager_is_told_once(engine: Engine, market: SyntheticSource) -> None:
    put_history(engine, v1={0: "buy", 5: "close", 6: "close"})
    ingest(engine, [opened("t1"), opened("t2", "2")], now=NOW)

    announced = [drain(engine, market, now=NOW + minute * timedelta(minutes=1)).announced for minute in range(3)]

    assert announced == [1, 0, 0]
    assert exits(engine) == [("t1", "1", "close", MONDAY + 5 * HOUR)]


def test_a_close_before_the_entry_does_not_count(engine: Engine, market: SyntheticSource) -> None:
    put_history(engine, v1={0: "close"})
    ingest(engine, [opened(opened_at=MONDAY + HOUR)], now=NOW)

    drain(engine, market, now=NOW)

    assert exits(engine) == []


@pytest.mark.parametrize("reason", ["stop", "target", "horizon"])
def test_an_exit_of_the_scoring_rule_is_told(engine: Engine, market: SyntheticSource, reason: str) -> None:
    put_history(engine, v1={0: "buy", 8: "close"})
    put_outcomes(engine, outcome_row("1", MONDAY, 1.0, candles=4) | {"exit_reason": reason})
    ingest(engine, [opened()], now=NOW)

    drain(engine, market, now=NOW)

    assert exits(engine) == [("t1", "1", reason, MONDAY + 3 * HOUR)]


def test_a_position_without_a_signal_is_left_at_the_horizon(engine: Engine, market: SyntheticSource) -> None:
    put_history(engine, hours=26)
    ingest(engine, [opened(opened_at=MONDAY + HOUR)], now=MONDAY + 2 * DAY)

    drain(engine, market, now=MONDAY + 2 * DAY)

    assert exits(engine) == [("t1", "1", "horizon", MONDAY + 24 * HOUR)]


def test_exits_are_told_in_the_order_of_their_candles(engine: Engine, market: SyntheticSource) -> None:
    put_history(engine, v1={5: "close"}, v2={3: "close"})
    ingest(engine, [opened("t1"), opened("t2", "2"), opened("t0")], now=NOW)

    drain(engine, market, now=NOW)

    assert [trade for trade, *_ in exits(engine)] == ["t2", "t0", "t1"]
    assert [each.trade_id for each in list_exits(engine, None, since=1)] == ["t0", "t1"]
    assert list_exits(engine, ["another"]) == []


def test_a_rollback_leaves_positions_with_their_version(engine: Engine, market: SyntheticSource) -> None:
    put_history(engine, v2={8: "close"})
    start_rollout(engine, Command(OWNER, MONDAY), strategy_name=NAME, version="2", plan=Plan())
    ingest(engine, [opened("t1", "2"), opened("t2", "2"), opened("t3", "2")], now=NOW)
    ingest(engine, [closed("t3", "2")], now=NOW)

    roll_back(engine, Command(OWNER, MONDAY + 2 * HOUR, "users lose money"), strategy_name=NAME)
    found = drain(engine, market, now=NOW)

    assert (found.announced, found.draining) == (2, {(NAME, "2"): 2})
    assert [each[1:3] for each in exits(engine)] == [("2", "close")] * 2
    assert [str(each) for each in list_draining(engine, NAME, now=NOW)] == ["2 draining 3 → 2"]
    ingest(engine, [closed("t1", "2"), closed("t2", "2")], now=NOW)
    assert [str(each) for each in list_draining(engine, NAME, now=NOW)] == ["2 draining 3 → 0"]


def test_a_plan_may_flatten_after_a_rollback(engine: Engine, market: SyntheticSource) -> None:
    put_history(engine)
    plan = Plan(on_rollback="flatten")
    start_rollout(engine, Command(OWNER, MONDAY), strategy_name=NAME, version="2", plan=plan)
    ingest(engine, [opened("t1", "2"), opened("t2")], now=NOW)
    roll_back(engine, Command(OWNER, MONDAY + 2 * HOUR, "users lose money"), strategy_name=NAME)

    assert [drain(engine, market, now=NOW).flattened for _ in range(2)] == [1, 0]
    assert exits(engine) == [("t1", "2", "flatten", None)]


def test_an_owner_flattens_now_or_later(engine: Engine, market: SyntheticSource) -> None:
    put_history(engine)
    ingest(engine, [opened("t1"), opened("t2", "2")], now=NOW)

    assert flatten(engine, BY, strategy_name=NAME, version="1", after=3 * HOUR) == 1
    assert flatten(engine, BY, strategy_name=NAME, version="2") == 1

    drain(engine, market, now=NOW)
    assert [each[0] for each in exits(engine)] == ["t2"]
    drain(engine, market, now=NOW + 3 * HOUR)
    assert [each[0] for each in exits(engine)] == ["t2", "t1"]


def test_a_flatten_is_told_even_if_an_exit_was(engine: Engine, market: SyntheticSource) -> None:
    """The platform may have missed the first one. It is told once more, and the position counts once."""
    put_history(engine, v1={3: "close"})
    ingest(engine, [opened()], now=MONDAY + 5 * HOUR)
    drain(engine, market, now=MONDAY + 5 * HOUR)

    assert flatten(engine, BY, strategy_name=NAME, version="1") == 1
    done = [drain(engine, market, now=NOW + hours * HOUR) for hours in (0, 1, 12)]

    assert [each.announced for each in done] == [1, 0, 0]
    assert [why for _, _, why, _ in exits(engine)] == ["close", "flatten"]
    assert done[-1].overdue[0].startswith("1 positions of fib_rsi are open")
    with reading(engine) as session:
        assert [tuple(row) for row in read_positions(session, None)] == [("fib_rsi", "1", 1, 1)]


def test_only_later_decisions_of_a_new_manager_count(engine: Engine, market: SyntheticSource) -> None:
    put_history(engine, hours=16, v2={5: "close", 14: "close"})
    ingest(engine, [opened()], now=NOW)
    hand_over(engine, BY, strategy_name=NAME, version="1", to_version="2")

    drain(engine, market, now=NOW)
    assert exits(engine) == [("t1", "2", "close", MONDAY + 14 * HOUR)]


def test_positions_whose_manager_does_not_decide_are_alerted_on(engine: Engine, market: SyntheticSource) -> None:
    put_history(engine)
    ingest(engine, [opened(), opened("t2")], now=NOW)

    assert drain(engine, market, now=NOW).orphaned == []
    (line,) = drain(engine, market, now=NOW + 4 * HOUR).orphaned

    assert line.startswith("2 open positions of fib_rsi have no manager that decides: 1 has not decided on GOLD")
    assert [each.alert.kind for each in read_alerts(engine)] == [ORPHANED]


def test_positions_that_are_not_closed_when_told_are_alerted_on(engine: Engine, market: SyntheticSource) -> None:
    put_history(engine, hours=20, v1={5: "close"})
    ingest(engine, [opened()], now=NOW)
    drain(engine, market, now=NOW)

    (line,) = drain(engine, market, now=NOW + 4 * HOUR).overdue

    assert line.startswith("1 positions of fib_rsi are open 3 candles after their exit was announced")
    assert POSITIONS_OVERDUE in [each.alert.kind for each in read_alerts(engine)]


def test_a_versions_own_close_ends_its_simulated_trades_and_its_positions(
    engine: Engine, market: SyntheticSource
) -> None:
    """From its code in a worker, through the log and the scoring, to the feed of exits."""
    for version, code in (("1", "Clockwork"), ("2", "Leaving")):
        register(engine, market, version, code, status=Status.ACTIVE if version == "1" else Status.SHADOW)
    with WorkerPool(deadline_s=0.5) as workers:
        run_shadow(engine, market, workers, now=NOW)
    score_outcomes(engine, market, now=NOW)
    entry = opened(strategy_name="clockwork", opened_at=MONDAY + 6 * HOUR)
    ingest(engine, [{**entry, "version": "1"}, {**entry, "version": "2", "trade_id": "t2"}], now=NOW)

    drain(engine, market, now=NOW)

    with reading(engine) as session:
        closes = [row.timestamp for row in decisions.find_decisions(session, "clockwork", "2") if row.intent == "close"]
        ends = {
            version: [
                (each.exit_reason, each.closed_at) for each in outcomes.find_outcomes(session, "clockwork", version)
            ]
            for version in ("1", "2")
        }
    assert closes == [MONDAY + hour * HOUR for hour in (1, 7)]
    assert ("close", MONDAY + 9 * HOUR) in ends["2"]
    assert not any(reason == "close" for reason, _ in ends["1"])
    assert [(each.trade_id, each.why, each.candle) for each in list_exits(engine, ["clockwork"])][:1] == [
        ("t2", "close", MONDAY + 7 * HOUR)
    ]


def test_drains_at_the_same_time_announce_each_exit_once(engine: Engine, market: SyntheticSource) -> None:
    put_history(engine, v1={5: "close"}, v2={5: "close"})
    ingest(engine, [opened(f"t{number}", "12"[number % 2]) for number in range(40)], now=NOW)

    with ThreadPoolExecutor(4) as threads:
        done = list(threads.map(lambda _: drain(engine, market, now=NOW).announced, range(4)))

    found = list_exits(engine, None)
    assert (sum(done), len(found), len({each.trade_id for each in found})) == (40, 40, 40)


def test_a_strategy_that_fails_does_not_stop_the_others(engine: Engine, market: SyntheticSource) -> None:
    put_history(engine, v1={5: "close"})
    put_version(engine, "1", Status.ACTIVE, strategy_name="broken", timeframe="one hour")
    ingest(engine, [opened("t1")], now=NOW)
    with transaction(engine) as session:
        positions.keep_positions(session, [TradeReport(**opened("t2", strategy_name="broken"))], NOW)

    found = drain(engine, market, now=NOW)

    assert (found.announced, len(found.failed)) == (1, 1)
    assert found.failed[0].startswith("broken: ")


def test_exits_do_not_wait_for_a_flatten_that_fails(engine: Engine, market: SyntheticSource) -> None:
    put_history(engine, v2={8: "close"})
    plan = Plan(on_rollback="flatten")
    start_rollout(engine, Command(OWNER, MONDAY), strategy_name=NAME, version="2", plan=plan)
    ingest(engine, [opened("t1", "2")], now=NOW)
    roll_back(engine, Command(OWNER, MONDAY + 2 * HOUR, "users lose money"), strategy_name=NAME)

    def refuse(_: object, __: object, statement: str, *___: object) -> None:
        if statement.startswith("UPDATE position SET flatten_at"):
            raise TimeoutError("a lock was not given")

    event.listen(engine, "before_cursor_execute", refuse)
    found = drain(engine, market, now=NOW)
    event.remove(engine, "before_cursor_execute", refuse)

    assert [each[1:3] for each in exits(engine)] == [("2", "close")]
    assert (found.announced, found.flattened, len(found.failed)) == (1, 0, 1)
    assert drain(engine, market, now=NOW).flattened == 1


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_rollback_reads_and_locks_nothing_of_positions(engine: Engine, by_hand: bool) -> None:
    put_history(engine)
    if by_hand:
        activate_version(engine, Command(OWNER, MONDAY), strategy_name=NAME, version="2")
    else:
        start_rollout(engine, Command(OWNER, MONDAY), strategy_name=NAME, version="2", plan=Plan(on_rollback="flatten"))
    ingest(engine, [opened("t1", "2"), opened("t2")], now=NOW)

    with boundaries(engine, lambda *_: None) as passed:
        roll_back(engine, BY, strategy_name=NAME, version="2")

    assert len(passed) > 10
    assert not [each for each in passed if re.search(r'\b(FROM|JOIN|UPDATE|INTO|TABLE) "?position', each)]


def test_a_flattened_version_may_be_retired_and_its_exits_are_told(engine: Engine, market: SyntheticSource) -> None:
    put_history(engine)
    ingest(engine, [opened("t1", "2")], now=NOW)
    retire_version(engine, BY, strategy_name=NAME, version="2", orphans_to="flatten")

    found = drain(engine, market, now=NOW)

    assert (found.announced, found.orphaned) == (1, [])
    assert exits(engine) == [("t1", None, "flatten", None)]
    assert get_version(engine, NAME, "2").status == Status.RETIRED
    assert held_positions(engine, NAME).by_manager == {"": 1}
