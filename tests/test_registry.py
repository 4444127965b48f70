"""VersionRegistry on both databases, and a race of activations."""

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

import pytest
from sqlalchemy import Engine, text

from strategy_core.domain.audit import Actor
from strategy_core.domain.errors import (
    DuplicateFingerprint,
    DuplicateVersion,
    IllegalTransition,
    InvalidConfig,
    InvalidPercent,
    InvalidTimeframe,
    UnknownStrategy,
    UnknownVersion,
)
from strategy_core.domain.lifecycle import Status
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.registry import VersionRegistry
from strategy_core.store import audit
from strategy_core.store.engine import reading
from tests.builders import DAY, MONDAY, put_version
from tests.conftest import SQLITE_FIRST

RACERS = 8
TRIES = 6


@pytest.fixture(params=SQLITE_FIRST)
def database_url(request: pytest.FixtureRequest) -> str:
    """Use SQLite by default and PostgreSQL with `-m full`: what differs between them is tested with the services."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
def registry(engine: Engine) -> VersionRegistry:
    market = SyntheticSource(("GOLD",), start=MONDAY - 60 * DAY, days=90)
    return VersionRegistry(engine, source=market, actor=Actor("ana"), clock=lambda: MONDAY)


def test_a_version_goes_from_its_registration_to_its_retirement(registry: VersionRegistry) -> None:
    first = registry.register_version("fib_rsi", "1.0", {})
    second = registry.register_version("fib_rsi", "1.1", {"rsi_period": 10}, reason="quicker")

    assert (first.status, second.status) == ("shadow", "shadow")
    assert second.config == {
        **{"rsi_period": 10, "rsi_overbought": 70.0, "rsi_oversold": 30.0},
        "fib_lookback_bars": 55,
    }
    assert second.registration_report["passed"]
    assert second.registration_report["signals"] > 0

    registry.activate_version("fib_rsi", "1.0")
    version, canary = registry.activate_canary("fib_rsi", "1.1", 5.0)
    widened = registry.update_canary_percent("fib_rsi", 59.89)

    assert (version.status, canary.rollout_percent, widened.rollout_percent) == ("canary", 5.0, 59.89)
    assert registry.route_user_to_version("user_123", "fib_rsi") == "1.1"  # its bucket is 59.88
    registry.update_canary_percent("fib_rsi", 59.88)
    assert registry.route_user_to_version("user_123", "fib_rsi") == "1.0"

    registry.activate_version("fib_rsi", "1.1")
    registry.activate_version("fib_rsi", "1.0", reason="the owner's rollback")
    retired = registry.get_version("fib_rsi", "1.1")
    assert (retired.status, retired.retired_at) == ("retired", MONDAY)
    assert [v.version for v in registry.list_versions("fib_rsi", "active")] == ["1.0"]
    with reading(registry.engine) as session:
        assert {event.actor for event in audit.events(session)} == {"ana"}


def test_what_cannot_be_registered_leaves_nothing(registry: VersionRegistry) -> None:
    registry.register_version("fib_rsi", "1.0", {})
    refusals: list[tuple[type[Exception], str, dict[str, Any], dict[str, Any]]] = [
        (DuplicateVersion, "1.0", {"rsi_period": 10}, {}),
        (DuplicateFingerprint, "1.1", {"rsi_period": 14}, {}),
        (InvalidConfig, "1.1", {"rsi_period": float("nan")}, {}),
        (InvalidConfig, "1.1", {"rsi_perid": 14}, {}),
        (InvalidTimeframe, "1.1", {}, {"timeframe": "4h"}),
        (InvalidTimeframe, "1.1", {}, {"timeframe": "7m"}),
    ]

    for error, version, config, more in refusals:
        with pytest.raises(error):
            registry.register_version("fib_rsi", version, config, **more)

    assert [v.version for v in registry.list_versions()] == ["1.0"]
    with reading(registry.engine) as session:
        assert len(audit.events(session)) == 1


def test_a_version_may_be_registered_into_its_place(registry: VersionRegistry) -> None:
    registry.register_version("fib_rsi", "1", {}, status="active")
    registry.register_version("fib_rsi", "2", {"rsi_period": 10}, status=Status.CANARY)
    registry.register_version("fib_rsi", "3", {"rsi_period": 12}, status="retired")
    registry.retire_version("fib_rsi", "2")

    assert {v.version: v.status for v in registry.list_versions()} == {"1": "active", "2": "retired", "3": "retired"}
    assert registry.route_user_to_version("user_123", "fib_rsi") == "1"


def test_what_is_unknown_or_out_of_bounds_is_a_typed_error(registry: VersionRegistry) -> None:
    put_version(registry.engine, "1", Status.ACTIVE)
    put_version(registry.engine, "2")

    with pytest.raises(UnknownStrategy):
        registry.route_user_to_version("user_123", "nope")
    with pytest.raises(UnknownVersion):
        registry.activate_version("fib_rsi", "9")
    for percent in (150, -1, 33.333, float("nan")):
        with pytest.raises(InvalidPercent):
            registry.activate_canary("fib_rsi", "2", percent)

    assert registry.get_version("fib_rsi", "2").status == "shadow"


class Watcher:
    """Polls who is active in one statement a look, from a thread of its own, until it is stopped."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.counts: list[int] = []
        self.error: Exception | None = None

    def __enter__(self) -> "Watcher":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        try:
            with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                while not self._stop.is_set():
                    found = connection.execute(text("SELECT count(*) FROM strategy_version WHERE status = 'active'"))
                    self.counts.append(found.scalar_one())
        except Exception as error:  # noqa: BLE001  raised in the test's own thread, or it would be lost
            self.error = error


@pytest.mark.full
@pytest.mark.parametrize("versions", [2, 5, 8])
def test_racing_activations_leave_one_active_at_every_moment(registry: VersionRegistry, versions: int) -> None:
    """Eight threads, a reader that reads all the time, and an audit trail that must be one unbroken chain."""
    names = [str(n) for n in range(versions)]
    for name in names:
        put_version(registry.engine, name, Status.ACTIVE if name == "0" else Status.SHADOW)
    start = threading.Barrier(RACERS)

    def race(seed: int) -> list[str]:
        random, done = Random(seed), []
        start.wait()
        for _ in range(TRIES):
            name = random.choice(names)
            with contextlib.suppress(IllegalTransition):  # somebody else made it active just before
                registry.activate_version("fib_rsi", name)
                done.append(name)
        return done

    with Watcher(registry.engine) as watcher, ThreadPoolExecutor(RACERS) as threads:
        activated = [name for done in threads.map(race, range(RACERS)) for name in done]

    assert watcher.error is None
    assert set(watcher.counts) == {1}
    with reading(registry.engine) as session:
        events = audit.events(session)
    assert sorted(event.version for event in events) == sorted(activated)
    assert [event.before["active"] for event in events] == ["0", *(event.version for event in events[:-1])]
    assert all(event.after["active"] == event.version for event in events)
    (active,) = registry.list_versions("fib_rsi", "active")
    assert active.version == events[-1].version
    assert {v.status for v in registry.list_versions() if v.version in activated} <= {"active", "retired"}


def test_it_opens_and_migrates_a_database_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("sdk") / "new.db"

    registry = VersionRegistry(f"sqlite:///{file}")

    assert list(registry.list_versions()) == []
    registry.engine.dispose()
