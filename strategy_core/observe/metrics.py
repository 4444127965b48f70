"""Numbers for a Prometheus, read from the database when it asks: flow runs are too short for any scraper to reach."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from operator import itemgetter
from time import perf_counter
from typing import Any, Literal

from sqlalchemy import Engine

from strategy_core.domain.alerts import HEADLINES, Severity
from strategy_core.domain.candles import timeframe_delta
from strategy_core.domain.errors import InvalidPlan, InvalidTimeframe
from strategy_core.domain.gates.base import Freshness, Verdict
from strategy_core.domain.lifecycle import Status, utc
from strategy_core.domain.plan import read_plan
from strategy_core.domain.ramp import ALERT, BLIND, OWNER, UNANSWERED
from strategy_core.domain.routing import as_percent
from strategy_core.store import metrics
from strategy_core.store.engine import snapshot
from strategy_core.store.metrics import Rows, Strategies
from strategy_core.store.tables import ERROR, Counted

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

_ESCAPED = {"\\": r"\\", "\n": r"\n", '"': r"\""}
_TO_ESCAPE = re.compile(r'[\\\n"]')
_SURROGATE = re.compile("[\ud800-\udfff]")
_WANTS_OPENMETRICS = re.compile(r"application/openmetrics-text\b(?![^,]*;\s*q=0(\.0*)?\s*(,|$))")


@dataclass(frozen=True, slots=True)
class Family:
    """What is exported under one name.

    Attributes:
        name: a counter's ends in `_total`.
        labels: in the order in which samples give their values.
        told: one line for whoever reads the answer.
    """

    name: str
    kind: Literal["counter", "gauge"]
    labels: tuple[str, ...]
    told: str


class Exposition:
    """Samples by family; every family stands in the answer, with samples or without."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._families = list(families)
        self._lines: dict[str, list[str]] = {family.name: [] for family in self._families}
        self._forms = {family.name: _form(family) for family in self._families}
        self._escaped, self._number = _Escaped(), _Number()

    def add(self, name: str, labels: tuple[str, ...], value: float) -> None:
        self.add_all(name, [(labels, value)])

    def add_all(self, name: str, samples: Iterable[tuple[tuple[str, ...], float]]) -> None:
        """Write down many at once: lines, since as many tuples would have Python look for garbage among all it has."""
        line, ordered = self._forms[name]
        safe, number = self._escaped.__getitem__, self._number
        self._lines[name] += [line % (*map(safe, ordered(labels)), number[value]) for labels, value in samples]

    def written(self, media_type: str) -> bytes:
        """Return all of it in the format of *media_type*, TEXT or OPENMETRICS."""
        openmetrics = media_type == OPENMETRICS
        parts = [part for family in self._families for part in (_head(family, openmetrics), *self._lines[family.name])]
        return "".join([*parts, "# EOF\n" if openmetrics else ""]).encode()


def wanted(accept: str) -> str:
    """Return the media type for an `Accept` header; text, unless OpenMetrics is named."""
    return OPENMETRICS if _WANTS_OPENMETRICS.search(accept) else TEXT


class _Escaped(dict[str, str]):
    """Label values as both formats have them, each made once."""

    def __missing__(self, text: str) -> str:
        safe = self[text] = _escaped(text)
        return safe


class _Number(dict[float, str]):
    """Numbers as both formats have them, each made once; what is no number has a capital."""

    def __missing__(self, value: float) -> str:
        text = repr(float(value))
        self[value] = text = _SPECIAL.get(text, text)
        return text


def _form(family: Family) -> tuple[str, Callable[[tuple[str, ...]], tuple[str, ...]]]:
    """Return the line of a sample, to be filled, and what puts its labels into the order of their names."""
    order = sorted(range(len(family.labels)), key=family.labels.__getitem__)
    pairs = ",".join(f'{family.labels[at]}="%s"' for at in order)
    line = f"{family.name}{{{pairs}}} %s\n" if pairs else f"{family.name} %s\n"
    return line, tuple if len(order) < 2 else itemgetter(*order)


def _head(family: Family, openmetrics: bool) -> str:
    about = family.name.removesuffix("_total") if openmetrics and family.kind == "counter" else family.name
    told = _escaped(family.told) if openmetrics else _escaped(family.told).replace(r"\"", '"')
    return f"# HELP {about} {told}\n# TYPE {about} {family.kind}\n"


def _escaped(text: str) -> str:
    return _TO_ESCAPE.sub(lambda found: _ESCAPED[found[0]], _SURROGATE.sub("\ufffd", text))


_SPECIAL: Mapping[str, str] = {"inf": "+Inf", "-inf": "-Inf", "nan": "NaN"}


_OF = ("strategy", "version")


def _gauge(name: str, labels: tuple[str, ...], told: str) -> Family:
    return Family(name, "gauge", labels, told)


def _counter(name: str, labels: tuple[str, ...], told: str) -> Family:
    return Family(name, "counter", labels, told)


FAMILIES = (
    _counter(
        "shadow_decisions_total",
        ("version", "strategy", "symbol", "decision"),
        "Candles that a version was asked about, by what it said: buy, sell, hold, or error.",
    ),
    _counter("shadow_errors_total", (*_OF, "kind"), "Candles on which a version gave no decision, by what it did."),
    _counter("isolation_breaches_total", _OF, "Candles on which a version tried to touch the outside."),
    _gauge("shadow_lag_seconds", _OF, "Time since a version was asked about a candle, of the symbol that lags most."),
    _gauge("feed_newest_candle_timestamp_seconds", ("symbol",), "Open time of the newest candle in the log."),
    _gauge("feed_lag_seconds", ("symbol",), "Time since the newest candle in the log closed."),
    _gauge("canary_traffic_percent", _OF, "Share of users that get the canary; 0 once it was withdrawn."),
    _gauge("canary_users", _OF, "Users of the directory that get the canary."),
    _gauge("directory_users", ("strategy",), "Users in the directory."),
    _counter("version_activations_total", _OF, "How often a version became the active one."),
    _gauge("strategy_generation", ("strategy",), "Audited changes of the strategy."),
    _gauge("rollout_open", (*_OF, "state", "stage"), "Rollouts that have not ended: 1 each."),
    _gauge("rollout_stage", _OF, "The stage at which the rollout is, from 1."),
    _gauge("rollout_stages", _OF, "How many stages the rollout's plan has."),
    _gauge("rollout_dwell_seconds", _OF, "Time that the rollout has been at its stage."),
    _gauge("rollout_blind_seconds", _OF, "Time that the rollout has been without evidence; 0 when it sees."),
    _gauge("rollout_last_tick_timestamp_seconds", _OF, "When the last tick looked at the rollout."),
    _gauge("rollout_tick_age_seconds", _OF, "Time since a tick looked at the rollout, or since it began."),
    _gauge("gate_verdict", (*_OF, "gate", "verdict"), "What a gate of an open rollout says now: 1."),
    _gauge("gate_value", (*_OF, "gate"), "What a gate of an open rollout measures."),
    _gauge("gate_limit", (*_OF, "gate"), "The value at which the gate's verdict would change."),
    _counter("gate_verdicts_total", ("strategy", "gate", "verdict"), "How often a gate said something new."),
    _counter(
        "rollbacks_total",
        ("strategy", "cause"),
        "Rollbacks, by the gate that failed; or owner, alert, blind, unanswered.",
    ),
    _counter("alerts_raised_total", ("severity", "kind"), "Alerts that were raised."),
    _gauge("alerts_unacknowledged", ("severity",), "Alerts that no owner has acknowledged."),
    _gauge("alert_outbox_depth", ("channel",), "Alerts that are due on a channel and have not been sent."),
    _gauge("alert_outbox_oldest_seconds", ("channel",), "How long the oldest of them has been due; 0 without any."),
    _gauge(
        "comparison_divergence_percent", _OF, "Share of actionable candles on which a shadow and the active differ."
    ),
    _gauge("comparison_difference_r", (*_OF, "bound"), "R per slot of a shadow less the active's: low, mean, high."),
    _gauge("fidelity_concordance", _OF, "How well the shadow tells live results: 1 when equal, 0 when unrelated."),
    _gauge(
        "exporter_left_out", ("reason",), "Whether series beyond the cap were left out; how many rows cannot be read."
    ),
    _gauge("exporter_collect_seconds", (), "Time that reading these numbers took."),
)
NAMES = frozenset(family.name for family in FAMILIES)


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
        told.strategies(metrics.read_strategies(session, strategies))
        told.versions(metrics.read_versions(session, strategies, retired_since=retired_since))
        told.decisions(metrics.read_decisions(session, strategies, retired_since=retired_since, at_most=MOST_PAIRS))
        told.rollouts(metrics.read_rollouts(session, strategies), metrics.read_gates(session, strategies))
        told.tallies(metrics.read_tallies(session, strategies, at_most=MOST_TALLIES))
        told.comparisons(metrics.read_comparisons(session, strategies))
        told.alerts(metrics.read_alerts(session, strategies))
        told.outbox(metrics.read_outbox(session, strategies, now=now))
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
