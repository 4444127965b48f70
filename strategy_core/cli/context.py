"""What every command has: its shared options, the settings and database behind them, and one way to answer."""

import getpass
import inspect
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, ParamSpec
from uuid import uuid4

import typer

from strategy_core.domain.audit import Actor, storable
from strategy_core.domain.errors import Invalid, InvalidName, Unconfirmed
from strategy_core.domain.parsing import each_name_once

if TYPE_CHECKING:
    from rich.console import RenderableType
    from sqlalchemy import Engine

    from strategy_core.market.source import CandleSource
    from strategy_core.settings import Settings

P = ParamSpec("P")
_PIPE_WIDTH = 200  # columns: what a table gets where no terminal says how wide it is
_DAY = len("2026-01-31")


def _said(reason: str) -> str:
    """Return *reason*, which answers for users' money; a blank one raises InvalidName."""
    if not reason.strip():
        raise InvalidName("reason", reason, "a text that is not blank")
    return storable(reason)


StrategyName = Annotated[str, typer.Argument(metavar="STRATEGY", help="The strategy's name.")]
VersionName = Annotated[str, typer.Argument(metavar="VERSION", help="One of its versions.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; kept in the audit trail.", callback=storable)]
NeededReason = Annotated[str, typer.Option("--reason", help="Why; kept in the audit trail.", callback=_said)]
Override = Annotated[
    str,
    typer.Option(
        "--override-reason",
        help="Why a quarantined version may be tried again.",
        callback=lambda text: text and _said(text),
    ),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Symbol = Annotated[str | None, typer.Option(help="Only this symbol.")]
Limit = Annotated[int, typer.Option("--limit", min=1, max=1_000_000, help="The newest so many.")]


class Context:
    """One call of the command line."""

    def __init__(self, *, database_url: str | None, as_json: bool, actor: str | None) -> None:
        self.as_json = as_json
        self.database_url = database_url
        self._actor = actor
        self._least = False

    @cached_property
    def settings(self) -> "Settings":
        from strategy_core.observe import configure_logs
        from strategy_core.settings import least_settings, read_settings

        configure_logs(level=logging.WARNING)
        settings = least_settings() if self._least else read_settings()
        if self.database_url is None:
            return settings
        return settings.model_copy(update={"database_url": self.database_url})

    def need_the_database_alone(self) -> None:
        """Go on whatever other settings are not valid: a rollback must not wait for the mending of one."""
        self._least = True

    @cached_property
    def now(self) -> datetime:
        return self.settings.now()

    @cached_property
    def database(self) -> "Engine":
        """The database as it is, or is not yet."""
        return self.settings.open_engine()

    @cached_property
    def engine(self) -> "Engine":
        """The database, whose schema is up to date; else raise SchemaOutdated."""
        from strategy_core.services.database import check_schema

        check_schema(self.database)
        return self.database

    def close(self) -> None:
        if "database" in self.__dict__:
            self.database.dispose()

    def candles(self) -> "CandleSource":
        return self.settings.open_candles(self.now)

    @cached_property
    def actor(self) -> Actor:
        return Actor(self._actor or _system_user(), source="cli", request_id=uuid4().hex)

    def confirm(self, question: str, *, yes: bool) -> None:
        """Ask an owner at a terminal, who may say no; elsewhere `--yes` must have been given."""
        if yes:
            return
        if not sys.stdin.isatty() or not typer.confirm(f"{question}. Go on?", err=True):
            raise Unconfirmed(question)

    def answer(self, data: object, *shown: "RenderableType") -> None:
        """Print *data* as JSON for a program, or *shown* for people."""
        if self.as_json:
            from pydantic_core import to_json

            sys.stdout.write(to_json(data, indent=2, inf_nan_mode="null").decode() + "\n")
            return
        from rich.console import Console

        width = None if sys.stdout.isatty() else _PIPE_WIDTH
        console = Console(markup=False, highlight=False, emoji=False, width=width)
        for each in shown:
            console.print(each)


def command(
    commands: typer.Typer, name: str | None = None, *, numbers: bool = False
) -> Callable[[Callable[Concatenate[Context, P], None]], Callable[Concatenate[Context, P], None]]:
    """Make a command of a function: its parameters after the shell, and the options that all commands share.

    Args:
        name: of the command; the function's, unless given.
        numbers: whether an argument may be a number below zero, to be refused by what it means, not as an option.
    """

    def register(function: Callable[Concatenate[Context, P], None]) -> Callable[Concatenate[Context, P], None]:
        settings = {"ignore_unknown_options": True} if numbers else {}
        commands.command(name or function.__name__, context_settings=settings)(_in_a_shell(function))
        return function

    return register


def default_command(
    commands: typer.Typer,
) -> Callable[[Callable[Concatenate[Context, P], None]], Callable[Concatenate[Context, P], None]]:
    """Make a function what a group of commands does when none of them is named."""

    def register(function: Callable[Concatenate[Context, P], None]) -> Callable[Concatenate[Context, P], None]:
        run = _in_a_shell(function)

        def unless_named(context: typer.Context, **given: Any) -> None:
            if context.invoked_subcommand is None:
                run(**given)

        here = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
        _take(unless_named, [here, *inspect.signature(run).parameters.values()], function.__doc__)
        commands.callback(invoke_without_command=True)(unless_named)
        return function

    return register


def _in_a_shell(function: Callable[Concatenate[Context, P], None]) -> Callable[..., None]:
    def run(database_url: str | None, as_json: bool, actor: str | None, **given: Any) -> None:
        _check_text(database_url, actor, *given.values())
        shell = Context(database_url=database_url, as_json=as_json, actor=actor)
        with closing(shell):
            function(shell, **given)  # type: ignore[call-arg]

    own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
    _take(run, [*own, *_SHARED], function.__doc__)
    return run


def _take(run: Callable[..., None], parameters: Sequence[inspect.Parameter], doc: str | None) -> None:
    """Give *run* the parameters and the help that Typer reads."""
    run.__doc__ = doc
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}


def read_json(text: str, refuse: Callable[[list[str]], Invalid]) -> Mapping[str, Any]:
    """Return the JSON object that *text* is, or that the file holds which it names as `@FILE`; else raise *refuse*.

    NaN and Infinity are read as such: whoever validates the fields names the one that has it.
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
        raise refuse([f"a JSON object is needed, this is: {json.dumps(found)[:60]}"])
    return found


def moment(text: str | None, what: str) -> datetime | None:
    """Return a time given in a shell: ISO 8601 with its offset, or a day alone, which begins at midnight UTC."""
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidName(f"time for {what}", text, "2026-01-31, or 2026-01-31T12:00Z") from None
    return found.replace(tzinfo=UTC) if len(text) == _DAY else found


def _check_text(*given: object) -> None:
    """Raise InvalidName unless every text can be stored: a shell hands bytes that are not UTF-8 on as half characters.

    A path may hold such bytes: it is no text.
    """
    for each in given:
        if isinstance(each, str) and any("\ud800" <= char <= "\udfff" for char in each):
            raise InvalidName("readable text", each, "UTF-8")


def _system_user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container may run under a number that has no name
        return f"uid {os.getuid()}"


_SHARED = [
    inspect.Parameter(
        "database_url",
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[
            str | None,
            typer.Option(envvar="ROLLOUT_DATABASE_URL", help="sqlite:///FILE or postgresql://…"),
        ],
    ),
    inspect.Parameter(
        "as_json",
        inspect.Parameter.KEYWORD_ONLY,
        default=False,
        annotation=Annotated[bool, typer.Option("--json", help="Answer with data, for programs.")],
    ),
    inspect.Parameter(
        "actor",
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[str | None, typer.Option(help="Who the audit trail names; you, unless given.")],
    ),
]
