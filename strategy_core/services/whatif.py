"""What a rollout would have done on past candles: its ticks, one by one, on replayed decisions."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from operator import itemgetter
from typing import Any

import numpy as np
from sqlalchemy import Engine
from sqlmodel import Session

from strategy_core.domain.arrays import FloatArray, IntArray
from strategy_core.domain.calibration import apply_step, simulable
from strategy_core.domain.candles import timeframe_delta
from strategy_core.domain.errors import InvalidSetting, NotReplayed
from strategy_core.domain.evidence import Evidence, Record
from strategy_core.domain.gates.base import Finding, Verdict, format_duration, format_r
from strategy_core.domain.gates.on_slots import Harm, NotWorse
from strategy_core.domain.pair_noise import History
from strategy_core.domain.performance import deepest_so_far, drawdown, equity
from strategy_core.domain.plan import Plan
from strategy_core.domain.preview import harm_in_shadow, in_sample_note, replayed_part
from strategy_core.domain.ramp import Position, Ruling, State, Step, decide, judge_all
from strategy_core.domain.release_times import ReleaseTimes
from strategy_core.domain.scoring import ScoringRule
from strategy_core.domain.slot_ledger import SlotLedger, add_slots, open_ledger
from strategy_core.services.compare import Period, period
from strategy_core.services.evidence import (
    LOOK_BACK,
    Shadow,
    read_replayed,
    replayed_by_both,
    shared_symbols,
    trained_until,
)
from strategy_core.services.history import MOST_POINTS
from strategy_core.services.release_times import MARKETS
from strategy_core.services.reports import HarmPath
from strategy_core.services.rollouts import check_comparable, check_not_active
from strategy_core.store import evidence, replays, versions
from strategy_core.store.engine import reading
from strategy_core.store.tables import REPLAYED, StrategyVersion

Seen = Callable[[datetime, Ruling, Sequence[Finding]], None]


@dataclass(slots=True)
class StageOutcome:
    """One stage of the rollout, or its bake, as it would have gone.

    Attributes:
        name: the percent of users, or `bake`.
        left: None if the period ends before.
        step, reason: what ended it, or what it waits for at the end of the period.
        slots: that closed in it, and what the canary made in them less the active version, in R.
        users_r: the same, on average over all users: only those on the canary had it.
    """

    name: str
    percent: float
    entered: datetime
    left: datetime | None = None
    step: str = ""
    reason: str = ""
    slots: int = 0
    canary_r: float = 0.0
    users_r: float = 0.0


@dataclass(frozen=True, slots=True)
class Earned:
    """Cumulative R of the slots that have closed, less that of the active version on the same slots.

    Attributes:
        at: the start, then moments at which slots closed, ascending. At most MOST_POINTS.
        users: on average over all users. Those not on the canary count with 0.
        canary: of a user who was on the canary from the start.
    """

    at: Sequence[datetime]
    users: Sequence[float]
    canary: Sequence[float]


@dataclass(frozen=True, slots=True)
class BoundPath:
    """The difference in R per slot (canary - active version) over time, as the gate `not_worse` measures it.

    Attributes:
        at: moments at which slots closed or a stage began, ascending. At most MOST_POINTS.
        mean, low: the difference so far, and its lower bound. Where the gate counts slots in shadow, they are in both.
        limit: of the stage: the stage can be left while *low* is above it.
        with_shadow: whether slots in shadow count too.
    """

    at: Sequence[datetime]
    mean: Sequence[float]
    low: Sequence[float]
    limit: Sequence[float]
    with_shadow: bool


@dataclass(slots=True)
class WhatIf:
    """How a rollout would have gone.

    Attributes:
        active: the version that it is compared with.
        ended: `completed`, `rolled_back`, or `running` if the period ends before.
        shadow_slots, shadow_days: replayed before the start, on which the gates' noise was measured. At most 180 days.
        refused: why the start would have been refused, or "". The ramp is shown all the same.
        left_out: gates of the plan that have no facts in the past.
        unseen: symbols of the active version alone, which a replay leaves out.
        ticks: one a candle.
        bound, harm: of the plan's gates `not_worse` and `harm`. None without the gate or without a slot.
        trained_until: end of the later training of the two versions, if they say so.
    """

    strategy_name: str
    version: str
    active: str
    start: datetime
    end: datetime
    ended: str = "running"
    shadow_slots: int = 0
    shadow_days: float = 0.0
    refused: str = ""
    left_out: Sequence[str] = ()
    unseen: Sequence[str] = ()
    ticks: int = 0
    trained_until: datetime | None = None
    stages: list[StageOutcome] = field(default_factory=list)
    earned: Earned = Earned((), (), ())
    bound: BoundPath | None = None
    harm: HarmPath | None = None

    @property
    def until(self) -> datetime:
        """When it ended, or the end of the period."""
        return self.stages[-1].left or self.end

    @property
    def verdict(self) -> str:
        """How it would have gone, in one sentence."""
        last = self.stages[-1]
        ends = {
            "rolled_back": f"would have been rolled back on {self.until:%Y-%m-%d %H:%M} UTC at {last.name}",
            "completed": f"would have replaced {self.active} for all users on {self.until:%Y-%m-%d %H:%M} UTC",
            "running": f"would still be at {last.name} on {self.until:%Y-%m-%d %H:%M} UTC",
        }
        lasted = format_duration(self.until - self.start)
        return f"{self.strategy_name} {self.version} {ends[self.ended]}, {lasted} after its start: {last.reason}"

    def days_in(self, stage: StageOutcome) -> float:
        """Return how long a stage lasted, in days, up to the end of the period if it did not end."""
        return ((stage.left or self.end) - stage.entered) / timedelta(days=1)

    @property
    def users_r(self) -> float:
        """R that users had on average, less what the active version alone would have given them."""
        return sum(stage.users_r for stage in self.stages)

    @property
    def in_sample(self) -> str:
        """Which of its candles a version was trained on, or ""."""
        if self.trained_until is None or self.start >= self.trained_until:
            return ""
        return f"in sample: a version was trained on candles until {self.trained_until:%Y-%m-%d %H:%M} UTC"

    @property
    def limits(self) -> list[str]:
        """What it is based on and what it leaves out, a line each."""
        counted = replayed_part(self.shadow_slots, self.shadow_slots, self.shadow_days, self.shadow_days)
        lines = [
            f"{counted}. On these the noise is measured, and the gates count them like slots in shadow. Live slots are "
            "not counted"
        ]
        if self.trained_until is not None and self.start - LOOK_BACK < self.trained_until <= self.start:
            lines.append(in_sample_note(self.trained_until))
        if self.left_out:
            lines.append(f"gates without data in the past, left out: {', '.join(self.left_out)}")
        if self.unseen:
            lines.append(
                f"not replayed, so not in the drawdown of {self.active}: its trades on {', '.join(self.unseen)}"
            )
        lines.append("owners approve at once, and extend a stage without an answer")
        return lines

    @property
    def notes(self) -> list[str]:
        """How it went, and what it is based on, a line each."""
        notes = [self.verdict, f"users had {format_r(self.users_r)} on average, against the active version alone"]
        if self.refused:
            notes.append(f"warning: the start would have been refused: {self.refused}")
        notes.append(f"{self.ticks:,} ticks, one a candle")
        if self.in_sample:
            notes.append(f"warning: {self.in_sample}")
        return [*notes, *self.limits]


@dataclass(frozen=True, slots=True)
class _Past:
    """What two versions did on the candles from the start on, from replays. Times in seconds since 1970, ascending.

    Attributes:
        closes: of the candles that both have decided. Each is a tick.
        slots: closed slots in the order in which they are booked.
        canary_decided, active_decided: closes of the candles that each version has decided, by symbol.
        opened, closed: of each signal on which both decided, the close of its candle and of its trade.
        marked: closes of the candles with marks, and the largest drawdown of both arms up to each.
        canary_falls: as in `Evidence`, over the whole period.
    """

    closes: IntArray
    canary_decided: IntArray
    active_decided: IntArray
    slots: Sequence[evidence.ClosedSlot]
    opened: IntArray
    closed: IntArray
    marked: IntArray
    canary_drawdown: FloatArray
    active_drawdown: FloatArray
    canary_falls: Sequence[tuple[datetime, float]]


def what_if(
    engine: Engine,
    *,
    strategy_name: str,
    version: str,
    plan: Plan,
    start: datetime | None = None,
    end: datetime | None = None,
    most_candles: int | None = None,
    seen: Seen = lambda *_: None,
) -> WhatIf:
    """Return how a rollout of *version* would have gone on the replayed candles that opened in [start, end).

    It ticks once a candle, as a rollout does whose candles are decided and scored at once. Owners approve at once and
    extend stages without an answer. The plan's release windows hold stages, and freezes do not. Nothing is written. The
    noise of the pair is measured on its replays of the 180 days before *start*.

    Args:
        start: by default 180 days after the first candle that both have replayed and on which neither was trained, or
            that candle if there are fewer. If all were trained on, they count.
        end: by default the end of what both have replayed.
        most_candles: longest period, in candles of each symbol. The default is any.
        seen: called with the time, the ruling and the findings of each tick.

    Raises:
        UnknownStrategy, UnknownVersion, NoActiveVersion, Incomparable, InvalidPeriod, UnarmedPlan, InvalidPlan
        InvalidSetting: the period has more than *most_candles*.
        NotReplayed: both versions must have been replayed in the period.
    """
    plan, left_out = simulable(plan)
    with reading(engine) as session:
        chosen = versions.get_version(session, strategy_name, version)
        active = versions.active_version(session, strategy_name)
        check_not_active(chosen, active)
        check_comparable(chosen, active)
        rule = ScoringRule.model_validate(versions.get_strategy(session, strategy_name).scoring)
        symbols = shared_symbols(chosen, active)
        over = _period(session, chosen, active, start, end)
        delta = timeframe_delta(chosen.timeframe)
        _check_length(over, delta, most_candles)
        shadow = read_replayed(session, chosen, active, over.start)
        past = _read_past(session, chosen, active, over.start, over.end, rule.risk_fraction)
    found = WhatIf(strategy_name, version, active.version, over.start, over.end, left_out=left_out)
    found.trained_until = trained_until(chosen, active)
    found.unseen = sorted(set(active.symbols) - set(symbols))
    found.shadow_slots, found.shadow_days = len(shadow.slots), shadow.days
    found.refused = _refused(plan, shadow, rule.risk_fraction)
    return _run(found, plan, shadow.history, past, symbols, rule.risk_fraction, delta, seen)


def _check_length(over: Period, delta: timedelta, most: int | None) -> None:
    if most is not None and over.end - over.start > most * delta:
        longest = f"at most {most:,} candles ({format_duration(most * delta)}). The command whatif takes longer ones"
        raise InvalidSetting("period", f"{over.start:%Y-%m-%d %H:%M} to {over.end:%Y-%m-%d %H:%M}", longest)


def _period(
    session: Session, version: StrategyVersion, active: StrategyVersion, start: datetime | None, end: datetime | None
) -> Period:
    if start is not None and end is not None:
        return period(start, end)
    both = replayed_by_both(session, version, active)
    if both is None:
        name = version.strategy_name
        raise NotReplayed(name, version.version, f"rollout replay {name} {version.version} --from TIME --to TIME")
    first, newest = both
    end = newest + timeframe_delta(version.timeframe) if end is None else end
    if start is None:
        trained = trained_until(version, active)
        first = trained if trained is not None and first < trained < end else first
        start = first + LOOK_BACK if first + LOOK_BACK < end else first
    return period(start, end)


def _refused(plan: Plan, shadow: Shadow, risk_fraction: float) -> str:
    """Return why a start on that history would have been refused, or an empty text."""
    finding = harm_in_shadow(plan, shadow.slots, shadow.history, risk_fraction)
    return finding.reason if finding is not None and finding.verdict is Verdict.FAIL else ""


def _read_past(
    session: Session,
    version: StrategyVersion,
    active: StrategyVersion,
    start: datetime,
    end: datetime,
    risk_fraction: float,
) -> _Past:
    name, delta = version.strategy_name, timeframe_delta(version.timeframe)
    symbols = shared_symbols(version, active)
    ours_on, theirs_on = (
        replays.read_candles(session, name, each.version, symbols, start, end) for each in (version, active)
    )
    both = ours_on & theirs_on
    if not both:
        command = f"rollout replay {name} {version.version} --from {start:%Y-%m-%d} --to {end:%Y-%m-%d}"
        raise NotReplayed(name, version.version, command)
    over: dict[str, Any] = {"start": start, "end": end, "tables": REPLAYED}
    closed, _ = evidence.read_slots(session, name, version.version, active.version, **over)
    signals = [
        each
        for one in (version, active)
        for each in replays.read_trades(session, name, one.version, symbols, start, end)
        if (each.symbol, each.timestamp) in both
    ]
    never = int((end + LOOK_BACK).timestamp())
    ours, theirs = (replays.marks_by_candle(session, name, each.version, start, end) for each in (version, active))
    marked = sorted(ours.keys() | theirs.keys())
    canary = np.array([ours.get(at, 0.0) for at in marked], np.float64)
    falls = zip(*(each.tolist() for each in deepest_so_far(canary, risk_fraction)), strict=True)
    return _Past(
        closes=np.unique(_seconds([at + delta for _, at in both])),
        canary_decided=np.sort(_seconds([at + delta for _, at in ours_on])),
        active_decided=np.sort(_seconds([at + delta for _, at in theirs_on])),
        slots=closed,
        opened=np.sort(_seconds([each.timestamp + delta for each in signals])),
        closed=np.sort(np.array([int(each.closed_at.timestamp()) if each.closed_at else never for each in signals])),
        marked=_seconds([at + delta for at in marked]),
        canary_drawdown=_deepest(canary, risk_fraction),
        active_drawdown=_deepest(np.array([theirs.get(at, 0.0) for at in marked], np.float64), risk_fraction),
        canary_falls=[(marked[at] + delta, fall) for at, fall in falls],
    )


def _deepest(marks: FloatArray, risk_fraction: float) -> FloatArray:
    """Return the largest drawdown up to each candle."""
    deepest: FloatArray = np.maximum.accumulate(drawdown(equity(marks, risk_fraction)))
    return deepest


def _seconds(moments: Sequence[datetime]) -> IntArray:
    return np.array([int(moment.timestamp()) for moment in moments], np.int64)


def _run(
    found: WhatIf,
    plan: Plan,
    history: History,
    past: _Past,
    symbols: Sequence[str],
    risk_fraction: float,
    delta: timedelta,
    seen: Seen,
) -> WhatIf:
    start = found.start
    at = Position(State.RUNNING, 0, start, start)
    stage = StageOutcome(f"{plan.stages[0].percent:g} %", plan.stages[0].percent, start)
    found.stages.append(stage)
    shares = [(start, plan.stages[0].percent)]
    book: SlotLedger = open_ledger(history)
    curves = _Curves(plan, history, start)
    booked = 0
    slot_ends = [one.closed_at for one in past.slots]
    for number, second in enumerate(past.closes.tolist(), 1):
        now = datetime.fromtimestamp(second, UTC)
        first = booked
        while booked < len(slot_ends) and slot_ends[booked] <= now:
            booked += 1
        new = past.slots[first:booked]
        book, _ = add_slots(book, evidence.as_slots(new, symbols), history)
        _count(stage, new, shares, delta)
        facts = _evidence(past, book, history, at, start, now, delta, risk_fraction)
        findings = judge_all(plan.gates, facts, plan.stages[at.stage_index].margins)
        if new or stage.entered == now:
            curves.note(now, found.stages, book, at.stage_index, findings)
        ruling = decide(plan, at, findings, now, ReleaseTimes(is_open=MARKETS))
        seen(now, ruling, findings)
        found.ticks, stage.step, stage.reason = number, ruling.step.value, ruling.reason
        if ruling.step in (Step.ROLL_BACK, Step.COMPLETE):
            stage.left = now
            found.ended = "rolled_back" if ruling.step is Step.ROLL_BACK else "completed"
            break
        if ruling.step in (Step.ADVANCE, Step.PROMOTE):
            stage.left = now
            percent = 100.0 if ruling.step is Step.PROMOTE else plan.stages[at.stage_index + 1].percent
            stage = StageOutcome("bake" if ruling.step is Step.PROMOTE else f"{percent:g} %", percent, now)
            found.stages.append(stage)
            shares.append((now, percent))
        at = apply_step(at, ruling.step, now)
    found.earned, found.bound, found.harm = curves.earned, curves.bound, curves.harm
    return found


class _Curves:
    """The values of the pictures, collected tick by tick."""

    def __init__(self, plan: Plan, history: History, start: datetime) -> None:
        self._plan, self._history = plan, history
        self._not_worse = next((gate for gate in plan.gates if isinstance(gate, NotWorse)), None)
        self._harm = next((gate for gate in plan.gates if isinstance(gate, Harm)), None)
        self._with_shadow = False
        self._earned: list[tuple[datetime, float, float]] = [(start, 0.0, 0.0)]
        self._bounds: list[tuple[datetime, float, float, float]] = []
        self._log_e: list[tuple[datetime, float]] = []

    def note(
        self,
        now: datetime,
        stages: Sequence[StageOutcome],
        book: SlotLedger,
        stage_index: int,
        findings: Sequence[Finding],
    ) -> None:
        users, canary = (sum(getattr(each, name) for each in stages) for name in ("users_r", "canary_r"))
        self._earned.append((now, users, canary))
        if self._harm is not None:
            self._log_e += [
                (now, each.value) for each in findings if each.gate == self._harm.name and each.value is not None
            ]
        if self._not_worse is None or not book.totals.slots:
            return
        margins = self._plan.stages[stage_index].margins
        measured = self._not_worse.bound(book.totals, self._history, margins)
        self._with_shadow |= self._not_worse.needs_shadow(self._history, margins.pnl(self._history))
        if measured.value is not None and measured.low is not None and measured.limit is not None:
            self._bounds.append((now, measured.value, measured.low, measured.limit))

    @property
    def earned(self) -> Earned:
        return Earned(*zip(*_thinned(self._earned), strict=True))

    @property
    def bound(self) -> BoundPath | None:
        if not self._bounds:
            return None
        at, mean, low, limit = zip(*_thinned(self._bounds), strict=True)
        return BoundPath(at, mean, low, limit, self._with_shadow)

    @property
    def harm(self) -> HarmPath | None:
        if self._harm is None or not self._log_e:
            return None
        step = -(-len(self._log_e) // MOST_POINTS)  # the highest of each step, so that no peak is lost
        chunks = [self._log_e[first : first + step] for first in range(0, len(self._log_e), step)]
        at, log_e = zip(*((chunk[-1][0], max(value for _, value in chunk)) for chunk in chunks), strict=True)
        return HarmPath.of(self._harm, at, log_e)


def _thinned(points: Sequence[Any]) -> Sequence[Any]:
    """Return at most MOST_POINTS of the points, evenly spaced, the first and the last among them."""
    if len(points) <= MOST_POINTS:
        return points
    last = len(points) - 1
    return [points[round(number * last / (MOST_POINTS - 1))] for number in range(MOST_POINTS)]


def _count(
    stage: StageOutcome,
    new: Sequence[evidence.ClosedSlot],
    shares: Sequence[tuple[datetime, float]],
    delta: timedelta,
) -> None:
    """Add slots to the stage in which they closed. Users had them by the share at the close of the signal's candle."""
    for one in new:
        percent = next(share for since, share in reversed(shares) if since <= max(one.timestamp + delta, shares[0][0]))
        stage.slots += 1
        stage.canary_r += one.canary_r - one.active_r
        stage.users_r += percent / 100 * (one.canary_r - one.active_r)


def _evidence(
    past: _Past,
    book: SlotLedger,
    history: History,
    at: Position,
    start: datetime,
    now: datetime,
    delta: timedelta,
    risk_fraction: float,
) -> Evidence:
    second = int(now.timestamp())
    marked = int(past.marked.searchsorted(second, side="right"))
    pending = int(past.opened.searchsorted(second, side="right") - past.closed.searchsorted(second, side="right"))
    ours, theirs = (int(each.searchsorted(second, side="right")) for each in (past.canary_decided, past.active_decided))
    return Evidence(
        now=now,
        started_at=start,
        stage_entered_at=at.stage_entered_at,
        totals=book.totals,
        history=history,
        pending_slots=pending,
        canary=Record(decided=ours),
        active=Record(decided=theirs),
        canary_drawdown=float(past.canary_drawdown[marked - 1]) if marked else None,
        active_drawdown=float(past.active_drawdown[marked - 1]) if marked else None,
        risk_fraction=risk_fraction,
        newest_candle=now - delta,
        due_candle=now - delta,
        canary_falls=past.canary_falls[: bisect_right(past.canary_falls, now, key=itemgetter(0))],
    )
