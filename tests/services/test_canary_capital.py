"""The cap on the capital of a canary, from the start of a rollout to its end."""

from collections.abc import Iterable
from datetime import datetime, timedelta

import pytest
from sqlalchemy import Engine, event, text

from strategy_core.domain.audit import Command
from strategy_core.domain.capital import served_of_asked
from strategy_core.domain.errors import AlreadyRolledBack, CapitalUnknown
from strategy_core.domain.plan import Plan, Stage
from strategy_core.domain.ramp import State, Step
from strategy_core.domain.routing import bucket_of
from strategy_core.domain.user_exclusions import ExclusionKind
from strategy_core.market.calendars import CALENDARS
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.observe.metrics import exposition
from strategy_core.services.audit import read_audit, verify_trail
from strategy_core.services.canary import activate_canary
from strategy_core.services.fleet import read_fleet
from strategy_core.services.queries import Scope, list_canaries
from strategy_core.services.rollback import roll_back
from strategy_core.services.rollouts import Choice, approve, decide_rollout, pause, resume, start_rollout
from strategy_core.services.status import read_status
from strategy_core.services.tick import tick
from strategy_core.services.user_exclusions import exclude_users
from strategy_core.services.users import load_users
from strategy_core.store import alerts, rollouts, user_exclusions, versions
from strategy_core.store import users as user_store
from strategy_core.store.canary_reach import read_canary_reach
from strategy_core.store.engine import reading, transaction
from strategy_core.store.tables import CanaryConfig, Rollout
from tests.builders import DAY, HOUR, MONDAY, OWNER, put_pair, without_caps
from tests.services.ramping import days, newest, ruled

NAME = "fib_rsi"
USERS = [f"user_{number}" for number in range(1_000)]
BY_BUCKET = sorted(USERS, key=bucket_of)
EQUAL = dict.fromkeys(USERS, 1.0)


def load(
    engine: Engine, capital: dict[str, float] | dict[str, float | None], now: datetime = MONDAY
) -> tuple[str, ...]:
    return load_users(engine, capital.items(), now=now).reviewed


def canary(engine: Engine) -> CanaryConfig:
    with reading(engine) as session:
        return rollouts.get_canary(session, NAME)


def served(engine: Engine) -> tuple[float, float]:
    found = canary(engine)
    return found.rollout_percent, found.asked_percent


def on_canary(engine: Engine, users: Iterable[str] = USERS, now: datetime = MONDAY + 300 * DAY) -> set[str]:
    """Return who gets the canary by the rule of the Router."""
    with reading(engine) as session:
        routing = versions.routing(session, NAME, now)
    return {user for user in users if routing.version_of(bucket_of(user), None, user) == "2"}


def share_on_canary(engine: Engine, capital: dict[str, float]) -> float:
    return sum(capital[user] for user in on_canary(engine)) / sum(capital.values())


def start(engine: Engine, plan: Plan | None = None, override_reason: str = "") -> Rollout:
    command = Command(OWNER, MONDAY, override_reason=override_reason)
    return start_rollout(engine, command, strategy_name=NAME, version="2", plan=plan or Plan())


def large(engine: Engine) -> list[str]:
    with reading(engine) as session:
        return user_exclusions.users_with(session, NAME, ExclusionKind.LARGE_ACCOUNT)


def rich_below(bucket: int, capital: float) -> dict[str, float]:
    """Return capital by user: those below the bucket have *capital*, and the others 1."""
    return {user: capital if bucket_of(user) < bucket else 1.0 for user in USERS}


@pytest.fixture
def pair(engine: Engine) -> Engine:
    put_pair(engine)
    return engine


def check_trail(engine: Engine) -> None:
    """Every change of the canary follows from the trail. Only the versions were not registered in it."""
    problems = list(verify_trail(engine).problems())
    assert [each for each in problems if "has no audit event that created it" not in each] == []


def test_a_start_serves_what_fits_into_the_cap(pair: Engine) -> None:
    capital = rich_below(500, 3.0)
    load(pair, capital)

    start(pair)

    percent, asked = served(pair)
    assert (asked, percent < 5) == (5.0, True)
    assert 0.045 < share_on_canary(pair, capital) <= 0.05
    with reading(pair) as session:
        (started,) = alerts.find_alerts(session, NAME, limit=1)
    assert f"started at {served_of_asked(percent, 5.0)} against 1" in started.text
    check_trail(pair)


def test_without_a_directory_the_start_serves_the_percent(pair: Engine) -> None:
    start(pair)

    assert served(pair) == (5.0, 5.0)


def test_a_plan_without_caps_reads_no_capital(pair: Engine) -> None:
    load(pair, rich_below(500, 3.0))
    statements: list[str] = []
    event.listen(pair, "before_cursor_execute", lambda *args: statements.append(args[2]))

    start(pair, without_caps(Plan()))

    assert served(pair) == (5.0, 5.0)
    read = [each for each in statements if "directory_tally" in each or "platform_user" in each]
    assert [each for each in read if "DISTINCT strategy.salt" not in each] == []  # which counts are missing


def test_large_accounts_wait_for_100_percent(pair: Engine, market: SyntheticSource) -> None:
    capital = EQUAL | {BY_BUCKET[0]: 40.0, BY_BUCKET[-1]: 40.0}
    load(pair, capital)

    start(pair)

    assert large(pair) == sorted([BY_BUCKET[0], BY_BUCKET[-1]])
    assert served(pair) == (5.0, 5.0)
    assert BY_BUCKET[0] not in on_canary(pair)
    now = days(pair, MONDAY, 4)
    for _ in range(3):
        assert ruled(tick(pair, market, now=now))[0] is Step.ADVANCE
        assert BY_BUCKET[0] not in on_canary(pair)
        now = days(pair, now, 1)
    tick(pair, market, now=now)
    approve(pair, Command(OWNER, now, "reviewed"), strategy_name=NAME)
    assert ruled(tick(pair, market, now=now))[0] is Step.ADVANCE
    assert served(pair) == (100.0, 100.0)
    assert on_canary(pair) == set(USERS)
    assert large(pair) == []
    check_trail(pair)


def test_each_stage_is_capped_when_it_is_entered(pair: Engine, market: SyntheticSource) -> None:
    capital = rich_below(2_000, 3.0)
    load(pair, capital)
    start(pair)
    now = days(pair, MONDAY, 4)

    for cap in (0.10, 0.25, 0.50):
        assert ruled(tick(pair, market, now=now))[0] is Step.ADVANCE
        assert cap - 0.005 < share_on_canary(pair, capital) <= cap
        now = days(pair, now, 1)
    percent, asked = served(pair)
    assert (asked, percent < 50) == (50.0, True)
    check_trail(pair)


def test_the_capital_of_users_with_exclusions_counts_where_they_are(pair: Engine) -> None:
    load(pair, EQUAL)
    out, wanted = BY_BUCKET[:20], BY_BUCKET[-10:]
    for users, kind in ((out, ExclusionKind.OPT_OUT), (wanted, ExclusionKind.ALWAYS)):
        exclude_users(pair, Command(OWNER, MONDAY), strategy_name=NAME, user_ids=users, kind=kind)

    start(pair, Plan().model_copy(update={"stages": (_capped(0, 2.0), *Plan().stages[1:])}))

    got = on_canary(pair)
    assert len(got) == 20  # 2 % of equal capital
    assert set(wanted) < got
    assert not got & set(out)


def _capped(index: int, percent: float) -> Stage:
    return Plan().stages[index].model_copy(update={"capital_percent": percent})


def half_known() -> dict[str, float | None]:
    return {user: 1.0 if number % 2 else None for number, user in enumerate(USERS)}


def test_a_start_with_too_much_unknown_capital_needs_an_override(pair: Engine) -> None:
    load(pair, half_known())

    with pytest.raises(CapitalUnknown, match="the capital of 50% of the users is unknown, 20% at most may be"):
        start(pair)
    start(pair, override_reason="the rest is small")

    assert served(pair)[1] == 5.0


def test_unknown_capital_holds_the_next_stage_and_no_rollback(pair: Engine, market: SyntheticSource) -> None:
    load(pair, EQUAL)
    start(pair)
    load(pair, half_known())
    now = days(pair, MONDAY, 4)

    step, reason = ruled(tick(pair, market, now=now))

    assert (step, reason[:40]) == (Step.HOLD, "the capital of 50% of the users is unkno")
    load(pair, EQUAL)
    assert ruled(tick(pair, market, now=now))[0] is Step.ADVANCE
    load(pair, half_known())
    now = days(pair, now, 1, {"1": 0.4, "2": -1.0})
    now = days(pair, now, 6, {"1": 0.4, "2": -1.0})
    assert ruled(tick(pair, market, now=now))[0] is Step.ROLL_BACK


def test_at_the_end_of_the_stage_an_owner_decides_on_unknown_capital(pair: Engine, market: SyntheticSource) -> None:
    load(pair, EQUAL)
    start(pair, Plan(maximum_stage_time=timedelta(days=3)))
    load(pair, half_known())
    now = days(pair, MONDAY, 4)

    assert ruled(tick(pair, market, now=now))[0] is Step.AWAIT_DECISION
    with pytest.raises(CapitalUnknown):
        decide_rollout(pair, Command(OWNER, now, "go on"), strategy_name=NAME, choice=Choice.ADVANCE)
    allowed = Command(OWNER, now, "go on", override_reason="the others are small")
    decide_rollout(pair, allowed, strategy_name=NAME, choice=Choice.ADVANCE)

    assert served(pair)[1] == 10.0
    check_trail(pair)


def test_a_failure_of_the_cap_holds_the_stage_and_spoils_nothing(pair: Engine, market: SyntheticSource) -> None:
    load(pair, EQUAL)
    start(pair)
    now = days(pair, MONDAY, 4)
    with transaction(pair) as session:
        session.connection().execute(text("ALTER TABLE directory_tally RENAME TO elsewhere"))

    step, reason = ruled(tick(pair, market, now=now))

    assert step is Step.HOLD
    assert reason.startswith("the cap on capital cannot be computed")
    assert newest(pair).last_tick_at == now  # the tick itself is recorded
    roll_back(pair, Command(OWNER, now, "enough"), strategy_name=NAME)
    assert newest(pair).state == State.ROLLED_BACK
    assert served(pair) == (0.0, 0.0)


def test_a_rollback_reads_and_writes_nothing_of_the_cap(pair: Engine) -> None:
    load(pair, EQUAL | {BY_BUCKET[0]: 40.0})
    start(pair)
    statements: list[str] = []
    event.listen(pair, "before_cursor_execute", lambda *args: statements.append(args[2]))

    roll_back(pair, Command(OWNER, MONDAY + HOUR, "enough"), strategy_name=NAME)

    touched = ("directory_tally", "platform_user", "canary_exclusion")
    assert [each for each in statements if any(table in each for table in touched)] == []
    assert on_canary(pair) == set()
    check_trail(pair)


def test_a_new_rollout_does_not_keep_the_large_accounts_of_the_last(pair: Engine) -> None:
    load(pair, EQUAL | {BY_BUCKET[0]: 40.0})
    start(pair)
    roll_back(pair, Command(OWNER, MONDAY + HOUR, "enough"), strategy_name=NAME)
    assert large(pair) == [BY_BUCKET[0]]

    load(pair, EQUAL | {BY_BUCKET[1]: 40.0}, MONDAY + 2 * HOUR)
    again = Command(OWNER, MONDAY + 3 * HOUR, override_reason="another try")
    start_rollout(pair, again, strategy_name=NAME, version="2", plan=Plan())
    assert large(pair) == [BY_BUCKET[1]]
    roll_back(pair, Command(OWNER, MONDAY + 4 * HOUR, "enough"), strategy_name=NAME)

    by_hand = Command(OWNER, MONDAY + 5 * HOUR, override_reason="by hand")
    activate_canary(pair, by_hand, strategy_name=NAME, version="2", rollout_percent=5)
    assert large(pair) == []
    assert served(pair) == (5.0, 5.0)
    check_trail(pair)


def test_the_tick_after_a_rollback_lets_large_accounts_go(pair: Engine, market: SyntheticSource) -> None:
    load(pair, EQUAL | {BY_BUCKET[0]: 40.0})
    start(pair)
    tick(pair, market, now=MONDAY + HOUR)
    assert large(pair) == [BY_BUCKET[0]], "while the canary serves"
    roll_back(pair, Command(OWNER, MONDAY + HOUR, "enough"), strategy_name=NAME)

    for minute in (1, 2):
        tick(pair, market, now=MONDAY + HOUR + minute * timedelta(minutes=1))

    assert large(pair) == []
    ended, before = read_audit(pair, NAME, limit=2)[::-1]
    assert (ended.action, ended.after["users"]["ids"]) == ("end_exclusions", [BY_BUCKET[0]])
    assert before.action == "roll_back"
    with pytest.raises(AlreadyRolledBack):
        roll_back(pair, Command(OWNER, MONDAY + 2 * HOUR, "again"), strategy_name=NAME)
    check_trail(pair)


def test_the_event_of_a_resumed_stage_shows_its_new_large_accounts(pair: Engine) -> None:
    load(pair, EQUAL)
    start(pair)
    pause(pair, Command(OWNER, MONDAY + HOUR), strategy_name=NAME)
    load(pair, EQUAL | {BY_BUCKET[-1]: 40.0}, MONDAY + HOUR)
    assert large(pair) == []

    resume(pair, Command(OWNER, MONDAY + 2 * HOUR), strategy_name=NAME)

    (event_of_resume,) = read_audit(pair, NAME, limit=1)
    assert event_of_resume.after["users"]["ids"] == large(pair) == [BY_BUCKET[-1]]
    check_trail(pair)


def test_a_load_narrows_a_canary_beyond_its_tolerance(pair: Engine) -> None:
    load(pair, EQUAL)
    start(pair)
    before = on_canary(pair)

    assert load(pair, rich_below(500, 1.2), MONDAY + DAY) == ()  # 5.9 %: within 1.25 × the cap
    assert on_canary(pair) == before
    capital = rich_below(500, 3.0)
    (line,) = load(pair, capital, MONDAY + 2 * DAY)

    assert "hold 13.3% of all capital, with a cap of 5 %; it now serves" in line
    assert on_canary(pair) < before  # nobody new
    assert 0.045 < share_on_canary(pair, capital) <= 0.05
    with reading(pair) as session:
        (alert,) = alerts.find_alerts(session, NAME, limit=1)
    assert (alert.kind, alert.severity) == ("canary.capital_exceeded", "warning")
    assert alert.facts["exposed_before"]["percent"] == 4.83
    check_trail(pair)


def test_a_load_adds_nobody(pair: Engine) -> None:
    """Users would fit again. But a load is no evidence, so they wait for the next stage."""
    load(pair, rich_below(500, 3.0))
    start(pair)
    before = on_canary(pair)

    assert load(pair, EQUAL, MONDAY + DAY) == ()
    assert on_canary(pair) == before
    check_trail(pair)


def uncount(engine: Engine) -> None:
    """Leave the directory without counts, as a process does that ends after it has registered a strategy."""
    with transaction(engine) as session:
        session.connection().execute(text("DELETE FROM directory_tally"))


def test_a_directory_that_was_not_counted_is_counted_by_a_start(pair: Engine) -> None:
    load(pair, rich_below(500, 3.0))
    uncount(pair)

    start(pair)

    assert share_on_canary(pair, rich_below(500, 3.0)) <= 0.05
    check_trail(pair)


def test_a_directory_that_is_not_counted_holds_the_stage_until_a_tick_has_counted_it(
    pair: Engine, market: SyntheticSource
) -> None:
    load(pair, EQUAL)
    start(pair)
    now = days(pair, MONDAY, 4)
    uncount(pair)

    step, reason = ruled(tick(pair, market, now=now))

    assert step is Step.HOLD
    assert reason.startswith("the user directory is not counted for this strategy yet. Load it again")
    assert ruled(tick(pair, market, now=now + HOUR))[0] is Step.ADVANCE
    assert share_on_canary(pair, EQUAL) <= 0.1


def test_a_canary_that_has_served_nobody_does_not_get_everyone(pair: Engine, market: SyntheticSource) -> None:
    load(pair, EQUAL)
    start(pair, Plan(stages=(Plan().stages[0], Plan().stages[-1]), approve_before=()))
    exclude_users(pair, Command(OWNER, MONDAY), strategy_name=NAME, kind=ExclusionKind.OPT_OUT, user_ids=USERS)
    now = days(pair, MONDAY, 4)

    step, reason = ruled(tick(pair, market, now=now))

    assert step is Step.HOLD
    assert reason.startswith("it serves no user of the directory at 5 %, so everyone would be the first")
    roll_back(pair, Command(OWNER, now, "enough"), strategy_name=NAME)


def test_an_account_that_has_grown_large_is_taken_out(pair: Engine) -> None:
    load(pair, EQUAL)
    start(pair)

    before = served(pair)
    (line,) = load(pair, EQUAL | {BY_BUCKET[0]: 100.0}, MONDAY + DAY)

    assert line.endswith("without 1 large account")
    assert served(pair) == before  # the others fit
    assert large(pair) == [BY_BUCKET[0]]
    check_trail(pair)


def test_a_resumed_stage_is_capped_again(pair: Engine) -> None:
    load(pair, EQUAL)
    start(pair)
    pause(pair, Command(OWNER, MONDAY + HOUR), strategy_name=NAME)
    load(pair, rich_below(500, 1.2), MONDAY + DAY)

    resume(pair, Command(OWNER, MONDAY + DAY), strategy_name=NAME)

    percent, asked = served(pair)
    assert (asked, percent < 5) == (5.0, True)
    check_trail(pair)


def test_what_a_canary_holds_is_shown_as_routing_serves_it(pair: Engine) -> None:
    capital = rich_below(500, 3.0) | {BY_BUCKET[0]: 40.0}
    load(pair, capital)
    for users, kind in ((BY_BUCKET[1:4], ExclusionKind.OPT_OUT), (BY_BUCKET[-2:], ExclusionKind.ALWAYS)):
        exclude_users(pair, Command(OWNER, MONDAY), strategy_name=NAME, user_ids=users, kind=kind)
    start(pair)
    now = MONDAY + HOUR

    with reading(pair) as session:
        reach = read_canary_reach(session, None, now)[NAME]
    (row,) = read_fleet(pair, now=now, overdue=DAY, calendar=CALENDARS["always"]).rows
    ((_, _, listed, _),) = list_canaries(pair, Scope(), now=now)
    (status,) = read_status(pair, now=now)
    scraped = exposition(pair, now=now)[0].decode()

    assert reach.users == len(on_canary(pair, now=now))
    assert reach.capital_share == pytest.approx(share_on_canary(pair, capital))
    assert (reach.asked_bp, reach.left_out) == (500, 4)
    assert listed == status.reach == reach
    assert (row.users_exposed, row.capital_share, row.asked) == (reach.users, reach.capital_share, 5.0)
    assert f'canary_capital_share{{strategy="{NAME}",version="2"}} {reach.capital_share}' in scraped
    assert f'canary_asked_percent{{strategy="{NAME}",version="2"}} 5.0' in scraped


def test_the_cost_of_a_stage_does_not_depend_on_the_users(pair: Engine) -> None:
    load(pair, EQUAL)
    lines: list[str] = []
    with reading(pair) as session:
        below = user_store.read_below(session, "")
        assert below is not None
        assert user_store.accounts_above(session, below.large_above(0.5) or 0.0) == {}
        if pair.dialect.name == "sqlite":  # PostgreSQL scans a table as small as this
            asked = text("EXPLAIN QUERY PLAN SELECT user_id FROM platform_user WHERE capital > 1e9")
            lines = [str(line) for line in session.connection().execute(asked)]
    assert pair.dialect.name != "sqlite" or "ix_user_capital" in "".join(lines)
