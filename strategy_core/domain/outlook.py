"""What a rollout waits for, in plain lines, from the facts that its next ruling will rest on; it decides nothing."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from strategy_core.domain.gates import SEVERITY, Finding, Verdict
from strategy_core.domain.plan import Plan
from strategy_core.domain.ramp import ENDED, Position, State, bake_doubt
from strategy_core.domain.span import told

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
        yield f"it {'bakes' if at.promoted_at else 'dwells'} for another {told(end - now)}, until {_moment(end)}"
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
    return f"in {told(end - now)}, at {_moment(end)}" if end > now else "at the next tick"


def _moment(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
