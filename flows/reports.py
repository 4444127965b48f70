"""The flow that writes the reports that come by themselves."""

from prefect import flow

from flows.runtime import one_line, open_runtime
from strategy_core.domain.alerts import REPORT_TITLES
from strategy_core.domain.errors import RolloutError
from strategy_core.report.owner import owner_report_page
from strategy_core.services.owner_reports import write_reports


@flow(flow_run_name="reports")
@one_line
def reports() -> str:
    """Write the reports that are due: morning notes, weekly reports, ready notes and final reports.

    A morning note comes for each strategy with an open rollout or a version in shadow, at most one a day, and only if
    something has changed. On Mondays the weekly report takes its place. A ready note comes once a version in shadow
    could start, or would take too long. Each report is sent to the channels of ROLLOUT_REPORT_URLS by the next run of
    `deliver-alerts`. A second run writes no report again.
    """
    with open_runtime() as runtime:
        clock = runtime.settings.clock_check
        written = write_reports(runtime.engine, owner_report_page, now=runtime.now, clock=clock)
    done = ", ".join(f"{each.strategy_name} {REPORT_TITLES[each.kind]}" for each in written.reports)
    line = f"written: {done}" if done else "no report is due"
    if written.problems:
        raise RolloutError("; ".join([line, *written.problems]))
    return line
