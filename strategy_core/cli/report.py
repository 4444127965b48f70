"""`rollout report`: all of one rollout as a page in a browser's own format, or as data; it opens no browser."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from strategy_core.cli.shell import Shell, command

commands = typer.Typer()
_STDOUT = Path("-")


@command(commands)
def report(
    shell: Shell,
    rollout: Annotated[
        str, typer.Argument(metavar="ID", help="Of the rollout; or a strategy's name, for its newest one.")
    ],
    output: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Where to write it; `-` is standard output.")
    ] = None,
    open: Annotated[  # noqa: A002  the option's name
        Literal["none", "browser"], typer.Option(help="Show the file in a browser when it is written, or do not.")
    ] = "none",
) -> None:
    """Write a rollout's report as one HTML file: how it goes, why it was rolled back, and what it came to."""
    import sys

    from strategy_core.report.page import html_page
    from strategy_core.report.rollout import rollout_markdown, title
    from strategy_core.services.report import find_rollout, read_report

    found, generation = read_report(shell.engine, find_rollout(shell.engine, rollout), now=shell.now)
    known = found.progress.status.rollout
    facts = {"generation": generation, "report": found}
    if shell.as_json and output is None:
        shell.answer(facts)
        return
    page = html_page(title(found), rollout_markdown(found))
    if output == _STDOUT:
        sys.stdout.write(page)
        return
    file = output or Path(f"rollout-{known.strategy_name}-{known.version}-{known.id.hex[:8]}.html")
    _write(file, page)
    shell.answer(facts | {"output": str(file)}, f"{title(found)}; written to {file}")
    if open == "browser":
        typer.launch(file.resolve().as_uri())


def _write(file: Path, page: str) -> None:
    """Write under another name first: what stands under the one asked for is a whole page."""
    part = file.with_name(f"{file.name}.part")
    try:
        part.write_text(page, encoding="utf-8")
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
