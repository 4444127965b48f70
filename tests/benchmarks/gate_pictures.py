"""Draw the pictures of docs/explanation/gates.md: `python -m tests.benchmarks.gate_pictures docs/images`."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from strategy_core.domain.arrays import FloatArray
from strategy_core.domain.calibration import CalibrationCase
from strategy_core.domain.eprocess import advance, begin
from strategy_core.domain.gates.on_slots import NotWorse
from strategy_core.domain.plan import Plan
from strategy_core.domain.simulation import SCENARIOS
from strategy_core.domain.slot_ledger import Totals, add_slots, open_ledger
from strategy_core.report.charts import LINE_STYLES, ORANGE, RED, SOFT, Plot, Scale, canvas, draw_text, render

DAYS, SEED, LOWEST, HIGHEST, MOST_POINTS = 20, 3, -2.0, 4.0, 400
TOLD = {
    "equivalent": "as good: never near the line",
    "severe": "severe fault",
    "mild": "mild fault",
    "rare_large_losses": "wins more, loses money",
    "severe_from_day_10": "severe from day 10",
}


def evidence() -> str:
    """Return how the evidence of harm grows, for one simulated ramp of each kind."""
    svg = canvas(880, 380)
    draw_text(svg, 70, 26, "Evidence of harm E of five canaries, one simulated ramp each", size=15)
    plot = Plot(svg, Scale(0, DAYS, 70, 640), Scale(LOWEST, HIGHEST, 320, 50))
    plot.x_axis([(day, str(day)) for day in range(0, DAYS + 1, 2)], "days since the start")
    plot.y_axis([(power, f"{10**power:g}") for power in range(int(LOWEST), int(HIGHEST) + 1)], "E")
    plot.level(2.0, "rollback at 100", {"stroke": RED, "stroke_width": "2"})
    plot.level(1.0, "hold at 10", {"stroke": ORANGE, "stroke_width": "2", "stroke_dasharray": "7 4"})
    for place, (name, words) in enumerate(TOLD.items()):
        history, ramp = CalibrationCase(Plan(), SCENARIOS[name], DAYS).draw(SEED, 1)
        _, path = advance(begin(history), ramp.slots, history)
        shown = np.clip(path.log_e / math.log(10), LOWEST, HIGHEST)
        left = (shown >= HIGHEST) | (ramp.closed_at > DAYS)
        end = int(np.argmax(left)) if left.any() else len(shown)
        style = LINE_STYLES[place]
        points = list(zip(ramp.closed_at[:end].tolist(), shown[:end].tolist(), strict=True))
        plot.curve([(0.0, 0.0), *points[:: max(1, len(points) // MOST_POINTS)]], style)
        draw_text(svg, 660, 70 + 24 * place, words, fill=style["stroke"], size=13)
    return render(svg)


def not_worse() -> str:
    """Return how the lower bound of an equal version rises above the margins of the stages."""
    plan, gate = Plan(), NotWorse()
    history, ramp = CalibrationCase(plan, SCENARIOS["equivalent"], DAYS).draw(SEED, 1)
    totals = add_slots(open_ledger(history), ramp.slots, history)[1]
    svg = canvas(880, 340)
    draw_text(svg, 70, 26, "An equal canary: mean difference, and how bad it could still be", size=15)
    plot = Plot(svg, Scale(0, DAYS, 70, 640), Scale(-0.3, 0.1, 280, 50))
    plot.x_axis([(day, str(day)) for day in range(0, DAYS + 1, 2)], "days since the start")
    plot.y_axis([(value, f"{value:+.2f}") for value in (-0.3, -0.2, -0.1, 0.0, 0.1)], "R per slot")
    for stage in plan.stages[:3]:
        margin = stage.margins.pnl(history)
        label = f"{margin:.2f}: enough to leave {stage.percent:g} %" + (" and more" if stage is plan.stages[2] else "")
        plot.level(-margin, label, {"stroke": SOFT, "stroke_dasharray": "4 4"})
    kept = [(at, each) for at, each in zip(ramp.closed_at.tolist(), totals, strict=True) if each.slots >= 30][::5]
    low = _bounds(gate, [each for _, each in kept])
    times = [at for at, _ in kept]
    mean = [max(-0.3, min(0.1, each.d / each.slots)) for _, each in kept]
    plot.curve(zip(times, mean, strict=True), LINE_STYLES[0])
    plot.curve(zip(times, np.clip(low, -0.3, 0.1).tolist(), strict=True), LINE_STYLES[1])
    draw_text(svg, 660, 70, "mean difference", fill=LINE_STYLES[0]["stroke"], size=13)
    draw_text(svg, 660, 94, "lower bound", fill=LINE_STYLES[1]["stroke"], size=13)
    return render(svg)


def _bounds(gate: NotWorse, totals: Sequence[Totals]) -> FloatArray:
    found = []
    for each in totals:
        mean = each.clipped / each.slots
        deviation = math.sqrt(max(0.0, each.clipped_squares / each.slots - mean**2))
        found.append(mean - gate.reach(each.slots, deviation, 500))
    return np.array(found)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    (folder / "gates-evidence.svg").write_text(evidence())
    (folder / "gates-not-worse.svg").write_text(not_worse())
