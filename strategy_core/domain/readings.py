"""How gates are shown to owners: plain names, and each finding beside the value at which its verdict changes."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import get_args

from strategy_core.domain.gates.base import (
    Errors,
    Finding,
    Freshness,
    Gate,
    InvalidDecisions,
    Silence,
    Verdict,
    format_evidence,
)
from strategy_core.domain.gates.on_live_orders import ExecutionGate, RoutingAudit, SampleRatio
from strategy_core.domain.gates.on_metrics import MetricThreshold
from strategy_core.domain.gates.on_slots import Divergence, ExcessDrawdown, Harm, LosingStreak, NotWorse, WinRate
from strategy_core.domain.plan import AnyGate, Plan

NO_DATA = "no data"
NONE = "—"


@dataclass(frozen=True, slots=True)
class GateReading:
    """A finding as owners read it. All texts are ready to show.

    Attributes:
        gate: the gate's name in findings, such as `not_worse`.
        title, help: its plain name, and what it looks for in one line.
        verdict: of the finding, or `no data` if the gate has seen none.
        armed: whether it has a vote.
        holds: whether it keeps the rollout from the next stage. Without data some gates do, others pass.
        value, limit: in the same unit. The verdict changes where the value reaches the limit. `—` if there is none.
        count: how much the gate has seen, such as "52 slots" or "5 of 30 slots, day 4 of at least 3".
        reason: the finding's own words.
    """

    gate: str
    title: str
    help: str
    verdict: str
    armed: bool
    holds: bool
    value: str
    limit: str
    count: str
    reason: str

    @property
    def shown_verdict(self) -> str:
        """The verdict, marked if the gate has no vote."""
        return self.verdict if self.armed else f"{self.verdict} (no vote)"


ALL_PASS = GateReading(
    gate="",
    title="all gates",
    help="No gate keeps the rollout from the next stage.",
    verdict=Verdict.PASS.value,
    armed=True,
    holds=False,
    value=NONE,
    limit=NONE,
    count=NONE,
    reason="no gate holds the rollout",
)


def gate_title(gate: Gate) -> str:
    """Return the gate's plain name. A metric has its own."""
    return f"metric {gate.metric}" if isinstance(gate, MetricThreshold) else gate.title or gate.name


def gate_words() -> Mapping[str, tuple[str, str]]:
    """Return title and help by kind of gate, for forms: `freshness` and every kind that a plan may have."""
    kinds = (Freshness, *get_args(get_args(AnyGate)[0]))
    return {kind.model_fields["kind"].default: (kind.title, kind.help) for kind in kinds}


def gates_of(plan: Plan) -> dict[str, Gate]:
    """Return the gates of a rollout under *plan* by their names in findings, `freshness` first."""
    return {gate.name: gate for gate in (Freshness(), *plan.gates)}


def read_finding(gate: Gate, finding: Finding) -> GateReading:
    """Return *finding* of *gate* as owners read it. It never changes what the finding means for the rollout."""
    known = has_data(gate, finding)
    value, limit = _against(gate, finding) if known else (NONE, NONE)
    return GateReading(
        gate=finding.gate,
        title=gate_title(gate),
        help=gate.help,
        verdict=finding.verdict.value if known else NO_DATA,
        armed=finding.armed,
        holds=finding.armed and finding.verdict is not Verdict.PASS,
        value=value,
        limit=limit,
        count=_count(gate, finding) if known else NONE,
        reason=finding.reason,
    )


def read_findings(gates: Mapping[str, Gate], findings: Iterable[Finding]) -> list[GateReading]:
    """Return the findings as owners read them. One of a gate that is not among *gates* shows its plain figures."""
    return [read_finding(gates.get(each.gate) or Gate(kind=each.gate), each) for each in findings]


def has_data(gate: Gate, finding: Finding) -> bool:
    """Return whether the gate has seen anything. Findings of earlier releases have a value without data: 0, or 1."""
    if finding.n or finding.verdict not in (Verdict.PASS, Verdict.INSUFFICIENT):
        return True
    return not isinstance(gate, ExecutionGate) and (isinstance(gate, Freshness) or finding.limit is not None)


def _against(gate: Gate, finding: Finding) -> tuple[str, str]:
    """Return value and limit in the gate's unit."""
    value, limit = finding.value, finding.limit
    if value is None or limit is None:
        return NONE, NONE
    match gate:
        case Errors() if "errors in a row" in finding.reason:
            return f"{value:g} in a row", f"{limit:g} in a row"
        case Errors():
            few = f" from {gate.minimum_decisions} decisions" if finding.n < gate.minimum_decisions else ""
            return f"{value:.1%}", f"{limit:.1%}{few}"
        case InvalidDecisions() | RoutingAudit():
            return f"{value:g}", f"{limit:g}"
        case Silence():
            return f"{value:g} candles", f"{limit:g} candles"
        case LosingStreak():
            return f"{value:g} in a row", f"{limit:g} in a row"
        case ExcessDrawdown():
            return f"{value:.1%}", f"{limit:.1%}"
        case Harm() | WinRate():
            return f"E {format_evidence(value)}", f"E {format_evidence(limit)}"
        case Divergence():
            # earlier releases kept the share of unlike slots, which does not decide
            return (
                (f"E {format_evidence(value)}", f"E {format_evidence(limit)}")
                if "E = " in finding.reason
                else (NONE, NONE)
            )
        case NotWorse():
            return _not_worse(finding, value, limit)
        case ExecutionGate():
            return f"E {format_evidence(math.log10(max(value, 1e-300)))}", f"E {limit:,.0f}"
    return f"{value:.4g}", gate.bounds if isinstance(gate, MetricThreshold) else f"{limit:.4g}"


def _not_worse(finding: Finding, value: float, limit: float) -> tuple[str, str]:
    unit = "of slots" if "of slots won" in finding.reason else "R a slot"
    if finding.verdict is Verdict.INSUFFICIENT:
        return NONE, NONE  # the count shows what is missing
    if finding.low is None:
        return f"{value:+.3f} {unit}", f"above {limit:+.3f}"
    if limit == 0:
        return "both did the same", NONE
    return f"at least {finding.low:+.3f} {unit}", f"above {limit:+.3f}"


def _count(gate: Gate, finding: Finding) -> str:
    """Return how much the gate has seen, in words."""
    n = finding.n
    match gate:
        case NotWorse() if finding.verdict is Verdict.INSUFFICIENT:
            return finding.reason.split(";")[0]
        case MetricThreshold():
            return f"{n} of {gate.minimum_samples} samples" if n < gate.minimum_samples else f"{n:,} samples"
        case Freshness():
            return NONE
        case Errors() | InvalidDecisions() | Silence():
            return f"{n:,} decisions"
        case SampleRatio():
            return f"{n:,} users"
        case ExecutionGate():
            return f"{n:,} orders"
        case _:
            return f"{n:,} slots" if n else NONE
