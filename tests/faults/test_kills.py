"""A kill at any boundary of any operation, and a repetition, give the result of an undisturbed run.

`-m long -s` kills at every boundary, by a raise and by SIGKILL, and prints the table of
docs/explanation/benchmarks.md.
"""

from contextlib import suppress

import pytest
from sqlalchemy import Engine

from strategy_core.domain.audit import Command
from strategy_core.services.all_strategies import complete_changes
from strategy_core.services.audit import read_audit
from strategy_core.services.rollback import roll_back
from strategy_core.store import rollouts
from strategy_core.store.engine import transaction
from tests.builders import OWNER
from tests.conftest import DATABASES
from tests.faults.copies import Copies, PostgresqlCopies, SqliteCopies
from tests.faults.invariants import picture
from tests.faults.killing import Killed, boundaries, raising_at
from tests.faults.operations import NOW, OPERATIONS, Operation, World, ramped
from tests.faults.running import Fault, Row, faulted, run_whole

_BY_DEFAULT = {"tick: roll back", "an owner's rollback"}  # the others run with `-m full`
_FEW = 3  # boundaries beside the commits'; the whole sweep is `long`
_COSTLY = {"register", "register the first, active"}  # each vets a version in a worker of its own, for a second


@pytest.mark.parametrize(
    ("copies", "name"),
    [
        pytest.param(database, name, marks=[] if name in _BY_DEFAULT else pytest.mark.full)
        for database in DATABASES
        for name in OPERATIONS
    ],
    indirect=["copies"],
)
def test_a_killed_operation_is_done_once_or_not_at_all_and_can_be_done_again(
    copies: Copies, world: World, name: str
) -> None:
    whole = run_whole(copies, name, world)
    commits = [at for at, boundary in enumerate(whole.points, start=1) if boundary.endswith("COMMIT")]
    spread = range(1, len(whole.points) + 1, max(1, len(whole.points) // _FEW))
    points = commits[-2:] if name in _COSTLY else sorted({*commits[-4:], *spread})

    row = faulted(copies, name, points, world, whole, Fault.RAISE)

    assert row.violations == []
    assert row.faults == len(points) > 1


@pytest.mark.parametrize(
    "every",
    [pytest.param(8, id="one in eight", marks=pytest.mark.full), pytest.param(1, id="all", marks=pytest.mark.long)],
)
@pytest.mark.parametrize(
    "name",
    [
        *("tick: advance, positions open", "tick: promote, positions open", "tick: complete, positions open"),
        *("tick: roll back, positions open", "an owner's rollback, positions open"),
        *("an owner's rollback after the promotion, positions open", "activate, positions open"),
    ],
)
def test_a_kill_at_any_statement_leaves_no_orphan(copies: Copies, world: World, name: str, every: int) -> None:
    whole = run_whole(copies, name, world)
    points = range(len(whole.points), 0, -every)  # the last is after the commit

    row = faulted(copies, name, points, world, whole, Fault.RAISE)

    assert row.violations == []
    assert row.faults == len(points) > 20 / every


OF_ALL = ("exclude users of all strategies", "end exclusions of all strategies", "lift a freeze of all strategies")


@pytest.mark.full
@pytest.mark.parametrize("name", OF_ALL)
def test_a_change_of_all_strategies_is_completed_by_its_repetition(copies: Copies, world: World, name: str) -> None:
    """Killed at any statement."""
    whole = run_whole(copies, name, world)
    points = range(1, len(whole.points) + 1)

    row = faulted(copies, name, points, world, whole, Fault.RAISE)

    assert row.violations == []
    assert row.faults == len(points) > 40


@pytest.mark.parametrize("name", [OF_ALL[0], *(pytest.param(one, marks=pytest.mark.full) for one in OF_ALL[1:])])
def test_a_change_of_all_strategies_is_completed_by_the_next_tick(copies: Copies, world: World, name: str) -> None:
    operation = OPERATIONS[name]
    whole = run_whole(copies, name, world)
    of_whole = {row for row in whole.states[-1]["audit_event"] if row not in whole.states[0]["audit_event"]}
    commits = [at for at, boundary in enumerate(whole.points, start=1) if boundary == "after COMMIT"]
    left = []

    for point in commits:
        with copies.copy(operation.prepare) as copy:
            with boundaries(copy.dying, raising_at(point)), suppress(Killed):
                operation.act(copy.dying, world, NOW)
            before = picture(copy.living)["audit_event"]
            complete_changes(copy.living)
            complete_changes(copy.living)
            after = picture(copy.living)["audit_event"]
            left.append(sum(row in before for row in of_whole))
            assert {row: after[row] for row in of_whole} == dict.fromkeys(of_whole, 1)

    assert left == [1, 2, 3], "events that the killed process has written"


@pytest.mark.full
@pytest.mark.parametrize("name", ["tick: roll back", "alerts"])
def test_a_process_that_is_really_killed_leaves_nothing_half_done(copies: Copies, world: World, name: str) -> None:
    """SIGKILL amid a transaction: the server notices that its client is dead, and the next process finds no lock."""
    whole = run_whole(copies, name, world)
    last = max(at for at, boundary in enumerate(whole.points, start=1) if boundary == "before COMMIT")

    row = faulted(copies, name, [last // 2, last, last + 1], world, whole, Fault.SIGKILL)

    assert row.violations == []


@pytest.mark.full
@pytest.mark.parametrize("name", ["an owner's rollback", "tick: roll back", "activate"])
def test_a_lost_connection_undoes_or_keeps_a_change_and_which_is_found_out(
    postgresql_copies: PostgresqlCopies, world: World, name: str
) -> None:
    """When the answer to a commit is lost, the trail shows whether it was committed."""
    whole = run_whole(postgresql_copies, name, world)
    commits = [at for at, boundary in enumerate(whole.points, start=1) if boundary.endswith("COMMIT")]

    amid = [at for at, boundary in enumerate(whole.points, start=1) if "SAVEPOINT" in boundary]  # what else is let pass

    row = faulted(postgresql_copies, name, [commits[-1] - 9, *amid, *commits[-2:]], world, whole, Fault.LOST)

    assert row.violations == []


@pytest.mark.parametrize(
    "name",
    [
        "an owner's rollback",
        *(pytest.param(n, marks=pytest.mark.full) for n in ("tick: roll back", "live trades", "alerts")),
    ],
)
def test_on_a_full_disk_nothing_is_half_written_and_it_goes_on_when_there_is_room(
    sqlite_copies: SqliteCopies, world: World, name: str
) -> None:
    whole = run_whole(sqlite_copies, name, world)
    commits = [at for at, boundary in enumerate(whole.points, start=1) if boundary == "before COMMIT"]

    row = faulted(sqlite_copies, name, [len(whole.points) // 2, *commits[-2:]], world, whole, Fault.FULL)

    assert row.violations == []


def test_work_that_is_done_in_parts_is_seen(copies: Copies, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A faulty operation is detected: it moves users in one transaction and writes the trail in another."""

    def careless(engine: Engine, *_: object) -> None:
        with transaction(engine) as session:
            rollouts.set_canary_share(session, "fib_rsi", 1000)
        roll_back(engine, Command(OWNER, NOW, "news"), strategy_name="fib_rsi")

    monkeypatch.setitem(OPERATIONS, "careless", Operation(ramped, careless))
    whole = run_whole(copies, "careless", world)

    row = faulted(copies, "careless", [whole.points.index("after COMMIT") + 1], world, whole, Fault.RAISE)

    assert {each.rpartition("): ")[2].partition(":")[0] for each in row.violations} >= {
        "canary_as_its_rollout",
        "chain_intact",
    }


@pytest.mark.parametrize(
    ("name", "percent"),
    [
        ("tick: held by a freeze", 5.0),
        ("a scheduled start in a freeze", 0.0),
        ("tick: roll back in a freeze", 0.0),
        ("an owner's rollback in a freeze", 0.0),
    ],
)
def test_a_freeze_holds_what_gives_more_users_and_no_rollback(
    copies: Copies, world: World, name: str, percent: float
) -> None:
    with copies.copy(OPERATIONS[name].prepare) as copy:
        OPERATIONS[name].act(copy.living, world, NOW)

        events = read_audit(copy.living)
        assert events[-1].after["percent"] == percent
        assert ("roll_back" in [event.action for event in events]) is ("roll" in name)


@pytest.mark.long
@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("fault", Fault)
def test_a_fault_at_every_boundary(copies: Copies, world: World, rows: list[Row], name: str, fault: Fault) -> None:
    whole = run_whole(copies, name, world)
    points = range(1, len(whole.points) + 1) if fault.befalls(copies.database) else []

    row = faulted(copies, name, points, world, whole, fault)

    rows += [row] if points else []
    assert row.violations == []
