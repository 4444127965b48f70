"""Live trades: ingest broker reports, and summarise them beside the shadow's outcomes."""

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
    ROUTING_GRACE,
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
from strategy_core.domain.release_times import ALL_STRATEGIES
from strategy_core.domain.routing import bucket_of
from strategy_core.domain.scoring import ScoringRule
from strategy_core.domain.user_exclusions import UserExclusion, standings
from strategy_core.services.loss_limits import guard_users
from strategy_core.services.positions import keep_managers, suppressed_entries
from strategy_core.store import audit, live_trades, outcomes, positions, user_exclusions, versions
from strategy_core.store.engine import reading, retry_transient, transaction

FIRST_ROW = 2  # below the header line
STANDARD_INPUT = Path("-")
FIDELITY_HISTORY = timedelta(days=60)  # live trades of the active version that count from before a rollout's start
_REPORTED = tuple(TradeReport.model_fields)
_SAME_IN_EACH_STATE = ("user_id", "strategy_name", "version", "symbol", "opened_at")


@dataclass(frozen=True, slots=True)
class Ingested:
    """The result of a batch. *misrouted* reports are of users that routing sent to another version."""

    new: int
    known: int
    misrouted: int


@dataclass(frozen=True, slots=True)
class LiveSummary:
    """A version's live trades beside its shadow outcomes of the same period.

    Attributes:
        live: by slot, the mean over the users who traded it, comparable with the shadow. Its drawdown is that of the
            mean user's equity, marked when trades close.
        shadow: the outcomes of decisions entered in the period.
        fidelity: agreement on the slots that have both, if there are any.
        trades: number of closed user trades behind *live*.
        suppressed: entries that users could not take, because a position of another version was open. They make *live*
            quieter than the shadow.
    """

    live: Performance
    shadow: Performance
    fidelity: Fidelity | None
    trades: int
    suppressed: int = 0


@dataclass(frozen=True, slots=True)
class _Build:
    """The facts of a strategy version that its reports are checked against."""

    timeframe: timedelta
    symbols: tuple[str, ...]
    salt: str
    history: list[Serving]


def read_trades_csv(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a CSV file whose columns are the fields of `TradeReport`. `-` is standard input.

    Raises:
        InvalidReport: the file is unreadable, or a column is unknown or missing.
    """
    return read_csv(path, TradeReport)


def ingest_csv(engine: Engine, path: Path, *, now: datetime) -> Ingested:
    """Ingest the reports of a CSV file, as `ingest` does."""
    return ingest(engine, read_trades_csv(path), now=now, source=str(path), first_row=FIRST_ROW)


def ingest(
    engine: Engine,
    trades: Iterable[Mapping[str, Any]],
    *,
    now: datetime,
    source: str = "trades",
    first_row: int = 1,
) -> Ingested:
    """Ingest a batch of reports as a whole. Reports that are already stored are counted and skipped.

    Args:
        trades: mappings of the fields of `TradeReport`.
        source, first_row: name of the batch and number of its first row in error messages.

    Raises:
        InvalidReport: with the row, the field and the problem.
        UnknownStrategy, UnknownVersion
        Contradicted: a trade was reported differently before.
    """
    reports = list(checked_rows(TradeReport, trades, source=source, first_row=first_row))
    return ingest_reports(engine, reports, now=now, source=source, first_row=first_row)


@retry_transient()
def ingest_reports(
    engine: Engine, reports: Sequence[TradeReport], *, now: datetime, source: str = "trades", first_row: int = 1
) -> Ingested:
    """Ingest reports that are already validated, as `ingest` does."""
    now = utc(now, "now")
    with reading(engine) as session:
        builds = {key: _build(session, *key) for key in {(one.strategy_name, one.version) for one in reports}}
        exclusions = _exclusions(session, reports)
    rows = []
    for number, report in enumerate(reports, first_row):
        build = builds[report.strategy_name, report.version]
        if report.symbol not in build.symbols:
            known = ", ".join(build.symbols)
            raise InvalidReport(source, f"symbol: {report.symbol!r} is none of the version's; it has {known}", number)
        if max(report.opened_at, report.closed_at or report.opened_at) > now + CLOCK_SKEW:
            raise InvalidReport(source, f"opened_at, closed_at: later than now, {now:%Y-%m-%d %H:%M:%S} UTC", number)
        rows.append(_row(report, build, exclusions.get((report.user_id, report.strategy_name), ()), now))
    with transaction(engine) as session:  # write, then compare: this also catches a concurrent report of the same trade
        new = live_trades.add_trades(session, rows)
        _check_unchanged(session, reports)
        positions.keep_positions(session, reports, now)
    keep_managers(engine, now=now)
    _guard_all(engine, reports, now)  # also for known reports: an earlier call may have ended before it
    return Ingested(new=new, known=len(rows) - new, misrouted=sum(row["misrouted"] for row in rows))


def _guard_all(engine: Engine, reports: Sequence[TradeReport], now: datetime) -> None:
    """Guard the users whose trades have closed, by strategy. The first failure is raised when all have been tried."""
    closed: dict[str, set[str]] = {}
    for report in reports:
        if report.state == "closed":
            closed.setdefault(report.strategy_name, set()).add(report.user_id)
    failed: Exception | None = None
    for name, users in sorted(closed.items()):
        try:
            guard_users(engine, name, users, now=now)
        except Exception as error:  # noqa: BLE001  the users of another strategy must not lose their limit for it
            failed = failed or error
    if failed is not None:
        raise failed


def live_summary(engine: Engine, strategy_name: str, version: str, since: datetime, until: datetime) -> LiveSummary:
    """Return a version's live trades opened in [since, until) beside its shadow outcomes.

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
    """Return `live_summary` within the open transaction."""
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
        suppressed=suppressed_entries(session, strategy_name, version, since, until),
    )


def live_fidelity(
    session: Session, strategy_name: str, version: str, *, since: datetime, until: datetime
) -> Fidelity | None:
    """Return how well the shadow predicts live results, from the newest trades opened in [since, until)."""
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


def _exclusions(session: Session, reports: Sequence[TradeReport]) -> dict[tuple[str, str], list[UserExclusion]]:
    """Return the exclusions of the reported users at the time of their trades, by user and strategy."""
    if not reports:
        return {}
    names, opened = {one.strategy_name for one in reports}, [one.opened_at for one in reports]
    found = user_exclusions.exclusions_of(
        session,
        names,
        (one.user_id for one in reports),
        since=min(opened) - ROUTING_GRACE,
        until=max(opened) + CLOCK_SKEW,
    )
    return {
        (user, name): [each for each in theirs if each.strategy_name in (name, ALL_STRATEGIES)]
        for user, theirs in found.items()
        for name in names
    }


def _row(report: TradeReport, build: _Build, exclusions: Sequence[UserExclusion], now: datetime) -> dict[str, Any]:
    opened_at = report.opened_at
    serving = serving_at(build.history, opened_at)
    (standing,) = standings(exclusions, opened_at, opened_at)
    bucket = bucket_of(report.user_id, build.salt)
    return {
        **report.model_dump(),
        "state": report.state,
        "candle_s": candle_of(report.opened_at, build.timeframe),
        "canary_bp": serving.share_of(standing) if serving else 0,
        "misrouted": is_misrouted(build.history, bucket, report.symbol, report.version, opened_at, exclusions),
        "ingested_at": now,
    }


def _check_unchanged(session: Session, reports: Iterable[TradeReport]) -> None:
    """Raise Contradicted if a stored trade differs from its report."""
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


def read_csv(path: Path, model: type[BaseModel]) -> list[dict[str, Any]]:
    """Return the rows of a CSV file. `-` is standard input. Empty fields are left out.

    Raises:
        InvalidReport: the file is unreadable, or its columns are not those of *model*.
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
