"""Reports that come by themselves: verdicts on shadows from a closed list, and what is news."""

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from strategy_core.domain.owner_reports import (
    Reading,
    ShadowVerdict,
    as_clause,
    day_before,
    judge_shadow,
    news,
    week_before,
)
from strategy_core.domain.pair_noise import measure
from strategy_core.domain.plan import Plan
from strategy_core.domain.rollout_verdict import RolloutVerdict, VerdictKind
from strategy_core.domain.slots import Slots


def shadow(days: int, per_day: int, better_by: float, noise: float = 0.5) -> Slots:
    """Return slots on which version 2 earns that much more than version 1, with noise that sums to 0."""
    n = days * per_day
    active = np.where(np.arange(n) % 2, 1.0, -0.8)
    apart = better_by + noise * np.where(np.arange(n) % 4 < 2, 1.0, -1.0)
    side, symbol = np.ones(n, np.int64), np.zeros(n, np.int64)
    return Slots(np.repeat(np.arange(days), per_day), active + apart, active, side, side, symbol)


def judged(slots: Slots, calendar_days: float) -> ShadowVerdict:
    history = measure(slots, calendar_days, symbols=("GOLD",))
    return judge_shadow(Plan(), "2", "1", slots=slots, history=history, risk_fraction=0.01, shadow_days=180)


@pytest.mark.parametrize(
    ("slots", "days", "reading", "sentence"),
    [
        (
            shadow(2, 5, 0.0),
            4,
            Reading.TOO_FEW,
            "Nothing can be concluded on 2 against 1 yet: 10 of 30 slots on 2 of 3 days; "
            "next: wait about 8 more days at 2.5 slots a day.",
        ),
        (
            shadow(4, 7, 0.0),
            4,
            Reading.TOO_FEW,
            "Nothing can be concluded on 2 against 1 yet: 28 of 30 slots on 4 days; "
            "next: wait about 1 more day at 7.0 slots a day.",
        ),
        (
            shadow(0, 0, 0.0),
            4,
            Reading.TOO_FEW,
            "Nothing can be concluded on 2 against 1 yet: 0 of 30 slots on 0 of 3 days; next: wait for more slots.",
        ),
        (
            shadow(40, 8, 0.2),
            40,
            Reading.READY,
            "2 is not worse than 1 within 0.15 R a slot: +0.200 R a slot, at least +0.122, in 320 slots; "
            "next: preview its rollout, since it could pass the 5 % stage by now.",
        ),
        (
            shadow(10, 8, 0.0, 1.0),
            10,
            Reading.OPEN,
            "2 is not shown to be as good as 1 yet: +0.000 R a slot, at least -0.673, in 80 slots, and needs more than "
            "-0.150; next: wait about 151 more days at 8.0 slots a day.",
        ),
    ],
    ids=["few", "nearly", "none", "ready", "open"],
)
def test_a_shadow_has_a_verdict_with_figures_and_a_next_step(
    slots: Slots, days: float, reading: Reading, sentence: str
) -> None:
    found = judged(slots, days)

    assert (found.reading, found.sentence) == (reading, sentence)


def test_harm_in_shadow_comes_before_every_other_verdict() -> None:
    proven, likely = judged(shadow(30, 8, -0.5), 30), judged(shadow(12, 4, -0.5), 12)

    assert proven.reading is Reading.HARM
    assert proven.text.startswith("2 earns less than 1 in shadow: E reached ")
    assert likely.reading is Reading.LIKELY_HARM
    assert likely.sentence == (
        "2 seems to earn less than 1 in shadow: E = 10.3 against 20, -24.0 R in 48 slots (-24.0% of equity); its "
        "design effect is provisional; next: leave it in shadow for more slots."
    )


def test_a_version_that_signals_too_seldom_is_clear_to_take_too_long() -> None:
    found = judged(shadow(40, 1, 0.0, 2.0), 400)

    assert found.reading is Reading.NEVER
    assert found.sentence == (
        "2 cannot be judged against 1 in time: the 5 % stage needs 385 slots, and 180 days of shadow with 60 of a "
        "stage have 24 at 0.1 a day; next: a plan with wider margins, or retire it."
    )


def test_the_wait_is_shorter_if_the_mean_is_good() -> None:
    even, good = judged(shadow(10, 8, 0.0, 1.0), 10), judged(shadow(10, 8, 0.3, 1.0), 10)

    assert even.next_step == "wait about 151 more days at 8.0 slots a day"
    assert good.next_step == "wait about 13 more days at 8.0 slots a day"


@pytest.mark.parametrize(
    ("kind", "step"),
    [
        (VerdictKind.AWAITING_APPROVAL, "approve the stage, or roll it back"),
        (VerdictKind.SAFE, "nothing to do, ticks wait for more evidence"),
    ],
)
def test_a_rollouts_verdict_has_its_next_step(kind: VerdictKind, step: str) -> None:
    assert RolloutVerdict(kind, "").next_step == step


def test_sentences_become_one() -> None:
    assert as_clause("Safe so far: 9 of about 30 slots. Next stage in 3 h.") == (
        "safe so far: 9 of about 30 slots, next stage in 3 h"
    )
    assert as_clause("2.0.0 passed every gate. Promoted.") == "2.0.0 passed every gate, promoted"


STATE: dict[str, Any] = {
    "active": "1",
    "versions": {"1": "active", "2": "shadow"},
    "rollout": None,
    "gates": {},
    "readings": {"2": "too few slots"},
    "closed": {"1": "2026-03-02T10:00:00+00:00"},
}
ROLLOUT = {"id": "a", "version": "2", "state": "awaiting_approval", "percent": 5.0, "verdict": "safe"}


@pytest.mark.parametrize(
    ("before", "after", "lines"),
    [
        (None, {}, ["this is the first note about this strategy"]),
        ({}, {}, []),
        ({}, {"closed": {"1": "2026-03-03T10:00:00+00:00", "3": "2026"}}, ["trades have closed: 1, 3"]),
        ({}, {"readings": {"2": "not worse"}}, ["2: too few slots → not worse"]),
        (
            {},
            {"active": "2", "versions": {"1": "retired", "2": "active", "3": "shadow"}},
            ["the active version: 1 → 2", "1: active → retired", "3 is registered: shadow"],
        ),
        ({}, {"rollout": ROLLOUT}, ["a rollout of 2 has started: awaiting approval at 5 % of users, safe"]),
        ({"rollout": ROLLOUT}, {}, ["the rollout of 2 has ended"]),
        (
            {"rollout": ROLLOUT, "gates": {"harm": "pass", "errors": "pass"}},
            {"rollout": ROLLOUT | {"percent": 10.0}, "gates": {"harm": "inconclusive", "errors": "pass"}},
            ["the rollout of 2: awaiting approval at 10 % of users, safe", "gates: harm pass → inconclusive"],
        ),
    ],
)
def test_news_is_what_has_changed_since_the_last_note(
    before: dict[str, Any] | None, after: dict[str, Any], lines: list[str]
) -> None:
    assert list(news(None if before is None else STATE | before, STATE | after)) == lines


@pytest.mark.parametrize("hours", [0.5, 71.9])
def test_a_period_is_one_that_is_over(hours: float) -> None:
    monday = datetime(2026, 3, 2, tzinfo=UTC)
    now = monday + timedelta(hours=hours)
    midnight = monday + timedelta(days=int(hours // 24))

    assert day_before(now) == (midnight - timedelta(days=1), midnight)
    assert week_before(now) == (monday - timedelta(days=7), monday)
