import pytest

from strategy_core.market.synthetic import SyntheticSource
from tests.builders import GOLD, MONDAY


@pytest.fixture(scope="session")
def market() -> SyntheticSource:
    """An hourly market around the tests' dates; it tells which candles are due."""
    return SyntheticSource((GOLD, "SILVER"), start=MONDAY.replace(month=1, day=1), days=300)
