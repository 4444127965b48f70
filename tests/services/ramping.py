"""What tests of rollouts share: days of evidence, and where a rollout stands."""

from datetime import datetime

from sqlalchemy import Engine

from strategy_core.domain.ramp import Step
from strategy_core.services.tick import TickResult
from strategy_core.store import rollouts, versions
from strategy_core.store.engine import reading
from strategy_core.store.tables import Rollout
from tests.builders import DAY, put_day

SIGNAL_HOURS = range(0, 20, 2)

SAME = {"1": 0.4, "2": 0.4}


def days(engine: Engine, first: datetime, count: int, worth: dict[str, float] = SAME) -> datetime:
    """Log *count* days of ten signals each and return when they are over."""
    for day in range(count):
        put_day(engine, first + day * DAY, dict.fromkeys(worth, "buy"), worth, signal_hours=SIGNAL_HOURS)
    return first + count * DAY


def newest(engine: Engine) -> Rollout:
    with reading(engine) as session:
        return rollouts.list_rollouts(session)[0]


def standing(engine: Engine) -> tuple[dict[str, str], float]:
    with reading(engine) as session:
        return (
            {version.version: version.status for version in versions.list_versions(session)},
            rollouts.get_canary(session, "fib_rsi").rollout_percent,
        )


def ruled(ticked: list[TickResult]) -> tuple[Step, str]:
    (one,) = ticked
    assert one.ruling is not None, one.error
    return one.ruling.step, one.ruling.reason
