"""Run an operation to a boundary, kill it there, start again, and look: what the table of faults is made of."""

import multiprocessing
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from strategy_core.domain.errors import NotFound, Refused
from strategy_core.store.engine import failure, open_database
from tests.faults.copies import Copies, Copy
from tests.faults.invariants import INVARIANTS, Picture, differences, picture, violations
from tests.faults.killing import Killed, boundaries, full_at, losing_at, raising_at, really_at
from tests.faults.operations import NOW, OPERATIONS, World
from tests.services.outbox import ids

_FORKS = multiprocessing.get_context("forkserver")  # imports once, children inherit no threads or locks
_FORKS.set_forkserver_preload(["tests.faults.running"])


@dataclass
class Row:
    """What became of one operation on one database."""

    operation: str
    database: str
    fault: str
    points: int
    faults: int = 0
    checks: int = 0
    violations: list[str] = field(default_factory=list)

    def checked(self, found: Iterable[str], at: str, checks: int) -> None:
        self.checks += checks
        self.violations += [f"{self.operation} on {self.database} {at}: {each}" for each in found]


@dataclass(frozen=True)
class Whole:
    """An undisturbed run: its boundaries, and the database before it and after each commit."""

    points: list[str]
    states: list[Picture]
    received: int


def run_whole(copies: Copies, name: str, world: World) -> Whole:
    operation = OPERATIONS[name]
    with copies.copy(operation.prepare) as copy:
        states = [picture(copy.living)]

        def look(_: int, boundary: str, __: object) -> None:
            if boundary == "after COMMIT":
                states.append(picture(copy.living))

        world.receiver.posted.clear()
        with boundaries(copy.dying, look) as passed:
            operation.act(copy.dying, world, NOW)
        return Whole(passed, states, len(set(ids(world.receiver))))


class Fault(StrEnum):
    RAISE = "killed"  # seen from inside, its connection cut
    SIGKILL = "SIGKILL"
    LOST = "connection lost"  # the process lives on
    FULL = "disk full"

    def befalls(self, database: str) -> bool:
        return {Fault.LOST: "PostgreSQL", Fault.FULL: "SQLite"}.get(self, database) == database


def faulted(copies: Copies, name: str, points: Sequence[int], world: World, whole: Whole, fault: Fault) -> Row:
    """Apply the fault to the operation at each of *points*, each time on a new copy, and run it again."""
    row = Row(name, copies.database, fault, len(whole.points))
    for point in points:
        at = f"{fault} {whole.points[point - 1]} ({point})"
        with copies.copy(OPERATIONS[name].prepare) as copy:
            world.receiver.posted.clear()
            befell = _BEFALL[fault](copy, name, point, world)
            row.faults += 1
            row.checked([] if befell else ["nothing befell it"], at, 1)
            told_of = fault is Fault.FULL and name.startswith("tick")  # a tick that fails is noted as a blind one
            restart(copy.living, name, world, whole, row, at, exact=not told_of)
    return row


def restart(engine: Engine, name: str, world: World, whole: Whole, row: Row, at: str, *, exact: bool = True) -> None:
    """Check what a fault has left, repeat the work, and check that the result is that of an undisturbed run.

    Args:
        exact: whether all rows must be the same, or only the routing.
    """
    operation = OPERATIONS[name]
    found = picture(engine)
    row.checked(violations(engine, whole.states[0], found), at, len(INVARIANTS))
    if exact:
        row.checked([] if found in whole.states else ["half done", *differences(whole.states[0], found)], at, 1)
    try:
        operation.act(engine, world, NOW + operation.again_after)
    except (Refused, NotFound):  # it was done before the kill, and a repetition is refused
        row.checked([] if found == whole.states[-1] else ["refused, though it was not done"], at, 1)
    after = picture(engine)
    row.checked(violations(engine, whole.states[0], after), f"{at}, restarted", len(INVARIANTS))
    same = after if exact else {name: after[name] for name in ("strategy_version", "canary_config", "booked_slot")}
    row.checked(differences(same, whole.states[-1]), f"{at}, restarted", 1)
    copies = Counter(ids(world.receiver))
    told = len(copies) == whole.received and max(copies.values(), default=1) <= 2
    row.checked([] if told else [f"the receiver got {copies}"], f"{at}, restarted", 1)


def _killed(copy: Copy, name: str, point: int, world: World) -> bool:
    with boundaries(copy.dying, raising_at(point)):
        try:
            OPERATIONS[name].act(copy.dying, world, NOW)
        except Killed:
            return True
    return False


def _really_killed(copy: Copy, name: str, point: int, world: World) -> bool:
    process = _FORKS.Process(target=_live, args=(copy.url, name, point, world.receiver.url))
    process.start()
    process.join()
    return process.exitcode == -9


def _lost(copy: Copy, name: str, point: int, world: World) -> bool:
    """Lose a connection. The operation recovers, or fails with a database error."""
    with boundaries(copy.dying, losing_at(point)) as passed:
        try:
            OPERATIONS[name].act(copy.dying, world, NOW)
        except DBAPIError as error:
            return len(failure(error).splitlines()) == 1
        return len(passed) >= point


def _full(copy: Copy, name: str, point: int, world: World) -> bool:
    """Fill the disk. The operation succeeds without space, or fails with a database error."""
    with full_at(point) as at, boundaries(copy.dying, at) as passed:
        try:
            OPERATIONS[name].act(copy.dying, world, NOW)
        except DBAPIError as error:
            return failure(error) in _NO_ROOM
        return len(passed) >= point


_NO_ROOM = [f"the database refuses to work: {said}" for said in ("database or disk is full", "disk I/O error")]
_BEFALL = {Fault.RAISE: _killed, Fault.SIGKILL: _really_killed, Fault.LOST: _lost, Fault.FULL: _full}


def _live(url: str, name: str, point: int, receiver: str) -> None:
    """Be the process that dies."""
    engine = open_database(url)
    with boundaries(engine, really_at(point)):
        OPERATIONS[name].act(engine, World(receiver), NOW)


def table(rows: Iterable[Row]) -> str:
    """Return the rows as a table of Markdown, with their sum."""
    listed = list(rows)
    total = Row(
        "all", "both", "", *(sum(getattr(row, name) for row in listed) for name in ("points", "faults", "checks"))
    )
    total.violations = [each for row in listed for each in row.violations]
    lines = [
        "| operation | database | fault | points | faults | invariants checked | violations |",
        "|---|---|---|--:|--:|--:|--:|",
    ]
    for row in (*listed, total):
        told = (row.operation, row.database, row.fault, row.points, row.faults, f"{row.checks:,}", len(row.violations))
        lines.append(f"| {' | '.join(map(str, told))} |")
    return "\n".join(lines)
