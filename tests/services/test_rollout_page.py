"""What the console shows of a rollout: stages over time, users, bounds."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, event

from strategy_core.domain.audit import Command
from strategy_core.domain.errors import UnknownRollout
from strategy_core.domain.policy import Policy
from strategy_core.domain.routing import bucket_of
from strategy_core.domain.user_exclusions import ExclusionKind
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services.declarations import set_policy
from strategy_core.services.reports import read_progress
from strategy_core.services.rollback import roll_back
from strategy_core.services.rollout_page import RolloutPage, Standing, newest_rollout, read_rollout_page
from strategy_core.services.rollout_reach import read_reach
from strategy_core.services.tick import tick
from strategy_core.services.user_exclusions import exclude_users
from strategy_core.services.users import load_users
from strategy_core.store import rollouts, versions
from strategy_core.store.engine import reading, transaction
from strategy_core.store.tables import GateVerdict
from tests.builders import DAY, HOUR, MONDAY, OWNER, put_pair
from tests.services.ramping import days, newest


def page_of(engine: Engine, now: datetime) -> RolloutPage:
    return read_rollout_page(engine, "fib_rsi", newest(engine).id, now=now)


def test_stages_are_shown_with_when_they_began_and_when_the_next_should(
    ramped: Engine, market: SyntheticSource
) -> None:
    load_users(ramped, [(f"user_{n}", None) for n in range(200)], now=MONDAY)
    now = days(ramped, MONDAY, 8)
    tick(ramped, market, now=now)

    page = page_of(ramped, now)

    first, second, *later, bake = page.passages
    assert (first.standing, first.entered, first.expected) == (Standing.DONE, MONDAY, None)
    assert (second.standing, second.entered) == (Standing.NOW, now)
    assert [each.standing for each in later] == [Standing.AHEAD] * len(later)
    assert bake.expected is not None
    assert [each.expected for each in (*later, bake)] == sorted(
        each.expected for each in (*later, bake) if each.expected
    )
    assert page.reach.percent == second.percent
    assert page.events[0].action == "advance"
    assert page.bound is None or page.bound.low


def test_a_page_takes_as_many_statements_after_more_days(ramped: Engine, market: SyntheticSource) -> None:
    now = days(ramped, MONDAY, 4)
    tick(ramped, market, now=now)
    first = _statements(ramped, now)
    now = days(ramped, now, 3)
    tick(ramped, market, now=now)

    assert _statements(ramped, now) == first


def _statements(engine: Engine, now: datetime) -> int:
    seen: list[str] = []

    def count(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        seen.append(statement)

    event.listen(engine, "before_cursor_execute", count)
    page_of(engine, now)
    event.remove(engine, "before_cursor_execute", count)
    return len(seen)


def test_users_are_counted_as_in_reports_without_reading_the_directory(ramped: Engine) -> None:
    load_users(ramped, [(f"user_{n}", None) for n in range(3_000)], now=MONDAY)
    rollout = newest(ramped)

    reach = read_reach(ramped, "fib_rsi", rollout.id, now=MONDAY + HOUR)

    (progress,) = read_progress(ramped, [rollout.id], now=MONDAY + HOUR)
    assert (reach.users(reach.percent), reach.everyone) == (progress.users, progress.directory)
    assert reach.users(reach.percent) is not None


def test_pages_and_reports_count_the_users_that_routing_serves(ramped: Engine) -> None:
    """With exclusions of users and a holdout, and as they were at the time."""
    users = [f"user_{n}" for n in range(3_000)]
    inside = [user for user in users if bucket_of(user) < 500]
    load_users(ramped, [(user, None) for user in users], now=MONDAY)
    for kind, name, chosen in (
        (ExclusionKind.NEVER, "fib_rsi", inside[:3]),
        (ExclusionKind.OPT_OUT, "*", inside[2:4]),
        (ExclusionKind.ALWAYS, "fib_rsi", [inside[3], *[user for user in users if bucket_of(user) > 9_800][:5]]),
    ):
        command = Command(OWNER, MONDAY + HOUR)
        exclude_users(ramped, command, strategy_name=name, user_ids=chosen, kind=kind)
    set_policy(ramped, Command(OWNER, MONDAY + HOUR), strategy_name="fib_rsi", policy=Policy(holdout_percent=2))
    rollout, now = newest(ramped), MONDAY + 2 * HOUR

    reach = read_reach(ramped, "fib_rsi", rollout.id, now=now)

    with reading(ramped) as session:
        routing = versions.routing(session, "fib_rsi", now)
    served = sum(routing.version_of(bucket_of(user), None, user) == "2" for user in users)
    (progress,) = read_progress(ramped, [rollout.id], now=now)
    assert reach.users(reach.percent) == progress.users == served == len(inside) - 4 + 5
    assert progress.served[-1].users == served
    assert reach.users(100) == sum(bucket_of(user) < 9_800 for user in users) - 4 + 5
    assert (reach.everyone, reach.is_exact) == (3_000, True)
    (before,) = read_progress(ramped, [rollout.id], now=MONDAY + HOUR / 2)
    assert before.users == len(inside)
    assert not read_reach(ramped, "fib_rsi", rollout.id, now=now, most_exclusions=2).is_exact


def test_a_rolled_back_rollout_ends_at_its_stage_and_reaches_nobody(ramped: Engine) -> None:
    roll_back(ramped, Command(OWNER, MONDAY + HOUR, "bleeds"), strategy_name="fib_rsi")

    page = page_of(ramped, MONDAY + DAY)

    first, *later = page.passages
    assert first.standing is Standing.ENDED
    assert first.ended is not None
    assert (first.ended.action, first.ended.reason) == ("roll_back", "bleeds")
    assert {each.standing for each in later} == {Standing.NOT_REACHED}
    assert (page.reach.percent, page.reach.previous, page.reach.active) == (0.0, None, "1")


def test_a_path_of_bounds_has_at_most_so_many_points_and_the_newest(ramped: Engine) -> None:
    rollout = newest(ramped)
    facts: dict[str, Any] = {
        "rollout_id": rollout.id,
        "stage_index": 0,
        "gate": "not_worse",
        "verdict": "inconclusive",
        "armed": True,
    }
    with transaction(ramped) as session:
        for number in range(97):
            at = MONDAY + timedelta(minutes=number)
            session.add(GateVerdict(ticked_at=at, reason="", value=0.1, low=-number, limit=-0.15, n=number, **facts))

    with reading(ramped) as session:
        found = rollouts.interval_path(session, rollout.id, "not_worse", most=10)

    assert len(found) == 10
    assert [at for at, *_ in found] == sorted(at for at, *_ in found)
    assert found[-1] == (MONDAY + timedelta(minutes=96), 0.1, -96.0, -0.15)


def test_a_strategy_without_a_rollout_has_no_page(engine: Engine) -> None:
    put_pair(engine)

    with pytest.raises(UnknownRollout, match="of 'fib_rsi'"):
        newest_rollout(engine, "fib_rsi")
