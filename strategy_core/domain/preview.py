"""The preview of a plan before it starts: its audience, and whether the evidence can suffice in time."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from strategy_core.domain.capital import CapitalBelow, Placed, share_of
from strategy_core.domain.gates.base import DAYS_A_YEAR, Finding, Margins, Verdict
from strategy_core.domain.gates.on_slots import SLOTS_FACTOR, Harm, NotWorse
from strategy_core.domain.pair_noise import History
from strategy_core.domain.parsing import NewUserId
from strategy_core.domain.plan import Plan
from strategy_core.domain.release_times import ReleaseTimes, in_zone
from strategy_core.domain.risk import Risk
from strategy_core.domain.routing import BUCKETS, as_percent, basis_points
from strategy_core.domain.simulation import Change, resampled
from strategy_core.domain.slot_ledger import add_slots, open_ledger
from strategy_core.domain.slots import Slots

NORMAL_95 = 1.96
STAKE = 10_000  # of the account that figures in money are given for
ALPHA_IN_SHADOW = 0.05
OFTEN = 5  # slots a day, from which on money is told by the day
FIRST_DAYS = 4
TRIALS = 9  # draws for each fault: enough to say how many days it takes, in a second or two
MOST_DAYS, MOST_SLOTS = 180, 3_000  # of one draw
FEWEST_SLOTS, FEWEST_DAYS = 30, 10  # of shadow, to draw from
_FAULTS = {
    Change.EVERY_LOSS: "every trade loses",
    Change.SEVERE: "3 of 11 wins are lost and losses grow by half",
    Change.MILD: "1 of 11 wins is lost",
}
ESTIMATE = "an estimate: no user list is loaded"


def in_sample_note(until: datetime) -> str:
    """Return the line that says which replayed candles are left out."""
    return f"left out: replayed candles before {until:%Y-%m-%d %H:%M} UTC, on which a version was trained"


class Account(BaseModel):
    """One user of the platform's user list.

    Attributes:
        capital: in the platform's unit of account, if known.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    user_id: NewUserId
    capital: float | None = Field(default=None, ge=0)


class StageAudience(BaseModel):
    """The users in the canary at one stage. Users and capital need a user list.

    Attributes:
        percent: of users that the plan asks for.
        effective_percent: the percent that the canary gets by the holdout and the cap on capital.
        share: of users. The effective percent without a user list.
        capital: of the users whose capital is known.
        capital_share: of all capital, with unknown capital at the mean.
        capital_percent: the cap in percent of all capital. None: no cap.
        left_out: users below the percent who stay with the active version: large accounts and excluded users.
    """

    percent: float
    effective_percent: float
    users: int | None
    share: float
    capital: float | None
    capital_share: float | None
    capital_percent: float | None
    left_out: int


class Overlap(BaseModel):
    """The users that each stage shares with the canary of another strategy.

    Attributes:
        percent: of users on that canary now.
        same_salt: whether both canaries select the same users. With different salts they overlap by chance.
        shares: of all users, those in both canaries, by stage. Counted with a user list and the same salt, otherwise
            expected.
        users: number of those users by stage, rounded if expected. Needs a user list.
    """

    strategy_name: str
    version: str
    percent: float
    same_salt: bool
    shares: list[float]
    users: list[int] | None


class Audience(BaseModel):
    """The users that a plan reaches, by stage.

    Attributes:
        users: in the user list. Without a list all shares are estimates.
        capital: of the users whose capital is known, if any.
        capital_unknown: users whose capital is unknown.
        kept: users that an exclusion keeps with the active version. No stage counts them.
        always: users that an exclusion gives every canary. Each stage counts them.
        large_accounts: users who stay with the active version until 100 %, since their accounts are large.
        large_above: capital above which an account is large. None if none is.
        cap_note: why the plan's cap on capital has no effect. Empty if it has one, and without a cap.
        blind: why the start is refused: too much capital is unknown. Empty if it is not.
        holdout_percent: share of users that no stage reaches, by the strategy's policy.
    """

    users: int | None
    capital: float | None
    capital_unknown: int
    holdout_percent: float = 0.0
    kept: int = 0
    always: int = 0
    large_accounts: int = 0
    large_above: float | None = None
    cap_note: str = ""
    blind: str = ""
    stages: list[StageAudience]
    overlaps: list[Overlap]

    @property
    def estimated(self) -> bool:
        return self.users is None

    @property
    def notes(self) -> list[str]:
        """What the holdout and the cap on capital do to the plan, a line each."""
        lines = [each for each in (self.cap_note, self.blind) if each]
        most = round(100 - self.holdout_percent, 2)
        if any(stage.percent > most for stage in self.stages):
            lines.append(
                f"a holdout of {self.holdout_percent:g} % of users is in no stage: a canary gets at most {most:g} %, "
                "and the others get the version when it is promoted"
            )
        if self.large_accounts and self.large_above is not None:
            one = self.large_accounts == 1
            who = "1 large account," if one else f"{self.large_accounts} large accounts, each"
            stay = "stays" if one else "stay"
            lines.append(f"{who} above {self.large_above:,.0f}, {stay} with the active version until 100 %")
        lines += [
            f"at {stage.percent:g} % the canary gets {stage.effective_percent:g} % of users, because they hold "
            f"{stage.capital_share:.1%} of all capital"
            for stage in self.stages
            if stage.effective_percent < min(stage.percent, most) and stage.capital_share is not None
        ]
        return lines


class OtherCanary(BaseModel):
    """The current canary of another strategy."""

    strategy_name: str
    version: str
    percent_bp: int
    same_salt: bool


def audience(
    plan: Plan,
    below: CapitalBelow | None,
    others: Sequence[OtherCanary],
    *,
    kept: Sequence[Placed] = (),
    always: Sequence[Placed] = (),
    large: Sequence[Placed] = (),
    holdout_percent: float = 0.0,
) -> Audience:
    """Return the users that *plan* reaches, as routing will serve them.

    Args:
        plan: the plan to preview.
        below: the listed users under the strategy's salt. None without a user list.
        others: canaries of other strategies.
        kept, always: listed users with an exclusion of their own.
        large: large accounts by the plan that are not in *kept*. They are kept until 100 %.
        holdout_percent: of the strategy's policy.
    """
    most = BUCKETS - basis_points(holdout_percent)
    shares = [
        share_of(
            below,
            min(stage.percent_bp, most),
            None if stage.percent_bp == BUCKETS else stage.capital_percent,
            kept=kept if stage.percent_bp == BUCKETS else [*kept, *large],
            always=always,
        )
        for stage in plan.stages
    ]
    users = 0 if below is None else int(below.users[-1])
    known = below is not None and below.unknown[-1] < users
    return Audience(
        users=users or None,
        capital=float(below.capital[-1]) if below is not None and known else None,
        capital_unknown=0 if below is None else int(below.unknown[-1]),
        kept=len(kept),
        always=len(always),
        large_accounts=len(large),
        large_above=None if below is None else below.large_above(plan.largest_account_percent),
        cap_note=next((share.note for share in shares if share.note), ""),
        blind=next((share.blind for share in shares if share.blind), ""),
        holdout_percent=holdout_percent,
        stages=[
            StageAudience(
                percent=stage.percent,
                effective_percent=as_percent(share.percent_bp),
                users=share.users,
                share=share.percent_bp / BUCKETS if share.users is None else share.users / users,
                capital=share.capital if known else None,
                capital_share=share.capital_share,
                capital_percent=stage.capital_percent,
                left_out=share.left_out,
            )
            for stage, share in zip(plan.stages, shares, strict=True)
        ],
        overlaps=[_overlap([share.percent_bp for share in shares], other, below, kept) for other in others],
    )


def _overlap(stages: Sequence[int], other: OtherCanary, below: CapitalBelow | None, kept: Sequence[Placed]) -> Overlap:
    """Return the overlap by bucket. Users that this strategy keeps are in no overlap, those of the other may be."""
    total = 0 if below is None else int(below.users[-1])
    if not other.same_salt:
        shares = [bp * other.percent_bp / BUCKETS**2 for bp in stages]
    elif below is not None and total:
        both = [min(bp, other.percent_bp) for bp in stages]
        shares = [float((below.users[bp] - sum(one.bucket < bp for one in kept)) / total) for bp in both]
    else:
        shares = [min(bp, other.percent_bp) / BUCKETS for bp in stages]
    return Overlap(
        strategy_name=other.strategy_name,
        version=other.version,
        percent=as_percent(other.percent_bp),
        same_salt=other.same_salt,
        shares=shares,
        users=[round(share * total) for share in shares] if total else None,
    )


class StagePreview(BaseModel):
    """One stage: the slots that it needs, and how long it will last.

    Attributes:
        slots_needed: since the start of the rollout, so that a version as good as the active one passes.
        days_expected: at this stage, if the pair has slots.
        underpowered: whether the maximum stage time ends before the evidence can suffice.
        margin_r: how much less than the active version still passes, in R per slot.
    """

    percent: float
    slots_needed: int
    days_expected: float | None
    underpowered: bool
    margin_r: float


class Detection(BaseModel):
    """How soon the gate `harm` finds a fault that is put on the pair's days in shadow, from the first day on.

    Attributes:
        fault: what the fault does, in words.
        found: share of the trials in which it is found within *horizon_days*.
        median_days: until it is found, if it is in half of the trials.
        worst_loss_r: R that a user on the canary has lost by then or by the horizon, against the active version, in the
            worst of the trials. `worst_loss` is the same as a share of equity.
    """

    fault: str
    found: float
    horizon_days: int
    median_days: float | None
    worst_loss_r: float
    worst_loss: float


class EarliestEntries(BaseModel):
    """When the first two stages of a plan may be entered at the earliest.

    Attributes:
        start, advance: None if no such time is known.
        time_zone: of the plan's first release window, to show the times in.
    """

    start: datetime | None
    advance: datetime | None
    time_zone: str

    @property
    def note(self) -> str:
        if self.start is None or self.advance is None:
            return "by its release windows and freezes it cannot start or advance within the next days"
        start, advance = (in_zone(at, self.time_zone) for at in (self.start, self.advance))
        return f"by release windows and freezes it may start {start}, and advance {advance} at the earliest"


def earliest_entries(plan: Plan, times: ReleaseTimes, now: datetime) -> EarliestEntries | None:
    """Return when *plan* may enter its first two stages if it starts as soon as it may. None if any time will do."""
    if not plan.advance_windows and not times.freezes:
        return None
    start = times.opens_at(plan.advance_windows, now)
    dwelt = None if start is None else start + plan.stages[0].minimum_time
    advance = None if dwelt is None else times.opens_at(plan.advance_windows, dwelt)
    zone = plan.advance_windows[0].time_zone if plan.advance_windows else "UTC"
    return EarliestEntries(start=start, advance=advance, time_zone=zone)


class Preview(BaseModel):
    """A plan compared with the shadow history of the pair.

    Attributes:
        slots, days: slots and calendar days of the history.
        pnl_deviation, win_deviation: standard deviation of the difference per slot, clustered by day.
        r_per_day: what the version earned more (or less) than the active one in shadow, in R a day.
        r_per_day_low, r_per_day_high: its 95 % interval, by days. None with too few days.
        harm: what the plan's gate `harm` says of the shadow. On `fail` the start is refused.
        risk_fraction: share of equity risked on one R.
        detections: how soon faults are found. Empty with too few slots in shadow.
        replayed_slots, replayed_days: of the slots and days, those from replays. No gate of the rollout counts them.
        harm_replayed: what the gate `harm` says of shadow and replays together. It refuses no start.
        left_out_until: replayed candles before it are left out, because a version was trained on them.
        earliest: when the rollout may start and advance by release windows and freezes. None without both.
        risk: of the version against the active one, with the scale that a start would freeze. *risk_line* states it.
    """

    slots: int
    days: float
    slots_per_day: float
    pnl_deviation: float | None
    win_deviation: float | None
    r_per_day: float
    r_per_day_low: float | None
    r_per_day_high: float | None
    harm: Finding | None
    risk_fraction: float
    stages: list[StagePreview]
    detections: list[Detection]
    replayed_slots: int = 0
    replayed_days: float = 0.0
    harm_replayed: Finding | None = None
    left_out_until: datetime | None = None
    earliest: EarliestEntries | None = None
    risk: Risk | None = None
    risk_line: str = ""

    @property
    def underpowered(self) -> bool:
        return any(stage.underpowered for stage in self.stages)

    @property
    def verdict(self) -> str:
        """One line that states whether the plan can start, and whether it can reach a verdict."""
        if self.harm is not None and self.harm.verdict is Verdict.FAIL:
            return f"refused: in shadow {self.harm.reason}. Give an override reason to start it all the same"
        if self.pnl_deviation is None:
            found = f"{self.slots:,} slots in {self.days:,.0f} days of {self._source}"
            return (
                f"unknown: {found} are too few to plan by. Replay the version on past candles, or wait for more candles"
            )
        short = next((stage for stage in self.stages if stage.underpowered), None)
        if short is None:
            total = sum(stage.days_expected or 0.0 for stage in self.stages)
            return f"the evidence can suffice: about {total:,.0f} days at {self.slots_per_day:.1f} slots a day"
        days = short.slots_needed / self.slots_per_day
        return (
            f"underpowered: the {short.percent:g} % stage needs {short.slots_needed:,} slots; "
            f"at {self.slots_per_day:.1f} a day that is {days:,.0f} days"
        )

    @property
    def notes(self) -> list[str]:
        """What the shadow says, what the last stage tolerates, and how soon faults are found, a line each."""
        notes = [] if self.earliest is None else [self.earliest.note]
        if self.left_out_until is not None:
            notes.append(in_sample_note(self.left_out_until))
        if self.replayed_days:
            counted = replayed_part(self.replayed_slots, self.slots, self.replayed_days, self.days)
            notes.append(f"{counted}. The gates of a rollout do not count them")
        if self.r_per_day_low is not None and self.r_per_day_high is not None:
            less = "less" if self.r_per_day < 0 else "more"
            interval = f"95 %: {self.r_per_day_low:+.2f} to {self.r_per_day_high:+.2f}"
            money = self._of_capital(self.r_per_day)
            notes.append(f"in {self._source} it earned {abs(self.r_per_day):.2f} R a day {less} ({interval}), {money}")
        if self.harm is not None and self.harm.verdict is Verdict.INCONCLUSIVE:
            notes.append(f"warning: {self.harm.reason}, in shadow already")
        if self.harm_replayed is not None and self.harm_replayed.verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE):
            notes.append(f"warning: {self.harm_replayed.reason}, in {self._source} already")
        if self.risk_line:
            notes.append(self.risk_line)
        if self.stages and self.slots_per_day > 0:
            margin = self.stages[-1].margin_r
            money = self._of_capital(-self.slots_per_day * margin)
            notes.append(f"a version may earn up to {margin:.3f} R a slot less and still be promoted: {money}")
        notes.extend(self._found(each) for each in self.detections)
        return notes

    @property
    def _source(self) -> str:
        if not self.replayed_days:
            return "shadow"
        return "replay" if self.replayed_slots == self.slots else "shadow and replay"

    def _of_capital(self, r_per_day: float) -> str:
        often = self.slots_per_day >= OFTEN
        money = r_per_day * self.risk_fraction * STAKE * (1 if often else DAYS_A_YEAR)
        at_risk = f"at {self.risk_fraction:.1%} of it a trade"
        return f"{money:+,.0f} a {'day' if often else 'year'} on an account of {STAKE:,}, {at_risk}"

    def _found(self, one: Detection) -> str:
        loss = f"a user on the canary then has at worst {one.worst_loss_r:.0f} R less than the other users"
        if one.median_days is None:
            return f"if {one.fault}: found in {one.found:.0%} of trials within {one.horizon_days} days; {loss}"
        return f"if {one.fault}: found after {one.median_days:.1f} days, in {one.found:.0%} of trials; {loss}"


def replayed_part(replayed_slots: int, slots: int, replayed_days: float, days: float) -> str:
    """Return how much of what a pair did before a start is from replays, in the words of `plan` and `whatif`."""
    counted = f"{replayed_slots:,} of {slots:,} slots, on {replayed_days:,.0f} of {days:,.0f} days"
    return f"from replay: {counted} before the start"


@dataclass(frozen=True, slots=True)
class LiveShadow:
    """The part of a pair's slots that is not from replays: all that the gates of a rollout know when it starts."""

    slots: Slots
    history: History
    days: float


def preview(
    plan: Plan,
    history: History,
    calendar_days: float,
    *,
    slots: Slots | None = None,
    risk_fraction: float = 0.0,
    live: LiveShadow | None = None,
) -> Preview:
    """Return the preview of *plan*, given the *slots* and the history of the pair over *calendar_days* of shadow.

    Slots needed = (3.1 · s / margin)², with s the deviation of the paired difference, and at least the minimum of the
    gate. See `NotWorse` for pairs with few slots, and for those that do the same.

    Args:
        live: if some of the slots are from replays, the others. Margins, slots in shadow that count and the design
            effects, where they are larger, are then taken from its history, as the gates will.
    """
    frozen = history if live is None else live.history
    history = history if live is None else _as_cautious(history, live.history)
    per_day, pnl, win = history.slots_per_day, history.pnl_deviation, history.win_deviation
    gate = next((gate for gate in plan.gates if isinstance(gate, NotWorse)), None)
    stages, booked = [], 0
    for stage in plan.stages:
        margin = stage.margins.pnl(frozen)
        needed = stage_slots_needed(gate, stage.margins, frozen, history)
        minimum_days = stage.minimum_time.total_seconds() / 86_400
        expected = None
        if per_day > 0 and pnl is not None:
            expected = max(minimum_days, (needed - booked) / per_day)
            booked += math.floor(expected * per_day)
        maximum_days = plan.maximum_stage_time.total_seconds() / 86_400
        underpowered = expected is None or expected > maximum_days
        stages.append(
            StagePreview(
                percent=stage.percent,
                slots_needed=needed,
                days_expected=expected,
                underpowered=underpowered,
                margin_r=margin,
            )
        )
    mean = history.d / history.slots if history.slots else 0.0
    reach = None if pnl is None else NORMAL_95 * pnl / math.sqrt(history.slots)
    found = None if slots is None else harm_in_shadow(plan, slots, history, risk_fraction)
    return Preview(
        slots=history.slots,
        days=calendar_days,
        slots_per_day=per_day,
        pnl_deviation=pnl,
        win_deviation=win,
        r_per_day=mean * per_day,
        r_per_day_low=None if reach is None else (mean - reach) * per_day,
        r_per_day_high=None if reach is None else (mean + reach) * per_day,
        harm=found if live is None else harm_in_shadow(plan, live.slots, live.history, risk_fraction),
        risk_fraction=risk_fraction,
        stages=stages,
        detections=[] if slots is None else detections(plan, slots, history, risk_fraction),
        replayed_slots=0 if live is None else history.slots - len(live.slots),
        replayed_days=0.0 if live is None else calendar_days - live.days,
        harm_replayed=None if live is None else found,
    )


def stage_slots_needed(gate: NotWorse | None, margins: Margins, frozen: History, history: History) -> int:
    """Return how many slots of the rollout a version as good as the active one needs to pass a stage.

    Args:
        gate: the plan's gate `not_worse`, if it has one.
        frozen: the history that the gates of the rollout use.
        history: all that is known about the pair: at least *frozen*.
    """
    margin = margins.pnl(frozen)
    needed = gate.own_slots_needed(frozen, margin, gate.slots_needed(history, margin)) if gate else 0
    return needed if margins.win is None else max(needed, _needed(history.win_deviation, margins.win))


def _as_cautious(history: History, live: History) -> History:
    """Return *history* with the design effects of *live* where those are larger."""
    effects = ("design_effect", "design_effect_bound", "win_effect_bound", "unlike_effect")
    return history.model_copy(update={name: max(getattr(history, name), getattr(live, name)) for name in effects})


def harm_in_shadow(plan: Plan, slots: Slots, history: History, risk_fraction: float) -> Finding | None:
    """Return what the plan's armed gate `harm` says of the pair's *slots* in shadow, or None without the gate.

    Signals that the version misses in shadow count too: in a rollout, only those that it misses beyond. E of 20 is
    proof enough here, because a false refusal hurts no user, and an owner may start the version all the same.
    """
    gate = _armed_harm(plan)
    if gate is None or len(slots) == 0:
        return None
    gate = gate.model_copy(update={"alpha": max(gate.alpha, ALPHA_IN_SHADOW)})
    judged = history.model_copy(update={"missed": 0.0})
    book, _ = add_slots(open_ledger(judged), slots, judged)
    return gate.weigh(book.totals, judged, risk_fraction)


def detections(plan: Plan, slots: Slots, history: History, risk_fraction: float) -> list[Detection]:
    """Return how soon the plan's gate `harm` finds typical faults. The pair's days in shadow are drawn again.

    Empty without the gate, or if the shadow has too few slots. The same shadow gives the same result.
    """
    gate = _armed_harm(plan)
    if gate is None or len(slots) < FEWEST_SLOTS or history.days < FEWEST_DAYS:
        return []
    horizon = max(1, min(MOST_DAYS, math.floor(MOST_SLOTS / history.slots_per_day)))
    found = []
    for fault, told in _FAULTS.items():
        rng = np.random.default_rng(TRIALS)
        delays, losses = zip(
            *(_one_detection(gate, slots, history, fault, rng, horizon) for _ in range(TRIALS)), strict=True
        )
        middle = float(np.quantile(delays, 0.5, method="higher"))
        worst = max(0.0, *losses)
        found.append(
            Detection(
                fault=told,
                found=float(np.mean(np.isfinite(delays))),
                horizon_days=horizon,
                median_days=middle if math.isfinite(middle) else None,
                worst_loss_r=worst,
                worst_loss=worst * risk_fraction,
            )
        )
    return found


def _one_detection(
    gate: Harm, slots: Slots, history: History, fault: Change, rng: np.random.Generator, horizon: int
) -> tuple[float, float]:
    """Return the days until harm is proven in one draw (inf beyond the *horizon*), and the R lost by then."""
    book, day, part = open_ledger(history), 0, FIRST_DAYS
    while day < horizon:
        ramp = resampled(slots, fault, rng, days=part)
        shifted = replace(ramp.slots, day=ramp.slots.day + day)
        book, totals = add_slots(book, shifted, history)
        for closed_at, each in zip(ramp.closed_at.tolist(), totals, strict=True):
            if gate.proven(each):
                return day + closed_at, -each.d
        day, part = day + part, min(2 * part, horizon)  # most faults are found soon
    return math.inf, -book.totals.d


def _armed_harm(plan: Plan) -> Harm | None:
    return next((gate for gate in plan.gates if isinstance(gate, Harm) and not gate.dry_run), None)


def _needed(deviation: float | None, margin: float) -> int:
    return math.ceil((SLOTS_FACTOR * (deviation or 0.0) / margin) ** 2)
