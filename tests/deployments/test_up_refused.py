"""What `up` refuses before it starts anything."""

from pathlib import Path

import pytest

from deployments.up import up
from strategy_core.domain.errors import InvalidCandles, InvalidSetting


def test_what_is_not_usable_is_refused_before_anything_is_started(tmp_path: Path) -> None:
    printed: list[str] = []
    with pytest.raises(InvalidCandles, match=r"/nowhere\.csv"):
        up(
            database_url=None,
            feed="/nowhere.csv",
            symbol=None,
            speed=60,
            port=None,
            state=tmp_path,
            echo=printed.append,
        )
    with pytest.raises(InvalidSetting, match="speed"):
        up(database_url=None, feed=None, symbol=None, speed=0, port=None, state=tmp_path, echo=printed.append)

    assert not (tmp_path / "logs").exists()
