"""The flow that registers a version."""

from flows.parameters import Config, EntryPoint, Owner, Remark, Salt, Status, Strategy, Symbols, Timeframe, Version
from flows.runtime import open_runtime, owned_by, owner_flow
from strategy_core.domain import lifecycle
from strategy_core.domain.audit import Command
from strategy_core.services import versions


@owner_flow("register {strategy_name} {version}")
def register_version(
    strategy_name: Strategy,
    version: Version,
    owner: Owner,
    symbols: Symbols,
    config: Config = {},  # noqa: B006  not changed, and the form shows it
    entry_point: EntryPoint = "",
    timeframe: Timeframe = "1h",
    status: Status = lifecycle.Status.SHADOW,
    salt: Salt = "",
    reason: Remark = "",
) -> str:
    """Validate a new version on the newest candles and register it. A registered version is immutable.

    It then decides in shadow. To send users to it, start a canary.

    Args:
        strategy_name: Strategy name. A new name creates a new strategy.
        version: Name of the new version.
        owner: Your name.
        symbols: Symbols that it trades, one per line.
        config: Configuration of the strategy, as JSON. {} means its defaults.
        entry_point: Built-in strategy, or package.module:Class. Leave empty to use the strategy name.
        timeframe: Timeframe of its candles. Must match the feed.
        status: Initial status. Use active only for the first version of a strategy.
        salt: Routing salt. Set once, with the first version. Leave empty for the default.
        reason: Stored in the audit trail.
    """
    with open_runtime() as runtime:
        registered = versions.register_version(
            runtime.engine,
            Command(owned_by(owner), runtime.now, reason),
            runtime.candles(),
            strategy_name=strategy_name,
            version=version,
            config=config,
            entry_point=entry_point or strategy_name,
            symbols=symbols,
            timeframe=timeframe,
            status=status,
            salt=salt or None,
        )
    return f"{strategy_name} {version} is registered as {registered.status}, build {registered.fingerprint[:12]}"
