"""What needs an owner in a fleet of strategies, the most urgent first."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import IntEnum

from strategy_core.domain.alerts import (
    AWAITING_APPROVAL,
    AWAITING_DECISION,
    BLIND,
    HEADLINES,
    PROPOSAL_WAITING,
    ROLLED_BACK,
    TICK_OVERDUE,
    Severity,
)
from strategy_core.domain.rollout_verdict import VerdictKind

_SHOWN_BY_ROLLOUT = {AWAITING_APPROVAL, AWAITING_DECISION, BLIND, TICK_OVERDUE}  # alerts that repeat its state


class Urgency(IntEnum):
    """How soon an owner should act. Declared from urgent to calm."""

    NOW = 0  # users may be losing money, or are not protected
    ASKED = 1  # it waits for an owner's answer
    LOOK = 2  # something is not as it should be
    CALM = 3  # it needs no one


@dataclass(frozen=True, slots=True)
class Need:
    """One reason why a strategy needs an owner, in a few words.

    Attributes:
        kind: of the alert that says so. Empty if it is not one kind of alert.
    """

    urgency: Urgency
    line: str
    kind: str = ""


_OF_VERDICT: Mapping[VerdictKind, Need] = {
    VerdictKind.HARM_PROVEN: Need(Urgency.NOW, "harm is proven, the next tick rolls it back"),
    VerdictKind.HARM_LIKELY: Need(Urgency.NOW, "harm is likely"),
    VerdictKind.BLIND: Need(Urgency.NOW, "its gates have no evidence"),
    VerdictKind.AWAITING_DECISION: Need(Urgency.ASKED, "waits for your decision"),
    VerdictKind.AWAITING_APPROVAL: Need(Urgency.ASKED, "waits for your approval"),
    VerdictKind.HELD: Need(Urgency.LOOK, "a gate holds its stage"),
    VerdictKind.PAUSED: Need(Urgency.LOOK, "paused"),
    VerdictKind.UNCLEAR: Need(Urgency.LOOK, "the clocks disagree"),
}


@dataclass(frozen=True, slots=True)
class OpenAlerts:
    """Alerts of one kind and severity that no owner has acknowledged."""

    kind: str
    severity: Severity
    count: int


def needs_of(
    *,
    verdict: VerdictKind | None,
    tick_overdue: str,
    candles_behind: int,
    is_served: bool,
    is_judged: bool = True,
    alerts: Collection[OpenAlerts],
) -> tuple[Need, ...]:
    """Return why a strategy needs an owner, the most urgent first. Empty if it does not.

    Args:
        verdict: on its open rollout, if it has one.
        tick_overdue: how long its gates have not run, in words. Empty if they run.
        candles_behind: closed candles that no version has decided on, beyond the usual delay.
        is_served: whether a version serves its users.
        is_judged: whether gates protect its users from the canary. False for a share that was set by hand.
        alerts: of the strategy.
    """
    found = []
    if tick_overdue:
        found.append(Need(Urgency.NOW, f"its gates have not run for {tick_overdue}"))
    if verdict is not None and verdict in _OF_VERDICT:
        found.append(_OF_VERDICT[verdict])
    for each in alerts:
        if each.severity is Severity.CRITICAL and each.kind not in _SHOWN_BY_ROLLOUT:
            urgency = Urgency.ASKED if each.kind == ROLLED_BACK else Urgency.NOW
            found.append(Need(urgency, HEADLINES.get(each.kind, each.kind), each.kind))
        if each.kind == PROPOSAL_WAITING:
            found.append(Need(Urgency.ASKED, HEADLINES[each.kind], each.kind))
    if candles_behind:
        candles = "a candle" if candles_behind == 1 else f"{candles_behind} candles"
        found.append(Need(Urgency.LOOK, f"no decisions for {candles}"))
    if not is_judged:
        found.append(Need(Urgency.LOOK, "no gate judges its canary"))
    if not is_served:
        found.append(Need(Urgency.LOOK, "no version serves its users"))
    warnings = sum(
        each.count
        for each in alerts
        if each.severity is Severity.WARNING and each.kind not in {*_SHOWN_BY_ROLLOUT, PROPOSAL_WAITING}
    )
    if warnings:
        found.append(Need(Urgency.LOOK, "a warning is open" if warnings == 1 else f"{warnings} warnings are open"))
    return tuple(sorted(dict.fromkeys(found), key=lambda need: need.urgency))
