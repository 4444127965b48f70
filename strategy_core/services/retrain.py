"""Retrain: train a model on past candles, and register it as a new version in shadow."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import pandas as pd
from sqlalchemy import Engine
from sqlmodel import Session

from strategy_core.domain.audit import Command
from strategy_core.domain.candles import timeframe_delta
from strategy_core.domain.errors import InvalidSetting, InvalidTimeframe, NotTrainable, TrainingFailed, UnknownSymbol
from strategy_core.domain.lifecycle import Status, utc
from strategy_core.domain.scoring import ScoringRule
from strategy_core.market.source import CandleSource
from strategy_core.services.versions import check_free, register_version
from strategy_core.store import versions
from strategy_core.store.engine import reading
from strategy_core.store.model_store import ModelStore
from strategy_core.store.tables import StrategyVersion
from strategy_core.strategies.loading import resolve
from strategy_core.strategies.ppo_gold import BARS
from strategy_core.training.ppo import UPDATES, Year, by_year
from strategy_core.training.process import TRIES, Progress, Training, train_apart

SEED = 7
_TRAINABLE = "ppo_gold"


@dataclass(frozen=True, slots=True)
class Retrained:
    """A registered version, its training, and what its model earns on the feed by year.

    Attributes:
        file: of the model.
    """

    version: StrategyVersion
    training: Training
    file: Path
    years: Sequence[Year]

    @property
    def summary(self) -> str:
        """What was trained and registered, in one line."""
        card, kept, first = self.training.model.card, self.version, self.training.learning.seed
        seeds = f"seed {card.seed} of {first} to {first + card.tries - 1}"
        return (
            f"{kept.strategy_name} {kept.version} is registered as {kept.status}: trained until "
            f"{card.trained_until[:10]} with {seeds}, in sample {card.mean_r:+.3f} R a signal and "
            f"{card.signals_per_day:.2f} signals a day, model {self.file.stem[:12]}"
        )

    @property
    def notes(self) -> list[str]:
        """What the model earns after its training, a line a year, or why nothing is known."""
        later = [year for year in self.years if not year.in_sample]
        if not later:
            return ["out of sample: no candle yet. Only what it decides from now on is evidence"]
        return [
            f"out of sample in {year.year}: {year.signals} signals, {year.mean_r:+.3f} ± {year.error:.3f} R a signal"
            for year in later
        ]


def retrain(
    engine: Engine,
    command: Command,
    source: CandleSource,
    *,
    strategy_name: str,
    version: str,
    until: datetime,
    models: Path,
    seed: int = SEED,
    symbol: str | None = None,
    tries: int = TRIES,
    updates: int = UPDATES,
    deadline_s: float = 5.0,
    clock: Callable[[], datetime] | None = None,
    progress: Progress = lambda *_: None,
) -> Retrained:
    """Train `ppo_gold` on the feed's candles before *until*, and register the model as *version* in shadow.

    Symbols, timeframe and entry point are those of the strategy's newest version of `ppo_gold`, and the reward is the R
    of its scoring rule. Nothing is stored if the training or the registration is refused.

    Args:
        models: folder of the model files. The version names its file by the absolute path.
        seed: of the first of *tries* trainings, of which the median is kept.
        symbol: to train on. Needed if the version has several.
        clock: returns the time of the registration. Without it that is the time of the command.
        progress: as in `train_apart`, and with 0 updates once the training begins.

    Raises:
        UnknownStrategy, UnknownSymbol, InvalidTimeframe
        NotTrainable: no version of the strategy is `ppo_gold`.
        InvalidSetting: *until* is in the future, *symbol* is missing, or *models* cannot be written to.
        TrainingFailed: too few candles, or no try is accepted.
        InvalidName, DuplicateVersion, DuplicateFingerprint, GateRefused: as in `register_version`.
    """
    now, until, store = utc(command.now, "now"), utc(until, "until"), ModelStore(models.absolute())
    if until > now:
        raise InvalidSetting("until", f"{until:%Y-%m-%d %H:%M} UTC", f"a time up to {now:%Y-%m-%d %H:%M} UTC")
    with reading(engine) as session:
        rule = ScoringRule.model_validate(versions.get_strategy(session, strategy_name).scoring)
        like = _newest_trainable(session, strategy_name)
    check_free(engine, strategy_name, version)
    if like.timeframe != source.timeframe:
        raise InvalidTimeframe(like.timeframe, [source.timeframe])
    symbol = _chosen_symbol(source, like, symbol)
    candles = source.candles(symbol, closed_by=now)
    if len(candles) == 0:
        raise TrainingFailed(f"the feed has no candle of {symbol}")
    if (before := int((candles.index < pd.Timestamp(until)).sum())) <= BARS:
        first = f"the first opens at {candles.index[0]:%Y-%m-%d %H:%M} UTC"
        raise TrainingFailed(
            f"{before} candles before {until:%Y-%m-%d %H:%M} UTC, needed are more than {BARS}; {first}"
        )
    until = min(until, candles.index[-1].to_pydatetime() + timeframe_delta(source.timeframe))
    store.open()
    asked = {"seed": seed, "tries": tries, "updates": updates}
    progress(0, tries * updates)
    training = train_apart(candles, until, **asked, rule=rule, progress=progress)
    content = (training.model.model_dump_json() + "\n").encode()
    how = f"retrained until {until:%Y-%m-%d %H:%M} UTC with seed {seed}"
    reason = f"{command.reason} ({how})" if command.reason.strip() else how
    with store.added(content) as file:
        registered = register_version(
            engine,
            replace(command, now=clock() if clock else now, reason=reason),
            source,
            strategy_name=strategy_name,
            version=version,
            config={**like.config, "model": str(file)},
            entry_point=like.entry_point,
            symbols=like.symbols,
            timeframe=like.timeframe,
            status=Status.SHADOW,
            deadline_s=deadline_s,
        )
    return Retrained(registered, training, file, by_year(training.model, candles, rule))


def _newest_trainable(session: Session, strategy_name: str) -> StrategyVersion:
    path, known = resolve(_TRAINABLE), versions.list_versions(session, strategy_name)
    found = [each for each in known if each.entry_point in (_TRAINABLE, path)]
    if not found:
        raise NotTrainable(strategy_name, _TRAINABLE)
    return max(found, key=lambda each: each.created_at)


def _chosen_symbol(source: CandleSource, version: StrategyVersion, symbol: str | None) -> str:
    if symbol is None and len(version.symbols) > 1:
        raise InvalidSetting("symbol", symbol, f"one of {', '.join(version.symbols)}, to train on")
    chosen = symbol or version.symbols[0]
    known = [each for each in version.symbols if each in source.symbols()]
    if chosen not in known:
        raise UnknownSymbol(chosen, known)
    return chosen
