"""The result of the demo as data, read from its database."""

import re
from collections.abc import Sequence
from datetime import datetime, timedelta

import numpy as np
from pydantic import BaseModel
from sqlalchemy import Engine

from strategy_core.demo.story import Bound, Chapter, Story
from strategy_core.domain.candles import timeframe_delta
from strategy_core.domain.capital import Reach
from strategy_core.domain.comparison import Comparison
from strategy_core.domain.gates.base import SEVERITY, Verdict
from strategy_core.domain.ramp import ENDED, State, Step
from strategy_core.domain.routing import as_percent, basis_points
from strategy_core.services import queries
from strategy_core.services.audit import read_events
from strategy_core.services.history import Equity, ServedSpan
from strategy_core.services.positions import list_positions
from strategy_core.services.reports import read_report
from strategy_core.store.tables import ERROR, SIGNALS, AuditEvent, Position, Rollout, StrategyVersion

_LEAVES_STAGE = (Step.ADVANCE, Step.PROMOTE)
_TIME = re.compile(r"\d{4}-\d\d-\d\dT")
FULL = 100.0  # percent of the last stage
_SILENT = 1 / 3  # of the control's signals: a version with fewer is called silent


class Event(BaseModel):
    """One change from the audit trail.

    Attributes:
        asked: percent of users that the stage asked for, where the cap on capital made it fewer.
    """

    at: datetime
    actor: str
    action: str
    strategy: str
    version: str
    percent: float
    asked: float | None = None
    reason: str


class StageResult(BaseModel):
    """One stage of a rollout, with the worst verdict at its end and the reason.

    Attributes:
        percent: of users that the stage asks for.
        served: percent of users that it got. Smaller where the cap on capital narrows it.
        users: their number.
        capital: percent of all capital that they hold.
        bound: the difference that the gate `not_worse` had found by its end, if any.
    """

    percent: float
    served: float
    users: int | None = None
    capital: float | None = None
    entered_at: datetime
    left_at: datetime | None
    verdict: str
    reason: str
    bound: Bound | None

    @property
    def cap_note(self) -> str:
        """Where the cap on capital narrowed the stage, or an empty text."""
        if self.served >= self.percent:
            return ""
        return (
            f"The {self.percent:g} % stage got {self.served:g} % of users: "
            f"{self.percent:g} % of users would hold more than {self.percent:g} % of all capital."
        )


class Drain(BaseModel):
    """How the positions were closed that a version managed when its users got another version for new entries.

    Attributes:
        at_first, left: number that was open at *since*, and when the demo ended.
        candles: from then until the last one was closed, or until the demo ended.
    """

    version: str
    since: datetime
    at_first: int
    left: int
    candles: int

    def __str__(self) -> str:
        candles = "1 candle" if self.candles == 1 else f"{self.candles} candles"
        return f"{self.version} draining {self.at_first} → {self.left} in {candles}"


class OpenPositions(BaseModel):
    """Number of open positions by the version that manages them, at the close of each candle."""

    at: list[datetime]
    by_manager: dict[str, list[int]]


class RolloutResult(BaseModel):
    """One rollout.

    Attributes:
        slots, canary_r, control_r: that closed while it was open, with the R of both versions.
        users_r: what a user gained by it on average over all users, in R: only those on the version had it.
        signals, control_signals: of the version and of its control, on these slots.
        bounds: the difference over time.
        equity: R of both versions over time, marked to market.
        served: its share of users over time.
        frozen_at: when its stage was frozen, because decisions were unlike those in shadow.
        drain: of the version that lost its users: this one if it was rolled back, its control once it served all.
        positions: open ones, from the start of the rollout until both are over.
    """

    strategy: str
    version: str
    control_version: str
    state: str
    started_at: datetime
    ended_at: datetime | None
    promoted: bool
    slots: int
    canary_r: float
    control_r: float
    users_r: float
    signals: int
    control_signals: int
    reason: str
    stages: list[StageResult]
    bounds: list[Bound]
    equity: Equity
    served: list[ServedSpan]
    frozen_at: datetime | None = None
    drain: Drain | None = None
    positions: OpenPositions = OpenPositions(at=[], by_manager={})

    @property
    def difference_r(self) -> float:
        """What a user gained who was on the version from the first stage on."""
        return self.canary_r - self.control_r

    @property
    def silent(self) -> bool:
        return self.signals < _SILENT * self.control_signals


class ComparisonResult(BaseModel):
    """A shadow version compared with the active one, before its rollout."""

    strategy: str
    shadow_version: str
    active_version: str
    days: float
    shadow_signal_count: int
    active_signal_count: int
    divergence_rate: float | None
    shadow_win_rate: float | None
    active_win_rate: float | None
    difference: float | None
    low: float | None
    high: float | None
    slots: int


class VersionResult(BaseModel):
    """One version.

    Attributes:
        about: what it is, in words.
        differs: what its code and config have other than those of the active version.
        refused: why its training failed or its start was refused.
        outcome: how it ended, and what its users gained or lost. Empty for the first version.
    """

    strategy: str
    version: str
    about: str
    entry_point: str
    config: dict[str, object]
    differs: str
    status: str
    quarantined: bool
    decisions: int
    signals: int
    errors: int
    refused: str
    outcome: str


class Act(BaseModel):
    title: str
    strategy: str
    versions: list[str]


class DemoResult(BaseModel):
    """The result.

    Attributes:
        trades: that users have opened, as their platform reported.
        misrouted: those of a version that routing did not give to their user.
        summary: what happened, in one paragraph.
    """

    feed: str
    timeframe: str
    symbols: list[str]
    started_at: datetime
    ended_at: datetime
    candles: int
    versions: list[VersionResult]
    comparisons: list[ComparisonResult]
    rollouts: list[RolloutResult]
    timeline: list[Event]
    trades: int
    misrouted: int
    acts: list[Act]
    summary: str

    def version(self, strategy: str, version: str) -> VersionResult | None:
        return next((one for one in self.versions if (one.strategy, one.version) == (strategy, version)), None)

    def rollout(self, strategy: str, version: str) -> RolloutResult | None:
        return next((one for one in self.rollouts if (one.strategy, one.version) == (strategy, version)), None)


def collect(
    story: Story, chapters: Sequence[Chapter], acts: Sequence[Act], feed: str, started_at: datetime
) -> DemoResult:
    """Read the result of a story of *chapters* from its database."""
    engine = story.engine
    strategies = list(dict.fromkeys(chapter.strategy for chapter in chapters))
    events = [event for name in strategies for event in read_events(engine, name)]
    journeys = [
        _rollout(engine, story, one, events, held)
        for name in strategies
        for held in (list_positions(engine, [name], open_only=False),)
        for one in queries.all_rollouts(engine, name)[::-1]
    ]
    candles = sum(len(story.source.candles(symbol, closed_by=story.now, since=started_at)) for symbol in story.symbols)
    versions = _versions(story, chapters, journeys)
    return DemoResult(
        feed=feed,
        timeframe=story.source.timeframe,
        symbols=list(story.symbols),
        started_at=started_at,
        ended_at=story.now,
        candles=candles,
        versions=versions,
        comparisons=[_comparison(*each) for each in story.comparisons],
        rollouts=journeys,
        timeline=sorted((_event(event) for event in events), key=lambda event: event.at),
        trades=story.platform.trades,
        misrouted=story.platform.misrouted,
        acts=list(acts),
        summary=" ".join(outcome for chapter in chapters if (outcome := _outcome(story, chapter, journeys))),
    )


def _event(event: AuditEvent) -> Event:
    return Event(
        at=event.at,
        actor=event.actor,
        action=event.action,
        strategy=event.strategy_name,
        version=event.version,
        percent=event.after["percent"],
        asked=event.after.get("asked"),
        reason=event.reason,
    )


def _rollout(
    engine: Engine, story: Story, rollout: Rollout, events: Sequence[AuditEvent], held: Sequence[Position]
) -> RolloutResult:
    bounds = story.bounds.get(rollout.id, [])
    stages = _stages(engine, story, rollout, events, bounds)
    drain = _drain(story, rollout, stages, held)
    slots = queries.booked_slots(engine, rollout)
    report, _ = read_report(engine, rollout.id, now=story.now)
    candle = timeframe_delta(story.source.timeframe)

    def share(opened_at: datetime) -> float:
        percents = [stage.served for stage in stages if stage.entered_at <= opened_at + candle]
        return percents[-1] / 100 if percents else 0.0

    return RolloutResult(
        strategy=rollout.strategy_name,
        version=rollout.version,
        control_version=rollout.control_version,
        state=rollout.state,
        started_at=rollout.started_at,
        ended_at=rollout.ended_at,
        promoted=rollout.promoted_at is not None,
        slots=len(slots),
        canary_r=sum(slot.canary_r for slot in slots),
        control_r=sum(slot.active_r for slot in slots),
        users_r=sum(share(slot.timestamp) * (slot.canary_r - slot.active_r) for slot in slots),
        signals=sum(slot.canary_side != 0 for slot in slots),
        control_signals=sum(slot.active_side != 0 for slot in slots),
        reason=rollout.reason,
        stages=stages,
        bounds=bounds,
        equity=report.equity,
        served=list(report.progress.served),
        frozen_at=story.frozen.get(rollout.id),
        drain=drain,
        positions=_open_positions(story, rollout, drain, held),
    )


def _drain(story: Story, rollout: Rollout, stages: Sequence[StageResult], held: Sequence[Position]) -> Drain | None:
    """Return how positions drained after a rollback or from the stage of 100 % on. None if there were none."""
    if rollout.state == State.ROLLED_BACK and rollout.ended_at is not None:
        version, since = rollout.version, rollout.ended_at
    elif stages[-1].percent == FULL:
        version, since = rollout.control_version, stages[-1].entered_at
    else:
        return None
    closed = [
        each.closed_at
        for each in held
        if each.manager == version and each.opened_at <= since and (each.closed_at is None or each.closed_at > since)
    ]
    if not closed:
        return None
    left = closed.count(None)
    until = story.now if left else max(at for at in closed if at is not None)
    candles = len(_closes(story, since, until))
    return Drain(version=version, since=since, at_first=len(closed), left=left, candles=candles)


def _open_positions(story: Story, rollout: Rollout, drain: Drain | None, held: Sequence[Position]) -> OpenPositions:
    end = rollout.ended_at or story.now
    at = _closes(story, rollout.started_at, end)
    if drain is not None and drain.since >= end:
        at += _closes(story, end, story.now)[: drain.candles]
    times = np.array([each.timestamp() for each in at])
    by_manager = {}
    for version in (rollout.version, rollout.control_version):
        mine = [each for each in held if each.manager == version]
        opened = np.sort([each.opened_at.timestamp() for each in mine])
        closed = np.sort([each.closed_at.timestamp() for each in mine if each.closed_at is not None])
        open_then = np.searchsorted(opened, times, "right") - np.searchsorted(closed, times, "right")
        by_manager[version] = [int(count) for count in open_then]
    return OpenPositions(at=at, by_manager=by_manager)


def _closes(story: Story, since: datetime, until: datetime) -> list[datetime]:
    """Return the closes of candles in (since, until]."""
    candle = timeframe_delta(story.source.timeframe)
    index = story.source.candles(story.symbols[0], closed_by=until, since=since - candle).index
    return [at for opened in index if since < (at := opened.to_pydatetime() + candle) <= until]


def _stages(
    engine: Engine, story: Story, rollout: Rollout, events: Sequence[AuditEvent], bounds: Sequence[Bound]
) -> list[StageResult]:
    plan = story.plan
    stages: list[StageResult] = []
    entered_at = rollout.started_at

    def add(left_at: datetime | None, verdict: str, reason: str) -> None:
        percent = plan.stages[min(len(stages), len(plan.stages) - 1)].percent
        asked_bp = basis_points(percent)
        reach = story.reached.get((rollout.strategy_name, rollout.version, percent), Reach(asked_bp, asked_bp))
        seen = [bound for bound in bounds if left_at is None or bound.at <= left_at]
        stages.append(
            StageResult(
                percent=percent,
                served=as_percent(reach.percent_bp),
                users=reach.users,
                capital=None if reach.capital_share is None else 100 * reach.capital_share,
                entered_at=entered_at,
                left_at=left_at,
                verdict=verdict,
                reason=reason,
                bound=seen[-1] if seen else None,
            )
        )

    for event in (event for event in events if event.rollout_id == rollout.id and event.action in _LEAVES_STAGE):
        add(event.at, "pass", event.reason)
        entered_at = event.at
    if rollout.promoted_at is None:
        worst = min(
            queries.last_verdicts(engine, rollout.id).values(),
            key=lambda row: SEVERITY[Verdict(row.verdict)],
            default=None,
        )
        ended = rollout.state in ENDED or worst is None
        verdict = worst.verdict if worst else Verdict.INSUFFICIENT.value
        add(rollout.ended_at, verdict, rollout.reason if ended or worst is None else f"{worst.gate}: {worst.reason}")
    return stages


def _comparison(strategy: str, shadow: str, active: str, days: float, found: Comparison) -> ComparisonResult:
    return ComparisonResult(
        strategy=strategy,
        shadow_version=shadow,
        active_version=active,
        days=days,
        shadow_signal_count=found.shadow_signal_count,
        active_signal_count=found.active_signal_count,
        divergence_rate=found.divergence_rate,
        shadow_win_rate=found.shadow.win_rate,
        active_win_rate=found.active.win_rate,
        difference=found.difference.mean,
        low=found.difference.low,
        high=found.difference.high,
        slots=found.difference.n,
    )


def _versions(story: Story, chapters: Sequence[Chapter], journeys: Sequence[RolloutResult]) -> list[VersionResult]:
    results = []
    for strategy in dict.fromkeys(chapter.strategy for chapter in chapters):
        known = queries.all_versions(story.engine, strategy)
        if not known:
            continue
        counts = queries.count_decisions(story.engine, strategy)
        active = queries.get_active_version(story.engine, strategy)
        of_version = {chapter.version: chapter for chapter in chapters if chapter.strategy == strategy}
        for version in known:
            own = {kind: n for (of, kind), n in counts.items() if of == version.version}
            results.append(
                VersionResult(
                    strategy=strategy,
                    version=version.version,
                    about=of_version[version.version].about,
                    entry_point=version.entry_point,
                    config=version.config,
                    differs=_differs(version, active),
                    status=version.status,
                    quarantined=version.quarantined_at is not None,
                    decisions=sum(own.values()),
                    signals=sum(own.get(kind, 0) for kind in SIGNALS),
                    errors=own.get(ERROR, 0),
                    refused=story.refused.get((strategy, version.version), ""),
                    outcome=_outcome(story, of_version[version.version], journeys),
                )
            )
    return results


def _differs(version: StrategyVersion, active: StrategyVersion) -> str:
    """Return what differs from the active version, or all of the active one's config."""
    if version.version == active.version:
        return ""
    changed = [f"{name}: {_short(value)}" for name, value in version.config.items() if active.config.get(name) != value]
    code = version.entry_point.rpartition(":")[2]
    return ", ".join(([code] if version.entry_point != active.entry_point else []) + changed)


def _short(value: object) -> str:
    """Return a value of a config in few characters: the name of a file, the days of times."""
    if isinstance(value, list):
        return "; ".join(_short(each) for each in value)
    if isinstance(value, str):
        return value[:10] if _TIME.match(value) else value.rpartition("/")[2]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _outcome(story: Story, chapter: Chapter, journeys: Sequence[RolloutResult]) -> str:
    if chapter.first:
        return ""
    found = (each for each in journeys if (each.strategy, each.version) == (chapter.strategy, chapter.version))
    refused = story.refused.get((chapter.strategy, chapter.version), "")
    return outcome_of(f"{chapter.strategy} {chapter.version}", next(found, None), refused, story.now)


def outcome_of(name: str, rollout: RolloutResult | None, refused: str, now: datetime) -> str:
    """Return how a version ended, and what its users gained or lost.

    Args:
        refused: why its training failed or its start was refused, if there is no rollout.
    """
    if rollout is None:
        return f"{name} reached no user: {refused or 'the candles ended before its rollout'}."
    lasted = _days((rollout.ended_at or now) - rollout.started_at)
    share = f"{rollout.stages[-1].served:g} % of users"
    drain = rollout.drain
    silent = (
        f" It signalled {rollout.signals} times, {rollout.control_version} {rollout.control_signals} times."
        if rollout.silent
        else ""
    )
    if rollout.state == "completed":
        text = f"{name} replaced {rollout.control_version} after {lasted}."
        text += f" From 100 % on: {drain}." if drain else ""
    elif rollout.state == "rolled_back":
        where = "after it had served all users" if rollout.promoted else f"at {share}"
        by = ", " if rollout.reason.startswith("by ") else ": "
        text = f"{name} was rolled back {where}, after {lasted}{by}{rollout.reason}."
        if rollout.frozen_at not in (None, rollout.ended_at):
            frozen = _days(rollout.frozen_at - rollout.started_at)
            text += f" Its stage was held after {frozen}, when its decisions were unlike those in shadow."
        text += f" Its open positions stayed with it: {drain}." if drain else ""
    else:
        state = "serves all users and is still watched" if rollout.promoted else f"is at {share}"
        text = f"{name} {state}: the candles ended after {lasted} ({rollout.state.replace('_', ' ')})."
    return f"{text}{silent} {_money(rollout)}"


def _money(one: RolloutResult) -> str:
    """Return what users gained or lost by the version, in R: those who had it from the start, and on average."""
    if one.slots == 0:
        return "No trade had closed by then, so users have gained and lost nothing."
    change = f"{'gained' if one.difference_r >= 0 else 'lost'} {abs(one.difference_r):.1f} R each"
    average = f"{abs(one.users_r):.2f} R {'more' if one.users_r >= 0 else 'less'}"
    return (
        f"Against {one.control_version}, its first users {change} in {one.slots:,} slots; "
        f"over all users that is {average} on average."
    )


def _days(span: timedelta) -> str:
    days, hours = span / timedelta(days=1), span / timedelta(hours=1)
    return f"{days:.0f} days" if days >= 2 else f"{hours:.0f} hours" if hours >= 2 else f"{60 * hours:.0f} minutes"
