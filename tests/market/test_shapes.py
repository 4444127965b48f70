"""A file in any of the known shapes gives the candles that were written, or a refusal that names an option."""

from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategy_core.domain.errors import InvalidCandles
from strategy_core.market.open import open_source
from tests.market.shapes import OHLCV, SHAPES, Shape, candles_of

END = datetime(2100, 1, 1, tzinfo=UTC)


def read(shape: Shape, candles: pd.DataFrame, folder: Path, timeframe: str = "1h") -> pd.DataFrame:
    file = folder / f"GOLD{shape.suffix}"
    shape.write(candles, file)
    source = open_source(f"{file}?{shape.options}&symbol=X" if shape.options else str(file), timeframe=timeframe)
    return source.candles(source.symbols()[0], closed_by=END)


@pytest.mark.parametrize("name", SHAPES)
def test_a_file_in_each_known_shape_is_read_back(name: str, tmp_path: Path) -> None:
    candles = candles_of(60)

    found = read(SHAPES[name], candles, tmp_path)

    expected = candles if SHAPES[name].volume else candles.assign(volume=np.nan)
    pd.testing.assert_frame_equal(found, expected, check_exact=True, check_freq=False)


FREQUENCIES = {"1m": "min", "15m": "15min", "1h": "h", "4h": "4h", "1d": "D"}


@st.composite
def frames(draw: st.DrawFn, timeframe: str) -> pd.DataFrame:
    """Candles with any prices of up to six decimals, from any midnight on, with gaps."""
    count = draw(st.integers(3, 30))
    start = pd.Timestamp(draw(st.datetimes(datetime(1990, 1, 1), datetime(2040, 1, 1)))).floor("D").tz_localize("UTC")  # noqa: DTZ001
    unit = 10.0 ** -draw(st.integers(0, 6))
    prices = st.lists(st.integers(1, 9_999_999), min_size=4, max_size=4).map(sorted)
    rows = [
        (low, *draw(st.permutations(middle)), high)
        for low, *middle, high in draw(st.lists(prices, min_size=count, max_size=count))
    ]
    volume = draw(st.lists(st.integers(0, 99_999), min_size=count, max_size=count))
    digits = round(-np.log10(unit))
    low, opened, close, high = (np.array([round(row[at] * unit, digits) for row in rows]) for at in range(4))
    index = pd.date_range(start, periods=count, freq=FREQUENCIES[timeframe], unit="ns", name="timestamp")
    values = dict(zip(OHLCV, (opened, high, low, close, np.array(volume, dtype=float)), strict=True))
    gap = draw(st.integers(2, count))  # the first two stay, so that the timeframe shows
    return pd.DataFrame(values, index=index).drop(index[gap : gap + draw(st.integers(0, 3))])


@settings(max_examples=60)
@given(st.data(), st.sampled_from(sorted(FREQUENCIES)), st.sampled_from(sorted(SHAPES)))
def test_any_frame_in_any_shape_is_read_back_or_refused_with_an_option(
    data: st.DataObject, timeframe: str, name: str
) -> None:
    candles, shape = data.draw(frames(timeframe)), SHAPES[name]
    expected = candles if shape.volume else candles.assign(volume=np.nan)
    refusal = ""
    with TemporaryDirectory() as folder:
        try:
            found = read(shape, candles, Path(folder), timeframe)
        except InvalidCandles as error:
            refusal = str(error)

    if refusal:
        assert any(option in refusal for option in ("dates=", "decimal="))
    else:
        pd.testing.assert_frame_equal(found, expected, check_exact=True, check_freq=False)
