"""A source that is not there: it answers every question with why, so that who can do without candles goes on."""

from datetime import datetime
from typing import NoReturn

import pandas as pd

from strategy_core.domain.errors import RolloutError


class AbsentSource:
    """Stands for a feed that could not be opened. To a rollout it is blindness, which ends in a rollback, not a pass.

    Args:
        why: raised at every question.
    """

    def __init__(self, name: str, timeframe: str, why: RolloutError) -> None:
        self.name = name
        self.timeframe = timeframe
        self._why = why

    def symbols(self) -> tuple[str, ...]:
        self._refuse()

    def candles(
        self, symbol: str, *, closed_by: datetime, since: datetime | None = None, bars: int | None = None
    ) -> pd.DataFrame:
        self._refuse()

    def expected_at(self, symbol: str, now: datetime) -> datetime | None:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise self._why
