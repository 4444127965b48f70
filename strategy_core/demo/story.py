"""The course of the demo on a simulated clock. Each step calls the same services as the flows."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Engine

from strategy_core.demo.copy_trading import CopyTrading
from strategy_core.domain.audit import Actor, Command
from strategy_core.domain.candles import timeframe_delta
from strategy_core.domain.capital import Reach
from strategy_core.domain.comparison import Comparison
from strategy_core.domain.errors import HarmfulInShadow, TrainingFailed
from strategy_core.domain.gates.base import Verdict
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan
from strategy_core.domain.ramp import ENDED, State
from strategy_core.isolation.pool import WorkerPool
from strategy_core.market.source import CandleSource
from strategy_core.report.owner import owner_report_page
from strategy_core.services import queries
from strategy_core.services.compare import compare_all
from strategy_core.services.owner_reports import write_reports
from strategy_core.services.positions import list_draining
from strategy_core.services.queries import Scope
from strategy_core.services.rollback import roll_back
from strategy_core.services.rollouts import Choice, approve, decide_rollout, start_rollout
from strategy_core.services.score import score_outcomes
from strategy_core.services.shadow import run_shadow
from strategy_core.services.tick import tick
from strategy_core.services.versions import register_version, retire_version
from strategy_core.store.tables import Rollout

OWNER = Actor("owner", source="demo")
HOUR = timedelta(hours=1)
SHADOW_STEP = 14 * 24  # all in candles, weekends included. Long steps before a rollout: runs catch up on missed candles
FIRST_STEP, STEP = 12, 48  # between two ticks of a rollout, in its first week and after that
FIRST_WEEK = 7 * 24
DRAIN_STEP, LONGEST_DRAIN = 3, 240  # between two looks at a version that drains, and in all
EXTENSIONS = 2  # of a stage, before the owner rolls back
OnProgress = Callable[[str, datetime], None]


@dataclass(frozen=True, slots=True)
class Chapter:
    """One version of the demo.

    Attributes:
        strategy: its name.
        about: what it is, in a few words.
        config: returns its configuration, given the time of registration.
        shadow: candles, weekends included, in shadow before its rollout. The first version needs none.
    """

    strategy: str
    version: str
    about: str
    entry_point: str
    config: Callable[[datetime], dict[str, Any]]
    shadow: int = 0

    @property
    def first(self) -> bool:
        return self.shadow == 0


@dataclass(frozen=True, slots=True)
class Bound:
    """The difference in R per slot (version - control) at one time, as the gate `not_worse` measured it.

    Attributes:
        percent: of users at that time.
        mean, low: the difference so far, and its lower bound.
        limit: of the stage: the stage can be left while *low* is above it.
    """

    at: datetime
    percent: float
    slots: int
    mean: float
    low: float
    limit: float


@dataclass(slots=True)
class Story:
    """A simulated platform and clock over one database and one source of candles, and the owners of its strategies.

    Attributes:
        ends_at: close of the last candle. The demo stops there, also with an open rollout.
        platform: whose users copy the strategies.
        on_progress: called with a description of each step and its simulated time.
        bounds: of each rollout, at each tick with a difference.
        frozen: when the stage of a rollout was first frozen, because decisions were unlike those in shadow.
        refused: why a version was not trained, or its start was refused, by strategy and version.
        reached: the users of each canary and their capital, by strategy, version and the percent of its stage.
    """

    engine: Engine
    source: CandleSource
    symbols: Sequence[str]
    now: datetime
    ends_at: datetime
    workers: WorkerPool
    plan: Plan
    platform: CopyTrading
    on_progress: OnProgress
    comparisons: list[tuple[str, str, str, float, Comparison]] = field(default_factory=list)
    bounds: dict[UUID, list[Bound]] = field(default_factory=dict)
    frozen: dict[UUID, datetime] = field(default_factory=dict)
    refused: dict[tuple[str, str], str] = field(default_factory=dict)
    reached: dict[tuple[str, str, float], Reach] = field(default_factory=dict)

    def run(self, *owners: Iterator[datetime]) -> None:
        """Let each owner act whenever the time comes that it has named, until all are done or the candles end."""
        waiting = [(self.now, owner) for owner in owners]
        while waiting:
            until = min(at for at, _ in waiting)
            if until > self.now:
                if self.now >= self.ends_at:
                    return
                self._advance(min(until, self.ends_at))
            awake = [(at, owner) for at, owner in waiting if at <= self.now]
            waiting = [each for each in waiting if each not in awake]
            waiting += [(at, owner) for _, owner in awake if (at := next(owner, None)) is not None]

    def owner(self, first: Chapter, challengers: Sequence[Chapter]) -> Iterator[datetime]:
        """Activate *first*, then take each challenger from registration to the end of its rollout.

        Yields the next time at which the owner acts.
        """
        if not self._register(first, Status.ACTIVE):
            return
        for chapter in challengers:
            if not self._register(chapter, Status.SHADOW):
                continue
            registered = self.now
            for candles in range(0, chapter.shadow, SHADOW_STEP):
                yield registered + self._candles(min(candles + SHADOW_STEP, chapter.shadow))
            self._compare(chapter)
            yield from self._ramp(chapter)
            self._report()
            yield from self._drain(chapter)

    def _register(self, chapter: Chapter, status: Status) -> bool:
        self.on_progress(f"{chapter.strategy} {chapter.version}: registered", self.now)
        try:
            config = chapter.config(self.now)
        except TrainingFailed as error:
            self.refused[chapter.strategy, chapter.version] = str(error)
            return False
        register_version(
            self.engine,
            Command(OWNER, self.now),
            self.source,
            strategy_name=chapter.strategy,
            version=chapter.version,
            config=config,
            entry_point=chapter.entry_point,
            symbols=self.symbols,
            timeframe=self.source.timeframe,
            status=status,
        )
        return True

    def _compare(self, chapter: Chapter) -> None:
        days = self._candles(chapter.shadow) / timedelta(days=1)
        (found,) = (
            each
            for each in compare_all(self.engine, self.source, now=self.now, days=days)
            if (each.strategy_name, each.shadow_version) == (chapter.strategy, chapter.version)
        )
        measured = Comparison.model_validate(found.report)
        self.comparisons.append((chapter.strategy, chapter.version, found.active_version, days, measured))
        self._report()

    def _report(self) -> None:
        """Write the reports that are due, as the schedule does every night."""
        write_reports(self.engine, owner_report_page, now=self.now)

    def _ramp(self, chapter: Chapter) -> Iterator[datetime]:
        name, version = chapter.strategy, chapter.version
        try:
            rollout = start_rollout(
                self.engine, Command(OWNER, self.now), strategy_name=name, version=version, plan=self.plan
            )
        except HarmfulInShadow as error:
            self.refused[name, version] = f"its start was refused, because in shadow {error.reason}"
            reason = "its start was refused: it has done harm in shadow"
            retire_version(self.engine, Command(OWNER, self.now, reason), strategy_name=name, version=version)
            return
        self._note_reach()
        extended = 0
        while rollout.state not in ENDED:
            new = self.now < rollout.started_at + self._candles(FIRST_WEEK)
            yield self.now + self._candles(FIRST_STEP if new else STEP)
            rollout = queries.find_rollout(self.engine, rollout.id)
            stage = self.plan.stages[rollout.stage_index]
            where = "in use by all" if rollout.promoted_at else f"at {stage.percent:g} % of users"
            self.on_progress(f"{name} {chapter.version}: {where}", self.now)
            self._note_verdicts(rollout)
            if rollout.state in ENDED:
                return
            if rollout.state == State.AWAITING_APPROVAL:
                approve(self.engine, Command(OWNER, self.now, "every gate passed"), strategy_name=name)
            elif rollout.state == State.AWAITING_DECISION:
                extended += 1
                self._answer(name, extended)
            rollout = queries.find_rollout(self.engine, rollout.id)

    def _drain(self, chapter: Chapter) -> Iterator[datetime]:
        """Wait until the platform has closed the positions of versions that serve no users any more."""
        name, ended = chapter.strategy, self.now
        while self.now < ended + self._candles(LONGEST_DRAIN):
            held = list_draining(self.engine, name, now=self.now)
            if not any(each.left for each in held):
                return
            self.on_progress(f"{name} {held[-1]}", self.now)
            yield self.now + self._candles(DRAIN_STEP)

    def _note_reach(self) -> None:
        """Note the users of each canary and their capital, once a stage."""
        for canary, _, reach, _ in queries.list_canaries(self.engine, Scope(), now=self.now):
            self.reached.setdefault((canary.strategy_name, canary.version, reach.asked_bp / 100), reach)

    def _note_verdicts(self, rollout: Rollout) -> None:
        """Note the difference so far, and whether decisions are unlike those in shadow."""
        verdicts = queries.last_verdicts(self.engine, rollout.id)
        money, unlike = verdicts.get("not_worse"), verdicts.get("divergence")
        bounds = self.bounds.setdefault(rollout.id, [])
        if money is not None and money.low is not None and (not bounds or bounds[-1].at < money.ticked_at):
            percent = self.plan.stages[money.stage_index].percent
            mean, limit = money.value or 0.0, money.limit or 0.0
            bounds.append(Bound(money.ticked_at, percent, money.n, mean, money.low, limit))
        if unlike is not None and unlike.verdict == Verdict.INCONCLUSIVE:
            self.frozen.setdefault(rollout.id, unlike.ticked_at)

    def _answer(self, name: str, asked: int) -> None:
        if asked > EXTENSIONS:
            reason = f"no clear result after {asked} times the stage's time limit"
            roll_back(self.engine, Command(OWNER, self.now, reason), strategy_name=name)
        else:
            decide_rollout(
                self.engine,
                Command(OWNER, self.now, f"more evidence, extension {asked}"),
                strategy_name=name,
                choice=Choice.EXTEND,
            )

    def _advance(self, until: datetime) -> None:
        """Advance the clock, log decisions on closed candles, score them, report users' trades, and tick."""
        self.now = until
        routing = self.platform.read_routing(until)
        run_shadow(self.engine, self.source, self.workers, now=self.now, catch_up=2 * SHADOW_STEP)
        score_outcomes(self.engine, self.source, now=self.now)
        self.platform.trade(routing, self.now)
        tick(self.engine, self.source, now=self.now)
        self._note_reach()

    def _candles(self, number: int) -> timedelta:
        return number * timeframe_delta(self.source.timeframe)
