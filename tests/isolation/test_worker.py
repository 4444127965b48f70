"""The worker's logic, called in this process. `test_isolated` checks it in a worker process."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from strategy_core.domain.candles import Windows
from strategy_core.domain.errors import InvalidConfig, InvalidEntryPoint, StrategyFailed
from strategy_core.isolation import protocol
from strategy_core.isolation.guard import Guard, Refusal
from strategy_core.isolation.protocol import Answer, Question
from strategy_core.isolation.worker import (
    AHEAD,
    LoadedVersion,
    Pipes,
    _load,
    _load_and_report,
    _load_error,
    raised_line,
)
from tests.isolation.conftest import UNDER_TEST
from tests.isolation.strategies_under_test import Engine


@pytest.fixture
def guard() -> Guard:
    return Guard(lambda _: None)


def version_of(entry_point: str, config: dict[str, Any], guard: Guard) -> LoadedVersion:
    return _load({"entry_point": entry_point, "config": config}, [], guard)


def question(
    candles: pd.DataFrame, symbol: str, positions: list[int], *, bars: int = 5, many: bool = False
) -> Question:
    windows = Windows(candles)
    table = windows.rows(0, len(windows))
    return Question(symbol, "1h", windows.columns, table, np.array(positions), bars, many)


def answered(version: LoadedVersion, asked: Question) -> list[Answer]:
    return [answer for answers in version.answers([asked]) for answer in answers]


def test_one_by_one_each_answer_comes_alone(guard: Guard, candles: pd.DataFrame) -> None:
    version = version_of(f"{UNDER_TEST}:Tricks", {}, guard)

    batches = list(version.answers([question(candles, "GOLD", [9, 7])]))

    assert [len(batch) for batch in batches] == [1, 1]
    closes = [batch[0].decision.features["close"] for batch in batches if batch[0].decision]
    assert closes == [candles["close"].iloc[9], candles["close"].iloc[7]]


def test_all_at_once_they_come_in_batches_and_in_the_order_asked(guard: Guard, candles: pd.DataFrame) -> None:
    version = version_of("fib_rsi", {}, guard)
    history = pd.concat([candles] * 2)
    history.index = pd.date_range("2026-01-05", periods=800, freq="h", tz="UTC")
    positions = list(range(799, 148, -1))

    batches = list(version.answers([question(history, "GOLD", positions, bars=150, many=True)]))
    singly = answered(version, question(history, "GOLD", [799, 149], bars=150))

    assert [len(batch) for batch in batches] == [500, 151]
    for many, single in zip((batches[0][0], batches[-1][-1]), singly, strict=True):
        assert many.decision is not None
        assert single.decision is not None
        assert many.decision.features == pytest.approx(single.decision.features, abs=1e-9)


def test_more_windows_than_are_cut_ahead_are_answered_each_by_its_own_candles(guard: Guard) -> None:
    """Of many symbols one after another, some asked all at once in between."""
    version = version_of("fib_rsi", {}, guard)
    positions = list(range(149, 149 + AHEAD + 3))
    index = pd.date_range("2026-01-05", periods=200, freq="h", tz="UTC")
    asked = []
    for seed, many in enumerate((False, False, True, False)):
        close = 1800.0 + np.random.default_rng(seed).normal(0.0, 2.0, 200).cumsum()
        columns = {"open": close, "high": close + 1.0, "low": close - 1.0, "close": close, "volume": 1.0}
        asked.append(question(pd.DataFrame(columns, index=index), f"S{seed}", positions, bars=150, many=many))

    together = [answer.decision for answers in version.answers(asked) for answer in answers]

    apart = [answer.decision for each in asked for answer in answered(version, each)]
    assert together == apart
    assert len(together) == 4 * len(positions)


@pytest.mark.parametrize(
    ("symbol", "kinds", "error"),
    [
        ("too few", ["invalid", "invalid"], "decide_many gave 395 decisions for 396 windows"),
        ("ValueError", ["raised", "raised"], "ValueError: boom in two lines"),
        ("one bad", ["invalid", ""], "confidence 2.0 is not within 0..1"),
    ],
)
def test_a_fault_of_decide_many(guard: Guard, candles: pd.DataFrame, symbol: str, kinds: list[str], error: str) -> None:
    version = version_of(f"{UNDER_TEST}:Many", {}, guard)

    answers = answered(version, question(candles, symbol, [4, 20], many=True))

    assert [answer.kind for answer in answers] == kinds
    assert str(answers[0].error).startswith(error)


@pytest.mark.parametrize(
    ("symbol", "kind", "error"),
    [
        ("nan", "invalid", "confidence nan is not within 0..1"),
        ("features of no kind", "invalid", "features is int, not a dict"),
        ("reason of no kind", "invalid", "reason is int, not str"),
        ("many features", "invalid", "101 features; allowed: at most 100"),
        ("SystemExit", "raised", "SystemExit: 0"),
        ("KeyboardInterrupt", "raised", "KeyboardInterrupt ("),
        ("unreadable", "raised", "_Unreadable: (its text cannot be read)"),
    ],
)
def test_a_fault_of_decide(guard: Guard, candles: pd.DataFrame, symbol: str, kind: str, error: str) -> None:
    version = version_of(f"{UNDER_TEST}:Tricks", {}, guard)

    (answer,) = answered(version, question(candles, symbol, [20]))

    assert (answer.kind, answer.decision) == (kind, None)
    assert str(answer.error).startswith(error)


def test_a_try_turns_even_a_good_answer_into_a_breach(guard: Guard, candles: pd.DataFrame) -> None:
    version = version_of(f"{UNDER_TEST}:Tricks", {}, guard)
    with pytest.raises(Refusal):
        guard._hook("os.fork", ())

    (breach, after) = answered(version, question(candles, "GOLD", [20, 21]))

    assert (breach.kind, breach.error, breach.decision) == ("breach", "process: os.fork()", None)
    assert after.kind == ""


def test_a_ready_engine_needs_no_config(guard: Guard) -> None:
    version = _load({"entry_point": "engine", "config": {"n": 1}}, [pickle.dumps(Engine(1.0))], guard)

    known = {"config": {}, "warmup_bars": 3, "vectorised": False, "model_files": [], "notes": []}
    known |= {"trained_until": None, "trained_until_problem": "", "toggles": {}, "toggle_problems": []}
    assert version.description() == known


def test_model_files_are_described_by_their_whole_path(guard: Guard) -> None:
    version = version_of(f"{UNDER_TEST}:WithModelFiles", {"target": "models"}, guard)

    assert version.description()["model_files"] == [str(Path("models/model.bin").absolute())]


def test_the_end_of_its_training_is_asked_for_once_its_model_is_visible(guard: Guard) -> None:
    version = version_of("ppo_gold", {}, guard)
    unseen = version.description()

    seen = version.description(unseen["model_files"])

    assert unseen["trained_until"] is None
    assert seen["trained_until"] == "2010-01-01T00:00:00+00:00"


@pytest.mark.parametrize("until", ["soon", "raise"])
def test_a_version_that_cannot_tell_the_end_of_its_training_still_decides(guard: Guard, until: str) -> None:
    version = version_of("tests.services.versions_under_test:Trained", {"until": until}, guard)

    described = version.description()

    assert described["trained_until"] is None
    assert described["trained_until_problem"]
    assert described["config"]["until"] == until


@pytest.mark.parametrize(
    ("raised", "tried", "refused"),
    [
        (None, [], None),
        (None, ["process: os.fork()"], ["IsolationBreach", ["process: os.fork()"]]),
        (Refusal("x"), ["process: os.fork()"], ["IsolationBreach", ["process: os.fork()"]]),
        (InvalidEntryPoint("e", "because"), [], ["InvalidEntryPoint", ["because"]]),
        (InvalidConfig("e", ["a: no", "b: no"]), [], ["InvalidConfig", ["a: no", "b: no"]]),
        (StrategyFailed("it failed"), [], ["StrategyFailed", ["it failed"]]),
        (ValueError("boom"), [], ["StrategyFailed", ["ValueError: boom"]]),
    ],
)
def test_a_refusal_travels_by_name_and_facts(
    raised: BaseException | None, tried: list[str], refused: list[Any] | None
) -> None:
    assert _load_error(raised, tried) == refused


def test_an_exception_is_one_line_with_its_place() -> None:
    try:
        int("x")
    except ValueError as error:
        line = raised_line(error)

    assert line.startswith("ValueError: invalid literal for int() with base 10: 'x' (test_worker.py, line ")


def test_frames_and_lines_go_through_the_pipes(guard: Guard) -> None:
    inbox, to_it = os.pipe()
    from_it, outbox = os.pipe()
    pipes = Pipes(inbox, outbox)
    os.write(to_it, protocol.frame({"entry_point": "fib_rsi", "config": {}, "model_files": []}))
    os.close(to_it)

    start = pipes.read_frame()
    assert start is not None
    version = _load_and_report(*start, guard, pipes)
    key, description = protocol.message_in(os.read(from_it, 10_000))

    assert key == "ready"
    assert description["warmup_bars"] == version.warmup_bars == 150
    assert pipes.read_frame() is None
    os.close(from_it)
    os.close(outbox)
