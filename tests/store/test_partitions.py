"""Monthly partitions on PostgreSQL have all guards, and rows without a month are accepted."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Engine, event, text

from strategy_core.domain.errors import InvariantRefused
from strategy_core.domain.lifecycle import Status
from strategy_core.services.maintenance import check_database, maintain
from strategy_core.store import decisions, tables
from strategy_core.store.engine import open_database, reading, transaction, upgrade
from strategy_core.store.integrity import missing_guards
from tests.builders import DAY, GOLD, MONDAY, decision_row, outcome_row, put_decisions, put_outcomes, put_version
from tests.store.released import live_in

PARTITIONED = ("shadow_decision_log", "outcome", "equity_mark")
PARTS = (
    "SELECT inhrelid::regclass::text FROM pg_inherits JOIN pg_class ON pg_class.oid = inhparent "
    "WHERE relkind = 'p' AND relname = :table ORDER BY 1"
)
FAR = datetime(2077, 3, 2, tzinfo=UTC)


@pytest.fixture
def engine(postgresql_url: str) -> Iterator[Engine]:
    engine = open_database(postgresql_url)
    yield engine
    engine.dispose()


@pytest.fixture
def bare(bare_postgresql_url: str) -> Iterator[Engine]:
    engine = open_database(bare_postgresql_url)
    yield engine
    engine.dispose()


def partitions(engine: Engine, table: str) -> list[str]:
    with engine.connect() as connection:
        return list(connection.execute(text(PARTS), {"table": table}).scalars())


def put_signal(engine: Engine, at: datetime) -> None:
    put_decisions(engine, decision_row("1", at, "buy"))
    put_outcomes(engine, outcome_row("1", at, 1.0))


def test_an_upgrade_takes_what_was_there_for_the_first_partition_uncopied(bare: Engine) -> None:
    files = "SELECT relfilenode FROM pg_class WHERE relname LIKE :name AND relkind = 'r' ORDER BY relname"
    live_in(bare, "v0006")
    with bare.connect() as connection:
        before = [connection.execute(text(files), {"name": table}).scalars().all() for table in PARTITIONED]

    upgrade(bare)

    with bare.connect() as connection:
        after = [connection.execute(text(files), {"name": f"{table}_before%"}).scalars().all() for table in PARTITIONED]
        indexes = connection.execute(text("SELECT count(*) FROM pg_index WHERE NOT indisvalid")).scalar()
        counted = connection.execute(
            text("SELECT bool_and(reltuples >= 0) FROM pg_class WHERE relname = ANY(:tables)"),
            {"tables": list(PARTITIONED)},
        ).scalar()
    assert after == before
    assert indexes == 0
    assert counted, "what plans rest on, and autovacuum never counts of the whole"


def test_an_upgrade_keeps_what_roles_may_do(bare: Engine, postgresql: Engine) -> None:
    upgrade(bare, "v0006")
    asked = (
        "SELECT has_table_privilege('its_reader', '{}', 'SELECT'), has_table_privilege('its_reader', '{}', 'INSERT')"
    )
    with postgresql.connect() as connection:
        connection.execute(text("CREATE ROLE its_reader"))
    with bare.begin() as connection:
        connection.execute(text("GRANT SELECT ON outcome TO its_reader"))

    upgrade(bare)

    with bare.connect() as connection:
        for name in ("outcome", *partitions(bare, "outcome")):
            assert tuple(connection.execute(text(asked.format(name, name))).one()) == (True, False)
    bare.dispose()
    with bare.begin() as connection:
        connection.execute(text("DROP OWNED BY its_reader"))
        connection.execute(text("DROP ROLE its_reader"))


@pytest.mark.parametrize("table", PARTITIONED)
@pytest.mark.parametrize("change", ["UPDATE {} SET symbol = symbol", "DELETE FROM {}", "TRUNCATE {} CASCADE"])
def test_a_partition_refuses_what_its_table_refuses(engine: Engine, table: str, change: str) -> None:
    put_version(engine, "1", Status.ACTIVE)
    next_month = (datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0) + 32 * DAY).replace(day=1)
    for moment in (MONDAY, next_month, next_month + 40 * DAY, FAR):
        put_signal(engine, moment)
    assert len(partitions(engine, table)) == 4

    for partition in partitions(engine, table):
        with pytest.raises(InvariantRefused, match=r"is (evidence|never emptied)"), transaction(engine) as session:
            session.connection().execute(text(change.format(partition)))


def test_what_no_month_is_there_for_is_written_and_read_like_all_else(engine: Engine) -> None:
    put_version(engine, "1", Status.ACTIVE)

    put_signal(engine, FAR)
    put_signal(engine, FAR - 30 * DAY)
    put_signal(engine, FAR)

    with reading(engine) as session:
        found = decisions.find_decisions(session, "fib_rsi", "1", GOLD)
        (kept,) = session.exec(text("SELECT count(*) FROM outcome_default")).one()  # type: ignore[call-overload]
        by_id = session.get_one(tables.ShadowDecisionLog, tables.decision_id("fib_rsi", "1", GOLD, FAR))
    assert [row.timestamp for row in found] == [FAR - 30 * DAY, FAR]
    assert by_id.decision == "buy"
    assert kept == 2


def test_an_outcome_needs_its_decision_of_the_same_candle(engine: Engine) -> None:
    put_version(engine, "1", Status.ACTIVE)
    put_decisions(engine, decision_row("1", MONDAY, "buy"))

    for stray in (outcome_row("1", FAR, 1.0), outcome_row("1", MONDAY, 1.0) | {"timestamp": FAR}):
        with pytest.raises(InvariantRefused, match="foreign key"):
            put_outcomes(engine, stray)


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (
            "DROP TRIGGER refuse_truncate_outcome ON outcome_default",
            "trigger refuse_truncate_outcome of outcome_default is missing",
        ),
        (
            "ALTER TABLE equity_mark_default DISABLE TRIGGER refuse_delete_equity_mark",
            "trigger refuse_delete_equity_mark of equity_mark_default is disabled",
        ),
        (
            "DROP TABLE outcome_default",
            "partition outcome_default is missing, which takes the rows without a month",
        ),
        (
            "CREATE TABLE mine PARTITION OF equity_mark FOR VALUES FROM ('2099-01-01') TO ('2099-02-01')",
            "trigger refuse_truncate_equity_mark of mine is missing",
        ),
    ],
)
def test_a_partition_without_its_guard_is_named(engine: Engine, harm: str, told: str) -> None:
    with engine.begin() as connection:
        connection.execute(text(harm))

    assert check_database(engine).missing == [told]


def test_a_month_that_is_made_while_the_guards_are_looked_at_is_no_fault(engine: Engine) -> None:
    looking = open_database(engine.url.render_as_string(hide_password=False))
    made: list[str] = []

    @event.listens_for(looking, "before_cursor_execute")
    def meanwhile(*now_asked: Any) -> None:
        if "pg_inherits" in now_asked[2] and not made:
            made.extend(maintain(engine, now=FAR).made)

    assert missing_guards(looking) == []
    looking.dispose()
    assert len(made) == 3
