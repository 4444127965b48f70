"""What tests of metrics share: a scrape as its parser reads it."""

from collections.abc import Collection
from datetime import datetime

from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Engine

from strategy_core.observe.metrics import exposition


def samples(text: str) -> dict[str, float]:
    """Return every sample of a page by its name and labels, which are in order."""
    return {
        " ".join([one.name, *(f"{label}={value}" for label, value in sorted(one.labels.items()))]): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
    }


def scrape(engine: Engine, *, now: datetime, strategies: Collection[str] | None = None) -> dict[str, float]:
    body, _ = exposition(engine, strategies, now=now)
    return samples(body.decode())
