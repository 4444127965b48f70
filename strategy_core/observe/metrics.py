"""Numbers for a Prometheus, read from the database when it asks: flow runs are too short for any scraper to reach."""

from collections.abc import Collection, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import Engine

from strategy_core.store import numbers
from strategy_core.store.engine import reading

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def exposition(engine: Engine, strategies: Collection[str] | None = None) -> bytes:
    """Return all metrics of these strategies, or of all, in the text format of Prometheus."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(RolloutCollector(engine, strategies))
    return generate_latest(registry)


class RolloutCollector(Collector):
    """Reads the database at each collection, in one transaction."""

    def __init__(self, engine: Engine, strategies: Collection[str] | None = None) -> None:
        self._engine = engine
        self._strategies = strategies

    def describe(self) -> Iterator[Metric]:
        return iter(())  # else a registry would read the database to learn the names

    def collect(self) -> Iterator[Metric]:
        with reading(self._engine) as session:
            traffic = numbers.canary_traffic(session, self._strategies)
            activations = numbers.activations(session, self._strategies)
            generations = numbers.generations(session, self._strategies)
            rollouts = numbers.open_rollouts(session, self._strategies)
        yield _gauge("canary_traffic_percent", "Share of users that get the canary.", ["strategy", "version"], traffic)
        counter = CounterMetricFamily(
            "version_activations", "How often a version became the active one.", labels=["strategy", "version"]
        )
        for labels, value in activations:
            counter.add_metric(labels, value)
        yield counter
        yield _gauge("strategy_generation", "Audited changes of the strategy.", ["strategy"], generations)
        labels = ["strategy", "version", "state", "stage"]
        yield _gauge("rollout_open", "Rollouts that have not ended: 1 each.", labels, rollouts)


def _gauge(name: str, told: str, labels: list[str], values: numbers.Numbers) -> Metric:
    gauge = GaugeMetricFamily(name, told, labels=labels)
    for names, value in values:
        gauge.add_metric(names, value)
    return gauge
