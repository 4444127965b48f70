"""Markdown report of a training: the learning curves, what the model earns by year, and its card."""

from collections.abc import Sequence

from strategy_core.report.charts import training_svg
from strategy_core.report.markdown import Markdown, fact_list, image, plain, sections, signed, table
from strategy_core.training.ppo import Year
from strategy_core.training.process import Training


def training_markdown(strategy_name: str, version: str, training: Training, years: Sequence[Year]) -> str:
    """Return the report of a training.

    Args:
        years: what the model earns, from `ppo.by_year`.
    """
    card = training.model.card
    rows = [
        (
            Markdown(str(each.year)),
            "in sample" if each.in_sample else "out of sample",
            each.signals,
            Markdown(f"{each.win_rate:.1%}"),
            Markdown(f"{signed(each.mean_r, 3)} ± {each.error:.3f}"),
        )
        for each in years
    ]
    facts = [
        ("trained until", card.trained_until),
        ("seed", f"{card.seed}, the median of {card.tries} tries"),
        ("candles", card.candles),
        ("code", card.code),
    ]
    return sections(
        f"# {plain(strategy_name)} {plain(version)}: how it was trained",
        f"In sample {card.mean_r:+.3f} R a signal, {card.win_rate:.1%} won, {card.signals_per_day:.2f} signals a day. "
        "Only the years out of sample say what it may be worth.",
        image(training_svg("Training", training.learning.rewards, card.seed, years), "training"),
        table(["year", "", "signals", "won", "R a signal"], rows),
        fact_list(facts),
    )
