"""Flows that deliver and acknowledge alerts."""

from prefect import flow

from flows import events
from flows.artifacts import links_when_needed
from flows.parameters import Alerts, Owner, Reason
from flows.runtime import one_line, open_runtime, owned_by, owner_flow
from strategy_core.domain.audit import Command
from strategy_core.domain.errors import RolloutError
from strategy_core.report.owner import attached_page
from strategy_core.services.alerts import AlertChannel, acknowledge, deliver
from strategy_core.services.watchdog import watch_feed, watch_shadow, watch_ticks


@flow(flow_run_name="deliver alerts")
@one_line
def deliver_alerts() -> str:
    """Send due alerts to the channels of ROLLOUT_ALERT_URLS, and retry failed deliveries.

    Also checks for overdue ticks, overdue shadow runs and stale candles, unless the clocks disagree. The run fails if
    they do, a delivery failed or a setting is invalid, after all other alerts are sent.
    """
    with open_runtime(tolerate_bad_settings=True) as runtime:
        settings = runtime.settings
        pace = {"overdue": settings.tick_overdue, "quiet": settings.alert_pace.quiet}
        watch_ticks(runtime.engine, now=runtime.now, clock=settings.clock_check, **pace)
        channels = settings.open_channels()
        every: list[AlertChannel] = [*channels, *events.channels()]
        page_of = attached_page(runtime.engine, settings.console_address)
        links = links_when_needed(settings)
        tried = deliver(runtime.engine, every, now=runtime.now, pace=settings.alert_pace, page_of=page_of, links=links)
        source = runtime.candles_if_any()  # last: a feed can be slow
        if not settings.clock_check.problem:  # then nothing can be said to be late
            watch_shadow(runtime.engine, source, now=runtime.now, **pace)
            watch_feed(runtime.engine, source, now=runtime.now, quiet=pace["quiet"])
    failed = [each for each in tried if each.problem]
    sent = [each for each in tried if not each.problem and each.channel != events.EventChannel.name]
    line = f"{len(sent)} sent" if channels else "ROLLOUT_ALERT_URLS is not set: no alert is sent"
    problems = [*(f"{each.channel}: {each.problem}" for each in failed), *runtime.wrong]
    if problems:
        raise RolloutError("; ".join([line, *problems]))
    return line


@owner_flow("acknowledge alerts {alerts}")
def acknowledge_alert(alerts: Alerts, owner: Owner, reason: Reason) -> str:
    """Acknowledge alerts, so that they are not sent again.

    Args:
        alerts: Alert ids, as in the messages, one per line.
        owner: Your name.
        reason: What is being done. Stored with the alert.
    """
    with open_runtime() as runtime:
        known = acknowledge(runtime.engine, Command(owned_by(owner), runtime.now, reason), alerts)
    return "; ".join(f"alert {each.id} is acknowledged by {each.acknowledged_by}" for each in known)
