"""Take in what the platform's broker reports of live trades, and set it beside the shadow's outcomes."""

import csv
import io
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel
from sqlalchemy import Engine
from sqlmodel import Session

from strategy_core.domain.candles import timeframe_delta
from strategy_core.domain.errors import Contradicted, InvalidPeriod, InvalidReport
from strategy_core.domain.lifecycle import utc
from strategy_core.domain.live_trades import (
    CLOCK_SKEW,
    Fidelity,
    Serving,
    TradeReport,
    candle_of,
    fidelity,
    is_misrouted,
    serving_at,
)
from strategy_core.domain.parsing import check_columns, checked_rows
from strategy_core.domain.performance import Performance, performance
from strategy_core.domain.routing import bucket_of
from strategy_core.domain.scoring import ScoringRule
from strategy_core.store import audit, live_trades, outcomes, versions
from strategy_core.store.engine import reading, retry_transient, transaction

FIDELITY_HISTORY = timedelta(days=60)  # before a rollout's start: live trades of the active version that count for it
_REPORTED = tuple(TradeReport.model_fields)
_SAME_IN_EACH_STATE = ("user_id", "strategy_name", "version", "symbol", "opened_at")


@dataclass(frozen=True, slots=True)
class Ingested:
    """What became of a batch; *misrouted* of its reports are of users whom routing gave another version."""

    new: int
    known: int
    misrouted: int


@dataclass(frozen=True, slots=True)
class LiveSummary:
    """What a version's live trades came to, beside what its shadow says of the same period.

    Attributes:
        live: by slot, each the mean over the users who traded it, so that its numbers compare with the shadow's; its
            drawdown is that of the mean user's equity, marked when trades close.
        shadow: of the outcomes of decisions that were entered then.
        fidelity: agreement on the slots that both have; None without any.
        trades: users' closed trades behind `live`.
    """

    live: Performance
    shadow: Performance
    fidelity: Fidelity | None
    trades: int


@dataclass(frozen=True, slots=True)
class _Build:
    """What a report's strategy and version say about it."""

    timeframe: timedelta
    symbols: tuple[str, ...]
    salt: str
    history: list[Serving]


def read_trades_csv(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a CSV file whose columns are the fields of `TradeReport`; `-` is standard input.

    Raises:
        InvalidReport: it cannot be read, or has columns that are none, or lacks one that is needed.
    """
    return read_csv(path, TradeReport)


def ingest_csv(engine: Engine, path: Path, *, now: datetime) -> Ingested:
    """Take in a CSV file's reports; see `ingest`."""
    return ingest(engine, read_trades_csv(path), now=now, source=str(path), first_row=FIRST_ROW)


def ingest(
    engine: Engine,
    trades: Iterable[Mapping[str, Any]],
    *,
    now: datetime,
    source: str = "trades",
    first_row: int = 1,
) -> Ingested:
    """Take in a batch of reports, whole or not at all; a report that is known already is counted and passed over.

    Args:
        trades: mappings of the fields of `TradeReport`.
        source, first_row: what an error calls the batch, and the number of its first row.

    Raises:
        InvalidReport: with the row, the field and the problem.
        UnknownStrategy, UnknownVersion
        Contradicted: a trade was reported otherwise before.
    """
    reports = list(checked_rows(TradeReport, trades, source=source, first_row=first_row))
    return ingest_reports(engine, reports, now=now, source=source, first_row=first_row)


@retry_transient()
def ingest_reports(
    engine: Engine, reports: Sequence[TradeReport], *, now: datetime, source: str = "trades", first_row: int = 1
) -> Ingested:
    """Take in reports that are held against their model already; see `ingest`."""
    now = utc(now, "now")
    with reading(engine) as session:
        builds = {key: _build(session, *key) for key in {(one.strategy_name, one.version) for one in reports}}
    rows = []
    for number, report in enumerate(reports, first_row):
        build = builds[report.strategy_name, report.version]
        if report.symbol not in build.symbols:
            known = ", ".join(build.symbols)
            raise InvalidReport(source, f"symbol: {report.symbol!r} is none of the version's; it has {known}", number)
        if max(report.opened_at, report.closed_at or report.opened_at) > now + CLOCK_SKEW:
            raise InvalidReport(source, f"opened_at, closed_at: later than now, {now:%Y-%m-%d %H:%M:%S} UTC", number)
        rows.append(_row(report, build, now))
    with transaction(engine) as session:  # written, then compared: whoever reports the same trade at once is seen too
        new = live_trades.add_trades(session, rows)
        _check_unchanged(session, reports)
    return Ingested(new=new, known=len(rows) - new, misrouted=sum(row["misrouted"] for row in rows))


def live_summary(engine: Engine, strategy_name: str, version: str, since: datetime, until: datetime) -> LiveSummary:
    """Set a version's live trades that were opened in [since, until) beside its shadow outcomes of that period.

    Raises:
        UnknownStrategy, UnknownVersion
        InvalidPeriod: *since* is not before *until*.
    """
    since, until = utc(since, "since"), utc(until, "until")
    if since >= until:
        raise InvalidPeriod(since, until)
    with reading(engine) as session:
        versions.get_version(session, strategy_name, version)
        return summarise_trades(session, strategy_name, version, since, until)


def summarise_trades(
    session: Session, strategy_name: str, version: str, since: datetime, until: datetime
) -> LiveSummary:
    """Return `live_summary` as the open transaction sees it."""
    risk = ScoringRule.model_validate(versions.get_strategy(session, strategy_name).scoring).risk_fraction
    slots = live_trades.read_live_slots(session, strategy_name, version, since=since, until=until)
    booked = [
        outcome
        for outcome in outcomes.find_outcomes(session, strategy_name, version, since=since - timedelta(days=1))
        if since <= outcome.opened_at < until
    ]
    by_candle = outcomes.marks_by_candle(session, strategy_name, version, start=since, end=until)
    return LiveSummary(
        live=performance(slots.r, slots.pnl, marks=slots.r, risk_fraction=risk),
        shadow=performance(
            np.array([outcome.r_multiple for outcome in booked], np.float64),
            np.array([outcome.pnl for outcome in booked], np.float64),
            marks=np.array([by_candle[candle] for candle in sorted(by_candle)], np.float64),
            risk_fraction=risk,
        ),
        fidelity=_agreement(slots),
        trades=slots.trades,
    )


def live_fidelity(
    session: Session, strategy_name: str, version: str, *, since: datetime, until: datetime
) -> Fidelity | None:
    """Return how well the shadow tells live results, by the newest of the trades opened in [since, until)."""
    slots = live_trades.read_live_slots(
        session, strategy_name, version, since=since, until=until, at_most=live_trades.FIDELITY_READ
    )
    return _agreement(slots)


def _agreement(slots: live_trades.LiveSlots) -> Fidelity | None:
    both = ~np.isnan(slots.shadow_r)
    return fidelity(slots.r[both], slots.shadow_r[both])


def _build(session: Session, strategy_name: str, version: str) -> _Build:
    found = versions.get_version(session, strategy_name, version)
    return _Build(
        timeframe=timeframe_delta(found.timeframe),
        symbols=tuple(found.symbols),
        salt=versions.get_strategy(session, strategy_name).salt,
        history=audit.serving_history(session, strategy_name),
    )


def _row(report: TradeReport, build: _Build, now: datetime) -> dict[str, Any]:
    serving = serving_at(build.history, report.opened_at)
    bucket = bucket_of(report.user_id, build.salt)
    return {
        **report.model_dump(),
        "state": report.state,
        "candle_s": candle_of(report.opened_at, build.timeframe),
        "canary_bp": serving.canary_bp if serving else 0,
        "misrouted": is_misrouted(build.history, bucket, report.version, report.opened_at),
        "ingested_at": now,
    }


def _check_unchanged(session: Session, reports: Iterable[TradeReport]) -> None:
    """Raise Contradicted unless what stands there of these trades is what is reported of them."""
    stored: dict[str, dict[str, Any]] = {}
    for row in live_trades.reported(session, (report.trade_id for report in reports)):
        stored.setdefault(row.trade_id, {})[row.state] = row
    for report in reports:
        for state, row in stored[report.trade_id].items():
            if (state == "failed") != (report.state == "failed"):
                raise Contradicted(report.trade_id, "state", state, report.state)
            for field in _REPORTED if state == report.state else _SAME_IN_EACH_STATE:
                known, said = getattr(row, field), getattr(report, field)
                if known != said:
                    raise Contradicted(report.trade_id, field, known, said)


FIRST_ROW = 2  # below the header line
STANDARD_INPUT = Path("-")


def read_csv(path: Path, model: type[BaseModel]) -> list[dict[str, Any]]:
    """Return the rows of a CSV file, `-` being standard input; an empty field is as good as none.

    Raises:
        InvalidReport: it cannot be read, or its columns are not those of *model*.
    """
    source = str(path)
    try:
        text = sys.stdin.read() if path == STANDARD_INPUT else path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidReport(source, f"is not UTF-8 text: {error.reason}") from None
    except OSError as error:
        raise InvalidReport(source, f"cannot be read: {error.strerror}") from None
    lines = csv.reader(io.StringIO(text), strict=True)
    try:
        header = next(lines, [])
        check_columns(model, header, source=source)
        return [_csv_row(header, fields, source, number) for number, fields in enumerate(lines, FIRST_ROW)]
    except csv.Error as error:
        raise InvalidReport(source, f"is not CSV: {error}", lines.line_num) from None


def _csv_row(header: list[str], fields: list[str], source: str, number: int) -> dict[str, Any]:
    if len(fields) != len(header):
        raise InvalidReport(source, f"has {len(fields)} fields, the header {len(header)}", number)
    return {name: field for name, field in zip(header, fields, strict=True) if field != ""}
