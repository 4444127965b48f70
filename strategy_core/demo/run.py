"""`rollout demo`: three acts of rollouts in one process, on a simulated clock."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from strategy_core.demo.copy_trading import CopyTrading
from strategy_core.demo.picture import picture
from strategy_core.demo.result import Act, DemoResult, collect
from strategy_core.demo.story import HOUR, Chapter, Story
from strategy_core.demo.terminal import show_result
from strategy_core.demo.trainer import HASTY, THOROUGH, Trainer
from strategy_core.domain.candles import timeframe_delta
from strategy_core.domain.errors import InvalidCandles, InvalidSetting
from strategy_core.domain.gates.base import Margins
from strategy_core.domain.gates.on_slots import NotWorse
from strategy_core.domain.plan import Plan
from strategy_core.isolation.pool import WorkerPool
from strategy_core.market.calendars import DAY_ZONES
from strategy_core.market.check import check_file
from strategy_core.market.open import open_source, read_file_feed
from strategy_core.market.source import CandleSource
from strategy_core.report.owner import owner_report_page
from strategy_core.services.database import open_database, upgrade
from strategy_core.services.owner_reports import find_owner_report, list_owner_reports
from strategy_core.services.queries import Scope

SYNTHETIC_FEED = "synthetic:GOLD?seed=23&symbols=5"
SYNTHETIC_START = datetime(2025, 3, 3, tzinfo=UTC)
MOST_SYMBOLS = 5
HISTORY = 1_500  # candles before the demo starts: for the validation at registration, and for the training
NEEDED = 3_000  # candles of a symbol in all
END_OF_TIME = datetime(2200, 1, 1, tzinfo=UTC)
SHORT, USUAL, LONG = 14 * 24, 35 * 24, 42 * 24  # candles in shadow, weekends included
BUG_AFTER = 12  # candles of the third version's rollout, weekends included
NOISY_LINE = 48.0  # RSI at which 1.0.0 buys
CALENDAR = "metals"
_MOST_REPORTS = 500
_PAGE, _MODELS, _REPORTS = ".html", ".models", ".reports"  # beside the database
ACTS = (
    Act(title="Act 1: fib_rsi with other settings", strategy="fib_rsi", versions=["1.0.0", "2.0.0"]),
    Act(title="Act 2: fib_rsi with thresholds that end", strategy="fib_rsi", versions=["3.0.0"]),
    Act(title="Act 3: ppo_gold, a trained model", strategy="ppo_gold", versions=["1.0.0", "2.0.0", "3.0.0"]),
)


def run_demo(
    *, candles: Path | None, symbol: str | None, as_json: bool, database: Path | None, console: Console
) -> int:
    """Run the demo on synthetic candles or on a file. Print the result to *console*, or as JSON to standard output.

    Args:
        candles: a file or folder, with options as in a feed.
        database: SQLite file to keep, with the models, the picture and the reports beside it. Default: only the
            picture and the reports are kept, in a new temporary folder.

    Raises:
        InvalidCandles: the file is invalid or too short.
        InvalidSetting: *database*, or a file or folder beside it, already exists, or its folder does not.
    """
    if database is not None:
        _check_new(database)
    with TemporaryDirectory() as folder:
        kept = database or Path(folder, "demo.db")
        result = run_story(str(candles) if candles else SYNTHETIC_FEED, symbol, kept, console)
        page = database.with_suffix(_PAGE) if database else Path(mkdtemp(prefix="rollout-demo-"), "demo.html")
        reports = _write_reports(kept, page.with_suffix(_REPORTS))
    page.write_text(picture(result), encoding="utf-8")
    if as_json:
        print(result.model_dump_json(indent=2))  # noqa: T201  data for programs goes to standard output
    else:
        show_result(result, console)
        if database is not None:
            console.print(f"Database: {database}. Try: rollout status --database-url sqlite:///{database}")
    console.print(f"Reports that owners got: {reports}", highlight=False, soft_wrap=True)
    console.print(f"Picture: {page}", highlight=False, soft_wrap=True)
    return 0


def _write_reports(database: Path, folder: Path) -> Path:
    """Write the page of each report that owners got to *folder*, and return it."""
    folder.mkdir()
    engine = open_database(f"sqlite:///{database}")
    for each in list_owner_reports(engine, Scope(), limit=_MOST_REPORTS):
        report, facts = find_owner_report(engine, each.id)
        about = f"-{facts.rollout.version}" if facts.rollout is not None else ""
        file = folder / f"{report.created_at:%Y-%m-%d}-{report.strategy_name}{about}-{report.kind}.html"
        file.write_text(owner_report_page(facts), encoding="utf-8")
    engine.dispose()
    return folder


def _check_new(database: Path) -> None:
    if not database.parent.is_dir():
        raise InvalidSetting("--keep", str(database), "a file in a folder that exists")
    for kept in (database, *(database.with_suffix(each) for each in (_PAGE, _MODELS, _REPORTS))):
        if kept.exists():
            raise InvalidSetting("--keep", str(kept), "a file that does not exist yet")


def run_story(feed: str, symbol: str | None, database: Path, console: Console) -> DemoResult:
    """Run the demo on *feed* in a new SQLite file, with the models beside it, and return the result."""
    source = _open(feed, symbol)
    started_at, ends_at, symbols = _period(source)
    candle = timeframe_delta(source.timeframe)
    models = database.with_suffix(_MODELS)
    models.mkdir()
    engine = open_database(f"sqlite:///{database}")
    upgrade(engine)
    platform = CopyTrading(engine, source)
    platform.join(started_at)
    fib, ppo = _fib_rsi(candle), _ppo_gold(Trainer(source, symbols[0], models))
    with _bars(console) as progress, WorkerPool() as workers:
        task = progress.add_task("", day="", total=None)

        def show_progress(what: str, at: datetime) -> None:
            progress.update(task, description=what, day=f"{at:%Y-%m-%d}")

        story = Story(
            engine=engine,
            source=source,
            symbols=symbols,
            now=started_at,
            ends_at=ends_at,
            workers=workers,
            plan=plan_for(candle),
            platform=platform,
            on_progress=show_progress,
        )
        story.run(*(story.owner(first, challengers) for first, *challengers in (fib, ppo)))
    found = collect(story, [*fib, *ppo], ACTS, feed, started_at)
    engine.dispose()
    return found


def plan_for(candle: timedelta) -> Plan:
    """Return the default plan, with its times scaled from hourly candles, and without the watch after the bake.

    The watch would keep the predecessor in shadow, which the demo has no use for.
    """
    plan, scale = Plan(watch="off"), candle / HOUR
    if scale == 1:
        return plan

    def scaled(margins: Margins) -> Margins:
        return margins.model_copy(update={"pnl_r_per_year": margins.pnl_r_per_year / scale})

    return plan.model_copy(
        update={
            "stages": tuple(
                stage.model_copy(update={"minimum_time": scale * stage.minimum_time, "margins": scaled(stage.margins)})
                for stage in plan.stages
            ),
            "maximum_stage_time": scale * plan.maximum_stage_time,
            "bake": scale * plan.bake,
            "blind_limit": scale * plan.blind_limit,
            "gates": tuple(
                gate.model_copy(update={"patience": scale * gate.patience}) if isinstance(gate, NotWorse) else gate
                for gate in plan.gates
            ),
        }
    )


def _fib_rsi(candle: timedelta) -> list[Chapter]:
    def until_in_use(at: datetime) -> dict[str, Any]:
        return {"fitted_until": (at + (LONG + BUG_AFTER) * candle).isoformat()}

    noisy = {"rsi_oversold": NOISY_LINE, "rsi_overbought": 100 - NOISY_LINE}
    return [
        Chapter("fib_rsi", "1.0.0", "signals at an RSI of 48 and 52: often", "fib_rsi", lambda _: noisy),
        Chapter("fib_rsi", "2.0.0", "signals at an RSI of 30 and 70: on extremes", "fib_rsi", lambda _: {}, USUAL),
        Chapter(
            "fib_rsi",
            "3.0.0",
            "its thresholds end at a date. After it, it trades on every candle",
            "strategy_core.demo.versions:FibRsiSeasonal",
            until_in_use,
            LONG,
        ),
    ]


def _ppo_gold(trainer: Trainer) -> list[Chapter]:
    def model(version: str, updates: int, *, without_wicks: bool = False) -> Callable[[datetime], dict[str, Any]]:
        return lambda at: {"model": str(trainer.train(version, at, updates=updates, without_wicks=without_wicks))}

    return [
        Chapter("ppo_gold", "1.0.0", "its training stopped after one update", "ppo_gold", model("1", HASTY)),
        Chapter(
            "ppo_gold", "2.0.0", f"trained again, with {THOROUGH} updates", "ppo_gold", model("2", THOROUGH), USUAL
        ),
        Chapter(
            "ppo_gold",
            "3.0.0",
            "trained on candles without wicks, which real candles have",
            "ppo_gold",
            model("3", THOROUGH, without_wicks=True),
            SHORT,
        ),
    ]


def _open(feed: str, symbol: str | None) -> CandleSource:
    """Return the source of a feed, with the timeframe that a file shows."""
    zone = DAY_ZONES[CALENDAR]
    if feed.startswith("synthetic") or read_file_feed(feed)[0].is_dir():
        return open_source(feed, symbol=symbol, day_zone=zone)
    timeframe = check_file(feed, now=END_OF_TIME, calendar=CALENDAR, timeframe="1h").timeframe
    return open_source(feed, symbol=symbol, timeframe=timeframe, day_zone=zone)


def _period(source: CandleSource) -> tuple[datetime, datetime, Sequence[str]]:
    """Return start and end of the demo, and the symbols with enough candles for it.

    Raises:
        InvalidCandles: no symbol has enough.
    """
    known = {symbol: source.candles(symbol, closed_by=END_OF_TIME).index for symbol in source.symbols()}
    enough = [symbol for symbol, index in known.items() if len(index) >= NEEDED][:MOST_SYMBOLS]
    if not enough:
        counts = ", ".join(f"{len(index):,} of {symbol}" for symbol, index in list(known.items())[:MOST_SYMBOLS])
        raise InvalidCandles(source.name, f"has {counts}: the demo needs {NEEDED:,} candles or more of a symbol")
    start = max(known[symbol][HISTORY].to_pydatetime() for symbol in enough)
    end = max(known[symbol][-1].to_pydatetime() for symbol in enough) + timeframe_delta(source.timeframe)
    return max(start, SYNTHETIC_START) if source.name.startswith("synthetic") else start, end, enough


def _bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.fields[day]}"),
        BarColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )
