"""Register a version: load it in isolation, validate its config, vet it on candles, and keep it for ever as it is."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from sqlmodel import Session

from strategy_core.domain.audit import Actor
from strategy_core.domain.candles import timeframe_delta
from strategy_core.domain.errors import (
    DuplicateFingerprint,
    DuplicateVersion,
    FixedForLife,
    GateRefused,
    InvalidName,
    InvalidTimeframe,
    InvariantRefused,
)
from strategy_core.domain.lifecycle import Status, utc
from strategy_core.domain.scoring import ScoringRule
from strategy_core.isolation.isolated import Description, IsolatedStrategy
from strategy_core.isolation.vetting import Report, vet
from strategy_core.market.source import CandleSource
from strategy_core.services.directory import count_under
from strategy_core.services.promote import activate
from strategy_core.services.transition import make_canary, standing
from strategy_core.services.workers import build_of
from strategy_core.store import audit, versions
from strategy_core.store.engine import reading, transaction
from strategy_core.store.retry import tried_again
from strategy_core.store.tables import Strategy, StrategyVersion

VETTING_BARS = 1_500  # candles a symbol, beside the warm-up: about three months of hours
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_NAME_RULE = "1 to 64 letters, digits and . _ + -, a letter or digit first"


def register_version(
    engine: Engine,
    source: CandleSource,
    *,
    strategy_name: str,
    version: str,
    config: Mapping[str, Any],
    entry_point: str,
    symbols: Sequence[str],
    timeframe: str,
    actor: Actor,
    now: datetime,
    status: Status = Status.SHADOW,
    scoring: ScoringRule | None = None,
    salt: str | None = None,
    reason: str = "",
    deadline_s: float = 5.0,
) -> StrategyVersion:
    """Vet a new version on the source's newest candles and store it with its fingerprint and the gate's report.

    Args:
        config: of the strategy's own `Params`; defaults are filled in.
        entry_point: a known name, or `package.module:Class`.
        scoring, salt: of the strategy, taken at its first registration and fixed from then on; whatever it has, unless
            given, and the usual rule and no salt for a new one.
        deadline_s: how long it may take for one decision.

    Raises:
        InvalidName, InvalidEntryPoint, InvalidConfig, UnknownSymbol, InvalidTimeframe
        StrategyFailed: its code raises while it is loaded.
        DuplicateVersion, DuplicateFingerprint: it is there already, by name or by content.
        FixedForLife: the strategy has another scoring or salt.
        GateRefused: it is not deterministic, looks ahead, depends on its window, or fails on candles.
    """
    now = utc(now, "now")
    symbols = _checked_names(strategy_name, version, symbols)
    timeframe_delta(timeframe)
    if timeframe != source.timeframe:
        raise InvalidTimeframe(timeframe, [source.timeframe])
    with reading(engine) as session:
        _check_new(session, strategy_name, version, None)
        if strategy_name in versions.strategy_names(session):
            _check_fixed(versions.get_strategy(session, strategy_name), scoring, salt)
    with IsolatedStrategy(entry_point, config, deadline_s=deadline_s) as strategy:
        described = strategy.describe()
        build = build_of(entry_point, described, symbols, timeframe)
        with reading(engine) as session:
            _check_new(session, strategy_name, version, build.digest)
        report = _vetted(strategy, described, source, strategy_name, version, symbols, now)

    @tried_again()  # the vetting before it takes seconds, and needs no second time
    def keep() -> tuple[StrategyVersion, str]:
        with transaction(engine) as session:
            rule = scoring or ScoringRule()
            versions.create_strategy(
                session, strategy_name, salt=salt or "", scoring=rule.model_dump(mode="json"), now=now
            )
            strategy_row = versions.lock_strategy(session, strategy_name)
            _check_fixed(strategy_row, scoring, salt)  # it may have been made meanwhile
            _check_new(session, strategy_name, version, build.digest)
            before = standing(session, strategy_name)
            registered = StrategyVersion(
                strategy_name=strategy_name,
                version=version,
                status=Status.SHADOW.value,
                entry_point=entry_point,
                config=described.config,
                symbols=list(symbols),
                timeframe=timeframe,
                warmup_bars=described.warmup_bars,
                fingerprint=build.digest,
                fingerprint_parts=build.parts,
                registration_report=report.model_dump(mode="json"),
                created_at=now,
            )
            versions.add_version(session, registered)
            if status is Status.ACTIVE:
                activate(session, registered, why=f"{version} registered as active", now=now)
            elif status is Status.CANARY:
                make_canary(session, strategy_row, registered, percent_bp=0, override_reason="", now=now)
            elif status is Status.RETIRED:
                versions.move(session, registered, Status.RETIRED, now)
            audit.record(
                session,
                actor,
                "register_version",
                strategy_name=strategy_name,
                version=version,
                before=before,
                after=standing(session, strategy_name) | {"fingerprint": build.digest},
                reason=reason,
                now=now,
            )
            return registered, strategy_row.salt

    registered, salted = keep()
    with suppress(DBAPIError, InvariantRefused):  # it is registered, whether or not its canaries' users can be counted
        count_under(engine, salted)
    return registered


def _checked_names(strategy_name: str, version: str, symbols: Sequence[str]) -> list[str]:
    for what, name in (("strategy name", strategy_name), ("version", version), *(("symbol", s) for s in symbols)):
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InvalidName(what, name, _NAME_RULE)
    if not symbols:
        raise InvalidName("list of symbols", list(symbols), "one symbol or more")
    return sorted(set(symbols))


def _check_new(session: Session, strategy_name: str, version: str, digest: str | None) -> None:
    for known in versions.list_versions(session, strategy_name):
        if known.version == version:
            raise DuplicateVersion(strategy_name, version)
        if known.fingerprint == digest:
            raise DuplicateFingerprint(strategy_name, version, known.version, known.fingerprint)


def _check_fixed(strategy: Strategy, scoring: ScoringRule | None, salt: str | None) -> None:
    if salt is not None and salt != strategy.salt:
        raise FixedForLife(strategy.name, "salt", strategy.salt, salt)
    if scoring is None:
        return
    fixed = ScoringRule.model_validate(strategy.scoring)
    for field in ScoringRule.model_fields:
        if (asked := getattr(scoring, field)) != (known := getattr(fixed, field)):
            raise FixedForLife(strategy.name, f"scoring's {field}", known, asked)


def _vetted(
    strategy: IsolatedStrategy,
    described: Description,
    source: CandleSource,
    strategy_name: str,
    version: str,
    symbols: Sequence[str],
    now: datetime,
) -> Report:
    bars = described.warmup_bars + VETTING_BARS
    candles = {symbol: source.candles(symbol, closed_by=now, bars=bars) for symbol in symbols}
    report = vet(strategy, candles, timeframe=source.timeframe)
    if not report.passed:
        raise GateRefused(strategy_name, version, report.failures)
    return report
