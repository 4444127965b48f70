import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from strategy_core.domain.comparison import Comparison
from strategy_core.domain.strategy import Action
from tests import in_memory
from tests.effort import examples
from tests.in_memory import Arm
from tests.in_memory import compare_cells as compare

NAN = math.nan


def arm(actions: list[str | None], r: list[float], marks: list[float] | None = None) -> Arm:
    """Return an arm whose trades risk 10 each."""
    results = np.array(r)
    return Arm(actions, results, results * 10, None if marks is None else np.array(marks))


def hours(count: int) -> pd.DatetimeIndex:
    return pd.date_range("2024-01-01", periods=count, freq="12h", tz="UTC")  # two to a day


@pytest.fixture
def report() -> Comparison:
    """Eight candles over four days: one excluded, one pending."""
    return compare(
        symbols=["GOLD"] * 8,
        opened_at=hours(8),
        shadow=arm(
            ["buy", "sell", "hold", "hold", "buy", "buy", None, "sell"],
            [1.0, -1.0, NAN, NAN, 2.0, NAN, NAN, -0.5],
            [1.0, -1.0, 0.0, 0.0, 2.0, 0.0, 0.0, -0.5],
        ),
        active=arm(
            ["buy", "buy", "hold", "sell", "hold", "buy", "buy", "sell"],
            [1.0, 1.5, NAN, -1.0, NAN, 1.0, 1.0, -0.5],
            [1.0, 1.5, 0.0, -1.0, 0.0, 0.0, 0.0, -0.5],
        ),
        regimes=["low_vol/up"] * 4 + ["high_vol/up"] * 4,
        risk_fraction=0.1,
    )


def test_a_candle_without_two_decisions_is_excluded_and_counted(report: Comparison) -> None:
    assert (report.candles_compared, report.candles_excluded) == (7, 1)


def test_divergence_is_given_of_actionable_and_of_all_candles(report: Comparison) -> None:
    assert (report.shadow_signal_count, report.active_signal_count, report.slots) == (5, 5, 6)
    assert report.divergence_rate == 50
    assert report.divergence_rate_all_candles == pytest.approx(100 * 3 / 7)


def test_the_agreement_table_is_shadow_by_active(report: Comparison) -> None:
    buy, sell, hold = Action.BUY, Action.SELL, Action.HOLD
    assert report.agreement == {
        buy: {buy: 2, sell: 0, hold: 1},
        sell: {buy: 1, sell: 1, hold: 0},
        hold: {buy: 0, sell: 1, hold: 1},
    }


def test_a_slot_counts_when_both_arms_trades_have_closed(report: Comparison) -> None:
    """The active's win on the sixth candle waits for the shadow's trade, else early stops are counted first."""
    assert report.pending_slots == 1
    assert report.shadow.model_dump(exclude={"max_drawdown"}) == {
        "trades": 4,
        "win_rate": 0.5,
        "average_pnl": 3.75,
        "expectancy": 0.375,
        "profit_factor": 2.0,
    }
    assert (report.active.trades, report.active.expectancy) == (4, 0.25)


def test_the_drawdown_is_of_the_marked_account(report: Comparison) -> None:
    assert report.shadow.max_drawdown == pytest.approx(0.1 / 1.1)
    assert report.active.max_drawdown == pytest.approx(0.15 / 1.25)


def test_the_difference_is_paired_and_0_where_a_version_held(report: Comparison) -> None:
    """d: 0 and -2.5 on the first day, 1 on the second, 2 on the third, 0 on the fourth; hence n = 5 on D = 4 days."""
    d_bar = 0.1
    sums = np.array([0 - d_bar - 2.5 - d_bar, 1 - d_bar, 2 - d_bar, 0 - d_bar])
    reach = stats.t.ppf(0.975, 3) * math.sqrt(4 / 3 * np.sum(sums**2)) / 5

    difference = report.difference

    assert (difference.n, difference.days) == (5, 4)
    assert difference.mean == pytest.approx(d_bar)
    assert [difference.low, difference.high] == pytest.approx([d_bar - reach, d_bar + reach])


def test_regimes_split_the_same_report(report: Comparison) -> None:
    low, high = report.by_regime["low_vol/up"], report.by_regime["high_vol/up"]

    assert set(report.by_regime) == {"low_vol/up", "high_vol/up"}
    assert (low.candles_compared, high.candles_compared, high.candles_excluded) == (4, 3, 1)
    assert (low.difference.n, high.difference.n, high.pending_slots) == (3, 2, 1)
    assert low.difference.mean == pytest.approx(-0.5)
    assert low.shadow.max_drawdown is None


def test_a_report_survives_json(report: Comparison) -> None:
    assert Comparison.model_validate_json(report.model_dump_json()) == report


def test_without_candles_nothing_is_claimed() -> None:
    empty = arm([], [], [])

    report = compare(symbols=[], opened_at=hours(0), shadow=empty, active=empty, regimes=[])

    assert report.divergence_rate is None
    assert report.divergence_rate_all_candles is None
    assert report.shadow.max_drawdown is None
    assert report.difference.model_dump() == {"mean": None, "low": None, "high": None, "n": 0, "days": 0}
    assert (report.symbols, report.by_regime) == ((), {})


def test_two_versions_that_hold_differ_in_nothing_that_can_be_rated() -> None:
    held = arm(["hold", "hold"], [NAN, NAN], [0.0, 0.0])

    report = compare(symbols=["GOLD", "GOLD"], opened_at=hours(2), shadow=held, active=held)

    assert report.divergence_rate is None
    assert report.divergence_rate_all_candles == 0
    assert report.shadow.win_rate is None
    assert report.shadow.max_drawdown == 0


def test_without_marks_there_is_no_drawdown() -> None:
    unmarked = arm(["buy"], [1.0])

    report = compare(symbols=["GOLD"], opened_at=hours(1), shadow=unmarked, active=unmarked)

    assert report.shadow.win_rate == 1
    assert report.shadow.max_drawdown is None


def test_symbols_share_one_account() -> None:
    """What one symbol loses while another wins, in the same candle, is no drawdown."""
    moments = hours(2)
    shadow = arm(["hold"] * 4, [NAN] * 4, [1.0, -1.0, -1.0, 1.0])

    report = compare(
        symbols=["GOLD", "GOLD", "OIL", "OIL"],
        opened_at=moments[[0, 1, 0, 1]],
        shadow=shadow,
        active=arm(["hold"] * 4, [NAN] * 4, [-1.0, 0.0, -1.0, 0.0]),
    )

    assert report.symbols == ("GOLD", "OIL")
    assert report.shadow.max_drawdown == 0
    assert report.active.max_drawdown == pytest.approx(0.02)


@st.composite
def histories(draw: st.DrawFn) -> dict[str, Any]:
    count = draw(st.integers(1, 40))
    results = st.one_of(st.floats(-3, 3), st.just(NAN))

    def one() -> Arm:
        actions = draw(st.lists(st.sampled_from(["buy", "sell", "hold", "", None]), min_size=count, max_size=count))
        r = draw(st.lists(results, min_size=count, max_size=count))
        return arm(actions, r, draw(st.lists(st.floats(-3, 3), min_size=count, max_size=count)))

    return {
        "symbols": draw(st.lists(st.sampled_from(["GOLD", "OIL"]), min_size=count, max_size=count)),
        "opened_at": hours(count),
        "shadow": one(),
        "active": one(),
        "regimes": draw(st.lists(st.sampled_from(["low_vol/up", "unknown"]), min_size=count, max_size=count)),
    }


@settings(max_examples=examples(50))
@given(history=histories())
def test_the_difference_is_what_the_arms_made_apart(history: dict[str, Any]) -> None:
    """n × mean difference = R of the shadow's trades - R of the active's: none is counted in one arm alone."""
    report = compare(**history)

    apart = sum(sign * one.trades * (one.expectancy or 0) for sign, one in ((1, report.shadow), (-1, report.active)))
    assert report.difference.n * (report.difference.mean or 0) == pytest.approx(apart, abs=1e-9)


@settings(max_examples=examples(50))
@given(history=histories())
def test_counts_add_up_whole_and_by_regime(history: dict[str, Any]) -> None:
    report = compare(**history)

    cells = {(one, other): count for one, row in report.agreement.items() for other, count in row.items()}
    assert sum(cells.values()) == report.candles_compared
    assert report.candles_compared + report.candles_excluded == len(history["symbols"])
    assert sum(n for (one, _), n in cells.items() if one is not Action.HOLD) == report.shadow_signal_count
    assert sum(n for (_, other), n in cells.items() if other is not Action.HOLD) == report.active_signal_count
    assert report.slots == report.candles_compared - cells[Action.HOLD, Action.HOLD]
    assert report.slots == report.difference.n + report.pending_slots
    if report.slots:
        differing = sum(n for (one, other), n in cells.items() if one is not other)
        assert report.divergence_rate == pytest.approx(100 * differing / report.slots)
    for name in ("candles_compared", "candles_excluded", "slots", "pending_slots", "shadow_signal_count"):
        assert sum(getattr(part, name) for part in report.by_regime.values()) == getattr(report, name)


@settings(max_examples=examples(30))
@given(history=histories())
def test_swapping_the_arms_turns_the_report_round(history: dict[str, Any]) -> None:
    report = compare(**history)

    swapped = compare(**{**history, "shadow": history["active"], "active": history["shadow"]})

    assert (swapped.shadow, swapped.active) == (report.active, report.shadow)
    assert swapped.divergence_rate == report.divergence_rate
    assert all(swapped.agreement[a][b] == report.agreement[b][a] for a in Action for b in Action)
    if report.difference.low is not None:
        assert swapped.difference.high == pytest.approx(-report.difference.low, abs=1e-12)


@settings(max_examples=examples(30))
@given(history=histories(), shuffle=st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(history: dict[str, Any], shuffle: Any) -> None:
    order = list(range(len(history["symbols"])))
    shuffle.shuffle(order)

    def reordered(one: Arm) -> Arm:
        assert one.marks is not None
        actions = [np.asarray(one.actions, dtype=object)[at] for at in order]
        return Arm(actions, one.r_multiple[order], one.pnl[order], one.marks[order])

    again = compare(
        symbols=[history["symbols"][at] for at in order],
        opened_at=history["opened_at"][order],
        shadow=reordered(history["shadow"]),
        active=reordered(history["active"]),
    )

    report = compare(**{**history, "regimes": None})
    assert again.agreement == report.agreement
    assert again.shadow.max_drawdown == pytest.approx(report.shadow.max_drawdown, abs=1e-12)
    assert again.difference.mean == pytest.approx(report.difference.mean, abs=1e-12)
    assert again.difference.low == pytest.approx(report.difference.low, abs=1e-9)


@settings(max_examples=examples(50))
@given(history=histories())
def test_what_cells_add_up_to_is_what_rows_say(history: dict[str, Any]) -> None:
    found, meant = compare(**history), in_memory.compare(**history)

    flat = [pd.json_normalize(each.model_dump()).iloc[0].dropna().to_dict() for each in (found, meant)]
    assert flat[0] == pytest.approx(flat[1], abs=1e-9)
