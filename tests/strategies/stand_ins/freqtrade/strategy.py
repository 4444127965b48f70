"""The base class and the parameters of freqtrade's strategies, with the attributes that theirs have."""

from typing import Any

import pandas as pd


class BaseParameter:
    def __init__(self, *, default: Any, space: str | None = None, optimize: bool = True, load: bool = True) -> None:
        self.value = default


class IntParameter(BaseParameter):
    def __init__(self, low: int, high: int, *, default: int, **given: Any) -> None:
        super().__init__(default=default, **given)


class IStrategy:
    INTERFACE_VERSION = 3
    timeframe: str
    stoploss: float
    minimal_roi: dict[str, float] = {}
    trailing_stop = False
    can_short = False
    startup_candle_count = 0

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def populate_indicators(self, dataframe: pd.DataFrame, metadata: dict[str, Any]) -> pd.DataFrame:
        return dataframe

    def populate_entry_trend(self, dataframe: pd.DataFrame, metadata: dict[str, Any]) -> pd.DataFrame:
        return dataframe

    def populate_exit_trend(self, dataframe: pd.DataFrame, metadata: dict[str, Any]) -> pd.DataFrame:
        return dataframe

    def informative_pairs(self) -> list[tuple[str, str]]:
        return []

    def custom_stoploss(self, *_: Any, **__: Any) -> float | None:
        return self.stoploss
