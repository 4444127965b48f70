"""A database of an earlier release, upgraded to this one, keeps its rows, has all guards and can be used."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, inspect, text

from strategy_core.domain.audit import Command
from strategy_core.isolation.pool import WorkerPool
from strategy_core.services.maintenance import check_database
from strategy_core.services.rollback import roll_back
from strategy_core.services.score import score_outcomes
from strategy_core.services.shadow import run_shadow
from strategy_core.services.tick import tick
from strategy_core.store import rollouts
from strategy_core.store.backup import dump, restore
from strategy_core.store.engine import check_schema, open_database, reading, revisions, upgrade
from tests.conftest import DATABASES
from tests.store.reflecting import differences
from tests.store.released import ANA, DAY, LEFT, REVISIONS, Rows, live_in, market

OLDEST_AND_NEWEST_FIRST = [
    revision if revision in (REVISIONS[0], REVISIONS[-1]) else pytest.param(revision, marks=pytest.mark.full)
    for revision in REVISIONS
]
WITHIN_A_RELEASE = (
    "v0015",
    "v0016",
    "v0017",
    "v0018",
    "v0019",
    "v0020",
    "v0021",
    "v0022",
)  # no database was left at these


@pytest.fixture(params=DATABASES)
def new(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    on_sqlite = request.param == "sqlite"
    url = f"sqlite:///{tmp_path / 'old.db'}" if on_sqlite else request.getfixturevalue("bare_postgresql_url")
    engine = open_database(url)
    yield engine
    engine.dispose()


def contents(engine: Engine, rows: Rows) -> dict[str, list[str]]:
    """Return what stands in the columns that the release knew, in an order that both moments share."""
    with engine.connect() as connection:
        there = set(inspect(connection).get_table_names())
        return {
            table: sorted(
                str(tuple(row))
                for row in connection.execute(text(f"SELECT {', '.join(known(table, of_table))} FROM {table}"))
            )
            for table, of_table in rows.items()
            if of_table and table in there
        }


def known(table: str, rows: list[dict[str, object]]) -> list[str]:
    changed = {("alert_outbox", "sent_at"), ("rollout", "plan")}  # dropped by v0005, or with other gates since v0002
    return [f'"{name}"' for name in rows[0] if (table, name) not in changed]


@pytest.mark.parametrize("revision", OLDEST_AND_NEWEST_FIRST)
def test_an_upgrade_loses_nothing_and_leaves_a_database_as_good_as_new(new: Engine, revision: str) -> None:
    rows = live_in(new, revision)
    before = contents(new, rows)

    upgrade(new)

    assert contents(new, rows) == before
    assert len(before["audit_event"]) == 6
    assert differences(new) == []
    found = check_database(new)
    assert found.missing == []
    assert found.trail.holds
    assert [(each.strategy_name, each.count) for each in found.trail.trails] == [("fib_rsi", 6)]


def test_an_upgraded_rollout_goes_on_and_can_be_rolled_back(new: Engine) -> None:
    live_in(new, REVISIONS[0])
    upgrade(new)
    source, now = market(), LEFT + DAY

    with WorkerPool() as workers:
        run_shadow(new, source, workers, now=now)
    score_outcomes(new, source, now=now)
    (ticked,) = tick(new, source, now=now)
    roll_back(new, Command(ANA, now + timedelta(minutes=1), "enough seen"), strategy_name="fib_rsi")

    assert ticked.error == ""
    assert ticked.ruling is not None
    with reading(new) as session:
        assert rollouts.open_rollouts(session) == []
    assert check_database(new).holds


def test_a_dump_of_before_the_upgrade_brings_back_what_was_there(tmp_path: Path) -> None:
    """The way back from an upgrade: the earlier release, and the dump that was made before."""
    old, back = (open_database(f"sqlite:///{tmp_path / name}.db") for name in ("old", "back"))
    rows = live_in(old, REVISIONS[0])
    before = contents(old, rows)
    dump(old, tmp_path / "kept")
    upgrade(old)

    assert restore(back, tmp_path / "kept") == REVISIONS[0]

    assert contents(back, rows) == before
    for engine in (old, back):
        engine.dispose()


def test_every_earlier_release_has_left_its_database(engine: Engine) -> None:
    """A new migration is tried on what the release before it left: python -m tests.store.released keeps that."""
    newest = check_schema(engine)

    assert set(REVISIONS) >= set(revisions()) - {newest, *WITHIN_A_RELEASE}
