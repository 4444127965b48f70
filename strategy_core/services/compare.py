"""Set a version against the active one over the same candles: on request, or every night as a stored report."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
import pandas as pd
from sqlalchemy import Engine
from sqlmodel import Session

from strategy_core.domain.comparison import Arm, Comparison, compare
from strategy_core.domain.errors import InvalidPeriod, InvalidSetting, RolloutError, UnknownSymbol
from strategy_core.domain.lifecycle import Status, utc
from strategy_core.domain.regimes import WARMUP_BARS, regimes
from strategy_core.domain.scoring import ScoringRule
from strategy_core.domain.strategy import INSUFFICIENT_HISTORY
from strategy_core.market.source import CandleSource
from strategy_core.store import decisions, outcomes, versions
from strategy_core.store.engine import reading, transaction
from strategy_core.store.tables import ComparisonReport

_USUAL_DAYS = 30.0
_MAX_DAYS = 36_500


@dataclass(frozen=True, slots=True)
class Period:
    """Candles that opened in [start, end)."""

    start: datetime
    end: datetime


def last_days(days: float, now: datetime) -> Period:
    """Return the *days* up to *now*; else raise InvalidSetting."""
    if not 0 < days <= _MAX_DAYS:  # NaN fails the comparison too
        raise InvalidSetting("days", days, f"above 0, at most {_MAX_DAYS}")
    return period(now - timedelta(days=days), now)


def period(start: datetime, end: datetime) -> Period:
    """Return the period; one that does not end after it starts is an InvalidPeriod."""
    start, end = utc(start, "start"), utc(end, "end")
    if start >= end:
        raise InvalidPeriod(start, end)
    return Period(start, end)


def chosen_period(days: float | None, start: datetime | None, end: datetime | None, now: datetime) -> Period:
    """Return [start, end), where *end* is *now* unless given; or the last *days*, 30 unless given.

    Raises:
        InvalidSetting: both are given, or an end without a start. InvalidPeriod, NaiveTime: see `period`.
    """
    if start is None and end is None:
        return last_days(_USUAL_DAYS if days is None else days, now)
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
) -> Comparison:
    """Compare what two versions said, and what it was worth, from the decision log and the booked outcomes.

    Args:
        active_version: what to compare with; the active one, unless given.
        symbol: only this one; all that the two have in common, unless given.
        source: candles to tell regimes from; without it the comparison has no `by_regime`.

    Raises:
        UnknownStrategy, UnknownVersion, NoActiveVersion
        UnknownSymbol: the two do not both decide on it.
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
        arms = [_arm(session, strategy_name, name, symbols, over) for name in (shadow.version, active.version)]
        rule = ScoringRule.model_validate(versions.get_strategy(session, strategy_name).scoring)
    rows = arms[0].add_suffix("_shadow").join(arms[1].add_suffix("_active"), how="outer")
    opened_at = pd.DatetimeIndex(rows.index.get_level_values("timestamp"))
    names = rows.index.get_level_values("symbol")
    return compare(
        symbols=names.to_numpy(),
        opened_at=opened_at,
        shadow=_columns(rows, "shadow"),
        active=_columns(rows, "active"),
        regimes=None if source is None else _regimes(source, symbols, names, opened_at, over),
        risk_fraction=rule.risk_fraction,
    )


def compare_all(engine: Engine, source: CandleSource, *, now: datetime, days: float = 30) -> list[ComparisonReport]:
    """Compare every strategy's shadows and canary with its active version; store and return the reports."""
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
            over=over,
            source=source,
        )
        report = ComparisonReport(
            strategy_name=challenger.strategy_name,
            shadow_version=challenger.version,
            active_version=active[challenger.strategy_name],
            period_start=over.start,
            period_end=over.end,
            report=found.model_dump(mode="json"),
            created_at=now,
        )
        with transaction(engine) as session:
            outcomes.keep_report(session, report)
        reports.append(report)
    return reports


def _arm(session: Session, strategy_name: str, version: str, symbols: Sequence[str], over: Period) -> pd.DataFrame:
    rows = decisions.worth_of_decisions(session, strategy_name, version, symbols, start=over.start, end=over.end)
    frame = pd.DataFrame(rows, columns=["symbol", "timestamp", "decision", "reason", "r_multiple", "pnl", "mark"])
    frame["timestamp"] = pd.to_datetime(frame["timestamp"], utc=True)
    frame.loc[frame["reason"] == INSUFFICIENT_HISTORY, "decision"] = ""
    return frame.drop(columns="reason").set_index(["symbol", "timestamp"])


def _columns(rows: pd.DataFrame, arm: str) -> Arm:
    return Arm(
        actions=rows[f"decision_{arm}"].fillna("").to_numpy(dtype=object),
        r_multiple=rows[f"r_multiple_{arm}"].to_numpy(dtype=np.float64, na_value=np.nan),
        pnl=rows[f"pnl_{arm}"].to_numpy(dtype=np.float64, na_value=np.nan),
        marks=rows[f"mark_{arm}"].to_numpy(dtype=np.float64, na_value=0.0),
    )


def _regimes(
    source: CandleSource, symbols: Sequence[str], names: pd.Index, opened_at: pd.DatetimeIndex, over: Period
) -> "np.typing.NDArray[np.object_]":
    labels = np.full(len(names), "unknown", dtype=object)
    for symbol in symbols:
        try:
            within = len(source.candles(symbol, closed_by=over.end, since=over.start))
            known = regimes(source.candles(symbol, closed_by=over.end, bars=within + WARMUP_BARS))
        except RolloutError:  # its candles cannot be had: the comparison stands, its regime stays unknown
            continue
        mine = names == symbol
        labels[mine] = known.reindex(opened_at[mine]).fillna("unknown").to_numpy(dtype=object)
    return labels
