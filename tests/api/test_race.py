"""Eight owners race through four processes of the API on PostgreSQL: one wins each time, and the trail tells it all."""

from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import Engine

from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import read_plan
from strategy_core.services.audit import verify_trail
from strategy_core.services.transitions import strategy_state
from strategy_core.store import audit, rollouts, versions
from strategy_core.store.engine import open_database, reading
from tests.api.processes import serving, token_of
from tests.api.racing import STRATEGY, Owner, Told, race
from tests.builders import put_version
from tests.replay import Replay

AT_FIRST = {"1": "active"} | {str(n): "shadow" for n in range(2, 8)} | {str(n): "retired" for n in range(8, 14)}
OWNERS, PROCESSES = 8, 4


def raced(database_url: str, folder: Path, seconds: float) -> Told:
    told = Told()
    with ExitStack() as stack:
        addresses = [stack.enter_context(serving(database_url, folder / f"api-{n}.log")) for n in range(PROCESSES)]
        owners = [Owner(f"owner {n}", token_of(f"owner {n}"), addresses, n, told) for n in range(OWNERS)]
        for owner in owners:
            stack.callback(owner.close)
        race(owners, told, seconds=seconds)
    return told


def check_trail(engine: Engine) -> int:
    """Assert that the chain holds and that its actions, replayed, give the tables; return how many there are."""
    with reading(engine) as session:
        events = audit.events(session, STRATEGY)
        tables = {each.version: each.status for each in versions.list_versions(session, STRATEGY)}
        known = rollouts.list_rollouts(session, STRATEGY)
        stands = strategy_state(session, STRATEGY)
        generation = versions.get_strategy(session, STRATEGY).generation
    percents = {each.id: [stage.percent for stage in read_plan(each.plan).stages] for each in known}
    replay = Replay(dict(AT_FIRST), percents)
    for event in events[len(AT_FIRST) :]:
        assert replay.standing == event.before, f"{event.position} {event.action}"
        replay.apply(event)
        assert replay.standing.items() <= event.after.items(), f"{event.position} {event.action}"
    assert (replay.standing, replay.statuses) == (stands, tables)
    assert replay.ended == {each.id: each.state for each in known if each.ended_at is not None}
    assert [event.position for event in events] == list(range(1, generation + 1))
    assert verify_trail(engine).holds
    return len(events)


@pytest.mark.parametrize(
    "seconds",
    [
        pytest.param(5, id="briefly", marks=pytest.mark.full),
        pytest.param(60, id="a minute", marks=pytest.mark.benchmark_suite),
    ],
)
def test_of_owners_who_race_one_wins_each_time(
    postgresql_url: str, tmp_path: Path, seconds: float, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = open_database(postgresql_url)
    for version, status in AT_FIRST.items():
        put_version(engine, version, Status(status), recorded=True)

    told = raced(postgresql_url, tmp_path, seconds)

    changes = check_trail(engine)
    engine.dispose()
    assert told.wrong == []
    assert {winners for _, winners in told.rounds} == {1}
    with capsys.disabled():
        rounds, asked = sum(told.rounds.values()), sum(told.statuses.values())
        print(f"\n{rounds} rounds, {asked} requests: {dict(told.statuses)}; {changes} changes, all replayed")  # noqa: T201
