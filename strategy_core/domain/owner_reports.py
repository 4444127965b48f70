"""Reports that are written for owners without being asked for: their kinds, verdicts on shadows, and what is news."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from strategy_core.domain.gates.base import Finding, Verdict
from strategy_core.domain.gates.on_slots import NotWorse, likely_harm_evidence
from strategy_core.domain.pair_noise import History
from strategy_core.domain.plan import Plan
from strategy_core.domain.preview import harm_in_shadow
from strategy_core.domain.slot_ledger import add_slots, open_ledger
from strategy_core.domain.slots import Slots

_SENTENCES = re.compile(r"(?<=\.)\s+(?=[A-Z])")
_ONCE = timedelta(days=36_500)


class Kind(StrEnum):
    MORNING = "morning"  # what has changed since the last one, at most one a day
    WEEKLY = "weekly"  # every version against the active one, on Mondays
    FINAL = "final"  # how a rollout ended
    READY = "ready"  # a version in shadow could pass the first stage by now, or is clear to take too long


class Reading(StrEnum):
    """What the shadow of a version shows against the active one. Each claim comes from a bound that holds at any time.

    Declared in the order in which they need an owner.
    """

    READY = "not worse"  # the gates of the first stage would pass on the slots in shadow
    HARM = "earns less"
    NEVER = "takes too long"  # the first stage needs more time than a stage may last
    LIKELY_HARM = "seems to earn less"
    OPEN = "not clear yet"  # enough slots to judge, and no answer
    TOO_FEW = "too few slots"


@dataclass(frozen=True, slots=True)
class ShadowVerdict:
    """The reading of a version in shadow, with its figures in words, and what to do next."""

    reading: Reading
    text: str
    next_step: str

    @property
    def sentence(self) -> str:
        return in_one_sentence(self.text, self.next_step)


def in_one_sentence(text: str, next_step: str) -> str:
    """Join a verdict with its figures and the next step."""
    return f"{text.rstrip('. ')}; next: {next_step}."


def as_clause(sentences: str) -> str:
    """Return *sentences* as a part of one sentence."""
    first, *rest = _SENTENCES.split(sentences.strip())
    if first[1:2].islower():  # a word, and not the name of a version
        first = f"{first[0].lower()}{first[1:]}"
    return ", ".join(part.rstrip(".") for part in (first, *(f"{each[0].lower()}{each[1:]}" for each in rest)))


def judge_shadow(
    plan: Plan, version: str, active: str, *, slots: Slots, history: History, risk_fraction: float, shadow_days: float
) -> ShadowVerdict:
    """Return what a pair's *slots* in shadow show, by the gates `harm` and `not_worse` of *plan* at its first stage.

    Args:
        shadow_days: of shadow that count at most.
    """
    stage = plan.stages[0]
    gate = next((gate for gate in plan.gates if isinstance(gate, NotWorse)), NotWorse())
    margin = stage.margins.pnl(history)
    needed, most_days = math.ceil(gate.slots_needed(history, margin)), plan.maximum_stage_time / timedelta(days=1)
    at = f"the {stage.percent:g} % stage"
    harm = harm_in_shadow(plan, slots, history, risk_fraction)
    if harm is not None and harm.verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE):
        return _harm_verdict(version, active, harm)
    if history.slots < gate.minimum_slots or history.days < gate.minimum_days:
        slots_seen, days_seen = _of(history.slots, gate.minimum_slots), _of(history.days, gate.minimum_days)
        text = f"Nothing can be concluded on {version} against {active} yet: {slots_seen} slots on {days_seen} days"
        return ShadowVerdict(Reading.TOO_FEW, text, _wait(gate.minimum_slots - history.slots, history))
    bound = _bound(gate, slots, history, plan)
    mean = history.d / history.slots  # as in tables: that of the bound is clipped
    figures = f"{mean:+.3f} R a slot, at least {bound.low or 0.0:+.3f}, in {history.slots:,} slots"
    if bound.verdict is Verdict.PASS:
        text = f"{version} is not worse than {active} within {margin:.2f} R a slot: {figures}"
        return ShadowVerdict(Reading.READY, text, f"preview its rollout, since it could pass {at} by now")
    most = math.floor((shadow_days + most_days) * history.slots_per_day)
    enough = min(needed, _enough_at_this_mean(bound, history.slots, margin))
    if not history.provisional and enough > most and gate.own_slots_needed(history, margin) > 0:
        text = (
            f"{version} cannot be judged against {active} in time: {at} needs {needed:,} slots, and {shadow_days:.0f} "
            f"days of shadow with {most_days:.0f} of a stage have {most:,} at {history.slots_per_day:.1f} a day"
        )
        return ShadowVerdict(Reading.NEVER, text, "a plan with wider margins, or retire it")
    text = f"{version} is not shown to be as good as {active} yet: {figures}, and needs more than {-margin:+.3f}"
    return ShadowVerdict(Reading.OPEN, text, _wait(enough - history.slots, history))


def _enough_at_this_mean(bound: Finding, slots: int, margin: float) -> float:
    """Return how many slots would bring the bound to the margin if their mean stayed: its reach falls with sqrt(n)."""
    mean, low = bound.value or 0.0, bound.low or 0.0
    room = mean + margin
    return slots * ((mean - low) / room) ** 2 if room > 0 else math.inf


def _of(seen: int, needed: int) -> str:
    return f"{seen:,} of {needed:,}" if seen < needed else f"{seen:,}"


def _harm_verdict(version: str, active: str, harm: Finding) -> ShadowVerdict:
    if harm.verdict is Verdict.FAIL:
        text = f"{version} earns less than {active} in shadow: {harm.reason.removeprefix('the canary earns less: ')}"
        return ShadowVerdict(Reading.HARM, text, "retire it, since a start would be refused")
    text = f"{version} seems to earn less than {active} in shadow: {likely_harm_evidence(harm)}"
    return ShadowVerdict(Reading.LIKELY_HARM, text, "leave it in shadow for more slots")


def _bound(gate: NotWorse, slots: Slots, history: History, plan: Plan) -> Finding:
    """Return the finding on the slots in shadow, each counted once."""
    book, _ = add_slots(open_ledger(history), slots, history)
    return gate.model_copy(update={"patience": _ONCE}).bound(book.totals, history, plan.stages[0].margins)


def _wait(slots: float, history: History) -> str:
    if slots <= 0 or history.slots_per_day <= 0:
        return "wait for more slots"
    days = max(1, math.ceil(slots / history.slots_per_day))
    return f"wait about {days:,} more {'day' if days == 1 else 'days'} at {history.slots_per_day:.1f} slots a day"


def news(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> Iterator[str]:
    """Yield what has changed between two states of a strategy, a line each.

    Args:
        before, after: `active`, `rollout`, `gates` (verdicts of the rollout), and by version `versions` (status),
            `readings` and `closed` (time of the newest trade that has closed). None for *before* without a note so far.
    """
    if before is None:
        yield "this is the first note about this strategy"
        return
    if before.get("active") != after["active"]:
        yield f"the active version: {before.get('active')} → {after['active']}"
    was, now = before.get("versions", {}), after["versions"]
    for version, status in now.items():
        if version not in was:
            yield f"{version} is registered: {status}"
        elif was[version] != status and version != after["active"]:
            yield f"{version}: {was[version]} → {status}"
    if before.get("rollout") != after["rollout"]:
        yield _rollout_news(before.get("rollout"), after["rollout"])
    readings = before.get("readings", {})
    for version, reading in after["readings"].items():
        if version in readings and readings[version] != reading:
            yield f"{version}: {readings[version]} → {reading}"
    gates = before.get("gates", {})
    changed = [
        f"{gate} {gates[gate]} → {verdict}"
        for gate, verdict in after["gates"].items()
        if gates.get(gate, verdict) != verdict
    ]
    if changed:
        yield f"gates: {', '.join(changed)}"
    traded = [version for version, at in after["closed"].items() if before.get("closed", {}).get(version) != at]
    if traded:
        yield f"trades have closed: {', '.join(traded)}"


def _rollout_news(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> str:
    if after is None:
        version = (before or {}).get("version", "")
        return f"the rollout of {version} has ended"
    verdict, state = (str(after[name]).replace("_", " ") for name in ("verdict", "state"))
    place = f"{state} at {after['percent']:g} % of users, {verdict}"
    if before is None or before.get("id") != after["id"]:
        return f"a rollout of {after['version']} has started: {place}"
    return f"the rollout of {after['version']}: {place}"


def day_before(now: datetime) -> tuple[datetime, datetime]:
    """Return the last UTC day that is over at *now*."""
    end = now.replace(hour=0, minute=0, second=0, microsecond=0)
    return end - timedelta(days=1), end


def week_before(now: datetime) -> tuple[datetime, datetime]:
    """Return the last week that is over at *now*. Weeks begin on Monday, 00:00 UTC."""
    end = now.replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=now.weekday())
    return end - timedelta(days=7), end
