"""`rollout demo`: the whole lifecycle in one process, on a simulated clock, and its result as data or as tables."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import BaseModel
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sqlalchemy import Engine

from strategy_core.demo.story import STRATEGY, Chapter, Story
from strategy_core.domain.candles import timeframe_delta
from strategy_core.domain.comparison import Comparison
from strategy_core.domain.errors import InvalidCandles, InvalidSetting
from strategy_core.domain.gates.base import SEVERITY, Verdict
from strategy_core.domain.plan import Plan
from strategy_core.domain.ramp import ENDED, Step
from strategy_core.isolation.pool import WorkerPool
from strategy_core.market.open import open_source
from strategy_core.market.source import CandleSource
from strategy_core.services import queries
from strategy_core.services.audit import read_events
from strategy_core.services.database import open_database, upgrade
from strategy_core.store.tables import ERROR, SIGNALS, AuditEvent, Rollout

SYNTHETIC_FEED = "synthetic:GOLD?seed=7&symbols=10"
SYNTHETIC_START = datetime(2024, 4, 1, tzinfo=UTC)
HISTORY = 2_000  # candles before the demo starts, for the validation at registration
END_OF_TIME = datetime(2200, 1, 1, tzinfo=UTC)
BUG_AFTER_DAYS = 6  # of the third version's rollout
_LEAVES_STAGE = (Step.ADVANCE, Step.PROMOTE)
_COLOURS = {
    "roll_back": "red",
    "promote": "green",
    "complete": "green",
    "advance": "cyan",
    "await_approval": "yellow",
    "await_decision": "yellow",
    "rolled_back": "red",
    "completed": "green",
    "active": "green",
    "canary": "cyan",
    "pass": "green",
    "breach": "red",
    "fail": "red",
}


class Event(BaseModel):
    """One change from the audit trail."""

    at: datetime
    actor: str
    action: str
    version: str
    percent: float
    reason: str


class StageResult(BaseModel):
    """One stage of a rollout, with the worst verdict at its end and the reason."""

    percent: float
    entered_at: datetime
    left_at: datetime | None
    verdict: str
    reason: str


class RolloutResult(BaseModel):
    version: str
    control_version: str
    state: str
    started_at: datetime
    ended_at: datetime | None
    slots: int
    reason: str
    stages: list[StageResult]


class ComparisonResult(BaseModel):
    """A shadow version compared with the active one, before its rollout."""

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


class PlanResult(BaseModel):
    """The preview of a plan, from the shadow history before the rollout."""

    version: str
    slots_per_day: float
    underpowered: bool
    verdict: str


class VersionResult(BaseModel):
    version: str
    entry_point: str
    config: dict[str, object]
    status: str
    quarantined: bool
    decisions: int
    signals: int
    errors: int


class DemoResult(BaseModel):
    feed: str
    symbols: list[str]
    started_at: datetime
    ended_at: datetime
    candles: int
    versions: list[VersionResult]
    comparisons: list[ComparisonResult]
    plans: list[PlanResult]
    rollouts: list[RolloutResult]
    timeline: list[Event]
    ending: str


def collect(story: Story, feed: str, started_at: datetime) -> DemoResult:
    """Read the result of a story from its database."""
    engine = story.engine
    events = read_events(engine, STRATEGY)
    journeys = [_rollout(engine, story.plan, one, events) for one in queries.all_rollouts(engine, STRATEGY)]
    present = _version_results(engine)
    candles = sum(
        len(story.source.candles(symbol, closed_by=story.now, since=started_at)) for symbol in story.source.symbols()
    )
    return DemoResult(
        feed=feed,
        symbols=list(story.source.symbols()),
        started_at=started_at,
        ended_at=story.now,
        candles=candles,
        versions=present,
        comparisons=[_comparison(*each) for each in story.comparisons],
        plans=[
            PlanResult(
                version=version,
                slots_per_day=preview.slots_per_day,
                underpowered=preview.underpowered,
                verdict=preview.verdict,
            )
            for version, preview in story.previews
        ],
        rollouts=journeys[::-1],
        timeline=[_event(event) for event in events],
        ending=_ending(journeys[::-1]),
    )


def _event(event: AuditEvent) -> Event:
    return Event(
        at=event.at,
        actor=event.actor,
        action=event.action,
        version=event.version,
        percent=event.after["percent"],
        reason=event.reason,
    )


def _rollout(engine: Engine, plan: Plan, rollout: Rollout, events: Sequence[AuditEvent]) -> RolloutResult:
    stages: list[StageResult] = []
    entered_at = rollout.started_at
    mine = [event for event in events if event.rollout_id == rollout.id]
    for event in mine:
        if event.action in _LEAVES_STAGE:
            percent = plan.stages[len(stages)].percent
            stages.append(
                StageResult(
                    percent=percent, entered_at=entered_at, left_at=event.at, verdict="pass", reason=event.reason
                )
            )
            entered_at = event.at
    if rollout.promoted_at is None:
        worst = min(
            queries.last_verdicts(engine, rollout.id).values(),
            key=lambda row: SEVERITY[Verdict(row.verdict)],
            default=None,
        )
        stages.append(
            StageResult(
                percent=plan.stages[rollout.stage_index].percent,
                entered_at=entered_at,
                left_at=rollout.ended_at,
                verdict=worst.verdict if worst else "insufficient",
                reason=rollout.reason if rollout.state in ENDED or worst is None else f"{worst.gate}: {worst.reason}",
            )
        )
    return RolloutResult(
        version=rollout.version,
        control_version=rollout.control_version,
        state=rollout.state,
        started_at=rollout.started_at,
        ended_at=rollout.ended_at,
        slots=queries.count_slots(engine, rollout),
        reason=rollout.reason,
        stages=stages,
    )


def _comparison(shadow: str, active: str, days: float, found: Comparison) -> ComparisonResult:
    return ComparisonResult(
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


def _version_results(engine: Engine) -> list[VersionResult]:
    counts = queries.count_decisions(engine, STRATEGY)

    def count(version: str, *kinds: str) -> int:
        return sum(n for (of, decision), n in counts.items() if of == version and (not kinds or decision in kinds))

    return [
        VersionResult(
            version=version.version,
            entry_point=version.entry_point,
            config=version.config,
            status=version.status,
            quarantined=version.quarantined_at is not None,
            decisions=count(version.version),
            signals=count(version.version, *SIGNALS),
            errors=count(version.version, ERROR),
        )
        for version in queries.all_versions(engine, STRATEGY)
    ]


def _ending(journeys: Sequence[RolloutResult]) -> str:
    """Summarise each rollout in one sentence."""
    sentences = []
    for one in journeys:
        if one.state == "completed":
            sentences.append(
                f"{one.version} was not worse than {one.control_version} on {one.slots} slots and replaced it."
            )
        elif one.state == "rolled_back":
            sentences.append(f"{one.version} was rolled back: {one.reason}.")
        else:
            sentences.append(
                f"{one.version} is {one.state.replace('_', ' ')}: no clear result on {one.slots} slots yet."
            )
    return " ".join(sentences)


def show_result(result: DemoResult, console: Console) -> None:
    console.print()
    console.print(_timeline(result))
    console.print(_comparisons(result))
    for plan in result.plans:
        console.print(f"[bold]Plan for {plan.version}[/]: {plan.verdict}", highlight=False)
    console.print()
    console.print(_stages(result))
    console.print(_version_table(result))
    console.print(result.ending, highlight=False)


def _timeline(result: DemoResult) -> Table:
    table = _table("Timeline", "time (UTC)", "actor", "action", "version", "canary", "reason")
    for event in result.timeline:
        percent = f"{event.percent:g} %" if event.percent else ""
        what = _coloured(event.action)
        table.add_row(f"{event.at:%Y-%m-%d %H:%M}", event.actor, what, event.version, percent, event.reason)
    return table


def _comparisons(result: DemoResult) -> Table:
    table = _table(
        "Shadow compared with active",
        "shadow",
        "active",
        "days",
        "signals",
        "differ",
        "win rate",
        "R per slot",
        "slots",
    )
    for one in result.comparisons:
        interval = "" if one.low is None else f"  [{one.low:+.3f}, {one.high:+.3f}]"
        table.add_row(
            one.shadow_version,
            one.active_version,
            f"{one.days:.0f}",
            f"{one.shadow_signal_count} / {one.active_signal_count}",
            _share(one.divergence_rate, 1),
            f"{_share(one.shadow_win_rate)} / {_share(one.active_win_rate)}",
            "-" if one.difference is None else f"{one.difference:+.3f}{interval}",
            str(one.slots),
        )
    return table


def _stages(result: DemoResult) -> Table:
    table = _table("Rollouts", "version", "stage", "entered", "days", "verdict", "reason")
    for rollout in result.rollouts:
        for stage in rollout.stages:
            left_at = stage.left_at or result.ended_at
            days = (left_at - stage.entered_at).total_seconds() / 86_400
            verdict = _coloured(stage.verdict)
            entered = f"{stage.entered_at:%Y-%m-%d %H:%M}"
            table.add_row(rollout.version, f"{stage.percent:g} %", entered, f"{days:.1f}", verdict, stage.reason)
        table.add_section()
    return table


def _version_table(result: DemoResult) -> Table:
    title = f"Versions after {result.candles:,} candles of {', '.join(result.symbols)}"
    table = _table(title, "version", "status", "decisions", "signals", "errors", "code", "config")
    for one in result.versions:
        status = _coloured(one.status) + (" [red]quarantined[/]" if one.quarantined else "")
        config = ", ".join(f"{key}={value}" for key, value in one.config.items())
        counts = (f"{one.decisions:,}", f"{one.signals:,}", str(one.errors))
        table.add_row(one.version, status, *counts, one.entry_point.rpartition(":")[2], config)
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold", expand=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _coloured(word: str) -> str:
    plain = word.replace("_", " ")
    return f"[{_COLOURS[word]}]{plain}[/]" if word in _COLOURS else plain


def _share(value: float | None, scale: int = 100) -> str:
    return "-" if value is None else f"{value * scale:.1f} %"


def run_demo(
    *, candles: Path | None, symbol: str | None, as_json: bool, database: Path | None, console: Console
) -> int:
    """Run the demo on synthetic candles or on a file. Print the result to *console*, or as JSON to standard output.

    Args:
        database: SQLite file to keep. Default: a temporary file.

    Raises:
        InvalidCandles: the file is invalid or too short.
        InvalidSetting: *database* already exists.
    """
    if database is not None and database.exists():
        raise InvalidSetting("database", str(database), "a file that does not exist yet")
    with TemporaryDirectory() as folder:
        result = run_story(
            str(candles) if candles else SYNTHETIC_FEED, symbol, database or Path(folder, "demo.db"), console
        )
    if as_json:
        print(result.model_dump_json(indent=2))  # noqa: T201  data for programs goes to standard output
    else:
        show_result(result, console)
        if database is not None:
            console.print(f"Database: {database}. Try: rollout status --database-url sqlite:///{database}")
    return 0


def run_story(feed: str, symbol: str | None, database: Path, console: Console) -> DemoResult:
    """Run the demo on *feed* in a new SQLite file and return the result."""
    synthetic = feed.startswith("synthetic")
    source = open_source(feed, symbol=symbol)
    started_at, ends_at = (SYNTHETIC_START, _end(source)) if synthetic else _period(source)
    shadow_days = 45 if synthetic else 60
    engine = open_database(f"sqlite:///{database}")
    upgrade(engine)
    with _bars(console) as progress, WorkerPool() as workers:
        task = progress.add_task("", day="", total=(ends_at - started_at).total_seconds() if not synthetic else None)

        def show_progress(what: str, at: datetime) -> None:
            done = (at - started_at).total_seconds()
            progress.update(task, completed=done, description=what, day=f"{at:%Y-%m-%d}")

        story = Story(
            engine=engine,
            source=source,
            now=started_at,
            ends_at=ends_at,
            workers=workers,
            step=timedelta(hours=12) if synthetic else timedelta(days=1),
            extensions=2 if synthetic else 12,  # one symbol gives a slot every other day
            on_progress=show_progress,
        )
        story.run(*_chapters(shadow_days))
        if not synthetic:
            story.finish()
    engine.dispose()
    return collect(story, feed, started_at)


def _chapters(shadow_days: int) -> tuple[Chapter, list[Chapter]]:
    def seasonal(at: datetime) -> dict[str, str]:
        return {"fitted_until": (at + timedelta(days=shadow_days + BUG_AFTER_DAYS)).isoformat()}

    first = Chapter("1.0.0", "fib_rsi", lambda _: {"fib_lookback_bars": 40})
    better = Chapter("2.0.0", "fib_rsi", lambda _: {}, shadow_days)
    broken = Chapter("3.0.0", "strategy_core.demo.versions:FibRsiSeasonal", seasonal, shadow_days)
    return first, [better, broken]


def _period(source: CandleSource) -> tuple[datetime, datetime]:
    """Return start and end of the demo on the candles of a file."""
    symbol = source.symbols()[0]
    known = source.candles(symbol, closed_by=END_OF_TIME)
    if len(known) <= 2 * HISTORY:
        raise InvalidCandles(source.name, f"{len(known)} candles of {symbol}; the demo needs more than {2 * HISTORY}")
    return known.index[HISTORY].to_pydatetime(), _end(source)


def _end(source: CandleSource) -> datetime:
    newest = [source.expected_at(symbol, END_OF_TIME) for symbol in source.symbols()]
    return max(moment for moment in newest if moment is not None) + timeframe_delta(source.timeframe)


def _bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.fields[day]}"),
        BarColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )
