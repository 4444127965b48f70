"""Rollouts as owners steer them: preview, start, approve, decide, pause, resume, and exclude a symbol."""

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from sqlmodel import Session

from strategy_core.domain.audit import Command, values_digest
from strategy_core.domain.candles import timeframe_delta
from strategy_core.domain.capital import served_of_asked
from strategy_core.domain.errors import (
    CannotExclude,
    CapitalUnknown,
    FourEyes,
    HarmfulInShadow,
    IllegalTransition,
    Incomparable,
    MissingReason,
    NoCanary,
    NotAwaiting,
    RolloutOpen,
    StartScheduled,
    UnknownRollout,
)
from strategy_core.domain.exclusions import stored_time
from strategy_core.domain.gates.base import SEVERITY, Freshness, Verdict
from strategy_core.domain.lifecycle import Status, utc
from strategy_core.domain.overlap import ServingCanary, on_another_too
from strategy_core.domain.pair_noise import FEW_DAYS
from strategy_core.domain.parsing import same_owner
from strategy_core.domain.plan import Plan, load_plan
from strategy_core.domain.policy import Policy, load_policy
from strategy_core.domain.preview import Audience, LiveShadow, Preview, earliest_entries, harm_in_shadow, preview
from strategy_core.domain.ramp import Ruling, State, Step
from strategy_core.domain.risk import FULL_SIZE
from strategy_core.domain.routing import as_percent
from strategy_core.domain.scoring import ScoringRule
from strategy_core.services.canary_capital import StageEntry, enter_stage, facts_of_large, try_enter_stage
from strategy_core.services.evidence import Feed, Shadow, add_replays, judge, left_out_until, read_shadow
from strategy_core.services.release_times import check_release, closed_now, load_times
from strategy_core.services.risk import measure_pair
from strategy_core.services.rollback import never_locked_out, roll_back
from strategy_core.services.tick import apply_ruling
from strategy_core.services.transitions import (
    ChangeAlert,
    check_canary,
    check_open,
    make_canary,
    recorded_change,
    served_bp,
)
from strategy_core.services.users import count_missing, plan_audience
from strategy_core.store import audit, decisions, release_times, rollouts, versions
from strategy_core.store.engine import reading, retry_transient, transaction
from strategy_core.store.tables import Rollout, StrategyVersion


@retry_transient()
def start_rollout(
    engine: Engine,
    command: Command,
    *,
    strategy_name: str,
    version: str,
    plan: Plan,
    in_replay: Callable[[Plan], Plan] | None = None,
) -> Rollout:
    """Start a rollout: freeze *plan* and make *version* the canary at its first stage.

    *version* is in shadow, or a canary that was set by hand.

    Args:
        plan: one of the strategy's policy, if that has plans.
        in_replay: widens the limits of the plan for a replay.

    Raises:
        PlanNotAllowed: the policy has other plans, and the command has no override reason.
        UnarmedPlan: no gate has a vote.
        UnknownStrategy, UnknownVersion, NoActiveVersion
        RolloutOpen: another rollout of the strategy is open.
        IllegalTransition: the version is not in shadow, or another version is the canary.
        Quarantined: the version was rolled back, and the command has no override reason.
        Incomparable: the version and the active one have no candles in common.
        HarmfulInShadow: the plan's gate `harm` is proven by the shadow, and the command has no override reason.
        ReleaseClosed: a freeze, or outside the plan's release windows, and the command has no override reason.
        StartScheduled: a start of the strategy is scheduled.
        CapitalUnknown: the cap on capital is blind, and the command has no override reason.
        LostRace: the command's generation is outdated.
    """
    count_missing(engine)
    with transaction(engine) as session:
        versions.lock_strategy(session, strategy_name, command.if_generation)
        check_nothing_scheduled(session, strategy_name)
        return open_new_rollout(
            session, command, strategy_name=strategy_name, version=version, plan=plan, in_replay=in_replay
        )


def open_new_rollout(
    session: Session,
    command: Command,
    *,
    strategy_name: str,
    version: str,
    plan: Plan,
    in_replay: Callable[[Plan], Plan] | None = None,
) -> Rollout:
    """Do what `start_rollout` does, within a transaction that has locked the strategy."""
    check_release(session, command, "start a rollout of", strategy_name, plan.advance_windows)
    chosen, active, shadow = check_start(session, command, strategy_name=strategy_name, version=version, plan=plan)
    plan_name = policy_of(session, strategy_name).name_of(plan)
    plan = in_replay(plan) if in_replay else plan
    now = command.now
    with recorded_change(session, command, "start_rollout", strategy_name, version) as change:
        entry = enter_stage(session, command, strategy_name, plan, 0, starts=True)
        _check_capital_known(strategy_name, entry, command)
        share = entry.share
        if chosen.status == Status.CANARY:  # a canary set by hand: the plan takes it over
            rollouts.set_canary_share(session, strategy_name, share.percent_bp, asked_bp=share.asked_bp)
        else:
            strategy = versions.get_strategy(session, strategy_name)
            make_canary(session, command, strategy, chosen, percent_bp=share.percent_bp, asked_bp=share.asked_bp)
        change.after |= facts_of_large(strategy_name, entry.new_large)
        risk = measure_pair(session, chosen, active, now, applied=plan.risk_scale)
        rollout = Rollout(
            strategy_name=strategy_name,
            version=version,
            control_version=active.version,
            state=State.RUNNING.value,
            plan=plan.model_dump(mode="json"),
            started_at=now,
            stage_entered_at=now,
            stage_extended_at=now,
            risk_scale=risk.scale,
            risk=risk.model_dump(mode="json"),
        )
        rollouts.add_rollout(session, rollout, shadow.history.model_dump(mode="json"))
        change.rollout_id = rollout.id
        change.after["plan"] = values_digest(rollout.plan)
        if plan_name:
            change.after["plan_name"] = plan_name
        if risk.scale != FULL_SIZE:
            change.after["risk_scale"] = risk.scale
        served = served_of_asked(as_percent(share.percent_bp), as_percent(share.asked_bp))
        change.alert = ChangeAlert(
            "rollout.started",
            f"{strategy_name} {version} started at {served} against {active.version}",
            severity="info",
            dedupe_key=f"{rollout.id} started",
            facts={"control_version": active.version},
        )
    return rollout


def check_start(
    session: Session, command: Command, *, strategy_name: str, version: str, plan: Plan
) -> tuple[StrategyVersion, StrategyVersion, Shadow]:
    """Return the version, the active one, and what the pair did in shadow.

    Raises:
        The errors of `start_rollout`, except those of freezes and release windows.
    """
    plan.check_armed()
    chosen = versions.get_version(session, strategy_name, version)
    open_one = rollouts.open_rollout(session, strategy_name)
    if open_one is not None:
        raise RolloutOpen(strategy_name, open_one.version, open_one.state, "let it end, or roll it back")
    if not command.override_reason.strip():
        policy_of(session, strategy_name).check(strategy_name, plan)
    active = versions.active_version(session, strategy_name)
    check_comparable(chosen, active)
    shadow = read_shadow(session, chosen, active, command.now)
    if not command.override_reason.strip():
        _check_harmless_in_shadow(chosen, plan, shadow, _risk_fraction(session, strategy_name))
    if chosen.status != Status.CANARY:
        check_canary(session, command, chosen)
    return chosen, active, shadow


def _check_capital_known(strategy_name: str, entry: StageEntry, command: Command) -> None:
    """Raise CapitalUnknown if the cap on capital is blind, unless the command has an override reason."""
    if entry.share.blind and not command.override_reason.strip():
        raise CapitalUnknown(strategy_name, entry.share.blind)


def check_nothing_scheduled(session: Session, strategy_name: str) -> None:
    """Raise StartScheduled if a start of the strategy is scheduled for a later time."""
    pending = release_times.pending_start(session, strategy_name)
    if pending is not None:
        raise StartScheduled(strategy_name, pending.version, pending.start_at)


def policy_of(session: Session, strategy_name: str) -> Policy:
    found = versions.find_policy(session, strategy_name)
    return Policy() if found is None else load_policy(found.policy)


def read_policy(engine: Engine, strategy_name: str) -> Policy:
    """Return the policy of a strategy, which is empty if none was set. Raise UnknownStrategy."""
    with reading(engine) as session:
        versions.get_strategy(session, strategy_name)
        return policy_of(session, strategy_name)


def start_warning(
    engine: Engine, *, strategy_name: str, version: str, now: datetime, with_commands: bool = True
) -> str:
    """Return what the pair lacks in live shadow and what that means for its gates, or an empty text if it has enough.

    Args:
        with_commands: name the commands that help.

    Raises:
        UnknownStrategy, UnknownVersion, NoActiveVersion
    """
    with reading(engine) as session:
        chosen = versions.get_version(session, strategy_name, version)
        history = read_shadow(session, chosen, versions.active_version(session, strategy_name), now).history
    if not history.provisional:
        return ""
    lacks = (
        f"{version} has {history.slots:,} slots on {history.days:,} days in shadow, {FEW_DAYS} days are enough. In "
        "this rollout the gates assume a noisy pair: they find harm later, and each stage needs more slots. Replays do "
        "not count"
    )
    if not with_commands:
        return lacks
    return (
        f"{lacks}. How long it takes: rollout plan {strategy_name} {version}. To collect evidence before you start: "
        "rollout shadow && rollout score"
    )


def served_share(engine: Engine, strategy_name: str) -> str:
    """Return a canary's share after a start, as in "5 % of users". If it cannot be read, the start is done anyway."""
    try:
        with reading(engine) as session:
            canary = rollouts.get_canary(session, strategy_name)
    except (NoCanary, DBAPIError):
        return "its first stage"
    return f"{served_of_asked(canary.rollout_percent, canary.asked_percent)} of users"


def overlap_warning(engine: Engine, *, strategy_name: str, plan: Plan) -> str:
    """Return how many users of the first stage are on canaries of other strategies, or an empty text if none is.

    By their buckets, and by the policy's holdout. No strategy is named, since not everyone may see all of them.

    Raises:
        UnknownStrategy, InvalidPlan
    """
    with reading(engine) as session:
        salt = versions.get_strategy(session, strategy_name).salt
        first_bp = served_bp(session, strategy_name, plan.stages[0].percent_bp)
        others = [each for each in rollouts.serving_canaries(session) if each.strategy_name != strategy_name]
    shared = on_another_too(ServingCanary(strategy_name, first_bp, salt), others)
    if not shared:
        return ""
    same = sum(each.salt == salt for each in others)
    why = f", {same} of them with the same salt, so that they serve the same users first" if same else ""
    return (
        f"{shared:.1%} of users will be on this canary and on another strategy's too: {len(others)} other "
        f"canar{'y serves' if len(others) == 1 else 'ies serve'} users{why}. max_canaries_per_user in the policy would "
        "let it wait"
    )


def _check_harmless_in_shadow(version: StrategyVersion, plan: Plan, shadow: Shadow, risk_fraction: float) -> None:
    found = harm_in_shadow(plan, shadow.slots, shadow.history, risk_fraction)
    if found is not None and found.verdict is Verdict.FAIL:
        raise HarmfulInShadow(version.strategy_name, version.version, found.reason)


def _risk_fraction(session: Session, strategy_name: str) -> float:
    return ScoringRule.model_validate(versions.get_strategy(session, strategy_name).scoring).risk_fraction


def check_comparable(version: StrategyVersion, active: StrategyVersion) -> None:
    """Raise Incomparable unless the two versions decide on some candles in common."""
    if version.timeframe != active.timeframe:
        difference = f"timeframe {version.timeframe} against {active.timeframe}"
        raise Incomparable(version.strategy_name, version.version, active.version, difference)
    if not set(version.symbols) & set(active.symbols):
        difference = f"symbols {', '.join(version.symbols)} against {', '.join(active.symbols)}"
        raise Incomparable(version.strategy_name, version.version, active.version, difference)


def check_not_active(version: StrategyVersion, active: StrategyVersion) -> None:
    """Raise Incomparable if *version* is the active one: compared with itself it has no difference."""
    if version.version == active.version:
        difference = "it is the active version. Choose a version in shadow"
        raise Incomparable(version.strategy_name, version.version, active.version, difference)


class Choice(StrEnum):
    EXTEND = "extend"  # restart the stage's time limit
    ADVANCE = "advance"  # enter the next stage without an answer from the gates
    ROLL_BACK = "rollback"  # take users off the version now


@retry_transient()
def approve(
    engine: Engine,
    command: Command,
    *,
    strategy_name: str,
    rollout_id: UUID | None = None,
) -> Rollout:
    """Let the rollout enter the stage it waits for.

    The next tick takes the step if every gate still passes, and no freeze or release window holds it.

    Args:
        rollout_id: the expected rollout, by default the open one.

    Raises:
        UnknownStrategy
        UnknownRollout: no rollout is open.
        NotAwaiting: the rollout is not awaiting approval, a gate does not pass, or *rollout_id* has ended.
        LostRace: the command's generation is outdated.
        FourEyes: the actor started the rollout.
        MissingReason: it is the last stage, and the command has no reason.
    """
    with transaction(engine) as session:
        rollout = _lock_open_rollout(session, command, strategy_name, rollout_id, "approve", State.AWAITING_APPROVAL)
        _check_passing(session, rollout)
        check_second_owner(session, rollout, command)
        check_reason_for_all(rollout, command)
        following = rollout.stage_index + 1
        changes = {"state": State.RUNNING.value, "approved_stage": following}
        return _change_rollout(session, command, "approve", rollout, changes)


@retry_transient()
def decide_rollout(
    engine: Engine,
    command: Command,
    *,
    strategy_name: str,
    choice: Choice,
    rollout_id: UUID | None = None,
) -> Rollout:
    """Decide a rollout that awaits a decision: extend its stage, advance it, or roll it back.

    A rollback is accepted in every state and generation, as in `roll_back`.

    Raises:
        UnknownStrategy
        UnknownRollout: no rollout is open.
        NotAwaiting: the rollout is not awaiting a decision. To advance, a gate breaks or is blind, or ticks are late.
        LostRace: the command's generation is outdated.
        ReleaseClosed: to advance in a freeze, or outside the plan's release windows, needs an override reason.
        FourEyes: the actor started the rollout and would advance it.
        CapitalUnknown: to advance while the cap on capital is blind needs an override reason.
    """
    if choice is Choice.ROLL_BACK:
        return _roll_back(engine, command, strategy_name, rollout_id)
    with transaction(engine) as session:
        rollout = _lock_open_rollout(session, command, strategy_name, rollout_id, "decide", State.AWAITING_DECISION)
        if choice is Choice.EXTEND:
            changes = {"state": State.RUNNING.value, "stage_extended_at": command.now}
            return _change_rollout(session, command, "extend", rollout, changes)
        check_second_owner(session, rollout, command)
        plan = load_plan(rollout.plan)
        check_release(session, command, "advance the rollout of", strategy_name, plan.advance_windows)
        _check_harmless(session, rollout, plan, command.now)
        last = rollout.stage_index + 1 == len(plan.stages)
        if last:
            check_serves_all(session, rollout)
        entry = None
        if not last:
            entry = enter_stage(session, command, strategy_name, plan, rollout.stage_index + 1)
            _check_capital_known(strategy_name, entry, command)
        ruling = Ruling(Step.PROMOTE if last else Step.ADVANCE, f"by {command.actor.shown}: {command.stated_reason}")
        apply_ruling(session, rollout, plan, ruling, command, entry)
        return rollout


@retry_transient()
def pause(
    engine: Engine,
    command: Command,
    *,
    strategy_name: str,
    rollout_id: UUID | None = None,
) -> Rollout:
    """Hold the rollout at its present percent. Every protection stays armed.

    A running rollout can be paused, and one that waits for an owner. A pending approval is discarded.

    Raises:
        UnknownStrategy, UnknownRollout, NotAwaiting, LostRace: as in `approve`.
    """
    with transaction(engine) as session:
        waiting = (State.AWAITING_APPROVAL, State.AWAITING_DECISION)
        rollout = _lock_open_rollout(session, command, strategy_name, rollout_id, "pause", State.RUNNING, *waiting)
        changes = {"state": State.PAUSED.value, "approved_stage": None}
        return _change_rollout(session, command, "pause", rollout, changes)


@retry_transient()
def resume(
    engine: Engine,
    command: Command,
    *,
    strategy_name: str,
    rollout_id: UUID | None = None,
) -> Rollout:
    """Resume a paused rollout at its stage's percent, and restart the stage's times.

    What it waited for before the pause is asked for again. While the rollout is blind, or no stage may be entered, no
    users are added: a lower percent that was set by hand stays.

    Raises:
        UnknownStrategy, UnknownRollout, NotAwaiting, LostRace: as in `approve`.
    """
    with transaction(engine) as session:
        rollout = _lock_open_rollout(session, command, strategy_name, rollout_id, "resume", State.PAUSED)
        changes: dict[str, Any] = {
            "state": State.RUNNING.value,
            "stage_entered_at": command.now,
            "stage_extended_at": command.now,
        }
        if rollout.promoted_at is not None:
            return _change_rollout(session, command, "resume", rollout, changes)
        share, facts = _share_of_resumed(session, command, rollout)
        return _change_rollout(session, command, "resume", rollout, changes, share=share, facts=facts)


def _share_of_resumed(
    session: Session, command: Command, rollout: Rollout
) -> tuple[tuple[int, int], Mapping[str, Any]]:
    """Return the basis points of users that a resumed stage gets and those that it asks for, and facts of the event."""
    plan, name = load_plan(rollout.plan), rollout.strategy_name
    stage, canary = plan.stages[rollout.stage_index], rollouts.get_canary(session, name)
    entry = None
    if rollout.blind_since is None and not closed_now(session, name, command.now, plan.advance_windows):
        entry, _ = try_enter_stage(session, command, name, plan, rollout.stage_index)
    if entry is not None:
        return (entry.share.percent_bp, entry.share.asked_bp), facts_of_large(name, entry.new_large)
    asked = max(canary.asked_bp, canary.rollout_bp)
    return (min(canary.rollout_bp, stage.percent_bp), min(asked, stage.percent_bp)), {}


@retry_transient()
def exclude_symbol(
    engine: Engine,
    command: Command,
    *,
    strategy_name: str,
    symbol: str,
    routes_by_symbol: bool,
    rollout_id: UUID | None = None,
) -> Rollout:
    """Take one symbol off the canary for the rest of the rollout: every user gets the active version on it.

    The gates no longer judge the symbol, apart from slots and trades of signals from before. The rollout goes on with
    the other symbols, and is not promoted.

    Args:
        symbol: one on which the canary decides.
        routes_by_symbol: whether the platform gives the symbol with each question for a version. If it does not, its
            users stay on the canary, and the gates would no longer protect them.
        rollout_id: the expected rollout, by default the open one.

    Raises:
        UnknownStrategy, UnknownRollout
        CannotExclude: the symbol is unknown, excluded already or the last one, the version is active by now, or the
            platform does not route by symbol.
        NotAwaiting: *rollout_id* has ended.
        LostRace: the command's generation is outdated.
    """
    with transaction(engine) as session:
        versions.lock_strategy(session, strategy_name, command.if_generation)
        check_open(session, strategy_name, rollout_id, "exclude")
        rollout = _get_open_rollout(session, strategy_name)
        canary = versions.get_version(session, strategy_name, rollout.version)
        excluded = rollouts.excluded_from(session, rollout)
        served = set(canary.symbols) - excluded.keys()
        judged = served & set(versions.get_version(session, strategy_name, rollout.control_version).symbols)
        if not routes_by_symbol:
            problem = "the platform is not known to route by symbol"
            allowed = ["ROLLOUT_ROUTES_BY_SYMBOL=1 once it does"]
        elif rollout.promoted_at is not None:
            problem, allowed = f"{canary.version} is active for all users", ["rollback"]
        elif symbol not in canary.symbols:
            problem, allowed = f"{canary.version} does not decide on it", sorted(served)
        elif symbol in excluded:
            problem, allowed = "it is excluded already", sorted(served)
        elif not judged - {symbol}:
            problem, allowed = "the gates would have no symbol left", ["rollback"]
        else:
            since = _unexposed_from(session, rollout, symbol, timeframe_delta(canary.timeframe), command.now)
            _exclude(session, command, rollout, symbol, excluded, since)
            return rollout
        raise CannotExclude(strategy_name, symbol, problem, allowed)


def _unexposed_from(session: Session, rollout: Rollout, symbol: str, timeframe: timedelta, now: datetime) -> datetime:
    """Return from when no user gets the canary's signals: not before what was judged or decided, as clocks err."""
    newest = decisions.newest_decided(session, rollout.strategy_name, rollout.version, symbol)
    decided = [] if newest is None else [newest + timeframe + timedelta(microseconds=1)]
    return max([now, rollout.started_at, rollout.last_tick_at or now, *decided])


def _exclude(
    session: Session,
    command: Command,
    rollout: Rollout,
    symbol: str,
    excluded: Mapping[str, datetime],
    since: datetime,
) -> None:
    name, version = rollout.strategy_name, rollout.version
    evidence = rollouts.verdict_ids(session, rollout.id)
    with recorded_change(
        session, command, "exclude_symbol", name, version, rollout_id=rollout.id, evidence=evidence
    ) as change:
        rollouts.set_excluded(session, name, {**excluded, symbol: since})
        change.after |= {"symbol": symbol, "since": stored_time(since)}
        change.alert = ChangeAlert(
            "rollout.symbol_excluded",
            f"{name} {version} no longer serves {symbol}: {command.reason or 'no reason given'}",
            severity="warning",
            dedupe_key=f"{rollout.id} excluded {symbol}",
            facts={"control_version": rollout.control_version, "symbol": symbol},
        )


@never_locked_out()
def _roll_back(engine: Engine, command: Command, strategy_name: str, rollout_id: UUID | None) -> Rollout:
    """Roll back the open rollout by its id. If it has ended meanwhile, no other rollout is meant."""
    if rollout_id is None:
        with reading(engine) as session:
            versions.get_strategy(session, strategy_name)
            rollout_id = _get_open_rollout(session, strategy_name).id
    roll_back(engine, command, strategy_name=strategy_name, rollout_id=rollout_id)
    with reading(engine) as session:
        return rollouts.get_rollout(session, rollout_id)


def _lock_open_rollout(
    session: Session, command: Command, strategy_name: str, rollout_id: UUID | None, what: str, *needed: State
) -> Rollout:
    """Lock the strategy and return its open rollout, or raise NotAwaiting unless it is in a *needed* state.

    Args:
        rollout_id: the expected rollout, by default the open one.
    """
    versions.lock_strategy(session, strategy_name, command.if_generation)
    check_open(session, strategy_name, rollout_id, what)
    rollout = _get_open_rollout(session, strategy_name)
    if rollout.state not in needed:
        raise NotAwaiting(what, rollout.state, needed)
    return rollout


def _get_open_rollout(session: Session, strategy_name: str) -> Rollout:
    rollout = rollouts.open_rollout(session, strategy_name)
    if rollout is None:
        raise UnknownRollout(f"of {strategy_name!r} is open")
    return rollout


def _check_passing(session: Session, rollout: Rollout) -> None:
    """Raise NotAwaiting unless every armed gate passed in the last tick."""
    armed = {gate.name for gate in load_plan(rollout.plan).gates if not gate.dry_run} | {Freshness().name}
    failing = [
        f"{row.gate} is {row.verdict}"
        for row in rollouts.last_verdicts(session, rollout.id).values()
        if row.gate in armed and row.verdict != Verdict.PASS
    ]
    if failing or rollout.blind_since is not None:
        raise NotAwaiting("approve", ", ".join(failing) or "blind", ["every gate passes"])


def _check_harmless(session: Session, rollout: Rollout, plan: Plan, now: datetime) -> None:
    """Raise NotAwaiting if the rollout is blind, ticks are late, or an armed gate does not hold now."""
    version = versions.get_version(session, rollout.strategy_name, rollout.version)
    since = rollout.last_tick_at or rollout.started_at
    if rollout.blind_since is not None or abs(now - since) > plan.late_candles * timeframe_delta(version.timeframe):
        raise NotAwaiting("advance", f"without sight since {since:%Y-%m-%d %H:%M} UTC", ["a tick sees evidence again"])
    findings = judge(session, rollout, plan, Feed({}), now)
    worst = min((f for f in findings if f.armed), key=lambda finding: SEVERITY[finding.verdict])
    if worst.verdict in (Verdict.BREACH, Verdict.FAIL, Verdict.BLIND):
        raise NotAwaiting("advance", f"in {worst.verdict}: {worst.gate}: {worst.reason}", ["no gate breaks"])


def _change_rollout(
    session: Session,
    command: Command,
    action: str,
    rollout: Rollout,
    changes: dict[str, Any],
    share: tuple[int, int] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Rollout:
    """Apply *changes*, and if given set the canary's *share*: basis points of users, and those that are asked.

    Args:
        facts: shown by the event beside the strategy's state.
    """
    with recorded_change(
        session,
        command,
        action,
        rollout.strategy_name,
        rollout.version,
        rollout_id=rollout.id,
        reason=command.reason,
        evidence=rollouts.verdict_ids(session, rollout.id),
    ) as change:
        change.after |= facts or {}
        if share is not None:
            rollouts.set_canary_share(session, rollout.strategy_name, share[0], asked_bp=share[1])
        rollouts.change_rollout(session, rollout, **changes)
    return rollout


def check_serves_all(session: Session, rollout: Rollout) -> None:
    """Raise IllegalTransition if a symbol is excluded: with the promotion, the version would serve it to all users."""
    if excluded := sorted(rollouts.excluded_from(session, rollout)):
        because = f"{', '.join(excluded)} excluded from its canary"
        raise IllegalTransition(Status.CANARY, Status.ACTIVE, [Status.SHADOW], because)


def check_reason_for_all(rollout: Rollout, command: Command) -> None:
    """Raise MissingReason if the rollout's next stage serves all users and the command has no reason."""
    last = rollout.stage_index + 2 >= len(load_plan(rollout.plan).stages)
    if last and not command.stated_reason.strip():
        raise MissingReason("approve the last stage of", rollout.strategy_name, rollout.version)


def check_second_owner(session: Session, rollout: Rollout, command: Command) -> None:
    """Raise FourEyes if the command or the policy demands four eyes, and the actor started the rollout."""
    demanded = command.four_eyes or policy_of(session, rollout.strategy_name).four_eyes
    if demanded and same_owner(audit.starter(session, rollout.id), command.actor.name):
        raise FourEyes(rollout.strategy_name, rollout.version, command.actor.name)


def preview_plan(engine: Engine, *, strategy_name: str, version: str, plan: Plan, now: datetime) -> Preview:
    """Estimate how *plan* would run, from at most 180 days of the pair's shadow history.

    With less of it, replays fill the days before it, without candles on which either version was trained. The start of
    a rollout does not count them.

    Raises:
        UnknownStrategy, UnknownVersion, NoActiveVersion
        UnarmedPlan, Incomparable: the plan could not start.
    """
    now = utc(now, "now")
    plan.check_armed()
    with reading(engine) as session:
        chosen = versions.get_version(session, strategy_name, version)
        active = versions.active_version(session, strategy_name)
        check_not_active(chosen, active)
        check_comparable(chosen, active)
        shadow = read_shadow(session, chosen, active, now)
        more = add_replays(session, shadow, chosen, active, now)
        left_out = left_out_until(session, chosen, active)
        risk_fraction = _risk_fraction(session, strategy_name)
        risk = measure_pair(session, chosen, active, now, applied=plan.risk_scale)
        times = load_times(session, strategy_name, now)
    live = None if more is None else LiveShadow(shadow.slots, shadow.history, shadow.days)
    shown = more or shadow
    found = preview(plan, shown.history, shown.days, slots=shown.slots, risk_fraction=risk_fraction, live=live)
    more_facts = {"risk": risk, "risk_line": risk.line(chosen.version, active.version)}
    return found.model_copy(
        update={"left_out_until": left_out, "earliest": earliest_entries(plan, times, now), **more_facts}
    )


def show_plan(
    engine: Engine, *, strategy_name: str, version: str, plan: Plan, now: datetime
) -> tuple[Preview, Audience]:
    """Return the preview of *plan* and the users its stages would reach."""
    found = preview_plan(engine, strategy_name=strategy_name, version=version, plan=plan, now=now)
    return found, plan_audience(engine, strategy_name=strategy_name, plan=plan, now=now)
