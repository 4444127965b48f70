"""A hostile version is stopped in bounded time and memory, and does not affect other versions' decisions."""

import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest

from strategy_core.domain.errors import StrategyFailed
from strategy_core.isolation.client import MEMORY_BYTES, DecisionRequest, IsolatedStrategy
from strategy_core.isolation.protocol import Answer
from tests.isolation.asking import worker_pids

HERE = "tests.isolation.hostile_versions"
AT_ONCE_S, IN_THE_END_S = 1.0, 60.0  # deadlines of endless attacks and of the others
MORE_MB = 300  # limit for the product itself during all attacks
ENDING = {
    "hoard": ("died", "ran out of memory"),
    "hoard shared memory": ("raised", "Cannot allocate memory"),
    "fork on and on": ("breach", "process: os.fork"),
    "close the pipes": ("died", "its worker"),
    "flood with breaches": ("breach", "again; then its worker sent an unexpected message"),
    "many threads": ("raised", "can't start new thread"),
    "recurse in C": ("died", "was killed by signal 11"),
    "replace the wire": ("died", "violated the protocol"),
    "large features": ("invalid", "a text may have at most 500 characters"),
    "write its own memory": ("breach", "open for writing: /proc/self/mem"),
    "write shared memory": ("breach", "open for writing: /dev/shm/rollout"),
}
ENDLESS = ["ignore signals", "alarm", "hold the interpreter", "compute for ever", "endless features"]
STOPPED = ENDING | dict.fromkeys(ENDLESS, ("deadline", "no answer within 1 s"))
REFUSED_BY_THE_KERNEL = ["native fork", "debug its parent", "outlive its parent"]


@pytest.fixture
def hostile() -> Iterator[IsolatedStrategy]:
    with IsolatedStrategy(f"{HERE}:Hostile", {}, deadline_s=IN_THE_END_S, memory_bytes=2 << 30) as isolated:
        yield isolated


@pytest.fixture(scope="module")
def healthy() -> Iterator[IsolatedStrategy]:
    with IsolatedStrategy(f"{HERE}:Hostile", {}, deadline_s=60.0) as isolated:
        isolated.describe()
        yield isolated


def attacked(hostile: IsolatedStrategy, healthy: IsolatedStrategy, candles: pd.DataFrame, attack: str) -> list[Answer]:
    """Ask the hostile version beside a healthy one, and return the attack's answer and the next one."""
    asks = [DecisionRequest(symbol, "1h", candles, [20], 5) for symbol in (attack, "GOLD")]
    with ThreadPoolExecutor(2) as threads:
        others = threads.submit(healthy.decide, [DecisionRequest("GOLD", "1h", candles, range(4, 400), 5)])
        answers = threads.submit(hostile.decide, asks).result()
        (said,) = others.result()
    assert [each.decision and each.decision.features["close"] for each in said] == candles["close"].iloc[4:].tolist()
    return [answer for (answer,) in answers]


@pytest.mark.parametrize("attack", STOPPED)
def test_an_attack_is_one_answer_and_the_next_decision_is_fine(
    hostile: IsolatedStrategy, healthy: IsolatedStrategy, candles: pd.DataFrame, attack: str
) -> None:
    kind, error = STOPPED[attack]
    hostile.deadline_s = AT_ONCE_S if attack in ENDLESS else IN_THE_END_S
    opened, grown = descriptors(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    workers = worker_pids()

    answer, following = attacked(hostile, healthy, candles, attack)
    hostile.close()

    assert (answer.kind, error in str(answer.error)) == (kind, True), answer
    assert following.decision is not None
    assert following.decision.features == {"close": candles["close"].iloc[20]}
    assert descriptors() == opened
    assert worker_pids() == workers
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - grown < MORE_MB * 1024


@pytest.mark.parametrize("attack", ["flood with answers", "print a gigabyte", "spin on", "stop itself"])
def test_what_harms_nobody_is_an_answer(
    hostile: IsolatedStrategy, healthy: IsolatedStrategy, candles: pd.DataFrame, attack: str
) -> None:
    workers = worker_pids()

    answer, _ = attacked(hostile, healthy, candles, attack)
    hostile.close()

    assert answer.decision is not None
    assert worker_pids() == workers


@pytest.mark.parametrize("attack", REFUSED_BY_THE_KERNEL)
def test_native_code_neither_forks_nor_outlives_nor_debugs_its_parent(
    hostile: IsolatedStrategy, healthy: IsolatedStrategy, candles: pd.DataFrame, attack: str
) -> None:
    answer, _ = attacked(hostile, healthy, candles, attack)

    assert answer.decision is not None
    assert answer.decision.features == {"returned": -1, "errno": 1}


def test_a_version_that_floods_while_it_loads_is_refused() -> None:
    with (
        IsolatedStrategy(f"{HERE}:FloodsOnLoad", {}) as isolated,
        pytest.raises(StrategyFailed, match="violated the protocol"),
    ):
        isolated.describe()


def test_a_worker_is_the_first_to_go_where_memory_is_short(candles: pd.DataFrame) -> None:
    """The product, which must roll back and tick, may be smaller than a version that hoards, or larger."""
    before = worker_pids()
    with IsolatedStrategy(f"{HERE}:Hostile", {}) as isolated:
        ((answer,),) = isolated.decide([DecisionRequest("tell", "1h", candles, [20], 5)])
        (worker,) = worker_pids() - before
        killed_first = Path(f"/proc/{worker}/oom_score_adj").read_text().strip()

    assert answer.decision is not None
    assert answer.decision.features == {"RLIMIT_AS": MEMORY_BYTES, "RLIMIT_DATA": MEMORY_BYTES // 4}
    assert killed_first == "1000"


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
