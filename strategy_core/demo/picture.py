"""The picture of the demo: one HTML page with the charts of each act."""

from strategy_core.demo.result import DemoResult, RolloutResult, VersionResult
from strategy_core.report.charts import Curve, bound_svg, equity_svg, positions_svg, share_svg
from strategy_core.report.html import html_page
from strategy_core.report.markdown import bullet_list, image, plain, sections, table
from strategy_core.services.whatif import BoundPath


def picture(result: DemoResult) -> str:
    """Return the page. It needs no other file."""
    outcomes = [version.outcome for version in result.versions if version.outcome]
    parts = ["# rollout demo", bullet_list(outcomes)]
    for act in result.acts:
        parts.append(f"## {plain(act.title)}")
        for version in filter(None, (result.version(act.strategy, name) for name in act.versions)):
            parts += _version(result, version)
    rows = [
        (f"{one.strategy} {one.version}", "quarantined" if one.quarantined else one.status, one.about, one.differs)
        for one in result.versions
    ]
    parts += ["## Versions at the end", table(["version", "status", "what it is", "other than the active one"], rows)]
    return html_page("rollout demo", sections(*parts))


def _whole(outcome: str) -> str:
    """Return an outcome as Markdown, sentence by sentence: a cell of a report is cut where it gets long."""
    return ". ".join(map(plain, outcome.split(". ")))


def _version(result: DemoResult, version: VersionResult) -> list[str]:
    name = f"{version.strategy} {version.version}"
    parts = [f"### {plain(name)}: {plain(version.about)}", _whole(version.outcome)]
    rollout = result.rollout(version.strategy, version.version)
    return parts if rollout is None else [*parts, *_charts(result, name, rollout), _capital(rollout)]


def _capital(rollout: RolloutResult) -> str:
    """Return a table of the users and the capital in the canary by stage."""
    rows = [
        (
            f"{stage.percent:g} %",
            f"{stage.served:g} %",
            "" if stage.users is None else f"{stage.users:,}",
            "" if stage.capital is None else f"{stage.capital:.3g} %",
            "narrowed" if stage.cap_note else "",
        )
        for stage in rollout.stages
    ]
    return table(["stage", "users it got", "number", "of all capital", "cap on capital"], rows)


def _charts(result: DemoResult, name: str, rollout: RolloutResult) -> list[str]:
    start, end = rollout.started_at, rollout.ended_at or result.ended_at
    ended = "rolled back" if rollout.state == "rolled_back" else ""
    charts = []
    if len(rollout.bounds) > 1:
        path = BoundPath(
            [bound.at for bound in rollout.bounds],
            [bound.mean for bound in rollout.bounds],
            [bound.low for bound in rollout.bounds],
            [bound.limit for bound in rollout.bounds],
            with_shadow=True,
        )
        stages = [(stage.entered_at, f"{stage.percent:g} %") for stage in rollout.stages]
        title = f"{name}: difference to {rollout.control_version}, R a slot"
        charts.append(image(bound_svg(title, path, stages, start=start, end=end, ended=ended), "difference"))
    if len(rollout.equity.at) > 1:
        curves = [
            Curve(version, rollout.equity.at, values)
            for version, values in (
                (rollout.version, rollout.equity.canary),
                (rollout.control_version, rollout.equity.control),
            )
        ]
        charts.append(image(equity_svg(f"{name}: what each version made", *curves, start=start, end=end), "equity"))
    if rollout.served:
        share = share_svg(f"{name}: users who had it", rollout.served, start=start, end=end, ended=ended)
        charts.append(image(share, "share of users"))
    if any(map(any, rollout.positions.by_manager.values())):
        charts.append(image(_positions(name, rollout), "open positions"))
    return charts


def _positions(name: str, rollout: RolloutResult) -> str:
    mark = ""
    if rollout.drain is not None:
        mark = "rolled back" if rollout.drain.version == rollout.version else "100 %"
    title = f"{name}: open positions by the version that manages them"
    since = rollout.drain.since if rollout.drain else None
    return positions_svg(title, rollout.positions.at, rollout.positions.by_manager, marked_at=since, mark=mark)
