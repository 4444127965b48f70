"""Calibration: run a plan's gates on simulated ramps, or on ramps drawn from a pair's own history."""

from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial

import numpy as np
from pydantic import BaseModel, ConfigDict
from sqlalchemy import Engine

from strategy_core.domain.calibration import (
    OF_A_PAIR,
    Calibration,
    CalibrationCase,
    RampResult,
    RecordedPair,
    simulable,
    summarise,
)
from strategy_core.domain.errors import Incomparable, InvalidName, InvalidSetting
from strategy_core.domain.lifecycle import utc
from strategy_core.domain.plan import Plan
from strategy_core.domain.preview import in_sample_note
from strategy_core.domain.scoring import ScoringRule
from strategy_core.domain.simulation import SCENARIOS, USUAL, Scenario
from strategy_core.services.evidence import add_replays, left_out_until, read_shadow
from strategy_core.services.processes import spread
from strategy_core.services.rollouts import check_comparable
from strategy_core.store import versions
from strategy_core.store.engine import reading

FEWEST_SLOTS, FEWEST_DAYS = 30, 2
CHUNK = 10  # ramps per task of a process: about a quarter of a second
FEW = 40  # ramps: finished before another process would have started


class Calibrated(BaseModel):
    """The result of a calibration. *left_out* are the gates that a simulation has no facts for."""

    model_config = ConfigDict(frozen=True)

    days: int
    seed: int
    left_out: list[str]
    scenarios: list[Calibration]


def calibrate(
    plan: Plan,
    *,
    ramps: int,
    days: int,
    seed: int,
    scenarios: Sequence[str] = (),
    pair: RecordedPair | None = None,
    workers: int | None = None,
    done: Callable[[int, int], None] = lambda *_: None,
) -> Calibrated:
    """Simulate *ramps* ramps of each scenario under *plan*, on all cores.

    Args:
        scenarios: names of the scenarios to run. Empty means the usual ones, or all of a pair.
        pair: draw slots from this pair's history instead of the scenarios' markets.
        workers: number of processes, one per core by default. The result does not depend on it.
        done: called with the number of finished ramps and the total.

    Raises:
        UnarmedPlan, InvalidPlan: no gate with a vote can be simulated.
        InvalidName: a scenario is unknown.
        InvalidSetting: a scenario's fault would begin after *days*.
    """
    plan, left_out = simulable(plan)
    known = SCENARIOS if pair is None else OF_A_PAIR
    names = scenarios or (USUAL if pair is None else list(OF_A_PAIR))
    chosen = [_find_scenario(known, name) for name in dict.fromkeys(names)]
    for each in chosen:
        if each.from_day >= (each.days or days):
            raise InvalidSetting("days", days, f"more than {each.from_day}, when the fault of {each.name} begins")
    trials = [CalibrationCase(plan, each, days, pair) for each in chosen]
    results = spread(partial(_run, seed), trials, times=ramps, chunk=CHUNK, few=FEW, workers=workers, done=done)
    summaries = [
        summarise(trial.scenario.name, found, healthy=trial.scenario.healthy, bound_slots=trial.bound(seed))
        for trial, found in zip(trials, results, strict=True)
    ]
    return Calibrated(days=days, seed=seed, left_out=left_out, scenarios=summaries)


def read_pair(engine: Engine, *, strategy_name: str, version: str, now: datetime) -> RecordedPair:
    """Return the shadow history of *version* and the active version, at most 180 days. Replays add what is missing.

    Raises:
        UnknownStrategy, UnknownVersion, NoActiveVersion
        Incomparable: the two have too few candles in common.
    """
    now = utc(now, "now")
    with reading(engine) as session:
        chosen = versions.get_version(session, strategy_name, version)
        active = versions.active_version(session, strategy_name)
        check_comparable(chosen, active)
        scoring = ScoringRule.model_validate(versions.get_strategy(session, strategy_name).scoring)
        shadow = read_shadow(session, chosen, active, now)
        live = len(shadow.slots)
        shadow = add_replays(session, shadow, chosen, active, now) or shadow
        left_out = left_out_until(session, chosen, active)
    slots, days = shadow.slots, len(np.unique(shadow.slots.day))
    if len(slots) < FEWEST_SLOTS or days < FEWEST_DAYS:
        found = f"{len(slots):,} closed slots on {days:,} days in shadow, needed are {FEWEST_SLOTS} on {FEWEST_DAYS}"
        advice = f"replay more past candles first: rollout replay {strategy_name} {version} --from TIME"
        if left_out is not None:
            advice = f"{in_sample_note(left_out)}; {advice}"
        raise Incomparable(strategy_name, version, active.version, f"{found}; {advice}")
    return RecordedPair(slots, shadow.history, scoring.risk_fraction, len(slots) - live, left_out)


def _find_scenario(known: dict[str, Scenario], name: str) -> Scenario:
    if name not in known:
        raise InvalidName("scenario", name, ", ".join(known))
    return known[name]


def _run(seed: int, trial: CalibrationCase, numbers: range) -> list[RampResult]:
    return [trial.run(seed, number) for number in numbers]
