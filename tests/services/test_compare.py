from datetime import timedelta

import pytest
from sqlalchemy import Engine

from strategy_core.domain.errors import InvalidPeriod, NoActiveVersion, UnknownVersion
from strategy_core.domain.lifecycle import Status
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services.compare import compare_all, compare_versions, last_days, period
from strategy_core.store import outcomes
from strategy_core.store.engine import reading
from tests.builders import DAY, HOUR, MONDAY, decision_row, put_day, put_decisions, put_version

NOW = MONDAY + 5 * DAY


@pytest.fixture
def pair(engine: Engine) -> Engine:
    """Five days: version 1 buys thrice a day for 0.5 R; version 2 sells on two of these hours for 1.0 R."""
    put_version(engine, "1", Status.ACTIVE, symbols=("GOLD", "SILVER"))
    put_version(engine, "2", symbols=("GOLD", "SILVER"))
    for day in range(5):
        at = MONDAY + day * DAY
        put_day(engine, at, {"1": "buy"}, {"1": 0.5}, signal_hours=[2, 8, 14])
        put_day(engine, at, {"2": "sell"}, {"2": 1.0}, signal_hours=[2, 8])
    return engine


def test_a_comparison_counts_what_both_decided(pair: Engine) -> None:
    put_decisions(pair, decision_row("2", NOW, "error", error_kind="raised"), decision_row("1", NOW, "buy"))
    put_decisions(pair, decision_row("2", NOW + HOUR, reason="insufficient_history"), decision_row("1", NOW + HOUR))
    found = compare_versions(
        pair, strategy_name="fib_rsi", shadow_version="2", over=period(MONDAY, NOW + DAY), symbol="GOLD"
    )

    assert (found.candles_compared, found.candles_excluded) == (120, 2)
    assert (found.shadow_signal_count, found.active_signal_count) == (10, 15)
    assert found.divergence_rate == 100.0
    assert found.divergence_rate_all_candles == pytest.approx(12.5)
    assert found.agreement["sell"]["buy"] == 10  # type: ignore[index]
    assert (found.shadow.win_rate, found.active.expectancy) == (1.0, 0.5)
    assert found.difference.mean == pytest.approx((10 * 0.5 - 5 * 0.5) / 15)
    assert found.by_regime == {}


def test_filters_narrow_it_to_a_period_and_a_symbol(pair: Engine) -> None:
    over = period(MONDAY + DAY, MONDAY + 2 * DAY)

    gold = compare_versions(pair, strategy_name="fib_rsi", shadow_version="2", over=over)
    silver = compare_versions(pair, strategy_name="fib_rsi", shadow_version="2", over=over, symbol="SILVER")

    assert (gold.candles_compared, gold.slots) == (24, 3)
    assert (silver.candles_compared, silver.divergence_rate) == (0, None)


def test_with_candles_it_tells_regimes_apart(pair: Engine, market: SyntheticSource) -> None:
    found = compare_versions(
        pair, strategy_name="fib_rsi", shadow_version="2", over=last_days(5, NOW), symbol="GOLD", source=market
    )

    assert sum(one.slots for one in found.by_regime.values()) == found.slots == 15
    assert set(found.by_regime) - {"unknown"}


def test_it_must_know_both_versions(engine: Engine) -> None:
    put_version(engine, "2")
    with pytest.raises(NoActiveVersion):
        compare_versions(engine, strategy_name="fib_rsi", shadow_version="2", over=last_days(5, NOW))
    with pytest.raises(UnknownVersion):
        compare_versions(
            engine, strategy_name="fib_rsi", shadow_version="2", over=last_days(5, NOW), active_version="9"
        )


def test_a_period_must_have_a_length() -> None:
    with pytest.raises(InvalidPeriod, match="start before end"):
        period(NOW, NOW)


def test_every_night_each_challenger_is_compared_and_stored_once(pair: Engine, market: SyntheticSource) -> None:
    put_version(pair, "3", symbols=("GOLD",))
    put_version(pair, "0", Status.RETIRED)
    put_version(pair, "1", strategy_name="lonely")

    reports = compare_all(pair, market, now=NOW, days=5)
    compare_all(pair, market, now=NOW, days=5)
    compare_all(pair, market, now=NOW + timedelta(days=1), days=5)

    assert [(report.shadow_version, report.active_version) for report in reports] == [("2", "1"), ("3", "1")]
    with reading(pair) as session:
        stored = outcomes.find_reports(session, "fib_rsi")
    assert len(stored) == 4
    assert stored[0].created_at == NOW + DAY
    assert reports[0].report["shadow_signal_count"] == 10
