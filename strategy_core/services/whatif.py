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
from strategy_core.domain.errors import NotReplayed
from strategy_core.domain.evidence import Evidence, Record
from strategy_core.domain.gates.base import Finding, Verdict
from strategy_core.domain.pair_noise import History, measure
from strategy_core.domain.performance import deepest_so_far, drawdown, equity
from strategy_core.domain.plan import Plan
from strategy_core.domain.preview import harm_in_shadow
from strategy_core.domain.ramp import Position, Ruling, State, Step, decide, judge_all
from strategy_core.domain.scoring import ScoringRule
from strategy_core.domain.slot_ledger import SlotLedger, add_slots, open_ledger
from strategy_core.services.compare import Period, period
from strategy_core.services.evidence import LOOK_BACK, shared_symbols, trained_until
from strategy_core.services.rollouts import check_comparable
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


@dataclass(slots=True)
class WhatIf:
    """How a rollout would have gone.

    Attributes:
        ended: `completed`, `rolled_back`, or `running` if the period ends before.
        shadow_slots, shadow_days: replayed before the start, on which the gates' noise was measured.
        refused: why the start would have been refused, or "". The ramp is shown all the same.
        left_out: gates of the plan that have no facts in the past.
        ticks: one a candle.
        trained_until: end of the later training of the two versions, if they say so.
    """

    start: datetime
    end: datetime
    ended: str = "running"
    shadow_slots: int = 0
    shadow_days: float = 0.0
    refused: str = ""
    left_out: Sequence[str] = ()
    ticks: int = 0
    trained_until: datetime | None = None
    stages: list[StageOutcome] = field(default_factory=list)

    @property
    def notes(self) -> list[str]:
        """How it went, and what it is based on, a line each."""
        last = self.stages[-1]
        when = f"on {last.left or self.end:%Y-%m-%d %H:%M} UTC"
        ends = {"rolled_back": f"rolled back {when}", "completed": f"completed {when}", "running": f"not ended {when}"}
        notes = [f"{ends[self.ended]}: {last.reason}"]
        money = sum(stage.users_r for stage in self.stages)
        notes.append(f"users had {money:+.2f} R on average, against the active version alone")
        if self.refused:
            notes.append(f"warning: the start would have been refused: {self.refused}")
        notes.append(
            f"{self.ticks:,} ticks. The noise was measured on {self.shadow_slots:,} replayed slots of the "
            f"{self.shadow_days:.0f} days before. Owners approve at once"
        )
        if self.trained_until is not None and self.start - LOOK_BACK < self.trained_until:
            until = f"a version was trained on candles until {self.trained_until:%Y-%m-%d %H:%M} UTC"
            where = "the rollout" if self.start < self.trained_until else "the noise, not the rollout"
            notes.append(f"warning: in sample: {until}, which concerns {where}")
        if self.left_out:
            notes.append(f"not simulated: {', '.join(self.left_out)}")
        return notes


@dataclass(frozen=True, slots=True)
class _Past:
    """What two versions did on the candles from the start on, from replays. Times in seconds since 1970, ascending.

    Attributes:
        closes: of the candles that either has decided. Each is a tick.
        slots: closed slots in the order in which they are booked.
        opened, closed: of each signal on which both decided, the close of its candle and of its trade.
        marked: closes of the candles with marks, and the largest drawdown of both arms up to each.
        canary_falls: as in `Evidence`, over the whole period.
    """

    closes: IntArray
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
    seen: Seen = lambda *_: None,
) -> WhatIf:
    """Return how a rollout of *version* would have gone on the replayed candles that opened in [start, end).

    It ticks once a candle, as a rollout does whose candles are decided and scored at once. Owners approve at once and
    extend stages without an answer. Nothing is written. The noise of the pair is measured on its replays of the 180
    days before *start*.

    Args:
        start: by default 180 days after the first candle that both have replayed, or that candle if there are fewer.
            Not before the end of the training of either, if there are later candles.
        end: by default the end of what both have replayed.
        seen: called with the time, the ruling and the findings of each tick.

    Raises:
        UnknownStrategy, UnknownVersion, NoActiveVersion, Incomparable, InvalidPeriod, UnarmedPlan, InvalidPlan
        NotReplayed: both versions must have been replayed in the period.
    """
    plan, left_out = simulable(plan)
    with reading(engine) as session:
        chosen = versions.get_version(session, strategy_name, version)
        active = versions.active_version(session, strategy_name)
        check_comparable(chosen, active)
        rule = ScoringRule.model_validate(versions.get_strategy(session, strategy_name).scoring)
        symbols = shared_symbols(chosen, active)
        over = _period(session, chosen, active, start, end)
        history, refused = _shadow(session, chosen, active, over.start, plan, rule.risk_fraction)
        past = _read_past(session, chosen, active, over.start, over.end, rule.risk_fraction)
    found = WhatIf(over.start, over.end, left_out=left_out, refused=refused)
    found.trained_until = trained_until(chosen, active)
    found.shadow_slots, found.shadow_days = history.slots, LOOK_BACK / timedelta(days=1)
    return _run(found, plan, history, past, symbols, rule.risk_fraction, timeframe_delta(chosen.timeframe), seen)


def _period(
    session: Session, version: StrategyVersion, active: StrategyVersion, start: datetime | None, end: datetime | None
) -> Period:
    if start is not None and end is not None:
        return period(start, end)
    name, symbols = version.strategy_name, shared_symbols(version, active)
    spans = [replays.replayed_span(session, name, each.version, symbols) for each in (version, active)]
    ours, theirs = spans
    if ours is None or theirs is None:
        raise NotReplayed(name, version.version, f"rollout replay {name} {version.version} --from TIME --to TIME")
    first, newest = max(ours.first, theirs.first), min(ours.newest, theirs.newest)
    end = newest + timeframe_delta(version.timeframe) if end is None else end
    if start is None:
        start = first + LOOK_BACK if first + LOOK_BACK < end else first
        trained = trained_until(version, active)
        start = trained if trained is not None and start < trained < end else start
    return period(start, end)


def _shadow(
    session: Session, version: StrategyVersion, active: StrategyVersion, start: datetime, plan: Plan, risk: float
) -> tuple[History, str]:
    """Return the pair's history as a start at that time would measure it, and why it would have refused."""
    names, symbols = (version.strategy_name, version.version, active.version), shared_symbols(version, active)
    over: dict[str, Any] = {"start": start - LOOK_BACK, "end": start, "tables": REPLAYED}
    closed, _ = evidence.read_slots(session, *names, **over)
    slots = evidence.as_slots([one for one in closed if one.closed_at <= start], symbols)
    counts = (evidence.count_candles(session, names[0], each, symbols, **over) for each in names[1:])
    history = measure(slots, LOOK_BACK / timedelta(days=1), symbols=symbols, candles=min(counts) // len(symbols))
    finding = harm_in_shadow(plan, slots, history, risk)
    refused = finding.reason if finding is not None and finding.verdict is Verdict.FAIL else ""
    return history, refused


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
    candles = [replays.read_candles(session, name, each.version, symbols, start, end) for each in (version, active)]
    both = candles[0] & candles[1]
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
        facts = _evidence(past, book, history, at, start, now, delta, number * len(symbols), risk_fraction)
        findings = judge_all(plan.gates, facts, plan.stages[at.stage_index].margins)
        ruling = decide(plan, at, findings, now)
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
    return found


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
    decided: int,
    risk_fraction: float,
) -> Evidence:
    second = int(now.timestamp())
    marked = int(past.marked.searchsorted(second, side="right"))
    pending = int(past.opened.searchsorted(second, side="right") - past.closed.searchsorted(second, side="right"))
    record = Record(decided=decided)
    return Evidence(
        now=now,
        started_at=start,
        stage_entered_at=at.stage_entered_at,
        totals=book.totals,
        history=history,
        pending_slots=pending,
        canary=record,
        active=record,
        canary_drawdown=float(past.canary_drawdown[marked - 1]) if marked else None,
        active_drawdown=float(past.active_drawdown[marked - 1]) if marked else None,
        risk_fraction=risk_fraction,
        newest_candle=now - delta,
        due_candle=now - delta,
        canary_falls=past.canary_falls[: bisect_right(past.canary_falls, now, key=itemgetter(0))],
    )
