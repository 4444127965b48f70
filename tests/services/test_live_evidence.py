"""What live trades come to in a rollout's gates, and beside the shadow's outcomes."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine

from strategy_core.domain.audit import Command
from strategy_core.domain.errors import InvalidPeriod, UnknownVersion
from strategy_core.domain.gates.base import Finding, Verdict
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan
from strategy_core.domain.ramp import Step
from strategy_core.domain.routing import bucket_of
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services.live_trades import ingest, live_fidelity, live_summary
from strategy_core.services.rollouts import start_rollout
from strategy_core.services.tick import tick
from strategy_core.store.engine import reading
from strategy_core.store.live_trades import read_orders
from tests.builders import DAY, HOUR, MONDAY, OWNER, put_day, put_version

USERS = [f"u{number}" for number in range(400)]
SIGNAL_HOURS = range(0, 20, 4)


@pytest.fixture
def ramped(engine: Engine) -> Engine:
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2")
    start_rollout(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", plan=Plan())
    return engine


def put_shadow_day(engine: Engine, day: datetime = MONDAY) -> None:
    said, worth = {"1": "buy", "2": "buy"}, {"1": 0.4, "2": 0.4}
    put_day(engine, day, said, worth, signal_hours=SIGNAL_HOURS)


def trades(day: datetime = MONDAY, **fields: Any) -> Iterator[dict[str, Any]]:
    """Yield one closed trade of each user for every signal of the day, worth 0.4 R, on the version he is routed to."""
    for hour in SIGNAL_HOURS:
        for user in USERS:
            at = day + (hour + 1) * HOUR + timedelta(seconds=2)
            yield {
                "trade_id": f"{user} {at:%d %H}",
                "user_id": user,
                "strategy_name": "fib_rsi",
                "version": "2" if bucket_of(user) < 500 else "1",
                "symbol": "GOLD",
                "opened_at": at,
                "closed_at": at + HOUR,
                "pnl": 4.0,
                "risk": 10.0,
                "latency_ms": 40.0,
            } | fields


def ruled(engine: Engine, market: SyntheticSource, now: datetime) -> tuple[Step, str, dict[str, Finding]]:
    (ticked,) = tick(engine, market, now=now)
    assert ticked.ruling is not None, ticked.error
    return ticked.ruling.step, ticked.ruling.reason, {finding.gate: finding for finding in ticked.findings}


def test_healthy_orders_pass(ramped: Engine, market: SyntheticSource) -> None:
    put_shadow_day(ramped)
    ingest(ramped, trades(), now=MONDAY + DAY)

    step, _, found = ruled(ramped, market, MONDAY + DAY)

    assert step is Step.HOLD
    assert {found[gate].verdict for gate in ("order_errors", "latency", "sample_ratio", "routing_audit")} == {"pass"}
    assert (found["order_errors"].n, found["sample_ratio"].n) == (5 * 17, 400)


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        ("1", "version 1 has signalled 10 times or more since its newest live order of 2026-03-02 17:00 UTC"),
        ("2", "version 2 has signalled 10 times or more since its newest live order of 2026-03-02 17:00 UTC"),
        (None, ""),
    ],
)
def test_no_gate_passes_on_orders_of_a_version_that_have_stopped(
    ramped: Engine, market: SyntheticSource, version: str | None, reason: str
) -> None:
    days = [MONDAY + number * DAY for number in range(4)]
    for day in days:
        put_shadow_day(ramped, day)
        rows = (row for row in trades(day) if day == MONDAY or row["version"] != version)
        ingest(ramped, rows, now=day + DAY)

    _, _, found = ruled(ramped, market, days[-1] + DAY)

    for gate in ("order_errors", "latency", "sample_ratio", "routing_audit"):
        assert found[gate].verdict is (Verdict.INSUFFICIENT if reason else Verdict.PASS)
        assert found[gate].reason.startswith(reason)


def test_orders_that_come_once_a_day_have_not_stopped(ramped: Engine, market: SyntheticSource) -> None:
    days = [MONDAY + number * DAY for number in range(4)]
    for day in days:
        put_shadow_day(ramped, day)
    for day in days[:-1]:
        ingest(ramped, trades(day), now=days[-1] + DAY)

    _, _, found = ruled(ramped, market, days[-1] + DAY)

    assert found["order_errors"].verdict is Verdict.PASS


def test_orders_that_fail_on_the_canary_alone_roll_it_back(ramped: Engine, market: SyntheticSource) -> None:
    put_shadow_day(ramped)
    rows = [
        row if row["version"] == "1" else row | {"closed_at": None, "pnl": None, "error": "rejected"}
        for row in trades()
    ]
    ingest(ramped, rows, now=MONDAY + DAY)

    step, reason, _ = ruled(ramped, market, MONDAY + DAY)

    assert step is Step.ROLL_BACK
    assert reason.startswith("order_errors: 17 users with errors in 17 canary orders, 0 in 383 of the active version's")


def test_one_misrouted_trade_rolls_it_back(ramped: Engine, market: SyntheticSource) -> None:
    put_shadow_day(ramped)
    wrong = next(row for row in trades() if row["version"] == "1") | {"version": "2"}
    ingest(ramped, [wrong], now=MONDAY + DAY)

    step, reason, _ = ruled(ramped, market, MONDAY + DAY)

    assert step is Step.ROLL_BACK
    assert reason == (
        "routing_audit: 1 live trades of users on a wrong version, such as trade u0 02 01 of user u0 on 2"
    )


def test_trades_of_before_the_rollout_are_none_of_its_own(ramped: Engine, market: SyntheticSource) -> None:
    put_shadow_day(ramped)
    ingest(ramped, trades(MONDAY - DAY, version="2"), now=MONDAY + DAY)

    _, _, found = ruled(ramped, market, MONDAY + DAY)

    assert found["routing_audit"].reason == "no live orders are reported"


@pytest.mark.full
def test_of_too_many_orders_the_newest_whole_days_are_read(ramped: Engine) -> None:
    """Misrouted ones are counted all the same: they are found by an index, not by reading."""
    wrong = next(row for row in trades() if row["version"] == "1") | {"version": "2", "trade_id": "wrong"}
    ingest(ramped, [wrong], now=MONDAY + 5 * DAY)
    for day in range(4):
        ingest(ramped, trades(MONDAY + day * DAY), now=MONDAY + 5 * DAY)

    with reading(ramped) as session:
        found = {
            at_most: read_orders(session, "fib_rsi", "2", "1", since=MONDAY, at_most=at_most)
            for at_most in (10, 4_100, 6_500, 8_001)
        }

    assert {at_most: (len(orders), orders.cut) for at_most, orders in found.items()} == {
        10: (4_000, True),
        4_100: (4_000, True),
        6_500: (6_000, True),
        8_001: (8_001, False),
    }
    assert {orders.misrouted for orders in found.values()} == {1}
    assert {orders.first_day for orders in found.values()} == {int(MONDAY.timestamp()) // 86_400}


def test_users_of_the_canary_who_get_no_signals_hold_the_ramp(ramped: Engine, market: SyntheticSource) -> None:
    put_shadow_day(ramped)
    ingest(ramped, [row for row in trades() if row["version"] == "1"], now=MONDAY + DAY)

    _, _, found = ruled(ramped, market, MONDAY + DAY)

    assert found["sample_ratio"].verdict is Verdict.INSUFFICIENT


def test_live_results_stand_beside_the_shadows(ramped: Engine) -> None:
    put_shadow_day(ramped)
    put_shadow_day(ramped, MONDAY + DAY)
    ingest(ramped, trades(), now=MONDAY + 2 * DAY)
    ingest(ramped, trades(MONDAY + DAY, pnl=-8.0), now=MONDAY + 2 * DAY)

    found = live_summary(ramped, "fib_rsi", "1", MONDAY, MONDAY + 2 * DAY)

    assert found.trades == 2 * 5 * 383
    assert found.live.model_dump() == pytest.approx(
        {
            "trades": 10,
            "win_rate": 0.5,
            "average_pnl": -2.0,
            "expectancy": -0.2,
            "profit_factor": 0.5,
            "max_drawdown": 0.04 / 1.02,
        }
    )
    assert (found.shadow.trades, found.shadow.win_rate, found.shadow.expectancy) == (10, 1.0, 0.4)
    assert found.fidelity is not None
    assert (found.fidelity.n, found.fidelity.concordance) == (10, 0.0)


def test_fidelity_is_of_slots_that_both_know(ramped: Engine) -> None:
    put_shadow_day(ramped)
    ingest(ramped, trades(), now=MONDAY + 3 * DAY)
    ingest(ramped, trades(MONDAY + DAY), now=MONDAY + 3 * DAY)

    with reading(ramped) as session:
        found = live_fidelity(session, "fib_rsi", "1", since=MONDAY, until=MONDAY + 3 * DAY)
        none = live_fidelity(session, "fib_rsi", "1", since=MONDAY + DAY, until=MONDAY + 3 * DAY)

    assert found is not None
    assert (found.n, found.concordance) == (5, 1.0)
    assert none is None


def test_without_live_trades_the_summary_is_of_the_shadow_alone(ramped: Engine) -> None:
    put_shadow_day(ramped)

    found = live_summary(ramped, "fib_rsi", "1", MONDAY, MONDAY + DAY)

    assert (found.trades, found.live.win_rate, found.shadow.trades, found.fidelity) == (0, None, 5, None)


def test_a_summary_of_nothing_is_refused(ramped: Engine) -> None:
    with pytest.raises(InvalidPeriod):
        live_summary(ramped, "fib_rsi", "1", MONDAY, MONDAY)
    with pytest.raises(UnknownVersion):
        live_summary(ramped, "fib_rsi", "9", MONDAY, MONDAY + DAY)
