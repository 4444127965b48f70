"""Queries on the logs use an index on both databases, with the exceptions named here."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event, text

from strategy_core.domain.alerts import Severity
from strategy_core.domain.audit import Command
from strategy_core.isolation.pool import WorkerPool
from strategy_core.services import alerts, audit, calibrate, live_trades, queries, watchdog
from strategy_core.services.evidence import recompute
from strategy_core.services.history import read_verdicts
from strategy_core.services.maintenance import maintain
from strategy_core.services.queries import route_user
from strategy_core.services.reports import read_progress, read_report, read_rollback, resolve_rollout
from strategy_core.services.rollback import roll_back
from strategy_core.services.score import score_outcomes
from strategy_core.services.shadow import run_shadow
from strategy_core.services.status import read_status
from strategy_core.services.tick import tick
from strategy_core.store import decisions, evidence, outcomes
from strategy_core.store.engine import reading
from tests.builders import DAY, GOLD, HOUR, OWNER
from tests.endpoint import Endpoint
from tests.observe.scraping import scrape
from tests.services.outbox import channel_to
from tests.store.crowd import NOW, START, market, put_crowd

LOGS = (
    "shadow_decision_log",
    "outcome",
    "equity_mark",
    "live_trade",
    "alert_outbox",
    "alert_delivery",
    "audit_event",
    "gate_verdict",
    "booked_slot",
    "metric_sample",
)
WHOLE = {  # beside what is not asked here: a comparison of a whole period, a dump, an upgrade, `audit verify`
    "max(alert_delivery.sent_at)": "the state of every channel: a row an alert and channel, some thousands a year",
    "count(alert_outbox.acknowledged_at)": "how many alerts of each kind a scrape tells of: from an index alone",
}
_NEWEST_PAGE = re.compile(r"FROM (\w+) ORDER BY \1\.id DESC\s+LIMIT")  # no further along the key than the page goes
LARGE = 500  # rows: a smaller partition is read as quickly whole
_SCAN = re.compile(rf"SCAN ({'|'.join(LOGS)})(_\d+)?\b")
Asked = dict[str, Any]


@pytest.fixture
def crowd(engine: Engine) -> Engine:
    put_crowd(engine)
    return engine


@pytest.fixture
def asked(crowd: Engine) -> Iterator[Asked]:
    """What is asked of the database from here on, each statement once, with its parameters."""
    seen: Asked = {}

    def note(_c: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, many: bool) -> None:
        if statement.lstrip().upper().startswith(("SELECT", "WITH", "UPDATE", "DELETE")):
            seen.setdefault(statement, parameters[0] if many else parameters)

    event.listen(crowd, "before_cursor_execute", note)
    yield seen
    event.remove(crowd, "before_cursor_execute", note)


def whole(engine: Engine, asked: Asked) -> list[str]:
    """Return the statements that read a whole log, each with its plan."""
    found = []
    explain = _scans_on_postgresql if engine.dialect.name == "postgresql" else _scans_on_sqlite
    with engine.connect() as connection:
        large = _large(connection) if engine.dialect.name == "postgresql" else set()
        for statement, parameters in list(asked.items()):
            scans = explain(connection, statement, parameters, large)
            if scans and not _NEWEST_PAGE.search(statement) and not any(part in statement for part in WHOLE):
                found.append(f"{statement}\n{parameters}\n{scans}")
    return found


def _large(connection: Connection) -> set[str]:
    rows = connection.execute(text(f"SELECT relname FROM pg_class WHERE relkind = 'r' AND reltuples >= {LARGE}"))
    return {name for name in rows.scalars() if name.startswith(LOGS)}


def _scans_on_postgresql(connection: Connection, statement: str, parameters: Any, large: set[str]) -> list[str]:
    (plan,) = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {statement}", parameters).scalars().one()
    nodes, scans = [plan["Plan"]], []
    while nodes:
        node = nodes.pop()
        nodes += node.get("Plans", [])
        if node["Node Type"] == "Seq Scan" and node["Relation Name"] in large:
            scans.append(json.dumps(node, indent=1))
    return scans


def _scans_on_sqlite(connection: Connection, statement: str, parameters: Any, _large: set[str]) -> list[str]:
    rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
    return [detail for *_, detail in rows if _SCAN.search(detail)]


@pytest.mark.full
def test_what_is_asked_of_a_log_is_found_by_an_index(crowd: Engine, asked: Asked, endpoint: Endpoint) -> None:
    """The work of every minute, then owners' queries. The rollback is last, because it ends the rollout."""
    channel = channel_to(endpoint)
    source = market()

    with WorkerPool() as workers:
        run_shadow(crowd, source, workers, now=NOW + HOUR)
    score_outcomes(crowd, source, now=NOW)
    (ticked,) = tick(crowd, source, now=NOW)
    alerts.deliver(crowd, [channel], now=NOW)
    alerts.deliver(crowd, [channel], now=NOW + HOUR)
    watchdog.watch_ticks(crowd, now=NOW + DAY, overdue=HOUR)
    watchdog.watch_shadow(crowd, source, now=NOW + DAY, overdue=HOUR)
    watchdog.watch_feed(crowd, source, now=NOW + DAY)
    scrape(crowd, now=NOW)
    route_user(crowd, strategy_name="fib_rsi", now=NOW, user_id="u1")

    assert ticked.error == ""
    rollout_id = resolve_rollout(crowd, "fib_rsi")
    everything = queries.Scope(None, None)
    read_status(crowd, now=NOW)
    read_report(crowd, rollout_id, now=NOW)
    list(read_progress(crowd, [rollout_id], now=NOW))
    read_verdicts(crowd, "fib_rsi", gate="errors", limit=20)
    queries.list_decisions(crowd, strategy_name="fib_rsi", limit=50)
    queries.list_decisions(
        crowd, strategy_name="fib_rsi", version="1", symbol=GOLD, start=NOW - DAY, after=("1", GOLD, NOW - DAY), limit=9
    )
    queries.list_alerts(crowd, everything, limit=20)
    queries.list_alerts(crowd, everything, severity=Severity.CRITICAL, unacknowledged=True, limit=20)
    live_trades.live_summary(crowd, "fib_rsi", "1", NOW - 9 * DAY, NOW)
    calibrate.read_pair(crowd, strategy_name="fib_rsi", version="2", now=NOW)
    audit.read_audit(crowd, strategy_name="fib_rsi")
    audit.read_audit(crowd, limit=20)
    audit.about_rollout(crowd, rollout_id)
    queries.list_alerts(crowd, queries.Scope("fib_rsi"), limit=20)
    maintain(crowd, now=NOW, keep_days=180, apply=False)
    roll_back(crowd, Command(OWNER, NOW, "enough"), strategy_name="fib_rsi")
    read_rollback(crowd, rollout_id=rollout_id)
    with reading(crowd) as session:
        recompute(session, queries.find_rollout(crowd, rollout_id))
        decisions.find_decisions(session, "fib_rsi", "2", limit=20)
        decisions.find_decisions(session, "fib_rsi", "2", GOLD, start=START, end=START + DAY)
        decisions.find_breaches(session, "fib_rsi", "2")
        outcomes.find_outcomes(session, "fib_rsi", "2")
        evidence.read_samples(session, rollout_id, {"slippage": 3}, until=NOW)
        evidence.newest_samples(session, [rollout_id])

    assert [log for log in LOGS if not any(log in statement for statement in asked)] == []
    assert whole(crowd, asked) == []
