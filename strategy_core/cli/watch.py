"""`rollout watch`: the status of strategies, read again every few seconds."""

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from strategy_core.cli.context import Context, as_called, plain

if TYPE_CHECKING:
    from rich.console import RenderableType

    from strategy_core.services.status import StrategyStatus

    Read = Callable[[], tuple[Sequence[StrategyStatus], list[RenderableType]]]


def watch_status(shell: Context, read: "Read", *, every_s: float) -> None:
    """Show what *read* returns, again every *every_s* seconds, until Ctrl-C.

    A terminal shows one screen, kept up to date. A pipe, and `--json`, get a line when a strategy's verdict changes.
    """
    with suppress(KeyboardInterrupt):
        if sys.stdout.isatty() and not shell.as_json:
            _draw(shell, read, every_s)
        else:
            _follow(shell, read, every_s)


def _follow(shell: Context, read: "Read", every_s: float) -> None:
    last: dict[str, str] = {}
    while True:
        shell.forget_now()
        for each in read()[0]:
            if last.get(each.strategy_name) != each.sentence:
                last[each.strategy_name] = each.sentence
                _print_line(shell, each)
        time.sleep(every_s)


def _print_line(shell: Context, status: "StrategyStatus") -> None:
    from pydantic_core import to_json

    line = f"{shell.now:%Y-%m-%d %H:%M} {status.strategy_name}: {plain(status.sentence)}"
    if shell.as_json:
        kind = status.rollout.verdict.kind if status.rollout else None
        found = {"at": shell.now, "strategy_name": status.strategy_name, "kind": kind, "sentence": status.sentence}
        line = to_json(found).decode()
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _draw(shell: Context, read: "Read", every_s: float) -> None:
    from rich.console import Console, Group
    from rich.live import Live

    console = Console(markup=False, highlight=False, emoji=False)
    with Live(console=console, screen=True, auto_refresh=False) as screen:
        while True:
            shell.forget_now()
            _, shown = read()
            lines = [as_called(each) if isinstance(each, str) else each for each in shown]
            screen.update(Group(*lines, "", f"as of {shell.now:%Y-%m-%d %H:%M:%S} UTC. Ctrl-C ends."), refresh=True)
            time.sleep(every_s)
