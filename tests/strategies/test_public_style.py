"""Strategies of freqtrade and backtesting.py pass the checks of a registration as they are, and biased ones do not."""

import re
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pytest

from strategy_core.isolation.client import IsolatedStrategy
from strategy_core.isolation.vetting import Report, vet
from strategy_core.market.synthetic import SyntheticSource

pytestmark = pytest.mark.full  # seconds each: hundreds of windows of 400 candles

HERE = Path(__file__).parent
STATED = "not followed: stoploss -0.1, minimal_roi {'0': 0.04, '60': 0.01}; the strategy's scoring rule ends each trade"
LOOKS_AHEAD = r"it looks ahead: enter_\w+ on 2025-\d\d-\d\d \d\d:00 is (not )?set once the next candle is known"


@pytest.fixture(scope="module")
def candles() -> dict[str, pd.DataFrame]:
    market = SyntheticSource(["GOLD"])
    return {"GOLD": market.candles("GOLD", closed_by=datetime(2026, 1, 5, tzinfo=UTC), bars=1_200)}


@pytest.fixture(autouse=True)
def freqtrade(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `freqtrade` be its stand-in."""
    monkeypatch.syspath_prepend(HERE)
    monkeypatch.syspath_prepend(HERE / "stand_ins")


def vetted(name: str, candles: dict[str, pd.DataFrame]) -> Report:
    with IsolatedStrategy(f"public_style:{name}", {}) as strategy:
        return vet(strategy, candles, timeframe="1h").report


@pytest.mark.parametrize("name", ["RsiBands", "EmaCross", "Macd", "FourHours", "SmaCross", "Sma4Cross"])
def test_a_fit_one_passes_unchanged(name: str, candles: dict[str, pd.DataFrame]) -> None:
    report = vetted(name, candles)

    warnings = [STATED] if name in ("RsiBands", "EmaCross", "Macd", "FourHours") else []
    assert report.failures == []
    assert report.warnings == warnings
    assert report.signals > 0


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("NextClose", rf"{LOOKS_AHEAD}, as next_return changes"),
        ("WholeFrame", rf"{LOOKS_AHEAD}, as next_return changes"),
        ("OpenDay", rf"{LOOKS_AHEAD}, as trend changes"),
    ],
)
def test_a_biased_one_is_refused_with_the_candle_and_the_column(
    name: str, cause: str, candles: dict[str, pd.DataFrame]
) -> None:
    (refusal,) = vetted(name, candles).failures

    assert re.search(cause, refusal), refusal
    assert "\n" not in refusal
