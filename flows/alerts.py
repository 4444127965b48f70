"""Look whether ticks, shadow runs and candles come, deliver every alert, and take note that an owner knows of some."""

from prefect import flow

from flows import events
from flows.parameters import Alerts, Owner, Reason
from flows.runtime import one_line, open_runtime, owned_by, owner_flow
from strategy_core.domain.audit import Command
from strategy_core.domain.errors import RolloutError
from strategy_core.services.alerts import AlertChannel, acknowledge, deliver
from strategy_core.services.watchdog import watch_feed, watch_shadow, watch_ticks


@flow(flow_run_name="deliver alerts")
@one_line
def deliver_alerts() -> str:
    """Send alerts to the channels of ROLLOUT_ALERT_URLS, each by itself, and try again what was not taken.

    A flow of its own, so that no tick waits for a channel. It fails at its end if some channel took no message, or a
    setting is not valid.
    """
    with open_runtime(database_alone=True) as runtime:
        settings = runtime.settings
        watch_ticks(runtime.engine, now=runtime.now, overdue=settings.tick_overdue)
        channels = settings.open_channels()
        every: list[AlertChannel] = [*channels, *events.channels()]
        tried = deliver(runtime.engine, every, now=runtime.now, pace=settings.alert_pace)
        source = runtime.candles_if_any()  # last: a feed may take its time
        watch_shadow(runtime.engine, source, now=runtime.now, overdue=settings.tick_overdue)
        watch_feed(runtime.engine, source, now=runtime.now)
    failed = [each for each in tried if each.problem]
    sent = [each for each in tried if not each.problem and each.channel != events.EventChannel.name]
    line = f"{len(sent)} sent" if channels else "ROLLOUT_ALERT_URLS is not set: nobody is told"
    problems = [*(f"{each.channel}: {each.problem}" for each in failed), *runtime.wrong]
    if problems:
        raise RolloutError("; ".join([line, *problems]))
    return line


@owner_flow("acknowledge alerts {alerts}")
def acknowledge_alert(alerts: Alerts, owner: Owner, reason: Reason) -> str:
    """Acknowledge alerts: nobody is told of them any more, since an owner knows.

    Args:
        alerts: their numbers, as the messages have them, one a line.
        owner: who knows.
        reason: what is being done; it stays with the alert.
    """
    with open_runtime() as runtime:
        known = acknowledge(runtime.engine, Command(owned_by(owner), runtime.now, reason), alerts)
    return "; ".join(f"alert {each.id} is acknowledged by {each.acknowledged_by}" for each in known)
