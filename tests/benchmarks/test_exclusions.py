"""What exclusions of users cost: one decision of a Router beside the bare hash, its memory, and a rollback beside them.

uv run pytest tests/benchmarks/test_exclusions.py -m benchmark_suite -n 0
"""

import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import Engine

from strategy_core import Router
from strategy_core.domain.audit import Command
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.routing import Routing
from strategy_core.domain.user_exclusions import ExclusionKind
from strategy_core.services.canary import activate_canary
from strategy_core.services.rollback import roll_back
from strategy_core.store import user_exclusions
from strategy_core.store.engine import open_database, reading, transaction, upgrade
from strategy_core.store.routing_reader import RoutingReader
from tests.benchmarks.test_router import ROUNDS, USERS, Way, bare, interleaved
from tests.builders import MONDAY, OWNER, put_version

pytestmark = pytest.mark.benchmark_suite
SOME, MANY = 10_000, 100_000
ROLLBACKS = 60
Told = Callable[[str], None]


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str]) -> Told:
    def tell(text: str) -> None:
        with capsys.disabled():
            sys.stdout.write(f"\n{text}")

    return tell


@pytest.fixture
def engine(sqlite_url: str) -> Iterator[Engine]:
    """Two strategies with a canary of 25 %. Of one, 10,000 users are excluded, some of those who ask among them."""
    engine = open_database(sqlite_url)
    for name in ("plain", "some"):
        put_canary(engine, name)
    exclude(engine, "some", SOME)
    yield engine
    engine.dispose()


def put_canary(engine: Engine, name: str) -> None:
    put_version(engine, "1", Status.ACTIVE, strategy_name=name)
    put_version(engine, "2", strategy_name=name)
    activate_canary(engine, Command(OWNER, MONDAY), strategy_name=name, version="2", rollout_percent=25)


def exclude(engine: Engine, name: str, number: int) -> None:
    kinds = (ExclusionKind.OPT_OUT, ExclusionKind.ALWAYS)
    with transaction(engine) as session:
        for place, kind in enumerate(kinds):
            users = [f"user_{i}" for i in range(5 * place, 10 * number, 10 * len(kinds))]
            users += [f"{kind}_{i}" for i in range(number // len(kinds) - len(users))]
            user_exclusions.exclude(session, name, kind, users, now=MONDAY, reason="", actor="ana")


def decisions(router: Router, strategy_name: str) -> Way:
    ask = router.version_for

    def run(users: Sequence[str]) -> None:
        for user in users:
            ask(user, strategy_name)

    return run


def test_one_decision_beside_the_bare_hash(engine: Engine, sqlite_url: str, tell: Told) -> None:
    with Router(sqlite_url) as router:
        served = router._table.served["some"]
        assert served is not None
        assert len(served.kept) + len(served.always) == SOME
        ways: dict[str, Way] = {
            "bare hash": bare,
            "none": decisions(router, "plain"),
            "10,000": decisions(router, "some"),
        }

        took = interleaved(ways, USERS, ROUNDS)

    for name, each in took.items():
        tell(f"{name:12} {each.seconds * 1e9:6.0f} ns  {each.ratio:.2f} x")
    assert took["none"].ratio <= 1.5
    assert took["10,000"].ratio <= 1.8


def test_the_memory_of_a_router_with_many_exclusions(engine: Engine, sqlite_url: str, tell: Told) -> None:
    """One set for all strategies that have no exclusions of their own."""
    for number in range(10):
        put_canary(engine, f"also {number}")
    exclude(engine, "*", MANY)
    tracemalloc.start()
    with Router(sqlite_url) as router:
        took, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        sets = {id(one.kept) for name, one in router._table.served.items() if name.startswith("also") and one}

    tell(f"{MANY:,} users excluded from 12 canaries: {took / 1e6:.1f} MB")
    assert len(sets) == 1
    assert took / MANY < 300  # bytes a user


def test_a_rollback_takes_no_longer_beside_100_000_exclusions(tmp_path: Path, tell: Told) -> None:
    """From the owner's call until a reader of routing has it, in turns on a database without and with exclusions.

    Another strategy's canary serves meanwhile, with all of these exclusions.
    """
    engines = [_with_canaries(tmp_path / f"{number}.db", number) for number in (0, MANY)]
    readers = [RoutingReader() for _ in engines]
    for engine, reader in zip(engines, readers, strict=True):
        _read(engine, reader, MONDAY)
    took = np.zeros((ROLLBACKS, 2))
    for turn in range(ROLLBACKS):
        for place, (engine, reader) in enumerate(zip(engines, readers, strict=True)):
            began = time.perf_counter()
            roll_back(engine, Command(OWNER, MONDAY, "harm"), strategy_name=f"strategy {turn}")
            routing = _read(engine, reader, MONDAY)
            took[turn, place] = time.perf_counter() - began
            found = routing[f"strategy {turn}"]
            assert found is not None
            assert found.canary is None
            while reader.behind:  # the exclusions are read again afterwards
                _read(engine, reader, MONDAY)

    plain, beside = np.median(took, axis=0)
    ratio = float(np.median(took[:, 1] / took[:, 0]))
    tell(
        f"rollback until it is read: {plain * 1e3:.1f} ms, "
        f"beside {MANY:,} exclusions {beside * 1e3:.1f} ms, {ratio:.2f} x"
    )
    for engine in engines:
        engine.dispose()
    assert ratio <= 1.2


def _with_canaries(file: Path, exclusions: int) -> Engine:
    engine = open_database(f"sqlite:///{file}")
    upgrade(engine)
    for number in range(ROLLBACKS):
        put_canary(engine, f"strategy {number}")
    put_canary(engine, "serving")
    if exclusions:
        exclude(engine, "*", exclusions)
    return engine


def _read(engine: Engine, reader: RoutingReader, now: datetime) -> dict[str, Routing | None]:
    with reading(engine) as session:
        return reader.read(session, now)
