"""Register a version from Prefect: see `services.register`."""

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
    config: Config = {},  # noqa: B006  never changed; a form shows it
    entry_point: EntryPoint = "",
    timeframe: Timeframe = "1h",
    status: Status = lifecycle.Status.SHADOW,
    salt: Salt = "",
    reason: Remark = "",
) -> str:
    """Vet a new version on the feed's newest candles and store it, never to be edited.

    It decides in shadow from then on; to send users to it, start a canary.

    Args:
        strategy_name: the strategy it is a version of; a new name makes a new strategy.
        version: its name, new to the strategy.
        owner: who registers it.
        symbols: what it decides on, one a line.
        config: settings of the strategy's own, as JSON; {} takes its defaults.
        entry_point: a known strategy or package.module:Class; empty, the strategy's name.
        timeframe: of its candles; the feed's.
        status: shadow, unless there is nothing yet that could be harmed.
        salt: of the strategy's routing, fixed with its first version; empty, whatever it has.
        reason: for the audit trail.
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
