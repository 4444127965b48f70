"""The `rollout` command: what an owner says in a shell, put to the services; it holds no rule of its own.

Everything heavy is imported inside the commands: `rollout --help` and shell completion stay quick.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from strategy_core.cli import alerts, audit, calibrate, database, evidence, rollouts, serve, status, versions
from strategy_core.domain.errors import RolloutError

_EPILOG = (
    "Settings are read from the environment: ROLLOUT_DATABASE_URL (sqlite:///rollout.db), ROLLOUT_FEED (where candles "
    "come from), ROLLOUT_SYMBOL, ROLLOUT_TIMEFRAME, ROLLOUT_PROMETHEUS_URL, ROLLOUT_ALERT_URLS. Exit codes: 0 done, "
    "2 wrong input, 3 not permitted, 4 not found, 5 not allowed now, 6 a version's code may not run, 130 interrupted, "
    "1 anything else."
)
_Usage: type[Exception] = typer.BadParameter.__mro__[2]  # ClickException: Typer's own, or in older ones Click's
_INTERRUPTED = 130

app = typer.Typer(
    name="rollout",
    help="Replace a trading strategy by a better version of itself without hurting the users who copy it.",
    epilog=_EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
_PARTS = (serve, versions, rollouts, calibrate, status, evidence)
for part in _PARTS:
    app.registered_commands += part.commands.registered_commands
app.add_typer(alerts.commands, name="alerts")
app.add_typer(audit.commands, name="audit")
app.add_typer(database.commands, name="db")


def _say_release(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        sys.stdout.write(f"rollout {version('strategy-rollout')}\n")
        raise typer.Exit


@app.callback()
def _rollout(
    _version: Annotated[
        bool, typer.Option("--version", help="Say which release this is.", callback=_say_release, is_eager=True)
    ] = False,
) -> None: ...


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; a refusal is one line on standard error, never a traceback."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)  # where an owner's own strategies may lie; last, so that they replace nothing
    try:
        code = typer.main.get_command(app)(given or ["--help"], prog_name="rollout", standalone_mode=False)
    except Exception as error:
        refusal = _refusal(error)
        if refusal is None:  # a fault of this software, whose traceback its developers need
            raise
        line, code = refusal
        _say(f"error: {line}")
    if code == _INTERRUPTED:
        _say("interrupted: what was not finished was not changed")
    return int(code or 0)


def _refusal(error: Exception) -> tuple[str, int] | None:
    """Return what an owner is told of *error*, and the exit code; None when it is none of his."""
    if isinstance(error, RolloutError):
        return str(error), error.exit_code
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


def _say(line: str) -> None:
    encoding = sys.stderr.encoding or "utf-8"  # which need not have all that a file's name may hold
    sys.stderr.write(" ".join(line.split()).encode(encoding, "backslashreplace").decode(encoding) + "\n")
