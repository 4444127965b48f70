"""Register a version: load it in isolation, validate its config, vet it on candles, and keep it for ever as it is."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
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
    IllegalTransition,
    InvalidName,
    InvalidTimeframe,
    InvariantRefused,
    IsolationBreach,
    Quarantined,
    RolloutOpen,
)
from strategy_core.domain.lifecycle import MAY_FOLLOW, Status, check_move, utc
from strategy_core.domain.ramp import State
from strategy_core.domain.scoring import ScoringRule
from strategy_core.isolation.client import Description, IsolatedStrategy
from strategy_core.isolation.pool import WorkerPool, build_of
from strategy_core.isolation.selftest import Attempt, prove_isolation
from strategy_core.isolation.vetting import Report, vet
from strategy_core.market.source import CandleSource
from strategy_core.services.rollouts import check_second_owner
from strategy_core.services.transitions import (
    abort_rollout,
    end_rollout,
    make_canary,
    reinstate_control,
    replace_active,
    strategy_state,
)
from strategy_core.services.users import count_under
from strategy_core.store import audit, decisions, rollouts, versions
from strategy_core.store.engine import reading, retry_transient, transaction
from strategy_core.store.tables import Rollout, ShadowDecisionLog, StrategyRow, StrategyVersion

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

    @retry_transient()  # the vetting before it takes seconds, and needs no second time
    def keep() -> tuple[StrategyVersion, str]:
        with transaction(engine) as session:
            rule = scoring or ScoringRule()
            versions.create_strategy(
                session, strategy_name, salt=salt or "", scoring=rule.model_dump(mode="json"), now=now
            )
            strategy_row = versions.lock_strategy(session, strategy_name)
            _check_fixed(strategy_row, scoring, salt)  # it may have been made meanwhile
            _check_new(session, strategy_name, version, build.digest)
            before = strategy_state(session, strategy_name)
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
                after=strategy_state(session, strategy_name) | {"fingerprint": build.digest},
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


def _check_fixed(strategy: StrategyRow, scoring: ScoringRule | None, salt: str | None) -> None:
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


@retry_transient()
def activate_version(
    engine: Engine,
    *,
    strategy_name: str,
    version: str,
    actor: Actor,
    now: datetime,
    reason: str = "",
    override_reason: str = "",
    if_generation: int | None = None,
    four_eyes: bool = False,
) -> StrategyVersion:
    """Make *version* the active one and retire its predecessor, in one step.

    A running rollout of it ends as completed; one that bakes is undone when its predecessor is activated; one of any
    other version is aborted, since what it was measured against is active no more.

    Raises:
        UnknownStrategy, UnknownVersion
        IllegalTransition: it is active already.
        Quarantined: it was rolled back, and no override reason is given.
        LostRace: the strategy is of another generation than *if_generation*, when that is given.
        FourEyes: the actor started the version's open rollout, and *four_eyes* are demanded.
    """
    with transaction(engine) as session:
        versions.lock_strategy(session, strategy_name, if_generation)
        incoming = versions.get_version(session, strategy_name, version)
        check_move(Status(incoming.status), Status.ACTIVE)
        if incoming.quarantined_at is not None and not override_reason.strip():
            raise Quarantined(strategy_name, version, incoming.quarantined_at)
        open_one = rollouts.open_rollout(session, strategy_name)
        if open_one is not None and open_one.version == version:
            check_second_owner(session, open_one, actor, four_eyes=four_eyes)
        reason = override_reason or reason
        before = strategy_state(session, strategy_name)
        why = f"{version} activated by {actor.name}" + (f": {reason}" if reason else "")
        rollout = activate(session, incoming, why=why, now=now)
        audit.record(
            session,
            actor,
            "activate_version",
            strategy_name=strategy_name,
            version=version,
            before=before,
            after=strategy_state(session, strategy_name),
            reason=reason,
            now=now,
            rollout_id=rollout.id if rollout else None,
        )
        return incoming


def activate(session: Session, incoming: StrategyVersion, *, why: str, now: datetime) -> Rollout | None:
    """Make *incoming* active within a transaction and return the rollout that this ended, if one was open."""
    rollout = rollouts.open_rollout(session, incoming.strategy_name)
    if rollout is not None and rollout.promoted_at is not None and rollout.control_version == incoming.version:
        reinstate_control(session, rollout, now=now)
        end_rollout(session, rollout, State.ROLLED_BACK, why, now)
        return rollout
    if rollout is not None:
        _end_for(session, rollout, incoming.version, why, now)
    incoming.quarantined_at = None
    replace_active(session, incoming, outgoing_becomes=Status.RETIRED, now=now)
    return rollout


@retry_transient()
def retire_version(
    engine: Engine,
    *,
    strategy_name: str,
    version: str,
    actor: Actor,
    now: datetime,
    reason: str = "",
    if_generation: int | None = None,
) -> StrategyVersion:
    """Retire a shadow version, or a canary that no rollout moves; it decides nothing more.

    Raises:
        IllegalTransition: it is the active version (its successor retires it), or retired already.
        RolloutOpen: a rollout moves it, or measures against it.
        LostRace: as in `activate_version`.
    """
    with transaction(engine) as session:
        versions.lock_strategy(session, strategy_name, if_generation)
        leaving = versions.get_version(session, strategy_name, version)
        check_move(Status(leaving.status), Status.RETIRED)
        if leaving.status == Status.ACTIVE:
            others = MAY_FOLLOW[Status.ACTIVE] - {Status.RETIRED, Status.SHADOW}
            raise IllegalTransition(Status.ACTIVE, Status.RETIRED, others, "activate another version: it retires this")
        rollout = rollouts.open_rollout(session, strategy_name)
        if rollout is not None and version in (rollout.version, rollout.control_version):
            raise RolloutOpen(strategy_name, rollout.version, rollout.state, "roll it back or let it end first")
        before = strategy_state(session, strategy_name)
        if leaving.status == Status.CANARY:
            rollouts.set_canary_share(session, strategy_name, 0)
        versions.move(session, leaving, Status.RETIRED, now)
        audit.record(
            session,
            actor,
            "retire_version",
            strategy_name=strategy_name,
            version=version,
            before=before,
            after=strategy_state(session, strategy_name),
            reason=reason,
            now=now,
        )
        return leaving


def _end_for(session: Session, rollout: Rollout, version: str, why: str, now: datetime) -> None:
    """End a rollout that the activation of *version* decides, and leave nobody with its canary."""
    if rollout.version == version:
        end_rollout(session, rollout, State.COMPLETED, why, now)
        return
    abort_rollout(session, rollout, why, now)


@dataclass(frozen=True, slots=True)
class Isolation:
    """What the walls hold, and what the version did to them.

    Attributes:
        tried: every reach for the outside from a worker such as the version gets.
        breaches: decisions in which the version itself tried one, oldest first.
        loading: what it tried while it was loaded just now; "" when nothing.
    """

    tried: Sequence[Attempt]
    breaches: Sequence[ShadowDecisionLog]
    loading: str

    @property
    def isolated(self) -> bool:
        """Whether every try was refused: then no version reaches outside, whatever it tries."""
        return all(each.refused for each in self.tried)


def check_isolation(engine: Engine, workers: WorkerPool, *, strategy_name: str, version: str) -> Isolation:
    """Try the walls around a version, load it behind them, and read from the log what it has tried before.

    Raises:
        UnknownStrategy, UnknownVersion
        FingerprintMismatch, InvalidEntryPoint, InvalidConfig, StrategyFailed: it cannot be loaded any more.
    """
    with reading(engine) as session:
        checked = versions.get_version(session, strategy_name, version)
        breaches = decisions.find_breaches(session, strategy_name, version)
    try:
        loading = "; ".join(workers.dedicated(checked).breaches)
    except IsolationBreach as breach:
        loading = breach.tried
    return Isolation(prove_isolation(), breaches, loading)
