"""The form that retrains a model: a version in shadow and a page about its training, or one line of refusal."""

from base64 import b64decode
from datetime import date
from pathlib import Path
from re import search
from typing import Any

import pytest
from sqlalchemy import Engine

from flows.retrain import retrain
from strategy_core.domain.lifecycle import Status
from strategy_core.store import versions
from strategy_core.store.engine import reading
from tests.builders import GOLD, put_version
from tests.endpoint import Endpoint
from tests.flows.conftest import Clock
from tests.flows.test_artifacts import in_a_run, made

# SQLite only: the service is tested on both databases
pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def models(engine: Engine, at: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of models, with version 1 of ppo_gold active."""
    monkeypatch.setenv("ROLLOUT_MODELS", str(tmp_path / "models"))
    known: dict[str, Any] = {"strategy_name": "ppo_gold", "entry_point": "ppo_gold", "symbols": [GOLD], "config": {}}
    put_version(engine, "1", Status.ACTIVE, **known)
    return tmp_path / "models"


@pytest.mark.full
def test_a_training_ends_in_shadow_with_a_page(
    engine: Engine, models: Path, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint.body = b"[]"
    with in_a_run(monkeypatch, endpoint.url):
        state = retrain.fn("ppo_gold", "2", "ana", date(2026, 2, 20), reason="a month more")

    line = state.message or ""
    assert state.is_completed(), line
    assert line.startswith("ppo_gold 2 is registered as shadow: trained until 2026-02-20 with seed ")
    assert search(r"; out of sample in 2026: \d+ signals", line)  # another processor may round otherwise
    assert line.endswith(": artifact training-ppo-gold-2")
    page = made(endpoint)[0]["data"]
    assert search(r"\| 2026 \| out of sample \| \d+ \|", page)
    picture = search(r"data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)", page)
    assert picture is not None
    assert "2026 out of sample" in b64decode(picture[1]).decode()
    with reading(engine) as session:
        assert versions.active_version(session, "ppo_gold").version == "1"
        assert versions.get_version(session, "ppo_gold", "2").status == Status.SHADOW
    assert len(list(models.glob("*.json"))) == 1


@pytest.mark.parametrize(
    ("version", "until", "line"),
    [
        ("1", date(2026, 2, 20), "'ppo_gold' already has a version '1'"),
        ("2", date(2026, 3, 3), "until = '2026-03-03 00:00 UTC' is not valid; allowed: a time up to 2026-03-02 00:00"),
    ],
    ids=["name", "future"],
)
def test_what_cannot_be_fails_with_one_line(models: Path, version: str, until: date, line: str) -> None:
    state = retrain.fn("ppo_gold", version, "ana", until)

    assert state.is_failed()
    assert (state.message or "").startswith(line)
    assert not models.exists()
