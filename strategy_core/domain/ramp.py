"""The states of a rollout, the pure function that rules on its next step, and the outlook on what it waits for."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from strategy_core.domain.errors import EvidenceUnavailable, reason_of
from strategy_core.domain.evidence import Evidence
from strategy_core.domain.gates.base import SEVERITY, Finding, Freshness, Gate, Margins, Verdict, format_duration
from strategy_core.domain.gates.on_slots import Harm
from strategy_core.domain.plan import Plan
from strategy_core.domain.readings import gate_title, gates_of
from strategy_core.domain.release_times import ANY_TIME, ReleaseTimes


class State(StrEnum):
    """Where a rollout stands. A breach or a failure rolls it back in every open state, and so may an owner.

    Rollouts, their verdicts and their audit events are kept in every state. An ended rollout cannot be reopened.
    """

    # Ticks move it on: to the next stage, to a wait for the owner, to the promotion, and after the bake to its end.
    # Includes the bake of the promoted version. Ends with any other state.
    RUNNING = "running"

    # An owner paused it. The percent of users stays and every gate keeps protecting them. Ends when an owner resumes
    # it: the state is RUNNING again and the times of the stage restart. A pending approval is dropped.
    PAUSED = "paused"

    # Every gate has passed and the next stage needs an owner. An approval moves it to RUNNING, and the next tick that
    # still sees every gate pass advances it. The percent of users stays until then.
    AWAITING_APPROVAL = "awaiting_approval"

    # The maximum time of the stage ended without a clear verdict. An owner decides: extend (RUNNING, with a new maximum
    # time), advance (RUNNING at the next stage) or roll back. The percent of users stays until then.
    AWAITING_DECISION = "awaiting_decision"

    # Ended by a tick or an owner. No user gets the version: it is in shadow and quarantined. A start with an override
    # reason opens a new rollout of it.
    ROLLED_BACK = "rolled_back"

    # Ended by the tick after the bake, or when an owner activates the version. It is the active version. After a bake
    # its predecessor stays in shadow, and each tick watches the two, unless the plan has no watch. Else the
    # predecessor is retired.
    COMPLETED = "completed"

    # Ended because an owner activated another version. The version returns to shadow without quarantine.
    ABORTED = "aborted"


ENDED = frozenset({State.ROLLED_BACK, State.COMPLETED, State.ABORTED})
OWNER, ALERT, BLIND, UNANSWERED = "owner", "alert", "blind", "unanswered"  # causes of a rollback other than a gate
_NOT_PROMOTED = "excluded. Roll back, and start a version that serves all symbols"


class Step(StrEnum):
    """What a tick does to a rollout."""

    HOLD = "hold"  # change nothing
    ADVANCE = "advance"  # enter the next stage
    AWAIT_APPROVAL = "await_approval"  # ask an owner to approve the next stage
    LAPSE = "lapse"  # drop an approval whose evidence no longer holds, and hold
    AWAIT_DECISION = "await_decision"  # ask an owner: extend, advance or roll back
    PROMOTE = "promote"  # make the canary the active version, and start the bake
    COMPLETE = "complete"  # end the bake, and watch the version against its predecessor or retire that
    ROLL_BACK = "roll_back"  # take all users off the version


@dataclass(frozen=True, slots=True)
class Position:
    """Where a rollout stands. All times are stored, so a restart does not change how long a stage has lasted."""

    state: State
    stage_index: int
    stage_entered_at: datetime
    stage_extended_at: datetime
    approved_stage: int | None = None
    blind_since: datetime | None = None
    promoted_at: datetime | None = None
    excluded: tuple[str, ...] = ()  # symbols that the canary does not serve


@dataclass(frozen=True, slots=True)
class Ruling:
    """What to do and why. The dry run, the audit event and the alert show this same object.

    Attributes:
        worst: the finding that decided, if any.
        blind: whether an armed gate has no evidence.
        held: whether every gate passes, and a freeze, a closed window, the cap on capital or open positions alone hold
            the next stage.
    """

    step: Step
    reason: str
    worst: Finding | None = None
    blind: bool = False
    held: bool = False

    @property
    def cause(self) -> str:
        """The label under which metrics count a rollback: the gate that proved harm, `blind` or `unanswered`."""
        if self.step is not Step.ROLL_BACK or self.worst is None:
            return ""
        if self.worst.verdict in (Verdict.BREACH, Verdict.FAIL):
            return self.worst.gate
        return BLIND if self.blind else UNANSWERED


def bake_doubt(plan: Plan, armed: Iterable[Finding]) -> Finding | None:
    """Return why the bake cannot end yet: harm is likely, or the promoted version has not decided on a candle."""
    harm = {gate.name for gate in plan.gates if isinstance(gate, Harm)}
    for finding in armed:
        likely = finding.gate in harm and finding.verdict is Verdict.INCONCLUSIVE
        if likely or (finding.gate == Freshness().name and finding.verdict is Verdict.INSUFFICIENT):
            return finding
    return None


def judge_all(gates: Iterable[Gate], evidence: Evidence, margins: Margins) -> list[Finding]:
    """Return one finding per gate, freshness first. A gate that fails is blind and does not affect the others."""
    return [_judge(gate, evidence, margins) for gate in (Freshness(), *gates)]


def decide(
    plan: Plan,
    at: Position,
    findings: Sequence[Finding],
    now: datetime,
    times: ReleaseTimes = ANY_TIME,
    capital_problem: str = "",
    positions_problem: str = "",
) -> Ruling:
    """Return the step that a rollout takes now.

    Protection comes first: a breach or a failure rolls back in every state. Then, in this order: blindness, a pause,
    the stage's minimum time, the verdicts, an approval, and last the plan's windows and freezes. These hold the next
    stage and nothing else. An approval is bound to the evidence that it was given on. If a tick cannot advance with it,
    the approval lapses and an owner must give it again. While only a freeze or a closed window holds it, it waits.

    Args:
        times: freezes, and the hours of the markets that the plan's windows name.
        capital_problem: why the cap on capital of the next stage is not known. It holds that stage, and at the end of
            its maximum time the owner is asked.
        positions_problem: why open positions hold the next stage, the promotion too. As with the cap on capital.
    """
    ruling = _rule(plan, at, findings, now, times)
    problem = positions_problem or (capital_problem if ruling.step is Step.ADVANCE else "")
    if ruling.step in (Step.ADVANCE, Step.PROMOTE) and problem:
        held = _unanswered(plan, at, ruling.worst or findings[0], problem, now, times)
        ruling = replace(held, held=held.step is Step.HOLD)
    if ruling.step is Step.HOLD and not ruling.held and at.approved_stage == at.stage_index + 1:
        return replace(ruling, step=Step.LAPSE, reason=f"the approval lapses: {ruling.reason}")
    return ruling


def _rule(plan: Plan, at: Position, findings: Sequence[Finding], now: datetime, times: ReleaseTimes) -> Ruling:
    armed = sorted((f for f in findings if f.armed), key=lambda finding: SEVERITY[finding.verdict])
    if not armed:
        return Ruling(Step.HOLD, "no armed gate has a finding yet")
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
    return _climb(plan, at, worst, measured, now, times)


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


def _climb(plan: Plan, at: Position, worst: Finding, measured: Finding, now: datetime, times: ReleaseTimes) -> Ruling:
    """Rule on the next stage. A pass is explained by *measured*, the finding with an interval."""
    stage = plan.stages[at.stage_index]
    dwell = now - at.stage_entered_at
    if dwell < stage.minimum_time:
        return Ruling(
            Step.HOLD,
            f"dwells at {stage.percent:g} %: {format_duration(dwell)} of {format_duration(stage.minimum_time)}",
            worst,
        )
    if worst.verdict is not Verdict.PASS:
        return _unanswered(plan, at, worst, f"{worst.gate}: {worst.reason}", now, times)
    following = at.stage_index + 1
    if following == len(plan.stages) and at.excluded:
        return _unanswered(plan, at, worst, f"{', '.join(at.excluded)} {_NOT_PROMOTED}", now, times)
    passed = f"every gate passed at {stage.percent:g} %: {measured.reason}"
    last = following == len(plan.stages)
    if not last and plan.needs_approval(following) and at.approved_stage != following:
        reason = f"{plan.stages[following].percent:g} % needs an owner's approval; {passed}"
        return Ruling(Step.AWAIT_APPROVAL, reason, measured)
    if closure := times.closure(plan.advance_windows, now):
        return Ruling(Step.HOLD, f"{closure.reason}; {passed}", measured, held=True)
    return Ruling(Step.PROMOTE if last else Step.ADVANCE, passed, measured)


def _unanswered(plan: Plan, at: Position, worst: Finding, reason: str, now: datetime, times: ReleaseTimes) -> Ruling:
    """Rule on a stage without a clear verdict. A freeze puts off the question to an owner, and no rollback."""
    if now < _maximum_end(plan, at, times):
        return Ruling(Step.HOLD, reason, worst)
    reason = f"{format_duration(now - at.stage_extended_at)} at this stage without an answer; {reason}"
    if plan.on_inconclusive == "rollback":
        return Ruling(Step.ROLL_BACK, reason, worst)
    return Ruling(Step.AWAIT_DECISION, reason, worst)


def _judge(gate: Gate, evidence: Evidence, margins: Margins) -> Finding:
    try:
        return gate.judge(evidence, margins)
    except EvidenceUnavailable as error:
        return gate.found(Verdict.BLIND, reason_of(error))
    except Exception as error:  # noqa: BLE001  a bug in one gate must not stop the gates that would roll back
        text, kind = reason_of(error), type(error).__name__
        return gate.found(Verdict.BLIND, f"the gate itself failed: {kind if text == kind else f'{kind}: {text}'}")


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a rollout waits for.

    Attributes:
        minimum_left: of the stage's minimum time, or of the bake. Zero when that is over, None when the rollout is.
        maximum_left: until a stage without a clear verdict goes to the owner, or is rolled back. None during the bake
            and while an owner has to decide.
        needs: what must happen before it goes on, one line each, the most urgent first.
    """

    minimum_left: timedelta | None
    maximum_left: timedelta | None
    needs: tuple[str, ...]


def outlook(
    plan: Plan, at: Position, findings: Sequence[Finding], now: datetime, times: ReleaseTimes = ANY_TIME
) -> Outlook:
    """Return what must happen before the rollout goes on, given the last finding of each gate.

    Args:
        times: as in `decide`.
    """
    if at.state in ENDED:
        return Outlook(None, None, ())
    armed = sorted((f for f in findings if f.armed), key=lambda finding: SEVERITY[finding.verdict])
    if armed and armed[0].verdict in (Verdict.BREACH, Verdict.FAIL):
        needs = [f"the next tick rolls it back: {_title(plan, armed[0].gate)}: {armed[0].reason}"]
    else:
        needs = [
            *_evidence_needs(plan, at, armed, now),
            *_owner_needs(at),
            *_remaining_needs(plan, at, armed, now),
            *_time_needs(plan, at, now, times),
        ]
    return Outlook(
        minimum_left=max(timedelta(0), _minimum_end(plan, at) - now),
        maximum_left=None if _has_no_maximum(at) else max(timedelta(0), _maximum_end(plan, at, times) - now),
        needs=tuple(needs or [f"nothing: the next tick {_what_follows(plan, at)}"]),
    )


def _title(plan: Plan, name: str) -> str:
    """Return the plain name of the gate with this name in findings."""
    gate = gates_of(plan).get(name)
    return name if gate is None else gate_title(gate)


def _evidence_needs(plan: Plan, at: Position, armed: Sequence[Finding], now: datetime) -> Iterator[str]:
    blind = [finding for finding in armed if finding.verdict is Verdict.BLIND]
    for finding in blind:
        yield f'"{_title(plan, finding.gate)}" needs evidence again: {finding.reason}'
    if blind:
        end = (at.blind_since or now) + plan.blind_limit
        yield f"otherwise it is rolled back {_when(end, now)}"


def _owner_needs(at: Position) -> Iterator[str]:
    if at.state is State.PAUSED:
        yield "an owner must resume it; the stage's minimum time then restarts"
    if at.state is State.AWAITING_DECISION:
        yield "an owner must decide: extend, advance or roll back"


def _remaining_needs(plan: Plan, at: Position, armed: Sequence[Finding], now: datetime) -> Iterator[str]:
    """Yield what remains once the rollout runs with evidence: time, verdicts, an approval."""
    if at.state is State.AWAITING_DECISION:
        return  # the owner decides without them
    if at.state is not State.PAUSED and (end := _minimum_end(plan, at)) > now:
        what = "the bake" if at.promoted_at else "the stage's minimum time"
        yield f"{what} lasts another {format_duration(end - now)}, until {_moment(end)}"
    if at.promoted_at is not None:
        if doubt := bake_doubt(plan, armed):
            yield f'"{_title(plan, doubt.gate)}" must pass, it is {doubt.verdict}: {doubt.reason}'
        return
    for finding in armed:
        if finding.verdict in (Verdict.INCONCLUSIVE, Verdict.INSUFFICIENT):
            yield f'"{_title(plan, finding.gate)}" must pass, it is {finding.verdict}: {finding.reason}'
    judged = {finding.gate for finding in armed}
    for gate in plan.gates:
        if not gate.dry_run and gate.name not in judged:
            yield f'"{gate_title(gate)}" must pass: no tick has judged it yet'
    following = at.stage_index + 1
    if at.excluded and following == len(plan.stages):
        yield f"it cannot be promoted: {', '.join(at.excluded)} {_NOT_PROMOTED}"
    if following < len(plan.stages) and plan.needs_approval(following) and at.approved_stage != following:
        when = "now" if at.state is State.AWAITING_APPROVAL else "then"
        yield f"an owner must {when} approve {plan.stages[following].percent:g} %"


def _time_needs(plan: Plan, at: Position, now: datetime, times: ReleaseTimes) -> Iterator[str]:
    """Yield what holds the next stage once its minimum time is over: a freeze, or a closed window."""
    if at.promoted_at is not None:
        return
    waits = at.state in (State.PAUSED, State.AWAITING_DECISION)
    earliest = now if waits else max(now, _minimum_end(plan, at))
    if closure := times.closure(plan.advance_windows, earliest):
        yield closure.reason


def _minimum_end(plan: Plan, at: Position) -> datetime:
    if at.promoted_at is not None:
        return at.promoted_at + plan.bake
    return at.stage_entered_at + plan.stages[at.stage_index].minimum_time


def _maximum_end(plan: Plan, at: Position, times: ReleaseTimes) -> datetime:
    if plan.on_inconclusive == "rollback":  # no freeze delays a rollback
        return at.stage_extended_at + plan.maximum_stage_time
    return times.limit_end(at.stage_extended_at, plan.maximum_stage_time)


def _has_no_maximum(at: Position) -> bool:
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
