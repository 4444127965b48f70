"""The command that checks a file of candles."""

import logging
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from strategy_core.cli.context import Context, check_folder, command
from strategy_core.domain.errors import InvalidSetting

if TYPE_CHECKING:
    from collections.abc import Iterator

    from strategy_core.market.check import FileCheck, SymbolCheck

commands = typer.Typer(help="Check files of candles.", no_args_is_help=True)

_PRICES = ("open", "high", "low", "close", "volume")


@command(commands)
def check(
    shell: Context,
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="File of candles, with the options of a feed: FILE?tz=Europe/Athens.")
    ],
    picture: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="Also draw the closes.")] = None,
) -> None:
    """Show how a file of candles is read, and the feed to use for it.

    If the file cannot be read as it is, the error names the option to add.
    """
    from strategy_core.market.check import check_file
    from strategy_core.observe import configure_logs

    check_folder("picture", picture)
    settings = shell.settings
    configure_logs(level=logging.ERROR)  # repairs and a held-back row are part of the answer
    now = settings.now() if settings.replay_from is None else None  # a replay ends no file
    found = check_file(file, now=now, calendar=settings.calendar_name, timeframe=settings.timeframe)
    if picture is not None:
        picture.write_text(_drawn(found), encoding="utf-8")
    for doubt in found.doubts:
        shell.warn(doubt)
    shell.answer(_data(found), *_shown(found))


def _drawn(found: "FileCheck") -> str:
    from strategy_core.report.charts import Curve, prices_svg

    if len(found.symbols) > 1:
        names = ", ".join(each.symbol for each in found.symbols)
        raise InvalidSetting("picture", names, "one symbol: add symbol=NAME to the file")
    (one,) = found.symbols
    if one.candles.empty:
        raise InvalidSetting("picture", one.symbol, "a symbol with candles that have closed")
    times = [time.to_pydatetime() for time in one.candles.index]
    curve = Curve(one.symbol, times, one.candles["close"].tolist())
    return prices_svg(f"{one.symbol}, {found.timeframe}: {len(one.candles):,} candles", curve)


def _data(found: "FileCheck") -> dict[str, Any]:
    from dataclasses import asdict

    def of(each: "SymbolCheck") -> dict[str, Any]:
        times = each.candles.index
        ends = {"first": times[0].isoformat(), "last": times[-1].isoformat()} if len(times) else {}
        return {
            "symbol": each.symbol,
            "candles": len(times),
            **ends,
            "gaps": each.gaps,
            "first_gap": each.first_gap and each.first_gap.isoformat(),
            "closures": each.closures,
            "repairs": asdict(each.repairs),
            "held_back": each.held_back,
        }

    facts = {name: getattr(found, name) for name in found.__slots__ if name != "symbols"}
    return facts | {"symbols": [of(each) for each in found.symbols]}


def _shown(found: "FileCheck") -> "Iterator[Any]":
    from rich.text import Text

    from strategy_core.cli.context import facts_table, plain

    named = ", ".join(
        name if theirs == name else f"{theirs} -> {name}" for name, theirs in found.columns.items() if theirs
    )
    yield facts_table(
        {
            "written as": found.form,
            "columns": named,
            "not read": ", ".join(found.unread) or "none",
            "times": found.times,
            "time zone": found.zone,
            "stamped by": found.stamp,
            "timeframe": found.timeframe,
        }
    )
    for each in found.symbols:
        yield from _symbol_shown(each)
    lines = [f"export ROLLOUT_FEED={quote(found.feed)}", f"export ROLLOUT_TIMEFRAME={found.timeframe}"]
    if found.calendar == "always":
        lines.append("export ROLLOUT_CALENDAR=always")
    yield ""
    for line in lines:
        yield Text(plain(line), no_wrap=True, overflow="ignore")


def _symbol_shown(each: "SymbolCheck") -> "Iterator[Any]":
    from strategy_core.cli.context import plain, table

    repairs = each.repairs
    counted = {
        "duplicates dropped": repairs.duplicates,
        "rows sorted": repairs.moved,
        "unclosed candle dropped": repairs.unclosed,
        "prices mended by rounding": repairs.noise,
    }
    mended = ", ".join(f"{what} {count:,}" for what, count in counted.items() if count) or "no repairs"
    yield ""
    counted_gaps = f"{each.gaps:,} gap" if each.gaps == 1 else f"{each.gaps:,} gaps"
    gaps = counted_gaps + (f", the first at {each.first_gap:%Y-%m-%d %H:%M}" if each.first_gap else "")
    closed = f", {each.closures:,} weekends, breaks or holidays" if each.closures else ""
    yield plain(f"{each.symbol}: {len(each.candles):,} candles, {gaps}{closed}, {mended}")
    if each.held_back:
        yield plain(f"last row held back: {each.held_back}")
    if each.candles.empty:
        return
    shown = [0, 1, len(each.candles) - 1] if len(each.candles) > 2 else list(range(len(each.candles)))
    rows = [
        (f"{each.candles.index[at]:%Y-%m-%d %H:%M}", *(f"{each.candles[name].iloc[at]:.10g}" for name in _PRICES))
        for at in shown
    ]
    yield table(["opens, UTC", *_PRICES], rows)
