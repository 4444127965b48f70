"""Whatever owners and ticks do, the trail tells all of it: its actions alone, replayed, give every state it shows."""

import random
from datetime import datetime
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine

from strategy_core.domain.audit import RAMP, Actor, Command
from strategy_core.domain.errors import RolloutError
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan, read_plan
from strategy_core.domain.ramp import Ruling, State, Step
from strategy_core.services.audit import state_at, verify_trail
from strategy_core.services.canary import activate_canary, update_canary_percent
from strategy_core.services.canary_capital import try_enter_stage
from strategy_core.services.rollback import roll_back
from strategy_core.services.rollouts import Choice, approve, decide_rollout, pause, resume, start_rollout
from strategy_core.services.tick import apply_ruling
from strategy_core.services.transitions import strategy_state
from strategy_core.services.versions import activate_version, retire_version
from strategy_core.store import audit, rollouts, versions
from strategy_core.store.engine import reading, transaction
from strategy_core.store.tables import Rollout
from tests.builders import HOUR, MONDAY, put_version
from tests.replay import Replay

VERSIONS = {"1": "active"} | {str(n): "shadow" for n in range(2, 20)} | {"20": "retired"}
STAGE = {"minimum_time": 3_600, "margins": {"pnl_r": 0.1, "win": 0.05}}
PLANS = [Plan(), read_plan({"stages": [{**STAGE, "percent": 7.5}, {**STAGE, "percent": 100}], "watch": "off"})]
PERCENTS = [0, 0.01, 12.5, 33.33, 99.99, 100, 150]
STEPS = 250


class Walk:
    """Owners and ticks that do something on the hour, much of which is refused."""

    def __init__(self, engine: Engine, seed: int) -> None:
        self.engine = engine
        self.dice = random.Random(seed)
        self.now = MONDAY
        self.keys: list[str] = []

    def step(self) -> None:
        """Try one thing."""
        self.now += HOUR
        owners = {
            self._activate: 1,
            self._retire: 0.5,
            self._canary: 1,
            self._percent: 2,
            self._start: 4,
            self._approve: 3,
            self._decide: 3,
            self._pause: 1,
            self._resume: 3,
            self._roll_back: 0.5,
            self._tick: 8,
        }
        (wish,) = self.dice.choices(list(owners), list(owners.values()))
        wish()

    def _activate(self) -> None:
        version, override = self._version(), self._override()
        activate_version(self.engine, self._asks("", override), strategy_name="fib_rsi", version=version)

    def _retire(self) -> None:
        version = self._version()
        retire_version(self.engine, self._asks(), strategy_name="fib_rsi", version=version)

    def _canary(self) -> None:
        version, percent, override = self._version(), self.dice.choice(PERCENTS), self._override()
        command = self._asks("", override)
        activate_canary(self.engine, command, strategy_name="fib_rsi", version=version, rollout_percent=percent)

    def _percent(self) -> None:
        percent = self.dice.choice(PERCENTS)
        update_canary_percent(self.engine, self._asks(), strategy_name="fib_rsi", percent=percent)

    def _start(self) -> None:
        version, plan, override = self._version(), self.dice.choice(PLANS), self._override()
        start_rollout(self.engine, self._asks("", override), strategy_name="fib_rsi", version=version, plan=plan)

    def _approve(self) -> None:
        approve(self.engine, self._asks("as good"), strategy_name="fib_rsi")

    def _decide(self) -> None:
        choice = self.dice.choice(list(Choice))
        decide_rollout(self.engine, self._asks("so"), strategy_name="fib_rsi", choice=choice)

    def _pause(self) -> None:
        pause(self.engine, self._asks(), strategy_name="fib_rsi")

    def _resume(self) -> None:
        resume(self.engine, self._asks(), strategy_name="fib_rsi")

    def _roll_back(self) -> None:
        command, version = self._asks("harm"), self.dice.choice([None, self._version()])
        roll_back(self.engine, command, strategy_name="fib_rsi", version=version)

    def _tick(self) -> None:
        """Take a step that a tick could take as the rollout stands."""
        with transaction(self.engine) as session:
            versions.lock_strategy(session, "fib_rsi")
            rollout = rollouts.open_rollout(session, "fib_rsi")
            if rollout is None:
                return
            plan = read_plan(rollout.plan)
            ruling = Ruling(self.dice.choice(_could_follow(rollout, plan)), "evidence")
            command, entry = Command(RAMP, self.now), None
            if ruling.step is Step.ADVANCE:
                entry, _ = try_enter_stage(session, command, "fib_rsi", plan, rollout.stage_index + 1)
            apply_ruling(session, rollout, plan, ruling, command, entry)

    def _asks(self, reason: str = "", override_reason: str = "") -> Command:
        """Return who asks when, resting on which generation: sometimes on one that is gone, or for a second time."""
        key = self.dice.choice([None, None, None, uuid4().hex, uuid4().hex, *self.keys[-1:]])
        if key is not None:
            self.keys.append(key)
        with reading(self.engine) as session:
            generation = versions.get_strategy(session, "fib_rsi").generation
        actor = Actor(self.dice.choice(["ana", "ben"]), request_id=uuid4().hex, idempotency_key=key)
        rests_on = self.dice.choice([None, generation, generation, generation, generation - 1])
        return Command(actor, self.now, reason, override_reason, rests_on)

    def _version(self) -> str:
        return self.dice.choice(list(VERSIONS))

    def _override(self) -> str:
        return self.dice.choice(["", "it was the feed"])


def _could_follow(rollout: Rollout, plan: Plan) -> list[Step]:
    if rollout.promoted_at is not None:
        return [Step.HOLD, Step.HOLD, Step.COMPLETE, Step.ROLL_BACK]
    if rollout.state != State.RUNNING:
        return [Step.HOLD, Step.ROLL_BACK]
    last = rollout.stage_index + 1 == len(plan.stages)
    onwards = [Step.PROMOTE if last else Step.ADVANCE] * 6
    asked = [Step.AWAIT_APPROVAL, Step.AWAIT_DECISION] * 2
    return [Step.HOLD, *asked, Step.LAPSE, Step.ROLL_BACK, *onwards]


def picture(engine: Engine) -> tuple[int, dict[str, Any]]:
    """Return the strategy's generation and who serves whom."""
    with reading(engine) as session:
        return versions.get_strategy(session, "fib_rsi").generation, strategy_state(session, "fib_rsi")


@pytest.mark.full
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_trail_tells_all_that_was_done(engine: Engine, seed: int) -> None:
    for version, status in VERSIONS.items():
        put_version(engine, version, Status(status), recorded=True)
    walk = Walk(engine, seed)
    stood: list[tuple[datetime, dict[str, Any]]] = []

    for _ in range(STEPS):
        generation, before = picture(engine)
        refused = False
        try:
            walk.step()
        except RolloutError:
            refused = True
        position, after = picture(engine)
        assert position <= generation + (not refused), "one event a change, and none of what was refused"
        assert position > generation or after == before, "no change without its event"
        if position > generation:
            with reading(engine) as session:
                (event,) = audit.events(session, "fib_rsi", limit=1)
            left = {fact: event.after[fact] for fact in after}
            assert (event.before, left, event.at, event.position) == (before, after, walk.now, position)
        stood.append((walk.now, after))

    with reading(engine) as session:
        every = rollouts.list_rollouts(session, "fib_rsi")
        percents = {each.id: [stage.percent for stage in read_plan(each.plan).stages] for each in every}
        statuses = {each.version: each.status for each in versions.list_versions(session, "fib_rsi")}
        events = audit.events(session, "fib_rsi")
    replay = Replay(dict(VERSIONS), percents, {each.id for each in every if each.plan["watch"] == "off"})
    seen = set()
    for event in events[len(VERSIONS) :]:
        assert replay.standing == event.before, event.action
        replay.apply(event)
        assert replay.standing.items() <= event.after.items(), event.action
        seen.add(event.action)
    assert replay.statuses == statuses
    assert replay.standing == picture(engine)[1]
    assert replay.ended == {each.id: each.state for each in every if each.ended_at is not None}
    assert len(seen) >= 12, f"a walk that tries only {sorted(seen)} promises little"
    assert verify_trail(engine).holds
    for moment, facts in random.Random(seed).sample(stood[STEPS // 2 :], 20):
        found = state_at(engine, "fib_rsi", moment)
        assert {fact: getattr(found, fact) for fact in facts} == facts
        assert all(event.at <= moment and event.after[fact] == facts[fact] for fact, event in found.made_by.items())
