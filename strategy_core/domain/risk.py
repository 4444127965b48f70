"""Risk of a version against the active one, and the scale of its positions: value at risk of shadow equity, in R."""

import math
from collections.abc import Collection, Mapping
from datetime import timedelta
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from strategy_core.domain.arrays import FloatArray

LOOK_BACK = timedelta(days=45)  # of shadow, at most
NEEDED_DAYS = 20
NEEDED_HOURS = 100  # with an open trade, of each version. Of longer candles as many: fewer say too little
ALIKE = 0.9  # of the candles that one version decided, the other must have decided
SMALLEST_SCALE, FULL_SIZE = 0.5, 1.0
NORMAL_95 = 1.645  # one-sided
HOUR = timedelta(hours=1)


class Risk(BaseModel):
    """The measured risk of a version, and the scale that follows.

    Attributes:
        scale: multiply the size of its positions by it, 0.5 to 1.
        ratio: its risk as a multiple of what users of the active version take now, if it was measured.
        version_var, active_var: value at risk of a day at 95 %, in R. The active version's is at the scale of its own
            positions.
        days: calendar days that were measured.
        reason: why no scale was measured, or why it is not applied. Empty: it was measured and is applied.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    scale: float = Field(default=FULL_SIZE, ge=SMALLEST_SCALE, le=FULL_SIZE)
    ratio: float | None = None
    version_var: float | None = None
    active_var: float | None = None
    days: float = 0.0
    reason: str = ""

    def line(self, version: str, active: str) -> str:
        """Return one line for owners: what was measured, and the size that users of the version are sent."""
        size = "the full size" if self.scale == FULL_SIZE else f"{self.scale:g} of the size"
        sent = f"its users are sent {size}"
        if self.ratio is None:
            return f"the risk of {version} against {active} is unknown: {self.reason}; {sent}"
        risks = f"{version} risks {self.ratio:.2g} × what {active} does"
        if self.reason:
            return f"{risks}: {sent}, because {self.reason}"
        left = self.ratio * self.scale
        beyond = f", the smallest scale, and still risk {left:.2g} ×" if self.ratio > 1 / SMALLEST_SCALE else ""
        return f"{risks}: {sent}{beyond}"


def load_risk(stored: Mapping[str, Any] | None) -> Risk | None:
    """Return the stored risk of a rollout, or None for one of a release that did not measure it."""
    return None if stored is None else Risk.model_validate(stored)


def value_at_risk(hourly_r: FloatArray, days: float) -> float:
    """Return the loss of a day that 95 % of days do not exceed, in R, by the variance of hourly changes.

    Args:
        hourly_r: changes of marked-to-market R over hours with an open trade. Other hours are 0 and may be left out.
        days: calendar days that the hours are of, > 0.

    Source: J.P. Morgan/Reuters (1996), "RiskMetrics Technical Document": 1.645 standard deviations around a mean of 0,
    by the square root of time. A quantile of the hours would be 0 for versions that are flat most of the time.
    """
    return NORMAL_95 * math.sqrt(float(np.sum(np.square(hourly_r))) / days)


def measure_risk(
    version: FloatArray, active: FloatArray, days: float, *, active_scale: float = FULL_SIZE, unit: str = "hours"
) -> Risk:
    """Return the risk of a version and its scale, clamp(VaR of the active / VaR of the version, 0.5, 1).

    Without enough evidence the scale is that of the active version: what users have now.

    Args:
        version, active: as `hourly_r` of `value_at_risk`, over the same *days*.
        active_scale: of the active version's positions. Its value at risk is multiplied by it.
        unit: what the changes are over, if candles are longer than an hour.

    Source: Darwinex equalises strategies by a target value at risk over the last 45 days. Here the target is the active
    version's, and no position becomes larger.
    """
    if days < NEEDED_DAYS:
        return unmeasured(f"{days:.0f} days in shadow together, {NEEDED_DAYS} are needed", active_scale, days)
    for which, hours in (("version", version), ("active version", active)):
        if len(hours) < NEEDED_HOURS:
            why = f"the {which} had a trade open in {len(hours)} {unit} of {days:.0f} days, {NEEDED_HOURS} are needed"
            return unmeasured(why, active_scale, days)
    risked, target = value_at_risk(version, days), active_scale * value_at_risk(active, days)
    if not (risked > 0 and target > 0):
        return unmeasured("the equity of one of the two does not move", active_scale, days)
    scale = min(FULL_SIZE, max(SMALLEST_SCALE, target / risked))
    return Risk(
        scale=round(scale, 2), ratio=risked / target, version_var=risked, active_var=target, days=round(days, 1)
    )


def unmeasured(why: str, active_scale: float, days: float) -> Risk:
    """Return the risk where there is too little evidence: the scale that users of the active version have."""
    return Risk(scale=active_scale, days=round(days, 1), reason=why)


def at_full_size(risk: Risk) -> Risk:
    """Return *risk* for a plan that does not apply a scale."""
    return risk.model_copy(update={"scale": FULL_SIZE, "reason": risk.reason or "the plan applies no risk scale"})


def decided_alike(version: int, active: int) -> bool:
    """Return whether two versions decided about as many candles. One that was down would look calm."""
    return min(version, active) >= ALIKE * max(version, active)


# Open risk


class OpenRisk(BaseModel):
    """The open risk of a strategy, and the canary's part.

    Attributes:
        canary, total: in the unit of sizes, or in full positions if not every open position reports its size.
        by_size: whether it is by sizes.
        positions: open positions of the canary.
    """

    model_config = ConfigDict(frozen=True)

    canary: float
    total: float
    by_size: bool
    positions: int

    @property
    def percent(self) -> float:
        """The canary's part in percent, 0 without open positions."""
        return 100 * self.canary / self.total if self.total > 0 else 0.0

    @property
    def summary(self) -> str:
        how = "by size" if self.by_size else "by number, since sizes are not reported for all"
        held = "1 open position" if self.positions == 1 else f"{self.positions:,} open positions"
        return f"{self.percent:.1f} % of the open risk, {held}, {how}"

    def problem(self, limit: float | None, stage_percent: float) -> str:
        """Return why no users may be added, or an empty text.

        Args:
            limit: in percent. A stage that serves more users than that is not measured by it.
        """
        if limit is None or stage_percent > limit or self.percent <= limit:
            return ""
        return f"the canary has {self.summary}; the plan's limit is {limit:g} %"


class Held(NamedTuple):
    """The open positions of one version: their number, how many report a size, and the sum of sizes."""

    version: str
    positions: int
    sized: int
    size: float


def open_risk(held: Collection[Held], canary: str, scales: Mapping[str, float]) -> OpenRisk:
    """Return the open risk of the canary and of all versions.

    A position counts with its size, in which its scale is contained. If one of them has no size, each counts 1 × the
    scale of its version instead, because sizes cannot be added to numbers of positions.

    Args:
        held: by the version that opened them.
        scales: by version. Others have the full size.
    """
    by_size = all(each.sized == each.positions for each in held)
    risks = {
        each.version: each.size if by_size else each.positions * scales.get(each.version, FULL_SIZE) for each in held
    }
    mine = sum(each.positions for each in held if each.version == canary)
    return OpenRisk(canary=risks.get(canary, 0.0), total=sum(risks.values()), by_size=by_size, positions=mine)
