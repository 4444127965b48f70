"""Slots: the paired results of two versions on the candles where at least one of them signalled."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from strategy_core.domain.arrays import BoolArray, FloatArray, IntArray


@dataclass(frozen=True, slots=True)
class Slots:
    """Closed slots, in the order in which they closed. A slot is the unit of evidence.

    A slot is a (symbol, candle) on which both versions decided and at least one signalled. It closes when the trades of
    both have closed. All arrays have shape (slots,).

    Attributes:
        day: UTC day on which it closed, as days since 1970.
        canary_r, active_r: R-multiple of the version's trade. 0 where it held.
        canary_side, active_side: +1 buy, -1 sell, 0 hold.
        symbol: position of its symbol among the symbols of the pair, in alphabetical order.
    """

    day: IntArray
    canary_r: FloatArray
    active_r: FloatArray
    canary_side: IntArray
    active_side: IntArray
    symbol: IntArray

    def __len__(self) -> int:
        return len(self.day)

    def take(self, chosen: IntArray | BoolArray | slice) -> "Slots":
        """Return the *chosen* slots."""
        return Slots(*(getattr(self, each.name)[chosen] for each in fields(self)))

    @property
    def pnl_difference(self) -> FloatArray:
        """d = canary R - active R, by slot."""
        return self.canary_r - self.active_r

    @property
    def win_difference(self) -> FloatArray:
        """w = (sgn canary R - sgn active R) / 2, by slot: +1 when the canary won what the active lost."""
        return (np.sign(self.canary_r) - np.sign(self.active_r)) / 2

    @property
    def unlike(self) -> BoolArray:
        """Whether the two versions decided differently, by slot."""
        unlike: BoolArray = self.canary_side != self.active_side
        return unlike

    @property
    def unequal(self) -> BoolArray:
        """Whether the two versions decided differently or had another R, by slot."""
        unequal: BoolArray = self.unlike | (self.canary_r != self.active_r)
        return unequal

    @property
    def rate_difference(self) -> FloatArray:
        """y, by slot: +1 where the canary alone signalled, -1 where the active version alone did, else 0."""
        alone: FloatArray = (self.canary_side != 0).astype(np.float64) - (self.active_side != 0)
        return alone


def slots(rows: Sequence[tuple[Any, ...]]) -> Slots:
    """Return Slots from rows in booking order: (day, canary_r, active_r, canary_side, active_side[, symbol])."""
    columns: list[tuple[Any, ...]] = list(zip(*rows, strict=True)) if rows else [()] * 5
    day, canary_r, active_r, canary_side, active_side, *symbol = columns
    return Slots(
        np.asarray(day, np.int64),
        np.asarray(canary_r, np.float64),
        np.asarray(active_r, np.float64),
        np.asarray(canary_side, np.int64),
        np.asarray(active_side, np.int64),
        np.asarray(symbol[0], np.int64) if symbol else np.zeros(len(rows), np.int64),
    )
