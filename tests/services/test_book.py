"""Slots are booked once, as they close; and every verdict on them follows from their rows, whenever it is asked for."""

import math
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import Engine

from strategy_core.domain.audit import Command
from strategy_core.domain.gates.on_slots import LARGE_LOSSES, LEAST_TUNED, SLOTS_FACTOR
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.pair_noise import CLIP_UNITS, UNKNOWN_DESIGN_EFFECT, History
from strategy_core.domain.plan import Plan
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services.evidence import recompute
from strategy_core.services.rollouts import start_rollout
from strategy_core.services.tick import tick, tick_rollout
from strategy_core.store import alerts, evidence, rollouts
from strategy_core.store.engine import reading, transaction
from strategy_core.store.tables import BookedSlot, Rollout
from tests.builders import (
    DAY,
    GOLD,
    HOUR,
    MONDAY,
    OWNER,
    decision_row,
    outcome_row,
    put_day,
    put_decisions,
    put_outcomes,
    put_version,
)

BOTH = {"1": "buy", "2": "buy"}
WORSE = {"1": 0.6, "2": -0.2}


@pytest.fixture
def ramped(engine: Engine) -> Engine:
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2")
    _start(engine, MONDAY)
    return engine


def _start(engine: Engine, now: datetime) -> Rollout:
    return start_rollout(engine, Command(OWNER, now), strategy_name="fib_rsi", version="2", plan=Plan())


def _newest(engine: Engine) -> Rollout:
    with reading(engine) as session:
        return rollouts.list_rollouts(session)[0]


def _booked(engine: Engine) -> list[BookedSlot]:
    with reading(engine) as session:
        return list(evidence.booked(session, _newest(engine).id))


def test_what_has_closed_is_booked_once(ramped: Engine, market: SyntheticSource) -> None:
    put_day(ramped, MONDAY, BOTH, WORSE, signal_hours=[1, 5, 9])
    for minute in range(3):
        tick(ramped, market, now=MONDAY + DAY + minute * HOUR)

    booked = _booked(ramped)
    assert [(row.position, row.timestamp.hour, row.canary_r, row.active_r) for row in booked] == [
        (0, 1, -0.2, 0.6),
        (1, 5, -0.2, 0.6),
        (2, 9, -0.2, 0.6),
    ]
    assert {row.booked_at for row in booked} == {MONDAY + DAY}


def test_a_trade_that_stays_open_is_booked_when_it_closes_however_late(ramped: Engine, market: SyntheticSource) -> None:
    put_day(ramped, MONDAY, BOTH, WORSE, signal_hours=[1, 5])
    put_decisions(ramped, *(decision_row(version, MONDAY + 26 * HOUR, "sell") for version in BOTH))
    put_day(ramped, MONDAY + 2 * DAY, BOTH, WORSE, signal_hours=[3])
    tick(ramped, market, now=MONDAY + 3 * DAY)
    assert [row.timestamp for row in _booked(ramped)] == [MONDAY + h * HOUR for h in (1, 5, 51)]

    put_outcomes(ramped, *(outcome_row(version, MONDAY + 26 * HOUR, 1.0, candles=50) for version in BOTH))
    tick(ramped, market, now=MONDAY + 4 * DAY)

    late = _booked(ramped)[-1]
    assert (late.position, late.timestamp, late.active_side) == (3, MONDAY + 26 * HOUR, -1)


def test_a_look_without_a_tick_books_nothing(ramped: Engine, market: SyntheticSource) -> None:
    put_day(ramped, MONDAY, BOTH, WORSE, signal_hours=[1])
    tick_rollout(ramped, market, _newest(ramped).id, now=MONDAY + DAY, apply=False)

    assert _booked(ramped) == []


def test_every_past_verdict_is_recomputed_from_its_rows_to_the_same_number(
    ramped: Engine, market: SyntheticSource
) -> None:
    """Ticks at odd hours, each a new process as far as the store can tell: none of it shows in the numbers."""
    mixed = [{"1": 0.6, "2": 0.6}, {"1": -1.0, "2": -1.1}, {"1": 0.5, "2": -1.0}, {"1": -1.0, "2": 2.7}] * 2
    for day, worth in enumerate(mixed):
        put_day(ramped, MONDAY + day * DAY, BOTH, worth, signal_hours=[2, 7, 11, 12, 19])
        for hour in (6, 8, 23):
            tick(ramped, market, now=MONDAY + day * DAY + hour * HOUR)

    rollout = _newest(ramped)
    with reading(ramped) as session:
        said = [row for row in rollouts.verdict_history(session, rollout.id) if row.n > 0]
        harm = [row for row in said if row.gate == "harm"]
        means = [row for row in said if row.gate == "not_worse" and row.low is not None]
        recomputed = {row.n: recompute(session, rollout, first=row.n) for row in said}
    differences = [row.canary_r - row.active_r for row in _booked(ramped)]
    assert len(harm) >= 8
    assert means
    for row in harm:
        assert row.value == recomputed[row.n].log_e / math.log(10)
    for row in means:
        assert row.low == pytest.approx(_lower_bound(differences[: row.n]), abs=1e-12)


def _lower_bound(differences: Sequence[float]) -> float:
    """Compute the bound of `not_worse` from the differences alone, for a pair without a shadow history.

    It is tightest at half the slots that an equal pair with a deviation of 1 R needs for the first margin.
    """
    clipped = [min(max(d, -CLIP_UNITS), CLIP_UNITS) for d in differences]
    cut = [d - c for d, c in zip(differences, clipped, strict=True)]
    n, a = len(differences), 0.05
    mean, judged = sum(clipped) / n, clipped
    if sum(cut) < 0 and sum(cut) <= -LARGE_LOSSES * math.sqrt(sum(each**2 for each in cut)):
        mean, judged = min(mean, sum(differences) / n), list(differences)
    around = sum(judged) / n
    variance = UNKNOWN_DESIGN_EFFECT * sum((each - around) ** 2 for each in judged) / n
    tuned_for = max(LEAST_TUNED, (SLOTS_FACTOR / Plan().stages[0].margins.pnl_r) ** 2 / 2)
    rho_squared = (-2 * math.log(2 * a) + math.log(1 - 2 * math.log(2 * a))) / tuned_for
    grown = n * rho_squared + 1
    reach = math.sqrt(2 * grown / (n**2 * rho_squared) * math.log(1 + math.sqrt(grown) / (2 * a)))
    return mean - math.sqrt(variance) * reach


def test_totals_of_another_release_are_computed_anew(ramped: Engine, market: SyntheticSource) -> None:
    put_day(ramped, MONDAY, BOTH, WORSE, signal_hours=[1, 5])
    tick(ramped, market, now=MONDAY + DAY)
    rollout = _newest(ramped)
    with transaction(ramped) as session:
        row = evidence.get_book(session, rollout.id)
        row.totals = row.totals | {"book": {"scheme": 0, "harm": "of another shape"}}
        session.add(row)
    put_day(ramped, MONDAY + DAY, BOTH, WORSE, signal_hours=[1])
    tick(ramped, market, now=MONDAY + 2 * DAY)

    with reading(ramped) as session:
        stored = evidence.get_book(session, rollout.id).totals["book"]["totals"]
        assert stored["slots"] == 3
        assert stored["log_e"] == pytest.approx(recompute(session, rollout).log_e, abs=1e-12)


def test_likely_harm_freezes_the_stage_and_is_told_once(engine: Engine, market: SyntheticSource) -> None:
    put_version(engine, "1", Status.ACTIVE, at=MONDAY - 50 * DAY)
    put_version(engine, "2", at=MONDAY - 50 * DAY)
    for day in range(-40, 0):  # a healthy shadow history, so that harm is believed sooner
        put_day(engine, MONDAY + day * DAY, BOTH, {"1": 0.6, "2": 0.6}, signal_hours=[3, 9])
    _start(engine, MONDAY)
    put_day(engine, MONDAY, BOTH, {"1": 0.6, "2": -0.1}, signal_hours=range(1, 15, 2))
    for hour in (24, 25, 26):
        tick(engine, market, now=MONDAY + hour * HOUR)

    with reading(engine) as session:
        told = [alert for alert in alerts.find_alerts(session) if alert.kind == "rollout.frozen"]
        last = rollouts.last_verdicts(session, _newest(engine).id)["harm"]
    assert last.verdict == "inconclusive"
    assert [alert.severity for alert in told] == ["warning"]
    assert told[0].text.startswith("fib_rsi 2 held: harm: harm is likely, the stage is held: E = ")
    assert _newest(engine).stage_index == 0


def test_the_history_is_measured_at_the_start_and_kept(engine: Engine, market: SyntheticSource) -> None:
    put_version(engine, "1", Status.ACTIVE, at=MONDAY - 50 * DAY)
    put_version(engine, "2", at=MONDAY - 40 * DAY)
    for day in range(-45, 0):
        worth: dict[str, Any] = {"1": 0.6, "2": 0.6 if day % 3 else (-1.0, 2.2)[day % 2]}
        put_day(engine, MONDAY + day * DAY, BOTH, worth, signal_hours=[3, 9])
    rollout = _start(engine, MONDAY)
    tick(engine, market, now=MONDAY + HOUR)

    with reading(engine) as session:
        kept = History.model_validate(evidence.get_book(session, rollout.id).history)
    assert (kept.slots, kept.days, kept.slots_per_day) == (80, 40, 2.0)
    assert not kept.provisional
    assert kept.design_effect > 1.5  # both slots of a day lose together
    assert kept.edge == pytest.approx(0.6)


def test_the_shadow_counts_candles_that_both_decided_on_shared_symbols(engine: Engine) -> None:
    """Neither errors, nor symbols of one of the two, nor candles from the start of the rollout on."""
    put_version(engine, "1", Status.ACTIVE, symbols=[GOLD, "OIL", "ZINC"])
    put_version(engine, "2", symbols=["OIL", GOLD])
    put_day(engine, MONDAY, BOTH, {"1": 0.6, "2": 0.6}, signal_hours=[3, 9])
    put_decisions(
        engine,
        *(decision_row(version, MONDAY + hour * HOUR, symbol="OIL") for version in BOTH for hour in range(6)),
        decision_row("1", MONDAY + 6 * HOUR, symbol="OIL"),
        *(decision_row("1", MONDAY + hour * HOUR, symbol="ZINC") for hour in range(9)),
        decision_row("2", MONDAY + 7 * HOUR, "error", symbol="OIL", error_kind="raised"),
        *(decision_row(version, MONDAY + 30 * HOUR) for version in BOTH),
    )
    rollout = _start(engine, MONDAY + DAY)

    with reading(engine) as session:
        kept = History.model_validate(evidence.get_book(session, rollout.id).history)
    assert kept.symbols == (GOLD, "OIL")
    assert kept.alike_candles == (24 + 6) // 2
    assert kept.slots == 2


def test_slots_are_booked_by_symbol(engine: Engine, market: SyntheticSource) -> None:
    """The second symbol of the pair loses. What is recomputed from the rows says so too."""
    put_version(engine, "1", Status.ACTIVE, symbols=[GOLD, "OIL"])
    put_version(engine, "2", symbols=[GOLD, "OIL"])
    _start(engine, MONDAY)
    put_day(engine, MONDAY, BOTH, {"1": 0.6, "2": 0.6}, signal_hours=range(1, 20, 2))
    for version, r in WORSE.items():
        at = [MONDAY + hour * HOUR for hour in range(1, 20, 2)]
        put_decisions(engine, *(decision_row(version, each, "buy", symbol="OIL") for each in at))
        put_outcomes(engine, *(outcome_row(version, each, r, symbol="OIL") for each in at))
    tick(engine, market, now=MONDAY + DAY)

    rollout = _newest(engine)
    with reading(engine) as session:
        stored = evidence.get_book(session, rollout.id).totals["book"]["totals"]
        recomputed = recompute(session, rollout)
    assert (stored["slots"], stored["symbol"]) == (20, 1)
    assert stored["log_symbol"] > 0
    assert recomputed.log_symbol == pytest.approx(stored["log_symbol"], abs=1e-12)


def test_a_candle_that_the_vendor_delivers_late_is_booked_too(ramped: Engine, market: SyntheticSource) -> None:
    """The shadow run catches it up; were its slot lost, so would be what the canary lost there."""
    late = MONDAY + 5 * HOUR
    for version in BOTH:
        put_decisions(ramped, *(decision_row(version, MONDAY + hour * HOUR) for hour in range(10) if hour != 5))
    tick(ramped, market, now=MONDAY + 10 * HOUR)
    for version, r in WORSE.items():
        put_decisions(ramped, decision_row(version, late, "buy"))
        put_outcomes(ramped, outcome_row(version, late, r))
    for hour in (11, 12):
        tick(ramped, market, now=MONDAY + hour * HOUR)

    assert [slot.timestamp for slot in _booked(ramped)] == [late]


@pytest.mark.full
def test_what_lies_beyond_any_late_candle_is_not_read_again(ramped: Engine, market: SyntheticSource) -> None:
    for hour in range(40):
        put_decisions(ramped, *(decision_row(version, MONDAY + hour * HOUR) for version in BOTH))
        tick(ramped, market, now=MONDAY + (hour + 1) * HOUR)

    with reading(ramped) as session:
        kept = evidence.get_book(session, _newest(ramped).id).totals["unsettled_from"]
    assert (len(kept), kept[0]) == (24, (MONDAY + 16 * HOUR).isoformat())
