"""Release windows and freezes: what they hold, what they never touch, and when stages may be entered again."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategy_core.domain.calibration import apply_step
from strategy_core.domain.errors import InvalidPlan
from strategy_core.domain.gates.base import Errors, Finding, Verdict
from strategy_core.domain.plan import Plan, read_plan
from strategy_core.domain.preview import EarliestEntries, earliest_entries
from strategy_core.domain.ramp import ENDED, Position, State, Step, decide, outlook
from strategy_core.domain.release_times import Closure, Freeze, ReleaseTimes, ReleaseWindow

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)  # a Monday
DAY, HOUR = timedelta(days=1), timedelta(hours=1)
BERLIN = ReleaseWindow(days=("mon", "tue"), opens="09:00", closes="17:00", time_zone="Europe/Berlin")
PLAN = Plan(gates=(Errors(),))
STEPS_FOR_USERS = (Step.ADVANCE, Step.PROMOTE)


def freeze(start: datetime = NOON - HOUR, end: datetime = NOON + DAY, reason: str = "earnings") -> Freeze:
    return Freeze(start, end, "anna", reason)


def at(stage: int = 0, *, entered: datetime = NOON - 2 * DAY, **changes: Any) -> Position:
    place: dict[str, Any] = {"state": State.RUNNING, "stage_extended_at": entered, **changes}
    return Position(stage_index=stage, stage_entered_at=entered, **place)


def found(verdict: Verdict) -> list[Finding]:
    return [Finding(gate="errors", verdict=verdict, reason=f"because {verdict}", armed=True)]


@pytest.mark.parametrize(
    ("moment", "opens"),
    [
        (datetime(2026, 3, 2, 8, tzinfo=UTC), datetime(2026, 3, 2, 8, tzinfo=UTC)),
        (datetime(2026, 3, 2, 7, 59, tzinfo=UTC), datetime(2026, 3, 2, 8, tzinfo=UTC)),
        (datetime(2026, 3, 3, 16, tzinfo=UTC), datetime(2026, 3, 9, 8, tzinfo=UTC)),
        (datetime(2026, 3, 28, 12, tzinfo=UTC), datetime(2026, 3, 30, 7, tzinfo=UTC)),
    ],
    ids=["open", "a minute early", "closed for the week", "after the clock went forward"],
)
def test_a_window_opens_by_the_clock_of_its_time_zone(moment: datetime, opens: datetime) -> None:
    assert ReleaseTimes().opens_at([BERLIN], moment) == opens


def test_a_closed_window_says_when_it_opens() -> None:
    closure = ReleaseTimes().closure([BERLIN], datetime(2026, 3, 4, 12, tzinfo=UTC))

    assert closure == Closure("outside the release window; opens Mon 2026-03-09 09:00 Europe/Berlin", frozen=False)


def test_a_window_may_last_until_midnight() -> None:
    late = ReleaseWindow(days=("mon",), opens="22:00", closes="24:00")

    assert ReleaseTimes().closure([late], NOON + timedelta(hours=11, minutes=59)) is None
    assert ReleaseTimes().closure([late], NOON + 12 * HOUR) is not None


def test_a_window_of_a_market_opens_with_it() -> None:
    """The market opens at 11:00, which is within the window."""
    times = ReleaseTimes(is_open={"metals": lambda moment: moment.hour >= 11})
    window = ReleaseWindow(opens="09:30", market_open="metals")

    assert times.opens_at([window], NOON - 4 * HOUR) == NOON - HOUR
    assert times.opens_at([window], NOON) == NOON


def test_a_market_that_stays_closed_opens_no_window() -> None:
    times = ReleaseTimes(is_open={"metals": lambda _: False})
    window = ReleaseWindow(market_open="metals")

    assert times.opens_at([window], NOON) is None
    assert times.closure([window], NOON) == Closure("outside the release window", frozen=False)


def test_the_freeze_that_lasts_longest_is_named() -> None:
    times = ReleaseTimes([freeze(), freeze(end=NOON + 2 * DAY, reason="")])

    assert times.closure([], NOON) == Closure("frozen until 2026-03-04 12:00 UTC by anna", frozen=True)
    assert str(freeze()) == "frozen until 2026-03-03 12:00 UTC by anna: earnings"


def test_freezes_that_follow_each_other_and_a_window_are_left_together() -> None:
    """Two freezes end on Wednesday, and the window opens on the next Monday."""
    times = ReleaseTimes([freeze(), freeze(NOON + DAY, NOON + 2 * DAY)])

    assert times.opens_at([BERLIN], NOON) == datetime(2026, 3, 9, 8, tzinfo=UTC)
    assert times.opens_at([], NOON) == NOON + 2 * DAY


def test_freezes_without_end_are_given_up() -> None:
    times = ReleaseTimes([freeze(NOON + n * HOUR, NOON + (n + 1) * HOUR) for n in range(1_001)])

    assert times.opens_at([], NOON) is None


@pytest.mark.parametrize(
    ("window", "problem"),
    [
        ({"opens": "17:00", "closes": "09:00"}, "a window opens before it closes, got 17:00 to 09:00: use two windows"),
        ({"opens": "9:00"}, "a time is HH:MM, 00:00 to 24:00"),
        ({"time_zone": "Berlin"}, "unknown time zone 'Berlin'; a name such as Europe/Berlin is needed"),
        ({"days": []}, "at least 1 item"),
    ],
    ids=["over midnight", "not a time", "no such zone", "no day"],
)
def test_a_window_that_cannot_be_is_refused(window: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidPlan, match=problem):
        read_plan({"advance_windows": [window]})


@pytest.mark.parametrize("stage", [0, 4], ids=["advance", "promotion"])
def test_a_freeze_holds_the_next_stage_and_says_why(stage: int) -> None:
    ruling = decide(PLAN, at(stage), found(Verdict.PASS), NOON, ReleaseTimes([freeze()]))

    assert (ruling.step, ruling.held) == (Step.HOLD, True)
    assert ruling.reason.startswith("frozen until 2026-03-03 12:00 UTC by anna: earnings; every gate passed at")


@pytest.mark.parametrize("stage", [0, 4], ids=["advance", "promotion"])
def test_what_else_holds_a_stage_is_asked_only_when_it_would_be_entered(stage: int) -> None:
    """A rollback must not wait for it, nor fail with it."""
    asked: list[str] = []
    busy = ReleaseTimes(held=lambda: asked.append("asked") or "2 older canaries")  # type: ignore[func-returns-value]

    for verdict in (Verdict.FAIL, Verdict.BREACH, Verdict.BLIND, Verdict.INCONCLUSIVE):
        assert decide(PLAN, at(stage), found(verdict), NOON, busy) == decide(PLAN, at(stage), found(verdict), NOON)
    assert asked == []
    ruling = decide(PLAN, at(stage), found(Verdict.PASS), NOON, busy)

    assert (ruling.step, ruling.held, asked) == (Step.HOLD, True, ["asked"])
    assert ruling.reason.startswith("2 older canaries; every gate passed at")


def test_the_tick_at_the_end_of_a_freeze_advances() -> None:
    assert decide(PLAN, at(), found(Verdict.PASS), NOON + DAY, ReleaseTimes([freeze()])).step is Step.ADVANCE


def test_an_approval_waits_for_the_window_while_every_gate_passes() -> None:
    place, plan = at(3, approved_stage=4), Plan(gates=(Errors(),), advance_windows=(BERLIN,))
    wednesday = NOON + 2 * DAY

    assert decide(plan, place, found(Verdict.PASS), wednesday).step is Step.HOLD
    assert decide(plan, place, found(Verdict.INSUFFICIENT), wednesday).step is Step.LAPSE
    assert decide(plan, at(3), found(Verdict.PASS), wednesday).step is Step.AWAIT_APPROVAL


def test_an_owner_is_asked_later_by_the_time_of_freezes() -> None:
    """60 days, of which 10 are frozen by two freezes that overlap, and 1 by one of before the stage."""
    frozen = [freeze(NOON, NOON + 8 * DAY), freeze(NOON + 5 * DAY, NOON + 10 * DAY), freeze(NOON - 9 * DAY, NOON - DAY)]
    plan, times, place = Plan(gates=(Errors(),)), ReleaseTimes(frozen), at(entered=NOON - 2 * DAY)

    left = outlook(plan, place, found(Verdict.INCONCLUSIVE), NOON, times).maximum_left

    assert left == 69 * DAY
    assert decide(plan, place, found(Verdict.INCONCLUSIVE), NOON + 69 * DAY - HOUR, times).step is Step.HOLD
    assert decide(plan, place, found(Verdict.INCONCLUSIVE), NOON + 69 * DAY, times).step is Step.AWAIT_DECISION


def test_no_freeze_delays_the_rollback_at_the_time_limit_of_a_stage() -> None:
    plan = Plan(gates=(Errors(),), on_inconclusive="rollback")
    times, place = ReleaseTimes([freeze(NOON, NOON + 300 * DAY)]), at(entered=NOON - 2 * DAY)

    left = outlook(plan, place, found(Verdict.INCONCLUSIVE), NOON, times).maximum_left

    assert left == 58 * DAY
    assert decide(plan, place, found(Verdict.INCONCLUSIVE), NOON + 58 * DAY, times).step is Step.ROLL_BACK


@pytest.mark.parametrize(
    ("place", "needs"),
    [
        (at(), ["frozen until 2026-03-03 12:00 UTC by anna: earnings"]),
        (at(entered=NOON), ["the stage's minimum time lasts another 24 h, until 2026-03-03 12:00 UTC"]),
        (
            at(state=State.AWAITING_DECISION),
            [
                "an owner must decide: extend, advance or roll back",
                "frozen until 2026-03-03 12:00 UTC by anna: earnings",
            ],
        ),
        (at(4, promoted_at=NOON - 7 * DAY), ["nothing: the next tick completes it"]),
    ],
    ids=["ready", "over before the minimum time", "awaiting a decision", "bakes"],
)
def test_the_outlook_shows_a_freeze_that_holds_the_next_stage(place: Position, needs: list[str]) -> None:
    assert list(outlook(PLAN, place, found(Verdict.PASS), NOON, ReleaseTimes([freeze()])).needs) == needs


def test_a_preview_shows_when_the_first_stages_may_be_entered() -> None:
    plan = Plan(gates=(Errors(),), advance_windows=(BERLIN,))

    entries = earliest_entries(plan, ReleaseTimes([freeze()]), NOON)

    assert entries is not None
    assert entries.note == (
        "by release windows and freezes it may start Tue 2026-03-03 13:00 Europe/Berlin, and advance "
        "Mon 2026-03-09 09:00 Europe/Berlin at the earliest"
    )
    assert earliest_entries(PLAN, ReleaseTimes(), NOON) is None
    unknown = EarliestEntries(start=None, advance=None, time_zone="UTC")
    assert unknown.note == "by its release windows and freezes it cannot start or advance within the next days"


def test_a_market_without_hours_leaves_a_preview_without_a_time() -> None:
    plan = Plan(gates=(Errors(),), advance_windows=(ReleaseWindow(market_open="metals"),))

    assert earliest_entries(plan, ReleaseTimes(is_open={"metals": lambda _: False}), NOON) == EarliestEntries(
        start=None, advance=None, time_zone="UTC"
    )


HOURS = st.integers(-100, 100).map(lambda number: NOON + number * HOUR)
FREEZES = st.lists(
    st.builds(lambda start, hours: freeze(start, start + hours * HOUR), HOURS, st.integers(1, 80)), max_size=4
)
WINDOWS = st.lists(
    st.builds(
        lambda days, opens, zone: ReleaseWindow(
            days=tuple(days), opens=f"{opens:02}:00", closes=f"{opens + 3:02}:30", time_zone=zone
        ),
        st.lists(st.sampled_from(["mon", "wed", "sat", "sun"]), min_size=1, max_size=2),
        st.integers(0, 20),
        st.sampled_from(["UTC", "Europe/Berlin", "America/New_York"]),
    ),
    max_size=2,
)


@given(
    freezes=FREEZES,
    windows=WINDOWS,
    state=st.sampled_from(sorted(set(State) - ENDED)),
    stage=st.integers(0, 4),
    entered=HOURS,
    blind_since=st.none() | HOURS,
    promoted_at=st.none() | HOURS,
    approved=st.none() | st.integers(0, 4),
    verdicts=st.lists(st.sampled_from(list(Verdict)), min_size=1, max_size=3),
    now=HOURS,
)
def test_windows_and_freezes_change_no_ruling_but_those_that_give_a_version_to_more_users(
    freezes: list[Freeze],
    windows: list[ReleaseWindow],
    state: State,
    stage: int,
    entered: datetime,
    blind_since: datetime | None,
    promoted_at: datetime | None,
    approved: int | None,
    verdicts: list[Verdict],
    now: datetime,
) -> None:
    """The time limit of a stage stands apart: it does not run in a freeze."""
    place = at(
        stage,
        entered=entered,
        state=state,
        blind_since=blind_since,
        promoted_at=promoted_at if stage == 4 else None,
        approved_stage=approved,
    )
    findings = [each for verdict in verdicts for each in found(verdict)]
    times = ReleaseTimes(freezes)
    held_plan = Plan(gates=(Errors(),), advance_windows=tuple(windows))

    free = decide(PLAN, place, findings, now)
    ruling = decide(held_plan, place, findings, now, times)

    closed = times.closure(windows, now) is not None
    assert ruling.held == (closed and free.step in STEPS_FOR_USERS)
    assert ruling == free or ruling.held
    assert not (closed and ruling.step in STEPS_FOR_USERS)
    assert outlook(held_plan, place, findings, now, times).needs


@given(
    freezes=FREEZES,
    windows=WINDOWS,
    verdicts=st.lists(st.sampled_from([Verdict.PASS] * 6 + list(Verdict)), min_size=1, max_size=100),
)
def test_a_rollback_comes_at_the_same_tick_with_freezes_and_windows_as_without(
    freezes: list[Freeze], windows: list[ReleaseWindow], verdicts: list[Verdict]
) -> None:
    """One verdict an hour, with faults and blindness among them."""
    times = ReleaseTimes(freezes)
    short = Plan(
        gates=(Errors(),),
        stages=tuple(stage.model_copy(update={"minimum_time": 2 * HOUR}) for stage in Plan().stages),
        blind_limit=3 * HOUR,
    )

    def steps(plan: Plan, times: ReleaseTimes) -> list[Step]:
        place, blind_since, taken = at(entered=NOON), None, []
        for number, verdict in enumerate(verdicts):
            now = NOON + number * HOUR
            ruling = decide(plan, replace(place, blind_since=blind_since), found(verdict), now, times)
            blind_since = (blind_since or now) if ruling.blind else None
            assert times.closure(plan.advance_windows, now) is None or ruling.step not in STEPS_FOR_USERS
            taken.append(ruling.step)
            if ruling.step in (Step.ROLL_BACK, Step.COMPLETE):
                break
            place = apply_step(place, ruling.step, now)
        return taken

    free, held = (
        steps(short, ReleaseTimes()),
        steps(short.model_copy(update={"advance_windows": tuple(windows)}), times),
    )

    assert (Step.ROLL_BACK in held) == (Step.ROLL_BACK in free)
    assert Step.ROLL_BACK not in free or len(held) == len(free)


@given(freezes=FREEZES, windows=WINDOWS, moment=HOURS)
def test_the_first_open_moment_is_open_and_no_hour_before_it_is(
    freezes: list[Freeze], windows: list[ReleaseWindow], moment: datetime
) -> None:
    times = ReleaseTimes(freezes)

    opens = times.opens_at(windows, moment)

    assert opens is not None
    assert times.closure(windows, opens) is None
    hours = range((opens - moment) // HOUR)
    assert all(times.closure(windows, moment + hour * HOUR) is not None for hour in hours)
