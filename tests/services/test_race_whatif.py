"""A race on past candles: its days and rollouts, from replayed decisions, with nothing written."""

from datetime import datetime

import pytest
from sqlalchemy import Engine

from strategy_core.domain.errors import Incomparable, InvalidRace, InvalidSetting, NotReplayed
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan, read_plan
from strategy_core.services.race_whatif import RaceOnReplays, race_on_replays
from strategy_core.store import replays
from strategy_core.store.engine import transaction
from tests.builders import DAY, HOUR, MONDAY, outcome_row, put_replays, put_version, replay_row
from tests.pictures import picture

START = MONDAY - 90 * DAY
WORTH = {"1": 0.1, "2": 0.6, "3": -0.6}
STAGE = {"minimum_time": 86_400, "margins": {"pnl_r": 1.0}, "capital_percent": None}
PLAN = read_plan(
    {
        "stages": [{**STAGE, "percent": 10}, {**STAGE, "percent": 100}],
        "approve_before": [],
        "bake": 86_400,
        "largest_account_percent": None,
        "gates": [{"kind": "harm"}, {"kind": "not_worse", "minimum_slots": 6, "minimum_days": 2}],
    }
)


@pytest.fixture
def replayed(engine: Engine) -> Engine:
    """Version 2 is better than 1, version 3 is worse: 80 days, four signals a day. Version 4 is not replayed."""
    for version in ("1", "2", "3", "4"):
        put_version(engine, version, Status.ACTIVE if version == "1" else Status.SHADOW)
    put_replayed_days(engine)
    return engine


def put_replayed_days(engine: Engine) -> None:
    for day in range(80):
        put_replayed_day(engine, START + day * DAY, swing=0.2 if day % 2 else -0.2)


def put_replayed_day(engine: Engine, day: datetime, *, swing: float) -> None:
    hours = [day + hour * HOUR for hour in range(0, 24, 6)]
    put_replays(engine, *(replay_row(version, at, "buy") for version in WORTH for at in hours))
    booked = [outcome_row(version, at, r + swing * (version != "1")) for version, r in WORTH.items() for at in hours]
    with transaction(engine) as session:
        replays.add_outcomes(session, [{k: v for k, v in row.items() if k != "decision_id"} for row in booked])


def asked(engine: Engine, *candidates: str, plan: Plan = PLAN, shadow_days: int = 30) -> RaceOnReplays:
    return race_on_replays(engine, strategy_name="fib_rsi", candidates=candidates, plan=plan, shadow_days=shadow_days)


def test_the_better_version_is_nominated_and_promoted_and_nothing_is_written(replayed: Engine) -> None:
    was = picture(replayed)

    found = asked(replayed, "2", "3")

    assert picture(replayed) == was
    assert (found.start, found.end) == ((START + 30 * DAY).date(), (START + 79 * DAY).date())
    assert found.slots == 4 * 80 - 1  # the newest candle itself is the end of the period
    assert found.totals["2"] == pytest.approx(4 * 49 * 0.6, abs=1.0)
    started, promoted = found.events[:2]
    assert (started.day, started.version, promoted.version, promoted.what) == (found.start, "2", "2", "promoted")
    assert started.what.startswith("its rollout starts: 2 leads with +0.5")
    assert {row.version: row.status.value for row in found.standings}["3"] == "eliminated"
    assert found.best_fixed == pytest.approx(4 * 49 * 0.5, abs=1.0)
    assert 0 < found.gain < found.best_fixed
    assert found.switches == 1.0


def test_what_cannot_be_raced_is_refused(replayed: Engine) -> None:
    with pytest.raises(NotReplayed, match="rollout replay fib_rsi 4"):
        asked(replayed, "2", "4")
    with pytest.raises(InvalidRace, match="once"):
        asked(replayed, "2", "2")
    with pytest.raises(Incomparable, match="it is the active version"):
        asked(replayed, "1", "2")
    with pytest.raises(InvalidSetting, match="30 days are left"):
        asked(replayed, "2", shadow_days=60)


def test_only_candles_of_the_period_count(replayed: Engine) -> None:
    found = race_on_replays(
        replayed,
        strategy_name="fib_rsi",
        candidates=["2"],
        plan=PLAN,
        shadow_days=15,
        start=START + 10 * DAY + HOUR,
        end=START + 60 * DAY,
    )

    assert (found.start, found.end) == ((START + 26 * DAY).date(), (START + 60 * DAY).date())
    assert found.slots == 4 * 49
