"""The database's months from Prefect, on both databases."""

import pytest
from sqlalchemy import Engine

from flows.maintain import maintain_database
from tests.builders import DAY, MONDAY
from tests.flows.conftest import Clock


def test_a_night_ends_with_what_was_made_in_a_line(engine: Engine, at: Clock) -> None:
    at(MONDAY + 3_650 * DAY)

    state = maintain_database.fn()

    assert state.is_completed()
    if engine.dialect.name == "sqlite":
        assert state.message == "SQLite has no monthly partitions: no work to do"
    else:
        assert str(state.message).startswith("2036_02: made; 2036_03: made; 2036_04: made; all months are kept: ")


def test_less_than_a_start_looks_back_on_cannot_be_kept(
    engine: Engine, at: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROLLOUT_KEEP_DAYS", "30")

    state = maintain_database.fn()

    assert state.is_failed()
    assert "ROLLOUT_KEEP_DAYS = '30' is not valid; allowed: Input should be greater than or equal to 180" in str(
        state.message
    )
