"""The directory of users, replaced whole by what is loaded, and whom a plan reaches by it."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import Engine

from strategy_core.domain.alerts import Exposed
from strategy_core.domain.audit import Command
from strategy_core.domain.capital import capital_below
from strategy_core.domain.errors import InvalidReport, UnknownStrategy
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan
from strategy_core.domain.policy import Policy
from strategy_core.domain.routing import bucket_of, in_canary
from strategy_core.domain.user_exclusions import ExclusionKind
from strategy_core.services.canary import activate_canary, update_canary_percent
from strategy_core.services.declarations import set_policy
from strategy_core.services.user_exclusions import exclude_users
from strategy_core.services.users import Loaded, count_under, counted, load_users, load_users_csv, plan_audience
from strategy_core.store import users as user_store
from strategy_core.store import versions
from strategy_core.store.engine import open_database, reading, transaction
from strategy_core.store.tables import DirectoryTally
from tests.builders import MONDAY, OWNER, put_version, without_caps
from tests.waiting import until_somebody_waits

UNCAPPED = without_caps(Plan())
USERS: list[tuple[str, float | None]] = [(f"user_{number}", float(number % 7)) for number in range(2_000)]


def known(engine: Engine) -> dict[str, float | None]:
    with reading(engine) as session:
        return user_store.read_users(session)


def put_canary(engine: Engine, strategy_name: str, percent: float, *, salt: str = "") -> None:
    put_version(engine, "1", Status.ACTIVE, strategy_name=strategy_name, salt=salt)
    put_version(engine, "2", strategy_name=strategy_name)
    activate_canary(engine, Command(OWNER, MONDAY), strategy_name=strategy_name, version="2", rollout_percent=percent)


def test_a_load_is_the_whole_truth(engine: Engine) -> None:
    first = load_users(engine, [("a", 1.0), ("b", None), ("c", 3.0)], now=MONDAY)
    second = load_users(engine, [("b", 2.0), ("c", 3.0), ("d", None)], now=MONDAY)

    assert first == Loaded(users=3, added=3, removed=0, changed=0)
    assert second == Loaded(users=3, added=1, removed=1, changed=1)
    assert known(engine) == {"b": 2.0, "c": 3.0, "d": None}


@pytest.mark.parametrize(
    ("users", "problem"),
    [
        ([("a", 1.0), ("a", 2.0)], "users, row 2: user_id: 'a' is listed twice"),
        ([("a", -1.0)], "users, row 1: capital: Input should be greater than or equal to 0"),
        ([("a", float("inf"))], "users, row 1: capital: Input should be a finite number"),
        ([("", 1.0)], "users, row 1: user_id: String should have at least 1 character"),
        ([], "users: holds no users, and each load replaces the previous user list"),
    ],
)
def test_a_directory_that_cannot_be_leaves_the_one_before(
    engine: Engine, users: list[tuple[str, float | None]], problem: str
) -> None:
    load_users(engine, [("kept", 1.0)], now=MONDAY)

    with pytest.raises(InvalidReport, match=problem):
        load_users(engine, users, now=MONDAY)

    assert known(engine) == {"kept": 1.0}


def test_a_file_is_loaded(engine: Engine, tmp_path: Path) -> None:
    file = tmp_path / "users.csv"
    file.write_text("user_id,capital\na,1000.5\nb,\n")

    assert load_users_csv(engine, file, now=MONDAY).users == 2
    assert known(engine) == {"a": 1000.5, "b": None}
    file.write_text("user_id,capital\na,rich\n")
    with pytest.raises(InvalidReport, match="row 2: capital: 'rich' is not a number; needed is"):
        load_users_csv(engine, file, now=MONDAY)


def test_a_plan_counts_the_users_that_routing_would_send(engine: Engine) -> None:
    put_version(engine, "1", Status.ACTIVE)
    load_users(engine, USERS, now=MONDAY)

    reached = plan_audience(engine, strategy_name="fib_rsi", plan=UNCAPPED, now=MONDAY)

    for stage, found in zip(Plan().stages, reached.stages, strict=True):
        inside = [capital or 0.0 for user, capital in USERS if in_canary(user, stage.percent_bp)]
        assert (found.users, found.capital) == (len(inside), sum(inside))
        assert found.share == len(inside) / 2_000
    assert (reached.users, reached.capital_unknown, reached.estimated) == (2_000, 0, False)


def test_kept_users_are_in_no_stage_and_others_in_each(engine: Engine) -> None:
    put_version(engine, "1", Status.ACTIVE)
    load_users(engine, USERS, now=MONDAY)
    inside = [user for user, _ in USERS if in_canary(user, 500)]
    outside = next(user for user, _ in USERS if not in_canary(user, 5_000))
    for kind, name, users in (
        (ExclusionKind.OPT_OUT, "*", inside[:2]),
        (ExclusionKind.ALWAYS, "fib_rsi", [inside[0], outside, "of no list"]),
    ):
        exclude_users(engine, Command(OWNER, MONDAY), strategy_name=name, user_ids=users, kind=kind)
    count = counted(engine, MONDAY)

    reached = plan_audience(engine, strategy_name="fib_rsi", plan=UNCAPPED, now=MONDAY)

    assert (reached.users, reached.kept, reached.always) == (2_000, 2, 1)
    assert [reached.stages[0].users, reached.stages[-1].users] == [len(inside) - 2 + 1, 1_998]
    assert count("fib_rsi", Exposed(role="canary", percent=5)) == len(inside) - 1
    assert count("fib_rsi", Exposed(role="active", percent=95)) == 2_000 - len(inside) + 1


def test_a_plan_counts_what_routing_serves_with_a_holdout_and_exclusions(engine: Engine) -> None:
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2")
    load_users(engine, USERS, now=MONDAY)
    set_policy(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", policy=Policy(holdout_percent=2.5))
    inside = [user for user, _ in USERS if in_canary(user, 500)]
    held_out = [user for user, _ in USERS if not in_canary(user, 9_750)]
    for kind, users in ((ExclusionKind.NEVER, inside[:2]), (ExclusionKind.ALWAYS, held_out[:3])):
        exclude_users(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", user_ids=users, kind=kind)

    reached = plan_audience(engine, strategy_name="fib_rsi", plan=UNCAPPED, now=MONDAY)

    command = Command(OWNER, MONDAY)
    activate_canary(engine, command, strategy_name="fib_rsi", version="2", rollout_percent=0)
    for stage, found in zip(UNCAPPED.stages, reached.stages, strict=True):
        canary = update_canary_percent(engine, command, strategy_name="fib_rsi", percent=stage.percent)
        with reading(engine) as session:
            routing = versions.routing(session, "fib_rsi", MONDAY)
        served = [user for user, _ in USERS if routing.version_of(bucket_of(user), None, user) == "2"]
        assert (found.users, found.effective_percent) == (len(served), canary.rollout_percent)
    assert reached.stages[-1].effective_percent == 97.5
    assert "a holdout of 2.5 % of users is in no stage" in reached.notes[0]


def test_capital_is_of_those_whose_is_known(engine: Engine) -> None:
    put_version(engine, "1", Status.ACTIVE)
    load_users(engine, [("a", 30.0), ("b", None)], now=MONDAY)
    some = plan_audience(engine, strategy_name="fib_rsi", plan=Plan(), now=MONDAY)
    load_users(engine, [("a", None), ("b", None)], now=MONDAY)
    none = plan_audience(engine, strategy_name="fib_rsi", plan=Plan(), now=MONDAY)
    load_users(engine, [("a", 0.0)], now=MONDAY)
    empty = plan_audience(engine, strategy_name="fib_rsi", plan=Plan(), now=MONDAY)

    assert (some.capital, some.capital_unknown) == (30.0, 1)
    assert (some.stages[-1].capital, some.stages[-1].capital_share) == (30.0, 1.0)
    assert (none.capital, none.stages[-1].capital, none.stages[-1].capital_share) == (None, None, None)
    assert (empty.stages[-1].capital, empty.stages[-1].capital_share) == (0.0, None)


def test_without_a_directory_shares_are_estimates(engine: Engine) -> None:
    put_version(engine, "1", Status.ACTIVE)

    reached = plan_audience(engine, strategy_name="fib_rsi", plan=Plan(), now=MONDAY)

    assert reached.estimated
    assert [stage.share for stage in reached.stages] == [0.05, 0.10, 0.25, 0.50, 1.0]
    assert {(stage.users, stage.capital) for stage in reached.stages} == {(None, None)}


def test_canaries_of_one_salt_are_on_the_same_users(engine: Engine) -> None:
    """With a directory they are counted: whoever is below both percents is in both canaries."""
    put_version(engine, "1", Status.ACTIVE)
    put_canary(engine, "ppo_gold", 20)
    before = plan_audience(engine, strategy_name="fib_rsi", plan=UNCAPPED, now=MONDAY).overlaps
    load_users(engine, USERS, now=MONDAY)
    (overlap,) = plan_audience(engine, strategy_name="fib_rsi", plan=UNCAPPED, now=MONDAY).overlaps

    assert [(one.shares, one.users) for one in before] == [([0.05, 0.10, 0.20, 0.20, 0.20], None)]
    inside = [sum(in_canary(user, bp) for user, _ in USERS) for bp in (500, 1_000, 2_000)]
    assert overlap.users == [*inside, inside[-1], inside[-1]]
    assert (overlap.strategy_name, overlap.version, overlap.percent, overlap.same_salt) == ("ppo_gold", "2", 20.0, True)


def test_canaries_of_other_salts_meet_by_chance(engine: Engine) -> None:
    put_version(engine, "1", Status.ACTIVE)
    put_canary(engine, "ppo_gold", 20, salt="gold")
    load_users(engine, USERS, now=MONDAY)

    (overlap,) = plan_audience(engine, strategy_name="fib_rsi", plan=UNCAPPED, now=MONDAY).overlaps

    assert overlap.shares == pytest.approx([0.01, 0.02, 0.05, 0.10, 0.20])
    assert (overlap.users, overlap.same_salt) == ([20, 40, 100, 200, 400], False)


def test_the_audience_of_no_strategy_is_refused(engine: Engine) -> None:
    with pytest.raises(UnknownStrategy):
        plan_audience(engine, strategy_name="nope", plan=Plan(), now=MONDAY)


def users_under(engine: Engine, salt: str) -> int:
    with reading(engine) as session:
        return session.get_one(DirectoryTally, salt).users


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(lambda engine: count_under(engine, "new"), id="registration"),
        pytest.param(lambda engine: load_users(engine, [("a", None), ("b", 2.0)], now=MONDAY), id="load"),
    ],
)
def test_two_that_count_under_a_new_salt_at_once_both_come_through(
    postgresql_url: str, count: Callable[[Engine], object]
) -> None:
    """As two first registrations under one salt do; the version of each stands already."""
    engine = open_database(postgresql_url)
    load_users(engine, [("a", None), ("b", None)], now=MONDAY)
    put_version(engine, "1", salt="new")

    with ThreadPoolExecutor(1) as threads:
        with transaction(engine) as session:
            user_store.keep_counts(session, {"new": capital_below(np.array([1, 2]), np.array([1.0, 2.0]))})
            second = threads.submit(count, engine)
            until_somebody_waits(engine, unless=second)
        second.result()

    assert users_under(engine, "new") == 2
    engine.dispose()


def test_counts_are_of_the_directory_that_was_loaded_last(postgresql_url: str) -> None:
    """A strategy registered during a load is counted when that has ended, and by what it has loaded."""
    engine = open_database(postgresql_url)
    load_users(engine, [("a", None)], now=MONDAY)

    with ThreadPoolExecutor(1) as threads:
        with transaction(engine) as loading:
            user_store.hold_directory(loading)
            user_store.add_users(loading, [{"user_id": "b", "capital": None, "loaded_at": MONDAY}])
            counting = threads.submit(count_under, engine, "new")
            until_somebody_waits(engine, unless=counting)
        counting.result()

    assert users_under(engine, "new") == 2
    engine.dispose()


def test_capital_is_summed_below_each_bucket(engine: Engine) -> None:
    load_users(engine, [(f"user_{n}", float(n) if n % 3 else None) for n in range(300)], now=MONDAY)
    put_version(engine, "1", salt="gold")
    count_under(engine, "gold")

    with reading(engine) as session:
        below = user_store.read_below(session, "gold")
        rich = user_store.accounts_above(session, 296.5)
        some = user_store.capital_of(session, ["user_3", "user_4", "stranger"])

    assert below is not None
    inside = [n for n in range(300) if in_canary(f"user_{n}", 2_500, "gold")]
    assert below.users[2_500] == len(inside)
    assert below.unknown[2_500] == sum(n % 3 == 0 for n in inside)
    assert below.capital[2_500] == sum(n for n in inside if n % 3)
    assert below.mean == sum(n for n in range(300) if n % 3) / 200
    assert rich == {"user_298": 298.0, "user_299": 299.0}
    assert some == {"user_3": None, "user_4": 4.0}


def test_capital_is_unknown_until_the_first_load_of_this_release(engine: Engine) -> None:
    load_users(engine, [("a", 1.0)], now=MONDAY)
    put_version(engine, "1")
    count_under(engine, "")
    with transaction(engine) as session:
        row = session.get_one(DirectoryTally, "")
        row.capital_below = row.unknown_below = b""
        session.add(row)

    with reading(engine) as session:
        below = user_store.read_below(session, "")

    assert below is not None
    assert (below.users[-1], below.mean) == (1, None)


def test_a_plan_is_previewed_under_its_cap(engine: Engine) -> None:
    put_version(engine, "1", Status.ACTIVE)
    users = [(f"user_{n}", 1.0 + (n % 10 == 0) * 29.0) for n in range(1_000)]  # a tenth holds three quarters
    load_users(engine, [*users, ("whale", 40_000.0)], now=MONDAY)

    reached = plan_audience(engine, strategy_name="fib_rsi", plan=Plan(), now=MONDAY)
    uncapped = plan_audience(engine, strategy_name="fib_rsi", plan=UNCAPPED, now=MONDAY)

    assert reached.large_accounts == 1
    assert reached.large_above == pytest.approx(0.005 * 43_900)
    assert reached.notes[0].startswith("1 large account, above 220, stays with the active version")
    assert [stage.effective_percent for stage in reached.stages] == [5, 10, 25, 50, 100]
    assert [stage.left_out for stage in reached.stages][-1] == 0
    assert reached.stages[-1].capital_share == uncapped.stages[-1].capital_share == 1.0
    assert all(stage.capital_share <= stage.percent / 100 for stage in reached.stages if stage.capital_share)

    tight = [stage.model_copy(update={"capital_percent": 0.2}) for stage in Plan().stages[:1]]
    plan = Plan().model_copy(update={"stages": (*tight, *Plan().stages[1:])})
    narrowed = plan_audience(engine, strategy_name="fib_rsi", plan=plan, now=MONDAY)
    (first, *_) = narrowed.stages
    assert 0 < first.effective_percent < 5
    assert first.capital_share is not None
    assert first.capital_share <= 0.002
    assert f"at 5 % the canary gets {first.effective_percent:g} % of users" in narrowed.notes[1]
