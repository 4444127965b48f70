"""Random histories of rollouts, trades, owners' acts and kills: no position is ever without a manager that decides."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlalchemy import select
from sqlmodel import col

from strategy_core.domain.audit import Command
from strategy_core.domain.errors import RolloutError
from strategy_core.domain.lifecycle import Status
from strategy_core.services.audit import verify_trail
from strategy_core.services.canary import activate_canary
from strategy_core.services.drain import drain
from strategy_core.services.live_trades import ingest
from strategy_core.services.positions import OpenTrade, flatten, hand_over, reconcile
from strategy_core.services.rollback import roll_back
from strategy_core.services.rollouts import start_rollout
from strategy_core.services.tick import tick
from strategy_core.services.versions import activate_version, retire_version
from strategy_core.store import positions, versions
from strategy_core.store.engine import open_database, reading
from strategy_core.store.tables import LiveTrade, PositionChange, PositionExit
from tests.builders import HOUR, MONDAY, OWNER, decision_row, put_decisions, put_version
from tests.faults.killing import Killed, boundaries, raising_at
from tests.fuzz.damage import rules
from tests.lending import Databases
from tests.services.ramp_model import Terms
from tests.services.random_owners import NeverClosed, plan_of

NAME = "fib_rsi"
VERSIONS = ["1", "2", "3", "4"]
PLANS = [Terms(percents=(10.0, 100.0), approve_before=(), bake=3 * HOUR, watch=watch) for watch in (False, True)]
Open = Callable[[], AbstractContextManager[str]]


class Histories(RuleBasedStateMachine):
    """One strategy with four versions. An act may be killed at any statement, and the next drain mends what is left."""

    database: Open

    def __init__(self) -> None:
        super().__init__()
        self._lent = self.database()
        self.url = self._lent.__enter__()
        self.engine = open_database(self.url)
        self.now = MONDAY
        self.trades = 0

    def teardown(self) -> None:
        self.engine.dispose()
        self._lent.__exit__(None, None, None)

    @initialize()
    def begin(self) -> None:
        for version in VERSIONS:
            put_version(self.engine, version, recorded=True)
        activate_version(self.engine, Command(OWNER, self.now), strategy_name=NAME, version="1")

    def act(self, call: Callable[..., Any], kill: int | None, *asked: Any, **more: Any) -> None:
        """Do it. It may be refused, and killed at the boundary *kill*: then the drain of the next minute runs."""
        self.now += timedelta(minutes=1)
        dying = open_database(self.url)
        point = 10**9 if kill is None else kill
        try:
            with boundaries(dying, raising_at(point)):
                call(dying, *asked, **more)
        except RolloutError:
            pass
        except Killed:
            drain(self.engine, NeverClosed(works=True), now=self.now)
        finally:
            dying.dispose()

    def command(self) -> Command:
        return Command(OWNER, self.now + timedelta(minutes=1), "so", override_reason="so")

    KILLS = st.one_of(st.none(), st.none(), st.integers(1, 60))
    NUMBERS = st.integers(0, 30)
    ANY = st.sampled_from(VERSIONS)

    @rule(version=ANY, kill=KILLS, states=st.sampled_from(["open", "open", "open", "closed", "failed", "closed open"]))
    def report_a_new_trade(self, version: str, kill: int | None, states: str) -> None:
        self.trades += 1
        batch = [self.report(f"t{self.trades}", version, state) for state in states.split()]
        self.act(ingest, kill, batch, now=self.now + timedelta(minutes=1))

    @rule(number=NUMBERS, kill=KILLS, state=st.sampled_from(["open", "closed", "closed", "other version"]))
    def report_a_known_trade(self, number: int, kill: int | None, state: str) -> None:
        with reading(self.engine) as session:
            known = session.execute(
                select(col(LiveTrade.trade_id), col(LiveTrade.version), col(LiveTrade.opened_at))
            ).all()
        if known:
            trade_id, version, opened_at = known[number % len(known)]
            if state == "other version":
                version = VERSIONS[VERSIONS.index(version) - 1]
            batch = [self.report(trade_id, version, "open" if state == "open" else "closed", opened_at)]
            self.act(ingest, kill, batch, now=self.now + timedelta(minutes=1))

    def report(self, trade_id: str, version: str, state: str, opened_at: datetime | None = None) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "trade_id": trade_id,
            "user_id": f"u-{trade_id}",
            "strategy_name": NAME,
            "version": version,
        }
        facts |= {"symbol": "GOLD", "opened_at": opened_at or self.now}
        if state == "closed":
            facts |= {"closed_at": opened_at or self.now, "pnl": 1.0, "risk": 1.0}
        return facts | ({"error": "no money"} if state == "failed" else {})

    @rule(version=ANY, kill=KILLS)
    def activate(self, version: str, kill: int | None) -> None:
        self.act(activate_version, kill, self.command(), strategy_name=NAME, version=version)

    @rule(version=ANY, kill=KILLS)
    def begin_canary(self, version: str, kill: int | None) -> None:
        self.act(activate_canary, kill, self.command(), strategy_name=NAME, version=version, rollout_percent=20.0)

    @rule(version=ANY, kill=KILLS, terms=st.sampled_from(PLANS), ends=st.sampled_from(["pin", "flatten"]))
    def start(self, version: str, kill: int | None, terms: Terms, ends: str) -> None:
        plan = plan_of(terms).model_copy(update={"on_rollback": ends})
        self.act(start_rollout, kill, self.command(), strategy_name=NAME, version=version, plan=plan)

    @rule(version=st.one_of(st.none(), ANY), kill=KILLS)
    def roll_back(self, version: str | None, kill: int | None) -> None:
        self.act(roll_back, kill, self.command(), strategy_name=NAME, version=version)

    @rule(version=ANY, kill=KILLS, to=st.sampled_from(["", "", "1", "2", "3", "flatten"]))
    def retire(self, version: str, kill: int | None, to: str) -> None:
        self.act(retire_version, kill, self.command(), strategy_name=NAME, version=version, orphans_to=to)

    @rule(version=ANY, to=ANY, kill=KILLS)
    def hand_over(self, version: str, to: str, kill: int | None) -> None:
        self.act(hand_over, kill, self.command(), strategy_name=NAME, version=version, to_version=to)

    @rule(version=ANY, kill=KILLS, after=st.sampled_from([0, 5]))
    def flatten(self, version: str, kill: int | None, after: int) -> None:
        self.act(flatten, kill, self.command(), strategy_name=NAME, version=version, after=after * HOUR)

    @rule(numbers=st.lists(NUMBERS, max_size=5), kill=KILLS)
    def take_a_snapshot(self, numbers: list[int], kill: int | None) -> None:
        trades = [OpenTrade(f"t{number}", 1.0) for number in dict.fromkeys(numbers)]
        self.act(reconcile, kill, self.command(), strategy_name=NAME, taken_at=self.now, trades=trades)

    @rule(hours=st.integers(1, 9), closing=st.sets(ANY), silent=st.sets(ANY, max_size=1), kill=KILLS)
    def let_hours_pass(self, hours: int, closing: set[str], silent: set[str], kill: int | None) -> None:
        """Decide on each hour, tick and drain. In the last hour, *closing* versions leave their positions."""
        for hour in range(hours):
            self.now = self.now.replace(minute=0) + HOUR
            with reading(self.engine) as session:
                deciding = [v for v in versions.list_versions(session, NAME) if v.status != Status.RETIRED]
            last = hour == hours - 1
            rows = [
                decision_row(v.version, self.now - HOUR, intent="close" if last and v.version in closing else "open")
                for v in deciding
                if v.version not in silent
            ]
            put_decisions(self.engine, *rows)
            self.now += timedelta(seconds=1)
            tick(self.engine, NeverClosed(works=True), now=self.now)
        leaving = closing - silent - {v for v in VERSIONS if v not in {each.version for each in deciding}}
        with reading(self.engine) as session:
            due = [
                each.trade_id
                for each in positions.find_positions(session, [NAME])
                if each.manager in leaving and each.opened_at < self.now and each.managed_since < self.now
            ]
        self.act(drain, kill, NeverClosed(works=True), now=self.now)
        drain(self.engine, NeverClosed(works=True), now=self.now)
        with reading(self.engine) as session:
            announced = set(session.execute(select(col(PositionExit.trade_id))).scalars())
        assert set(due) <= announced, "an exit was delayed"

    @invariant()
    def every_open_position_has_one_manager_that_decides(self) -> None:
        with reading(self.engine) as session:
            found = {each.version: each for each in versions.list_versions(session, NAME)}
            for position in positions.find_positions(session, [NAME]):
                if position.manager is None:
                    assert position.flatten_at is not None
                else:
                    assert found[position.manager].status != Status.RETIRED

    @invariant()
    def open_positions_are_the_open_trades(self) -> None:
        with reading(self.engine) as session:
            trades = session.execute(select(col(LiveTrade.trade_id), col(LiveTrade.state))).all()
            held = {each.trade_id for each in positions.find_positions(session, [NAME])}
            counted = sum(positions.managers(session, NAME).values())
        closed = {trade for trade, state in trades if state == "closed"}
        assert held == {trade for trade, state in trades if state == "open"} - closed
        assert counted == len(held)

    @invariant()
    def managers_change_by_a_recorded_act_alone(self) -> None:
        with reading(self.engine) as session:
            rows = session.execute(
                select(col(PositionChange.trade_id), col(PositionChange.after))
                .where(col(PositionChange.kind) == "hand_over")
                .order_by(col(PositionChange.id))
            ).all()
            given = {trade: after for trade, after in rows}  # noqa: C416
            for each in positions.find_positions(session, [NAME], open_only=False):
                assert each.manager in (given.get(each.trade_id, each.opened_by), None)

    @invariant()
    def an_exit_is_told_once_and_the_trail_holds(self) -> None:
        with reading(self.engine) as session:
            told = select(col(PositionExit.trade_id), col(PositionExit.why) == "flatten")
            announced = [tuple(row) for row in session.execute(told)]
        assert len(announced) == len(set(announced))
        assert list(verify_trail(self.engine).problems()) == []


def drive(opened: Open, examples: int) -> None:
    class Driven(Histories):
        database = staticmethod(opened)

    run_state_machine_as_test(Driven, settings=settings(rules(examples), stateful_step_count=30))


@pytest.fixture
def sqlite(sqlite_template: Path, tmp_path: Path) -> Open:
    @contextmanager
    def opened() -> Iterator[str]:
        file = tmp_path / "positions.db"
        shutil.copy(sqlite_template, file)
        yield f"sqlite:///{file}"
        for each in tmp_path.glob("positions.db*"):
            each.unlink()

    return opened


@pytest.fixture
def on_postgresql(postgresql_databases: Databases) -> Open:
    @contextmanager
    def opened() -> Iterator[str]:
        yield postgresql_databases.lend()
        postgresql_databases.take_back()

    return opened


@pytest.mark.drawn
@pytest.mark.full
@pytest.mark.parametrize("database", ["sqlite", "on_postgresql"])
def test_no_history_leaves_a_position_without_a_manager(database: str, request: pytest.FixtureRequest) -> None:
    drive(request.getfixturevalue(database), 20)
