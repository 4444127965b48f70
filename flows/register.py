"""Register a version from Prefect: see `services.register`."""

from typing import Any

from prefect import flow

from flows.parameters import Name, Owner, Timeframe
from flows.runtime import one_line, opened, owned_by
from strategy_core.domain.lifecycle import Status
from strategy_core.services import register


@flow(flow_run_name="register {strategy_name} {version}")
@one_line
def register_version(
    strategy_name: Name,
    version: Name,
    owner: Owner,
    symbols: list[Name],
    config: dict[str, Any],
    entry_point: str = "",
    timeframe: Timeframe = "1h",
    status: Status = Status.SHADOW,
    salt: str | None = None,
    reason: str = "",
) -> str:
    """Vet a new version on the feed's newest candles and store it, never to be edited.

    Args:
        strategy_name: the strategy it is a version of; a new name makes a new strategy.
        version: its name, new to the strategy.
        owner: who registers it.
        symbols: what it decides on.
        config: settings of the strategy's own; an empty one takes its defaults.
        entry_point: a known strategy or package.module:Class; the strategy's name, unless given.
        timeframe: of its candles.
        status: shadow, unless there is nothing yet that could be harmed.
        salt: of the strategy's routing, fixed with its first version; whatever it has, unless given.
        reason: for the audit trail.
    """
    with opened() as runtime:
        registered = register.register_version(
            runtime.engine,
            runtime.candles(),
            strategy_name=strategy_name,
            version=version,
            config=config,
            entry_point=entry_point or strategy_name,
            symbols=symbols,
            timeframe=timeframe,
            status=status,
            salt=salt,
            actor=owned_by(owner),
            now=runtime.now,
            reason=reason,
        )
    return f"{strategy_name} {version} is registered as {registered.status}, build {registered.fingerprint[:12]}"
