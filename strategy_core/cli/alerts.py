"""Commands that list, deliver, acknowledge and test alerts."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from strategy_core.cli.context import AnyStrategy, Context, Limit, NeededReason, command
from strategy_core.domain.audit import Command
from strategy_core.domain.errors import MissingExtra

if TYPE_CHECKING:
    from collections.abc import Sequence

    from strategy_core.services.alerts import AlertStatus, Tried

commands = typer.Typer(help="List, acknowledge, deliver and test alerts.", no_args_is_help=True)


@command(commands, "list")
def list_alerts(
    shell: Context,
    strategy: AnyStrategy = None,
    limit: Limit = 50,
) -> None:
    """List alerts, rollouts without ticks, and the state of the channels.

    This changes nothing: the scheduled delivery raises the alert about missing ticks.
    """
    from strategy_core.cli.context import table
    from strategy_core.services.alerts import read_alerts, read_channel_states
    from strategy_core.services.watchdog import find_overdue

    engine = shell.engine
    clock = shell.clock
    overdue = find_overdue(engine, strategy, now=shell.now, overdue=clock.tick_overdue, clock=clock.clock_check)
    found = read_alerts(engine, strategy, limit=limit)
    missing = "ROLLOUT_ALERT_URLS is not set here: no channels"
    try:
        channels = shell.settings.open_channels()
    except MissingExtra as error:  # listing needs no delivery package
        channels, missing = [], str(error)
    states = read_channel_states(engine, channels)
    shown: list[Any] = ["no alerts yet"]
    if found:
        columns = ["id", "at", "severity", "what", "acknowledged", "sent"]
        shown = [table(columns, [_row(each) for each in found])]
    shown += [f"not ticked: {line}" for line in overdue]
    if states:
        rows = [(each.channel, each.sent_at, each.failed_at, each.given_up, each.waiting) for each in states]
        shown.append(table(["channel", "last sent", "last failed", "given up", "waiting"], rows))
    if not channels:
        shown.append(missing)
    data = {
        "alerts": [
            {
                **each.alert.model_dump(mode="json"),
                "deliveries": [
                    delivery.model_dump(mode="json", exclude={"alert_id", "claimed_by"}) for delivery in each.deliveries
                ],
            }
            for each in found
        ],
        "overdue": overdue,
        "channels": [{**asdict(each), "given_up": each.given_up, "failing": each.failing} for each in states],
    }
    shell.answer(data, *shown)


@command(commands)
def deliver(shell: Context) -> None:
    """Send all due alerts once, as the schedule does every minute."""
    from strategy_core.report.owner import attached_page
    from strategy_core.services import alerts
    from strategy_core.services.watchdog import watch_ticks

    engine, clock = shell.engine, shell.clock
    shell.warn(clock.clock_note)
    watch_ticks(
        engine, now=shell.now, overdue=clock.tick_overdue, quiet=clock.alert_pace.quiet, clock=clock.clock_check
    )
    channels = clock.open_channels()
    page_of = attached_page(engine, clock.console_address)
    tried = alerts.deliver(engine, channels, now=shell.now, pace=clock.alert_pace, page_of=page_of, links=clock.links)
    _answer_tried(shell, tried, "nothing is due" if channels else "ROLLOUT_ALERT_URLS is not set: no alert is sent")


@command(commands, "acknowledge", old_name="ack")
def acknowledge_alerts(
    shell: Context,
    alert_ids: Annotated[
        list[int], typer.Argument(metavar="ID...", min=1, max=2**31 - 1, help="Alert ids, as in the messages.")
    ],
    reason: NeededReason,
) -> None:
    """Acknowledge alerts, so that they are not sent again."""
    from strategy_core.services.alerts import acknowledge

    found = acknowledge(shell.engine, Command(shell.actor, shell.now, reason), alert_ids)
    lines = [
        f"alert {alert.id} is acknowledged by {alert.acknowledged_by}: {alert.acknowledged_because}" for alert in found
    ]
    shell.answer([alert.model_dump(mode="json") for alert in found], *lines)


@command(commands, "test")
def try_out(
    shell: Context,
    channel: Annotated[
        str | None, typer.Argument(metavar="CHANNEL", help="Name or URL scheme. Default: all channels.")
    ] = None,
) -> None:
    """Send a test message to the channels."""
    from strategy_core.services.alerts import send_test

    tried = send_test(shell.settings.open_channels(), channel, now=shell.settings.now())  # needs no database
    _answer_tried(shell, tried, "")


def _answer_tried(shell: Context, tried: "Sequence[Tried]", if_empty: str) -> None:
    from strategy_core.cli.context import table

    rows = [(each.alert_id or None, each.channel, each.problem or "sent") for each in tried]
    shell.answer([asdict(each) for each in tried], table(["alert", "channel", "result"], rows) if rows else if_empty)
    if any(each.problem for each in tried):
        raise typer.Exit(1)


def _row(status: "AlertStatus") -> tuple[object, ...]:
    alert = status.alert
    acknowledged = f"{alert.acknowledged_by}: {alert.acknowledged_because}" if alert.acknowledged_at else None
    sent = [f"{each.channel}{'' if each.sent_at else f' (failed: {each.last_error})'}" for each in status.deliveries]
    return (alert.id, alert.at, alert.severity, alert.text, acknowledged, sent)
