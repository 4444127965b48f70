"""Replayed evidence: compared, planned and calibrated with where live evidence is short, and not seen by a rollout."""

from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlmodel import select

from strategy_core.domain.audit import RAMP, Command
from strategy_core.domain.comparison import Comparison
from strategy_core.domain.errors import Incomparable
from strategy_core.domain.gates.base import Verdict
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.report.comparison import comparison_markdown
from strategy_core.services.calibrate import read_pair
from strategy_core.services.compare import compare_all, compare_versions, compare_with_curves, period, why_empty
from strategy_core.services.rollouts import preview_plan, start_rollout
from strategy_core.services.tick import tick
from strategy_core.services.whatif import what_if
from strategy_core.store import replays
from strategy_core.store.engine import reading, transaction
from strategy_core.store.tables import (
    EquityMark,
    GateVerdict,
    Outcome,
    ReplayDecision,
    ReplayMark,
    ReplayOutcome,
    RolloutBook,
    ShadowDecisionLog,
    decision_id,
)
from tests.builders import DAY, GOLD, HOUR, MONDAY, OWNER, put_day, put_version
from tests.prepared import prepared

DAYS, SPLIT = 12, 7
NOW = MONDAY + DAYS * DAY
OVER = period(MONDAY, NOW)
TOLD = ("candles_replayed", "trained_until", "in_sample")
TRAINED = MONDAY + SPLIT * DAY


def put_days(engine: Engine) -> None:
    """Twelve days of versions 1 and 2, which have decided live since Monday: version 2 loses what version 1 wins."""
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2")
    for day in range(DAYS):
        said, hours = {"1": "buy", "2": "sell" if day % 3 else "buy"}, [3, 9, 15][: 1 + day % 3]
        put_day(engine, MONDAY + day * DAY, said, {"1": 0.6, "2": -0.9}, signal_hours=hours)


def move_to_replays(engine: Engine, strategy_name: str, *, before: Any, trained_until: str | None = None) -> None:
    """Put the same versions into another strategy, registered *before*, with all rows until then as replays."""
    report = {"trained_until": trained_until}
    put_version(engine, "1", Status.ACTIVE, strategy_name=strategy_name, at=before)
    put_version(engine, "2", strategy_name=strategy_name, at=before, registration_report=report)
    with transaction(engine) as session:
        for source, target in (
            (ShadowDecisionLog, ReplayDecision),
            (Outcome, ReplayOutcome),
            (EquityMark, ReplayMark),
        ):
            rows = [row.model_dump() for row in session.exec(select(source)).all()]
            names = target.model_fields
            made = [
                {name: value for name, value in row.items() if name in names} | {"strategy_name": strategy_name}
                for row in rows
                if row["timestamp"] < before and row["strategy_name"] == "fib_rsi"
            ]
            _add(session, target, made)


def _add(session: Any, target: Any, rows: Sequence[dict[str, Any]]) -> None:
    if target is ReplayDecision:
        replays.add_decisions(session, [row | {"replayed_at": MONDAY + 60 * DAY} for row in rows])
    elif target is ReplayOutcome:
        replays.add_outcomes(session, rows)
    else:
        for version in ("1", "2"):
            mine = [row for row in rows if row["version"] == version]
            if mine:
                stretch = replays.Stretch(mine[0]["strategy_name"], version, GOLD, MONDAY, NOW)
                replays.replace_marks(session, stretch, mine)


def put_both(engine: Engine) -> None:
    put_days(engine)
    move_to_replays(engine, "new", before=NOW)


def put_trained(engine: Engine) -> None:
    put_days(engine)
    move_to_replays(engine, "new", before=NOW, trained_until=TRAINED.isoformat())


def put_half(engine: Engine) -> None:
    """Strategy `half` has lived through the last days, after its versions were replayed on those before."""
    put_days(engine)
    move_to_replays(engine, "half", before=MONDAY + SPLIT * DAY)
    with transaction(engine) as session:
        lived: tuple[Any, ...] = (ShadowDecisionLog, Outcome, EquityMark)
        for table in lived:
            for row in session.exec(select(table)).all():
                if row.timestamp >= MONDAY + SPLIT * DAY:
                    session.add(_twin(row))


def _twin(row: Any) -> Any:
    values = row.model_dump() | {"strategy_name": "half"}
    made = decision_id("half", row.version, row.symbol, row.timestamp)
    key = {"id": made} if "id" in values else {"decision_id": made} if "decision_id" in values else {}
    return type(row)(**values | key)


def compared(engine: Engine, strategy_name: str, market: SyntheticSource | None = None, **given: Any) -> Comparison:
    asked: dict[str, Any] = {"over": OVER, "source": market, **given}
    return compare_versions(engine, strategy_name=strategy_name, shadow_version="2", **asked)


def without_count(found: Comparison) -> dict[str, Any]:
    """Return the comparison without what is from replay, rounded: another order of sums differs in the last bits."""

    def rounded(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: rounded(each) for name, each in value.items() if name not in TOLD}
        return round(value, 9) if isinstance(value, float) else value

    return dict(rounded(found.model_dump()))


@pytest.mark.parametrize("regimes", [False, True], ids=["in total", "by regime"])
def test_replayed_days_compare_as_days_that_were_lived(engine: Engine, market: SyntheticSource, regimes: bool) -> None:
    prepared(engine, put_both)
    source = market if regimes else None

    live, replayed = (compared(engine, name, source) for name in ("fib_rsi", "new"))

    assert without_count(replayed) == without_count(live)
    assert (live.candles_replayed, replayed.candles_replayed) == (0, DAYS * 24)
    assert live.slots > 10
    assert bool(live.by_regime) is regimes
    assert sum(each.candles_replayed for each in replayed.by_regime.values()) in (0, DAYS * 24)


def test_replays_fill_the_days_before_the_live_ones(engine: Engine, market: SyntheticSource) -> None:
    prepared(engine, put_half)

    live, mixed = (compared(engine, name, market) for name in ("fib_rsi", "half"))
    recent = compared(engine, "half", market, over=period(MONDAY + SPLIT * DAY, NOW))

    assert without_count(mixed) == without_count(live)
    assert mixed.candles_replayed == SPLIT * 24
    assert recent.candles_replayed == 0
    assert recent.candles_compared == (DAYS - SPLIT) * 24


def test_the_curves_are_those_of_days_that_were_lived(engine: Engine, market: SyntheticSource) -> None:
    prepared(engine, put_half)
    asked: dict[str, Any] = {"shadow_version": "2", "over": OVER, "symbol": None, "source": market, "now": NOW}

    live, mixed = (compare_with_curves(engine, strategy_name=name, **asked)[1] for name in ("fib_rsi", "half"))

    assert mixed.equity == live.equity
    assert mixed.days == live.days
    assert len(mixed.days) == DAYS


def test_nightly_reports_leave_replays_out(engine: Engine, market: SyntheticSource) -> None:
    prepared(engine, put_both)

    reports = {report.strategy_name: report.report for report in compare_all(engine, market, now=NOW)}

    assert reports["new"]["candles_compared"] == 0
    assert reports["fib_rsi"]["candles_compared"] == DAYS * 24


def test_a_plan_has_figures_on_day_one_and_says_where_they_are_from(engine: Engine) -> None:
    prepared(engine, put_both)
    asked: dict[str, Any] = {"version": "2", "plan": Plan(), "now": NOW}

    live, replayed = (preview_plan(engine, strategy_name=name, **asked) for name in ("fib_rsi", "new"))

    assert (replayed.slots, replayed.replayed_slots, live.replayed_slots) == (live.slots, live.slots, 0)
    assert replayed.replayed_days == pytest.approx(DAYS, abs=1)
    assert replayed.notes[0].startswith(f"from replay: {live.slots} of {live.slots} slots, on 12 of 12 days")
    assert any("in replay it earned" in note for note in replayed.notes)
    assert live.harm is not None
    assert live.harm.verdict is Verdict.FAIL
    assert replayed.harm is None
    assert any(note.startswith("warning: the canary earns less") for note in replayed.notes)
    assert not replayed.verdict.startswith("refused")


def test_replayed_harm_refuses_no_start_and_is_not_frozen_with_the_rollout(engine: Engine) -> None:
    prepared(engine, put_both)

    rollout = start_rollout(engine, Command(OWNER, NOW), strategy_name="new", version="2", plan=Plan())

    with reading(engine) as session:
        history = session.get_one(RolloutBook, rollout.id).history
    assert (history["slots"], history["alike_candles"]) == (0, 0)


def test_the_gates_of_a_rollout_see_no_replay(engine: Engine, market: SyntheticSource) -> None:
    """The same rollout is ticked in two strategies. The candles of one are replayed too, and prove harm."""
    for name in ("plain", "replayed"):
        put_version(engine, "1", Status.ACTIVE, strategy_name=name)
        put_version(engine, "2", strategy_name=name)
        start_rollout(engine, Command(OWNER, MONDAY), strategy_name=name, version="2", plan=Plan())
    rows: list[dict[str, Any]] = [
        {"strategy_name": "replayed", "version": version, "symbol": GOLD, "timestamp": MONDAY + hour * HOUR}
        for version in ("1", "2")
        for hour in range(5 * 24)
    ]
    made = {"decision": "buy", "intent": "open", "confidence": 0.5, "reason": "", "window_hash": "", "replayed_at": NOW}
    trade = {"entry_price": 1.0, "exit_price": 1.0, "exit_reason": "stop", "risk": 1.0, "return_fraction": 0.0}
    with transaction(engine) as session:
        replays.add_decisions(session, [row | made for row in rows])
        for row in rows:
            r = 1.0 if row["version"] == "1" else -1.0
            times = {"opened_at": row["timestamp"] + HOUR, "closed_at": row["timestamp"] + 2 * HOUR}
            replays.add_outcomes(session, [row | trade | times | {"pnl": r, "r_multiple": r}])

    ticked = tick(engine, market, now=MONDAY + 5 * DAY, actor=RAMP)

    with reading(engine) as session:
        verdicts = session.exec(select(GateVerdict).order_by(GateVerdict.gate)).all()
    by_rollout: dict[Any, list[Any]] = {}
    for each in verdicts:
        by_rollout.setdefault(each.rollout_id, []).append((each.gate, each.verdict, each.reason, each.value, each.n))
    plain, replayed = by_rollout.values()
    assert plain == replayed
    assert {n for *_, n in plain} == {0}
    assert ticked[0].ruling == ticked[1].ruling


def test_a_calibration_samples_replays_and_says_so(engine: Engine) -> None:
    prepared(engine, put_many)

    found = read_pair(engine, strategy_name="new", version="2", now=MONDAY + 40 * DAY)

    assert found.replayed == len(found.slots) == 40


def put_many(engine: Engine) -> None:
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2")
    for day in range(20):
        said, worth = {"1": "buy", "2": "sell"}, {"1": 0.6, "2": -0.3}
        put_day(engine, MONDAY + day * DAY, said, worth, signal_hours=[3, 9])
    move_to_replays(engine, "new", before=MONDAY + 30 * DAY)


def test_too_few_slots_to_calibrate_name_the_replay(engine: Engine) -> None:
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2")

    with pytest.raises(Incomparable, match=r"0 closed slots .*rollout replay fib_rsi 2 --from TIME"):
        read_pair(engine, strategy_name="fib_rsi", version="2", now=NOW)


def test_an_empty_comparison_says_why_and_what_to_do(engine: Engine) -> None:
    put_version(engine, "1", Status.ACTIVE, strategy_name="none", at=NOW)
    put_version(engine, "2", strategy_name="none", at=NOW)
    put_version(engine, "3", strategy_name="none", at=NOW, symbols=["OIL"])
    prepared_days = period(NOW - 30 * DAY, NOW)

    assert why_empty(engine, strategy_name="none", version="2", over=prepared_days) == [
        "no candle was compared: 2 and 1 decide on live candles since 2026-03-14 00:00 UTC",
        "Next: rollout replay none 2",
    ]
    assert why_empty(engine, strategy_name="none", version="3", over=prepared_days) == [
        "no candle was compared: 3 and the active 1 have no symbol in common"
    ]


def test_an_empty_comparison_names_the_replayed_days(engine: Engine) -> None:
    prepared(engine, put_both)

    why = why_empty(engine, strategy_name="new", version="2", over=period(NOW + DAY, NOW + 2 * DAY))

    assert why[0].endswith("and 2 is replayed from 2026-03-02 00:00 to 2026-03-13 23:00 UTC")
    assert why[1] == "Next: rollout compare new 2 --from 2026-03-02"


@pytest.mark.parametrize("regimes", [False, True], ids=["in total", "by regime"])
def test_candles_of_the_training_are_compared_apart(engine: Engine, market: SyntheticSource, regimes: bool) -> None:
    prepared(engine, put_trained)
    source = market if regimes else None

    found = compared(engine, "new", source)

    inside, outside = (
        compared(engine, "fib_rsi", source, over=period(*each)) for each in ((MONDAY, TRAINED), (TRAINED, NOW))
    )
    assert without_count(found) == without_count(outside)
    assert found.trained_until == TRAINED
    assert found.in_sample is not None
    assert without_count(found.in_sample) == without_count(inside)
    assert inside.slots > 5
    assert compared(engine, "fib_rsi").in_sample is None
    assert compared(engine, "new", over=period(TRAINED, NOW)).in_sample is None


def test_without_later_candles_a_comparison_says_what_to_do(engine: Engine) -> None:
    prepared(engine, put_trained)
    asked: dict[str, Any] = {"strategy_name": "new", "version": "2", "over": period(MONDAY, TRAINED)}

    found = compared(engine, "new", over=period(MONDAY, TRAINED))
    why, following = why_empty(engine, **asked)

    assert (found.candles_compared, found.slots) == (0, 0)
    assert found.in_sample is not None
    assert why == "no candle was compared after the training, which ended at 2026-03-09 00:00 UTC"
    assert following == "Next: rollout compare new 2 --from 2026-03-09"


def test_the_curves_leave_the_training_out(engine: Engine, market: SyntheticSource) -> None:
    prepared(engine, put_trained)
    asked: dict[str, Any] = {"shadow_version": "2", "symbol": None, "source": market, "now": NOW}

    found, curves = compare_with_curves(engine, strategy_name="new", over=OVER, **asked)
    _, none = compare_with_curves(engine, strategy_name="new", over=period(MONDAY, TRAINED), **asked)
    text, earlier = comparison_markdown(curves), found.in_sample

    assert earlier is not None
    assert min(each.day for each in curves.days) == TRAINED
    assert curves.equity.at[0] == TRAINED
    assert none.days == ()
    assert (
        f"In sample, before 2026-03-09 00:00 UTC, when the training ended: 168 candles and {earlier.slots} slots"
        in text
    )
    assert "In sample, before" in comparison_markdown(none)


def test_plans_and_calibrations_leave_the_training_out(engine: Engine) -> None:
    prepared(engine, put_trained)
    whole = compared(engine, "new")

    planned = preview_plan(engine, strategy_name="new", version="2", plan=Plan(), now=NOW)
    with pytest.raises(Incomparable) as refused:
        read_pair(engine, strategy_name="new", version="2", now=NOW)

    note = "left out: replayed candles before 2026-03-09 00:00 UTC, on which a version was trained"
    assert planned.replayed_slots == whole.difference.n
    assert note in planned.notes
    assert note in str(refused.value)


def test_a_what_if_starts_after_the_training_and_counts_no_slot_before_its_end(engine: Engine) -> None:
    prepared(engine, put_trained)

    after = what_if(engine, strategy_name="new", version="2", plan=Plan())
    later = what_if(engine, strategy_name="new", version="2", plan=Plan(), start=TRAINED + 2 * DAY)
    within = what_if(engine, strategy_name="new", version="2", plan=Plan(), start=MONDAY + DAY)

    assert (after.start, after.shadow_slots) == (TRAINED, 0)
    assert later.shadow_slots == compared(engine, "new", over=period(TRAINED, TRAINED + 2 * DAY)).slots > 0
    assert later.shadow_days == 2
    assert within.shadow_slots > 0
    left_out = "left out: replayed candles before 2026-03-09 00:00 UTC, on which a version was trained"
    assert [left_out in each.notes for each in (after, later, within)] == [True, True, False]
    assert "warning: in sample: a version was trained on candles until 2026-03-09 00:00 UTC" in within.notes
    assert not any(note.startswith("warning: in sample") for each in (after, later) for note in each.notes)
