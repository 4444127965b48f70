"""What happens to a rollout next, and why: a pure function of plan, position, findings and time; it applies nothing."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from strategy_core.domain.errors import EvidenceUnavailable
from strategy_core.domain.evidence import Evidence
from strategy_core.domain.gates.base import SEVERITY, Finding, Freshness, Gate, Margins, Verdict, format_duration
from strategy_core.domain.gates.on_slots import Harm
from strategy_core.domain.plan import Plan


class State(StrEnum):
    RUNNING = "running"  # also while the promoted version bakes
    PAUSED = "paused"  # by an owner: nothing advances, every protection stays
    AWAITING_APPROVAL = "awaiting_approval"  # every gate has passed; the next stage needs an owner
    AWAITING_DECISION = "awaiting_decision"  # a stage's maximum time ended without an answer
    ROLLED_BACK = "rolled_back"
    COMPLETED = "completed"
    ABORTED = "aborted"


ENDED = frozenset({State.ROLLED_BACK, State.COMPLETED, State.ABORTED})
OWNER, ALERT, BLIND, UNANSWERED = "owner", "alert", "blind", "unanswered"  # causes of a rollback that are no gate's


class Step(StrEnum):
    HOLD = "hold"
    ADVANCE = "advance"
    AWAIT_APPROVAL = "await_approval"
    LAPSE = "lapse"  # an approval was given, and is worth nothing any more: hold
    AWAIT_DECISION = "await_decision"
    PROMOTE = "promote"
    COMPLETE = "complete"
    ROLL_BACK = "roll_back"


@dataclass(frozen=True, slots=True)
class Position:
    """Where a rollout stands; all times are stored ones, so a restart loses no dwell and gains none."""

    state: State
    stage_index: int
    stage_entered_at: datetime
    stage_extended_at: datetime
    approved_stage: int | None = None
    blind_since: datetime | None = None
    promoted_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Ruling:
    """What to do and why; the dry run, the audit reason and the alert text are this same object.

    Attributes:
        worst: the finding that decided, if one did.
        blind: whether some armed gate is without evidence.
    """

    step: Step
    reason: str
    worst: Finding | None = None
    blind: bool = False

    @property
    def cause(self) -> str:
        """What a rollback is counted by: the gate that proved harm, or that none could see, or that none could say."""
        if self.step is not Step.ROLL_BACK or self.worst is None:
            return ""
        if self.worst.verdict in (Verdict.BREACH, Verdict.FAIL):
            return self.worst.gate
        return BLIND if self.blind else UNANSWERED


def bake_doubt(plan: Plan, armed: Iterable[Finding]) -> Finding | None:
    """Return why a promoted version's predecessor must stay ready: harm is likely, or nothing has been decided yet."""
    harm = {gate.name for gate in plan.gates if isinstance(gate, Harm)}
    for finding in armed:
        likely = finding.gate in harm and finding.verdict is Verdict.INCONCLUSIVE
        if likely or (finding.gate == Freshness().name and finding.verdict is Verdict.INSUFFICIENT):
            return finding
    return None


def judge_all(gates: Iterable[Gate], evidence: Evidence, margins: Margins) -> list[Finding]:
    """Return one finding per gate, freshness first; a gate that cannot answer is blind, and silences no other."""
    return [_judge(gate, evidence, margins) for gate in (Freshness(), *gates)]


def decide(plan: Plan, at: Position, findings: Sequence[Finding], now: datetime) -> Ruling:
    """Return the one step a rollout takes now.

    Protection comes first and depends on nothing else: a breach or a failure rolls back in every state. Then, in this
    order, blindness, an owner's pause, the stage's minimum time, the verdicts, an approval. An approval is of the
    evidence that it was given on: a tick that cannot take it lets it lapse, and it is asked for again.
    """
    ruling = _rule(plan, at, findings, now)
    if ruling.step is Step.HOLD and at.approved_stage == at.stage_index + 1:
        return replace(ruling, step=Step.LAPSE, reason=f"the approval lapses: {ruling.reason}")
    return ruling


def _rule(plan: Plan, at: Position, findings: Sequence[Finding], now: datetime) -> Ruling:
    armed = sorted((f for f in findings if f.armed), key=lambda finding: SEVERITY[finding.verdict])
    if not armed:
        return Ruling(Step.HOLD, "no armed gate has spoken")
    worst = armed[0]
    blind = any(finding.verdict is Verdict.BLIND for finding in armed)
    if worst.verdict in (Verdict.BREACH, Verdict.FAIL):
        return Ruling(Step.ROLL_BACK, f"{worst.gate}: {worst.reason}", worst, blind)
    if blind:
        return _hold_blind(plan, at, worst, now)
    if at.state is State.PAUSED:
        return Ruling(Step.HOLD, "paused by an owner", worst)
    if at.state is State.AWAITING_DECISION:
        return Ruling(Step.HOLD, "waits for an owner's decision: extend, advance or roll back", worst)
    if at.promoted_at is not None:
        return _bake(plan, at.promoted_at, armed, now)
    measured = next((finding for finding in armed if finding.low is not None), worst)
    return _climb(plan, at, worst, measured, now)


def _hold_blind(plan: Plan, at: Position, worst: Finding, now: datetime) -> Ruling:
    blind_for = now - (at.blind_since or now)
    lasted, limit = format_duration(blind_for), format_duration(plan.blind_limit)
    reason = f"{worst.gate}: {worst.reason}; blind for {lasted} of at most {limit}"
    step = Step.ROLL_BACK if blind_for >= plan.blind_limit else Step.HOLD
    return Ruling(step, reason, worst, blind=True)


def _bake(plan: Plan, promoted_at: datetime, armed: Sequence[Finding], now: datetime) -> Ruling:
    baked = now - promoted_at
    if baked < plan.bake:
        return Ruling(Step.HOLD, f"bakes: {format_duration(baked)} of {format_duration(plan.bake)}", armed[0])
    if doubt := bake_doubt(plan, armed):
        return Ruling(Step.HOLD, f"has baked {format_duration(baked)}, but {doubt.gate}: {doubt.reason}", doubt)
    return Ruling(Step.COMPLETE, f"baked {format_duration(baked)} without harm", armed[0])


def _climb(plan: Plan, at: Position, worst: Finding, measured: Finding, now: datetime) -> Ruling:
    """Rule on the next stage; *measured* is what a pass is told by: the finding with an interval."""
    stage = plan.stages[at.stage_index]
    dwell = now - at.stage_entered_at
    if dwell < stage.minimum_time:
        return Ruling(
            Step.HOLD,
            f"dwells at {stage.percent:g} %: {format_duration(dwell)} of {format_duration(stage.minimum_time)}",
            worst,
        )
    if worst.verdict is not Verdict.PASS:
        return _unanswered(plan, at, worst, now)
    following = at.stage_index + 1
    passed = f"every gate passed at {stage.percent:g} %: {measured.reason}"
    if following == len(plan.stages):
        return Ruling(Step.PROMOTE, passed, measured)
    if plan.needs_approval(following) and at.approved_stage != following:
        reason = f"{plan.stages[following].percent:g} % needs an owner's approval; {passed}"
        return Ruling(Step.AWAIT_APPROVAL, reason, measured)
    return Ruling(Step.ADVANCE, passed, measured)


def _unanswered(plan: Plan, at: Position, worst: Finding, now: datetime) -> Ruling:
    reason = f"{worst.gate}: {worst.reason}"
    waited = now - at.stage_extended_at
    if waited < plan.maximum_stage_time:
        return Ruling(Step.HOLD, reason, worst)
    reason = f"{format_duration(waited)} at this stage without an answer; {reason}"
    if plan.on_inconclusive == "rollback":
        return Ruling(Step.ROLL_BACK, reason, worst)
    return Ruling(Step.AWAIT_DECISION, reason, worst)


def _judge(gate: Gate, evidence: Evidence, margins: Margins) -> Finding:
    try:
        return gate.judge(evidence, margins)
    except EvidenceUnavailable as error:
        return gate.found(Verdict.BLIND, error.cause)
    except Exception as error:  # noqa: BLE001  a gate's own fault must not silence the gates that would roll back
        return gate.found(Verdict.BLIND, f"the gate itself failed: {type(error).__name__}: {error}")


_NONE = timedelta(0)


@dataclass(frozen=True, slots=True)
class Outlook:
    """What lies before a rollout.

    Attributes:
        minimum_left: of the stage's minimum time, or of the bake; zero when it is over, None when the rollout is.
        maximum_left: until a stage without an answer is put to the owner, or rolled back; None when nothing is asked.
        needs: what must happen before it goes on, a line each, the most urgent first.
    """

    minimum_left: timedelta | None
    maximum_left: timedelta | None
    needs: tuple[str, ...]


def outlook(plan: Plan, at: Position, findings: Sequence[Finding], now: datetime) -> Outlook:
    """Return what must happen before the rollout goes on, given what each of its gates last found."""
    if at.state in ENDED:
        return Outlook(None, None, ())
    armed = sorted((f for f in findings if f.armed), key=lambda finding: SEVERITY[finding.verdict])
    if armed and armed[0].verdict in (Verdict.BREACH, Verdict.FAIL):
        needs = [f"the next tick rolls it back: {armed[0].gate}: {armed[0].reason}"]
    else:
        needs = [*_sight(plan, at, armed, now), *_owner(at), *_rest(plan, at, armed, now)]
    return Outlook(
        minimum_left=max(_NONE, _minimum_end(plan, at) - now),
        maximum_left=None if _is_asked_nothing(at) else max(_NONE, _maximum_end(plan, at) - now),
        needs=tuple(needs or [f"nothing: the next tick {_what_follows(plan, at)}"]),
    )


def _sight(plan: Plan, at: Position, armed: Sequence[Finding], now: datetime) -> Iterator[str]:
    blind = [finding for finding in armed if finding.verdict is Verdict.BLIND]
    for finding in blind:
        yield f"{finding.gate} must see again: {finding.reason}"
    if blind:
        end = (at.blind_since or now) + plan.blind_limit
        yield f"else it is rolled back {_when(end, now)}"


def _owner(at: Position) -> Iterator[str]:
    if at.state is State.PAUSED:
        yield "an owner must resume it; the stage's minimum time begins anew then"
    if at.state is State.AWAITING_DECISION:
        yield "an owner must decide: extend, advance or roll back"


def _rest(plan: Plan, at: Position, armed: Sequence[Finding], now: datetime) -> Iterator[str]:
    """Yield what remains once it sees and runs: time, verdicts, an approval."""
    if at.state is State.AWAITING_DECISION:
        return  # whatever the owner decides does not wait for them
    if at.state is not State.PAUSED and (end := _minimum_end(plan, at)) > now:
        verb = "bakes" if at.promoted_at else "dwells"
        yield f"it {verb} for another {format_duration(end - now)}, until {_moment(end)}"
    if at.promoted_at is not None:
        if doubt := bake_doubt(plan, armed):
            yield f"{doubt.gate} must pass, it is {doubt.verdict}: {doubt.reason}"
        return
    for finding in armed:
        if finding.verdict in (Verdict.INCONCLUSIVE, Verdict.INSUFFICIENT):
            yield f"{finding.gate} must pass, it is {finding.verdict}: {finding.reason}"
    spoken = {finding.gate for finding in armed}
    for gate in plan.gates:
        if not gate.dry_run and gate.name not in spoken:
            yield f"{gate.name} must pass: no tick has asked it yet"
    following = at.stage_index + 1
    if following < len(plan.stages) and plan.needs_approval(following) and at.approved_stage != following:
        when = "now" if at.state is State.AWAITING_APPROVAL else "then"
        yield f"an owner must {when} approve {plan.stages[following].percent:g} %"


def _minimum_end(plan: Plan, at: Position) -> datetime:
    if at.promoted_at is not None:
        return at.promoted_at + plan.bake
    return at.stage_entered_at + plan.stages[at.stage_index].minimum_time


def _maximum_end(plan: Plan, at: Position) -> datetime:
    return at.stage_extended_at + plan.maximum_stage_time


def _is_asked_nothing(at: Position) -> bool:
    return at.promoted_at is not None or at.state is State.AWAITING_DECISION


def _what_follows(plan: Plan, at: Position) -> str:
    if at.promoted_at is not None:
        return "completes it"
    following = at.stage_index + 1
    if following == len(plan.stages):
        return "promotes it"
    return f"advances it to {plan.stages[following].percent:g} %"


def _when(end: datetime, now: datetime) -> str:
    return f"in {format_duration(end - now)}, at {_moment(end)}" if end > now else "at the next tick"


def _moment(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
