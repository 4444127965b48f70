"""What a scrape costs a large installation, as its logs grow; and what keeping the counts costs whoever writes a log.

`ROLLOUT_BENCHMARK_DECISIONS` says how long the longest log is: ten million rows take five gigabytes on SQLite.
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from statistics import median
from typing import Any

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from pytest_benchmark.fixture import BenchmarkFixture
from sqlalchemy import Engine, text

from strategy_core.domain.plan import Plan
from strategy_core.observe.metrics import exposition
from strategy_core.store import decisions
from strategy_core.store.bulk_insert import write_if_new
from strategy_core.store.engine import transaction, upgrade
from strategy_core.store.tables import ShadowDecisionLog, decision_id
from tests.benchmarks.filling import Names, count_again, settle
from tests.builders import DAY, MONDAY, decision_row

pytestmark = pytest.mark.benchmark_suite

STRATEGIES, VERSIONS, SYMBOLS = 50, 5, 20  # 5,000 pairs of version and symbol
MOST = int(os.environ.get("ROLLOUT_BENCHMARK_DECISIONS", "10000000"))
LENGTHS = [MOST // 100, MOST // 10, MOST]
VERDICTS, EVENTS, ALERTS, REPORTS = 2_000, 1_000, 400, 365  # a strategy; reports a shadow
SCRAPES = 20
NOW = MONDAY + 400 * DAY
GATES = [gate.name for gate in Plan().gates]


@pytest.fixture
def before_counts(vast: Engine) -> Engine:
    """A database of the schema before counts were kept, without the triggers that filling it would wait for."""
    upgrade(vast, "v0005")
    return vast


def test_a_scrape_is_flat_in_the_length_of_the_log(before_counts: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    """The log is filled by hand, and counted as the migration counts what it finds."""
    engine = before_counts
    names = Names(engine)
    counting_s = _install(engine, names, LENGTHS[0])
    told = [f"{engine.dialect.name}: the migration counts {LENGTHS[0]:,} rows in {counting_s:.1f} s"]
    medians = []
    for length in LENGTHS:
        if length > LENGTHS[0]:
            with engine.begin() as connection:
                run = lambda statement: connection.execute(text(statement))  # noqa: E731
                _fill_log(run, names, LENGTHS[LENGTHS.index(length) - 1], length)
            began = time.perf_counter()
            count_again(engine)
            told.append(f"  counted again in {time.perf_counter() - began:.1f} s")
        settle(engine)
        found, page = _scraped(engine)
        times, worked = zip(*found, strict=True)
        medians.append(median(worked))
        told.append(
            f"  {length:>10,} decisions: p50 {median(times) * 1e3:.0f} ms, max {max(times) * 1e3:.0f} ms, "
            f"of which {median(worked) * 1e3:.0f} ms its own work, {page.count(chr(10)):,} lines, "
            f"{len(page) / 1e6:.1f} MB, parsed in {_parsed(page)[0] * 1e3:.0f} ms"
        )
        assert _total(page) == length
    with capsys.disabled():
        print("\n" + "\n".join(told))  # noqa: T201
    assert page.count("\nshadow_decisions_total{") == STRATEGIES * VERSIONS * SYMBOLS * 4
    assert page.count("\ngate_verdict{") == STRATEGIES * len(GATES)
    assert medians[-1] < 3 * medians[0]  # a scan of a hundred times the rows would take a hundred times as long


@pytest.mark.full
def test_a_scrape_of_thirty_thousand_lines_is_read_whole_by_the_librarys_own_parser(
    before_counts: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    _install(before_counts, Names(before_counts), 100_000)

    times, page = _scraped(before_counts, scrapes=3)
    parsing_s, families = _parsed(page)

    lines = page.splitlines()
    with capsys.disabled():
        print(  # noqa: T201
            f"\n{before_counts.dialect.name}: {len(lines):,} lines, {len(page.encode()):,} bytes, "
            f"written in {median(seconds for seconds, _ in times) * 1e3:.0f} ms, parsed in {parsing_s * 1e3:.0f} ms"
        )
    assert len(lines) > 29_000
    assert sum(len(family.samples) for family in families) == sum(not line.startswith("#") for line in lines)
    decided = next(family for family in families if family.name == "shadow_decisions")
    assert sum(sample.value for sample in decided.samples) == 100_000


@pytest.mark.parametrize("shape", ["live", "catch-up"])
def test_what_counting_adds_to_the_log_of_decisions(
    engine: Engine, shape: str, benchmark: BenchmarkFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Live: a candle of five versions on twenty symbols; catch-up: 250 candles of one version on four."""
    names = Names(engine)
    with engine.begin() as connection:
        _fill_versions(lambda statement: connection.execute(text(statement)), names, strategies=1)
    hours = iter(range(10_000_000))

    def rows() -> list[dict[str, Any]]:
        if shape == "live":
            at = MONDAY + next(hours) * timedelta(hours=1)
            return [_row(version, symbol, at) for version in range(VERSIONS) for symbol in range(SYMBOLS)]
        opened = [MONDAY + next(hours) * timedelta(hours=1) for _ in range(250)]
        return [_row(0, symbol, at) for symbol in range(4) for at in opened]

    def logged(write: Callable[[Any, Sequence[dict[str, Any]]], object]) -> float:
        given = rows()
        began = time.perf_counter()
        with transaction(engine) as session:
            write(session, given)
        return (time.perf_counter() - began) / len(given) * 1_000

    plain, counted = [], []
    for _ in range(30 if shape == "live" else 10):  # in turns: what else the machine does falls on both
        plain.append(logged(lambda session, given: write_if_new(session, ShadowDecisionLog, given)))
        counted.append(logged(decisions.log_decisions))
    benchmark.pedantic(lambda: logged(decisions.log_decisions), rounds=3, iterations=1)  # type: ignore[no-untyped-call]
    ratio = median(counted) / median(plain)
    benchmark.extra_info["ratio"] = ratio
    with capsys.disabled():
        each = f"{median(plain) * 1e3:.0f} ms without, {median(counted) * 1e3:.0f} ms with counts"
        print(f"\n{engine.dialect.name}, {shape}: 1,000 rows in {each}, {ratio:.2f} times")  # noqa: T201
    assert ratio < 3


def _row(version: int, symbol: int, at: Any) -> dict[str, Any]:
    row = decision_row(f"v{version}", at, symbol=f"SYM{symbol}")
    name = {"strategy_name": "s0", "id": decision_id("s0", f"v{version}", f"SYM{symbol}", at)}
    return row | name


def _install(engine: Engine, names: Names, length: int) -> float:
    """Put an installation with *length* decisions there, and return the seconds in which the migration counts them."""
    with engine.begin() as connection:
        run = lambda statement: connection.execute(text(statement))  # noqa: E731
        _fill_installation(run, names)
        _fill_log(run, names, 0, length)
    began = time.perf_counter()
    upgrade(engine)
    return time.perf_counter() - began


def _parsed(page: str) -> tuple[float, list[Metric]]:
    """Return the seconds that `prometheus_client` takes to read *page*, and what it finds."""
    began = time.perf_counter()
    families = list(text_string_to_metric_families(page))
    return time.perf_counter() - began, families


def _scraped(engine: Engine, scrapes: int = SCRAPES) -> tuple[list[tuple[float, float]], str]:
    """Return (seconds, seconds of this process's processor) of each scrape, and the last one's answer."""
    times, page = [], b""
    exposition(engine, now=NOW)  # connections and plans
    for _ in range(scrapes):
        began, worked = time.perf_counter(), time.process_time()
        page = exposition(engine, now=NOW)[0]
        times.append((time.perf_counter() - began, time.process_time() - worked))
    return times, page.decode()


def _total(page: str) -> int:
    lines = (line for line in page.splitlines() if line.startswith("shadow_decisions_total{"))
    return int(sum(float(line.rpartition(" ")[2]) for line in lines))


Run = Callable[[str], Any]


def _fill_versions(run: Run, names: Names, *, strategies: int = STRATEGIES) -> None:
    symbols = json.dumps([f"SYM{number}" for number in range(SYMBOLS)])
    at = names.at("0")
    run(
        "INSERT INTO strategy (name, salt, scoring, created_at, generation, audit_head) "
        f"SELECT 's' || s.n, '', '{{}}', {at}, 0, '' FROM {names.series('s', 0, strategies - 1)}"
    )
    run(
        "INSERT INTO strategy_version (id, strategy_name, version, status, entry_point, config, symbols, timeframe, "
        "warmup_bars, fingerprint, fingerprint_parts, registration_report, created_at, activated_at) "
        f"SELECT {names.uuid_of('s.n * 100 + v.n')}, 's' || s.n, 'v' || v.n, "
        "CASE v.n WHEN 0 THEN 'active' WHEN 1 THEN 'canary' ELSE 'shadow' END, "
        f"'fib_rsi', '{{}}', '{symbols}', '1h', 150, 'print of ' || v.n, '{{}}', '{{}}', {at}, {at} "
        f"FROM {names.series('s', 0, strategies - 1)} CROSS JOIN {names.series('v', 0, VERSIONS - 1)}"
    )


def _fill_installation(run: Run, names: Names) -> None:
    """Put strategies, open rollouts, verdicts, events, alerts and reports there, as years would leave them."""
    _fill_versions(run, names)
    plan = json.dumps(Plan().model_dump(mode="json"))
    each = names.series("s", 0, STRATEGIES - 1)
    for table in ("audit_event", "strategy"):
        trigger = {"audit_event": "link_audit_event", "strategy": "count_strategy"}[table]
        run(f"DROP TRIGGER {trigger}" + (f" ON {table}" if names.on_postgresql else ""))
    run(
        "INSERT INTO canary_config (id, strategy_name, version, rollout_bp, salt, generation, started_at) "
        f"SELECT {names.uuid_of('s.n')}, 's' || s.n, 'v1', 500, '', 1, {names.at('0')} FROM {each}"
    )
    run(
        "INSERT INTO rollout (id, strategy_name, version, control_version, state, stage_index, generation, plan, "
        "started_at, stage_entered_at, stage_extended_at, last_tick_at, reason) "
        f"SELECT {names.uuid_of('s.n')}, 's' || s.n, 'v1', 'v0', 'running', 0, 1, '{plan}', "
        f"{names.at('0')}, {names.at('0')}, {names.at('0')}, {names.at('0')}, '' FROM {each}"
    )
    run(
        "INSERT INTO rollout_book (rollout_id, history, slots, totals) "
        f"""SELECT {names.uuid_of("s.n")}, '{{}}', 0, '{{"concordance": 0.9}}' FROM {each}"""
    )
    gate = " ".join(f"WHEN {number} THEN '{name}'" for number, name in enumerate(GATES))
    run(
        "INSERT INTO gate_verdict (id, rollout_id, ticked_at, stage_index, gate, verdict, armed, reason, "
        'value, "limit", n) '
        f"SELECT {names.uuid_of('s.n * 1000000 + v.n')}, {names.uuid_of('s.n')}, {names.at('v.n * 60')}, 0, "
        f"CASE v.n % {len(GATES)} {gate} END, CASE WHEN v.n % 7 = 0 THEN 'inconclusive' ELSE 'pass' END, true, "
        f"'as it should be', 0.5, 1.0, v.n FROM {each} CROSS JOIN {names.series('v', 1, VERDICTS)}"
    )
    run(
        "INSERT INTO audit_event (at, actor, role, source, action, strategy_name, version, before, after, reason, "
        "evidence, request_id, position, previous_hash, hash) "
        f"""SELECT {names.at("e.n * 3600")}, 'ana', 'owner', 'api', 'activate_version', 's' || s.n, 'v0', """
        """'{"active": "v1", "canary": null, "percent": 0.0, "rollout": null}', """
        """'{"active": "v0", "canary": null, "percent": 0.0, "rollout": null}', 'why', '[]', '', e.n, '', '' """
        f"FROM {each} CROSS JOIN {names.series('e', 1, EVENTS)}"
    )
    run(
        "INSERT INTO alert_outbox (at, severity, kind, strategy_name, text, facts, dedupe_key, acknowledged_by, "
        "acknowledged_because) "
        f"SELECT {names.at('a.n * 3600')}, CASE WHEN a.n % 10 = 0 THEN 'critical' ELSE 'info' END, 'rollout.advanced', "
        "'s' || s.n, 'it has advanced', '{}', s.n || ' ' || a.n, '', '' "
        f"FROM {each} CROSS JOIN {names.series('a', 1, ALERTS)}"
    )
    run(
        "INSERT INTO alert_delivery (alert_id, channel, number, due_at, next_try_at, claimed_by, attempts, failures, "
        f"last_error) SELECT id, 'slack-' || c.n, 1, at, CASE WHEN id % 100 = 0 THEN at END, '', 1, 0, '' "
        f"FROM alert_outbox CROSS JOIN {names.series('c', 1, 2)}"
    )
    report = json.dumps(
        {"divergence_rate": 12.5, "difference": {"mean": 0.1, "low": -0.1, "high": 0.3}, "by_regime": "x" * 6_000}
    )
    run(
        "INSERT INTO comparison_report (id, strategy_name, shadow_version, active_version, symbol, period_start, "
        "period_end, report, created_at) "
        f"SELECT {names.uuid}, 's' || s.n, 'v' || v.n, 'v0', '', {names.at('d.n * 86400')}, "
        f"{names.at('d.n * 86400 + 86400')}, '{report}', {names.at('d.n * 86400 + 86400')} "
        f"FROM {each} CROSS JOIN {names.series('v', 1, VERSIONS - 1)} CROSS JOIN {names.series('d', 1, REPORTS // 10)}"
    )


def _fill_log(run: Run, names: Names, first: int, length: int) -> None:
    """Put the decisions *first* to *length* there, as many on each pair of version and symbol."""
    pairs = STRATEGIES * VERSIONS * SYMBOLS
    key = "d.n / 100 % 50", "d.n / 20 % 5", "d.n % 20"
    run(
        "INSERT INTO shadow_decision_log (id, strategy_name, version, symbol, timestamp, decision, confidence, "
        "features, reason, role, window_hash, duration_ms, error_kind, logged_at) "
        f"SELECT {names.uuid_of('d.n')}, 's' || ({key[0]}), 'v' || ({key[1]}), 'SYM' || ({key[2]}), "
        f"{names.at(f'd.n / {pairs} * 60')}, "
        "CASE WHEN d.n % 9973 = 0 THEN 'error' WHEN d.n % 11 = 0 THEN 'buy' WHEN d.n % 13 = 0 THEN 'sell' "
        "ELSE 'hold' END, "
        f"0.5, '{{\"rsi\": 28.5}}', '', 'shadow', '0123456789abcdef', 1.0, "
        f"CASE WHEN d.n % 9973 = 0 THEN 'raised' ELSE '' END, {names.at(f'd.n / {pairs} * 60')} "
        f"FROM {names.series('d', first, length - 1)}"
    )
