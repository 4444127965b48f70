"""The verdict on a rollout: one sentence from a closed list, with figures and the next step."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from strategy_core.domain.forecast import Forecast, RolloutSubject, forecast
from strategy_core.domain.gates.base import SEVERITY, Finding, Verdict, format_duration
from strategy_core.domain.gates.on_slots import Harm, likely_harm_evidence
from strategy_core.domain.ramp import State, bake_doubt
from strategy_core.domain.readings import gate_title, gates_of, has_data


class VerdictKind(StrEnum):
    """What a rollout's verdict is about, from the most to the least urgent for an owner."""

    HARM_PROVEN = "harm_proven"  # a gate is broken: the next tick rolls it back
    HARM_LIKELY = "harm_likely"  # the gate `harm` holds the stage: an owner should roll back
    BLIND = "blind"  # evidence is missing: rolled back after the plan's blind limit
    HELD = "held"  # another gate than `not_worse` holds the stage: an owner should look
    AWAITING_DECISION = "awaiting_decision"  # the stage's maximum time is over: an owner decides
    AWAITING_APPROVAL = "awaiting_approval"  # every gate passes: an owner approves the next stage
    PAUSED = "paused"  # an owner paused it, and has to resume it
    UNCLEAR = "unclear"  # the clocks disagree: no time can be given
    NOT_JUDGED = "not_judged"  # no tick has judged it yet
    NO_CONCLUSION = "no_conclusion"  # too little evidence for any answer
    SAFE = "safe"  # no sign of harm, and not yet enough evidence for the next stage
    READY = "ready"  # every gate passes: the next tick moves it on
    BAKING = "baking"  # promoted, with its predecessor ready to be reinstated
    ROLLED_BACK = "rolled_back"  # ended: no user gets the version
    PROMOTED = "promoted"  # ended: it is the active version
    ABORTED = "aborted"  # ended: another version was activated


NEEDS_OWNER = frozenset(
    {
        VerdictKind.HARM_PROVEN,
        VerdictKind.HARM_LIKELY,
        VerdictKind.BLIND,
        VerdictKind.HELD,
        VerdictKind.AWAITING_DECISION,
        VerdictKind.AWAITING_APPROVAL,
        VerdictKind.PAUSED,
        VerdictKind.UNCLEAR,
    }
)


STOPPED = frozenset(
    {
        VerdictKind.HARM_PROVEN,
        VerdictKind.HARM_LIKELY,
        VerdictKind.BLIND,
        VerdictKind.HELD,
        VerdictKind.AWAITING_DECISION,
        VerdictKind.PAUSED,
        VerdictKind.UNCLEAR,
    }
)  # no time can be expected for the next stage


_NEXT_STEPS: Mapping[VerdictKind, str] = {
    VerdictKind.HARM_PROVEN: "nothing to do, the next tick takes its users off it",
    VerdictKind.HARM_LIKELY: "roll it back",
    VerdictKind.BLIND: "find out why its evidence is missing, or roll it back",
    VerdictKind.HELD: "look into this gate, or roll it back",
    VerdictKind.AWAITING_DECISION: "decide to extend, to advance or to roll back",
    VerdictKind.AWAITING_APPROVAL: "approve the stage, or roll it back",
    VerdictKind.PAUSED: "resume it, or roll it back",
    VerdictKind.UNCLEAR: "set the clocks right",
    VerdictKind.READY: "nothing to do, the next tick moves it on",
    VerdictKind.BAKING: "nothing to do until the bake has ended",
}


@dataclass(frozen=True, slots=True)
class RolloutVerdict:
    """The verdict on a rollout.

    Attributes:
        sentence: what is known, with figures, and the next step. One line for owners, the same in every place.
        slots: that the rollout has counted.
        slots_needed: at this stage, for a version as good as the active one. None if the plan does not count slots.
        days_left: expected at this stage, for such a version. None if it cannot be expected.
        end_days: expected until the bake is over. None if that cannot be expected.
        entries: when each later stage should begin, by its index, and last the bake (see `forecast`).
    """

    kind: VerdictKind
    sentence: str
    slots: int = 0
    slots_needed: int | None = None
    days_left: float | None = None
    end_days: float | None = None
    entries: Mapping[int, datetime] = field(default_factory=dict)

    @property
    def next_step(self) -> str:
        """What the owner of an open rollout should do, as a part of a sentence."""
        return _NEXT_STEPS.get(self.kind, "nothing to do, ticks wait for more evidence")

    @property
    def progress(self) -> str:
        """The slots counted and how many the stage needs, in words. Empty if the stage does not count slots."""
        if self.slots_needed is None:
            return ""
        if self.slots < self.slots_needed:
            return f"{self.slots:,} of about {self.slots_needed:,} slots"
        return f"{self.slots:,} slots, about {self.slots_needed:,} needed"

    @property
    def needs_owner(self) -> bool:
        """Whether a person should act now."""
        return self.kind in NEEDS_OWNER


def rollout_verdict(
    of: RolloutSubject, findings: Sequence[Finding], now: datetime, *, doubt: str = ""
) -> RolloutVerdict:
    """Return the verdict on a rollout at *now*, given the last finding of each gate. For people: ticks use `decide`.

    Args:
        doubt: why *now* cannot be compared with stored times.
    """
    if of.ended_at is not None:
        return RolloutVerdict(*_ended(of), of.slots)
    armed = sorted((f for f in findings if f.armed), key=lambda finding: SEVERITY[finding.verdict])
    passes = of.at.state is State.AWAITING_APPROVAL or all(
        _at_this_stage(of, finding).verdict is Verdict.PASS for finding in armed
    )
    ahead = forecast(of, now, passes=bool(armed) and passes)
    kind, sentence = _open(of, armed, ahead, now)
    if doubt:
        kind, sentence = VerdictKind.UNCLEAR, f"No time can be given: {doubt}."
    if kind in STOPPED:
        return RolloutVerdict(kind, sentence, of.slots, ahead.slots_needed)
    return RolloutVerdict(kind, sentence, of.slots, ahead.slots_needed, ahead.stage_days, ahead.end_days, ahead.entries)


def _ended(of: RolloutSubject) -> tuple[VerdictKind, str]:
    at = of.at
    if at.state is State.ROLLED_BACK:
        where = "after its promotion" if at.promoted_at else f"at {of.percent:g} %"
        return VerdictKind.ROLLED_BACK, _stop(f"Rolled back {where}: {_plain_reason(of)}")
    if at.state is State.ABORTED:
        return VerdictKind.ABORTED, _stop(f"Ended at {of.percent:g} %: {of.reason}")
    if at.promoted_at is None:
        return VerdictKind.PROMOTED, _stop(f"Promoted without its last gates: {of.reason}")
    return VerdictKind.PROMOTED, f"{_proven(of)} Promoted on {at.promoted_at:%Y-%m-%d}, and has baked."


def _open(of: RolloutSubject, armed: Sequence[Finding], ahead: Forecast, now: datetime) -> tuple[VerdictKind, str]:
    at, plan = of.at, of.plan
    worst = armed[0] if armed else None
    harm = {gate.name for gate in plan.gates if isinstance(gate, Harm)}
    if worst and worst.verdict in (Verdict.BREACH, Verdict.FAIL):
        return VerdictKind.HARM_PROVEN, _stop(f"The next tick rolls it back: {of.title(worst)}: {worst.reason}")
    if likely := next((f for f in armed if f.gate in harm and f.verdict is Verdict.INCONCLUSIVE), None):
        return VerdictKind.HARM_LIKELY, f"Harm is likely: roll back. {likely_harm_evidence(likely)}."
    if worst and worst.verdict is Verdict.BLIND:
        since = at.blind_since or now
        ends = f"It is rolled back {_moment(since + plan.blind_limit)} unless this ends"
        return VerdictKind.BLIND, f"Blind since {_moment(since)}: {_stop(worst.reason)} {ends}."
    if at.state is State.PAUSED:
        return VerdictKind.PAUSED, f"Paused by {_stop(of.paused_by)} Resume it, or roll back."
    if at.state is State.AWAITING_DECISION:
        return VerdictKind.AWAITING_DECISION, (
            f"No clear answer in the maximum time at {of.percent:g} %: decide to extend, advance or roll back."
        )
    if at.promoted_at is not None:
        return VerdictKind.BAKING, _baking(of, armed, now)
    if not armed:
        return VerdictKind.NOT_JUDGED, f"Started at {of.percent:g} %: no tick has judged it yet."
    if at.state is State.AWAITING_APPROVAL:
        percent = plan.stages[at.stage_index + 1].percent
        return (
            VerdictKind.AWAITING_APPROVAL,
            f"Waits for your approval of {percent:g} %: every gate passes, {of.slots:,} slots.",
        )
    return _climbing(of, armed, ahead)


def _climbing(of: RolloutSubject, armed: Sequence[Finding], ahead: Forecast) -> tuple[VerdictKind, str]:
    """Judge a stage without any sign of harm."""
    own = of.not_worse
    judged = next((f for f in armed if own is not None and f.gate == own.name), None)
    answer = None if judged is None else _at_this_stage(of, judged)
    others = [finding for finding in armed if finding is not judged and finding.verdict is not Verdict.PASS]
    if others and others[0].verdict is Verdict.INCONCLUSIVE:
        finding = others[0]
        return VerdictKind.HELD, f"Held at {of.percent:g} %, {of.title(finding)}: {_stop(finding.reason)} Look into it."
    needed, days = ahead.slots_needed, ahead.stage_days
    then = "" if days is None else f" {of.next_step} {_in_days(days)}."
    if answer is not None and answer.verdict is Verdict.INSUFFICIENT:
        return VerdictKind.NO_CONCLUSION, f"Nothing can be concluded yet: {answer.reason}.{then}"
    if others:
        finding = others[0]
        known = has_data(gates_of(of.plan)[finding.gate], finding)
        lacks = finding.reason if known else f"{of.title(finding)} has no data"
        return VerdictKind.NO_CONCLUSION, _stop(f"Nothing can be concluded yet: {lacks}")
    if at_end := _not_promotable(of):
        return VerdictKind.HELD, at_end
    if answer is not None and answer.verdict is Verdict.INCONCLUSIVE:
        if answer.low is not None and answer.limit is not None and answer.low > answer.limit:
            return VerdictKind.HELD, f"Held at {of.percent:g} %: {_stop(answer.reason)} Look into it."
        if answer.value is not None and answer.limit is not None and answer.value < answer.limit:
            return VerdictKind.NO_CONCLUSION, f"It earns less so far, which proves nothing yet: {answer.reason}."
        if needed is None or of.slots < needed:
            counted = f"{of.slots:,} slots" if needed is None else f"{of.slots:,} of about {needed:,} slots"
            return VerdictKind.SAFE, f"Safe so far: {counted}.{then}"
        return VerdictKind.SAFE, f"No sign of harm, and no proof yet: {answer.reason}."
    left = timedelta(days=days or 0.0)
    if left > timedelta(0):
        return VerdictKind.SAFE, f"Safe so far: every gate passes. {of.next_step} in {format_duration(left)}."
    if of.closed:
        return VerdictKind.READY, f"Every gate passes at {of.percent:g} %. {of.next_step} waits: {_stop(of.closed)}"
    return VerdictKind.READY, f"Every gate passes at {of.percent:g} %. {of.next_step} at the next tick."


def _at_this_stage(of: RolloutSubject, finding: Finding) -> Finding:
    """Return the finding of `not_worse` by this stage's margin. The tick that entered the stage used another."""
    own = of.not_worse
    if own is None or finding.gate != own.name:
        return finding
    margin = of.plan.stages[of.at.stage_index].margins.pnl(of.history)
    by_money = finding.low is not None and "R per slot" in finding.reason
    if finding.verdict is Verdict.PASS and by_money and (finding.low or 0.0) <= -margin:
        return finding.model_copy(update={"verdict": Verdict.INCONCLUSIVE, "limit": -margin})
    return finding


def _baking(of: RolloutSubject, armed: Sequence[Finding], now: datetime) -> str:
    promoted_at = of.at.promoted_at or now
    ends = promoted_at + of.plan.bake
    if ends > now:
        return f"{_proven(of)} Promoted on {promoted_at:%Y-%m-%d}; bakes until {_moment(ends)}."
    if doubt := bake_doubt(of.plan, armed):
        return f"Promoted on {promoted_at:%Y-%m-%d}; the bake cannot end: {of.title(doubt)}: {doubt.reason}."
    return f"{_proven(of)} Promoted on {promoted_at:%Y-%m-%d}; the next tick ends the bake."


def _proven(of: RolloutSubject) -> str:
    """Return what a promotion has proven."""
    if of.not_worse is None:
        return f"{of.version} passed every gate."
    margin = of.plan.stages[-1].margins.pnl(of.history)
    return f"{of.version} is not worse than {of.control} within {margin:.2g} R a slot."


def _plain_reason(of: RolloutSubject) -> str:
    """Return why it was rolled back, with the gate's plain name in place of its name in findings."""
    gates = gates_of(of.plan)
    name, colon, reason = of.reason.partition(": ")
    return f"{gate_title(gates[name])}{colon}{reason}" if name in gates else of.reason or "no reason given"


def _not_promotable(of: RolloutSubject) -> str:
    if not of.at.excluded or of.at.stage_index + 1 < len(of.plan.stages):
        return ""
    excluded = ", ".join(of.at.excluded)
    return f"It cannot be promoted: {excluded} excluded. Roll back, and start a version that serves all symbols."


def _in_days(days: float) -> str:
    if days < 1:
        return f"in about {math.ceil(days * 24)} h"
    return "in about a day" if days < 1.5 else f"in about {days:,.0f} days"


def _stop(text: str) -> str:
    """End *text* as a sentence."""
    return f"{text.rstrip('. ')}."


def _moment(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
