"""The command `python -m strategy_core.training`."""

from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from strategy_core.domain.errors import InvalidSetting, RolloutError
from strategy_core.market.open import open_source
from strategy_core.training.ppo import UPDATES, by_year, train
from strategy_core.training.process import Learning

_FORMATS = ["%Y-%m-%d", "%Y-%m-%dT%H:%M"]


def run(
    candles: Annotated[str, typer.Option(metavar="FEED", help="Candles: a file, a folder or synthetic:GOLD.")],
    until: Annotated[datetime, typer.Option(formats=_FORMATS, help="Train on candles before this time, in UTC.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="File of the model, which must not exist yet.")],
    symbol: Annotated[str | None, typer.Option(metavar="NAME", help="Symbol, if the feed has several.")] = None,
    timeframe: Annotated[str, typer.Option(help="Timeframe of the candles.")] = "1h",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first try.")] = 7,
    tries: Annotated[int, typer.Option(min=1, max=99, help="Trainings, of which the median is kept.")] = 5,
    updates: Annotated[int, typer.Option(min=1, help="Updates of each training.")] = UPDATES,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="Also draw the training.")] = None,
) -> None:
    """Train a model of ppo_gold."""
    try:
        if plot is not None and not plot.parent.is_dir():
            raise InvalidSetting("plot", str(plot), "a file in a folder that exists")
        source = open_source(candles, symbol=symbol, timeframe=timeframe)
        end, learning = until.replace(tzinfo=UTC), Learning(seed, updates)
        known = source.candles(source.symbols()[0], closed_by=datetime.now(UTC))
        with Progress(transient=True) as shown, out.open("xb") as file:
            task = shown.add_task("training", total=tries * updates)

            def note(done: int, reward: float) -> None:
                learning.note(done, reward)
                shown.update(task, completed=done)

            try:
                model = train(known, end, seed=seed, tries=tries, updates=updates, progress=note)
            except BaseException:
                out.unlink()
                raise
            written = (model.model_dump_json() + "\n").encode()
            file.write(written)
    except (RolloutError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    card, last, years = model.card, known.index[-1], by_year(model, known)
    if plot is not None:
        from strategy_core.report.charts import training_svg

        plot.write_text(training_svg(out.stem, learning.rewards, card.seed, years), "utf-8")
    typer.echo(f"{out}: {len(written)} bytes, sha256 {sha256(written).hexdigest()}")
    typer.echo(
        f"in sample: {card.mean_r:+.3f} R a signal, {card.win_rate:.1%} won, {card.signals_per_day:.2f} signals a day, "
        f"{card.buys:.0%} buys (seed {card.seed})"
    )
    for year in years:
        where = "in sample" if year.in_sample else "out of sample"
        typer.echo(
            f"{year.year} {where:13}  {year.signals:4} signals  {year.win_rate:.1%} won  "
            f"{year.mean_r:+.3f} ± {year.error:.3f} R a signal"
        )
    if last < end:
        typer.echo(f"The candles end on {last:%Y-%m-%d}, before --until: nothing is out of sample.")


if __name__ == "__main__":
    typer.run(run)
