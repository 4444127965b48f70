"""The goals of the gates, held against two thousand simulated ramps a scenario; run by the command in CONTRIBUTING.

Which ramps are drawn depends on the seed alone, so the counts asserted here are the same on every machine.
"""

import json
import sys
from datetime import timedelta

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from strategy_core.domain.calibration import START, Calibration
from strategy_core.domain.evidence import Evidence, Record
from strategy_core.domain.gates.base import Finding
from strategy_core.domain.gates.on_slots import ExcessDrawdown, Harm, LosingStreak, NotWorse
from strategy_core.domain.pair_noise import measure
from strategy_core.domain.plan import Plan
from strategy_core.domain.ramp import judge_all
from strategy_core.domain.simulation import SCENARIOS, SPIKE_TRADES, simulate, simulate_shadow
from strategy_core.domain.slot_ledger import add_slots, open_ledger
from strategy_core.domain.slots import Slots
from strategy_core.services.calibrate import calibrate

pytestmark = pytest.mark.benchmark_suite

RAMPS, DAYS, SEED = 2_000, 20, 1
TOLERATED = 0.01  # upper 95 % limit of the share of healthy ramps rolled back
BOOKED = 2_000  # slots before the one that is timed
MOST_BYTES = 10_000


@pytest.fixture(scope="module")
def found() -> dict[str, Calibration]:
    told = calibrate(Plan(), ramps=RAMPS, days=DAYS, seed=SEED)
    return {one.scenario: one for one in told.scenarios}


def test_the_table_of_goals(found: dict[str, Calibration], capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        sys.stdout.write("\n" + "\n".join(map(_told, found.values())) + "\n")

    assert all(one.ramps == RAMPS for one in found.values())


@pytest.mark.parametrize(
    "name", ["identical", "equivalent", "independent", "day_clustered", "common_shock", "tiny_traffic"]
)
def test_healthy_canaries_are_hardly_ever_rolled_back(found: dict[str, Calibration], name: str) -> None:
    assert found[name].rolled_back_limit <= TOLERATED


def test_an_equivalent_version_is_promoted_in_time(found: dict[str, Calibration]) -> None:
    assert found["equivalent"].promoted >= 0.85


@pytest.mark.parametrize(
    ("name", "power"),
    [("severe", 1.0), ("mild", 0.995), ("every_trade_loses", 1.0), ("goes_silent", 1.0), ("drawdown_spike", 0.99)],
)
def test_harmful_canaries_are_rolled_back_and_not_promoted(
    found: dict[str, Calibration], name: str, power: float
) -> None:
    assert found[name].rolled_back >= power
    assert found[name].promoted == 0.0


@pytest.mark.parametrize(("name", "times"), [("severe", 1.4), ("mild", 1.35), ("severe_from_day_10", 2.0)])
def test_harm_is_found_in_little_more_than_the_bound(found: dict[str, Calibration], name: str, times: float) -> None:
    ratio = found[name].median_over_bound

    assert ratio is not None
    assert ratio <= times


def test_a_spike_is_found_within_its_eight_trades(found: dict[str, Calibration]) -> None:
    delays = found["drawdown_spike"].delays

    assert sum(delay <= SPIKE_TRADES for delay in delays) >= 0.99 * len(delays)


def test_one_update_of_the_gates(benchmark: BenchmarkFixture) -> None:
    """Book one slot onto a rollout of two thousand and judge it by every gate on slots; what is stored stays small."""
    rng = np.random.default_rng(SEED)
    history = measure(simulate_shadow(SCENARIOS["equivalent"], rng, days=60), 60)
    slots = simulate(SCENARIOS["equivalent"], rng, days=21).slots
    before, _ = add_slots(open_ledger(history), _between(slots, 0, BOOKED), history)
    one_more = _between(slots, BOOKED, BOOKED + 1)
    gates = (Harm(), NotWorse(), LosingStreak(), ExcessDrawdown())
    margins, now, record = Plan().stages[0].margins, START + timedelta(days=20), Record(decided=480)

    def update() -> list[Finding]:
        after, _ = add_slots(before, one_more, history)
        evidence = Evidence(
            now=now,
            started_at=START,
            stage_entered_at=START,
            totals=after.totals,
            history=history,
            pending_slots=0,
            canary=record,
            active=record,
            canary_drawdown=0.1,
            active_drawdown=0.1,
            risk_fraction=0.0025,
            newest_candle=now,
            due_candle=now,
        )
        return judge_all(gates, evidence, margins)

    findings = benchmark(update)

    assert [finding.n for finding in findings[1:]] == [BOOKED + 1] * 4
    assert len(json.dumps(before.as_data())) < MOST_BYTES


def _between(slots: Slots, first: int, end: int) -> Slots:
    return Slots(
        slots.day[first:end],
        slots.canary_r[first:end],
        slots.active_r[first:end],
        slots.canary_side[first:end],
        slots.active_side[first:end],
    )


def _told(one: Calibration) -> str:
    share = f"{one.scenario:22}{one.rolled_back:8.2%}"
    promoted = f"promoted {one.promoted:.1%}"
    if one.healthy:
        return f"{share} rolled back, at most {one.rolled_back_limit:.2%}; {promoted}"
    delays = f"median {one.median_slots}, p95 {one.p95_slots} slots, {one.p95_hours} hours"
    return f"{share} power; {delays}; bound {one.bound_slots}, ratio {one.median_over_bound}; {promoted}"
