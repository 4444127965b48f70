"""The course of the demo on a simulated clock. Each step calls the same services as the flows."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Engine

from strategy_core.domain.audit import Actor, Command
from strategy_core.domain.comparison import Comparison
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan
from strategy_core.domain.preview import Preview
from strategy_core.domain.ramp import ENDED, State
from strategy_core.isolation.pool import WorkerPool
from strategy_core.market.source import CandleSource
from strategy_core.services import queries
from strategy_core.services.compare import compare_versions, last_days
from strategy_core.services.rollback import roll_back
from strategy_core.services.rollouts import Choice, approve, decide_rollout, preview_plan, start_rollout
from strategy_core.services.score import score_outcomes
from strategy_core.services.shadow import run_shadow
from strategy_core.services.tick import tick
from strategy_core.services.versions import register_version

STRATEGY = "fib_rsi"
OWNER = Actor("owner", source="demo")
SHADOW_STEP = timedelta(days=5)  # long steps before a rollout: runs catch up on missed candles
REST_STEP = timedelta(days=40)
OnProgress = Callable[[str, datetime], None]


@dataclass(frozen=True, slots=True)
class Chapter:
    """One version of the demo.

    Attributes:
        config: returns its configuration, given the time of registration.
        shadow_days: days in shadow before its rollout, 0 for the version that is active from the start.
    """

    version: str
    entry_point: str
    config: Callable[[datetime], dict[str, Any]]
    shadow_days: int = 0


@dataclass(slots=True)
class Story:
    """A simulated owner, platform and clock over one database and one source of candles.

    Args:
        ends_at: close of the last candle. The demo stops there, also with an open rollout.
        step: simulated time between two ticks of a rollout.
        extensions: how often the owner extends a stage before rolling back.
        on_progress: called with a description of each step and its simulated time.
    """

    engine: Engine
    source: CandleSource
    now: datetime
    ends_at: datetime
    workers: WorkerPool
    step: timedelta
    extensions: int
    on_progress: OnProgress
    plan: Plan = field(default_factory=Plan)
    comparisons: list[tuple[str, str, float, Comparison]] = field(default_factory=list)
    previews: list[tuple[str, Preview]] = field(default_factory=list)

    def run(self, first: Chapter, challengers: list[Chapter]) -> None:
        """Activate *first*, then take each challenger from registration to the end of its rollout."""
        self._register(first, Status.ACTIVE)
        for chapter in challengers:
            if self.now >= self.ends_at:
                return
            self._register(chapter, Status.SHADOW)
            self._shadow(chapter)
            self._compare(chapter)
            self._ramp(chapter)

    def finish(self) -> None:
        """Run the remaining versions on the rest of the candles."""
        while self.now < self.ends_at:
            self._advance(REST_STEP)
            self.on_progress("remaining candles in shadow", self.now)

    def _register(self, chapter: Chapter, status: Status) -> None:
        self.on_progress(f"registering {chapter.version}", self.now)
        register_version(
            self.engine,
            Command(OWNER, self.now),
            self.source,
            strategy_name=STRATEGY,
            version=chapter.version,
            config=chapter.config(self.now),
            entry_point=chapter.entry_point,
            symbols=self.source.symbols(),
            timeframe=self.source.timeframe,
            status=status,
        )

    def _shadow(self, chapter: Chapter) -> None:
        until = min(self.now + timedelta(days=chapter.shadow_days), self.ends_at)
        while self.now < until:
            self._advance(min(SHADOW_STEP, until - self.now))
            self.on_progress(f"{chapter.version} in shadow", self.now)

    def _compare(self, chapter: Chapter) -> None:
        active = queries.get_active_version(self.engine, STRATEGY).version
        days = float(chapter.shadow_days)
        found = compare_versions(
            self.engine,
            strategy_name=STRATEGY,
            shadow_version=chapter.version,
            over=last_days(days, self.now),
            source=self.source,
        )
        self.comparisons.append((chapter.version, active, days, found))

    def _ramp(self, chapter: Chapter) -> None:
        previewed = preview_plan(
            self.engine, strategy_name=STRATEGY, version=chapter.version, plan=self.plan, now=self.now
        )
        self.previews.append((chapter.version, previewed))
        rollout = start_rollout(
            self.engine, Command(OWNER, self.now), strategy_name=STRATEGY, version=chapter.version, plan=self.plan
        )
        extended = 0
        while self.now < self.ends_at:
            self._advance(self.step)
            tick(self.engine, self.source, now=self.now)
            rollout = queries.find_rollout(self.engine, rollout.id)
            stage = self.plan.stages[rollout.stage_index]
            bakes = "baking" if rollout.promoted_at else f"at {stage.percent:g} %"
            self.on_progress(f"{chapter.version} {rollout.state} {bakes}", self.now)
            if rollout.state in ENDED:
                return
            if rollout.state == State.AWAITING_APPROVAL:
                approve(self.engine, Command(OWNER, self.now, "every gate passed"), strategy_name=STRATEGY)
            if rollout.state == State.AWAITING_DECISION:
                extended += 1
                self._answer(extended)

    def _answer(self, asked: int) -> None:
        if asked > self.extensions:
            reason = f"no clear result after {asked} times the stage's time limit"
            roll_back(self.engine, Command(OWNER, self.now, reason), strategy_name=STRATEGY)
        else:
            decide_rollout(
                self.engine,
                Command(OWNER, self.now, f"more evidence, extension {asked}"),
                strategy_name=STRATEGY,
                choice=Choice.EXTEND,
            )

    def _advance(self, span: timedelta) -> None:
        """Advance the clock, log decisions on closed candles, and score closed trades."""
        self.now = min(self.now + span, self.ends_at)
        run_shadow(self.engine, self.source, self.workers, now=self.now)
        score_outcomes(self.engine, self.source, now=self.now)
