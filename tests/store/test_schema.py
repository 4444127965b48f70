"""Constraints and triggers refuse invalid rows, equally on SQLite and PostgreSQL."""

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlmodel import select

from strategy_core.domain.audit import Actor, Command
from strategy_core.domain.errors import InvalidSetting, InvariantRefused, NaiveTime
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan
from strategy_core.services.rollouts import start_rollout
from strategy_core.store import alerts, audit, rollouts, versions
from strategy_core.store.engine import open_database, reading, transaction, upgrade
from strategy_core.store.tables import FreezeRow, ScheduledStart, ShadowDecisionLog, StrategyRow
from tests.builders import (
    MONDAY,
    OWNER,
    decision_row,
    outcome_row,
    put_decisions,
    put_outcomes,
    put_version,
    version_row,
)
from tests.store.reflecting import differences

EVIDENCE = [
    "shadow_decision_log",
    "outcome",
    "equity_mark",
    "gate_verdict",
    "audit_event",
    "comparison_report",
    "live_trade",
    "booked_slot",
    "metric_sample",
    "recorded_answers",
    "report",
]
KEPT = [
    *(*EVIDENCE, "strategy", "strategy_version", "rollout", "rollout_book", "alert_outbox", "service_token"),
    *("release_freeze", "scheduled_start"),
]


def test_models_and_migrations_are_the_same_schema(engine: Engine) -> None:
    assert differences(engine) == []


def test_an_upgrade_of_what_is_new_already_changes_nothing(engine: Engine) -> None:
    put_version(engine, "1.0.0")

    upgrade(engine)

    with reading(engine) as session:
        assert [version.version for version in versions.list_versions(session)] == ["1.0.0"]


@pytest.mark.parametrize("status", [Status.ACTIVE, Status.CANARY])
def test_a_second_active_or_canary_is_refused(engine: Engine, status: Status) -> None:
    put_version(engine, "1.0.0", status)

    with pytest.raises(InvariantRefused, match="the database refuses this"):
        put_version(engine, "2.0.0", status)


def test_another_strategy_may_have_its_own_active(engine: Engine) -> None:
    put_version(engine, "1.0.0", Status.ACTIVE)
    put_version(engine, "1.0.0", Status.ACTIVE, strategy_name="ppo_gold")

    with reading(engine) as session:
        assert len(versions.list_versions(session, status=Status.ACTIVE)) == 2


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        ({"status": "paused"}, "an unknown status"),
        ({"status": "active", "activated_at": None}, "an active version that never became so"),
        ({"status": "retired", "retired_at": None}, "a retired version that never became so"),
        ({"warmup_bars": 0}, "no warm-up"),
        ({"fingerprint": version_row("1.0.0").fingerprint}, "the build of another version"),
    ],
)
def test_a_version_that_must_not_be_is_refused(engine: Engine, columns: dict[str, Any], why: str) -> None:
    put_version(engine, "1.0.0")

    with pytest.raises(InvariantRefused):
        put_version(engine, "2.0.0", **columns)


def test_a_second_version_of_a_name_is_refused(engine: Engine) -> None:
    put_version(engine, "1.0.0")

    with pytest.raises(InvariantRefused):
        put_version(engine, "1.0.0", fingerprint="another build")


@pytest.mark.parametrize("percent_bp", [-1, 10_001])
def test_a_share_outside_0_to_100_percent_is_refused(engine: Engine, percent_bp: int) -> None:
    put_version(engine, "1.0.0")

    with pytest.raises(InvariantRefused), transaction(engine) as session:
        rollouts.point_canary(session, "fib_rsi", "1.0.0", rollout_bp=percent_bp, salt="", now=MONDAY)


@pytest.mark.parametrize(
    "row",
    [
        decision_row("1.0.0", MONDAY, "short"),
        decision_row("1.0.0", MONDAY) | {"confidence": 1.5},
        decision_row("1.0.0", MONDAY, "error"),
        decision_row("1.0.0", MONDAY, "buy", error_kind="raised"),
        decision_row("9.9.9", MONDAY),
    ],
    ids=["no such action", "confidence", "error without a kind", "decision with an error", "no such version"],
)
def test_a_decision_that_must_not_be_is_refused(engine: Engine, row: dict[str, object]) -> None:
    put_version(engine, "1.0.0")

    with pytest.raises(InvariantRefused):
        put_decisions(engine, row)


@pytest.mark.parametrize("table", EVIDENCE)
@pytest.mark.parametrize("change", ["UPDATE {} SET {} = {}", "DELETE FROM {}"])
def test_evidence_is_never_changed(engine: Engine, table: str, change: str) -> None:
    _fill(engine)
    columns = {"gate_verdict": "gate", "audit_event": "action", "booked_slot": "symbol", "metric_sample": "gate"}
    column = columns.get(table, "strategy_name")

    with pytest.raises(InvariantRefused, match="is evidence"), transaction(engine) as session:
        session.connection().execute(text(change.format(table, column, column)))


@pytest.mark.parametrize("table", KEPT)
def test_sqlite_never_replaces_what_is_kept(sqlite_url: str, table: str) -> None:
    """A replaced row is deleted without its trigger, unless the connection asks for it."""
    engine = open_database(sqlite_url)
    _fill(engine)

    with (
        pytest.raises(InvariantRefused, match=r"is (evidence|never deleted)|follows the newest"),
        transaction(engine) as session,
    ):
        session.connection().execute(text(f"INSERT OR REPLACE INTO {table} SELECT * FROM {table}"))

    engine.dispose()


@pytest.mark.parametrize("table", KEPT)
def test_postgresql_never_empties_what_is_kept(postgresql_url: str, table: str) -> None:
    engine = open_database(postgresql_url)
    _fill(engine)

    with pytest.raises(InvariantRefused, match=f"{table} is never emptied"), transaction(engine) as session:
        session.connection().execute(text(f"TRUNCATE {table} CASCADE"))

    engine.dispose()


def test_evidence_that_is_there_already_is_passed_over(engine: Engine) -> None:
    _fill(engine)

    put_decisions(engine, decision_row("1.0.0", MONDAY, "sell"))

    with reading(engine) as session:
        assert [row.decision for row in session.exec(select(ShadowDecisionLog)).all()] == ["buy"]


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE strategy_version SET config = config",
        "UPDATE strategy_version SET fingerprint = 'other'",
        "DELETE FROM strategy_version",
        "UPDATE strategy SET salt = 'other'",
        "UPDATE rollout SET plan = plan",
        "DELETE FROM rollout",
        "UPDATE rollout_book SET history = history",
        "DELETE FROM rollout_book",
        "UPDATE alert_outbox SET text = 'all is well'",
        "UPDATE alert_outbox SET facts = facts, kind = kind, severity = 'info'",
        "DELETE FROM alert_outbox",
        "UPDATE service_token SET expires_at = '2036-03-02 00:00:00'",
        "DELETE FROM service_token",
        *(
            f"UPDATE release_freeze SET {column} = {column}"
            for column in ("id", "strategy_name", "starts_at", "ends_at", "reason", "set_at", "set_by")
        ),
        "DELETE FROM release_freeze",
        *(
            f"UPDATE scheduled_start SET {column} = {column}"
            for column in (
                *("id", "strategy_name", "version", "plan", "start_at", "asked_at", "actor", "role", "source"),
                *("reason", "override_reason"),
            )
        ),
        "DELETE FROM scheduled_start",
    ],
)
def test_what_was_agreed_is_never_edited(engine: Engine, change: str) -> None:
    _fill(engine)

    with pytest.raises(InvariantRefused, match=r"never (edited|deleted)"), transaction(engine) as session:
        session.connection().execute(text(change))


def test_an_acknowledgement_is_never_taken_back(engine: Engine) -> None:
    _fill(engine)
    with transaction(engine) as session:
        alerts.acknowledge(session, 1, by="ana", because="looking", now=MONDAY)

    with pytest.raises(InvariantRefused, match="acknowledged once"), transaction(engine) as session:
        session.connection().execute(text("UPDATE alert_outbox SET acknowledged_at = NULL, acknowledged_by = ''"))


def test_a_token_is_revoked_once(engine: Engine) -> None:
    _fill(engine)
    with transaction(engine) as session:
        audit.revoke_token(session, "t-1", by="ana", because="it leaked", now=MONDAY)

    with pytest.raises(InvariantRefused, match="revoked once"), transaction(engine) as session:
        session.connection().execute(text("UPDATE service_token SET revoked_at = NULL, revoked_by = ''"))


@pytest.mark.parametrize(
    ("table", "end", "again"),
    [
        (
            "release_freeze",
            "lifted_at = '2026-03-02 00:00:00', lifted_by = 'ana'",
            ["lifted_at = NULL, lifted_by = ''", "lifted_by = 'bob'", "lifted_because = 'mine'"],
        ),
        (
            "scheduled_start",
            "ended_at = '2026-03-02 00:00:00', outcome = 'cancelled'",
            ["ended_at = NULL, outcome = ''", "outcome = 'refused'", "ended_because = 'mine'", "rollout_id = NULL"],
        ),
    ],
)
def test_a_freeze_and_a_scheduled_start_end_once(engine: Engine, table: str, end: str, again: list[str]) -> None:
    _fill(engine)
    with transaction(engine) as session:
        session.connection().execute(text(f"UPDATE {table} SET {end}"))

    for change in again:
        with pytest.raises(InvariantRefused, match="once"), transaction(engine) as session:
            session.connection().execute(text(f"UPDATE {table} SET {change}"))


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE release_freeze SET lifted_at = '2026-03-02 00:00:00'",
        "UPDATE release_freeze SET lifted_by = 'ana'",
        "UPDATE scheduled_start SET outcome = 'cancelled'",
        "UPDATE scheduled_start SET ended_at = '2026-03-02 00:00:00'",
        "UPDATE scheduled_start SET ended_at = '2026-03-02 00:00:00', outcome = 'started'",
        "UPDATE scheduled_start SET ended_at = '2026-03-02 00:00:00', outcome = 'forgotten'",
    ],
)
def test_half_an_end_is_refused(engine: Engine, change: str) -> None:
    _fill(engine)

    with pytest.raises(InvariantRefused), transaction(engine) as session:
        session.connection().execute(text(change))


def test_a_strategy_has_one_pending_start(engine: Engine) -> None:
    _fill(engine)

    with pytest.raises(InvariantRefused), transaction(engine) as session:
        session.add(scheduled_start())


def scheduled_start() -> ScheduledStart:
    return ScheduledStart(
        strategy_name="fib_rsi",
        version="2.0.0",
        plan={},
        start_at=MONDAY,
        asked_at=MONDAY,
        actor="ana",
        role="owner",
        source="cli",
        reason="",
        override_reason="",
    )


def _fill(engine: Engine) -> None:
    """Put a row into every table that holds evidence or agreements."""
    put_version(engine, "1.0.0", Status.ACTIVE)
    put_version(engine, "2.0.0")
    put_decisions(engine, decision_row("1.0.0", MONDAY, "buy"))
    put_outcomes(engine, outcome_row("1.0.0", MONDAY, 1.0))
    rollout = start_rollout(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2.0.0", plan=Plan())
    zero = "00000000000000000000000000000000"
    with transaction(engine) as session:
        until = MONDAY + timedelta(days=1)
        times: dict[str, Any] = {"starts_at": MONDAY, "ends_at": until, "set_at": MONDAY}
        session.add(FreezeRow(strategy_name="fib_rsi", reason="", set_by="ana", **times))
        session.add(scheduled_start())
        run = session.connection().execute
        run(
            text(
                "INSERT INTO gate_verdict (id, rollout_id, ticked_at, stage_index, gate, verdict, armed, reason, n) "
                f"VALUES ('{zero}', '{rollout.id.hex}', '2026-03-02 00:00:00', 0, 'errors', 'pass', true, '', 0)"
            )
        )
        run(
            text(
                "INSERT INTO service_token (id, name, role, strategies, read_only, issued_at, expires_at, issued_by, "
                "revoked_by, revoked_because) VALUES ('t-1', 'router', 'owner', '[]', true, '2026-03-02 00:00:00', "
                "'2027-03-02 00:00:00', 'ana', '', '')"
            )
        )
        run(text("INSERT INTO recorded_answers (strategy_name, version, content) VALUES ('fib_rsi', '1.0.0', '')"))
        run(
            text(
                "INSERT INTO comparison_report (id, strategy_name, shadow_version, active_version, symbol, "
                "period_start, period_end, report, created_at) VALUES "
                f"('{zero}', 'fib_rsi', '2', '1', '', '2026-03-01 00:00:00', '2026-03-02 00:00:00', '{{}}', "
                "'2026-03-02 00:00:00')"
            )
        )
        run(
            text(
                "INSERT INTO report (id, kind, strategy_name, subject, period_start, period_end, sentence, facts, "
                f"html_sha256, created_at) VALUES ('{zero}', 'morning', 'fib_rsi', 'monday', '2026-03-01 00:00:00', "
                "'2026-03-02 00:00:00', '', '{}', '', '2026-03-02 00:00:00')"
            )
        )
        run(
            text(
                "INSERT INTO live_trade (trade_id, state, user_id, strategy_name, version, symbol, opened_at, "
                "candle_s, error, canary_bp, misrouted, ingested_at) VALUES "
                "('t1', 'open', 'u1', 'fib_rsi', '1.0.0', 'GOLD', "
                "'2026-03-02 00:00:00', 1772409600, '', 500, false, '2026-03-02 00:00:00')"
            )
        )
        run(
            text(
                "INSERT INTO booked_slot (rollout_id, position, symbol, timestamp, closed_at, booked_at, canary_r, "
                f"active_r, canary_side, active_side) VALUES ('{rollout.id.hex}', 0, 'GOLD', '2026-03-02 00:00:00', "
                "'2026-03-02 05:00:00', '2026-03-02 05:00:00', 0, 1, 0, 1)"
            )
        )
        run(
            text(
                "INSERT INTO metric_sample (rollout_id, gate, taken_at, value, problem) "
                f"VALUES ('{rollout.id.hex}', 'slippage', '2026-03-02 00:00:00', 1, '')"
            )
        )


def test_times_come_back_in_utc(engine: Engine) -> None:
    berlin = timezone(timedelta(hours=1))
    put_version(engine, "1.0.0", at=datetime(2026, 3, 2, 13, tzinfo=berlin))

    with reading(engine) as session:
        stored = versions.get_version(session, "fib_rsi", "1.0.0").created_at
    assert stored == datetime(2026, 3, 2, 12, tzinfo=MONDAY.tzinfo)
    assert stored.utcoffset() == timedelta(0)


def test_a_naive_time_is_refused_before_it_is_written(engine: Engine) -> None:
    with pytest.raises(NaiveTime, match="2026-03-02"):
        put_version(engine, "1.0.0", at=datetime(2026, 3, 2))  # noqa: DTZ001

    with reading(engine) as session:
        assert session.exec(select(StrategyRow)).all() == []


def test_a_transaction_that_fails_leaves_nothing(engine: Engine) -> None:
    put_version(engine, "1.0.0")

    with pytest.raises(RuntimeError, match="killed"), transaction(engine) as session:  # noqa: PT012
        audit.record(
            session,
            Actor("ana"),
            "half",
            strategy_name="fib_rsi",
            version="1.0.0",
            before={},
            after={},
            reason="",
            now=MONDAY,
        )
        raise RuntimeError("killed")

    with reading(engine) as session:
        assert audit.events(session) == []


@pytest.mark.parametrize("url", ["mysql://db/rollout", "not an address", "", "postgresql://ana@db:abc/d"])
def test_another_kind_of_database_is_refused_by_name(url: str) -> None:
    with pytest.raises(InvalidSetting, match="allowed: sqlite:///FILE or postgresql://"):
        open_database(url)


@pytest.mark.parametrize("host", ["mysql://ana:s3cret@db/rollout", "postgresql://ana:s3cret@db:abc/rollout"])
def test_a_refused_address_never_shows_its_password(host: str) -> None:
    with pytest.raises(InvalidSetting) as refused:
        open_database(host)

    assert "s3cret" not in str(refused.value)
