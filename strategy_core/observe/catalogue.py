"""The names that are exported, and what each means; dashboards, rules and docs/metrics.md are held against them.

Ages are by the platform's own clock, which a replay moves. A name is never given another meaning: it gets a new one.
"""

from strategy_core.observe.exposition import Family

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
