"""The audit events of earlier releases become chains that verify, on both databases and by the hashes of today."""

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, text

from strategy_core.domain.audit import BEFORE_THE_FIRST, Command, event_hash
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.scoring import ScoringRule
from strategy_core.services.audit import verify_trail
from strategy_core.services.canary import activate_canary
from strategy_core.store import audit, versions
from strategy_core.store.engine import open_database, reading, transaction, upgrade
from tests.builders import HOUR, MONDAY, OWNER, version_row

STANDING: dict[str, Any] = {"active": "1", "canary": None, "percent": 0.0, "rollout": None}
ROLLOUT = "6f1b1c2e53a54d0b9a395f8f4a0c7d11"
EVENTS = [
    (
        "fib_rsi",
        "register_version",
        {**STANDING, "active": None},
        STANDING | {"fingerprint": "f" * 64},
        "größer 日本 \n",
    ),
    ("ppo_gold", "register_version", {**STANDING, "active": None}, {**STANDING, "active": None}, ""),
    ("fib_rsi", "activate_canary", STANDING, {**STANDING, "canary": "2", "percent": 33.33}, "try it"),
    (
        "fib_rsi",
        "start_rollout",
        {**STANDING, "canary": "2", "percent": 33.33},
        {**STANDING, "canary": "2", "percent": 1e-7, "rollout": {"state": "running", "stage": 0}},
        'it\'s "good"',
    ),
    (
        "fib_rsi",
        "roll_back",
        {**STANDING, "canary": "2", "percent": 1e-7, "rollout": {"state": "running", "stage": 0}},
        STANDING,
        "",
    ),
]


@pytest.fixture(
    params=[(kind, revision) for kind in ("sqlite", "postgresql") for revision in ("v0001", "v0002")], ids="-".join
)
def earlier(request: pytest.FixtureRequest, tmp_path: Path, postgresql: Engine) -> Iterator[Engine]:
    """A database as an earlier release left it, with two strategies and their events, one after another."""
    kind, revision = request.param
    name = f"earlier_{revision}"
    if kind == "sqlite":
        engine = open_database(f"sqlite:///{tmp_path}/{name}.db")
    else:
        with postgresql.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        engine = open_database(postgresql.url.set(database=name).render_as_string(hide_password=False))
    upgrade(engine, revision)
    _fill(engine)
    yield engine
    engine.dispose()
    if kind == "postgresql":
        with postgresql.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


def _fill(engine: Engine) -> None:
    with transaction(engine) as session:
        run = session.connection().execute
        for name in ("fib_rsi", "ppo_gold"):
            run(
                text("INSERT INTO strategy (name, salt, scoring, created_at) VALUES (:name, '', :scoring, :at)"),
                {"name": name, "scoring": ScoringRule().model_dump_json(), "at": _stored(engine, MONDAY)},
            )
        versions.add_version(session, version_row("1", Status.ACTIVE))
        versions.add_version(session, version_row("2"))
        for number, (name, action, before, after, reason) in enumerate(EVENTS):
            of_rollout = action in ("start_rollout", "roll_back")
            run(
                text(
                    "INSERT INTO audit_event (at, actor, role, source, action, strategy_name, version, rollout_id, "
                    '"before", "after", reason) VALUES '
                    "(:at, 'ana', 'owner', 'cli', :action, :name, '2', :rollout, :before, :after, :reason)"
                ),
                {
                    "at": _stored(engine, MONDAY + number * HOUR + timedelta(microseconds=number)),
                    "action": action,
                    "name": name,
                    "rollout": ROLLOUT if of_rollout else None,
                    "before": json.dumps(before),
                    "after": json.dumps(after),
                    "reason": reason,
                },
            )


def _stored(engine: Engine, at: datetime) -> str:
    return at.isoformat() if engine.dialect.name == "postgresql" else at.strftime("%Y-%m-%d %H:%M:%S.%f")


def test_the_events_of_before_are_chains_that_hold(earlier: Engine) -> None:
    upgrade(earlier)

    found = verify_trail(earlier)

    assert all(not trail.breaks for trail in found.trails), found
    assert [(trail.strategy_name, trail.count) for trail in found.trails] == [("fib_rsi", 4), ("ppo_gold", 1)]


def test_the_migration_hashes_as_the_domain_does(earlier: Engine) -> None:
    upgrade(earlier)

    with reading(earlier) as session:
        events = audit.events(session)
    previous = dict.fromkeys(("fib_rsi", "ppo_gold"), BEFORE_THE_FIRST)
    for number, (event, (name, action, before, after, reason)) in enumerate(zip(events, EVENTS, strict=True)):
        facts = {
            "at": MONDAY + number * HOUR + timedelta(microseconds=number),
            "actor": "ana",
            "role": "owner",
            "source": "cli",
            "action": action,
            "strategy_name": name,
            "version": "2",
            "rollout_id": UUID(ROLLOUT) if event.rollout_id else None,
            "before": before,
            "after": after,
            "reason": reason,
            "evidence": [],
            "request_id": "",
            "idempotency_key": None,
            "position": event.position,
        }
        assert (event.previous_hash, event.hash) == (previous[name], event_hash(previous[name], facts))
        previous[name] = event.hash


def test_the_chain_goes_on_where_the_earlier_release_left_it(earlier: Engine) -> None:
    upgrade(earlier)

    activate_canary(earlier, Command(OWNER, MONDAY + 9 * HOUR), strategy_name="fib_rsi", version="2", rollout_percent=5)

    with reading(earlier) as session:
        assert audit.events(session, "fib_rsi")[-1].position == 5
    assert all(not trail.breaks for trail in verify_trail(earlier).trails)


def test_both_databases_agree_on_every_hash(tmp_path: Path, postgresql: Engine) -> None:
    """What was noted of one database can be looked for in a copy of it on the other."""
    heads = []
    with postgresql.connect() as connection:
        connection.execute(text("CREATE DATABASE earlier_both"))
    address = postgresql.url.set(database="earlier_both").render_as_string(hide_password=False)
    for url in (f"sqlite:///{tmp_path}/both.db", address):
        engine = open_database(url)
        upgrade(engine, "v0001")
        _fill(engine)
        upgrade(engine)
        heads.append([trail.head for trail in verify_trail(engine).trails])
        engine.dispose()
    with postgresql.connect() as connection:
        connection.execute(text("DROP DATABASE earlier_both WITH (FORCE)"))

    assert heads[0] == heads[1]
