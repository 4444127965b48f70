"""`rollout demo`: the whole lifecycle in one process, on a simulated clock."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from strategy_core.demo.result import DemoResult, collect, show_result
from strategy_core.demo.story import Chapter, Story
from strategy_core.domain.candles import timeframe_delta
from strategy_core.domain.errors import InvalidCandles, InvalidSetting
from strategy_core.isolation.pool import WorkerPool
from strategy_core.market.open import open_source
from strategy_core.market.source import CandleSource
from strategy_core.services.database import open_database, upgrade

SYNTHETIC_FEED = "synthetic:GOLD?seed=7&symbols=10"
SYNTHETIC_START = datetime(2024, 4, 1, tzinfo=UTC)
HISTORY = 2_000  # candles before the demo starts, for the validation at registration
END_OF_TIME = datetime(2200, 1, 1, tzinfo=UTC)
BUG_AFTER_DAYS = 6  # of the third version's rollout


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
