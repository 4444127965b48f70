"""Numbers for a Prometheus, read from the database when it asks: flow runs are too short for any scraper to reach."""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from time import perf_counter
from typing import Any

from sqlalchemy import Engine

from strategy_core.domain.alert import HEADLINES, Severity
from strategy_core.domain.candles import timeframe_delta
from strategy_core.domain.errors import InvalidPlan, InvalidTimeframe
from strategy_core.domain.gates import Freshness, Verdict
from strategy_core.domain.lifecycle import Status, utc
from strategy_core.domain.plan import read_plan
from strategy_core.domain.ramp import ALERT, BLIND, OWNER, UNANSWERED
from strategy_core.domain.routing import as_percent
from strategy_core.observe.catalogue import FAMILIES
from strategy_core.observe.exposition import TEXT, Exposition
from strategy_core.store import alert_numbers, numbers
from strategy_core.store.engine import snapshot
from strategy_core.store.numbers import Rows, Strategies
from strategy_core.store.tables import ERROR
from strategy_core.store.tally_tables import Counted

RETIRED_FOR = timedelta(days=7)  # how long a version is told of after it was retired
MOST_PAIRS = 10_000  # versions and symbols; twice what a scrape is measured with
MOST_TALLIES = 20_000
_VERDICTS = tuple(verdict.value for verdict in Verdict)
ERROR_KINDS = ("breach", "deadline", "died", "invalid", "raised")


def exposition(engine: Engine, strategies: Strategies = None, *, now: datetime, media_type: str = TEXT) -> bytes:
    """Return all metrics of these strategies, or of all, in the format of *media_type*; all of one moment.

    Args:
        now: by the platform's clock: ages are by it, and a replay moves it.
    """
    now, began = utc(now, "now"), perf_counter()
    retired_since = now - RETIRED_FOR
    told = _Told(now)
    with snapshot(engine) as session:
        told.strategies(numbers.read_strategies(session, strategies))
        told.versions(numbers.read_versions(session, strategies, retired_since=retired_since))
        told.decisions(numbers.read_decisions(session, strategies, retired_since=retired_since, at_most=MOST_PAIRS))
        told.rollouts(numbers.read_rollouts(session, strategies), numbers.read_gates(session, strategies))
        told.tallies(numbers.read_tallies(session, strategies, at_most=MOST_TALLIES))
        told.comparisons(numbers.read_comparisons(session, strategies))
        told.alerts(alert_numbers.read_alerts(session, strategies))
        told.outbox(alert_numbers.read_outbox(session, strategies, now=now))
    told.collected(perf_counter() - began)
    return told.found.written(media_type)


@dataclass(slots=True)
class _Told:
    """What rows mean as metrics; a row that cannot be read is left out, and counted."""

    now: datetime
    found: Exposition = field(default_factory=lambda: Exposition(FAMILIES))
    left_out: dict[str, int] = field(default_factory=lambda: {"cap": 0, "unreadable": 0})
    _versions: dict[tuple[str, str], "_Version"] = field(default_factory=dict)
    _causes: dict[tuple[str, str], int] = field(default_factory=dict)
    _verdicts: dict[tuple[str, str, str], int] = field(default_factory=dict)

    def strategies(self, rows: Rows) -> None:
        add = self.found.add
        for name, generation, version, percent_bp, users, below in rows:
            add("strategy_generation", (name,), generation)
            self._causes |= dict.fromkeys([(name, cause) for cause in (OWNER, ALERT, BLIND, UNANSWERED)], 0)
            if users is not None:
                add("directory_users", (name,), users)
            if version is not None:
                add("canary_traffic_percent", (name, version), as_percent(percent_bp))
                if users is not None:
                    add("canary_users", (name, version), int.from_bytes(below, "big"))

    def versions(self, rows: Rows) -> None:
        for name, version, status, symbols, timeframe, created_at in rows:
            with self._readable():
                candle_s = timeframe_delta(timeframe).total_seconds()
                told = _Version(status, tuple(json.loads(symbols)), candle_s, created_at.timestamp())
                self._versions[name, version] = told

    def decisions(self, rows: Rows) -> None:
        add, feeds = self.found.add, dict[str, tuple[float, float]]()
        self.left_out["cap"] |= len(rows) > MOST_PAIRS
        rows = rows[:MOST_PAIRS]
        self.found.add_all("shadow_decisions_total", _said(rows))
        for name, version, symbol, *_, newest_s in rows:
            known = self._versions.get((name, version))
            if known is not None and known.status != Status.RETIRED:
                known.newest_s[symbol] = newest_s
                feeds[symbol] = max(feeds.get(symbol, (0.0, 0.0)), (newest_s + known.candle_s, newest_s))
        for symbol, (closed_s, newest_s) in sorted(feeds.items()):
            add("feed_newest_candle_timestamp_seconds", (symbol,), newest_s)
            add("feed_lag_seconds", (symbol,), self._since(closed_s))
        for key, version in self._versions.items():
            if version.status != Status.RETIRED and version.symbols:
                add("shadow_lag_seconds", key, self._since(min(map(version.decided_until, version.symbols))))

    def rollouts(self, rows: Rows, gates: dict[Any, list[Any]]) -> None:
        add = self.found.add
        for row in rows:
            key = (row.strategy_name, row.version)
            add("rollout_open", (*key, row.state, str(row.stage_index + 1)), 1)
            add("rollout_stage", key, row.stage_index + 1)
            add("rollout_dwell_seconds", key, self._age(row.stage_entered_at))
            add("rollout_blind_seconds", key, self._age(row.blind_since) if row.blind_since else 0)
            ticked = row.last_tick_at or row.started_at  # it may lie ahead, by a clock that was wrong: no tick of now
            add("rollout_tick_age_seconds", key, abs(self.now.timestamp() - ticked.timestamp()))
            if row.last_tick_at is not None:
                add("rollout_last_tick_timestamp_seconds", key, row.last_tick_at.timestamp())
            if row.concordance is not None:
                add("fidelity_concordance", (row.strategy_name, row.control_version), row.concordance)
            with self._readable():
                stages, names = _read(row.plan)
                add("rollout_stages", key, stages)
                self._gates(key, names, gates.get(row.id, []))

    def _gates(self, key: tuple[str, str], names: Sequence[str], said: Iterable[Sequence[Any]]) -> None:
        add = self.found.add
        for gate in names:
            self._causes.setdefault((key[0], gate), 0)
            self._verdicts |= dict.fromkeys([(key[0], gate, verdict) for verdict in _VERDICTS], 0)
        for gate, newest in said:
            if gate not in names:  # an earlier release judged by it, and it will never speak again
                continue
            verdict, value, limit = json.loads(newest)
            add("gate_verdict", (*key, gate, verdict), 1)
            if value is not None:
                add("gate_value", (*key, gate), value)
            if limit is not None:
                add("gate_limit", (*key, gate), limit)

    def tallies(self, rows: Rows) -> None:
        """Tell the counts; those that may be asked for are 0 until then, or nobody would see the first grow."""
        capped = len(rows) > MOST_TALLIES
        self.left_out["cap"] |= capped
        errors = {(*key, kind): 0 for key in self._versions for kind in ERROR_KINDS}
        for strategy, what, name, detail, total in rows[:MOST_TALLIES]:
            if what == Counted.ROLLBACK:
                self._causes[strategy, name] = total
            elif what == Counted.VERDICT:
                self._verdicts[strategy, name, detail] = total
            elif (strategy, name) not in self._versions:
                continue
            elif what == Counted.ERROR:
                errors[strategy, name, detail] = total
            elif what == Counted.ACTIVATION:
                self.found.add("version_activations_total", (strategy, name), total)
        breaches = {key: errors[*key, "breach"] for key in self._versions}
        for family, counts in (
            ("shadow_errors_total", errors),
            ("rollbacks_total", self._causes),
            ("gate_verdicts_total", self._verdicts),
            ("isolation_breaches_total", breaches),
        ):  # a count that was left out is not 0: it would have gone down
            self.found.add_all(family, [(key, total) for key, total in counts.items() if total or not capped])

    def comparisons(self, rows: Rows) -> None:
        for name, version, report in rows:
            if report is None:
                continue
            with self._readable():
                divergence, *difference = json.loads(report)
                if divergence is not None:
                    self.found.add("comparison_divergence_percent", (name, version), divergence)
                for bound, value in zip(("low", "mean", "high"), difference, strict=True):
                    if value is not None:
                        self.found.add("comparison_difference_r", (name, version, bound), value)

    def alerts(self, rows: Rows) -> None:
        raised = {(severity.value, kind): 0 for severity in Severity for kind in HEADLINES}
        open_now = dict.fromkeys([severity.value for severity in Severity], 0)
        for kind, severity, total, acknowledged in rows:
            known = kind if kind in HEADLINES else "other"  # of an earlier release
            raised[severity, known] = raised.get((severity, known), 0) + total
            open_now[severity] += total - acknowledged
        self.found.add_all("alerts_raised_total", raised.items())
        self.found.add_all("alerts_unacknowledged", [((severity,), total) for severity, total in open_now.items()])

    def outbox(self, rows: Rows) -> None:
        for channel, due, oldest in rows:
            self.found.add("alert_outbox_depth", (channel,), due)
            self.found.add("alert_outbox_oldest_seconds", (channel,), self._age(oldest) if due else 0)

    def collected(self, took_s: float) -> None:
        self.found.add_all("exporter_left_out", [((reason,), total) for reason, total in self.left_out.items()])
        self.found.add("exporter_collect_seconds", (), took_s)

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (InvalidPlan, InvalidTimeframe, ValueError, TypeError):
            self.left_out["unreadable"] += 1

    def _age(self, moment: datetime) -> float:
        return self._since(moment.timestamp())

    def _since(self, moment_s: float) -> float:
        return max(0.0, self.now.timestamp() - moment_s)  # a replay that begins anew lies before what it has written


@dataclass(slots=True)
class _Version:
    """A version that is told of; times in seconds since 1970."""

    status: str
    symbols: tuple[str, ...]
    candle_s: float
    created_s: float
    newest_s: dict[str, float] = field(default_factory=dict)

    def decided_until(self, symbol: str) -> float:
        """Return the close of the newest candle that it was asked about; when it was registered, before any."""
        newest_s = self.newest_s.get(symbol)
        return self.created_s if newest_s is None else newest_s + self.candle_s


def _said(rows: Rows) -> Iterator[tuple[tuple[str, ...], float]]:
    for name, version, symbol, buy, sell, hold, error, _ in rows:
        yield (version, name, symbol, "buy"), buy
        yield (version, name, symbol, "sell"), sell
        yield (version, name, symbol, "hold"), hold
        yield (version, name, symbol, ERROR), error


@lru_cache(maxsize=256)
def _read(plan: str) -> tuple[int, tuple[str, ...]]:
    """Return how many stages a plan has, and its gates' names; a plan is frozen, and reading it takes a millisecond."""
    found = read_plan(json.loads(plan))
    return len(found.stages), (Freshness().name, *(gate.name for gate in found.gates))
