"""Pages of the reports that are written for owners, rendered from their stored facts."""

from collections.abc import Callable, Iterator
from datetime import datetime
from uuid import UUID

from sqlalchemy import Engine

from strategy_core.domain.alerts import REPORT_READY, REPORT_TITLES, WHY, AttachedPage, Raised
from strategy_core.domain.comparison import Interval
from strategy_core.domain.owner_reports import Kind, Reading
from strategy_core.domain.ramp import ENDED, State
from strategy_core.report.charts import harm_svg, regimes_svg, share_svg
from strategy_core.report.comparison import day_charts, equity_chart
from strategy_core.report.html import html_page
from strategy_core.report.markdown import (
    EMPTY,
    Markdown,
    bullet_list,
    fact_list,
    image,
    percent,
    plain,
    sections,
    shell_argument,
    shell_block,
    signed,
    table,
)
from strategy_core.report.rollout import rollout_commands
from strategy_core.services.owner_reports import find_owner_report
from strategy_core.services.report_facts import ReportFacts, RolloutFacts, VersionFacts

_SILENT = ("pass", "pass (no vote)", "no data", "no data (no vote)")
_FULL = (Kind.WEEKLY, Kind.READY)  # with every version in full. A morning note shows the first one


def owner_report_page(facts: ReportFacts) -> str:
    """Return the report as one HTML page. The same facts give the same page."""
    return html_page(owner_report_title(facts), owner_report_markdown(facts))


def owner_report_title(facts: ReportFacts) -> str:
    """Return the title, as plain text."""
    about = f" of {facts.rollout.version}" if facts.kind is Kind.FINAL and facts.rollout else ""
    return f"{facts.strategy_name}: {REPORT_TITLES[facts.kind]}{about}, {facts.at:%Y-%m-%d}"


def attached_page(engine: Engine, console_url: str = "") -> Callable[[Raised], AttachedPage | None]:
    """Return a function that gives the page of an alert about a report, and None for every other alert.

    Args:
        console_url: address of the console, to link to its page of the report.
    """

    def of(raised: Raised) -> AttachedPage | None:
        report_id = raised.facts.get("report")
        if raised.kind != REPORT_READY or not report_id:
            return None
        found, facts = find_owner_report(engine, UUID(str(report_id)))
        name = f"{found.strategy_name}-{found.kind}-{facts.at:%Y-%m-%d}.html"
        return AttachedPage(name, owner_report_page(facts), f"{console_url}/reports/{found.id}" if console_url else "")

    return of


def owner_report_markdown(facts: ReportFacts) -> str:
    """Return the verdict with its figures and the next step, then versions, pictures, costs, and what to do."""
    rollout = facts.rollout
    shown = facts.versions if facts.kind in _FULL or rollout is None else ()
    if facts.kind is Kind.MORNING:
        shown = shown[:1]
    return sections(
        f"# {plain(owner_report_title(facts))}",
        f"**{plain(facts.sentence)}**",
        _news(facts),
        *(["## Versions", _version_table(facts)] if facts.versions else []),
        *(_rollout_sections(facts, rollout) if rollout else []),
        *(part for each in shown for part in _version_sections(facts, each)),
        *(["## Tried and dropped", _dropped_table(facts)] if facts.dropped else []),
        "## What you may do",
        shell_block(_commands(facts)),
        _footer(facts),
    )


def _news(facts: ReportFacts) -> str:
    if facts.kind not in (Kind.MORNING, Kind.WEEKLY):
        return ""
    since = "Since the last note" if facts.kind is Kind.MORNING else "In the week"
    return f"{since}:\n\n{bullet_list(facts.news)}" if facts.news else f"{since}: no news."


def _version_table(facts: ReportFacts) -> str:
    columns = [
        "version",
        "status",
        "signals",
        "slots",
        "won",
        f"R a slot against {plain(facts.active or '')}",
        "verdict",
    ]
    rows = [
        (
            each.version,
            each.status,
            None if each.comparison is None else each.comparison.shadow_signal_count,
            each.difference.n,
            _win_rates(each),
            _interval(each.difference),
            each.reading or "judged by its gates",
        )
        for each in facts.versions
    ]
    many = (
        f"{facts.tried} versions were tried, so each interval is at {facts.confidence:.1%}: all hold together at 95 %."
    )
    note = many if facts.tried > 1 else "The interval is at 95 %."
    return sections(
        table(columns, rows),
        f"{note} It only describes. The verdict rests on bounds that stay valid however often you look.",
    ).rstrip()


def _rollout_sections(facts: ReportFacts, rollout: RolloutFacts) -> Iterator[str]:
    start, end = rollout.started_at, rollout.ended_at or facts.at
    canary, control = rollout.version, rollout.control_version
    ended = State(rollout.state) in ENDED
    yield f"## Rollout of {plain(canary)} against {plain(control)}"
    yield fact_list(
        [
            ("state", rollout.state.replace("_", " ")),
            ("stages", _stages(rollout)),
            ("users", _users(rollout)),
            ("started", f"{start:%Y-%m-%d %H:%M} UTC{f' by {rollout.started_by}' if rollout.started_by else ''}"),
            ("promoted", rollout.promoted_at),
            ("ended", rollout.ended_at),
            ("reason", rollout.reason if ended and rollout.reason else None),
            ("serves all users now", rollout.now_active if ended else None),
        ]
    )
    if rollout.needs:
        yield f"**Required for the next step:**\n\n{bullet_list(rollout.needs)}"
    yield _gate_table(rollout)
    yield equity_chart(rollout.equity, canary, control, start=start, end=end)
    yield day_charts(rollout.days, rollout.usual_unlike)
    if rollout.harm is not None and facts.kind is not Kind.MORNING:
        svg = harm_svg("Evidence of harm over time", rollout.harm, start=start, end=max(end, rollout.harm.at[-1]))
        yield image(svg, "evidence of harm")
    if rollout.served and end > start and facts.kind is Kind.FINAL:
        stopped = rollout.state.replace("_", " ") if ended and rollout.state != State.COMPLETED else ""
        svg = share_svg("Share of users over time", rollout.served, start=start, end=end, ended=stopped)
        yield image(svg, "share of users")
    yield "### Costs"
    yield _cost_table(facts, canary, control, rollout.cost.slots, rollout.cost.canary_r, rollout.cost.control_r)


def _stages(rollout: RolloutFacts) -> Markdown:
    shown = (f"**{stage:g}**" if at == rollout.stage_index else f"{stage:g}" for at, stage in enumerate(rollout.stages))
    return Markdown(f"{' → '.join(shown)} %")


def _users(rollout: RolloutFacts) -> str:
    counted = ""
    if rollout.users is not None and rollout.directory is not None:
        counted = f", {rollout.users:,} of {rollout.directory:,} users"
    return f"{percent(rollout.percent)}{counted}"


def _gate_table(rollout: RolloutFacts) -> str:
    """Return the gates that do not pass, and how many others there are."""
    speaking = [each for each in rollout.gates if each.shown_verdict not in _SILENT]
    others = len(rollout.gates) - len(speaking)
    rows = [(each.title, each.shown_verdict, each.value, each.limit, each.count) for each in speaking]
    counted = f"{others} {'other ' if speaking else ''}gates pass, have no vote, or have no data." if others else ""
    return sections(table(["gate", "verdict", "value", "limit", "seen"], rows) if rows else "", counted).rstrip()


def _version_sections(facts: ReportFacts, one: VersionFacts) -> Iterator[str]:
    active = facts.active or ""
    yield f"## {plain(one.version)} against {plain(active)}"
    if one.text and not facts.sentence.startswith(one.text):
        yield plain(f"{one.text}.")
    measured, start, end = one.comparison, one.compared_from, one.compared_to
    if measured is None or one.equity is None or start is None or end is None:
        yield "It is compared tonight for the first time."
        return
    yield fact_list([("compared", f"{start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC")])
    yield equity_chart(one.equity, one.version, active, start=start, end=end)
    yield day_charts(one.days)
    if measured.by_regime and facts.kind in _FULL:
        regimes = dict(sorted(measured.by_regime.items()))
        rows = [(name, each.difference.n, _interval(each.difference)) for name, each in regimes.items()]
        yield "### Regimes"
        yield table(["regime", "slots", "R a slot (95 %)"], rows)
        yield image(regimes_svg("Paired difference by regime, with its 95 % interval", regimes), "regimes")
    yield "### Costs"
    ours, theirs = (sum(getattr(day, side) for day in one.days) for side in ("canary_r", "control_r"))
    yield _cost_table(facts, one.version, active, one.difference.n, ours, theirs)


def _cost_table(facts: ReportFacts, canary: str, control: str, slots: int, canary_r: float, control_r: float) -> str:
    """Return what a user who copied every signal gained or lost, in R and as a share of equity."""
    if slots == 0:
        return "No slot has closed yet, so there are no results."
    apart = canary_r - control_r
    columns = ["slots", f"R with {plain(canary)}", f"R with {plain(control)}", "difference", "of equity"]
    row = (slots, signed(canary_r), signed(control_r), signed(apart), Markdown(f"{apart * facts.risk_fraction:+.2%}"))
    note = f"For a user who copied every signal. One R is {facts.risk_fraction:.2%} of equity."
    return sections(table(columns, [row]), note).rstrip()


def _dropped_table(facts: ReportFacts) -> str:
    return table(["version", "at", "what happened"], [(each.version, each.at, each.why) for each in facts.dropped])


def _commands(facts: ReportFacts) -> list[str]:
    """Return the commands of what the owner may do, the most likely one first."""
    name, rollout = shell_argument(facts.strategy_name), facts.rollout
    commands = []
    if rollout is not None:
        commands += rollout_commands(
            facts.strategy_name,
            rollout.version,
            rollout.id,
            State(rollout.state),
            is_promoted=rollout.promoted_at is not None,
        )
    for each in facts.versions:
        version = shell_argument(each.version)
        match each.reading:
            case Reading.READY:
                commands.append(f"rollout plan {name} {version}")
                if rollout is None:
                    commands.append(f"rollout start {name} {version} {WHY}")
            case Reading.HARM | Reading.NEVER:
                commands.append(f"rollout retire {name} {version} {WHY}")
            case Reading.LIKELY_HARM | Reading.OPEN | Reading.TOO_FEW:
                commands.append(f"rollout compare {name} {version}")
            case _:  # the canary, whose rollout has its own
                pass
    return commands or [f"rollout status {name}"]


def _footer(facts: ReportFacts) -> str:
    period = f"{_day(facts.period_start)} to {_day(facts.period_end)}"
    return f"Period: {period} UTC. Written {facts.at:%Y-%m-%d %H:%M} UTC."


def _day(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M}"


def _win_rates(one: VersionFacts) -> Markdown | None:
    if one.comparison is None:
        return None
    return Markdown(f"{_share(one.comparison.shadow.win_rate)} against {_share(one.comparison.active.win_rate)}")


def _share(value: float | None) -> Markdown:
    return Markdown(EMPTY if value is None else f"{value:.1%}")


def _interval(found: Interval) -> Markdown:
    if found.mean is None:
        return Markdown(EMPTY)
    limits = "" if found.low is None or found.high is None else f" ({found.low:+.3f} to {found.high:+.3f})"
    return Markdown(f"{found.mean:+.3f}{limits}")
