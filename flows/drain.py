"""Flows on positions: announce each minute which ones to leave, hand them over, and let a version drain."""

from prefect import flow

from flows.parameters import Owner, Reason, Span, Strategy, Version
from flows.runtime import one_line, open_runtime, owned_by, owner_flow
from strategy_core.domain.audit import Command
from strategy_core.domain.errors import RolloutError
from strategy_core.domain.parsing import owners_span
from strategy_core.services import positions
from strategy_core.services.drain import drain as drain_positions


@flow(flow_run_name="drain")
@one_line
def drain() -> str:
    """Announce which positions the platform should leave, each once, and alert on those that nobody manages or closes.

    It reads the decisions and outcomes of the shadow run before it.
    """
    with open_runtime() as runtime:
        quiet = runtime.settings.alert_pace.quiet
        done = drain_positions(runtime.engine, runtime.candles_if_any(), now=runtime.now, quiet=quiet)
    draining = [f"{name} {version}: {count} left" for (name, version), count in done.draining.items()]
    returned = [f"{name} {version} is back in shadow" for name, version in done.returned]
    found = [*done.orphaned, *done.overdue, *done.exceeded, *done.unknown]
    line = "; ".join([f"{done.announced} exits announced", *draining, *returned, *found])
    if done.failed:
        raise RolloutError("; ".join([line, *done.failed]))
    return line


@owner_flow("hand positions of {strategy_name} {version} over to {to_version}")
def hand_over(strategy_name: Strategy, version: Version, to_version: Version, owner: Owner, reason: Reason) -> str:
    """Give the open positions of a version to another one, which decides from now on when to leave them.

    Args:
        strategy_name: Strategy name.
        version: The version that manages them now.
        to_version: The version that takes them over. It must decide on their symbols.
        owner: Your name.
        reason: Stored in the audit trail.
    """
    with open_runtime() as runtime:
        done = positions.hand_over(
            runtime.engine,
            Command(owned_by(owner), runtime.now, reason),
            strategy_name=strategy_name,
            version=version,
            to_version=to_version,
        )
    return f"{done} positions of {strategy_name} {version} are managed by {to_version}"


@owner_flow("flatten positions of {strategy_name} {version}")
def flatten(strategy_name: Strategy, version: Version, owner: Owner, reason: Reason, after: Span = "0") -> str:
    """Ask the platform to close the open positions of a version, now or after a while.

    Args:
        strategy_name: Strategy name.
        version: The version that manages them.
        owner: Your name.
        reason: Stored in the audit trail.
        after: How long they may stay open: 12h or 3d, or 0 for now.
    """
    with open_runtime() as runtime:
        done = positions.flatten(
            runtime.engine,
            Command(owned_by(owner), runtime.now, reason),
            strategy_name=strategy_name,
            version=version,
            after=owners_span(after, "after"),
        )
    return f"{done} positions of {strategy_name} {version} are to be closed"
