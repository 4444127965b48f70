"""Comparison of a version with the active one over the same candles, on request or as a stored nightly report."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import chain

import pandas as pd
from sqlalchemy import Engine
from sqlmodel import Session

from strategy_core.domain.candles import timeframe_delta
from strategy_core.domain.comparison import Comparison, compare
from strategy_core.domain.errors import InvalidPeriod, InvalidSetting, RolloutError, UnknownSymbol
from strategy_core.domain.indicators import WARMUP_BARS, Runs, regimes, runs
from strategy_core.domain.lifecycle import Status, utc
from strategy_core.domain.scoring import ScoringRule
from strategy_core.market.source import CandleSource
from strategy_core.services.evidence import live_since, replayed_by_both, shared_symbols, trained_until
from strategy_core.services.history import ComparisonCurves, comparison_curves, split_pair, split_sample
from strategy_core.store import outcomes, replays, versions
from strategy_core.store.comparison import ComparedPair, marked_spans, max_drawdown, read_cells
from strategy_core.store.engine import reading, snapshot, transaction
from strategy_core.store.tables import ComparisonReport

_DEFAULT_DAYS = 30.0
_MAX_DAYS = 36_500
_MINUTE = "%Y-%m-%d %H:%M"


@dataclass(frozen=True, slots=True)
class Period:
    """Candles that opened in [start, end)."""

    start: datetime
    end: datetime


def last_days(days: float, now: datetime) -> Period:
    """Return the last *days* up to *now*.

    Raises:
        InvalidSetting
    """
    if not 0 < days <= _MAX_DAYS:  # NaN fails the comparison too
        raise InvalidSetting("days", days, f"above 0, at most {_MAX_DAYS}")
    return period(now - timedelta(days=days), now)


def period(start: datetime, end: datetime) -> Period:
    """Return the period [start, end).

    Raises:
        InvalidPeriod: *start* is not before *end*.
    """
    start, end = utc(start, "start"), utc(end, "end")
    if start >= end:
        raise InvalidPeriod(start, end)
    return Period(start, end)


def chosen_period(days: float | None, start: datetime | None, end: datetime | None, now: datetime) -> Period:
    """Return [start, end), or the last *days*. The defaults are *now* for *end* and 30 for *days*.

    Raises:
        InvalidSetting: both are given, or an end without a start.
        InvalidPeriod, NaiveTime: as in `period`.
    """
    if start is None and end is None:
        return last_days(_DEFAULT_DAYS if days is None else days, now)
    if days is not None or start is None:
        raise InvalidSetting("period", f"days {days}, start {start}, end {end}", "days, or start, or start and end")
    return period(start, now if end is None else end)


def compare_versions(
    engine: Engine,
    *,
    strategy_name: str,
    shadow_version: str,
    over: Period,
    active_version: str | None = None,
    symbol: str | None = None,
    source: CandleSource | None = None,
    live_only: bool = False,
) -> Comparison:
    """Compare the decisions of two versions and their scored outcomes.

    On candles before both decided live, replayed decisions are compared if there are any. `candles_replayed` counts
    them. Candles on which either version was trained are compared apart, in `in_sample`, and count nowhere else.

    Args:
        active_version: the version to compare with. The default is the active one.
        symbol: compare only this symbol. The default is all symbols that both versions decide on.
        source: candles from which market regimes are derived. Without it, the comparison has no `by_regime`.
        live_only: leave replayed decisions out.

    Raises:
        UnknownStrategy, UnknownVersion, NoActiveVersion
        UnknownSymbol: the versions do not both decide on *symbol*.
    """
    with reading(engine) as session:
        shadow = versions.get_version(session, strategy_name, shadow_version)
        active = (
            versions.active_version(session, strategy_name)
            if active_version is None
            else versions.get_version(session, strategy_name, active_version)
        )
        symbols = sorted(set(shadow.symbols) & set(active.symbols))
        if symbol is not None and symbol not in symbols:
            raise UnknownSymbol(symbol, symbols)
        symbols = [symbol] if symbol else symbols
        rule = ScoringRule.model_validate(versions.get_strategy(session, strategy_name).scoring)
        pair = ComparedPair(strategy_name, shadow.version, active.version, symbols, over.start, over.end)
        pairs = [pair] if live_only else split_pair(session, pair, live_since(shadow, active))
    until = trained_until(shadow, active)
    inside, outside = split_sample(pairs, until)
    with snapshot(engine) as session:
        found = _compare_pairs(session, outside, source, rule)
        earlier = _compare_pairs(session, inside, source, rule) if inside else None
        if earlier is not None and not earlier.candles_compared:
            earlier = None
        return found.model_copy(update={"trained_until": until, "in_sample": earlier})


def _compare_pairs(
    session: Session, pairs: Sequence[ComparedPair], source: CandleSource | None, rule: ScoringRule
) -> Comparison:
    """Compare two versions on the candles of the *pairs*, which follow each other. Without any it is empty."""
    if not pairs:
        return compare([])
    if source is not None:
        pairs = [replace(each, regimes=_regimes_of(source, each)) for each in pairs]
    cells = chain.from_iterable(read_cells(session, each) for each in pairs)
    marked = [(each, marked_spans(session, each, rule.horizon)) for each in pairs]
    starts = [span.start for _, spans in marked for span in spans]
    if not starts:
        return compare(cells)
    names = (pairs[0].shadow, pairs[0].active)
    ours, theirs = (max_drawdown(session, marked, version, rule.risk_fraction) for version in names)
    return compare(cells, drawdowns=(ours, theirs)).model_copy(update={"drawdowns_from": min(starts)})


def replayed_period(engine: Engine, *, strategy_name: str, version: str) -> Period | None:
    """Return the candles that both the version and the active one have replayed, if there are any."""
    with reading(engine) as session:
        chosen = versions.get_version(session, strategy_name, version)
        active = versions.active_version(session, strategy_name)
        both = replayed_by_both(session, chosen, active)
    return None if both is None else Period(both[0], both[1] + timeframe_delta(chosen.timeframe))


def why_empty(engine: Engine, *, strategy_name: str, version: str, over: Period) -> list[str]:
    """Return why a comparison with the active version has no candle, and what to do about it, a line each."""
    with reading(engine) as session:
        chosen = versions.get_version(session, strategy_name, version)
        active = versions.active_version(session, strategy_name)
        symbols = shared_symbols(chosen, active)
        span = replays.replayed_span(session, strategy_name, version, symbols)
    until = trained_until(chosen, active)
    if until is not None and over.start < until and span is not None and span.first < min(over.end, until):
        command = f"rollout replay {strategy_name} {version} --from {until:%Y-%m-%d}"
        if span.newest >= until:
            command = f"rollout compare {strategy_name} {version} --from {until:%Y-%m-%d}"
        return [f"no candle was compared after the training, which ended at {until:{_MINUTE}} UTC", f"Next: {command}"]
    if not symbols:
        return [f"no candle was compared: {version} and the active {active.version} have no symbol in common"]
    since = live_since(chosen, active)
    why = f"no candle was compared: {version} and {active.version} decide on live candles since {since:{_MINUTE}} UTC"
    if span is None:
        return [why, f"Next: rollout replay {strategy_name} {version}"]
    following = f"rollout compare {strategy_name} {version} --from {span.first:%Y-%m-%d}"
    replayed = f"{version} is replayed from {span.first:{_MINUTE}} to {span.newest:{_MINUTE}} UTC"
    if span.first < min(over.end, since) and span.newest >= over.start:  # the active version lacks these candles
        following = f"rollout replay {strategy_name} {version} --from {over.start:%Y-%m-%d}"
    return [f"{why}, and {replayed}", f"Next: {following}"]


def compare_with_curves(
    engine: Engine,
    *,
    strategy_name: str,
    shadow_version: str,
    over: Period,
    symbol: str | None,
    source: CandleSource | None,
    now: datetime,
    active_version: str | None = None,
) -> tuple[Comparison, ComparisonCurves]:
    """Compare a version with another one and return the comparison and its curves. No report is stored.

    Args:
        source: as in `compare_versions`.
        active_version: the version to compare with. The default is the active one.

    Raises:
        UnknownStrategy, UnknownVersion, NoActiveVersion, UnknownSymbol: as in `compare_versions`.
    """
    found = compare_versions(
        engine,
        strategy_name=strategy_name,
        shadow_version=shadow_version,
        active_version=active_version,
        over=over,
        symbol=symbol,
        source=source,
    )
    with reading(engine) as session:
        active = active_version or versions.active_version(session, strategy_name).version
        report = _report(strategy_name, shadow_version, active, over, found, now)
        report.symbol = symbol or ""
        return found, comparison_curves(session, report)


def compare_all(engine: Engine, source: CandleSource, *, now: datetime, days: float = 30) -> list[ComparisonReport]:
    """Compare each strategy's shadows and canary with its active version. Store and return the reports."""
    over = last_days(days, utc(now, "now"))
    with reading(engine) as session:
        everything = versions.list_versions(session)
    active = {v.strategy_name: v.version for v in everything if v.status == Status.ACTIVE}
    reports = []
    for challenger in everything:
        if challenger.status not in (Status.SHADOW, Status.CANARY) or challenger.strategy_name not in active:
            continue
        found = compare_versions(
            engine,
            strategy_name=challenger.strategy_name,
            shadow_version=challenger.version,
            active_version=active[challenger.strategy_name],  # another version may be active by now
            over=over,
            source=source,
            live_only=True,  # stored reports are read as shadow evidence
        )
        name = challenger.strategy_name
        report = _report(name, challenger.version, active[name], over, found, now)
        with transaction(engine) as session:
            outcomes.keep_report(session, report)
        reports.append(report)
    return reports


def _report(
    strategy_name: str, shadow: str, active: str, over: Period, found: Comparison, now: datetime
) -> ComparisonReport:
    return ComparisonReport(
        strategy_name=strategy_name,
        shadow_version=shadow,
        active_version=active,
        period_start=over.start,
        period_end=over.end,
        report=found.model_dump(mode="json"),
        created_at=now,
    )


def _regimes_of(source: CandleSource, pair: ComparedPair) -> dict[str, Runs]:
    return {symbol: _regimes(source, symbol, Period(pair.start, pair.end)) for symbol in pair.symbols}


def _regimes(source: CandleSource, symbol: str, over: Period) -> Runs:
    timeframe = timeframe_delta(source.timeframe)
    try:
        within = len(source.candles(symbol, closed_by=over.end, since=over.start))
        labels = regimes(source.candles(symbol, closed_by=over.end, bars=within + WARMUP_BARS))
    except RolloutError:  # without its candles the regime stays unknown, and the comparison still holds
        labels = pd.Series([], index=pd.DatetimeIndex([], tz=UTC), dtype="str")
    return runs(labels, start=over.start, timeframe=timeframe)
