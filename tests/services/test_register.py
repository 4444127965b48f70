from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Engine

from strategy_core.domain.audit import Command
from strategy_core.domain.errors import (
    DuplicateFingerprint,
    DuplicateVersion,
    FixedForLife,
    GateRefused,
    InvalidConfig,
    InvalidEntryPoint,
    InvalidName,
    InvalidTimeframe,
    NaiveTime,
    RolloutError,
    StrategyFailed,
    UnknownSymbol,
)
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.scoring import ScoringRule
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services.versions import register_version
from strategy_core.store import audit, rollouts, versions
from strategy_core.store.engine import reading, transaction
from strategy_core.store.tables import StrategyVersion
from tests.builders import GOLD, MONDAY, OWNER

CODE = "tests.services.versions_under_test"


def register(engine: Engine, market: SyntheticSource, version: str = "1", **changes: Any) -> StrategyVersion:
    facts: dict[str, Any] = {
        "strategy_name": "fib_rsi",
        "config": {},
        "entry_point": "fib_rsi",
        "symbols": [GOLD],
        "timeframe": "1h",
    }
    command = Command(OWNER, changes.pop("now", MONDAY), changes.pop("reason", ""))
    return register_version(engine, command, market, version=version, **facts | changes)


def test_a_version_is_kept_with_its_whole_config_fingerprint_and_report(
    engine: Engine, market: SyntheticSource
) -> None:
    registered = register(engine, market, config={"rsi_period": 10}, reason="faster")

    assert registered.status == "shadow"
    assert registered.config == {
        "rsi_period": 10,
        "rsi_overbought": 70.0,
        "rsi_oversold": 30.0,
        "fib_lookback_bars": 55,
    }
    assert registered.warmup_bars == 110
    assert len(registered.fingerprint) == 64
    assert {"source", "numpy", "pandas"} <= {part.split(" ")[0].split(":")[0] for part in registered.fingerprint_parts}
    report = registered.registration_report
    assert report["passed"]
    assert report["signals"] > 0
    assert {check["name"] for check in report["checks"]} >= {"determinism", "look-ahead", "window", "vectorised"}
    with reading(engine) as session:
        (event,) = audit.events(session)
    assert (event.action, event.reason, event.after["fingerprint"]) == (
        "register_version",
        "faster",
        registered.fingerprint,
    )


@pytest.mark.parametrize(
    "status",
    [
        status if status in (Status.SHADOW, Status.ACTIVE) else pytest.param(status, marks=pytest.mark.full)
        for status in Status
    ],
)
def test_a_version_may_start_in_any_status(engine: Engine, market: SyntheticSource, status: Status) -> None:
    if status is Status.CANARY:
        register(engine, market, "0", config={"rsi_period": 9}, status=Status.ACTIVE)

    register(engine, market, status=status)

    with reading(engine) as session:
        assert versions.get_version(session, "fib_rsi", "1").status == status
        if status is Status.CANARY:
            assert rollouts.get_canary(session, "fib_rsi").rollout_percent == 0.0


def test_registering_as_active_replaces_the_active_one(engine: Engine, market: SyntheticSource) -> None:
    register(engine, market, "1", status=Status.ACTIVE)
    register(engine, market, "2", config={"rsi_period": 9}, status=Status.ACTIVE)

    with reading(engine) as session:
        assert {v.version: v.status for v in versions.list_versions(session)} == {"1": "retired", "2": "active"}


@pytest.mark.full
def test_scoring_and_salt_are_fixed_at_the_first_registration(engine: Engine, market: SyntheticSource) -> None:
    first = {"scoring": ScoringRule(horizon=12), "salt": "gold"}
    register(engine, market, "1", **first)
    register(engine, market, "2", config={"rsi_period": 9})
    register(engine, market, "3", config={"rsi_period": 10}, **first)

    with reading(engine) as session:
        strategy = versions.get_strategy(session, "fib_rsi")
    assert (strategy.salt, ScoringRule.model_validate(strategy.scoring).horizon) == ("gold", 12)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"salt": "other"}, "the salt of 'fib_rsi' cannot be changed: it is 'gold', requested was 'other'"),
        ({"salt": ""}, "it is 'gold', requested was ''"),
        ({"scoring": ScoringRule(horizon=48)}, "the scoring's horizon of 'fib_rsi' .* it is 12, requested was 48"),
        (
            {"scoring": ScoringRule(horizon=12, cost=0.5)},
            "the scoring's cost of 'fib_rsi' .* it is 0.0, requested was 0.5",
        ),
    ],
)
def test_another_scoring_or_salt_is_refused(
    engine: Engine, market: SyntheticSource, changes: dict[str, Any], words: str
) -> None:
    with transaction(engine) as session:
        rule = ScoringRule(horizon=12).model_dump(mode="json")
        versions.create_strategy(session, "fib_rsi", salt="gold", scoring=rule, now=MONDAY)

    with pytest.raises(FixedForLife, match=words):
        register(engine, market, **changes)

    with reading(engine) as session:
        assert versions.list_versions(session) == []


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"strategy_name": ""}, InvalidName, "strategy name"),
        ({"strategy_name": "fib rsi"}, InvalidName, "letters, digits"),
        ({"version": "1/2"}, InvalidName, "'1/2' is not a version"),
        ({"symbols": []}, InvalidName, "one symbol or more"),
        ({"symbols": ["DOGE"]}, UnknownSymbol, "DOGE"),
        ({"timeframe": "7m"}, InvalidTimeframe, "'7m' is not a timeframe"),
        ({"timeframe": "4h"}, InvalidTimeframe, "allowed: 1h"),
        ({"entry_point": "fib_rsy"}, InvalidEntryPoint, "fib_rsi"),
        ({"entry_point": "../evil.py"}, InvalidEntryPoint, "evil"),
        ({"entry_point": "tests.builders:Nobody"}, InvalidEntryPoint, "Nobody"),
        ({"config": {"rsi_perod": 10}}, InvalidConfig, "did you mean rsi_period"),
        ({"config": {"rsi_period": float("nan")}}, InvalidConfig, "rsi_period"),
        ({"config": {"rsi_oversold": float("inf")}}, InvalidConfig, "rsi_oversold"),
        ({"config": {"rsi_period": 10_000}}, InvalidConfig, "rsi_period"),
        ({"config": {"rsi_period": MONDAY}}, InvalidConfig, "JSON"),
        ({"now": MONDAY.replace(tzinfo=None)}, NaiveTime, "now"),
        ({"entry_point": f"{CODE}:Fickle"}, GateRefused, "determinism"),
    ],
)
def test_bad_input_is_one_clear_line_and_leaves_nothing(
    sqlite_url: str, market: SyntheticSource, changes: dict[str, Any], error: type[RolloutError], words: str
) -> None:
    from strategy_core.store.engine import open_database

    engine = open_database(sqlite_url)
    with pytest.raises(error, match=words) as refused:
        register(engine, market, **changes)

    assert "\n" not in str(refused.value)
    with reading(engine) as session:
        assert versions.list_versions(session) == []
        assert versions.strategy_names(session) == []
        assert audit.events(session) == []
    engine.dispose()


def test_the_same_name_or_the_same_build_is_refused(engine: Engine, market: SyntheticSource) -> None:
    register(engine, market, "1")

    with pytest.raises(DuplicateVersion, match="already has a version '1'"):
        register(engine, market, "1", config={"rsi_period": 9})
    with pytest.raises(DuplicateFingerprint, match="the same build as 'fib_rsi' '1'"):
        register(engine, market, "2", config={"rsi_period": 14})


@pytest.mark.full
def test_another_strategy_may_have_the_same_build(engine: Engine, market: SyntheticSource) -> None:
    register(engine, market, "1")
    register(engine, market, "1", strategy_name="fib_rsi_conservative")

    with reading(engine) as session:
        assert len(versions.list_versions(session)) == 2


@pytest.mark.full
def test_a_version_says_until_when_it_was_trained(engine: Engine, market: SyntheticSource) -> None:
    asked: dict[str, Any] = {"entry_point": f"{CODE}:Trained", "strategy_name": "gold"}

    days = ("2026-01-31", "2026-04-01")
    past, future = (register(engine, market, day, config={"until": day}, **asked) for day in days)
    with pytest.raises(StrategyFailed, match=r"Trained.trained_until is 'soon'; allowed: a day, or a time"):
        register(engine, market, "3", config={"until": "soon"}, **asked)

    assert past.trained_until == datetime(2026, 1, 31, tzinfo=UTC)
    assert past.registration_report["warnings"] == []
    assert future.registration_report["warnings"] == [
        "it was trained until 2026-04-01 00:00 UTC: what it decides live before then is no evidence"
    ]
    assert register(engine, market, "4", strategy_name="plain").trained_until is None
