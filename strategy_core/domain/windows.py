"""Candles as bytes, made once: what a worker is sent is what a window's hash is of; never which candles are due."""

from datetime import datetime
from hashlib import sha256

import numpy as np
import pandas as pd

from strategy_core.domain.arrays import IntArray
from strategy_core.domain.candles import COLUMNS


class Windows:
    """The candles of one symbol, for whoever decides on some that end at a position. Safe to use from several threads.

    The bytes are those that are hashed: names in the order of COLUMNS, then row by row the open time as int64
    nanoseconds since 1970 and the values as float64, little-endian; every NaN is one NaN and -0.0 is 0.0.

    Attributes:
        columns: what there is of COLUMNS, in their order.
        table: open time and the bits of each value, shape (candles, 1 + columns).
    """

    def __init__(self, candles: pd.DataFrame) -> None:
        self.columns = [name for name in COLUMNS if name in candles.columns]
        ordered = candles if candles.columns.tolist() == self.columns else candles[self.columns]
        values = ordered.to_numpy(np.float64) + 0.0  # a copy, in which -0.0 becomes 0.0
        values[np.isnan(values)] = np.nan
        self.table: IntArray = np.empty((len(candles), 1 + len(self.columns)), dtype="<i8")
        self.table[:, 0] = opened_ns(candles)
        self.table[:, 1:] = np.ascontiguousarray(values).view(np.int64)
        self._names = sha256(" ".join(self.columns).encode())
        self._hashes: dict[tuple[int, int], str] = {}

    def __len__(self) -> int:
        return len(self.table)

    def opened_at(self, position: int) -> datetime:
        return pd.Timestamp(int(self.table[position, 0]), tz="UTC").to_pydatetime()

    def hash_of(self, position: int, bars: int) -> str:
        """Return the sha256, in hex, of the *bars* candles (or as many as there are) that end at *position*."""
        known = self._hashes.get((position, bars))
        if known is None:
            digest = self._names.copy()
            digest.update(self.rows(max(0, position + 1 - bars), position + 1))
            known = self._hashes[position, bars] = digest.hexdigest()
        return known

    def rows(self, start: int, end: int) -> memoryview:
        """Return the bytes of the candles from *start* to before *end*; nothing is copied."""
        return self.table[start:end].reshape(-1).view(np.uint8).data


def opened_ns(candles: pd.DataFrame) -> IntArray:
    """Return the open times in nanoseconds since 1970 UTC, whatever the index's own unit."""
    index = candles.index if isinstance(candles.index, pd.DatetimeIndex) else pd.DatetimeIndex(candles.index)
    times: IntArray = index.as_unit("ns").asi8
    return times


def window_hash(candles: pd.DataFrame) -> str:
    """Return the hash of all of *candles*: equal on every machine and in every time unit."""
    return Windows(candles).hash_of(len(candles) - 1, max(len(candles), 1))
