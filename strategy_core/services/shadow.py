"""Let every version that is not retired decide on every closed candle, and log what it said; nothing else happens."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pandas as pd
from sqlalchemy import Engine
from sqlmodel import Session

from strategy_core.domain.candles import window_hashes
from strategy_core.domain.errors import FingerprintMismatch, RolloutError
from strategy_core.domain.lifecycle import Status, utc
from strategy_core.isolation.isolated import Answer, Ask
from strategy_core.market.source import CandleSource
from strategy_core.services.workers import Workers
from strategy_core.store import audit, decisions, versions
from strategy_core.store.engine import reading, transaction
from strategy_core.store.tables import ERROR, StrategyVersion, decision_id

_LOOK_BACK = 24  # candles: one that the vendor delivers late is still caught up
_VECTORISE_FROM = 2  # candles: a live run decides one by one, as the gate checked it


@dataclass(frozen=True, slots=True)
class ShadowRun:
    """What one version did in a run; *error* says why it could not be asked at all."""

    strategy_name: str
    version: str
    role: str
    logged: int = 0
    signals: int = 0
    errors: int = 0
    error: str = ""


@dataclass(slots=True)
class _Due:
    """The candles of one symbol that a version has still to decide."""

    symbol: str
    candles: pd.DataFrame
    positions: list[int]
    revised: list[datetime] = field(default_factory=list)


def run_shadow(
    engine: Engine, source: CandleSource, workers: Workers, *, now: datetime, catch_up: int = 1_000
) -> list[ShadowRun]:
    """Log one decision per version, symbol and candle closed by *now* that has none yet.

    Run twice, late, or in parallel, the log is the same. One version's failure touches no other's decisions.

    Args:
        catch_up: how many missed candles, the newest ones, are decided per symbol and run.
    """
    now = utc(now, "now")
    with reading(engine) as session:
        asked = [version for version in versions.list_versions(session) if version.status != Status.RETIRED]
        due = {
            version.id: [_due(session, source, version, symbol, now, catch_up) for symbol in version.symbols]
            for version in asked
        }
    answered = workers.ask_each(asked, lambda version: _ask(workers, version, due[version.id]))
    return [
        _log(engine, version, due[version.id], answers, now) for version, answers in zip(asked, answered, strict=True)
    ]


def _due(
    session: Session, source: CandleSource, version: StrategyVersion, symbol: str, now: datetime, catch_up: int
) -> _Due:
    known = decisions.newest_rows(session, version.strategy_name, version.version, symbol, _LOOK_BACK)
    hashes = dict(known)
    since = known[-1][0] if known else version.created_at
    recent = source.candles(symbol, closed_by=now, since=since)
    candles = source.candles(symbol, closed_by=now, bars=len(recent) + version.warmup_bars - 1)
    opened_at = [moment.to_pydatetime() for moment in pd.DatetimeIndex(candles.index)]
    first = len(candles) - len(recent)
    positions = [at for at in range(first, len(candles)) if opened_at[at] not in hashes]
    due = _Due(symbol, candles, positions[-catch_up:])
    if known and known[0][0] in opened_at:
        newest = opened_at.index(known[0][0])
        if window_hashes(candles, [newest], version.warmup_bars) != [known[0][1]]:
            due.revised.append(known[0][0])
    return due


def _ask(workers: Workers, version: StrategyVersion, due: Sequence[_Due]) -> list[list[Answer]] | RolloutError:
    asks = [
        Ask(each.symbol, version.timeframe, each.candles, each.positions, version.warmup_bars)
        for each in due
        if each.positions
    ]
    if not asks:
        return []
    try:
        many = max(len(ask.positions) for ask in asks) >= _VECTORISE_FROM
        return workers.of(version).decide(asks, vectorised=many)
    except RolloutError as error:
        return error


def _log(
    engine: Engine,
    version: StrategyVersion,
    due: Sequence[_Due],
    answers: list[list[Answer]] | RolloutError,
    now: datetime,
) -> ShadowRun:
    name = (version.strategy_name, version.version, version.status)
    with transaction(engine) as session:
        _alert_revised(session, version, due, now)
        if isinstance(answers, RolloutError):
            _alert_refused(session, version, answers, now)
            return ShadowRun(*name, error=str(answers))
        asked = [each for each in due if each.positions]
        rows = [row for each, said in zip(asked, answers, strict=True) for row in _rows(version, each, said, now)]
        logged = decisions.log_decisions(session, rows)
    signals = sum(row["decision"] in ("buy", "sell") for row in rows)
    return ShadowRun(*name, logged, signals, sum(row["decision"] == ERROR for row in rows))


def _rows(version: StrategyVersion, due: _Due, answers: Sequence[Answer], now: datetime) -> list[dict[str, Any]]:
    opened_at = pd.DatetimeIndex(due.candles.index)
    hashes = window_hashes(due.candles, due.positions, version.warmup_bars)
    rows = []
    for at, answer, window_hash in zip(due.positions, answers, hashes, strict=True):
        timestamp = opened_at[at].to_pydatetime()
        said = answer.decision
        rows.append(
            {
                "id": decision_id(version.strategy_name, version.version, due.symbol, timestamp),
                "strategy_name": version.strategy_name,
                "version": version.version,
                "symbol": due.symbol,
                "timestamp": timestamp,
                "decision": said.action.value if said else ERROR,
                "confidence": said.confidence if said else 0.0,
                "features": dict(said.features) if said else {},
                "reason": said.reason if said else "",
                "role": version.status,
                "window_hash": window_hash,
                "duration_ms": answer.duration_ms,
                "error_kind": answer.kind,
                "error": answer.error,
                "logged_at": now,
            }
        )
    return rows


def _alert_refused(session: Session, version: StrategyVersion, error: RolloutError, now: datetime) -> None:
    kind = "version.tampered" if isinstance(error, FingerprintMismatch) else "version.refused"
    audit.raise_alert(
        session,
        kind,
        str(error),
        severity="critical",
        strategy_name=version.strategy_name,
        dedupe_key=f"{version.id} {kind} {error}",
        facts={"version": version.version, "status": version.status},
        now=now,
    )


def _alert_revised(session: Session, version: StrategyVersion, due: Sequence[_Due], now: datetime) -> None:
    for each in due:
        for timestamp in each.revised:
            audit.raise_alert(
                session,
                "candle.revised",
                f"{each.symbol} {timestamp:%Y-%m-%d %H:%M} UTC or a candle before it was revised after "
                f"{version.strategy_name} {version.version} decided on it",
                severity="warning",
                strategy_name=version.strategy_name,
                dedupe_key=f"{version.id} revised {each.symbol} {timestamp.isoformat()}",
                facts={"version": version.version, "symbol": each.symbol},
                now=now,
            )
