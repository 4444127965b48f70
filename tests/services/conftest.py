from pathlib import Path

import pytest
from sqlalchemy import Engine

from strategy_core.domain.audit import Command
from strategy_core.domain.plan import Plan
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services.rollouts import start_rollout
from tests.builders import GOLD, MONDAY, OWNER, put_pair
from tests.conftest import DATABASES, SQLITE_FIRST
from tests.prepared import prepared

# What changes who gets which version, or holds locks; the others run on PostgreSQL with `-m full`.
ON_BOTH = {
    "test_alert_faults",
    "test_canary_capital",
    "test_declarations",
    "test_drain",
    "test_exclude",
    "test_maintain",
    "test_positions",
    "test_promote",
    "test_proposals",
    "test_ramp",
    "test_rollback",
    "test_retrain",
    "test_score",
    "test_signals",
    "test_standing_watch",
    "test_tampering",
    "test_toggles",
}


@pytest.fixture
def database_url(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "database_url" in metafunc.fixturenames:
        on_both = Path(metafunc.module.__file__).stem in ON_BOTH
        metafunc.parametrize("database_url", DATABASES if on_both else SQLITE_FIRST, indirect=True)


@pytest.fixture(scope="session")
def market() -> SyntheticSource:
    """An hourly market around the tests' dates; it tells which candles are due."""
    return SyntheticSource((GOLD, "SILVER"), start=MONDAY.replace(month=1, day=1), days=300)


@pytest.fixture
def ramped(engine: Engine) -> Engine:
    """Version 2 in the first stage of a rollout against version 1, since Monday."""
    prepared(engine, start_on_monday)
    return engine


def start_on_monday(engine: Engine) -> None:
    put_pair(engine)
    start_rollout(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", plan=Plan())
