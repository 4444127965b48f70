"""The users on each canary and their capital, in two queries that do not grow with the number of users."""

import struct
from collections import defaultdict
from datetime import datetime
from typing import Any

from sqlalchemy import func, or_, select
from sqlmodel import Session, col

from strategy_core.domain.capital import Placed, Reach, Sums, reach_now
from strategy_core.domain.release_times import ALL_STRATEGIES
from strategy_core.domain.routing import bucket_of
from strategy_core.domain.user_exclusions import ExclusionKind
from strategy_core.store.metrics import Strategies, in_strategies
from strategy_core.store.tables import CanaryConfig, DirectoryTally, PlatformUser, StrategyRow, UserExclusionRow

_LAST = 10_000  # everyone is below it


def read_canary_reach(session: Session, strategies: Strategies, now: datetime) -> dict[str, Reach]:
    """Return by strategy the reach of its canary. Strategies that never had a canary are left out."""
    bp = col(CanaryConfig.rollout_bp)
    query = (
        select(
            col(StrategyRow.name),
            col(StrategyRow.salt),
            bp.label("percent_bp"),
            col(CanaryConfig.asked_bp),
            col(DirectoryTally.users),
            func.substr(col(DirectoryTally.below), 4 * bp + 1, 4).label("users_below"),
            *(
                part.label(f"{name}_{at}")
                for name, column, size in (
                    ("unknown", col(DirectoryTally.unknown_below), 4),
                    ("capital", col(DirectoryTally.capital_below), 8),
                )
                for at, part in (
                    ("below", func.substr(column, size * bp + 1, size)),
                    ("all", func.substr(column, size * _LAST + 1, size)),
                )
            ),
        )
        .join(CanaryConfig, col(CanaryConfig.strategy_name) == col(StrategyRow.name))
        .outerjoin(DirectoryTally, col(DirectoryTally.salt) == col(StrategyRow.salt))
    )
    rows = session.connection().execute(in_strategies(query, col(StrategyRow.name), strategies)).all()
    placed = _placed(session, now) if any(row.percent_bp and row.users for row in rows) else {}
    return {row.name: _reach(row, placed) for row in rows}


def _placed(session: Session, now: datetime) -> dict[str, list[tuple[str, str, float | None]]]:
    """Return by strategy (kind, user, capital) of the listed users whose exclusion counts at *now*."""
    until = col(UserExclusionRow.until)
    query = (
        select(
            col(UserExclusionRow.strategy_name),
            col(UserExclusionRow.kind),
            col(UserExclusionRow.user_id),
            col(PlatformUser.capital),
        )
        .join(PlatformUser, col(PlatformUser.user_id) == col(UserExclusionRow.user_id))
        .where(col(UserExclusionRow.valid_to).is_(None), or_(until.is_(None), until > now))
    )
    found: dict[str, list[tuple[str, str, float | None]]] = defaultdict(list)
    for name, kind, user, capital in session.connection().execute(query):
        found[name].append((kind, user, capital))
    return found


def _reach(row: Any, placed: dict[str, list[tuple[str, str, float | None]]]) -> Reach:
    asked = max(row.asked_bp, row.percent_bp)
    if not row.users:
        return Reach(row.percent_bp, asked)
    kept: dict[str, float | None] = {}
    always: dict[str, float | None] = {}
    for kind, user, capital in (*placed.get(row.name, ()), *placed.get(ALL_STRATEGIES, ())):
        (always if kind == ExclusionKind.ALWAYS else kept)[user] = capital
    inside = Sums(_number(row.users_below), _number(row.unknown_below), _amount(row.capital_below))
    everyone = Sums(row.users, _number(row.unknown_all), _amount(row.capital_all))
    return reach_now(
        row.percent_bp,
        asked,
        inside,
        everyone,
        kept=[Placed(bucket_of(user, row.salt), capital) for user, capital in kept.items()],
        always=[Placed(bucket_of(user, row.salt), of) for user, of in always.items() if user not in kept],
    )


def _number(stored: bytes) -> int:
    return int.from_bytes(stored, "big") if stored else 0


def _amount(stored: bytes) -> float:
    return float(struct.unpack(">d", stored)[0]) if stored else 0.0
