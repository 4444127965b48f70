"""Risk: the value at risk of shadow equity in R, the scale of positions that follows, and the open risk of a canary."""

import numpy as np
import pytest

from strategy_core.domain.arrays import FloatArray
from strategy_core.domain.risk import (
    Held,
    Risk,
    at_full_size,
    decided_alike,
    load_risk,
    measure_risk,
    open_risk,
    value_at_risk,
)

DAYS = 45.0
HOURS = 24 * 45


def walk(seed: int, deviation: float = 0.1) -> FloatArray:
    """Return the hourly changes of a random walk in R."""
    return np.random.default_rng(seed).normal(0.0, deviation, HOURS)


def steady(r: float, hours: int = 100) -> FloatArray:
    return np.resize([r, -r], hours)


def test_value_at_risk_is_that_of_a_day() -> None:
    """(0.3² + 0.4²) R² in a quarter of a day is 1 R² a day, so 1.645 R."""
    assert value_at_risk(np.array([0.3, -0.4]), days=0.25) == pytest.approx(1.645)


def test_hours_without_a_trade_change_nothing() -> None:
    hours = walk(1)

    assert value_at_risk(np.concatenate([hours, np.zeros(500)]), DAYS) == pytest.approx(value_at_risk(hours, DAYS))


def test_a_version_that_risks_more_gets_the_ratio() -> None:
    found = measure_risk(steady(0.25), steady(0.2), DAYS)

    assert found.scale == 0.8
    assert found.ratio == pytest.approx(1.25)
    assert found.version_var == pytest.approx(1.645 * (100 * 0.0625 / 45) ** 0.5)
    assert found.active_var == pytest.approx(1.645 * (100 * 0.04 / 45) ** 0.5)


@pytest.mark.parametrize(("r", "scale"), [(0.1, 1.0), (0.2, 1.0), (0.4, 0.5), (0.9, 0.5)])
def test_no_scale_is_above_1_or_below_a_half(r: float, scale: float) -> None:
    assert measure_risk(steady(r), steady(0.2), DAYS).scale == scale


@pytest.mark.parametrize("seed", range(20))
def test_identical_walks_get_1_and_twice_the_risk_a_half(seed: int) -> None:
    hours = walk(seed)

    assert measure_risk(hours, hours, DAYS).scale == 1.0
    assert measure_risk(2 * hours, hours, DAYS).scale == 0.5


def test_two_positions_at_once_are_the_root_of_two_and_equal_ones_twice_the_risk() -> None:
    one, other = walk(1), walk(2)

    assert measure_risk(one + other, one, DAYS).ratio == pytest.approx(2**0.5, rel=0.05)
    assert measure_risk(one + one, one, DAYS).ratio == pytest.approx(2.0)


def test_walks_of_equal_risk_are_measured_to_some_percent() -> None:
    ratios = [measure_risk(walk(seed), walk(seed + 1_000), DAYS).ratio for seed in range(400)]

    assert np.std(np.array(ratios, np.float64)) == pytest.approx(HOURS**-0.5, rel=0.1)  # 3 %


def test_a_successor_is_measured_against_what_users_risk_now() -> None:
    """Users of the active version have half the size: a version like it gets half the size too."""
    hours = walk(3)

    assert measure_risk(hours, hours, DAYS, active_scale=0.5).scale == 0.5
    assert measure_risk(0.5 * hours, hours, DAYS, active_scale=0.5).scale == 1.0


@pytest.mark.parametrize(
    ("ours", "theirs", "days", "why"),
    [
        (HOURS, HOURS, 19.4, "19 days in shadow together, 20 are needed"),
        (99, HOURS, DAYS, "the version had a trade open in 99 hours of 45 days, 100 are needed"),
        (HOURS, 99, DAYS, "the active version had a trade open in 99 hours of 45 days, 100 are needed"),
    ],
)
@pytest.mark.parametrize("scale", [1.0, 0.6])
def test_too_little_evidence_claims_no_scale(ours: int, theirs: int, days: float, why: str, scale: float) -> None:
    found = measure_risk(walk(1)[:ours], 0.1 * walk(1)[:theirs], days, active_scale=scale)

    assert (found.scale, found.ratio, found.reason) == (scale, None, why)
    assert found.line("2", "1").startswith(f"the risk of 2 against 1 is unknown: {why}; its users are sent ")


def test_longer_candles_count_as_one_each() -> None:
    found = measure_risk(walk(1)[:45], walk(2)[:45], DAYS, unit="candles")

    assert found.reason == "the version had a trade open in 45 candles of 45 days, 100 are needed"


@pytest.mark.parametrize(("ours", "theirs"), [(0.0, 0.2), (0.2, 0.0)])
def test_equity_that_does_not_move_claims_no_scale(ours: float, theirs: float) -> None:
    found = measure_risk(steady(ours), steady(theirs), DAYS)

    assert (found.scale, found.reason) == (1.0, "the equity of one of the two does not move")


@pytest.mark.parametrize(
    ("r", "line"),
    [
        (0.36, "2 risks 1.8 × what 1 does: its users are sent 0.56 of the size"),
        (0.2, "2 risks 1 × what 1 does: its users are sent the full size"),
        (
            0.6,
            "2 risks 3 × what 1 does: its users are sent 0.5 of the size, the smallest scale, and still risk 1.5 ×",
        ),
    ],
)
def test_a_line_states_the_size_that_users_are_sent(r: float, line: str) -> None:
    assert measure_risk(steady(r), steady(0.2), DAYS).line("2", "1") == line


def test_a_plan_without_a_scale_shows_the_risk_all_the_same() -> None:
    found = at_full_size(measure_risk(steady(0.36), steady(0.2), DAYS))

    assert found.scale == 1.0
    assert found.line("2", "1") == (
        "2 risks 1.8 × what 1 does: its users are sent the full size, because the plan applies no risk scale"
    )
    assert "20 are needed" in at_full_size(measure_risk(steady(1), steady(1), 3.0, active_scale=0.5)).reason


def test_risk_is_stored_and_read() -> None:
    found = measure_risk(steady(0.36), steady(0.2), DAYS)

    assert load_risk(found.model_dump(mode="json")) == found
    assert load_risk(None) is None
    assert Risk().scale == 1.0


@pytest.mark.parametrize(("ours", "theirs", "alike"), [(900, 1_000, True), (1_000, 899, False), (0, 0, True)])
def test_a_version_that_was_down_is_not_alike(ours: int, theirs: int, alike: bool) -> None:
    assert decided_alike(ours, theirs) is alike


# Open risk


def test_open_risk_is_by_size_where_every_position_has_one() -> None:
    found = open_risk([Held("1", 8, 8, 30.0), Held("2", 2, 2, 10.0)], "2", {"2": 0.5})

    assert (found.canary, found.total, found.percent) == (10.0, 40.0, 25.0)
    assert found.summary == "25.0 % of the open risk, 2 open positions, by size"


def test_open_risk_counts_positions_at_their_scale_where_a_size_is_missing() -> None:
    found = open_risk([Held("1", 8, 7, 30.0), Held("2", 4, 4, 10.0)], "2", {"2": 0.5})

    assert (found.canary, found.total, found.percent) == (2.0, 10.0, 20.0)
    assert "by number, since sizes are not reported for all" in found.summary


@pytest.mark.parametrize(("held", "positions"), [([], 0), ([Held("1", 3, 0, 0.0)], 0)])
def test_a_canary_without_positions_has_no_open_risk(held: list[Held], positions: int) -> None:
    found = open_risk(held, "2", {})

    assert (found.percent, found.positions) == (0.0, positions)
    assert found.problem(1.0, stage_percent=1.0) == ""


@pytest.mark.parametrize(
    ("limit", "stage", "holds"), [(None, 5.0, False), (19.0, 5.0, True), (20.0, 5.0, False), (19.0, 25.0, False)]
)
def test_a_limit_on_open_risk_counts_at_stages_up_to_it(limit: float | None, stage: float, holds: bool) -> None:
    found = open_risk([Held("1", 8, 0, 0.0), Held("2", 2, 0, 0.0)], "2", {})

    assert bool(found.problem(limit, stage)) is holds
    assert not holds or found.problem(limit, stage) == (
        "the canary has 20.0 % of the open risk, 2 open positions, by number, since sizes are not reported for all; "
        "the plan's limit is 19 %"
    )
