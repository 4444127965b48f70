"""Shared options, settings, database access and output of all commands."""

import getpass
import inspect
import json
import logging
import os
import re
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, Literal, ParamSpec, TextIO
from uuid import uuid4

import typer

from strategy_core.domain.audit import Actor, storable
from strategy_core.domain.errors import Invalid, InvalidName, InvalidPlan, InvalidSetting, RolloutError, Unconfirmed
from strategy_core.domain.parsing import each_name_once

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from sqlalchemy import Engine

    from strategy_core.domain.plan import Plan
    from strategy_core.market.source import CandleSource
    from strategy_core.settings import Settings

P = ParamSpec("P")
_PIPE_WIDTH = 200  # columns of a table when the output is not a terminal
_SUGGESTED = re.compile(r"(?:(?<=: )|(?<=; )|(?<=&& )|(?<=_DEVELOPMENT=1 ))rollout(?= [a-z-])")
_REASON = "Reason, stored in the audit trail."


def require_reason(reason: str) -> str:
    """Return *reason*, or raise InvalidName if it is blank."""
    if not reason.strip():
        raise InvalidName("reason", reason, "a text that is not blank")
    return storable(reason)


StrategyName = Annotated[str, typer.Argument(metavar="STRATEGY", help="Strategy name.")]
AnyStrategy = Annotated[str | None, typer.Argument(metavar="STRATEGY", help="Strategy name. Default: all strategies.")]
VersionName = Annotated[str, typer.Argument(metavar="VERSION", help="Version name.")]
Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help=_REASON, callback=storable)]
NeededReason = Annotated[str, typer.Option("--reason", metavar="TEXT", help=_REASON, callback=require_reason)]
Override = Annotated[
    str,
    typer.Option(
        "--override-reason",
        metavar="TEXT",
        help="Reason for using a quarantined version again, or for a release in a freeze.",
        callback=lambda text: text and require_reason(text),
    ),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]
Symbol = Annotated[str | None, typer.Option(metavar="NAME", help="Only this symbol.")]
Limit = Annotated[int, typer.Option("--limit", metavar="N", min=1, max=1_000_000, help="Show only the newest N.")]
PlanFile = Annotated[
    Path | None,
    typer.Option("--plan", metavar="FILE", help="JSON file with a rollout plan. Default: the standard plan."),
]
PlanChoice = Annotated[
    str | None,
    typer.Option(
        "--plan",
        metavar="PLAN",
        help="Name of a plan in the strategy's policy, or a JSON file with a plan. Default: the standard plan.",
    ),
]
Output = Annotated[Path | None, typer.Option(metavar="FILE.html", help="Output file, or - for standard output.")]
OpenIn = Annotated[Literal["none", "browser"], typer.Option("--open", help="Open the file in a browser.")]
_STDOUT = Path("-")
_SHARED = [  # the options of every command
    inspect.Parameter(
        "database_url",
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[
            str | None,
            typer.Option(
                envvar="ROLLOUT_DATABASE_URL",
                metavar="URL",
                help="sqlite:///FILE or postgresql://…. Default: sqlite:///rollout.db.",
            ),
        ],
    ),
    inspect.Parameter(
        "as_json",
        inspect.Parameter.KEYWORD_ONLY,
        default=False,
        annotation=Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")],
    ),
    inspect.Parameter(
        "actor",
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[
            str | None, typer.Option(metavar="NAME", help="Your name in the audit trail. Default: your login name.")
        ],
    ),
]


class Context:
    """Settings, database, clock and actor of one command."""

    def __init__(self, *, database_url: str | None, as_json: bool, actor: str | None) -> None:
        self.as_json = as_json
        self.database_url = database_url
        self._actor = actor
        self._least = False
        self._warned: set[str] = set()

    @cached_property
    def settings(self) -> "Settings":
        from strategy_core.observe import configure_logs
        from strategy_core.settings import least_settings, read_settings

        configure_logs(level=logging.WARNING, without="candles.repaired")  # `candles check` tells it
        settings = least_settings() if self._least else read_settings()
        if self.database_url is None:
            return settings
        return settings.model_copy(update={"database_url": self.database_url})

    def tolerate_bad_settings(self) -> None:
        """Use defaults for invalid settings, except the database URL: a rollback must work in spite of them."""
        self._least = True

    @cached_property
    def clock(self) -> "Settings":
        """The settings with the clock of the database. Prints a line if it disagrees with the environment."""
        read = self.settings.on_any_clock_of if self._least else self.settings.on_clock_of
        found = read(self.database)
        self.warn(found.clock_check.problem)
        return found

    @cached_property
    def now(self) -> datetime:
        """The time of the database, which may be that of a replay."""
        return self.clock.now()

    def forget_now(self) -> None:
        """Read the time again at the next use of `now`."""
        self.__dict__.pop("now", None)

    @cached_property
    def database(self) -> "Engine":
        """The database, without a check of its schema."""
        return self.settings.open_engine()

    @cached_property
    def engine(self) -> "Engine":
        """The database, with an up-to-date schema. Raises SchemaOutdated if it is not."""
        from strategy_core.services.database import check_schema

        check_schema(self.database)
        return self.database

    def close(self) -> None:
        if "database" in self.__dict__:
            self.database.dispose()

    def candles(self) -> "CandleSource":
        return self.clock.open_candles(self.now)

    def feed_end(self, source: "CandleSource | None" = None) -> str:
        """Return since when a feed of files has no candles, or an empty text. A feed that cannot be read has none.

        Args:
            source: the feed, if it is open.
        """
        from strategy_core.market.open import is_of_files
        from strategy_core.market.source import long_ended

        with suppress(RolloutError):
            if is_of_files(self.clock.feed):
                return long_ended(source or self.clock.candles_if_any(self.now), self.now)
        return ""

    def warn(self, line: str) -> None:
        """Print a line on standard error once, if it is not empty."""
        if line and line not in self._warned:
            self._warned.add(line)
            typer.echo(f"warning: {as_called(line)}", err=True)

    @cached_property
    def actor(self) -> Actor:
        return Actor(self._actor or _system_user(), source="cli", request_id=uuid4().hex)

    def confirm(self, question: str, *, yes: bool) -> None:
        """Ask for confirmation at a terminal. Raises Unconfirmed if refused, or without a terminal and `--yes`."""
        if yes:
            return
        if not sys.stdin.isatty() or not typer.confirm(f"{question}. Continue?", err=True):
            raise Unconfirmed(question)

    def answer(self, data: object, *shown: "RenderableType") -> None:
        """Print *data* as JSON with `--json`, otherwise *shown*."""
        if self.as_json:
            from pydantic_core import to_json

            sys.stdout.write(to_json(data, indent=2, inf_nan_mode="null").decode() + "\n")
            return
        from rich.console import Console
        from rich.table import Table

        console = Console(markup=False, highlight=False, emoji=False, width=_width(sys.stdout))
        for each in shown:
            if isinstance(each, Table):
                console.print(fit(each, console))
            else:
                console.print(as_called(each) if isinstance(each, str) else each)


def _width(stream: TextIO) -> int | None:
    """Return the columns of a pipe: those of COLUMNS, or 200. None for a terminal, which knows its own."""
    if stream.isatty() or os.environ.get("COLUMNS", "").isdigit():
        return None  # Rich reads both
    return _PIPE_WIDTH


DECIDE = "Next: rollout shadow   (versions decide on the candles that have closed)"


def as_called(line: str) -> str:
    """Return *line* with the commands that it suggests (`Next: rollout plan ...`) as this user has to type them.

    A suggested command follows a colon, a semicolon or `&&`. UV_RUN_RECURSION_DEPTH is set by `uv run`, not by `uvx`.
    """
    return _SUGGESTED.sub("uv run rollout", line) if "UV_RUN_RECURSION_DEPTH" in os.environ else line


def check_folder(option: str, file: Path | None) -> None:
    """Raise InvalidSetting if the folder of a *file* that will be written does not exist."""
    if file is not None and not file.parent.is_dir():
        raise InvalidSetting(option, str(file), "a file in a folder that exists")


def answer_page(shell: Context, data: Mapping[str, Any], line: str, page: str, file: Path, open_in: str) -> None:
    """Write an HTML page to *file*, print *data* as JSON or its first *line*, and open it with *open_in* `browser`.

    If *file* is `-`, the page alone goes to standard output. Otherwise it is written under a temporary name first, so
    that *file* is complete or unchanged.
    """
    if file == _STDOUT:
        sys.stdout.write(page)
        return
    part = file.with_name(f"{file.name}.part")
    try:
        part.write_text(page, encoding="utf-8")
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
    shell.answer({**data, "output": str(file)}, f"{line}\nWritten to {file}")
    if open_in == "browser":
        typer.launch(file.resolve().as_uri())


def command(
    commands: typer.Typer,
    name: str | None = None,
    *,
    numbers: bool = False,
    old_name: str | None = None,
    old_names: Mapping[str, str] | None = None,
) -> Callable[[Callable[Concatenate[Context, P], None]], Callable[Concatenate[Context, P], None]]:
    """Register a function as a command, with its parameters after the context and the shared options.

    Args:
        name: the command's name. Default: the function's name.
        numbers: accept negative numbers as arguments, so that they are refused as values and not as unknown options.
        old_name: of the command. It still works and is in no help text.
        old_names: of options, without dashes, with the present ones. They still work and are in no help text.
    """

    def register(function: Callable[Concatenate[Context, P], None]) -> Callable[Concatenate[Context, P], None]:
        settings: dict[str, Any] = {"ignore_unknown_options": True} if numbers else {}
        if old_names is not None:
            settings["token_normalize_func"] = lambda option: old_names.get(option, option)
        run = _with_context(function)
        commands.command(name or function.__name__, context_settings=settings)(run)
        if old_name is not None:
            commands.command(old_name, context_settings=settings, hidden=True)(run)
        return function

    return register


def default_command(
    commands: typer.Typer,
) -> Callable[[Callable[Concatenate[Context, P], None]], Callable[Concatenate[Context, P], None]]:
    """Register the function that runs when a command group is called without a command."""

    def register(function: Callable[Concatenate[Context, P], None]) -> Callable[Concatenate[Context, P], None]:
        run = _with_context(function)

        def run_without_command(context: typer.Context, **given: Any) -> None:
            if context.invoked_subcommand is None:
                run(**given)

        here = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
        _set_signature(run_without_command, [here, *inspect.signature(run).parameters.values()], function.__doc__)
        commands.callback(invoke_without_command=True)(run_without_command)
        return function

    return register


def _with_context(function: Callable[Concatenate[Context, P], None]) -> Callable[..., None]:
    def run(database_url: str | None, as_json: bool, actor: str | None, **given: Any) -> None:
        _check_text(database_url, actor, *given.values())
        shell = Context(database_url=database_url, as_json=as_json, actor=actor)
        with closing(shell):
            function(shell, **given)  # type: ignore[call-arg]

    own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
    _set_signature(run, [*own, *_SHARED], function.__doc__)
    return run


def _set_signature(run: Callable[..., None], parameters: Sequence[inspect.Parameter], doc: str | None) -> None:
    """Set the parameters and the help text that Typer reads."""
    paragraphs = inspect.cleandoc(doc or "").split("\n\n")
    run.__doc__ = "\n\n".join(" ".join(each.split()) for each in paragraphs)  # the terminal wraps the lines
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}


def read_json(text: str, refuse: Callable[[list[str]], Invalid]) -> Mapping[str, Any]:
    """Parse a JSON object from *text*, or from a file given as `@FILE`. Raises *refuse* if it is not one.

    NaN and Infinity are accepted here: the validation of the fields refuses them by name.
    """
    try:
        found = json.loads(
            Path(text[1:]).read_text(encoding="utf-8") if text.startswith("@") else text,
            object_pairs_hook=each_name_once,
        )
    except OSError as error:
        raise refuse([f"cannot read {text[1:]}: {error.strerror}"]) from None
    except (ValueError, RecursionError) as error:
        raise refuse([f"not JSON: {error}"]) from None
    if not isinstance(found, dict):
        raise refuse([f"a JSON object is needed, got: {json.dumps(found)[:60]}"])
    return found


def choose_plan(shell: Context, strategy: str, chosen: str | None) -> "Plan":
    """Return the plan that `--plan` names: in the policy of the strategy, or in a file.

    Raises:
        InvalidPlan, UnknownStrategy
        UnknownPlan: it is neither in the policy nor the name of a file.
    """
    from strategy_core.domain.plan import read_plan
    from strategy_core.services.rollouts import read_policy

    if chosen is None:
        return read_plan({})
    policy = read_policy(shell.engine, strategy)
    file = Path(chosen)
    if chosen not in policy.plans and (file.suffix or file.exists()):
        return read_plan(read_json(f"@{chosen}", InvalidPlan))
    return policy.named(strategy, chosen)


def _check_text(*given: object) -> None:
    """Raise InvalidName for text that is not valid UTF-8, which Python decodes to lone surrogates.

    Paths are exempt: a file name can be any bytes.
    """
    for each in given:
        if isinstance(each, str) and any("\ud800" <= char <= "\udfff" for char in each):
            raise InvalidName("readable text", each, "UTF-8")


def _system_user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # in a container the user id may have no name
        return f"uid {os.getuid()}"


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """Show a progress bar on standard error, if that is a terminal.

    Yields a function to call with a label, the number that is done and the total.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        bar = bars.add_task("starting", total=None)

        def show(label: str, count: int, of: int) -> None:
            bars.update(bar, description=label, completed=count, total=of)

        yield show


# Tables, cells and sparklines

_SHORT = 24  # characters of a cell that may stay in a narrow table
_BARS = "▁▂▃▄▅▆▇█"


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None) -> "Table":
    from rich.box import SIMPLE
    from rich.table import Table

    made = Table(*columns, title=title, title_justify="left", box=SIMPLE)
    for column in made.columns:
        column.overflow = "fold"  # a truncated id or reason is useless
    for row in rows:
        made.add_row(*(cell(value) for value in row))
    return made


def fit(made: "Table", console: "Console") -> "RenderableType":
    """Return *made* so that no word is broken: in a narrow terminal its longest column moves below each row.

    It is returned as it is if that does not make it narrow enough.
    """
    from rich.console import Group
    from rich.measure import Measurement
    from rich.padding import Padding
    from rich.segment import Segment, Segments
    from rich.table import Table

    def width(of: Table) -> int:
        return Measurement.get(console, console.options.update(width=10_000), of).maximum

    if not made.show_header or width(made) <= console.width:
        return made
    cells = [[str(cell) for cell in column.cells] for column in made.columns]
    lengths = [max(map(len, each), default=0) for each in cells]
    longest = lengths.index(max(lengths))
    if lengths[longest] <= _SHORT:
        return made
    kept = Table(box=made.box, title=made.title, title_justify="left", padding=(0, 1, 0, 0), pad_edge=False)
    for at, column in enumerate(made.columns):
        if at != longest:
            kept.add_column(column.header, no_wrap=True)
    for row in zip(*(each for at, each in enumerate(cells) if at != longest), strict=True):
        kept.add_row(*row)
    if width(kept) > console.width:
        return made
    lines = console.render_lines(kept, pad=False)
    first = len(lines) - made.row_count - 1  # a blank line is the last
    parts: list[RenderableType] = []
    for number, line in enumerate(lines):
        parts.append(Segments([*line, Segment.line()]))
        if first <= number < first + made.row_count and (below := cells[longest][number - first]) not in ("", "–"):
            parts.append(Padding(below, (0, 0, 0, 4)))
    return Group(*parts)


def facts_table(pairs: Mapping[str, object]) -> "Table":
    """Return a table with one name and value per line."""
    from rich.table import Table

    made = Table(box=None, show_header=False, pad_edge=False)
    made.add_column(style="bold")
    made.add_column(overflow="fold")
    for name, value in pairs.items():
        made.add_row(name, cell(value))
    return made


def lines_table(rows: Iterable[Sequence[str]]) -> "Table":
    """Return rows without a heading, whose last column wraps."""
    from rich.table import Table

    made = Table(box=None, show_header=False, pad_edge=False)
    made.add_column(no_wrap=True)
    made.add_column(no_wrap=True)
    made.add_column(overflow="fold")
    for row in rows:
        made.add_row(*("\n".join(plain(line) for line in text.splitlines()) for text in row))
    return made


def plural(number: int, noun: str) -> str:
    """Return the number with its noun, such as `1 user` or `1,200 users`."""
    return f"{number:,} {noun if number == 1 else noun + 's'}"


def cell(value: object) -> str:
    """Format *value* as in reports, without terminal control characters."""
    from strategy_core.report import markdown

    return markdown.cell(value, plain)


def spark(times: Sequence[datetime], values: Sequence[float], *, width: int = 60) -> str:
    """Draw *values* over time as a row of bars. Each bar shows the value at the end of its interval.

    Args:
        times: when each value began, ascending, at least one. A value holds until the next.
        width: number of bars.
    """
    low, high = min(values), max(values)
    span = times[-1] - times[0]
    ends = [times[0] + span * (bar + 1) / width for bar in range(width - 1)] + [times[-1]]
    stood = [values[bisect_right(times, end) - 1] for end in ends]
    steps = len(_BARS) - 1
    return "".join(_BARS[round((value - low) / ((high - low) or 1.0) * steps)] for value in stood)


def plain(words: str) -> str:
    """Replace non-printable characters: the error text of a version can contain terminal control sequences."""
    return "".join(character if character.isprintable() else " " for character in words)
