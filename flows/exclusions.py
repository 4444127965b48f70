"""Flows of users' exclusions from canaries."""

from flows.parameters import AnyStrategyOrAll, End, Kind, Owner, Reason, Users
from flows.runtime import open_runtime, owned_by, owner_flow
from strategy_core.domain.audit import Command
from strategy_core.domain.parsing import owners_time
from strategy_core.domain.user_exclusions import ExclusionKind
from strategy_core.services.user_exclusions import end_exclusions, exclude_users


@owner_flow("exclude users of {strategy_name}")
def exclude_some_users(
    strategy_name: AnyStrategyOrAll,
    users: Users,
    kind: Kind,
    owner: Owner,
    reason: Reason,
    until: End = "",
) -> str:
    """Keep users with the active version, or give them every canary (always).

    Args:
        strategy_name: Strategy name, or * for all strategies.
        users: User ids, at most 10,000.
        kind: opt_out is the user's wish, never is yours, always gives the canary from its first stage.
        owner: Your name.
        reason: Stored in the audit trail.
        until: When it ends: 2026-01-31 or 2026-01-31T12:00Z. Leave empty for no end.
    """
    with open_runtime() as runtime:
        done = exclude_users(
            runtime.engine,
            Command(owned_by(owner), runtime.now, reason),
            strategy_name=strategy_name,
            user_ids=users,
            kind=ExclusionKind(kind),
            until=owners_time(until or None, "until"),
        )
    return f"{kind} for {done.shown_strategy}: {len(done.users):,} of {len(users):,} users are new"


@owner_flow("end exclusions of {strategy_name}")
def end_some_exclusions(strategy_name: AnyStrategyOrAll, users: Users, kind: Kind, owner: Owner, reason: Reason) -> str:
    """End exclusions of users, so that their bucket decides again.

    Args:
        strategy_name: Strategy name, or * to end exclusions for all strategies.
        users: User ids, at most 10,000.
        kind: The kind to end. guard ends a loss limit that was hit.
        owner: Your name.
        reason: Stored in the audit trail.
    """
    with open_runtime() as runtime:
        done = end_exclusions(
            runtime.engine,
            Command(owned_by(owner), runtime.now, reason),
            strategy_name=strategy_name,
            user_ids=users,
            kinds=[ExclusionKind(kind)],
        )
    return f"{kind} ended for {done.shown_strategy}: {len(done.users):,} users"
