"""Simulate races: what owners, and users, would have had from each way to give users to many candidates."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

from pydantic import BaseModel, ConfigDict

from strategy_core.domain.errors import InvalidName, InvalidSetting
from strategy_core.domain.plan import Plan
from strategy_core.domain.race_simulation import (
    POLICIES,
    SCENARIOS,
    Cell,
    RaceCase,
    RaceResult,
    run_race,
    summarise,
)
from strategy_core.services.processes import spread

T = TypeVar("T")

CHUNK = 5  # races per task of a process
FEW = 10  # races: finished before another process would have started
MOST_CANDIDATES = 32


class SimulatedRaces(BaseModel):
    """Cells by scenario, number of candidates, days of shadow and policy."""

    model_config = ConfigDict(frozen=True)

    runs: int
    days: int
    seed: int
    cells: list[Cell]


def simulate_races(
    plan: Plan,
    *,
    candidates: Sequence[int],
    shadow_days: Sequence[int],
    runs: int,
    days: int,
    seed: int,
    scenarios: Sequence[str] = (),
    policies: Sequence[str] = (),
    workers: int | None = None,
    done: Callable[[int, int], None] = lambda *_: None,
) -> SimulatedRaces:
    """Run *runs* races of each scenario, number of candidates and days of shadow, under each policy.

    Args:
        plan: of the rollouts that a race starts.
        scenarios, policies: names. Empty: all.
        workers: as in `calibrate`. The result does not depend on it.

    Raises:
        InvalidName: a scenario or a policy is unknown.
        InvalidSetting: a number is out of its bounds.
    """
    for name, found, most in (("candidates", candidates, MOST_CANDIDATES), ("shadow-days", shadow_days, 365)):
        least = 1 if name == "candidates" else 0
        if wrong := [each for each in found if not least <= each <= most]:
            raise InvalidSetting(name, wrong[0], f"a number from {least} to {most}")
    chosen = [_find(SCENARIOS, "scenario", name) for name in dict.fromkeys(scenarios or SCENARIOS)]
    for name in policies:
        _find(POLICIES, "policy", name)
    cases = [
        RaceCase(scenario, k, policy, plan, days, shadow)
        for shadow in dict.fromkeys(shadow_days)
        for scenario in chosen
        for k in dict.fromkeys(candidates)
        for policy in dict.fromkeys(policies or POLICIES)
    ]
    results = spread(partial(_run, seed), cases, times=runs, chunk=CHUNK, few=FEW, workers=workers, done=done)
    cells = [summarise(case, found) for case, found in zip(cases, results, strict=True)]
    return SimulatedRaces(runs=runs, days=days, seed=seed, cells=cells)


def _run(seed: int, case: RaceCase, numbers: range) -> list[RaceResult]:
    return [run_race(case, seed, number) for number in numbers]


def _find(known: Mapping[str, T], what: str, name: str) -> T:
    if name not in known:
        raise InvalidName(what, name, ", ".join(known))
    return known[name]
