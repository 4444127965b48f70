"""Prometheus metrics, read from the database at each scrape: flow runs end before a scraper could reach them."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
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
from strategy_core.domain.capital import Reach
from strategy_core.domain.errors import InvalidPlan, InvalidTimeframe
from strategy_core.domain.forecast import RolloutSubject
from strategy_core.domain.gates.base import Finding, Freshness, Verdict
from strategy_core.domain.gates.on_slots import WATCH
from strategy_core.domain.lifecycle import Status, utc
from strategy_core.domain.ramp import ALERT, BLIND, OWNER, UNANSWERED
from strategy_core.domain.release_times import ALL_STRATEGIES, Freeze
from strategy_core.domain.rollout_verdict import rollout_verdict
from strategy_core.domain.routing import as_percent
from strategy_core.store import metrics
from strategy_core.store.canary_reach import read_canary_reach
from strategy_core.store.engine import snapshot
from strategy_core.store.metrics import Rows, Strategies, read_subject, unpack_finding
from strategy_core.store.release_times import freezes_of
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
    _gauge(
        "canary_asked_percent",
        _OF,
        "Percent of users that the canary's stage asks for. More than canary_traffic_percent where the cap on capital "
        "leaves users out.",
    ),
    _gauge("canary_users", _OF, "Users in the directory that are on the canary."),
    _gauge(
        "canary_capital_share",
        _OF,
        "Part of all capital that is on the canary, 0 to 1. Not exported without a directory that knows capital.",
    ),
    _gauge("directory_users", ("strategy",), "Users in the directory."),
    _counter("version_activations_total", _OF, "Activations of the version."),
    _gauge("strategy_generation", ("strategy",), "Audited changes of the strategy."),
    _gauge(
        "releases_frozen",
        ("strategy",),
        "1 while releases of the strategy are frozen, else 0. Rollbacks go on in a freeze.",
    ),
    _gauge("open_positions", _OF, "Open positions that the version manages. Empty version: an owner flattens them."),
    _gauge("draining_positions", _OF, "Of these, positions of a version that serves no users."),
    _gauge("unclosed_exits", ("strategy",), "Positions that are open though the platform was asked to leave them."),
    _gauge("rollout_open", (*_OF, "state", "stage"), "1 for each open rollout."),
    _gauge("rollout_stage", _OF, "Current stage of the rollout, counted from 1."),
    _gauge("rollout_stages", _OF, "Stages in the rollout's plan."),
    _gauge("rollout_slots", _OF, "Slots that the rollout has counted."),
    _gauge(
        "rollout_slots_needed",
        _OF,
        "Slots that the current stage needs, if the version is as good as the active one. Not exported without a gate "
        "that counts them, and during the bake.",
    ),
    _gauge(
        "rollout_days_left",
        (*_OF, "until"),
        "Expected days until the next stage, and until the end of the bake, if the version is as good as the active "
        "one. An approval is taken to come at once. Not exported where they cannot be expected, as while a gate or an "
        "owner holds the rollout.",
    ),
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
            strategies, reached = (
                metrics.read_strategies(session, wanted),
                read_canary_reach(session, wanted, self._now),
            )
            samples.strategies(strategies, reached)
            samples.freezes([row[0] for row in strategies], freezes_of(session, None, self._now))
            samples.versions(metrics.read_versions(session, wanted, retired_since=retired_since))
            samples.decisions(metrics.read_decisions(session, wanted, retired_since=retired_since, at_most=MOST_PAIRS))
            samples.positions(metrics.read_positions(session, wanted))
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

    def strategies(self, rows: Rows, reached: Mapping[str, Reach]) -> None:
        add = self.add
        for name, generation, version, users in rows:
            add("strategy_generation", (name,), generation)
            self._causes |= dict.fromkeys([(name, cause) for cause in (OWNER, ALERT, WATCH, BLIND, UNANSWERED)], 0)
            if users is not None:
                add("directory_users", (name,), users)
            if version is not None:
                reach = reached[name]
                add("canary_traffic_percent", (name, version), as_percent(reach.percent_bp))
                add("canary_asked_percent", (name, version), as_percent(reach.asked_bp))
                if reach.users is not None:
                    add("canary_users", (name, version), reach.users)
                if reach.capital_share is not None:
                    add("canary_capital_share", (name, version), reach.capital_share)

    def freezes(self, names: Sequence[str], freezes: Sequence[Freeze]) -> None:
        frozen = {each.strategy_name for each in freezes if each.covers(self.now)}
        for name in names:
            self.add("releases_frozen", (name,), int(name in frozen or ALL_STRATEGIES in frozen))

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

    def positions(self, rows: Rows) -> None:
        unclosed: dict[str, int] = {}
        for strategy, manager, count, announced in rows:
            key = (strategy, manager or "")
            self.add("open_positions", key, count)
            known = self._versions.get(key)
            if known is not None and known.status == Status.SHADOW:
                self.add("draining_positions", key, count)
            unclosed[strategy] = unclosed.get(strategy, 0) + announced
        self.add_all("unclosed_exits", [((strategy,), count) for strategy, count in unclosed.items()])

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
                of = read_subject(row)
                add("rollout_stages", key, len(of.plan.stages))
                names = (Freshness().name, *(gate.name for gate in of.plan.gates))
                findings = [unpack_finding(gate, text) for gate, text in gates.get(row.id, []) if gate in names]
                self._forecast(key, of, findings)
                self._gates(key, names, findings, partial(since, row.id))

    def _forecast(self, key: tuple[str, str], of: RolloutSubject, findings: Sequence[Finding]) -> None:
        found = rollout_verdict(of, findings, self.now)
        self.add("rollout_slots", key, found.slots)
        if found.slots_needed is not None:
            self.add("rollout_slots_needed", key, found.slots_needed)
        for until, days in (("stage", found.days_left), ("end", found.end_days)):
            if days is not None:
                self.add("rollout_days_left", (*key, until), days)

    def _gates(
        self,
        key: tuple[str, str],
        names: Sequence[str],
        newest: Iterable[Finding],
        since: Callable[[str, str], datetime | None],
    ) -> None:
        add = self.add
        for gate in names:
            self._causes.setdefault((key[0], gate), 0)
            self._verdicts |= dict.fromkeys([(key[0], gate, verdict) for verdict in _VERDICTS], 0)
        for each in newest:
            gate, verdict = each.gate, each.verdict.value
            add("gate_verdict", (*key, gate, verdict), 1)
            if verdict in _DOUBTFUL and (began := since(gate, verdict)) is not None:
                add("gate_verdict_seconds", (*key, gate, verdict), self._age(began))
            if each.value is not None:
                add("gate_value", (*key, gate), each.value)
            if each.limit is not None:
                add("gate_limit", (*key, gate), each.limit)

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


def _encodable(text: str) -> str:
    """Replace lone surrogates, which UTF-8 cannot encode."""
    return text if text.isascii() else text.encode(errors="replace").decode()
