"""The cap on the capital of a canary: applied when a stage is entered, and reviewed after a load of the directory.

A rollback reads and writes nothing of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from sqlmodel import Session

from strategy_core.domain.alerts import CAPITAL_EXCEEDED
from strategy_core.domain.audit import RAMP, Actor, Command
from strategy_core.domain.capital import TOLERANCE, CapitalBelow, Placed, Share, narrowed_bp, served_of_asked, share_of
from strategy_core.domain.errors import reason_of
from strategy_core.domain.lifecycle import Status, utc
from strategy_core.domain.plan import Plan, load_plan
from strategy_core.domain.release_times import ALL_STRATEGIES
from strategy_core.domain.routing import BUCKETS, as_percent, bucket_of
from strategy_core.domain.user_exclusions import ExclusionKind, UserSets
from strategy_core.services.transitions import ChangeAlert, recorded_change, served_bp
from strategy_core.services.user_exclusions import END
from strategy_core.store import rollouts, user_exclusions, users, versions
from strategy_core.store.canary_reach import read_canary_reach
from strategy_core.store.engine import is_disconnected, reading, retry_transient, transaction

_LARGE = ExclusionKind.LARGE_ACCOUNT

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class StageEntry:
    """The users that a canary gets at a stage, and the large accounts that it does not get from now on."""

    share: Share
    new_large: tuple[str, ...] = ()


def stage_entry(
    session: Session, strategy_name: str, plan: Plan, stage_index: int, now: datetime, *, starts: bool = False
) -> StageEntry:
    """Return the users that the canary gets when it enters a stage. It only reads.

    The time does not depend on the number of users.
    A plan without a cap reads no capital, and neither does its last stage. The policy's holdout is left out of what is
    asked for.

    Args:
        starts: the rollout starts, so that no user is served by it yet.
    """
    stage = plan.stages[stage_index]
    asked = served_bp(session, strategy_name, stage.percent_bp)
    capped = stage.capital_percent is not None or plan.largest_account_percent is not None
    if stage.percent_bp == BUCKETS:
        return StageEntry(Share(asked, asked, blind="" if starts else _nobody_served(session, strategy_name, now)))
    if not capped:
        return StageEntry(Share(asked, asked))
    directory = _read_directory(session, strategy_name, now)
    if directory is None:
        share = share_of(None, asked, stage.capital_percent)
        return StageEntry(replace(share, blind=_uncounted(session, strategy_name)))
    canary = None if starts else rollouts.find_canary(session, strategy_name)
    new_large = directory.new_large(session, plan, present_bp=canary.rollout_bp if canary else 0)
    kept = [*directory.kept, *directory.place(new_large)]
    share = share_of(directory.below, asked, stage.capital_percent, kept=kept, always=directory.always)
    return StageEntry(share, tuple(sorted(new_large)))


def _nobody_served(session: Session, strategy_name: str, now: datetime) -> str:
    """Return why the canary may not serve everyone next: nobody of the directory has been served by it."""
    reach = read_canary_reach(session, [strategy_name], now).get(strategy_name)
    if reach is None or reach.users != 0:
        return ""
    return (
        f"it serves no user of the directory at {as_percent(reach.asked_bp):g} %, so everyone would be the first. Its "
        "cap on capital leaves nobody, or all have asked for the active version. Start with a plan of wider caps"
    )


def _uncounted(session: Session, strategy_name: str) -> str:
    """Return why capital is unknown although a directory is loaded, or an empty text if none is."""
    if not users.is_uncounted(session, versions.get_strategy(session, strategy_name).salt):
        return ""
    return "the user directory is not counted for this strategy yet. Load it again (rollout users FILE)"


def enter_stage(
    session: Session, command: Command, strategy_name: str, plan: Plan, stage_index: int, *, starts: bool = False
) -> StageEntry:
    """Keep the large accounts with the active version, or let them go at 100 %, and return `stage_entry`.

    The caller sets the share, and records `facts_of_large`.
    """
    if starts or plan.stages[stage_index].percent_bp == BUCKETS:
        release_large(session, strategy_name, command.now)  # at a start: those of an earlier rollout
    entry = stage_entry(session, strategy_name, plan, stage_index, command.now, starts=starts)
    if entry.new_large:
        _keep_large(session, strategy_name, entry.new_large, command)
    return entry


def try_enter_stage(
    session: Session, command: Command, strategy_name: str, plan: Plan, stage_index: int, *, write: bool = True
) -> tuple[StageEntry | None, str]:
    """Return `enter_stage`, or None and why users may not be added. No failure spoils the transaction around it."""
    try:
        with session.begin_nested():
            found = stage_entry(session, strategy_name, plan, stage_index, command.now)
            if write and not found.share.blind:
                found = enter_stage(session, command, strategy_name, plan, stage_index)
    except Exception as error:
        if is_disconnected(error):
            raise  # the whole tick is retried
        return None, f"the cap on capital cannot be computed: {reason_of(error)}"
    return (None, found.share.blind) if found.share.blind else (found, "")


def facts_of_large(strategy_name: str, large: Sequence[str]) -> dict[str, Any]:
    """Return what an audit event shows of new large accounts, as of every change of users' exclusions."""
    if not large:
        return {}
    return {"users": {"kinds": [str(_LARGE)], "ids": list(large), "strategies": [strategy_name]}}


def _keep_large(session: Session, strategy_name: str, large: Sequence[str], command: Command) -> None:
    reason = "a large account waits for 100 %"
    user_exclusions.exclude(
        session, strategy_name, _LARGE, large, now=command.now, reason=reason, actor=command.actor.shown
    )


def release_large(session: Session, strategy_name: str, now: datetime) -> None:
    """End what earlier stages keep of large accounts."""
    held = user_exclusions.users_with(session, strategy_name, _LARGE)
    if held:
        user_exclusions.end(session, strategy_name, [_LARGE], held, now=now)


def release_idle(engine: Engine, *, now: datetime, actor: Actor = RAMP) -> None:
    """End what rollouts have kept of large accounts, of each strategy whose canary is gone.

    A rollback does not wait for that, so a tick does it. A failure of one strategy does not stop the others.
    """
    try:
        with reading(engine) as session:
            names = user_exclusions.strategies_with_idle(session, _LARGE)
    except DBAPIError as error:
        log.warning("canary.large_accounts_not_read", error=type(error).__name__)
        return
    for name in names:
        try:
            _release_idle(engine, Command(actor, utc(now, "now"), "no canary is left for which they wait"), name)
        except Exception as error:  # noqa: BLE001  the next tick tries again, and a start ends them in any case
            log.warning("canary.large_accounts_not_released", strategy=name, error=reason_of(error))


@retry_transient()
def _release_idle(engine: Engine, command: Command, strategy_name: str) -> None:
    with transaction(engine) as session:
        versions.lock_strategy(session, strategy_name)
        held = user_exclusions.users_with(session, strategy_name, _LARGE)
        if not held or versions.with_status(session, strategy_name, Status.CANARY) is not None:
            return
        with recorded_change(session, command, END, strategy_name) as change:
            user_exclusions.end(session, strategy_name, [_LARGE], held, now=command.now)
            change.after |= facts_of_large(strategy_name, held)


@dataclass(frozen=True, slots=True)
class _Directory:
    """The directory as one strategy's canary sees it."""

    below: CapitalBelow
    salt: str
    sets: UserSets
    kept: list[Placed]
    always: list[Placed]

    def place(self, capital: Mapping[str, float | None] | Mapping[str, float]) -> list[Placed]:
        return [Placed(bucket_of(user, self.salt), of) for user, of in capital.items()]

    def new_large(self, session: Session, plan: Plan, *, present_bp: int) -> dict[str, float]:
        """Return the large accounts that are not kept yet. One that is served has a tolerance, so that it stays."""
        above = self.below.large_above(plan.largest_account_percent)
        if above is None:
            return {}
        return {
            user: capital
            for user, capital in users.accounts_above(session, above).items()
            if user not in self.sets.kept
            and user not in self.sets.always
            and (bucket_of(user, self.salt) >= present_bp or capital > TOLERANCE * above)
        }


def _read_directory(session: Session, strategy_name: str, now: datetime) -> _Directory | None:
    """Return the directory with the users who do not follow their bucket, or None if none is loaded."""
    salt = versions.get_strategy(session, strategy_name).salt
    below = users.read_below(session, salt)
    if below is None:
        return None
    found, _ = user_exclusions.current_sets(session, [strategy_name], now)
    sets = found.get(strategy_name) or found.get(ALL_STRATEGIES) or UserSets()
    capital = users.capital_of(session, sets.kept | sets.always)
    placed = {user: Placed(bucket_of(user, salt), of) for user, of in capital.items()}
    return _Directory(
        below=below,
        salt=salt,
        sets=sets,
        kept=[one for user, one in placed.items() if user in sets.kept],
        always=[one for user, one in placed.items() if user not in sets.kept],
    )


# After a load of the directory


def review_caps(engine: Engine, *, now: datetime, actor: Actor = RAMP) -> list[str]:
    """Compare the capital in each canary with its cap, and return a line for each canary that was changed.

    A canary is narrowed if it holds more than 1.25 × its cap. It is widened by nothing but its next stage, since a load
    is no evidence. A failure of one does not stop the others.
    """
    now = utc(now, "now")
    lines: list[str] = []
    try:
        with reading(engine) as session:
            names = [each.strategy_name for each in rollouts.open_rollouts(session) if each.promoted_at is None]
    except DBAPIError as error:  # the load has been committed
        log.warning("canary.caps_not_reviewed", error=type(error).__name__)
        return lines
    for name in names:
        try:
            line = review_cap(engine, Command(actor, now), name)
        except Exception as error:  # noqa: BLE001  as above. The next load reviews it again
            log.warning("canary.cap_not_reviewed", strategy=name, error=reason_of(error))
            continue
        if line:
            lines.append(line)
    return lines


@retry_transient()
def review_cap(engine: Engine, command: Command, strategy_name: str) -> str:
    """Do what `review_caps` does for the open rollout of one strategy. Return what was changed, or an empty text."""
    with transaction(engine) as session:
        versions.lock_strategy(session, strategy_name)
        rollout = rollouts.open_rollout(session, strategy_name)
        if rollout is None or rollout.promoted_at is not None:
            return ""
        plan = load_plan(rollout.plan)
        cap_percent = plan.stages[rollout.stage_index].capital_percent
        canary = rollouts.get_canary(session, strategy_name)
        directory = _read_directory(session, strategy_name, command.now)
        if cap_percent is None or directory is None or directory.below.mean is None:
            return ""
        present, asked = canary.rollout_bp, max(canary.asked_bp, canary.rollout_bp)
        measured = share_of(
            directory.below, asked, cap_percent, kept=directory.kept, always=directory.always, fixed_bp=present
        )
        if measured.cap is None or (measured.capital_share or 0.0) <= TOLERANCE * measured.cap:
            return ""
        new_large = directory.new_large(session, plan, present_bp=present)
        after = narrowed_bp(
            directory.below,
            present,
            cap_percent,
            kept=[*directory.kept, *directory.place(new_large)],
            always=directory.always,
        )
        if after == present and not new_large:
            return ""
        line = _changed_line(measured, cap_percent, present, after, len(new_large))
        with recorded_change(
            session,
            command,
            "narrow_canary",
            strategy_name,
            rollout.version,
            rollout_id=rollout.id,
            reason=line,
        ) as change:
            if new_large:
                _keep_large(session, strategy_name, sorted(new_large), command)
                change.after |= facts_of_large(strategy_name, sorted(new_large))
            rollouts.set_canary_share(session, strategy_name, after, asked_bp=asked)
            change.alert = ChangeAlert(
                CAPITAL_EXCEEDED,
                f"{strategy_name} {rollout.version}: {line}",
                severity="warning",
                dedupe_key=f"{rollout.id} {CAPITAL_EXCEEDED} {command.now.isoformat()}",
                facts={
                    "control_version": rollout.control_version,
                    "capital_share": measured.capital_share,
                    "capital_percent": cap_percent,
                },
                exposed_before=True,
            )
        return f"{strategy_name} {rollout.version}: {line}"


def _changed_line(measured: Share, cap_percent: float, present: int, after: int, large: int) -> str:
    asked, before = as_percent(measured.asked_bp), as_percent(present)
    held = f"its users hold {measured.capital_share or 0.0:.1%} of all capital, with a cap of {cap_percent:g} %"
    now = f"it now serves {served_of_asked(as_percent(after), asked)} of users, before {before:g} %"
    kept = f", without {large} large account{'' if large == 1 else 's'}" if large else ""
    return f"{held}; {now}{kept}"
