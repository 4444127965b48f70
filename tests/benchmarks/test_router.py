"""What one routing decision costs, beside the bare hash and beside what others' SDKs take for the same 25 % of users.

It needs them: `uv run --group peers pytest tests/benchmarks/test_router.py -m benchmark_suite -n 0`
"""

import json
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine

from strategy_core import Router
from strategy_core.domain.audit import Command
from strategy_core.domain.lifecycle import Status
from strategy_core.services.canary import activate_canary
from strategy_core.store.engine import open_database
from tests.builders import MONDAY, OWNER, put_version

pytestmark = pytest.mark.benchmark_suite
ROUNDS = 1_001
USERS = [f"user_{i}" for i in range(500)]
MANY = [f"user_{i}" for i in range(1_000_000)]
PERCENT = 25
Ask = Callable[[str], object]
Told = Callable[[str], None]
Way = Callable[[list[str]], object]


@pytest.fixture
def engine(sqlite_url: str) -> Iterator[Engine]:
    engine = open_database(sqlite_url)
    for name, salt in (("plain", ""), ("salted", "salted"), ("settled", "")):
        put_version(engine, "1", Status.ACTIVE, strategy_name=name, salt=salt)
    for name, salt in (("plain", ""), ("salted", "salted")):
        put_version(engine, "2", strategy_name=name, salt=salt)
        activate_canary(engine, Command(OWNER, MONDAY), strategy_name=name, version="2", rollout_percent=PERCENT)
    yield engine
    engine.dispose()


@pytest.fixture
def router(engine: Engine, sqlite_url: str) -> Iterator[Router]:
    with Router(sqlite_url) as router:
        yield router


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str]) -> Told:
    def tell(text: str) -> None:
        with capsys.disabled():
            sys.stdout.write(f"\n{text}")

    return tell


def bare(users: list[str]) -> None:
    for user_id in users:
        int(sha256(user_id.encode()).hexdigest(), 16) % 100


def each(ask: Ask) -> Callable[[list[str]], None]:
    def run(users: list[str]) -> None:
        for user_id in users:
            ask(user_id)

    return run


@dataclass(frozen=True, slots=True)
class Took:
    """Seconds for a user, and how many times as long as the first way of the same round: medians over the rounds."""

    seconds: float
    ratio: float


def interleaved(ways: Mapping[str, Way], users: list[str], rounds: int) -> dict[str, Took]:
    """Measure ways that take short turns, so that a busy machine is as busy for one as for the others."""
    rows = []
    for _ in range(rounds):
        row = []
        for way in ways.values():
            began = time.perf_counter()
            way(users)
            row.append(time.perf_counter() - began)
        rows.append(row)
    took = np.array(rows)
    return {
        name: Took(float(np.median(took[:, at])) / len(users), float(np.median(took[:, at] / took[:, 0])))
        for at, name in enumerate(ways)
    }


def test_one_decision_beside_the_bare_hash(router: Router, tell: Told) -> None:
    ways: dict[str, Way] = {"bare hash": bare}
    for name, strategy_name in (("no canary", "settled"), ("25 %", "plain"), ("25 %, salt", "salted")):
        ways[name] = _decisions(router, strategy_name)

    took = interleaved(ways, USERS, ROUNDS)

    for name, each_ in took.items():
        tell(f"{name:12} {each_.seconds * 1e9:6.0f} ns  {each_.ratio:.2f} x")
    assert took["25 %"].ratio <= 1.5
    assert took["25 %, salt"].ratio <= 1.5


def test_a_million_users_beside_the_bare_loop(router: Router, tell: Told) -> None:
    ways: dict[str, Way] = {"bare loop": bare}
    for name, strategy_name in (("no canary", "settled"), ("25 %", "plain"), ("25 %, salt", "salted")):
        ways[name] = partial(router.assign, strategy_name=strategy_name)

    took = interleaved(ways, MANY, 7)

    for name, each_ in took.items():
        tell(f"{name:12} {each_.seconds * len(MANY):6.3f} s  {each_.ratio:.2f} x")
    assert took["25 %"].ratio <= 1.3
    assert took["25 %, salt"].ratio <= 1.3


def test_the_memory_of_whom_the_canary_admitted(router: Router, tell: Told) -> None:
    """The users' ids are the platform's; were they kept for this alone, they would count as well."""
    tracemalloc.start()
    router.assign(MANY, "plain")
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    served = router._table.served["plain"]
    assert served is not None
    ids = sum(sys.getsizeof(user_id) for user_id in served.admitted)

    tell(f"{len(served.admitted)} admitted: {kept / 1e6:.1f} MB, their ids {ids / 1e6:.1f} MB")
    assert len(served.admitted) == pytest.approx(PERCENT / 100 * len(MANY), rel=0.02)


def test_one_decision_beside_others(router: Router, tmp_path: Path, tell: Told) -> None:
    """Each evaluates 25 % of users from memory, offline, without sending events or metrics."""
    launchdarkly, close_launchdarkly = _launchdarkly(tmp_path)
    unleash, close_unleash = _unleash(tmp_path)
    asks: dict[str, Ask] = {
        "GrowthBook, one each": _growthbook_each(),
        "GrowthBook, reused": _growthbook_reused(),
        "LaunchDarkly": launchdarkly,
        "Unleash": unleash,
    }
    try:
        for name, ask in asks.items():
            share = sum(bool(ask(user_id)) for user_id in MANY[:5_000]) / 5_000
            assert share == pytest.approx(PERCENT / 100, abs=0.03), name

        took = interleaved(
            {"Router": _decisions(router, "plain")} | {name: each(ask) for name, ask in asks.items()}, USERS, 201
        )
    finally:
        close_launchdarkly()
        close_unleash()

    for name, each_ in took.items():
        tell(f"{name:20} {each_.seconds * 1e6:7.2f} µs  {each_.ratio:6.1f} x")
    assert min(took["GrowthBook, one each"].ratio, took["GrowthBook, reused"].ratio) >= 4
    assert took["LaunchDarkly"].ratio >= 12
    assert took["Unleash"].ratio >= 25


def _decisions(router: Router, strategy_name: str) -> Callable[[list[str]], None]:
    def run(users: list[str]) -> None:
        for user_id in users:
            router.version_for(user_id, strategy_name)

    return run


_GROWTHBOOK = {
    "canary": {"defaultValue": False, "rules": [{"force": True, "coverage": PERCENT / 100, "hashAttribute": "id"}]}
}


def _growthbook_each() -> Ask:
    """As its documentation has it for web servers: an instance for each request."""
    from growthbook import GrowthBook

    def ask(user_id: str) -> object:
        growthbook = GrowthBook(attributes={"id": user_id}, features=_GROWTHBOOK)
        on = growthbook.is_on("canary")
        growthbook.destroy()
        return on

    return ask


def _growthbook_reused() -> Ask:
    from growthbook import GrowthBook

    growthbook = GrowthBook(attributes={"id": ""}, features=_GROWTHBOOK)

    def ask(user_id: str) -> object:
        growthbook.set_attributes({"id": user_id})
        return growthbook.is_on("canary")

    return ask


def _launchdarkly(folder: Path) -> tuple[Ask, Callable[[], Any]]:
    """By its file source: its TestData knows no rollout by percent."""
    from ldclient import Config, Context, LDClient
    from ldclient.integrations import Files

    weights = [{"variation": 0, "weight": PERCENT * 1_000}, {"variation": 1, "weight": (100 - PERCENT) * 1_000}]
    flag = {
        "key": "canary",
        "version": 1,
        "on": True,
        "salt": "s",
        "variations": [True, False],
        "fallthrough": {"rollout": {"variations": weights}},
    }
    file = folder / "flags.json"
    file.write_text(json.dumps({"flags": {"canary": flag}}))
    source = Files.new_data_source(paths=[str(file)])
    client = LDClient(Config("sdk", update_processor_class=source, send_events=False, diagnostic_opt_out=True))
    return lambda user_id: client.variation("canary", Context.create(user_id), False), client.close


def _unleash(folder: Path) -> tuple[Ask, Callable[[], Any]]:
    from UnleashClient import UnleashClient
    from UnleashClient.cache import FileCache

    parameters = {"rollout": str(PERCENT), "stickiness": "userId", "groupId": "canary"}
    strategies = [{"name": "flexibleRollout", "parameters": parameters, "constraints": []}]
    cache = FileCache("router", directory=str(folder))
    cache.bootstrap_from_dict(
        {"version": 2, "features": [{"name": "canary", "enabled": True, "strategies": strategies}]}
    )
    client = UnleashClient(
        url="http://127.0.0.1:1/api", app_name="router", disable_metrics=True, disable_registration=True, cache=cache
    )
    client.initialize_client(fetch_toggles=False)
    return lambda user_id: client.is_enabled("canary", {"userId": user_id}), client.destroy
