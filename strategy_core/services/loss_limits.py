"""Loss limits: a user whose trades have lost the policy's limit, open ones included, opens no new position."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256

import structlog
from sqlalchemy import Engine
from sqlmodel import Session

from strategy_core.domain.alerts import LOSS_LIMIT, Severity
from strategy_core.domain.audit import Actor, Command
from strategy_core.domain.candles import timeframe_delta
from strategy_core.domain.errors import reason_of
from strategy_core.domain.floating import Floating, TradeToMark, float_trades, floating_since
from strategy_core.domain.lifecycle import utc
from strategy_core.domain.policy import LossLimit, load_policy
from strategy_core.domain.scoring import ScoringRule
from strategy_core.domain.user_exclusions import ExclusionKind
from strategy_core.market.source import CandleSource
from strategy_core.services.transitions import recorded_change
from strategy_core.services.user_exclusions import EXCLUDE
from strategy_core.store import alerts, live_trades, user_exclusions, versions
from strategy_core.store.engine import reading, retry_transient, transaction

GUARD = Actor("loss limit", role="system")
_OLDEST_CANDLES = 5_000  # an open trade from before them counts as 0
log = structlog.get_logger(__name__)
_AT_ONCE = 500  # users guarded in one transaction
_NAMED = 5  # users in an alert, the others are counted


@retry_transient()
def guard_users(engine: Engine, strategy_name: str, user_ids: Iterable[str], *, now: datetime) -> list[str]:
    """Let users whose closed trades have reached the loss limit open no new position, and return those for which that
    is new.

    It stays so until an owner ends it. Repeated with the same trades it changes nothing. Without a limit in the
    strategy's policy, it reads the policy and nothing else.

    Raises:
        InvalidPlan: this release cannot read the policy.
    """
    return _guard(engine, strategy_name, {user: [] for user in user_ids}, utc(now, "now"))


@dataclass(frozen=True, slots=True)
class Guarded:
    """The result of a look at open trades.

    Attributes:
        users: those who have newly reached the loss limit.
        unknown: open trades that count as 0, because their result is not known.
        trades: open trades in all.
    """

    users: Sequence[str] = ()
    unknown: int = 0
    trades: int = 0

    def line(self, strategy_name: str) -> str:
        """Return a line on the trades that are not known, or an empty text."""
        if not self.unknown:
            return ""
        return (
            f"{self.unknown:,} of {self.trades:,} open trades of {strategy_name} count as 0 in its loss limit: without "
            "an entry price, a side, or candles of their entry"
        )


def guard_open_trades(engine: Engine, source: CandleSource, strategy_name: str, *, now: datetime) -> Guarded:
    """Do what `guard_users` does for users with open trades, whose floating results count too.

    An open trade is marked to the last closed candle. Gains that float make no room for losses that are realised.
    Without a limit in the strategy's policy, it reads the policy and nothing else.

    Raises:
        InvalidPlan: as above.
    """
    now = utc(now, "now")
    with reading(engine) as session:
        if _limit_of(session, strategy_name) is None:
            return Guarded()
        trades = live_trades.open_trades(session, strategy_name)
        rule = ScoringRule.model_validate(versions.get_strategy(session, strategy_name).scoring)
    if not trades:
        return Guarded()
    found = _float(source, trades, rule, now)
    by_user: dict[str, list[Floating]] = {each.user_id: [] for each in trades}
    for each in found:
        by_user[each.user_id].append(each)
    return Guarded(_guard(engine, strategy_name, by_user, now), len(trades) - len(found), len(trades))


def _float(source: CandleSource, trades: Sequence[TradeToMark], rule: ScoringRule, now: datetime) -> list[Floating]:
    """Return the floating results. A symbol without candles has none, and the others have theirs."""
    found: list[Floating] = []
    delta = timeframe_delta(source.timeframe)
    for symbol in sorted({each.symbol for each in trades if each.entry_price is not None}):
        mine = [each for each in trades if each.symbol == symbol]
        age = (now - min(each.opened_at for each in mine)) // delta
        bars = min(age, _OLDEST_CANDLES) + rule.warmup_bars + 1
        try:
            candles = source.candles(symbol, closed_by=now, bars=bars)
        except Exception as error:  # noqa: BLE001  see above
            log.warning("loss_limit.no_candles", symbol=symbol, error=reason_of(error))
            continue
        found += float_trades(mine, candles, source.timeframe, rule)
    return found


def _guard(engine: Engine, strategy_name: str, users: Mapping[str, Sequence[Floating]], now: datetime) -> list[str]:
    """Guard the users who have reached the limit, given the floating results of each.

    Results are read before the strategy is locked, and many users are guarded in several transactions: on the day on
    which they lose, a rollback must not wait for them.
    """
    with reading(engine) as session:
        limit = _limit_of(session, strategy_name)
        if limit is None:
            return []
        reached = list(_reached(session, strategy_name, limit, users, now).items())
    guarded: list[str] = []
    for start in range(0, len(reached), _AT_ONCE):
        guarded += _guard_some(engine, strategy_name, limit, dict(reached[start : start + _AT_ONCE]), now)
    return guarded


@retry_transient()
def _guard_some(
    engine: Engine, strategy_name: str, limit: LossLimit, reached: Mapping[str, datetime | None], now: datetime
) -> list[str]:
    """Guard users who have reached the limit, given when their last guard ended, unless that has changed."""
    with transaction(engine) as session:
        versions.lock_strategy(session, strategy_name)
        present = user_exclusions.guards_of(session, strategy_name, list(reached))
        before = {user: ended_at for user, ended_at in reached.items() if ended_at is not None}
        still = [user for user in reached if present.get(user, "none") == before.get(user, "none")]
        if not still:
            return []
        reason = f"lost {limit}"
        with recorded_change(session, Command(GUARD, now, reason), EXCLUDE, strategy_name) as change:
            guarded = user_exclusions.exclude(
                session, strategy_name, ExclusionKind.GUARD, still, now=now, reason=reason, actor=GUARD.shown
            )
            change.after["users"] = {
                "kinds": [ExclusionKind.GUARD.value],
                "ids": guarded,
                "strategies": [strategy_name],
            }
        _alert(session, strategy_name, guarded, limit, now)
    return guarded


def _limit_of(session: Session, strategy_name: str) -> LossLimit | None:
    found = versions.find_policy(session, strategy_name)
    return None if found is None else load_policy(found.policy).loss_limit


def _reached(
    session: Session, strategy_name: str, limit: LossLimit, users: Mapping[str, Sequence[Floating]], now: datetime
) -> dict[str, datetime | None]:
    """Return the users who have reached the limit and are not guarded, with the end of their last guard.

    After an end it is counted anew.
    """
    since = now - timedelta(days=limit.days)
    closed = live_trades.realised(session, strategy_name, users, since)
    lost = [user for user in sorted(users) if _is_reached(limit, closed.get(user), users[user], None)]
    before = user_exclusions.guards_of(session, strategy_name, lost)
    found: dict[str, datetime | None] = {}
    for user in lost:
        if user not in before:
            found[user] = None
        elif (ended_at := before[user]) is not None:
            again = live_trades.realised(session, strategy_name, [user], max(since, ended_at)).get(user)
            if _is_reached(limit, again, users[user], ended_at):
                found[user] = ended_at
    return found


def _is_reached(
    limit: LossLimit, closed: tuple[float, float] | None, floating: Sequence[Floating], ended_at: datetime | None
) -> bool:
    """Return whether closed trades reach the limit, or do with open ones. Trades of before *ended_at* do not float."""
    r, amount = closed or (0.0, 0.0)
    floating_r, floating_amount = floating_since(floating, ended_at)
    return limit.reached(r, amount) or limit.reached(r + floating_r, amount + floating_amount)


def _alert(session: Session, strategy_name: str, users: Sequence[str], limit: LossLimit, now: datetime) -> None:
    shown = ", ".join(users[:_NAMED]) + (f" and {len(users) - _NAMED:,} more" if len(users) > _NAMED else "")
    alerts.raise_alert(
        session,
        LOSS_LIMIT,
        f"{strategy_name}: lost {limit}: {shown}. They open no new position until an owner ends it",
        severity=Severity.WARNING.value,
        strategy_name=strategy_name,
        dedupe_key=f"{strategy_name} {LOSS_LIMIT} {now.isoformat()} {sha256(' '.join(users).encode()).hexdigest()}",
        facts={"users": list(users[:_NAMED])},
        now=now,
    )
