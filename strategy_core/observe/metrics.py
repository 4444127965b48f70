"""Prometheus metrics, read from the database at each scrape: flow runs end before a scraper could reach them."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache, partial
from time import perf_counter
from typing import Any, Literal
from uuid import UUID

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, choose_encoder
from prometheus_client.registry import Collector
from sqlalchemy import Engine

from strategy_core.domain.alerts import HEADLINES, Severity
from strategy_core.domain.candles import timeframe_delta
from strategy_core.domain.errors import InvalidPlan, InvalidTimeframe
from strategy_core.domain.gates.base import Freshness, Verdict
from strategy_core.domain.gates.on_slots import WATCH
from strategy_core.domain.lifecycle import Status, utc
from strategy_core.domain.plan import read_plan
from strategy_core.domain.ramp import ALERT, BLIND, OWNER, UNANSWERED
from strategy_core.domain.routing import as_percent
from strategy_core.store import metrics
from strategy_core.store.engine import snapshot
from strategy_core.store.metrics import Rows, Strategies
from strategy_core.store.tables import ERROR, Counted

PLAIN_TEXT = CONTENT_TYPE_PLAIN_0_0_4
OPENMETRICS = "application/openmetrics-text"


@dataclass(frozen=True, slots=True)
class Family:
    """One exported metric name.

    Attributes:
        name: a counter's ends in `_total`.
        labels: in the order in which samples give their values.
        help: one line, shown by Prometheus and in the reference.
    """

    name: str
    kind: Literal["counter", "gauge"]
    labels: tuple[str, ...]
    help: str

    def metric(self) -> Metric:
        family = CounterMetricFamily if self.kind == "counter" else GaugeMetricFamily
        return family(self.name, self.help, labels=self.labels)


_OF = ("strategy", "version")


def _gauge(name: str, labels: tuple[str, ...], about: str) -> Family:
    return Family(name, "gauge", labels, about)


def _counter(name: str, labels: tuple[str, ...], about: str) -> Family:
    return Family(name, "counter", labels, about)


FAMILIES = (
    _counter(
        "shadow_decisions_total",
        ("version", "strategy", "symbol", "decision"),
        "Decisions logged, by action: buy, sell, hold, or error.",
    ),
    _counter(
        "shadow_errors_total",
        (*_OF, "kind"),
        "Candles without a decision, by cause.",
    ),
    _counter("isolation_breaches_total", _OF, "Candles on which the version attempted a forbidden side effect."),
    _gauge("isolation_level", ("level",), "1 for the isolation of versions that run on the scraped machine."),
    _gauge("shadow_lag_seconds", _OF, "Time since the newest decided candle closed, for the slowest symbol."),
    _gauge("feed_newest_candle_timestamp_seconds", ("symbol",), "Open time of the newest logged candle."),
    _gauge("feed_lag_seconds", ("symbol",), "Time since the newest logged candle closed."),
    _gauge("canary_traffic_percent", _OF, "Percent of users on the canary. 0 after a rollback."),
    _gauge("canary_users", _OF, "Users in the directory that are on the canary."),
    _gauge("directory_users", ("strategy",), "Users in the directory."),
    _counter("version_activations_total", _OF, "Activations of the version."),
    _gauge("strategy_generation", ("strategy",), "Audited changes of the strategy."),
    _gauge("rollout_open", (*_OF, "state", "stage"), "1 for each open rollout."),
    _gauge("rollout_stage", _OF, "Current stage of the rollout, counted from 1."),
    _gauge("rollout_stages", _OF, "Stages in the rollout's plan."),
    _gauge("rollout_dwell_seconds", _OF, "Time in the current stage."),
    _gauge("rollout_blind_seconds", _OF, "Time the rollout has been blind. 0 while evidence arrives."),
    _gauge("rollout_last_tick_timestamp_seconds", _OF, "Time of the last tick."),
    _gauge("rollout_tick_age_seconds", _OF, "Time since the last tick, or since the start if there was no tick yet."),
    _gauge(
        "rollout_unchanged_seconds",
        _OF,
        "Time since an owner or a tick last changed the rollout, such as its state. Other ticks do not count.",
    ),
    _gauge("gate_verdict", (*_OF, "gate", "verdict"), "1 for the current verdict of each gate of an open rollout."),
    _gauge(
        "gate_verdict_seconds",
        (*_OF, "gate", "verdict"),
        "Time a gate has been at breach, fail or inconclusive. Not exported for other verdicts.",
    ),
    _gauge("gate_value", (*_OF, "gate"), "Current value of a gate of an open rollout."),
    _gauge("gate_limit", (*_OF, "gate"), "The value at which the gate's verdict changes."),
    _counter("gate_verdicts_total", ("strategy", "gate", "verdict"), "Changes of a gate's verdict, by new verdict."),
    _counter(
        "rollbacks_total",
        ("strategy", "cause"),
        "Rollbacks by cause: the gate that failed, or owner, alert, watch, blind, unanswered.",
    ),
    _counter("alerts_raised_total", ("severity", "kind"), "Alerts raised."),
    _gauge("alerts_unacknowledged", ("severity",), "Alerts without an acknowledgement."),
    _gauge(
        "alerts_unacknowledged_seconds",
        (),
        "Age of the oldest critical alert without an acknowledgement. 0 if there is none.",
    ),
    _gauge("alert_outbox_depth", ("channel",), "Alerts due on the channel and not sent yet."),
    _gauge(
        "alert_outbox_oldest_seconds",
        ("channel",),
        "Time the oldest of them has been due.",
    ),
    _gauge(
        "comparison_divergence_percent",
        _OF,
        "Percent of actionable candles on which shadow and active differ.",
    ),
    _gauge("comparison_difference_r", (*_OF, "bound"), "R per slot, shadow minus active: low, mean, high."),
    _gauge("fidelity_concordance", _OF, "Concordance of shadow and live results: 1 if equal, 0 if unrelated."),
    _gauge(
        "service_token_expires_timestamp_seconds",
        ("name", "id"),
        "Expiry of each service token that is not revoked, in real time.",
    ),
    _gauge(
        "exporter_left_out",
        ("reason",),
        "cap: 1 if series beyond the limit were left out. unreadable: rows left out.",
    ),
    _gauge("exporter_collect_seconds", (), "Time this scrape spent on reading the database."),
)
NAMES = frozenset(family.name for family in FAMILIES)


RETIRED_FOR = timedelta(days=7)  # a retired version is exported for so long
MOST_PAIRS = 10_000  # versions and symbols; twice what a scrape is measured with
MOST_TALLIES = 20_000
MOST_TOKENS = 1_000
_LABELS = {family.name: family.labels for family in FAMILIES}
_VERDICTS = tuple(verdict.value for verdict in Verdict)
_DOUBTFUL = (Verdict.BREACH, Verdict.FAIL, Verdict.INCONCLUSIVE)
ERROR_KINDS = ("breach", "deadline", "died", "invalid", "overload", "raised")


class RolloutCollector(Collector):
    """Reads all metrics of these strategies, or of all strategies, as of one moment.

    Args:
        now: by the platform's clock, since ages depend on it and a replay moves it.
        isolation: of versions that run on this machine, a `Level`. None leaves it out.
    """

    def __init__(
        self, engine: Engine, strategies: Strategies = None, *, now: datetime, isolation: str | None = None
    ) -> None:
        self._engine, self._strategies, self._now = engine, strategies, utc(now, "now")
        self._isolation = isolation

    def collect(self) -> Iterable[Metric]:
        began, wanted, retired_since = perf_counter(), self._strategies, self._now - RETIRED_FOR
        samples = _Samples(self._now)
        with snapshot(self._engine) as session:
            samples.strategies(metrics.read_strategies(session, wanted))
            samples.versions(metrics.read_versions(session, wanted, retired_since=retired_since))
            samples.decisions(metrics.read_decisions(session, wanted, retired_since=retired_since, at_most=MOST_PAIRS))
            gates = metrics.read_gates(session, wanted)
            samples.rollouts(
                metrics.read_rollouts(session, wanted), gates, partial(metrics.read_verdict_since, session)
            )
            samples.tallies(metrics.read_tallies(session, wanted, at_most=MOST_TALLIES))
            samples.comparisons(metrics.read_comparisons(session, wanted))
            samples.alerts(metrics.read_alerts(session, wanted), metrics.read_unacknowledged(session, wanted))
            samples.outbox(metrics.read_outbox(session, wanted, now=self._now))
            samples.tokens(metrics.read_tokens(session, at_most=MOST_TOKENS), wanted)
        if self._isolation is not None:
            samples.add("isolation_level", (self._isolation,), 1)
        samples.scrape(perf_counter() - began)
        return samples.families.values()


def exposition(
    engine: Engine, strategies: Strategies = None, *, now: datetime, accept: str = "", isolation: str | None = None
) -> tuple[bytes, str]:
    """Return the scrape and its content type: OpenMetrics if *accept* asks for it, else the text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(RolloutCollector(engine, strategies, now=now, isolation=isolation))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


@dataclass(slots=True)
class _Samples:
    """Turns rows into samples. A row that cannot be read is left out and counted."""

    now: datetime
    families: dict[str, Metric] = field(default_factory=lambda: {one.name: one.metric() for one in FAMILIES})
    left_out: dict[str, int] = field(default_factory=lambda: {"cap": 0, "unreadable": 0})
    _versions: dict[tuple[str, str], "_Version"] = field(default_factory=dict)
    _causes: dict[tuple[str, str], int] = field(default_factory=dict)
    _verdicts: dict[tuple[str, str, str], int] = field(default_factory=dict)

    def add(self, name: str, labels: tuple[str, ...], value: float) -> None:
        self.add_all(name, [(labels, value)])

    def add_all(self, name: str, samples: Iterable[tuple[tuple[str, ...], float]]) -> None:
        family, names = self.families[name], _LABELS[name]
        for labels, value in samples:
            family.add_sample(name, dict(zip(names, map(_encodable, labels), strict=True)), value)

    def strategies(self, rows: Rows) -> None:
        add = self.add
        for name, generation, version, percent_bp, users, below in rows:
            add("strategy_generation", (name,), generation)
            self._causes |= dict.fromkeys([(name, cause) for cause in (OWNER, ALERT, WATCH, BLIND, UNANSWERED)], 0)
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
                symbols_of = tuple(json.loads(symbols))
                self._versions[name, version] = _Version(status, symbols_of, candle_s, created_at.timestamp())

    def decisions(self, rows: Rows) -> None:
        add, feeds = self.add, dict[str, tuple[float, float]]()
        self.left_out["cap"] |= len(rows) > MOST_PAIRS
        rows = rows[:MOST_PAIRS]
        self.add_all("shadow_decisions_total", _by_action(rows))
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

    def rollouts(
        self, rows: Rows, gates: dict[Any, list[Any]], since: Callable[[UUID, str, str], datetime | None]
    ) -> None:
        add = self.add
        for row in rows:
            key = (row.strategy_name, row.version)
            add("rollout_open", (*key, row.state, str(row.stage_index + 1)), 1)
            add("rollout_stage", key, row.stage_index + 1)
            add("rollout_dwell_seconds", key, self._age(row.stage_entered_at))
            add("rollout_blind_seconds", key, self._age(row.blind_since) if row.blind_since else 0)
            ticked = row.last_tick_at or row.started_at  # may lie ahead, after a clock that was wrong
            add("rollout_tick_age_seconds", key, abs(self.now.timestamp() - ticked.timestamp()))
            add("rollout_unchanged_seconds", key, self._age(row.changed_at or row.started_at))
            if row.last_tick_at is not None:
                add("rollout_last_tick_timestamp_seconds", key, row.last_tick_at.timestamp())
            if row.concordance is not None:
                add("fidelity_concordance", (row.strategy_name, row.control_version), row.concordance)
            with self._readable():
                stages, names = _read_plan(row.plan)
                add("rollout_stages", key, stages)
                self._gates(key, names, gates.get(row.id, []), partial(since, row.id))

    def _gates(
        self,
        key: tuple[str, str],
        names: Sequence[str],
        newest: Iterable[Sequence[Any]],
        since: Callable[[str, str], datetime | None],
    ) -> None:
        add = self.add
        for gate in names:
            self._causes.setdefault((key[0], gate), 0)
            self._verdicts |= dict.fromkeys([(key[0], gate, verdict) for verdict in _VERDICTS], 0)
        for gate, finding in newest:
            if gate not in names:  # a gate of an earlier release
                continue
            verdict, value, limit = json.loads(finding)
            add("gate_verdict", (*key, gate, verdict), 1)
            if verdict in _DOUBTFUL and (began := since(gate, verdict)) is not None:
                add("gate_verdict_seconds", (*key, gate, verdict), self._age(began))
            if value is not None:
                add("gate_value", (*key, gate), value)
            if limit is not None:
                add("gate_limit", (*key, gate), limit)

    def tallies(self, rows: Rows) -> None:
        """Add the counts. Known label values start at 0, else `increase()` would miss the first event."""
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
                self.add("version_activations_total", (strategy, name), total)
        breaches = {key: errors[*key, "breach"] for key in self._versions}
        for family, counts in (
            ("shadow_errors_total", errors),
            ("rollbacks_total", self._causes),
            ("gate_verdicts_total", self._verdicts),
            ("isolation_breaches_total", breaches),
        ):  # a count that was left out must not look like a reset to 0
            self.add_all(family, [(key, total) for key, total in counts.items() if total or not capped])

    def comparisons(self, rows: Rows) -> None:
        for name, version, report in rows:
            if report is None:
                continue
            with self._readable():
                divergence, *difference = json.loads(report)
                if divergence is not None:
                    self.add("comparison_divergence_percent", (name, version), divergence)
                for bound, value in zip(("low", "mean", "high"), difference, strict=True):
                    if value is not None:
                        self.add("comparison_difference_r", (name, version, bound), value)

    def alerts(self, rows: Rows, oldest: datetime | None) -> None:
        raised = {(severity.value, kind): 0 for severity in Severity for kind in HEADLINES}
        open_now = dict.fromkeys([severity.value for severity in Severity], 0)
        for kind, severity, total, acknowledged in rows:
            known = kind if kind in HEADLINES else "other"  # of an earlier release
            raised[severity, known] = raised.get((severity, known), 0) + total
            open_now[severity] += total - acknowledged
        self.add("alerts_unacknowledged_seconds", (), 0 if oldest is None else self._age(oldest))
        self.add_all("alerts_raised_total", raised.items())
        self.add_all("alerts_unacknowledged", [((severity,), total) for severity, total in open_now.items()])

    def outbox(self, rows: Rows) -> None:
        for channel, due, oldest in rows:
            self.add("alert_outbox_depth", (channel,), due)
            self.add("alert_outbox_oldest_seconds", (channel,), self._age(oldest) if due else 0)

    def tokens(self, rows: Rows, wanted: Strategies) -> None:
        """Add the tokens of the *wanted* strategies. A token for others, or for all, is not theirs to see."""
        self.left_out["cap"] |= len(rows) > MOST_TOKENS
        for name, token_id, strategies, expires_at in rows[:MOST_TOKENS]:
            with self._readable():
                limited_to = set(json.loads(strategies))
                if wanted is None or (limited_to and limited_to <= set(wanted)):
                    self.add("service_token_expires_timestamp_seconds", (name, token_id), expires_at.timestamp())

    def scrape(self, took_s: float) -> None:
        self.add_all("exporter_left_out", [((reason,), total) for reason, total in self.left_out.items()])
        self.add("exporter_collect_seconds", (), took_s)

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (InvalidPlan, InvalidTimeframe, ValueError, TypeError):
            self.left_out["unreadable"] += 1

    def _age(self, moment: datetime) -> float:
        return self._since(moment.timestamp())

    def _since(self, moment_s: float) -> float:
        return max(0.0, self.now.timestamp() - moment_s)  # a replay that restarts is earlier than its own rows


@dataclass(slots=True)
class _Version:
    """An exported version. Times in seconds since 1970."""

    status: str
    symbols: tuple[str, ...]
    candle_s: float
    created_s: float
    newest_s: dict[str, float] = field(default_factory=dict)

    def decided_until(self, symbol: str) -> float:
        """Return the close of the newest decided candle, or the time of registration before the first."""
        newest_s = self.newest_s.get(symbol)
        return self.created_s if newest_s is None else newest_s + self.candle_s


def _by_action(rows: Rows) -> Iterator[tuple[tuple[str, ...], float]]:
    for name, version, symbol, buy, sell, hold, error, _ in rows:
        yield (version, name, symbol, "buy"), buy
        yield (version, name, symbol, "sell"), sell
        yield (version, name, symbol, "hold"), hold
        yield (version, name, symbol, ERROR), error


@lru_cache(maxsize=256)
def _read_plan(plan: str) -> tuple[int, tuple[str, ...]]:
    """Return the number of stages and the gates' names. Cached: a plan is frozen, and parsing it takes 1 ms."""
    found = read_plan(json.loads(plan))
    return len(found.stages), (Freshness().name, *(gate.name for gate in found.gates))


def _encodable(text: str) -> str:
    """Replace lone surrogates, which UTF-8 cannot encode."""
    return text if text.isascii() else text.encode(errors="replace").decode()
