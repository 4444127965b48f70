"""All that is known of one rollout at one moment, read for its gates; nothing is decided or written here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.exc import DBAPIError
from sqlmodel import Session

from strategy_core.domain.candles import timeframe_delta
from strategy_core.domain.errors import RolloutError
from strategy_core.domain.evidence import Evidence
from strategy_core.domain.gates import Finding
from strategy_core.domain.metric import MetricThreshold
from strategy_core.domain.performance import max_drawdown
from strategy_core.domain.plan import Plan
from strategy_core.domain.ramp import judge_all
from strategy_core.domain.scoring import ScoringRule
from strategy_core.market.source import CandleSource
from strategy_core.services.book import Booking, look
from strategy_core.services.live import FIDELITY_HISTORY, live_fidelity
from strategy_core.store import evidence, live, samples, slots, versions
from strategy_core.store.engine import failure
from strategy_core.store.rollout_tables import Rollout


@dataclass(frozen=True, slots=True)
class Pair:
    """What canary and control version decide on; fixed for their lives.

    Attributes:
        symbols: that both decide on: on any other neither late nor silent means anything.
    """

    symbols: Sequence[str]
    timeframe: timedelta


@dataclass(frozen=True, slots=True)
class Feed:
    """By symbol, the newest candle that must have been decided by now; or why that cannot be said."""

    due: Mapping[str, datetime]
    problem: str = ""


def read_pair(session: Session, rollout: Rollout) -> Pair:
    canary = versions.get_version(session, rollout.strategy_name, rollout.version)
    active = versions.get_version(session, rollout.strategy_name, rollout.control_version)
    return Pair(sorted(set(canary.symbols) & set(active.symbols)), timeframe_delta(canary.timeframe))


def read_feed(source: CandleSource, pair: Pair, moment: datetime) -> Feed:
    """Return which candles must have been decided by *moment*; what keeps the source from saying so is told instead."""
    try:
        due = {symbol: source.expected_at(symbol, moment) for symbol in pair.symbols}
    except Exception as error:  # noqa: BLE001  a source's own fault is blindness, and must not keep a gate from ruling
        return Feed({}, in_a_line(error))
    return Feed({symbol: candle for symbol, candle in due.items() if candle is not None})


def judge(session: Session, rollout: Rollout, plan: Plan, feed: Feed, now: datetime) -> list[Finding]:
    """Return what every gate finds in the rollout's evidence of this moment; it writes nothing."""
    margins = plan.stages[rollout.stage_index].margins
    pair = read_pair(session, rollout)
    booking = look(session, rollout, pair.symbols)
    return judge_all(plan.gates, gather(session, rollout, plan, pair, feed, booking, now), margins)


def gather(
    session: Session, rollout: Rollout, plan: Plan, pair: Pair, feed: Feed, booking: Booking, now: datetime
) -> Evidence:
    """Return the evidence of a rollout since it began; never reset at a stage."""
    strategy_name, since = rollout.strategy_name, rollout.started_at
    canary, active = rollout.version, rollout.control_version
    settled, spoken = booking.settled, booking.spoken
    symbol = max(feed.due, key=lambda name: feed.due[name] - (settled.get(name) or since), default=None)
    canary_marks, active_marks = evidence.read_marks(session, strategy_name, canary, active, since=since)
    scoring = ScoringRule.model_validate(versions.get_strategy(session, strategy_name).scoring)
    patience = scoring.horizon + 1 + plan.late_candles
    late = slots.oldest_overdue(
        session, strategy_name, booking.pending, patience, timeframe=pair.timeframe, spoken=spoken
    )
    asked: dict[str, Any] = {"symbols": pair.symbols, "since": since, "spoken": spoken}
    reported = _reported(session, rollout, plan, now)
    return Evidence(
        now=now,
        started_at=since,
        stage_entered_at=rollout.stage_entered_at,
        totals=booking.book.totals,
        history=booking.history,
        pending_slots=len(booking.pending),
        canary=evidence.read_record(session, strategy_name, canary, active, **asked),
        active=evidence.read_record(session, strategy_name, active, canary, **asked),
        canary_drawdown=max_drawdown(canary_marks, scoring.risk_fraction),
        active_drawdown=max_drawdown(active_marks, scoring.risk_fraction),
        risk_fraction=scoring.risk_fraction,
        newest_candle=settled.get(symbol) if symbol else None,
        due_candle=feed.due[symbol] if symbol else None,
        overdue=f"no outcome of {late.version} on {late.symbol} {late.timestamp:%Y-%m-%d %H:%M} UTC yet"
        if late
        else "",
        feed_problem=feed.problem,
        **reported,
    )


def _reported(session: Session, rollout: Rollout, plan: Plan, now: datetime) -> dict[str, Any]:
    """Return what the platform and its metrics say; when that cannot be read, why: it must silence no gate on slots."""
    name, since = rollout.strategy_name, rollout.started_at
    canary, active = rollout.version, rollout.control_version
    metrics = {gate.name: gate.samples_needed for gate in plan.gates if isinstance(gate, MetricThreshold)}
    try:
        with session.begin_nested():  # else PostgreSQL would refuse whatever is asked after an error
            sampled = samples.read_samples(session, rollout.id, metrics)
            if not live.reports_any(session, name):
                return {"samples": sampled}
            return {
                "samples": sampled,
                "orders": live.read_orders(session, name, canary, active, since=since),
                "fidelity": live_fidelity(session, name, active, since=since - FIDELITY_HISTORY, until=now),
            }
    except (DBAPIError, ArithmeticError, ValueError) as error:  # rows it refuses to read, or that make no number
        if isinstance(error, DBAPIError) and error.connection_invalidated:
            raise  # it is the tick that is lost, and is tried again: nothing can be asked on what is left of it
        return {"platform_problem": in_a_line(error)}


def in_a_line(error: Exception) -> str:
    """Return what *error* says as a line that any database takes; one of the database's own without its statement."""
    if isinstance(error, DBAPIError):
        return failure(error)
    text = " ".join("".join(char if char.isprintable() else " " for char in str(error)).split())
    return text if isinstance(error, RolloutError) else f"{type(error).__name__}: {text}"
