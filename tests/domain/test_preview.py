import math
from datetime import UTC, datetime, timedelta
from functools import cache

import numpy as np
import pytest

from strategy_core.domain.capital import Placed, capital_below
from strategy_core.domain.gates.base import Margins, Verdict
from strategy_core.domain.gates.on_slots import SLOTS_FACTOR, Harm, NotWorse
from strategy_core.domain.pair_noise import History, measure
from strategy_core.domain.plan import Plan, Stage
from strategy_core.domain.preview import LiveShadow, OtherCanary, Preview, audience, preview
from strategy_core.domain.simulation import SCENARIOS, simulate_shadow
from strategy_core.domain.slots import Slots, slots


def _plan(margins: Margins) -> Plan:
    return Plan(stages=(Stage(percent=100, minimum_time=timedelta(days=1), margins=margins),))


def history(a_day: int, days: int, calendar_days: float) -> History:
    """Slots whose difference is +1 R or -1 R in turn: a deviation of 1 R and of one win a slot, days independent."""
    rows = []
    for i in range(a_day * days):
        ours = 0.5 if i % 2 else -0.5
        rows.append((i // a_day, ours, -ours, 1, -1))
    return measure(slots(rows), calendar_days)


def test_slots_needed_follow_the_formula_and_are_shared_by_the_stages() -> None:
    told = preview(Plan(), history(a_day=101, days=60, calendar_days=60), 60)

    assert told.win_deviation == pytest.approx(0.1, abs=0.01)  # an odd day's one slot too many is all that is left
    assert told.slots_per_day == 101
    assert [stage.slots_needed for stage in told.stages] == sorted(stage.slots_needed for stage in told.stages)
    assert not told.underpowered
    assert told.verdict.startswith("the evidence can suffice: about")


def test_one_symbols_handful_of_signals_is_underpowered() -> None:
    of = history(a_day=1, days=60, calendar_days=90)
    told = preview(Plan(), of, 90)

    assert told.pnl_deviation == pytest.approx(1.0, abs=0.01)
    assert told.stages[0].slots_needed == math.ceil(of.design_effect * (3.1 / 0.15) ** 2 - 60)  # shadow counts
    assert told.underpowered
    assert told.verdict.startswith(f"underpowered: the 5 % stage needs {told.stages[0].slots_needed} slots")


def test_a_margin_for_wins_needs_more_slots() -> None:
    """Each slot is won by one of the two: a deviation of one win."""
    pair = history(a_day=1, days=60, calendar_days=90)
    needed = preview(_plan(Margins(pnl_r=0.15, win=0.06)), pair, 90).stages[0].slots_needed

    assert needed == math.ceil((SLOTS_FACTOR * (pair.win_deviation or 0.0) / 0.06) ** 2)
    assert needed > preview(_plan(Margins(pnl_r=0.15)), pair, 90).stages[0].slots_needed


def test_a_margin_a_year_needs_fewer_slots_where_signals_are_rare() -> None:
    """60 R a year at two slots in three days are 0.25 R a slot."""
    pair = history(a_day=1, days=60, calendar_days=90)
    needed = preview(_plan(Margins(pnl_r=0.15, pnl_r_per_year=60)), pair, 90).stages[0].slots_needed

    margin = 60 / (365 * 2 / 3)
    assert needed == math.ceil(pair.design_effect * (SLOTS_FACTOR / margin) ** 2 - pair.slots)


def test_without_a_history_it_says_that_it_does_not_know() -> None:
    told = preview(Plan(), History(), 10)

    assert told.verdict == (
        "unknown: 0 slots in 10 days of shadow are too few to plan by. "
        "Replay the version on past candles, or wait for more candles"
    )
    assert told.underpowered
    assert preview(Plan(), measure(slots([(0, 1.0, 1.0, 1, 1)]), 0), 0).slots_per_day == 0.0


class TestWithReplays:
    """Of 60 days the first 50 are from replays: all but the last 10, or all but none."""

    def test_it_says_what_is_from_replays(self) -> None:
        told = self.replayed(live_days=10)

        assert (told.replayed_slots, told.slots, told.replayed_days) == (50, 60, 50)
        assert told.notes[0] == (
            "from replay: 50 of 60 slots, on 50 of 60 days before the start. The gates of a rollout do not count them"
        )
        assert any("in shadow and replay it earned" in note for note in told.notes)
        assert any("in replay it earned" in note for note in self.replayed(live_days=0).notes)

    def test_it_says_which_replays_are_left_out(self) -> None:
        told = self.replayed(live_days=10).model_copy(update={"left_out_until": datetime(2026, 3, 2, tzinfo=UTC)})

        assert told.notes[0] == "left out: replayed candles before 2026-03-02 00:00 UTC, on which a version was trained"

    def test_slots_needed_are_those_of_the_gates_which_know_the_live_days(self) -> None:
        """With few live days they assume clustering, and no replayed slot counts as one in shadow."""
        lived = preview(_plan(Margins(pnl_r=0.15)), self.history(60), 60).stages[0]

        day_one, after_ten_days = (
            self.replayed(live_days=days, margins=Margins(pnl_r=0.15)).stages[0] for days in (0, 10)
        )

        assert day_one.slots_needed > after_ten_days.slots_needed > lived.slots_needed

    def test_a_margin_a_year_counts_live_slots(self) -> None:
        margins = Margins(pnl_r=0.15, pnl_r_per_year=120)

        assert self.replayed(live_days=0, margins=margins).stages[0].margin_r == 0.15
        assert self.replayed(live_days=10, margins=margins).stages[0].margin_r > 0.15

    def test_replayed_harm_warns_and_refuses_nothing(self) -> None:
        bad = slots([(day, -1.0, 1.0, 1, 1) for day in range(40) for _ in range(3)])
        none = LiveShadow(slots([]), measure(slots([]), 0), 0)

        told = preview(Plan(), measure(bad, 40), 40, slots=bad, risk_fraction=0.01, live=none)

        assert told.harm is None
        assert told.harm_replayed is not None
        assert told.harm_replayed.verdict is Verdict.FAIL
        assert any(note.startswith("warning: ") and note.endswith(", in replay already") for note in told.notes)
        assert not told.verdict.startswith("refused")

    def history(self, days: int) -> History:
        return measure(self.slots(days), days)

    def slots(self, days: int) -> Slots:
        return slots([(day, 0.5 if day % 2 else -0.5, -0.5 if day % 2 else 0.5, 1, -1) for day in range(days)])

    def replayed(self, *, live_days: int, margins: Margins | None = None) -> Preview:
        live = LiveShadow(self.slots(live_days), self.history(live_days), live_days)
        plan = Plan() if margins is None else _plan(margins)
        return preview(plan, self.history(60), 60, slots=self.slots(60), risk_fraction=0.01, live=live)


def test_identical_versions_need_only_the_minimum_time() -> None:
    same = measure(slots([(day, 1.0, 1.0, 1, 1) for day in range(30)]), 30)

    told = preview(Plan(), same, 30)

    assert [stage.slots_needed for stage in told.stages] == [30] * 5  # the paired gate's own minimum
    assert [stage.days_expected for stage in told.stages] == [30.0, 1.0, 1.0, 1.0, 1.0]


@cache
def simulated(name: str) -> Preview:
    scenario = SCENARIOS[name]
    shadow = simulate_shadow(scenario, np.random.default_rng(7), days=60)
    found = measure(shadow, 60, symbols=[f"S{n}" for n in range(10)], candles=1_440)
    return preview(Plan(), found, 60, slots=shadow, risk_fraction=0.0025)


class TestWithItsSlots:
    def test_it_says_what_the_version_earned_and_what_a_fault_would_cost(self) -> None:
        told = simulated("equivalent")
        low, high = told.r_per_day_low, told.r_per_day_high
        every, severe, mild = told.detections

        assert low is not None
        assert high is not None
        assert low < told.r_per_day < high
        assert low < 0 < high
        assert [each.found for each in told.detections] == [1.0, 1.0, 1.0]
        assert every.median_days is not None
        assert severe.median_days is not None
        assert mild.median_days is not None
        assert every.median_days < severe.median_days < mild.median_days
        assert every.worst_loss == pytest.approx(0.0025 * every.worst_loss_r)
        assert told.notes[1].startswith(
            "a version may earn up to 0.070 R a slot less and still be promoted: -168 a day"
        )
        assert told.notes[2].startswith("if every trade loses: found after 0.")

    def test_harm_in_shadow_is_refused(self) -> None:
        told = simulated("mild_in_shadow_too")

        assert told.harm is not None
        assert told.harm.verdict is Verdict.FAIL
        assert told.verdict.startswith("refused: in shadow the canary earns less: E reached")
        assert "R a day less" in told.notes[0]

    def test_a_version_that_was_silent_in_shadow_is_refused(self) -> None:
        assert simulated("goes_silent_in_shadow_too").verdict.startswith("refused")

    def test_likely_harm_warns(self) -> None:
        told = simulated("equivalent")
        assert told.harm is not None
        likely = told.harm.model_copy(update={"verdict": Verdict.INCONCLUSIVE, "reason": "harm is likely"})

        assert "warning: harm is likely, in shadow already" in told.model_copy(update={"harm": likely}).notes

    def test_a_fault_that_cannot_be_found_in_time_says_so(self) -> None:
        told = simulated("equivalent")
        seldom = told.detections[0].model_copy(update={"found": 0.2, "median_days": None})

        notes = told.model_copy(update={"detections": [seldom], "slots_per_day": 0.3}).notes

        assert "found in 20% of trials within 31 days" in notes[-1]
        assert "a year on an account of 10,000, at 0.2% of it a trade" in notes[0]

    def test_few_slots_or_no_armed_gate_say_nothing_of_faults(self) -> None:
        few = slots([(day, 1.0, 1.0, 1, 1) for day in range(29)])
        unarmed = Plan(gates=(Harm(dry_run=True), NotWorse()))
        many = simulate_shadow(SCENARIOS["equivalent"], np.random.default_rng(7), days=60)

        assert preview(Plan(), measure(few, 30), 30, slots=few).detections == []
        assert preview(Plan(), History(), 30, slots=slots([])).harm is None
        told = preview(unarmed, measure(many, 60), 60, slots=many)
        assert (told.detections, told.harm) == ([], None)

    def test_a_fault_without_a_trace_is_not_found(self) -> None:
        nothing = slots([(3 * day, 0.0, 0.0, 1, 1) for day in range(40)])

        told = preview(Plan(), measure(nothing, 120), 120, slots=nothing)

        assert [(each.found, each.median_days, each.worst_loss_r) for each in told.detections] == [(0.0, None, 0.0)] * 3

    def test_pairs_with_few_signals_need_few_of_their_own(self) -> None:
        rare = simulate_shadow(SCENARIOS["rare_signals"], np.random.default_rng(7), days=5 * 365)
        alike = slots([(7 * week, 1.0, 1.0, 1, 1) for week in range(60)])

        told = preview(Plan(), measure(rare, 5 * 365), 5 * 365)
        same = preview(Plan(), measure(alike, 420, candles=10_000), 420)

        assert {stage.slots_needed for stage in told.stages} == {8}
        assert [stage.margin_r for stage in told.stages] == pytest.approx([12 / (365 * told.slots_per_day)] * 5)
        assert {stage.slots_needed for stage in same.stages} == {0}


def test_without_a_slot_there_is_nothing_to_tell() -> None:
    assert preview(Plan(), History(), 10).notes == []


def test_the_risk_of_the_version_is_a_note() -> None:
    shown = preview(Plan(), history(a_day=101, days=60, calendar_days=60), 60)

    assert "2 risks 1.8 × what 1 does" in shown.model_copy(update={"risk_line": "2 risks 1.8 × what 1 does"}).notes


OTHER = OtherCanary(strategy_name="other", version="2", percent_bp=5_000, same_salt=True)
_FIRST, *_, _LAST = (stage.model_copy(update={"capital_percent": None}) for stage in Plan().stages)
NO_CAPS = Plan(stages=(_FIRST, _LAST), approve_before=())


def test_a_holdout_is_in_no_stage() -> None:
    reached = audience(NO_CAPS, None, [OTHER], holdout_percent=2)

    assert [stage.effective_percent for stage in reached.stages] == [5, 98]
    assert reached.notes == [
        "a holdout of 2 % of users is in no stage: a canary gets at most 98 %, and the others get the version when it "
        "is promoted"
    ]
    assert audience(NO_CAPS, None, [OTHER]).notes == []


def test_kept_users_are_in_no_overlap() -> None:
    below = capital_below(np.arange(0, 10_000, 100), np.ones(100))  # a user in each hundredth bucket

    (overlap,) = audience(NO_CAPS, below, [OTHER], kept=[Placed(0, 1.0), Placed(300, 1.0), Placed(7_000, 1.0)]).overlaps

    assert overlap.users == [3, 48]
