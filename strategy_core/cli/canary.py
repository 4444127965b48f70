"""`rollout canary | percent | route`: a canary moved by hand, and who sees it."""

from typing import Annotated

import typer

from strategy_core.cli.shell import Override, Reason, Shell, StrategyName, VersionName, Yes, command
from strategy_core.domain.errors import InvalidPercent

commands = typer.Typer()
Percent = Annotated[str, typer.Argument(metavar="PERCENT", help="Of users: 0 to 100, two decimals at most.")]


@command(commands, numbers=True)
def canary(
    shell: Shell,
    strategy: StrategyName,
    version: VersionName,
    percent: Percent,
    reason: Reason = "",
    override_reason: Override = "",
    yes: Yes = False,
) -> None:
    """Send a share of users to a shadow version, outside any rollout."""
    from strategy_core.services.canary import activate_canary

    share, engine = _percent(percent), shell.engine
    shell.confirm(f"{share:g} % of the users of {strategy} get {version}", yes=yes)
    found, config = activate_canary(
        engine,
        strategy_name=strategy,
        version=version,
        rollout_percent=share,
        actor=shell.actor,
        now=shell.now,
        reason=reason,
        override_reason=override_reason,
    )
    data = {"strategy_name": strategy, "version": found.version, "rollout_percent": config.rollout_percent}
    shell.answer(data, f"{strategy} {version} is the canary of {config.rollout_percent:g} % of users")


@command(commands, numbers=True)
def percent(shell: Shell, strategy: StrategyName, percent: Percent, reason: Reason = "", yes: Yes = False) -> None:
    """Set the canary's share of users by hand, while no rollout moves it or its rollout is paused."""
    from strategy_core.services.canary import update_canary_percent

    share, engine = _percent(percent), shell.engine
    shell.confirm(f"{share:g} % of the users of {strategy} get its canary", yes=yes)
    config = update_canary_percent(
        engine,
        strategy_name=strategy,
        percent=share,
        actor=shell.actor,
        now=shell.now,
        reason=reason,
        four_eyes=shell.settings.four_eyes,
    )
    data = {"strategy_name": strategy, "version": config.version, "rollout_percent": config.rollout_percent}
    shell.answer(data, f"{strategy} {config.version} is the canary of {config.rollout_percent:g} % of users")


@command(commands)
def route(
    shell: Shell, user: Annotated[str, typer.Argument(metavar="USER", help="A user's id.")], strategy: StrategyName
) -> None:
    """Say which version a user gets now, and why."""
    from dataclasses import asdict

    from strategy_core.services.route import route_user

    found = route_user(shell.engine, user_id=user, strategy_name=strategy)
    shell.answer(asdict(found) | {"why": found.why}, f"{user} gets {strategy} {found.version}: {found.why}")


def _percent(text: str) -> float:
    """Return the percent that *text* says, checked before anybody is asked to confirm it."""
    try:
        found = float(text)
    except ValueError:
        raise InvalidPercent(text) from None
    from strategy_core.domain.routing import basis_points

    basis_points(text)
    return found
