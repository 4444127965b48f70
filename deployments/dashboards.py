"""Write the Grafana dashboards: `python -m deployments.dashboards`. Needs the packages of the group `dev`.

Grafana's own library knows its schema, so that the type checker refuses a panel that Grafana would not read.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from grafana_foundation_sdk.builders import bargauge, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.builders.common import (
    GraphThresholdsStyleConfig,
    ReduceDataOptions,
    TableFooterOptions,
    VizLegendOptions,
    VizTooltipOptions,
)
from grafana_foundation_sdk.builders.dashboard import (
    AnnotationQuery,
    Dashboard,
    DashboardLink,
    DatasourceVariable,
    FieldColor,
    QueryVariable,
    ThresholdsConfig,
)
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as of
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    DataTransformerConfig,
    DynamicConfigValue,
    FieldColorModeId,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMappingResult,
    VariableOption,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

FOLDER = Path(__file__).parent / "grafana" / "dashboards"
SOURCE = DataSourceRef("prometheus", "${datasource}")
OLD_TICK_S, OLD_BLINDNESS_S = 600, 1800  # where a time turns red
MARKS = {  # keys of the Prometheus data source by annotation, which the schema does not have
    "Rollbacks": {"titleFormat": "{{strategy}} rolled back", "textFormat": "cause: {{cause}}", "step": "60s"},
    "Freezes": {"titleFormat": "{{strategy}} frozen", "textFormat": "no releases, rollbacks go on", "step": "60s"},
}
COLOURS = {  # of verdicts, from the worst to the best
    "breach": "dark-red",
    "fail": "red",
    "blind": "purple",
    "inconclusive": "orange",
    "insufficient": "light-blue",
    "pass": "green",
}
EXPECTED = "Days are expected, if the version is as good as the active one, and empty where they cannot be."
ONE = 'strategy="$strategy", version="$version"'
OF = 'strategy=~"$strategy"'
PAIR = 'strategy=~"$strategy", version=~"$version"'
Panel = bargauge.Panel | stat.Panel | statetimeline.Panel | table.Panel | timeseries.Panel
P = TypeVar("P", bargauge.Panel, stat.Panel, statetimeline.Panel, table.Panel, timeseries.Panel)
Steps = Mapping[str, float]  # colour -> the value from which on it is shown
Queries = Mapping[str, str]  # legend -> expression


def _panel(panel: P, title: str, width: int, height: int, about: str) -> P:
    return panel.title(title).span(width).height(height).description(about).datasource(SOURCE)


def _query(expression: str, number: int = 0, *, legend: str = "__auto") -> Dataquery:
    """Return one query. Each reads the highest of equal series, since two exporters may count one database."""
    return Dataquery().expr(expression).ref_id("ABCDEFGHIJ"[number]).legend_format(legend).datasource(SOURCE)


def _thresholds(steps: Steps, first: str = "text") -> ThresholdsConfig:
    found = [Threshold(None, first), *(Threshold(value, color) for color, value in steps.items())]
    return ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(found)


def _color(mode: FieldColorModeId) -> FieldColor:
    return FieldColor().mode(mode)


def _changed(**properties: object) -> list[DynamicConfigValue]:
    return [DynamicConfigValue(name.replace("__", "."), value) for name, value in properties.items()]


def _last() -> ReduceDataOptions:
    return ReduceDataOptions().calcs(["lastNotNull"]).fields("").values(False)


def number(
    title: str,
    expression: str,
    unit: str = "none",
    *,
    width: int = 4,
    none: str = "–",
    first: str = "text",
    steps: Steps | None = None,
    about: str = "",
    height: int = 4,
) -> stat.Panel:
    """Return a panel with one number.

    Args:
        none: shown without a value.
        first, steps: colours, from the lowest value to the highest.
    """
    return (
        _panel(stat.Panel(), title, width, height, about)
        .with_target(_query(expression).instant())
        .unit(unit)
        .no_value(none)
        .thresholds(_thresholds(steps or {}, first))
        .color_scheme(_color(FieldColorModeId.THRESHOLDS))
        .reduce_options(_last())
        .color_mode(of.BigValueColorMode.VALUE)
        .graph_mode(of.BigValueGraphMode.NONE)
    )


def lines(
    title: str,
    queries: Queries,
    unit: str = "none",
    *,
    about: str = "",
    width: int = 12,
    height: int = 8,
    steps: bool = False,
    at_least: float | None = 0,
    at_most: float | None = None,
    colors: Mapping[str, str] | None = None,
    limit: str = "",
    table_legend: bool = True,
) -> timeseries.Panel:
    """Return a panel with curves.

    Args:
        steps: a value holds until the next one.
        colors: by legend.
        limit: legend of the curve that is drawn as a red, dashed line.
    """
    legend = VizLegendOptions().show_legend(True).calcs(["lastNotNull"])
    if table_legend:
        legend = legend.display_mode(of.LegendDisplayMode.TABLE).placement(of.LegendPlacement.RIGHT)
    panel = (
        _panel(timeseries.Panel(), title, width, height, about)
        .unit(unit)
        .color_scheme(_color(FieldColorModeId.PALETTE_CLASSIC))
        .draw_style(of.GraphDrawStyle.LINE)
        .line_interpolation(of.LineInterpolation.STEP_AFTER if steps else of.LineInterpolation.LINEAR)
        .line_width(2)
        .fill_opacity(0)
        .show_points(of.VisibilityMode.NEVER)
        .span_nulls(False)
        .legend(legend)
        .tooltip(VizTooltipOptions().mode(of.TooltipDisplayMode.MULTI).sort(of.SortOrder.DESCENDING))
    )
    for place, (name, expression) in enumerate(queries.items()):
        panel = panel.with_target(_query(expression, place, legend=name).range())
    for name, color in {**(colors or {}), **({limit: "red"} if limit else {})}.items():
        dashed = {"custom__lineStyle": {"fill": "dash", "dash": [10, 10]}} if name == limit else {}
        changed = _changed(color={"mode": "fixed", "fixedColor": color}, **dashed)
        panel = panel.override_by_name(name, changed)
    panel = panel if at_least is None else panel.min(at_least)
    return panel if at_most is None else panel.max(at_most)


def bars(
    title: str, legend: str, expression: str, *, about: str = "", width: int = 12, height: int = 7
) -> bargauge.Panel:
    """Return a panel with a bar for each series."""
    return (
        _panel(bargauge.Panel(), title, width, height, about)
        .with_target(_query(expression, legend=legend).instant())
        .unit("none")
        .min(0)
        .color_scheme(_color(FieldColorModeId.PALETTE_CLASSIC))
        .reduce_options(_last())
        .display_mode(of.BarGaugeDisplayMode.BASIC)
        .orientation(of.VizOrientation.HORIZONTAL)
        .value_mode(of.BarGaugeValueMode.TEXT)
        .show_unfilled(True)
    )


def rows(
    title: str, expressions: Sequence[str], *transformations: tuple[str, object], about: str, width: int, height: int
) -> table.Panel:
    """Return a table of the newest values."""
    panel = (
        _panel(table.Panel(), title, width, height, about)
        .align(of.FieldTextAlignment.AUTO)
        .cell_options(of.TableAutoCellOptions())
        .filterable(False)
        .show_header(True)
        .cell_height(of.TableCellHeight.SM)
        .footer(TableFooterOptions().show(False))
    )
    for place, expression in enumerate(expressions):
        panel = panel.with_target(_query(expression, place).instant().format(PromQueryFormat.TABLE))
    return panel.transformations([DataTransformerConfig(name, options=options) for name, options in transformations])


def _columns(names: Mapping[str, str], *hidden: str) -> tuple[str, object]:
    """Return the transformation that orders and renames columns."""
    return "organize", {
        "excludeByName": dict.fromkeys(("Time", *hidden), True),
        "indexByName": {name: place for place, name in enumerate(names)},
        "renameByName": dict(names),
    }


def _values(results: Mapping[str, ValueMappingResult]) -> ValueMap:
    for place, result in enumerate(results.values()):
        result.index = place
    return ValueMap(dict(results))


def _colored(first: str = "text", **steps: float) -> dict[str, object]:
    """Return the properties of a column whose text turns *steps*."""
    return {"thresholds": _thresholds(steps, first).build(), "custom__cellOptions": of.TableColorTextCellOptions()}


def _variable(name: str, query: str, *, many: bool, chosen: bool) -> QueryVariable:
    """Return a list from which the reader of a dashboard chooses.

    Args:
        many: several may be chosen.
        chosen: all are, at first.
    """
    found = (
        QueryVariable(name)
        .label(name.title())
        .datasource(SOURCE)
        .query({"query": query, "refId": name})
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(many)
        .include_all(many)
    )
    return found.current(VariableOption(text=["All"], value=["$__all"])) if chosen else found


def _dashboard(
    uid: str, title: str, about: str, since: str, variables: Sequence[QueryVariable], panels: Sequence[Panel]
) -> dict[str, Any]:
    link = DashboardLink("Rollout").type(DashboardLinkType.DASHBOARDS).tags(["rollout"]).icon("external link")
    rollbacks = (
        AnnotationQuery()
        .name("Rollbacks")
        .datasource(SOURCE)
        .enable(True)
        .icon_color("red")
        .expr("max by (strategy, cause) (changes(rollbacks_total[$__interval])) > 0")
    )
    freezes = (
        AnnotationQuery()
        .name("Freezes")
        .datasource(SOURCE)
        .enable(True)
        .icon_color("blue")
        .expr("max by (strategy) (releases_frozen) > 0")
    )
    board = (
        Dashboard(title)
        .uid(uid)
        .description(about)
        .tags(["rollout"])
        .timezone("utc")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .time(since, "now")
        .refresh("30s")
        .version(1)
        .link(link.include_vars(True).keep_time(True))
        .variables([DatasourceVariable("datasource").label("Prometheus").type("prometheus"), *variables])
        .annotation(rollbacks)
        .annotation(freezes)
    )
    for place, panel in enumerate(panels, 1):
        board = board.with_panel(panel.id(place))
    found: dict[str, Any] = json.loads(json.dumps(board.build(), cls=JSONEncoder))
    for mark in found["annotations"]["list"]:
        mark.update(MARKS[mark["name"]])
    return found


def _strategies(*, many: bool) -> QueryVariable:
    return _variable("strategy", "label_values(strategy_generation, strategy)", many=many, chosen=many)


def overview() -> dict[str, Any]:
    """Return the dashboard of all rollouts."""
    red, orange = {"red": 1.0}, {"orange": 1.0}
    columns = {
        "strategy": "Strategy",
        "version": "Version",
        "state": "State",
        "Value #B": "Stage",
        "Value #C": "Stages",
        "Value #D": "Users",
        "Value #E": "Users in canary",
        "Value #F": "Time in stage",
        "Value #G": "Time blind",
        "Value #H": "Time since last tick",
        "Value #I": "Days to next stage",
        "Value #J": "Days to the end",
    }
    by = "max by (strategy, version)"
    open_rollouts = rows(
        "Open rollouts",
        [
            f"max by (strategy, version, state) (rollout_open{{{OF}}})",
            f"{by} (rollout_stage{{{OF}}})",
            f"{by} (rollout_stages{{{OF}}})",
            f"{by} (canary_traffic_percent{{{OF}}}) and on (strategy, version) rollout_open",
            f"{by} (canary_users{{{OF}}})",
            *(f"{by} (rollout_{age}_seconds{{{OF}}})" for age in ("dwell", "blind", "tick_age")),
            *(f'{by} (rollout_days_left{{{OF}, until="{until}"}})' for until in ("stage", "end")),
        ],
        ("merge", {}),
        _columns(columns, "Value #A"),
        about=f"One row per rollout: stage, users, last tick. {EXPECTED}",
        width=24,
        height=8,
    )
    waits = _values(
        {
            "awaiting_approval": ValueMappingResult("waits for approval", "orange"),
            "awaiting_decision": ValueMappingResult("waits for a decision", "orange"),
            "paused": ValueMappingResult(color="blue"),
        }
    )
    for name, properties in {
        "Users": _changed(unit="percent", decimals=2),
        "Time in stage": _changed(unit="s"),
        "Time blind": _changed(unit="s", **_colored(orange=1, red=OLD_BLINDNESS_S)),
        "Time since last tick": _changed(unit="s", **_colored(red=OLD_TICK_S)),
        "Days to next stage": _changed(unit="none", decimals=1),
        "Days to the end": _changed(unit="none", decimals=1),
        "State": _changed(mappings=[waits], custom__cellOptions=of.TableColorTextCellOptions()),
    }.items():
        open_rollouts = open_rollouts.override_by_name(name, properties)
    verdicts = rows(
        "Current verdicts",
        [f"max by (strategy, version, gate, verdict) (gate_verdict{{{OF}}})"],
        _columns({"strategy": "Strategy", "version": "Version", "gate": "Gate", "verdict": "Verdict"}, "Value"),
        about="Latest verdict of each gate of an open rollout. The worst verdict of the armed gates decides.",
        width=12,
        height=10,
    ).override_by_name(
        "Verdict",
        _changed(
            mappings=[_values({verdict: ValueMappingResult(color=color) for verdict, color in COLOURS.items()})],
            custom__cellOptions=of.TableColorTextCellOptions(),
        ),
    )
    no_list = "Empty if no user list is loaded."
    return _dashboard(
        "rollout-overview",
        "Rollout: overview",
        "All strategies: canaries, verdicts and rollbacks.",
        "now-24h",
        [_strategies(many=True)],
        [
            number("Open rollouts", f"sum({by} (rollout_open{{{OF}}})) or vector(0)"),
            number("Users in canaries", f"sum({by} (canary_users{{{OF}}}))", about=no_list),
            number("Users in the directory", f"max(directory_users{{{OF}}})", about=no_list),
            number(
                "Failing gates",
                f'sum(max by (strategy, version, gate) (gate_verdict{{{OF}, verdict=~"breach|fail"}})) or vector(0)',
                first="green",
                steps=red,
                about="Open rollouts. An armed gate would have rolled back, so these are dry runs.",
            ),
            number(
                "Rollbacks in 24 h",
                f"round(sum(max without (instance, job) (increase(rollbacks_total{{{OF}}}[24h])))) or vector(0)",
                first="green",
                steps=orange,
            ),
            _unacknowledged(),
            open_rollouts,
            verdicts,
            lines(
                "Share of users on the canary",
                {
                    "{{strategy}} {{version}}": f"{by} (canary_traffic_percent{{{OF}}})",
                    "{{strategy}} {{version}}: asked": f"{by} (canary_asked_percent{{{OF}}})",
                    "{{strategy}} {{version}}: of capital": f"100 * {by} (canary_capital_share{{{OF}}})",
                },
                "percent",
                about="Share of users by routing, 0 after it was withdrawn, and their share of all capital. Below what "
                "the stage asks for where the cap on capital leaves users out.",
                steps=True,
                at_most=100,
                height=10,
            ),
            lines(
                "Users in canary and in total",
                {
                    "{{strategy}} {{version}}": f"{by} (canary_users{{{OF}}})",
                    "{{strategy}}: all": f"max by (strategy) (directory_users{{{OF}}})",
                },
                about="From the user list, empty if none is loaded.",
                steps=True,
                height=9,
            ),
            lines(
                "Open positions by manager",
                {
                    "{{strategy}} {{version}}": f"{by} (open_positions{{{OF}}})",
                    "{{strategy}} {{version}}: draining": f"{by} (draining_positions{{{OF}}})",
                    "{{strategy}}: to be closed": f"max by (strategy) (unclosed_exits{{{OF}}})",
                },
                about="Draining: of a version that serves no users. To be closed: open though the platform was asked "
                "to leave them.",
                steps=True,
                height=9,
            ),
            lines(
                "New verdicts per hour",
                {
                    "{{verdict}}": "sum by (verdict) (max without (instance, job) "
                    f"(increase(gate_verdicts_total{{{OF}}}[1h]))) > 0"
                },
                about="Changed verdicts per hour.",
                colors=COLOURS,
                height=9,
            ),
            bars(
                "Rollbacks by cause, 30 d",
                "{{strategy}}: {{cause}}",
                "round(sum by (strategy, cause) (max without (instance, job) "
                f"(increase(rollbacks_total{{{OF}}}[30d])))) > 0",
                about="The cause is a gate, owner, blind or unanswered.",
            ),
            bars(
                "Activations, 30 d",
                "{{strategy}} {{version}}",
                f"round({by} (increase(version_activations_total{{{OF}}}[30d]))) > 0",
                about="How often a version became the active one.",
            ),
        ],
    )


def _unacknowledged() -> stat.Panel:
    expression = 'max(alerts_unacknowledged{severity="critical"}) or vector(0)'
    return number("Critical alerts, unacknowledged", expression, first="green", steps={"red": 1})


def one_rollout() -> dict[str, Any]:
    """Return the dashboard of one rollout."""

    def small(title: str, metric: str, unit: str = "none", **options: Any) -> stat.Panel:
        return number(title, f"max({metric}{{{ONE}}})", unit, **{"width": 3, "none": "ended", **options})

    def days(title: str, until: str) -> stat.Panel:
        expression = f'max(rollout_days_left{{{ONE}, until="{until}"}})'
        return number(title, expression, width=6, none="open", about=EXPECTED).decimals(1)

    timeline = (
        _panel(statetimeline.Panel(), "Verdicts", 12, 8, "The worst verdict of the armed gates decides.")
        .with_target(
            _query(
                " or ".join(
                    f'max by (gate) (gate_verdict{{{ONE}, verdict="{verdict}"}}) * {rank}'
                    for rank, verdict in enumerate(COLOURS)
                ),
                legend="{{gate}}",
            ).range()
        )
        .color_scheme(_color(FieldColorModeId.THRESHOLDS))
        .mappings(
            [
                _values(
                    {
                        str(rank): ValueMappingResult(verdict, color)
                        for rank, (verdict, color) in enumerate(COLOURS.items())
                    }
                )
            ]
        )
        .fill_opacity(85)
        .line_width(0)
        .merge_values(True)
        .show_value(of.VisibilityMode.NEVER)
        .align_value(of.TimelineValueAlignment.LEFT)
        .row_height(0.85)
        .legend(VizLegendOptions().display_mode(of.LegendDisplayMode.LIST).show_legend(True))
        .tooltip(VizTooltipOptions().mode(of.TooltipDisplayMode.SINGLE))
    )
    in_stage, blind = f"max(rollout_dwell_seconds{{{ONE}}})", f"max(rollout_blind_seconds{{{ONE}}})"
    percent, stage = f"max(canary_traffic_percent{{{ONE}}})", f"max(rollout_stage{{{ONE}}})"
    return _dashboard(
        "rollout-one",
        "Rollout: one rollout",
        "One rollout: its stage, and the value and limit of each gate.",
        "now-7d",
        [
            _strategies(many=False),
            _variable(
                "version", 'label_values(rollout_stage{strategy="$strategy"}, version)', many=False, chosen=False
            ),
            _variable("gate", f"label_values(gate_verdict{{{ONE}}}, gate)", many=True, chosen=True),
        ],
        [
            small(
                "Stage", "rollout_stage", about="Counted from 1. For an ended rollout, choose an earlier time range."
            ),
            small("Stages", "rollout_stages"),
            small("Users", "canary_traffic_percent", "percent", none="–"),
            small("Users in canary", "canary_users", none="–", about="Empty if no user list is loaded."),
            number("Share of users", 'max(directory_users{strategy="$strategy"})', width=3),
            small("Time in stage", "rollout_dwell_seconds", "s"),
            small(
                "Time blind",
                "rollout_blind_seconds",
                "s",
                first="green",
                steps={"orange": 1, "red": OLD_BLINDNESS_S},
                about="Time without evidence, 0 if evidence is available.",
            ),
            small("Time since last tick", "rollout_tick_age_seconds", "s", first="green", steps={"red": OLD_TICK_S}),
            small("Slots", "rollout_slots", width=6, about="Slots that the rollout has counted."),
            small(
                "Slots needed",
                "rollout_slots_needed",
                width=6,
                none="–",
                about="At this stage, if the version is as good as the active one.",
            ),
            days("Days to the next stage", "stage"),
            days("Days to the end", "end"),
            lines(
                "Stage progress",
                {"users": percent, "stages passed": f"100 * {stage} / max(rollout_stages{{{ONE}}})"},
                "percent",
                about="Share of users, and share of stages passed.",
                steps=True,
                at_most=100,
            ),
            timeline,
            lines(
                "$gate: value against limit",
                {
                    "value": f'max(gate_value{{{ONE}, gate="$gate"}})',
                    "limit": f'max(gate_limit{{{ONE}, gate="$gate"}})',
                },
                "short",
                about="The limit is the value at which the verdict would change.",
                width=24,
                at_least=None,
                limit="limit",
                table_legend=False,
            )
            .repeat("gate")
            .repeat_direction("h")
            .max_per_row(3),
            lines(
                "Evidence of harm: e-process and threshold",
                {
                    "e-process": f'max(gate_value{{{ONE}, gate="harm"}})',
                    "threshold": f'max(gate_limit{{{ONE}, gate="harm"}})',
                },
                "short",
                about="Base-10 logarithm of the e-value for harm: 1 means evidence of 10 to 1. Above the threshold the "
                "version is rolled back.",
                at_least=None,
                limit="threshold",
            ),
            lines(
                "Days left",
                {"{{until}}": f"max by (until) (rollout_days_left{{{ONE}}})"},
                about=f"Until the next stage, and until the end of the bake. {EXPECTED}",
            ),
            lines("Time in stage and time blind", {"time in stage": in_stage, "time blind": blind}, "s"),
        ],
    )


def shadow() -> dict[str, Any]:
    """Return the dashboard of decisions and comparisons."""
    by, per_version = "max by (strategy, version)", "{{strategy}} {{version}}"

    def counted(metric: str, more: str, window: str, extra: str = "") -> str:
        increase = f"increase({metric}{{{PAIR}{extra}}}[{window}])"
        return f"sum by (strategy, version{more}) (max without (instance, job) ({increase}))"

    decisions = rows(
        "Decisions in 24 h",
        [f"round({counted('shadow_decisions_total', ', decision', '24h')})"],
        ("groupingToMatrix", {"columnField": "decision", "rowField": "version", "valueField": "Value"}),
        about="All deciding versions (shadow, canary, active) on the same candles.",
        width=12,
        height=9,
    ).override_by_name("error", _changed(**_colored(red=1)))
    difference = (
        lines(
            "Difference in R per slot",
            {per_version + ": {{bound}}": f"max by (strategy, version, bound) (comparison_difference_r{{{PAIR}}})"},
            "short",
            about="Compared with the active version, with 95 % interval. An interval below 0 means worse.",
            steps=True,
            at_least=None,
        )
        .thresholds(_thresholds({"text": 0}, "transparent"))
        .thresholds_style(GraphThresholdsStyleConfig().mode(of.GraphThresholdsStyleMode.LINE))
    )
    return _dashboard(
        "rollout-shadow",
        "Rollout: shadow",
        "Decisions, divergence of shadows from the active version, and errors.",
        "now-24h",
        [
            _strategies(many=True),
            _variable("version", f"label_values(shadow_lag_seconds{{{OF}}}, version)", many=True, chosen=True),
        ],
        [
            decisions,
            bars(
                "Signals in 24 h",
                per_version + ": {{decision}}",
                f"round({counted('shadow_decisions_total', ', decision', '24h', _SIGNALS)})",
                about="Signals that users would have copied.",
                height=9,
            ),
            lines(
                "Decisions per hour",
                {per_version: counted("shadow_decisions_total", "", "1h")},
                about="All symbols of a version. 0 means that it makes no decisions.",
            ),
            lines(
                "Divergence from the active version",
                {per_version: f"{by} (comparison_divergence_percent{{{PAIR}}})"},
                "percent",
                about="Share of actionable candles with different decisions, from the newest nightly report.",
                steps=True,
                at_most=100,
            ),
            difference,
            lines(
                "Agreement of shadow and live results",
                {per_version: f"{by} (fidelity_concordance{{{PAIR}}})"},
                "short",
                about="1 means equal, 0 means unrelated. Low values make comparisons unreliable.",
                steps=True,
                at_least=None,
                at_most=1,
            ),
            lines(
                "Decision lag",
                {per_version: f"{by} (shadow_lag_seconds{{{PAIR}}})"},
                "s",
                about="Time since the newest decided candle, for the symbol that lags most. Includes closed markets.",
            ),
            lines(
                "Errors per hour, by kind",
                {per_version + ": {{kind}}": f"{counted('shadow_errors_total', ', kind', '1h')} > 0"},
                about="Candles without a decision, because of an error.",
            ),
            bars(
                "Errors in 24 h, by kind",
                per_version + ": {{kind}}",
                f"round({counted('shadow_errors_total', ', kind', '24h')}) > 0",
            ),
            number(
                "Isolation breaches in 24 h",
                "round(sum(max without (instance, job) "
                f"(increase(isolation_breaches_total{{{PAIR}}}[24h])))) or vector(0)",
                width=12,
                height=7,
                first="green",
                steps={"red": 1},
                about="Candles on which a version tried a forbidden operation.",
            ),
        ],
    )


_SIGNALS = ', decision=~"buy|sell"'


def operations() -> dict[str, Any]:
    """Return the dashboard of the platform's own health."""
    by, per_version = "max by (strategy, version)", "{{strategy}} {{version}}"
    raised = "sum by (severity, kind) (max without (instance, job) (increase(alerts_raised_total[{window}]))) "
    newest = rows(
        "Newest candles",
        ["1000 * max by (symbol) (feed_newest_candle_timestamp_seconds)"],
        _columns({"symbol": "Symbol", "Value": "Opened at"}),
        ("sortBy", {"fields": {}, "sort": [{"field": "Opened at"}]}),
        about="Oldest first.",
        width=12,
        height=8,
    ).override_by_name("Opened at", _changed(unit="dateTimeAsIso"))
    return _dashboard(
        "rollout-operations",
        "Rollout: operations",
        "Health of feed, ticks, alerts and exporter.",
        "now-24h",
        [_strategies(many=True)],
        [
            number("Exporters up", 'sum(up{job="rollout"}) or vector(0)', first="red", steps={"green": 1}),
            number("Collection time", "max(exporter_collect_seconds)", "s", first="green", steps={"orange": 1}),
            number(
                "Longest time since a tick",
                f"max(rollout_tick_age_seconds{{{OF}}})",
                "s",
                none="no rollout",
                first="green",
                steps={"red": OLD_TICK_S},
                about="Open rollouts.",
            ),
            number("Longest time since a candle", "max(feed_lag_seconds)", "s", about="Includes closed markets."),
            number(
                "Alerts waiting",
                "sum(max by (channel) (alert_outbox_depth)) or vector(0)",
                first="green",
                steps={"orange": 1},
                about="Due but not sent.",
            ),
            _unacknowledged(),
            lines(
                "Time since the newest candle",
                {"{{symbol}}": "max by (symbol) (feed_lag_seconds)"},
                "s",
                about="By symbol, includes closed markets.",
            ),
            newest,
            lines(
                "Time since a tick",
                {per_version: f"{by} (rollout_tick_age_seconds{{{OF}}})"},
                "s",
                about="Open rollouts. A tick runs every minute.",
            ),
            lines(
                "Ticks",
                {per_version: f"{by} (changes(rollout_last_tick_timestamp_seconds{{{OF}}}[10m]))"},
                about="Ticks within ten minutes.",
            ),
            lines("Alerts per hour", {"{{severity}}: {{kind}}": f"{raised.format(window='1h')}> 0"}),
            lines(
                "Unacknowledged alerts",
                {"{{severity}}": "max by (severity) (alerts_unacknowledged)"},
                steps=True,
                colors={"critical": "red", "warning": "orange", "info": "blue"},
            ),
            lines(
                "Alerts waiting, by channel",
                {"{{channel}}": "max by (channel) (alert_outbox_depth)"},
                about="Due but not sent.",
                steps=True,
            ),
            lines(
                "Oldest waiting alert",
                {"{{channel}}": "max by (channel) (alert_outbox_oldest_seconds)"},
                "s",
                about="How long it has been due.",
            ),
            lines(
                "Changes per hour",
                {"{{strategy}}": f"max by (strategy) (delta(strategy_generation{{{OF}}}[1h]))"},
                about="Entries of the audit trail.",
            ),
            lines(
                "Scrape duration",
                {
                    "{{instance}}: collection": "max by (instance) (exporter_collect_seconds)",
                    "{{instance}}: scrape": 'max by (instance) (scrape_duration_seconds{job="rollout"})',
                },
                "s",
            ),
            lines(
                "Series left out",
                {"{{reason}}": "max by (reason) (exporter_left_out)"},
                about="Series above the cap, or from unreadable rows.",
                steps=True,
                height=7,
            ),
            bars("Alerts in 24 h", "{{severity}}: {{kind}}", f"round({raised.format(window='24h').rstrip()}) > 0"),
        ],
    )


def rendered() -> dict[str, str]:
    """Return the text of each dashboard's file, by file name."""
    boards = [overview(), one_rollout(), shadow(), operations()]
    return {f"{board['uid']}.json": json.dumps(board, indent=1, ensure_ascii=False) + "\n" for board in boards}


if __name__ == "__main__":
    for name, text in rendered().items():
        (FOLDER / name).write_text(text)
        print(FOLDER / name, file=sys.stderr)  # noqa: T201
