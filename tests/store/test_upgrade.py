"""A database of an earlier release, with a rollout under way, goes on in this one, as protected as before."""

import json
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, text

from strategy_core.domain.audit import Command
from strategy_core.domain.errors import InvariantRefused
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import read_plan
from strategy_core.domain.ramp import Step
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services.alerts import deliver
from strategy_core.services.rollouts import approve
from strategy_core.services.status import read_status
from strategy_core.services.tick import tick
from strategy_core.store import rollouts, versions
from strategy_core.store.engine import open_database, reading, transaction, upgrade
from tests.builders import DAY, GOLD, MONDAY, OWNER, decision_row, put_day, put_decisions, version_row
from tests.endpoint import Endpoint
from tests.observe.scraping import scrape
from tests.services.outbox import channel_to, outbox

PLAN = {
    "stages": [
        {"percent": 5.0, "minimum_time": 86400.0, "margins": {"pnl_r": 0.15, "win": 0.06}},
        {"percent": 100.0, "minimum_time": 86400.0, "margins": {"pnl_r": 0.05, "win": 0.03}},
    ],
    "gates": [
        {"kind": "errors", "dry_run": False, "in_a_row": 3, "share": 0.05, "minimum_decisions": 50},
        {
            "kind": "paired_difference",
            "dry_run": False,
            "minimum_slots": 40,
            "minimum_days": 3,
            "confidence": 0.95,
            "harm_confidence": 0.9999,
        },
    ],
}


@pytest.fixture(params=["sqlite", "postgresql"])
def first_release(request: pytest.FixtureRequest, tmp_path: object, postgresql: Engine) -> Iterator[Engine]:
    """A database as the first release left it: version 2 at 5 % against version 1, since Monday."""
    if request.param == "sqlite":
        engine = open_database(f"sqlite:///{tmp_path}/first.db")
    else:
        with postgresql.connect() as connection:
            connection.execute(text("CREATE DATABASE first_release"))
        address = postgresql.url.set(database="first_release")
        engine = open_database(address.render_as_string(hide_password=False))
    upgrade(engine, "v0001")
    with transaction(engine) as session:
        session.connection().execute(
            text(
                "INSERT INTO strategy (name, salt, scoring, created_at) "
                "VALUES ('fib_rsi', '', '{}', '2026-03-01 00:00:00+00:00')"
            )
        )
        versions.add_version(session, version_row("1", Status.ACTIVE))
        versions.add_version(session, version_row("2", Status.CANARY))
        session.connection().execute(
            text(
                "INSERT INTO canary_config (id, strategy_name, version, rollout_bp, salt, generation, started_at) "
                f"VALUES ('{'b' * 12}4{'b' * 3}8{'b' * 15}', 'fib_rsi', '2', 500, '', 1, '2026-03-02 00:00:00+00:00')"
            )
        )
        session.connection().execute(
            text(
                "INSERT INTO rollout (id, strategy_name, version, control_version, state, stage_index, generation, "
                "plan, started_at, stage_entered_at, stage_extended_at, reason) VALUES "
                f"('{'a' * 12}4{'a' * 3}8{'a' * 15}', 'fib_rsi', '2', '1', 'running', 0, 1, '{json.dumps(PLAN)}', "
                "'2026-03-02 00:00:00+00:00', "
                "'2026-03-02 00:00:00+00:00', '2026-03-02 00:00:00+00:00', '')"
            )
        )
    yield engine
    engine.dispose()
    if request.param == "postgresql":
        with postgresql.connect() as connection:
            connection.execute(text("DROP DATABASE first_release WITH (FORCE)"))


@pytest.fixture
def market() -> SyntheticSource:
    return SyntheticSource((GOLD,), start=MONDAY - 60 * DAY, days=90)


def test_an_open_rollout_is_judged_by_the_new_gates_on_all_it_has_seen(
    first_release: Engine, market: SyntheticSource
) -> None:
    before: Any = {"counted": False}
    both, worth = {"1": "buy", "2": "buy"}, {"1": 0.5, "2": -1.0}
    for day in range(2):
        put_day(first_release, MONDAY + day * DAY, both, worth, signal_hours=range(0, 20), **before)

    upgrade(first_release)

    with reading(first_release) as session:
        (rollout,) = rollouts.open_rollouts(session)
    assert [gate.kind for gate in read_plan(rollout.plan).gates] == ["errors", "harm", "not_worse"]
    assert rollout.plan["gates"][2]["minimum_slots"] == 40
    (ticked,) = tick(first_release, market, now=MONDAY + 2 * DAY)
    assert ticked.ruling is not None, ticked.error
    assert ticked.ruling.step is Step.ROLL_BACK
    assert ticked.ruling.reason.startswith("harm: the canary earns less")


def test_what_was_raised_before_anybody_delivered_wakes_nobody(first_release: Engine, endpoint: Endpoint) -> None:
    with transaction(first_release) as session:
        session.connection().execute(
            text(
                "INSERT INTO alert_outbox (at, severity, kind, strategy_name, text, facts, dedupe_key) VALUES "
                "('2026-03-02 00:00:00+00:00', 'critical', 'rollout.rolled_back', 'fib_rsi', 'old', '{}', 'old')"
            )
        )

    upgrade(first_release)

    assert deliver(first_release, [channel_to(endpoint)], now=MONDAY) == []
    (alert,) = outbox(first_release)
    assert (alert.text, alert.acknowledged_by, alert.acknowledged_at) == ("old", "upgrade", MONDAY)


def test_a_plan_stays_frozen_after_the_upgrade(first_release: Engine) -> None:
    upgrade(first_release)

    with pytest.raises(InvariantRefused, match="never edited"), transaction(first_release) as session:
        session.connection().execute(text("UPDATE rollout SET plan = plan"))


def test_what_a_gate_of_before_said_last_keeps_nobody_from_approving(first_release: Engine) -> None:
    """It has no more verdicts, so an approval must not wait for it."""
    with transaction(first_release) as session:
        session.connection().execute(
            text(
                "INSERT INTO gate_verdict (id, rollout_id, ticked_at, stage_index, gate, verdict, armed, reason, n) "
                "SELECT id, id, '2026-03-02 01:00:00+00:00', 0, 'paired_difference', 'insufficient', true, '', 0 "
                "FROM rollout"
            )
        )
        session.connection().execute(text("UPDATE rollout SET state = 'awaiting_approval'"))
    upgrade(first_release)

    approved = approve(first_release, Command(OWNER, MONDAY + DAY, "reviewed"), strategy_name="fib_rsi")

    assert approved.approved_stage == 1
    (status,) = read_status(first_release, "fib_rsi", now=MONDAY + DAY)
    assert status.rollout is not None
    assert status.rollout.verdicts == []


def test_what_is_there_already_is_counted(first_release: Engine) -> None:
    before: Any = {"counted": False}
    put_day(first_release, MONDAY, {"1": "buy", "2": "sell"}, {"1": 0.5, "2": -0.5}, signal_hours=[1, 2], **before)
    put_decisions(first_release, decision_row("2", MONDAY + DAY, "error", error_kind="raised"), **before)
    upgrade(first_release, "v0005")
    with transaction(first_release) as session:
        rollout = UUID(str(session.connection().execute(text("SELECT id FROM rollout")).scalar_one())).hex
        verdicts = ("pass", "pass", "breach")
        for hour, verdict in enumerate(verdicts):
            session.connection().execute(
                text(
                    "INSERT INTO gate_verdict (id, rollout_id, ticked_at, stage_index, gate, verdict, armed, "
                    f"reason, n) VALUES ('{hour:032x}', '{rollout}', '2026-03-02 0{hour}:00:00+00:00', 0, 'errors', "
                    f"'{verdict}', true, '', 0)"
                )
            )
        session.connection().execute(text("INSERT INTO platform_user (user_id, loaded_at) VALUES ('u1', '2026-03-02')"))
        for key, gate in enumerate(
            ('{"gate": "errors", "verdict": "breach"}', '{"verdict": "blind", "gate": "x"}', "{}")
        ):
            session.connection().execute(
                text(
                    "INSERT INTO alert_outbox (at, severity, kind, strategy_name, text, facts, dedupe_key, "
                    "acknowledged_by, acknowledged_because) VALUES "
                    f"('2026-03-02', 'critical', 'rollout.rolled_back', 'fib_rsi', '', '{gate}', '{key}', '', '')"
                )
            )

    upgrade(first_release)

    found = scrape(first_release, now=MONDAY + 2 * DAY)
    of = "strategy=fib_rsi version=2"
    said = "shadow_decisions_total decision={} strategy=fib_rsi symbol=GOLD version=2"
    assert [found[said.format(decision)] for decision in ("buy", "sell", "hold", "error")] == [0, 2, 22, 1]
    assert found[f"shadow_errors_total kind=raised {of}"] == 1
    assert found[f"shadow_lag_seconds {of}"] == 23 * 3600
    assert found["gate_verdicts_total gate=errors strategy=fib_rsi verdict=pass"] == 2
    assert found["gate_verdict gate=errors strategy=fib_rsi verdict=breach version=2"] == 1
    assert [found[f"rollbacks_total cause={cause} strategy=fib_rsi"] for cause in ("errors", "blind", "owner")] == [
        1
    ] * 3
    assert found["directory_users strategy=fib_rsi"] == 1
    put_decisions(
        first_release, decision_row("2", MONDAY + DAY, "error", error_kind="raised"), decision_row("2", MONDAY - DAY)
    )
    assert scrape(first_release, now=MONDAY + 2 * DAY)[said.format("hold")] == 23
