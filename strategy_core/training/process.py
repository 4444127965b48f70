"""Training in its own process with low priority: ticks and rollbacks do not wait for it."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pandas as pd

from strategy_core.domain.errors import TrainingFailed, reason_of
from strategy_core.domain.scoring import ScoringRule
from strategy_core.strategies.ppo_gold import Model
from strategy_core.training.ppo import DEFAULT_RULE, UPDATES, train

TRIES = 5
NICENESS = 10  # a tenth of the processor beside busy processes: 19 would be none
Progress = Callable[[int, int], None]


@dataclass(slots=True)
class Learning:
    """How the tries of a training have learned: for each seed the mean reward of its updates, in R a candle."""

    seed: int
    updates: int
    rewards: dict[int, list[float]] = field(default_factory=dict)

    def note(self, done: int, reward: float) -> None:
        """Take the progress of `ppo.train`: *done* updates of all tries, and the reward of the newest."""
        self.rewards.setdefault(self.seed + (done - 1) // self.updates, []).append(reward)


@dataclass(frozen=True, slots=True)
class Training:
    """A trained model, and how all tries have learned."""

    model: Model
    learning: Learning


def train_apart(
    candles: pd.DataFrame,
    until: datetime,
    *,
    seed: int,
    tries: int = TRIES,
    updates: int = UPDATES,
    rule: ScoringRule = DEFAULT_RULE,
    progress: Progress = lambda *_: None,
) -> Training:
    """Do `ppo.train` in another process, which ends with this one.

    Args:
        progress: called with the number of updates so far, and their total over all tries.

    Raises:
        TrainingFailed: as in `ppo.train`, or the process was ended.
    """
    given = (candles, until, {"seed": seed, "tries": tries, "updates": updates, "rule": rule.model_dump(mode="json")})
    learning, found = Learning(seed, updates), ""
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "strategy_core.training.process"],  # files of an owner's folder stay unseen
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for this process, which then ends the other one
    ) as process:
        try:
            stdin, stdout = process.stdin, process.stdout
            assert stdin is not None
            assert stdout is not None
            try:
                stdin.write(pickle.dumps(given))
                stdin.close()
            except BrokenPipeError:
                raise TrainingFailed("its process could not start") from None
            for line in stdout:
                message = json.loads(line)
                if "failed" in message:
                    raise TrainingFailed(message["failed"])
                if "model" in message:
                    found = message["model"]
                    break
                learning.note(message["done"], message["reward"])
                progress(message["done"], tries * updates)
        finally:
            process.kill()
            process.wait()
    if not found:
        raise TrainingFailed(f"its process ended with {process.returncode}")
    return Training(Model.model_validate_json(found), learning)


def _run() -> None:
    """Train as the first frame on standard input asks, and write a line of JSON for each update and for the end."""
    os.nice(NICENESS)
    candles, until, settings = pickle.loads(sys.stdin.buffer.read())  # noqa: S301  of our own parent process
    settings["rule"] = ScoringRule.model_validate(settings["rule"])
    try:
        model = train(candles, until, **settings, progress=lambda done, reward: _send(done=done, reward=reward))
        _send(model=model.model_dump_json())
    except TrainingFailed as refused:
        _send(failed=refused.why)
    except Exception as error:  # noqa: BLE001  the parent shows it in one line
        _send(failed=reason_of(error))


def _send(**message: Any) -> None:
    try:
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os._exit(1)  # the parent has ended


if __name__ == "__main__":
    _run()
