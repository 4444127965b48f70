"""Months are made ahead, and dropped whole when nothing needs them; nobody waits, and no open rollout loses any."""

import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine, text
from sqlmodel import Session

from strategy_core.domain.audit import Command
from strategy_core.domain.errors import InvariantRefused
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services import evidence
from strategy_core.services.evidence import LOOK_BACK
from strategy_core.services.live_trades import FIDELITY_HISTORY
from strategy_core.services.maintenance import KEEP_AT_LEAST, Maintained, check_database, maintain, summary_lines
from strategy_core.services.reports import read_report, read_rollback
from strategy_core.services.rollback import roll_back
from strategy_core.services.rollouts import start_rollout
from strategy_core.services.tick import tick
from strategy_core.store import decisions, partitions
from strategy_core.store import engine as store
from strategy_core.store.engine import open_database, reading, transaction
from strategy_core.store.partitions import Month
from tests.builders import DAY, GOLD, HOUR, OWNER, decision_row, outcome_row, put_decisions, put_outcomes, put_version
from tests.services.ramping import days, newest

JANUARY = datetime(2040, 1, 1, tzinfo=UTC)
FEBRUARY, MARCH, APRIL = (JANUARY.replace(month=month) for month in (2, 3, 4))
CHRISTMAS = datetime(2040, 12, 25, tzinfo=UTC)
IN_2040 = ["2040_01", "2040_02", "2040_03"]


@pytest.fixture
def engine(postgresql_url: str) -> Iterator[Engine]:
    """A database with months of early 2040; version 1 has decided and booked in each, and on Christmas."""
    engine = open_database(postgresql_url)
    assert maintain(engine, now=JANUARY).made == IN_2040
    put_version(engine, "1", Status.ACTIVE, at=JANUARY, recorded=True)
    for month in (JANUARY, FEBRUARY, MARCH):
        days(engine, month + DAY, 1, {"1": 0.4})
    put_decisions(engine, decision_row("1", CHRISTMAS, "hold"))
    yield engine
    engine.dispose()


def names(engine: Engine) -> list[str]:
    with reading(engine) as session:
        return [each.name for each in partitions.months(session)]


def decided(engine: Engine) -> list[datetime]:
    with reading(engine) as session:
        return [row.timestamp for row in decisions.find_decisions(session, "fib_rsi", "1")]


def dropped(done: Maintained) -> list[str]:
    return [each.month for each in done.dropped if each.decisions]


def test_old_months_go_whole_and_what_comes_for_them_later_is_still_written(engine: Engine) -> None:
    told = maintain(engine, now=CHRISTMAS + DAY, keep_days=180, apply=False)
    assert len(decided(engine)) == 73

    done = maintain(engine, now=CHRISTMAS + DAY, keep_days=180)

    assert (told.dropped, told.made, told.kept) == (done.dropped, done.made, done.kept)
    assert dropped(done) == IN_2040
    assert [(each.decisions, each.outcomes, each.marks) for each in done.dropped if each.decisions] == [
        (24, 10, 10)
    ] * 3
    assert decided(engine) == [CHRISTMAS]
    assert names(engine) == ["2041_01", "2041_02", "default"]
    assert done.unmade[0].month == "2040_12", "where its first row came before it"
    assert check_database(engine).holds
    put_decisions(engine, decision_row("1", JANUARY + HOUR, "buy"))
    put_outcomes(engine, outcome_row("1", JANUARY + HOUR, 1.0))
    assert decided(engine) == [JANUARY + HOUR, CHRISTMAS]
    assert maintain(engine, now=CHRISTMAS + DAY, keep_days=180).dropped == []
    assert "2040_01: would be dropped, 24 decisions, 10 outcomes, 10 marks" in summary_lines(told, dry_run=True)


def test_a_month_made_later_is_guarded_as_the_first(engine: Engine) -> None:
    for table in partitions.TABLES:
        for change in ("UPDATE {} SET symbol = symbol", "DELETE FROM {}", "TRUNCATE {} CASCADE"):
            with pytest.raises(InvariantRefused, match=r"is (evidence|never emptied)"), transaction(engine) as session:
                session.connection().execute(text(change.format(f"{table}_2040_01")))
    assert check_database(engine).holds


def test_a_running_rollout_keeps_what_it_looks_back_on(engine: Engine) -> None:
    """What its start measured, and the live trades of before that a tick reads."""
    put_version(engine, "2", at=JANUARY, recorded=True)
    started = FEBRUARY + LOOK_BACK + DAY
    start_rollout(engine, Command(OWNER, started), strategy_name="fib_rsi", version="2", plan=Plan())

    held = maintain(engine, now=CHRISTMAS, keep_days=180)
    roll_back(engine, Command(OWNER, CHRISTMAS, "enough"), strategy_name="fib_rsi")
    done = maintain(engine, now=CHRISTMAS, keep_days=180)

    assert dropped(held) == ["2040_01"]
    assert [(each.month, each.why) for each in held.kept] == [
        (month, f"fib_rsi 2 has been in a rollout since {started:%Y-%m-%d}, and looks back") for month in IN_2040[1:]
    ]
    assert dropped(done) == IN_2040[1:]
    assert FIDELITY_HISTORY + DAY < LOOK_BACK <= timedelta(days=KEEP_AT_LEAST)


def test_a_month_stays_for_a_signal_that_is_not_booked_and_for_where_a_version_goes_on(engine: Engine) -> None:
    for version, status in (("2", Status.RETIRED), ("3", Status.SHADOW), ("4", Status.RETIRED)):
        put_version(engine, version, status, at=JANUARY, recorded=True)
    put_decisions(
        engine,
        decision_row("2", JANUARY + HOUR, "buy"),
        decision_row("3", FEBRUARY + HOUR),
        decision_row("4", MARCH + HOUR),
    )

    done = maintain(engine, now=CHRISTMAS, keep_days=180)

    assert dropped(done) == ["2040_03"]
    assert [(each.month, each.why) for each in done.kept] == [
        ("2040_01", "a signal of fib_rsi 2 on GOLD at 2040-01-01 01:00 UTC is not booked"),
        ("2040_02", "the newest decision of fib_rsi 3 on GOLD"),
    ]


def test_neither_a_dead_feed_nor_a_clock_ahead_makes_evidence_older(engine: Engine) -> None:
    done = maintain(engine, now=CHRISTMAS + 3_650 * DAY, keep_days=300)

    assert done.before == CHRISTMAS - 300 * DAY
    assert dropped(done) == ["2040_01"]


def test_without_a_setting_all_is_kept(engine: Engine) -> None:
    done = maintain(engine, now=CHRISTMAS)

    assert done.dropped == []
    assert len(decided(engine)) == 73


def test_it_gives_way_to_whoever_is_in_the_tables(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader keeps it away for as long as he reads; and nobody who comes meanwhile waits behind it."""
    monkeypatch.setattr(partitions, "LOCKS_WITHIN_S", 0.3)
    before = names(engine)
    with reading(engine) as reader:
        decisions.find_decisions(reader, "fib_rsi", "1", limit=1)

        done = maintain(engine, now=CHRISTMAS - 40 * DAY, keep_days=180)

        assert done.busy
        assert (done.made, done.dropped) == ([], [])
    assert names(engine) == before
    assert maintain(engine, now=CHRISTMAS - 40 * DAY, keep_days=180).dropped


def test_one_that_is_killed_in_between_has_dropped_nothing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    drop = partitions.drop

    def killed(session: Session, month: Month) -> None:
        drop(session, month)
        if month.name == "2040_02":
            raise KeyboardInterrupt

    monkeypatch.setattr(partitions, "drop", killed)
    with pytest.raises(KeyboardInterrupt):
        maintain(engine, now=CHRISTMAS, keep_days=180)
    monkeypatch.undo()

    assert len(decided(engine)) == 73
    assert dropped(maintain(engine, now=CHRISTMAS, keep_days=180)) == IN_2040


def test_one_that_is_stuck_while_all_wait_is_undone(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is stopped keeps its connection: without a limit every rollback would wait for it."""
    monkeypatch.setattr(store, "IDLE_SECONDS", 0.1)
    make = partitions.make

    def stopped(session: Session, month: Month) -> None:
        make(session, month)
        time.sleep(0.4)

    monkeypatch.setattr(partitions, "make", stopped)

    done = maintain(engine, now=FEBRUARY)

    assert (done.busy, done.made) == (True, [])
    assert "2040_04" not in names(engine)


def test_of_two_at_once_the_second_leaves_all_to_the_first(engine: Engine) -> None:
    with partitions.changing(engine):
        second = maintain(engine, now=APRIL, keep_days=180)

    assert (second.busy, second.made, second.dropped) == (True, [], [])
    assert maintain(engine, now=APRIL).made == ["2040_04", "2040_05", "2040_06"]


def test_a_row_that_comes_in_the_last_moment_keeps_its_month_alone_from_being_made(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold = partitions.hold_tables

    def late(session: Session, chosen: Sequence[Month] = ()) -> None:
        put_decisions(engine, decision_row("1", APRIL, "hold"))
        hold(session, chosen)

    monkeypatch.setattr(partitions, "hold_tables", late)

    done = maintain(engine, now=APRIL)

    assert [each.month for each in done.unmade] == ["2040_04"]
    assert done.made == ["2040_05", "2040_06"]


def test_a_default_partition_that_takes_too_long_to_search_is_told_of(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As such, not as tables in use, which would be gone by the next night."""
    monkeypatch.setattr(partitions, "HELD_WITHIN", "1ms")
    put_decisions(engine, *(decision_row("1", CHRISTMAS + hour * HOUR) for hour in range(1, 5_000)))

    done = maintain(engine, now=APRIL)

    assert (done.busy, done.made) == (False, [])
    assert "2040_04: not made, nor any later one: searching the default partition" in summary_lines(done)[0]


def test_a_month_is_its_tables_owners_whoever_makes_it(engine: Engine, postgresql: Engine) -> None:
    owner = '"Its: owner"'
    with postgresql.connect() as connection:
        connection.exec_driver_sql(f"CREATE ROLE {owner}")
    try:
        with engine.connect() as connection:
            every = (
                connection.execute(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")).scalars().all()
            )
        with engine.begin() as connection:
            connection.exec_driver_sql(f"ALTER SCHEMA public OWNER TO {owner}")
            for table in every:
                connection.exec_driver_sql(f"ALTER TABLE {table} OWNER TO {owner}")
        assert maintain(engine, now=FEBRUARY, keep_days=180).made == ["2040_04"]
        assert check_database(engine).holds
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE outcome_2040_04 OWNER TO CURRENT_USER"))
        (told,) = check_database(engine).missing
    finally:
        with engine.begin() as connection:
            connection.exec_driver_sql(f"REASSIGN OWNED BY {owner} TO CURRENT_USER")
            connection.exec_driver_sql(f"DROP ROLE {owner}")
    assert told.startswith("partition outcome_2040_04 belongs to postgres, so Its: owner can neither")


def test_what_an_ended_rollout_has_booked_outlives_its_decisions(engine: Engine) -> None:
    put_version(engine, "2", at=JANUARY, recorded=True)
    put_version(engine, "3", at=JANUARY, recorded=True)
    market = SyntheticSource((GOLD,), start=JANUARY - 60 * DAY, days=90)
    start_rollout(engine, Command(OWNER, JANUARY + 5 * DAY), strategy_name="fib_rsi", version="2", plan=Plan())
    ended = days(engine, JANUARY + 5 * DAY, 2)
    tick(engine, market, now=ended)  # which rolls back: the active version has decided on until Christmas
    rollout = newest(engine)
    with reading(engine) as session:
        before = evidence.recompute(session, rollout)

    assert dropped(maintain(engine, now=CHRISTMAS, keep_days=180)) == IN_2040[1:], "version 2 goes on from there"
    put_decisions(engine, decision_row("2", CHRISTMAS))
    assert dropped(maintain(engine, now=CHRISTMAS, keep_days=180)) == ["2040_01"]

    with reading(engine) as session:
        assert evidence.recompute(session, rollout) == before
        assert before.slots == 20
    report, _ = read_report(engine, rollout.id, now=CHRISTMAS)
    assert report.cost.slots == 20
    assert len(read_rollback(engine, rollout_id=rollout.id).slots) > 0
    assert check_database(engine).holds


def test_sqlite_has_no_months(sqlite_url: str) -> None:
    engine = open_database(sqlite_url)

    done = maintain(engine, now=CHRISTMAS, keep_days=180)

    assert done == Maintained(partitioned=False)
    assert summary_lines(done) == ["SQLite has no monthly partitions: no work to do"]
    engine.dispose()
