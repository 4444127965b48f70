"""A version in its worker: its input, deadlines, loading and end."""

import os
from datetime import timedelta
from pathlib import Path

import pandas as pd
import pytest

from strategy_core.domain.errors import (
    InvalidCandles,
    InvalidConfig,
    InvalidEntryPoint,
    InvalidTimeframe,
    IsolationBreach,
    StrategyFailed,
)
from strategy_core.domain.strategy import INSUFFICIENT_HISTORY, Action
from strategy_core.isolation.client import DecisionRequest, IsolatedStrategy
from tests.isolation.asking import between_honest_ones, worker_pids
from tests.isolation.conftest import UNDER_TEST
from tests.isolation.strategies_under_test import Engine


def test_a_version_may_write_into_its_own_candles(version: IsolatedStrategy, candles: pd.DataFrame) -> None:
    honest = candles.copy()

    asks = [DecisionRequest("mutate", "1h", candles, [20, 21], 5), DecisionRequest("GOLD", "1h", candles, [20, 21], 5)]
    _, (first, second) = version.decide(asks)

    pd.testing.assert_frame_equal(candles, honest)
    assert first.decision is not None
    assert second.decision is not None
    assert first.decision.features["sum"] == pytest.approx(candles["close"].iloc[16:21].sum())
    assert second.decision.features["sum"] == pytest.approx(candles["close"].iloc[17:22].sum())


def test_each_decision_sees_exactly_its_window_and_its_close(version: IsolatedStrategy, candles: pd.DataFrame) -> None:
    (answers,) = version.decide([DecisionRequest("GOLD", "1h", candles, [300, 4, 20], 5)])

    for position, answer in zip([300, 4, 20], answers, strict=True):
        assert answer.decision is not None
        assert answer.decision.confidence == 0.5
        assert answer.decision.features["rows"] == 5
        assert answer.decision.features["close"] == candles["close"].iloc[position]
        assert answer.decision.features["now"] == (candles.index[position] + timedelta(hours=1)).isoformat()


def test_too_little_history_is_a_hold_that_nobody_is_asked_for(
    version: IsolatedStrategy, candles: pd.DataFrame
) -> None:
    (answers,) = version.decide([DecisionRequest("_exit", "1h", candles, [0, 3], 5)])

    for answer in answers:
        assert answer.decision is not None
        assert (answer.decision.action, answer.decision.reason) == (Action.HOLD, INSUFFICIENT_HISTORY)


def test_libraries_that_look_around_at_their_import_are_imported(candles: pd.DataFrame) -> None:
    with IsolatedStrategy("tests.isolation.imports_libraries:Imports", {}) as version:
        ((answer,),) = version.decide([DecisionRequest("GOLD", "1h", candles, [20], 5)])

    assert answer.decision is not None


def test_the_worker_has_no_secret_of_its_parent(candles: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://owner:secret@db/rollout")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with IsolatedStrategy(f"{UNDER_TEST}:Tricks", {}) as isolated:
        ((answer,),) = isolated.decide([DecisionRequest("environment", "1h", candles, [20], 5)])

    assert answer.decision is not None
    allowed = {
        "PATH",
        "LANG",
        "TZ",
        "PYTHONHASHSEED",
        "PYTHONPATH",
        "PYTHONDONTWRITEBYTECODE",
        "LC_CTYPE",
    }  # the last is Python's own
    threads = {"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"}
    assert set(answer.decision.features) <= allowed | threads


def test_a_hanging_decision_meets_its_deadline_and_the_next_goes_on(candles: pd.DataFrame) -> None:
    with IsolatedStrategy(f"{UNDER_TEST}:Tricks", {}, deadline_s=0.5) as isolated:
        answer = between_honest_ones(isolated, candles, "sleep")
        breach = between_honest_ones(isolated, candles, "swallow and sleep")

    assert (answer.kind, answer.error, answer.duration_ms) == ("deadline", "no answer within 0.5 s", 500.0)
    assert breach.kind == "breach"
    assert str(breach.error).endswith("written.txt; then no answer within 0.5 s")


def test_a_version_that_always_hangs_does_not_stall_a_catch_up(candles: pd.DataFrame) -> None:
    with IsolatedStrategy(f"{UNDER_TEST}:Tricks", {}, deadline_s=0.2) as isolated:
        (answers,) = isolated.decide([DecisionRequest("sleep", "1h", candles, range(400), 5)])

    assert [answer.kind for answer in answers] == [""] * 4 + ["deadline"] * 396
    assert answers[6].error == "no answer within 0.2 s"
    assert answers[7].error == "not asked: 3 workers failed in this run, the last one with: no answer within 0.2 s"
    assert answers[7] == answers[-1]


def test_a_worker_that_dies_while_idle_is_nobodys_fault(version: IsolatedStrategy, candles: pd.DataFrame) -> None:
    version.decide([DecisionRequest("GOLD", "1h", candles, [20], 5)])
    assert version._process is not None
    version._process._reap()

    ((answer,),) = version.decide([DecisionRequest("GOLD", "1h", candles, [20], 5)])

    assert answer.kind == ""


def test_a_position_outside_the_candles_is_the_askers_fault(version: IsolatedStrategy, candles: pd.DataFrame) -> None:
    with pytest.raises(InvalidCandles, match="no candle at position 400 of 400"):
        version.decide([DecisionRequest("GOLD", "1h", candles, [400], 5)])
    with pytest.raises(InvalidTimeframe, match="'7h'"):
        version.decide([DecisionRequest("GOLD", "7h", candles, [20], 5)])


def test_a_version_says_what_it_is(tmp_path: Path) -> None:
    with IsolatedStrategy(f"{UNDER_TEST}:WithModelFiles", {"target": str(tmp_path)}) as isolated:
        described = isolated.describe()

    assert described.config == {"target": str(tmp_path)}
    assert described.warmup_bars == 5
    assert not described.vectorised
    assert described.model_files == (tmp_path / "model.bin",)


@pytest.mark.parametrize(
    ("entry_point", "config", "refused", "text"),
    [
        ("fib_rsy", {}, InvalidEntryPoint, "did you mean 'fib_rsi'?"),
        (
            f"{UNDER_TEST}:Tricks",
            {"target": 1, "tagret": 2},
            InvalidConfig,
            "tagret: no such key; did you mean target?",
        ),
        (f"{UNDER_TEST}:BreachOnLoad", {}, IsolationBreach, "process: subprocess.Popen"),
        (f"{UNDER_TEST}:ExitOnLoad", {}, StrategyFailed, "its worker ended with exit code 5"),
        (f"{UNDER_TEST}:RaiseOnLoad", {}, StrategyFailed, "ValueError: no model"),
    ],
)
def test_a_version_that_cannot_be_loaded_is_refused_with_the_reason(
    candles: pd.DataFrame, entry_point: str, config: dict[str, object], refused: type[Exception], text: str
) -> None:
    """`describe` raises it, and `decide` answers it, for a version that was fine when it was registered."""
    with IsolatedStrategy(entry_point, config) as isolated:
        with pytest.raises(refused) as raised:
            isolated.describe()
        (answers,) = isolated.decide([DecisionRequest("GOLD", "1h", candles, [20, 21], 5)])

    assert text in str(raised.value)
    assert [text in str(answer.error) for answer in answers] == [True, True]
    assert {answer.kind for answer in answers} == {"breach" if refused is IsolationBreach else "raised"}


def test_the_schema_of_a_config_names_its_parameters_with_their_defaults() -> None:
    with IsolatedStrategy(f"{UNDER_TEST}:Tricks", {}) as isolated:
        schema = isolated.read_params_schema()

    assert schema["properties"]["target"]["default"] == "nowhere"


@pytest.mark.parametrize(
    ("entry_point", "refused"),
    [("BreachOnLoad", IsolationBreach), ("ExitOnLoad", StrategyFailed), ("RaiseOnLoad", StrategyFailed)],
)
def test_a_schema_is_read_in_the_sandbox(entry_point: str, refused: type[Exception]) -> None:
    with IsolatedStrategy(f"{UNDER_TEST}:{entry_point}", {}) as isolated, pytest.raises(refused):
        isolated.read_params_schema()


def test_a_version_that_hangs_while_loading_is_refused_at_the_load_deadline() -> None:
    with (
        IsolatedStrategy(f"{UNDER_TEST}:SlowToLoad", {}, load_deadline_s=0.5) as isolated,
        pytest.raises(StrategyFailed, match=r"loading .*:SlowToLoad took more than 0.5 s"),
    ):
        isolated.describe()


def test_a_vectorised_replay_is_what_single_decisions_are(candles: pd.DataFrame) -> None:
    with IsolatedStrategy("fib_rsi", {}) as isolated:
        ask = DecisionRequest("GOLD", "1h", candles, range(400), 150)
        (one_by_one,), (at_once,) = isolated.decide([ask]), isolated.decide([ask], vectorised=True)

    for single, many in zip(one_by_one, at_once, strict=True):
        assert single.decision is not None
        assert many.decision is not None
        assert single.decision.action is many.decision.action
        assert single.decision.features == pytest.approx(many.decision.features, abs=1e-9)
    assert [answer.decision.reason == INSUFFICIENT_HISTORY for answer in at_once if answer.decision] == (
        [True] * 149 + [False] * 251
    )


def test_a_vectorised_fault_answers_the_whole_ask_and_no_other(candles: pd.DataFrame, outside: Path) -> None:
    tricks = ["GOLD", "ValueError", "write", "_exit", "too few", "one bad", "GOLD"]
    with IsolatedStrategy(f"{UNDER_TEST}:Many", {"target": str(outside)}) as isolated:
        answers = isolated.decide(
            [DecisionRequest(trick, "1h", candles, [20, 30], 5) for trick in tricks], vectorised=True
        )

    kinds = [tuple(answer.kind for answer in two) for two in answers]
    twice = ("", ""), ("raised", "raised"), ("breach", "breach"), ("died", "died"), ("invalid", "invalid")
    assert kinds == [*twice, ("invalid", ""), ("", "")]
    assert answers[4][0].error == "decide_many gave 10 decisions for 11 windows"


def test_an_ask_of_another_length_is_decided_one_by_one(candles: pd.DataFrame) -> None:
    """decide_many answers for windows of warmup_bars, and for no others."""
    with IsolatedStrategy(f"{UNDER_TEST}:Many", {}) as isolated:
        ((answer,),) = isolated.decide([DecisionRequest("GOLD", "1h", candles, [20], 7)], vectorised=True)

    assert answer.decision is not None
    assert answer.decision.features["rows"] == 7


def test_an_async_engine_is_taken_by_entry_point_or_ready_made(candles: pd.DataFrame) -> None:
    entry_point, config = f"{UNDER_TEST}:Engine", {"threshold": 0.0}
    ask = DecisionRequest("GOLD", "1h", candles, [20], 3)
    with IsolatedStrategy(entry_point, config) as named, IsolatedStrategy("e", {}, engine=Engine(0.0, "Sell")) as ready:
        ((by_name,),), ((by_hand,),) = named.decide([ask]), ready.decide([ask])
        described = named.describe()

    assert described.config == {"threshold": 0.0, "side": "BUY"}
    assert described.warmup_bars == 3
    assert by_name.decision is not None
    assert by_hand.decision is not None
    assert (by_name.decision.action, by_hand.decision.action) == (Action.BUY, Action.SELL)
    assert by_name.decision.confidence == 0.7
    assert by_name.decision.features == {"at": candles.index[20].isoformat()}


def test_an_engine_that_cannot_be_sent_asks_for_an_entry_point() -> None:
    with pytest.raises(InvalidEntryPoint, match=r"cannot be sent to a worker .*: give an entry point"):
        IsolatedStrategy("engine", {}, engine=lambda: None)


def test_no_worker_outlives_its_strategy() -> None:
    before = worker_pids()
    with IsolatedStrategy(f"{UNDER_TEST}:Tricks", {}) as isolated:
        isolated.describe()
        (worker,) = worker_pids() - before

    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)
