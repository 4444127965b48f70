"""What `up` puts into a new database, and where a replay begins and goes on."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
from sqlalchemy import Engine

from deployments.seed import HISTORY, replay_span, seed
from strategy_core.domain.lifecycle import Status
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.store import rollouts, versions
from strategy_core.store.engine import open_database, reading
from tests.builders import GOLD, decision_row, put_decisions, put_version

HOUR = timedelta(hours=1)


@pytest.fixture
def engine(sqlite_url: str) -> Iterator[Engine]:
    """One database is enough: what is stored here goes through the services, which are tested on both."""
    engine = open_database(sqlite_url)
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def market() -> SyntheticSource:
    return SyntheticSource((GOLD,), days=300)


def test_a_new_database_gets_an_active_version_and_a_rollout_once(engine: Engine, market: SyntheticSource) -> None:
    start, _ = replay_span(engine, market)

    assert seed(engine, market, now=start, speed=5760)

    with reading(engine) as session:
        found = {version.version: version.status for version in versions.list_versions(session, "fib_rsi")}
        rollout = rollouts.open_rollout(session, "fib_rsi")
    assert found == {"v1": Status.ACTIVE, "v2": Status.CANARY}
    assert rollout is not None
    assert (rollout.version, rollout.control_version, rollout.started_at) == ("v2", "v1", start)
    assert not seed(engine, market, now=start, speed=5760)


def test_a_replay_begins_where_a_registration_has_candles_to_be_vetted_on(
    engine: Engine, market: SyntheticSource
) -> None:
    start, end = replay_span(engine, market)

    assert len(market.candles(GOLD, closed_by=start)) == HISTORY == 2_000
    assert market.candles(GOLD, closed_by=end).index[-1] == end - HOUR


def test_a_replay_goes_on_behind_the_last_candle_that_was_decided(engine: Engine, market: SyntheticSource) -> None:
    begin, _ = replay_span(engine, market)
    decided = begin + 40 * HOUR
    put_version(engine, "v1", Status.ACTIVE, at=begin)
    put_decisions(engine, decision_row("v1", decided))

    assert replay_span(engine, market)[0] == decided + HOUR
