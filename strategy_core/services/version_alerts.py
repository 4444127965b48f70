"""Alerts about a version's shadow run, raised in the transaction that logs the run."""

import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from sqlmodel import Session

from strategy_core.domain.alerts import BREACH, REFUSED, TAMPERED, Severity
from strategy_core.domain.errors import AnswersMismatch, FingerprintMismatch, IsolationBreach, RolloutError, reason_of
from strategy_core.domain.lifecycle import Status
from strategy_core.isolation.protocol import Answer
from strategy_core.services.transitions import exposure_of, strategy_state
from strategy_core.store import alerts, decisions
from strategy_core.store.tables import StrategyVersion

_NUMBERS = re.compile(r"0x[0-9a-f]+|\d+")


def alert_refused(
    session: Session,
    version: StrategyVersion,
    symbols: Sequence[str],
    error: RolloutError,
    now: datetime,
    *,
    partly: bool = False,
) -> None:
    """Alert that a version could not be run: once per reason, until it has decided again on *symbols*.

    Reasons that differ only in numbers, such as an address in memory, are one reason. *symbols* are those of this run.
    Another machine may still decide the others.

    Args:
        partly: another worker of the version has answered, so it still decides in part. Then alert once a day.
    """
    kind = refusal_kind(error)
    name = (version.strategy_name, version.version)
    reason = reason_of(error)
    without_numbers = _NUMBERS.sub("#", reason)
    if partly:
        key = f"{kind} {without_numbers} {now:%Y-%m-%d}"
    else:
        decided = [at for symbol in symbols for at, _ in decisions.newest_rows(session, *name, symbol, 1)]
        key = f"{kind} {without_numbers} after {max(decided).isoformat() if decided else 'nothing'}"
    _alert(session, version, kind, reason, Severity.CRITICAL, key=key, now=now, partly=partly)


def refusal_kind(error: RolloutError) -> str:
    """Return the kind of the alert that a version could not be run because of *error*."""
    if isinstance(error, FingerprintMismatch | AnswersMismatch):
        return TAMPERED
    return BREACH if isinstance(error, IsolationBreach) else REFUSED


def alert_breaches(session: Session, version: StrategyVersion, answers: Iterable[Answer], now: datetime) -> None:
    """Alert once a day that a version tried to reach outside. It is critical if the version serves users."""
    given = list(answers)
    tried = [answer.error for answer in given if answer.kind == "breach"]
    if not tried:
        return
    severity = Severity.CRITICAL if version.status in (Status.CANARY, Status.ACTIVE) else Severity.WARNING
    share = f"in {len(tried)} of {len(given)} answers"
    text = f"{version.strategy_name} {version.version} tried to touch the outside {share}: {tried[0]}"
    _alert(session, version, BREACH, text, severity, key=f"{BREACH} {severity} {now:%Y-%m-%d}", now=now)


def _alert(
    session: Session,
    version: StrategyVersion,
    kind: str,
    text: str,
    severity: Severity,
    *,
    key: str,
    now: datetime,
    **facts: Any,
) -> None:
    name = version.strategy_name
    alerts.raise_alert(
        session,
        kind,
        text,
        severity=severity.value,
        strategy_name=name,
        dedupe_key=f"{version.id} {key}",
        facts={
            "version": version.version,
            "status": version.status,
            "exposed": exposure_of(session, name, version.version, strategy_state(session, name)),
            **facts,
        },
        now=now,
    )
