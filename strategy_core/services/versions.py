"""Versions: validate and register, activate, retire, and check their isolation."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import Engine
from sqlmodel import Session

from strategy_core.domain.alerts import CLOSED, Severity
from strategy_core.domain.audit import Command, values_digest
from strategy_core.domain.candles import timeframe_delta
from strategy_core.domain.errors import (
    DuplicateFingerprint,
    DuplicateVersion,
    FixedForLife,
    GateRefused,
    IllegalTransition,
    InvalidConfig,
    InvalidName,
    InvalidTimeframe,
    InvalidToggles,
    IsolationBreach,
    Quarantined,
    RolloutOpen,
    StillDeciding,
    StrategyFailed,
)
from strategy_core.domain.lifecycle import MAY_FOLLOW, Status, check_move, utc
from strategy_core.domain.plan import load_plan
from strategy_core.domain.ramp import State
from strategy_core.domain.scoring import ScoringRule
from strategy_core.isolation.client import Description, IsolatedStrategy
from strategy_core.isolation.pool import WorkerPool, build_of
from strategy_core.isolation.probe import Attempt, prove_isolation
from strategy_core.isolation.vetting import Vetted, vet
from strategy_core.market.source import CandleSource
from strategy_core.services.positions import AT_ONCE, FLATTEN, check_orphans, manages_positions, release_some
from strategy_core.services.release_times import check_release
from strategy_core.services.rollouts import check_second_owner, check_serves_all
from strategy_core.services.shadow import recorded_answers
from strategy_core.services.transitions import (
    Change,
    ChangeAlert,
    abort_rollout,
    end_rollout,
    make_canary,
    recorded_change,
    reinstate_control,
    replace_active,
)
from strategy_core.services.users import count_missing
from strategy_core.store import decisions, rollouts, versions
from strategy_core.store.engine import reading, retry_transient, transaction
from strategy_core.store.tables import Rollout, ShadowDecisionLog, StrategyRow, StrategyVersion

VETTING_BARS = 1_500  # candles per symbol after the warm-up: about three months of hours
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_NAME_RULE = "1 to 64 letters, digits and . _ + -, a letter or digit first"


def register_version(
    engine: Engine,
    command: Command,
    source: CandleSource,
    *,
    strategy_name: str,
    version: str,
    config: Mapping[str, Any],
    entry_point: str,
    symbols: Sequence[str],
    timeframe: str,
    status: Status = Status.SHADOW,
    scoring: ScoringRule | None = None,
    salt: str | None = None,
    deadline_s: float = 5.0,
) -> StrategyVersion:
    """Validate and register an immutable version, with its fingerprint and the report of its vetting.

    Args:
        source: vetting uses its newest candles.
        config: validated by the strategy's own `Params`, which fill in defaults.
        entry_point: a known name, or `package.module:Class`.
        scoring, salt: set once, with the strategy's first version. None keeps the present ones. A new strategy gets
            the default scoring and an empty salt.
        deadline_s: maximum seconds per decision.

    Raises:
        InvalidName, InvalidEntryPoint, InvalidConfig, UnknownSymbol, InvalidTimeframe
        InvalidToggles: it declares toggles that have another type, no default, or would change its decisions.
        StrategyFailed: its code raises while it is loaded.
        DuplicateVersion, DuplicateFingerprint: a version of this name or content is registered.
        FixedForLife: the strategy has another scoring or salt.
        GateRefused: it is not deterministic, looks ahead, depends on its window, or fails on candles.
        ReleaseClosed: it would be active, and the strategy is frozen.
    """
    now = utc(command.now, "now")
    command = replace(command, now=now)
    symbols = _check_names(strategy_name, version, symbols)
    timeframe_delta(timeframe)
    if timeframe != source.timeframe:
        raise InvalidTimeframe(timeframe, [source.timeframe])
    with reading(engine) as session:
        _check_new(session, strategy_name, version, None)
        if strategy_name in versions.strategy_names(session):
            check_fixed(versions.get_strategy(session, strategy_name), scoring, salt)
    with IsolatedStrategy(entry_point, config, deadline_s=deadline_s) as strategy:
        described = strategy.describe()
        _check_declared(entry_point, described)
        build = build_of(entry_point, described, symbols, timeframe)
        with reading(engine) as session:
            _check_new(session, strategy_name, version, build.digest)
        strategy.load_next(described)  # vetting compares the given config with the stored one
        vetted = _vet(strategy, described, source, strategy_name, version, symbols, now)
    asked = {"trained_until": described.trained_until, "given_digest": values_digest(config)}
    report = vetted.report.model_copy(update=asked)
    if described.trained_until is not None and described.trained_until > now:
        until = f"it was trained until {described.trained_until:%Y-%m-%d %H:%M} UTC"
        report.warnings.append(f"{until}: what it decides live before then is no evidence")

    @retry_transient()  # retry without the vetting, which takes seconds
    def store() -> StrategyVersion:
        with transaction(engine) as session:
            rule = scoring or ScoringRule()
            versions.create_strategy(
                session, strategy_name, salt=salt or "", scoring=rule.model_dump(mode="json"), now=now
            )
            strategy_row = versions.lock_strategy(session, strategy_name)
            check_fixed(strategy_row, scoring, salt)  # a concurrent call may have created it
            _check_new(session, strategy_name, version, build.digest)
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
            with recorded_change(session, command, "register_version", strategy_name, version) as change:
                versions.add_version(session, registered)
                if vetted.known_answers is not None:
                    versions.add_answers(session, registered, vetted.known_answers)
                if status is Status.ACTIVE:
                    check_release(session, command, f"activate {version} of", strategy_name, for_canary=False)
                    activate(session, change, registered, why=f"{version} registered as active", now=now)
                elif status is Status.CANARY:
                    make_canary(session, command, strategy_row, registered, percent_bp=0)
                elif status is Status.RETIRED:
                    versions.move(session, registered, Status.RETIRED, now)
                change.after |= {
                    "fingerprint": build.digest,
                    "status": registered.status,
                    "salt": strategy_row.salt,
                    "scoring": values_digest(strategy_row.scoring),
                }
            return registered

    registered = store()
    count_missing(engine)  # the version is registered even if users cannot be counted
    return registered


def _check_declared(entry_point: str, described: Description) -> None:
    if described.trained_until_problem:
        raise StrategyFailed(described.trained_until_problem)
    if described.toggle_problems:
        raise InvalidToggles(entry_point, described.toggle_problems)


def _check_names(strategy_name: str, version: str, symbols: Sequence[str]) -> list[str]:
    for what, name in (("strategy name", strategy_name), ("version", version), *(("symbol", s) for s in symbols)):
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InvalidName(what, name, _NAME_RULE)
    if not symbols:
        raise InvalidName("list of symbols", list(symbols), "one symbol or more")
    return sorted(set(symbols))


def check_free(engine: Engine, strategy_name: str, version: str) -> None:
    """Raise InvalidName or DuplicateVersion if no version of this name can be registered."""
    _check_names(strategy_name, version, ["any"])
    with reading(engine) as session:
        _check_new(session, strategy_name, version, None)


def _check_new(session: Session, strategy_name: str, version: str, digest: str | None) -> None:
    for known in versions.list_versions(session, strategy_name):
        if known.version == version:
            raise DuplicateVersion(strategy_name, version)
        if known.fingerprint == digest:
            raise DuplicateFingerprint(strategy_name, version, known.version, known.fingerprint)


def check_fixed(strategy: StrategyRow, scoring: ScoringRule | None, salt: str | None) -> None:
    if salt is not None and salt != strategy.salt:
        raise FixedForLife(strategy.name, "salt", strategy.salt, salt)
    if scoring is None:
        return
    fixed = ScoringRule.model_validate(strategy.scoring)
    for field in ScoringRule.model_fields:
        if (asked := getattr(scoring, field)) != (known := getattr(fixed, field)):
            raise FixedForLife(strategy.name, f"scoring's {field}", known, asked)


def _vet(
    strategy: IsolatedStrategy,
    described: Description,
    source: CandleSource,
    strategy_name: str,
    version: str,
    symbols: Sequence[str],
    now: datetime,
) -> Vetted:
    bars = described.warmup_bars + VETTING_BARS
    candles = {symbol: source.candles(symbol, closed_by=now, bars=bars) for symbol in symbols}
    vetted = vet(strategy, candles, timeframe=source.timeframe)
    stored = strategy.describe()
    if replace(stored, vectorised=described.vectorised) != described:
        raise InvalidConfig(strategy.entry_point, ["it is another one each time that it is loaded"])
    if not vetted.report.passed:
        raise GateRefused(strategy_name, version, vetted.report.failures)
    return vetted


@retry_transient()
def activate_version(engine: Engine, command: Command, *, strategy_name: str, version: str) -> StrategyVersion:
    """Make *version* the active one and retire its predecessor, in one step.

    An open rollout of *version* ends as completed. A rollout that bakes is rolled back if its predecessor is activated.
    A rollout of any other version is aborted, since its control is no longer active.

    Raises:
        UnknownStrategy, UnknownVersion
        IllegalTransition: the version is already active, or a symbol is excluded from its canary.
        Quarantined: the version was rolled back, and the command has no override reason.
        LostRace: the command's generation is outdated.
        ReleaseClosed: a freeze, or outside the windows of the version's open rollout, and the command has no override
            reason. The predecessor of a version that bakes may be activated at any time: that rolls back.
        FourEyes: the actor started the version's open rollout.
    """
    with transaction(engine) as session:
        versions.lock_strategy(session, strategy_name, command.if_generation)
        incoming = versions.get_version(session, strategy_name, version)
        check_move(Status(incoming.status), Status.ACTIVE)
        if incoming.quarantined_at is not None and not command.override_reason.strip():
            raise Quarantined(strategy_name, version, incoming.quarantined_at)
        open_one = rollouts.open_rollout(session, strategy_name)
        own = open_one is not None and open_one.version == version
        if not _undoes_promotion(open_one, version):
            windows = load_plan(open_one.plan).advance_windows if open_one is not None and own else ()
            check_release(session, command, f"activate {version} of", strategy_name, windows, for_canary=False)
        if open_one is not None and own:
            check_second_owner(session, open_one, command)
            check_serves_all(session, open_one)
        reason = command.stated_reason
        why = f"{version} activated by {command.actor.shown}" + (f": {reason}" if reason else "")
        with recorded_change(session, command, "activate_version", strategy_name, version) as change:
            rollout = activate(session, change, incoming, why=why, now=command.now)
            change.rollout_id = rollout.id if rollout else None
        return incoming


def activate(session: Session, change: Change, incoming: StrategyVersion, *, why: str, now: datetime) -> Rollout | None:
    """Make *incoming* active within a transaction, and return the open rollout that this ended, if any.

    The version that was active is retired, or stays in shadow as long as it manages open positions.
    """
    rollout = rollouts.open_rollout(session, incoming.strategy_name)
    if rollout is not None and _undoes_promotion(rollout, incoming.version):
        reinstate_control(session, rollout, now=now)
        end_rollout(session, rollout, State.ROLLED_BACK, why, now)
        return rollout
    if rollout is not None:
        _end_rollout_for(session, rollout, incoming.version, why, now)
    incoming.quarantined_at = None
    outgoing = versions.with_status(session, incoming.strategy_name, Status.ACTIVE)
    drains = outgoing is not None and manages_positions(session, outgoing)
    replace_active(session, incoming, outgoing_becomes=Status.SHADOW if drains else Status.RETIRED, now=now)
    if drains:
        change.after["outgoing"] = Status.SHADOW.value
    return rollout


def _undoes_promotion(rollout: Rollout | None, version: str) -> bool:
    """Return whether the activation of *version* rolls back a rollout that bakes."""
    return rollout is not None and rollout.promoted_at is not None and rollout.control_version == version


def retire_version(
    engine: Engine,
    command: Command,
    *,
    strategy_name: str,
    version: str,
    close: bool = False,
    orphans_to: str = "",
) -> StrategyVersion:
    """Retire a shadow version, or a canary outside any rollout. It makes no more decisions.

    A version that manages open positions is retired only if *orphans_to* names where these go, with a reason. Of more
    than AT_ONCE, the first leave it before it is retired, AT_ONCE in each transaction and under an event of their own,
    so that a rollback waits for no more than these. If that is interrupted, the version decides on the others, and
    asking again retires it.

    With *close* the active version can be retired too, if no other version decides. The strategy is then closed: its
    users get no version, and `NoActiveVersion` says so, until a version is activated or registered as active.

    Args:
        orphans_to: the version that takes over its open positions, or `flatten`: the platform closes them.

    Raises:
        PositionsOpen: it manages open positions, and *orphans_to* or a reason is missing.
        HandOverRefused: the named version cannot take them over.
        IllegalTransition: the version is active (its successor retires it) and *close* is not set, or already retired.
        RolloutOpen: an open rollout moves it or compares with it.
        StillDeciding: the strategy has versions in shadow or a canary, so it cannot be closed.
        LostRace: the command's generation is outdated.
    """
    released = 0
    while (retired := _retire(engine, command, strategy_name, version, close, orphans_to, released)) is None:
        released += AT_ONCE
    return retired


@retry_transient()
def _retire(
    engine: Engine, command: Command, strategy_name: str, version: str, close: bool, orphans_to: str, released: int
) -> StrategyVersion | None:
    """Retire the version, as above. None: it has given up AT_ONCE of its positions, and manages more."""
    with transaction(engine) as session:
        versions.lock_strategy(session, strategy_name, None if released else command.if_generation)
        leaving = versions.get_version(session, strategy_name, version)
        check_move(Status(leaving.status), Status.RETIRED)
        closes = leaving.status == Status.ACTIVE
        if closes and not close:
            others = MAY_FOLLOW[Status.ACTIVE] - {Status.RETIRED, Status.SHADOW}
            why = "activate another version: it retires this; or close the strategy"
            raise IllegalTransition(Status.ACTIVE, Status.RETIRED, others, why)
        rollout = rollouts.open_rollout(session, strategy_name)
        if rollout is not None and version in (rollout.version, rollout.control_version):
            raise RolloutOpen(strategy_name, rollout.version, rollout.state, "roll it back or let it end first")
        if closes:
            _check_alone(session, strategy_name, leaving)
        count = check_orphans(session, command, leaving, orphans_to)
        if count > AT_ONCE:
            if not released:
                _record_release(session, command, leaving, orphans_to, count)
            release_some(session, command, leaving, orphans_to)
            return None
        with recorded_change(session, command, "retire_version", strategy_name, version) as change:
            if leaving.status == Status.CANARY:
                rollouts.set_canary_share(session, strategy_name, 0)
            if count:
                release_some(session, command, leaving, orphans_to)
                change.after |= {"positions": released + count, "orphans_to": orphans_to}
            versions.move(session, leaving, Status.RETIRED, command.now)
            if closes:
                change.alert = _closed_alert(command, strategy_name, version)
        return leaving


def _record_release(session: Session, command: Command, leaving: StrategyVersion, orphans_to: str, count: int) -> None:
    unkeyed = replace(command, actor=replace(command.actor, idempotency_key=None))  # the retirement has the key
    flat = orphans_to == FLATTEN
    action = "flatten_positions" if flat else "hand_over_positions"
    with recorded_change(session, unkeyed, action, leaving.strategy_name, leaving.version) as change:
        change.after |= {"positions": count} | ({"at": command.now.isoformat()} if flat else {"to": orphans_to})


def _check_alone(session: Session, strategy_name: str, version: StrategyVersion) -> None:
    """Raise StillDeciding if a version beside *version* is not retired."""
    others = [
        each.version
        for each in versions.list_versions(session, strategy_name)
        if each.id != version.id and each.status != Status.RETIRED
    ]
    if others:
        raise StillDeciding(strategy_name, others)


def _closed_alert(command: Command, strategy_name: str, version: str) -> ChangeAlert:
    reason = f": {command.stated_reason}" if command.stated_reason else ""
    return ChangeAlert(
        CLOSED,
        f"{strategy_name} was closed by {command.actor.shown}{reason}; {version} was its last version",
        severity=Severity.WARNING.value,
        dedupe_key=f"closed {strategy_name} {version} {command.now.isoformat()}",
        exposed_before=True,
    )


def _end_rollout_for(session: Session, rollout: Rollout, version: str, why: str, now: datetime) -> None:
    """End the rollout that the activation of *version* completes or aborts."""
    if rollout.version == version:
        end_rollout(session, rollout, State.COMPLETED, why, now)
        return
    abort_rollout(session, rollout, why, now)


@dataclass(frozen=True, slots=True)
class Isolation:
    """The result of `check_isolation`.

    Attributes:
        tried: attempts to reach outside, from a worker like the version's.
        breaches: decisions in which the version tried to reach outside, oldest first.
        loading: what the version tried when it was loaded now, or "".
    """

    tried: Sequence[Attempt]
    breaches: Sequence[ShadowDecisionLog]
    loading: str

    @property
    def isolated(self) -> bool:
        """Whether every attempt was refused, so that no version can reach outside."""
        return all(each.refused for each in self.tried)


def check_isolation(engine: Engine, workers: WorkerPool, *, strategy_name: str, version: str) -> Isolation:
    """Test the isolation of a version's worker, load the version in it, and read its logged breaches.

    Raises:
        UnknownStrategy, UnknownVersion
        FingerprintMismatch, AnswersMismatch, InvalidEntryPoint, InvalidConfig, StrategyFailed: it can no longer be
            loaded.
    """
    with reading(engine) as session:
        checked = versions.get_version(session, strategy_name, version)
        breaches = decisions.find_breaches(session, strategy_name, version)
    try:
        loading = "; ".join(workers.dedicated(checked, partial(recorded_answers, engine)).breaches)
    except IsolationBreach as breach:
        loading = breach.tried
    return Isolation(prove_isolation(), breaches, loading)
