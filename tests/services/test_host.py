"""What a slow host does to versions is no fault of theirs, and a version cannot hide its own faults as the host's."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine

from strategy_core.domain.audit import Command
from strategy_core.domain.errors import StrategyOverdue
from strategy_core.domain.evidence import SLOW_LOAD, VersionRun, host_at_fault
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan
from strategy_core.domain.ramp import Step
from strategy_core.isolation import protocol
from strategy_core.isolation.client import IsolatedStrategy
from strategy_core.isolation.pool import ReadAnswers, WorkerPool
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.report.rollout import rollback_markdown
from strategy_core.services.reports import read_rollback
from strategy_core.services.rollouts import start_rollout
from strategy_core.services.shadow import run_shadow
from strategy_core.services.tick import tick
from strategy_core.services.versions import register_version
from strategy_core.store.tables import StrategyVersion
from tests.builders import GOLD, HOUR, MONDAY, OWNER, decision_row, put_decisions
from tests.prepared import prepared
from tests.services.outbox import outbox
from tests.services.ramping import newest, ruled

LIMIT = "loading it took more than 60 s"


class SlowHost(WorkerPool):
    """A machine that does not load some versions in time."""

    def __init__(self, *late: str) -> None:
        super().__init__(at_once=2)
        self.late = late

    @contextmanager
    def borrow(self, version: StrategyVersion, read_answers: ReadAnswers) -> Iterator[IsolatedStrategy]:
        self._check(version)
        with super().borrow(version, read_answers) as worker:
            yield worker

    def time_load(self, version: StrategyVersion, read_answers: ReadAnswers) -> float:
        self._check(version)
        return 0.2

    def _check(self, version: StrategyVersion) -> None:
        if f"{version.strategy_name} {version.version}" in self.late:
            raise StrategyOverdue(LIMIT)


@pytest.fixture(scope="module")
def market() -> SyntheticSource:
    return gold()


def gold() -> SyntheticSource:
    return SyntheticSource((GOLD,), start=MONDAY.replace(month=1, day=1), days=300)


@pytest.fixture
def three(engine: Engine) -> Engine:
    """A canary of `clockwork` since Monday, and the active versions of two more strategies."""
    prepared(engine, start_on_monday)
    return engine


def start_on_monday(engine: Engine) -> None:
    for name, version, status, hours in (
        ("clockwork", "1", Status.ACTIVE, 6),
        ("clockwork", "2", Status.SHADOW, 4),
        ("a", "1", Status.ACTIVE, 6),
        ("b", "1", Status.ACTIVE, 6),
    ):
        register_version(
            engine,
            Command(OWNER, MONDAY),
            gold(),
            strategy_name=name,
            version=version,
            status=status,
            entry_point="tests.services.versions_under_test:Clockwork",
            config={"hours": hours},
            symbols=[GOLD],
            timeframe="1h",
        )
    start_rollout(engine, Command(OWNER, MONDAY), strategy_name="clockwork", version="2", plan=Plan())


def run(engine: Engine, market: SyntheticSource, now: datetime, *late: str) -> None:
    with SlowHost(*late) as workers:
        run_shadow(engine, market, workers, now=now)


def kinds(engine: Engine) -> list[str]:
    return [alert.kind for alert in outbox(engine) if not alert.kind.startswith("rollout.started")]


def test_a_host_that_loads_neither_version_takes_no_users_off_the_canary(
    three: Engine, market: SyntheticSource
) -> None:
    """It is blind until it can be judged again, and falls at the plan's limit as any blind rollout does."""
    run(three, market, MONDAY + 2 * HOUR)
    everything = ("clockwork 1", "clockwork 2", "a 1", "b 1")
    for minute in (0, 30):
        now = MONDAY + 5 * HOUR + timedelta(minutes=minute)
        run(three, market, now, *everything)
        step, reason = ruled(tick(three, market, now=now))
        assert (step, reason.partition(":")[0]) == (Step.HOLD, "freshness")
    assert newest(three).blind_since == MONDAY + 5 * HOUR
    assert kinds(three) == ["host.overloaded"]

    run(three, market, MONDAY + 7 * HOUR)
    ruled(tick(three, market, now=MONDAY + 7 * HOUR))

    assert newest(three).blind_since is None
    assert kinds(three) == ["host.overloaded", "incident.ended"]


def test_a_canary_that_only_an_overloaded_host_keeps_silent_is_blind_not_rolled_back(
    three: Engine, market: SyntheticSource
) -> None:
    """Most other active versions were late as well. Alone in being late, it is silent."""
    run(three, market, MONDAY + HOUR)
    run(three, market, MONDAY + 6 * HOUR, "clockwork 2", "a 1", "b 1")
    step, reason = ruled(tick(three, market, now=MONDAY + 6 * HOUR))
    assert step is Step.HOLD
    assert newest(three).blind_since is not None
    assert "host is at fault: 2 of 3 other active versions missed a time limit" in reason or "freshness" in reason
    alert = next(each for each in outbox(three) if each.kind == "host.overloaded")
    assert "not in time: clockwork 2, a 1, b 1" in alert.text.replace("a 1, b 1, clockwork 2", "clockwork 2, a 1, b 1")

    run(three, market, MONDAY + 7 * HOUR, "clockwork 2")
    step, reason = ruled(tick(three, market, now=MONDAY + 7 * HOUR))

    assert step is Step.ROLL_BACK
    assert reason.startswith("silence: no decision on 6 candles that the active version decided")


def test_a_canary_alone_in_being_late_is_rolled_back_and_the_report_names_why(
    three: Engine, market: SyntheticSource
) -> None:
    run(three, market, MONDAY + HOUR)
    run(three, market, MONDAY + 4 * HOUR, "clockwork 2")

    step, reason = ruled(tick(three, market, now=MONDAY + 4 * HOUR))

    assert (step, reason.partition(":")[0]) == (Step.ROLL_BACK, "silence")
    report = rollback_markdown(read_rollback(three, rollout_id=newest(three).id))
    assert "**Newest errors**\n\n- 2026\\-03\\-02 04\\:00\\: the version could not be run\\: loading it took" in report
    assert "**Open alerts**\n\n- 2026\\-03\\-02 04\\:00 critical\\, refused to run\\: loading it took" in report


@pytest.mark.full
@pytest.mark.parametrize(("late", "step"), [((), Step.ROLL_BACK), (("clockwork 1",), Step.HOLD)])
def test_a_run_that_asks_the_canary_alone_loads_the_control_to_compare(
    three: Engine, market: SyntheticSource, late: tuple[str, ...], step: Step
) -> None:
    run(three, market, MONDAY + HOUR)
    run(three, market, MONDAY + 5 * HOUR, "clockwork 2")  # all others decide, and are not asked again

    now = MONDAY + 5 * HOUR + timedelta(minutes=1)
    run(three, market, now, "clockwork 2", *late)

    assert ruled(tick(three, market, now=now))[0] is step


LATE = "error", "deadline"


@pytest.mark.parametrize(
    ("control", "canary", "step"),
    [
        (("hold", ""), LATE, Step.ROLL_BACK),
        (("hold", ""), ("error", "overload"), Step.HOLD),
        (LATE, LATE, Step.HOLD),
        (LATE, ("error", "raised"), Step.ROLL_BACK),
        (("error", "raised"), LATE, Step.ROLL_BACK),
    ],
)
def test_only_deadlines_of_the_canary_alone_roll_it_back(
    ramped: Engine, market: SyntheticSource, control: tuple[str, str], canary: tuple[str, str], step: Step
) -> None:
    for hour in range(6):
        for version, (decision, kind) in (("1", control), ("2", canary)):
            said = ("hold", "") if hour < 2 else (decision, kind)
            put_decisions(ramped, decision_row(version, MONDAY + hour * HOUR, said[0], error_kind=said[1]))

    found = ruled(tick(ramped, market, now=MONDAY + 6 * HOUR))

    assert found[0] is step, found[1]
    assert newest(ramped).blind_since is not None  # without a new decision of both, whoever is at fault


def test_a_host_that_stays_too_slow_ends_at_the_blind_limit(ramped: Engine, market: SyntheticSource) -> None:
    """Or a canary could be kept for ever by a host that nobody repairs."""
    for hour in range(30):
        put_decisions(
            ramped,
            decision_row("1", MONDAY + hour * HOUR),
            decision_row("2", MONDAY + hour * HOUR, "error", error_kind="overload"),
        )
        step, reason = ruled(tick(ramped, market, now=MONDAY + (hour + 1) * HOUR))
        if step is Step.ROLL_BACK:
            break

    assert step is Step.ROLL_BACK
    assert "blind for 24 h of at most 24 h" in reason


def of(name: str, *, serves: bool = True, **facts: Any) -> VersionRun:
    return VersionRun(name, "1", serves, **facts)


@pytest.mark.parametrize(
    ("others", "at_fault"),
    [
        ([], False),
        ([of("canary", hit=True)], False),
        ([of("x", hit=True)], True),
        ([of("x", load_share=SLOW_LOAD)], True),
        ([of("x", load_share=SLOW_LOAD - 0.01)], False),
        ([of("x", hit=True), of("y")], False),
        ([of("x", hit=True), of("y", load_share=0.9), of("z")], True),
        ([of("x"), *(of(name, serves=False, hit=True) for name in "abcdef")], False),
    ],
)
def test_the_host_is_at_fault_if_most_other_active_versions_were_slow(
    others: Collection[VersionRun], at_fault: bool
) -> None:
    assert bool(host_at_fault(of("canary", hit=True), list(others))) is at_fault


@pytest.mark.parametrize("kind", ["deadline", "died", "overload"])
def test_a_versions_code_cannot_choose_what_its_error_counts_as(kind: str) -> None:
    with pytest.raises(protocol.ProtocolError, match="an unknown kind of answer"):
        protocol.answers_in([[kind, "the host is slow", None, 1.0]])
