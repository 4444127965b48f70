"""Retraining: a new version in shadow with a model file by its content, or nothing at all."""

from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from sqlalchemy import Engine

from strategy_core.domain.audit import Command
from strategy_core.domain.errors import (
    DuplicateFingerprint,
    DuplicateVersion,
    FingerprintMismatch,
    InvalidSetting,
    InvalidTimeframe,
    NotTrainable,
    RolloutError,
    TrainingFailed,
    UnknownStrategy,
    UnknownSymbol,
)
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan
from strategy_core.isolation.pool import WorkerPool
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services.compare import compare_versions, period
from strategy_core.services.replay import replay_version
from strategy_core.services.retrain import Retrained, retrain
from strategy_core.services.rollouts import preview_plan
from strategy_core.services.versions import register_version
from strategy_core.store import audit, versions
from strategy_core.store.engine import reading
from strategy_core.store.tables import StrategyVersion
from strategy_core.strategies.ppo_gold import read_model
from tests.builders import DAY, GOLD, HOUR, MONDAY, OWNER, put_version

UNTIL = MONDAY - 20 * DAY
NOW = MONDAY + HOUR


@pytest.fixture(scope="module")
def hourly() -> SyntheticSource:
    return SyntheticSource((GOLD, "SILVER"), start=MONDAY - 120 * DAY, days=121)


def again(engine: Engine, market: Any, models: Path, version: str = "2", **changes: Any) -> Retrained:
    asked: dict[str, Any] = {"strategy_name": "ppo_gold", "version": version, "until": UNTIL, "tries": 1, "updates": 2}
    later = lambda: NOW + timedelta(minutes=2)  # noqa: E731
    return retrain(engine, Command(OWNER, NOW, "a month more"), market, models=models, clock=later, **asked | changes)


def registered(engine: Engine, market: SyntheticSource) -> StrategyVersion:
    return register_version(
        engine,
        Command(OWNER, NOW),
        market,
        strategy_name="ppo_gold",
        version="1",
        config={},
        entry_point="ppo_gold",
        symbols=[GOLD],
        timeframe="1h",
        status=Status.ACTIVE,
    )


def put_ppo(engine: Engine, symbols: list[str] | None = None, **columns: Any) -> None:
    known = {"strategy_name": "ppo_gold", "entry_point": "ppo_gold", "symbols": symbols or [GOLD], "config": {}}
    put_version(engine, "1", Status.ACTIVE, **known | columns)


def stored(engine: Engine, strategy_name: str = "ppo_gold") -> list[str]:
    with reading(engine) as session:
        return [each.version for each in versions.list_versions(session, strategy_name)]


def kept(models: Path) -> list[str]:
    return [each.name for each in models.glob("*.json")] if models.exists() else []


@pytest.mark.full
def test_a_retrained_version_is_in_shadow_and_names_its_model_by_digest(
    engine: Engine, hourly: SyntheticSource, tmp_path: Path
) -> None:
    put_ppo(engine)

    found = again(engine, hourly, tmp_path)

    assert found.version.status == Status.SHADOW
    assert found.file.name == f"{sha256(found.file.read_bytes()).hexdigest()}.json"
    assert kept(tmp_path) == [found.file.name]
    assert found.version.config == {"model": str(found.file)}
    assert found.file.stem in found.version.fingerprint_parts.values()
    assert read_model(found.file) == found.training.model
    assert found.version.trained_until == UNTIL
    assert found.version.created_at == NOW + timedelta(minutes=2)
    assert [each.in_sample for each in found.years][-1] is False
    with reading(engine) as session:
        (event,) = [each for each in audit.events(session) if each.action == "register_version"]
        assert versions.active_version(session, "ppo_gold").version == "1"
    assert (event.actor, event.version) == (OWNER.name, "2")
    assert event.reason == f"a month more (retrained until {UNTIL:%Y-%m-%d} 00:00 UTC with seed 7)"

    with pytest.raises(DuplicateFingerprint):
        again(engine, hourly, tmp_path, version="3")

    assert stored(engine) == ["1", "2"]
    assert kept(tmp_path) == [found.file.name]


@pytest.mark.full
def test_a_version_names_its_model_by_an_absolute_path(
    engine: Engine, hourly: SyntheticSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_ppo(engine)
    monkeypatch.chdir(tmp_path)

    found = again(engine, hourly, Path("models"))

    assert found.version.config == {"model": str(tmp_path / "models" / found.file.name)}


@pytest.mark.full
def test_what_is_in_sample_is_told_apart(engine: Engine, hourly: SyntheticSource, tmp_path: Path) -> None:
    registered(engine, hourly)
    again(engine, hourly, tmp_path)
    names: dict[str, Any] = {"strategy_name": "ppo_gold", "version": "2"}
    with WorkerPool() as workers:
        ours, theirs = replay_version(engine, hourly, workers, now=NOW, length=60 * DAY, **names)
    compared = compare_versions(
        engine, strategy_name="ppo_gold", shadow_version="2", over=period(NOW - 60 * DAY, NOW), source=hourly
    )

    planned = preview_plan(engine, plan=Plan(), now=NOW + HOUR, **names)

    until = f"{UNTIL:%Y-%m-%d %H:%M} UTC"
    assert f"in sample: 2 was trained on candles until {until}. compare shows them apart" in ours.notes
    assert not any("in sample" in note for note in theirs.notes), "the shipped model was trained on older candles"
    assert compared.in_sample is not None
    assert compared.trained_until == UNTIL
    assert compared.candles_compared + compared.in_sample.candles_compared == ours.candles
    assert planned.replayed_slots == compared.difference.n
    assert f"left out: replayed candles before {until}, on which a version was trained" in planned.notes


@pytest.mark.full
def test_an_exchanged_model_does_not_run(engine: Engine, hourly: SyntheticSource, tmp_path: Path) -> None:
    registered(engine, hourly)
    file = again(engine, hourly, tmp_path).file
    file.chmod(0o644)
    file.write_bytes(file.read_bytes().replace(b'"hold":', b'"hold": '))

    with WorkerPool() as workers, pytest.raises(FingerprintMismatch, match=f"changed: model file 1 {file.name}"):
        replay_version(engine, hourly, workers, strategy_name="ppo_gold", version="2", now=NOW, length=5 * DAY)


class Still(SyntheticSource):
    """A market that does not move, on which no policy can be trained."""

    def candles(self, symbol: str, *, closed_by: datetime, **asked: Any) -> pd.DataFrame:
        return super().candles(symbol, closed_by=closed_by, **asked) * 0.0 + 2_000.0


@pytest.mark.full
def test_a_training_that_collapses_stores_nothing(engine: Engine, tmp_path: Path) -> None:
    put_ppo(engine)
    still = Still((GOLD,), start=MONDAY - 120 * DAY, days=121)

    with pytest.raises(TrainingFailed, match=r"none of 1 tries is accepted, .* 0\.00 signals a day in 2025"):
        again(engine, still, tmp_path)

    assert (stored(engine), kept(tmp_path)) == (["1"], [])


REFUSED: list[tuple[dict[str, Any], type[RolloutError], str]] = [
    ({"strategy_name": "gold"}, UnknownStrategy, "no strategy 'gold'"),
    ({"strategy_name": "fib_rsi"}, NotTrainable, "a strategy with a version of ppo_gold"),
    ({"version": "1"}, DuplicateVersion, "already has a version '1'"),
    ({"until": NOW + HOUR}, InvalidSetting, "until = '2026-03-02 02:00 UTC' is not valid"),
    ({"symbol": "SILVER"}, UnknownSymbol, "SILVER"),
]


@pytest.mark.parametrize(("changes", "error", "words"), REFUSED, ids=[each[2] for each in REFUSED])
def test_what_cannot_be_is_refused_before_the_training(
    engine: Engine, hourly: SyntheticSource, tmp_path: Path, changes: Any, error: Any, words: str
) -> None:
    put_ppo(engine)
    put_version(engine, "1", Status.ACTIVE)

    with pytest.raises(error, match=words):
        again(engine, hourly, tmp_path / "models", **changes)

    assert not (tmp_path / "models").exists()
    assert stored(engine) == ["1"]


def test_one_of_several_symbols_must_be_named(engine: Engine, hourly: SyntheticSource, tmp_path: Path) -> None:
    put_ppo(engine, symbols=[GOLD, "SILVER"])

    with pytest.raises(InvalidSetting, match="symbol = None is not valid; allowed: one of GOLD, SILVER, to train on"):
        again(engine, hourly, tmp_path)


def test_another_timeframe_and_a_folder_that_cannot_be_are_refused(
    engine: Engine, hourly: SyntheticSource, tmp_path: Path
) -> None:
    put_ppo(engine, timeframe="15m")
    with pytest.raises(InvalidTimeframe):
        again(engine, hourly, tmp_path)
    put_version(engine, "2", strategy_name="ppo_gold", entry_point="ppo_gold", symbols=[GOLD], at=NOW - HOUR)
    (tmp_path / "file").touch()

    with pytest.raises(InvalidSetting, match="ROLLOUT_MODELS"):
        again(engine, hourly, tmp_path / "file", version="3")
