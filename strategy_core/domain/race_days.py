"""The days of a race, from what its versions decided on each candle."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from strategy_core.domain.race import Day


@dataclass(frozen=True, slots=True)
class Decided:
    """A version's decision on one candle of a symbol, without an error.

    Attributes:
        r: R of its trade, 0 for a hold, or None if its trade has not closed.
    """

    symbol: str
    candle: datetime
    version: str
    signalled: bool
    r: float | None


def day_of(decisions: Iterable[Decided], versions: Sequence[str]) -> Day:
    """Return the day of these decisions, with a column for each of *versions*.

    A decision whose trade has not closed counts as none: a pair has no result on that candle.
    """
    return candles_of(decisions, versions)[1]


def candles_of(decisions: Iterable[Decided], versions: Sequence[str]) -> tuple[list[datetime], Day]:
    """Return the candle of each slot, in their order, and the results as in `day_of`, of any number of days."""
    column = {version: place for place, version in enumerate(versions)}
    counted = [each for each in decisions if each.r is not None and each.version in column]
    keys = sorted({(each.candle, each.symbol) for each in counted})
    row = {key: place for place, key in enumerate(keys)}
    shape = (len(row), len(versions))
    r, decided, signalled = np.zeros(shape), np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
    for each in counted:
        place = row[each.candle, each.symbol], column[each.version]
        r[place], decided[place], signalled[place] = each.r or 0.0, True, each.signalled
    return [candle for candle, _ in keys], Day(r, decided, signalled)
