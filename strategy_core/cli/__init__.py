"""The `rollout` command line.

Heavy modules are imported inside the commands, so that `rollout --help` and shell completion stay fast.
"""

import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from strategy_core.cli import (
    agents,
    alerts,
    audit,
    calibrate,
    candles,
    database,
    declare,
    evidence,
    exclusions,
    positions,
    race,
    releases,
    rollouts,
    serve,
    status,
    toggles,
    versions,
)
from strategy_core.cli.context import as_called
from strategy_core.domain.errors import RolloutError

_PANELS = {  # of `rollout --help`: the commands of each, the most used first
    "Try it": ("demo", "up"),
    "Versions": ("register", "apply", "diff", "retrain", "list", "show", "activate", "retire"),
    "Rollouts": (
        *("status", "watch", "plan", "start", "approve", "decide", "rollback", "pause", "resume", "exclude"),
        *("positions", "drain", "hand-over", "exits", "optout"),
        *("freeze", "freezes", "unfreeze", "cancel-start", "tick", "canary", "percent", "route"),
    ),
    "Evidence": (
        *("verdicts", "report", "reports", "compare", "comparisons", "whatif", "decisions", "calibrate"),
        *("replay", "shadow", "score", "sample", "outcomes", "users"),
    ),
    "Operate": ("api", "mcp", "deploy", "clock", "token", "exporter", "isolate"),
}
_EPILOG = """Settings are environment variables, for example ROLLOUT_DATABASE_URL (default sqlite:///rollout.db), \
ROLLOUT_FEED (source of candles), ROLLOUT_SYMBOL, ROLLOUT_TIMEFRAME, ROLLOUT_PROMETHEUS_URL and ROLLOUT_ALERT_URLS.

Exit codes: 0 success, 2 invalid input, 3 not permitted, 4 not found, 5 not allowed in the current state, \
6 version's code refused, 130 interrupted, 1 any other error. Of `rollout diff`: 2 a difference, 1 any error."""
_Usage: type[Exception] = typer.BadParameter.__mro__[2]  # ClickException: Typer's own, or in older ones Click's
_INTERRUPTED = 130
_OVERRIDE = ("give an override reason", "give an override reason (--override-reason TEXT)")

app = typer.Typer(
    name="rollout",
    help="Replace a trading strategy with a better version, without harm to the users who copy it.",
    epilog=_EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
_MODULES = (versions, declare, rollouts, positions, releases, exclusions, status, evidence, calibrate, serve, agents)
_by_name = {each.name: each for module in _MODULES for each in module.commands.registered_commands}
for _panel, _names in _PANELS.items():
    for _name in _names:
        _command = _by_name.pop(_name)
        _command.rich_help_panel = _panel
        app.registered_commands.append(_command)
assert not _by_name, f"in no help panel: {sorted(map(str, _by_name))}"
app.add_typer(candles.commands, name="candles", rich_help_panel="Try it")
app.add_typer(agents.proposals, name="proposals", rich_help_panel="Rollouts")
app.add_typer(exclusions.exclusions, name="exclusions", rich_help_panel="Rollouts")
app.add_typer(toggles.commands, name="toggle", rich_help_panel="Rollouts")
app.add_typer(race.commands, name="race", rich_help_panel="Evidence")
app.add_typer(alerts.commands, name="alerts", rich_help_panel="Operate")
app.add_typer(audit.commands, name="audit", rich_help_panel="Operate")
app.add_typer(database.commands, name="db", rich_help_panel="Operate")


def _print_release(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        sys.stdout.write(f"rollout {version('strategy-rollout')}\n")
        raise typer.Exit


@app.callback()
def _rollout(
    _version: Annotated[
        bool, typer.Option("--version", help="Show the release and exit.", callback=_print_release, is_eager=True)
    ] = False,
) -> None: ...


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code. A refusal is one line on standard error, without a traceback."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)  # finds an owner's strategies, after all installed modules
    try:
        code = typer.main.get_command(app)(given or ["--help"], prog_name="rollout", standalone_mode=False)
    except Exception as error:
        refusal = _refusal(error)
        if refusal is None:  # a bug: keep the traceback
            raise
        line, code = refusal
        if given[0] == "diff":
            code = 1  # 2 is a difference
        _print_error(f"error: {as_called(line)}")
    if code == _INTERRUPTED:
        _print_error("interrupted: no unfinished change was saved")
    return int(code or 0)


def _refusal(error: Exception) -> tuple[str, int] | None:
    """Return the error line and exit code for an expected *error*, or None for a bug."""
    if isinstance(error, RolloutError):
        return str(error).replace(*_OVERRIDE), error.exit_code
    if isinstance(error, typer.Abort):
        return "", _INTERRUPTED
    if isinstance(error, _Usage):
        usage: Any = error
        where = usage.ctx.command_path if usage.ctx else "rollout"
        return f"{usage.format_message()} See: {where} --help", usage.exit_code
    if isinstance(error, OSError):
        return f"{error.filename or 'system'}: {error.strerror or error}", 1
    from sqlalchemy.exc import DBAPIError

    if isinstance(error, DBAPIError):
        from strategy_core.services.database import failure

        return failure(error), 1
    return None


def _print_error(line: str) -> None:
    """Print *line* on standard error: wrapped at words in a terminal, else as one line, which programs read."""
    encoding = sys.stderr.encoding or "utf-8"  # may lack characters that a file name contains
    text = " ".join(line.split()).encode(encoding, "backslashreplace").decode(encoding)
    if sys.stderr.isatty():
        columns = shutil.get_terminal_size().columns
        text = textwrap.fill(text, columns, break_long_words=False, break_on_hyphens=False)
    sys.stderr.write(f"{text}\n")
