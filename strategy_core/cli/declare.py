"""Commands that compare a file of declared objects with the database, and apply it."""

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from strategy_core.cli.context import Context, Reason, command
from strategy_core.domain.audit import Command

if TYPE_CHECKING:
    from strategy_core.domain.declaration import Declaration

commands = typer.Typer()

DRIFT = 2  # exit code of `diff`
_MARKS = {"add": "+", "change": "~", "refused": "!"}

DeclarationFile = Annotated[Path, typer.Argument(metavar="FILE", help="YAML file with the declaration.")]


def _print_schema(asked: bool) -> None:
    if asked:
        import json

        from strategy_core.domain.declaration import declaration_schema

        sys.stdout.write(json.dumps(declaration_schema(), indent=2) + "\n")
        raise typer.Exit


@command(commands)
def apply(
    shell: Context,
    file: DeclarationFile,
    reason: Reason = "",
    _schema: Annotated[
        bool,
        typer.Option(
            "--schema", help="Print the JSON Schema of the file, for editors.", callback=_print_schema, is_eager=True
        ),
    ] = False,
) -> None:
    """Register the versions, and set the policies and rules of toggles, that a file declares.

    A second run changes nothing. Versions are registered in shadow: what users get is not declared, and stays. If the
    file asks for something that cannot be done, nothing is applied. If one object fails, those before it are applied,
    and those after it are not tried.
    """
    from dataclasses import asdict

    from strategy_core.services.declarations import ApplyOutcome, apply_declaration

    done = apply_declaration(
        shell.engine,
        Command(shell.actor, shell.now, reason),
        shell.candles,
        _read(file),
        deadline_s=shell.settings.decision_deadline_s,
    )
    counts = Counter(each.outcome for each in done)
    total = ", ".join(f"{counts[outcome]} {outcome}" for outcome in ApplyOutcome if counts[outcome])
    lines = [f"{each.outcome}: {each.what}: {each.detail}" for each in done]
    shell.answer([asdict(each) for each in done], *lines, total or "no changes")
    if failed := next((each for each in done if each.outcome is ApplyOutcome.FAILED), None):
        raise typer.Exit(failed.exit_code)


@command(commands)
def diff(shell: Context, file: DeclarationFile) -> None:
    """Show what `rollout apply` would add, change or refuse.

    Exit codes: 0 no difference, 2 a difference, 1 any error.
    """
    from strategy_core.services.declarations import compare_declaration

    found = compare_declaration(shell.engine, _read(file), deadline_s=shell.settings.decision_deadline_s)
    differences = [{"drift": each.drift, "what": each.what, "detail": each.detail} for each in found.differences]
    counts = Counter(each.drift for each in found.differences)
    total = ", ".join(
        f"{counts[drift]} to {drift}" if drift != "refused" else f"{counts[drift]} refused" for drift in counts
    )
    lines = [f"{_MARKS[each.drift]} {each.what}: {each.detail}" for each in found.differences]
    notes = [f"note: {line}" for line in found.notes]
    shell.answer({"differences": differences, "notes": found.notes}, *lines, *notes, total or "no difference")
    if differences:
        raise typer.Exit(DRIFT)


def _read(file: Path) -> "Declaration":
    from strategy_core.domain.declaration import MOST_BYTES, read_declaration

    with file.open("rb") as opened:
        return read_declaration(opened.read(MOST_BYTES + 1), str(file))
