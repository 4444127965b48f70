"""The gate on an external Prometheus metric: thresholds on its newest samples."""

import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from strategy_core.domain.errors import EvidenceUnavailable
from strategy_core.domain.evidence import Evidence, Sample
from strategy_core.domain.gates.base import Duration, Finding, Gate, Margins, Verdict, duration_field

PLACEHOLDERS = ("strategy", "canary", "active")

_PLACEHOLDER = re.compile(r"\$([A-Za-z_]\w*)")
_STRINGS = re.compile(r"""(=~|!~|=)?\s*("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|`[^`]*`)""")
_PLAIN = re.compile(r"[A-Za-z0-9_.-]")


class MetricThreshold(Gate):
    """Fail when an external metric is outside its bounds for several samples in a row. Pass while it is inside.

    One sample outside already holds the ramp. A sample without a value is neither inside nor outside and does not end a
    row of samples outside. If the newest sample has no value, or is older than `stale_after`, the gate is blind. A
    sample inside ends the row, so separate blips do not add up.

    Attributes:
        metric: name in findings, after "metric:".
        query: PromQL that returns one number. `$strategy`, `$canary` and `$active` are placeholders for names in label
            values: `slippage{version="$canary"}`.
        minimum, maximum: the bounds, inclusive.
        minimum_samples: samples with a value since the start of the rollout, before the gate judges.
        consecutive_limit: samples in a row outside at which the gate fails.
        stale_after: maximum age of the newest sample.
    """

    warns: ClassVar[bool] = True
    title: ClassVar[str] = "metric"
    help: ClassVar[str] = "A metric of your own is outside its bounds."

    kind: Literal["metric"] = "metric"
    metric: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,60}$")
    query: str = Field(pattern=r"\S", max_length=2_000)
    minimum: float | None = None
    maximum: float | None = None
    minimum_samples: int = Field(default=5, ge=1, le=10_000)
    consecutive_limit: int = Field(default=3, ge=1, le=10_000)
    stale_after: Duration = duration_field(timedelta(minutes=10))

    @field_validator("query")
    @classmethod
    def _placeholders_are_label_values(cls, query: str) -> str:
        """Elsewhere a name could change the query, such as in a regular expression or as the name of a metric."""
        used = _PLACEHOLDER.findall(query)
        if strangers := sorted(set(used) - set(PLACEHOLDERS)):
            known = ", ".join(f"${name}" for name in PLACEHOLDERS)
            raise ValueError(f"${strangers[0]} is not a placeholder; known are {known}")
        values = [text for matcher, text in _STRINGS.findall(query) if matcher == "=" and not text.startswith("`")]
        if len(used) != sum(len(_PLACEHOLDER.findall(text)) for text in values):
            raise ValueError('placeholders may only be quoted label values, as in {version="$canary"}')
        return query

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.minimum is None and self.maximum is None:
            raise ValueError("a metric needs a minimum, a maximum, or both")
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise ValueError("minimum must not exceed maximum")
        return self

    @property
    def name(self) -> str:
        return f"metric:{self.metric}"

    @property
    def samples_needed(self) -> int:
        """The number of newest samples with a value that the gate needs."""
        return max(self.minimum_samples, self.consecutive_limit)

    def filled(self, names: Mapping[str, str]) -> str:
        """Return the query with each of `PLACEHOLDERS` replaced by its escaped name from *names*."""
        return _PLACEHOLDER.sub(lambda found: _label_value(names[found[1]]), self.query)

    def judge(self, evidence: Evidence, margins: Margins) -> Finding:
        if evidence.platform_problem:
            raise EvidenceUnavailable(evidence.platform_problem)
        samples = evidence.samples.get(self.name, ())
        values = [sample.value for sample in samples if sample.value is not None]
        streak = _newest_run([self._is_outside(value) for value in values])
        if len(values) >= self.minimum_samples and streak >= self.consecutive_limit:
            reason = f"{streak} samples in a row outside (limit {self.consecutive_limit})"
            return self._finding(Verdict.FAIL, f"{self._against_bounds(values[-1])}; {reason}", values)
        newest = self._newest_usable(samples, evidence)
        if newest is None:
            return self.nothing_yet("sample")
        if len(values) < self.minimum_samples:
            reason = f"{len(values)} of {self.minimum_samples} samples"
            return self._finding(Verdict.INSUFFICIENT, reason, values)
        if newest.taken_at < evidence.stage_entered_at:
            return self._finding(Verdict.INSUFFICIENT, "no sample at this stage yet", values)
        if streak:
            reason = f"{streak} of {self.consecutive_limit} samples in a row outside"
            return self._finding(Verdict.INCONCLUSIVE, f"{self._against_bounds(values[-1])}; {reason}", values)
        return self._finding(Verdict.PASS, self._against_bounds(values[-1]), values)

    def _newest_usable(self, samples: Sequence[Sample], evidence: Evidence) -> Sample | None:
        """Return the newest sample, or None if it is too early for one. Raise EvidenceUnavailable if it is unusable."""
        newest = samples[-1] if samples else None
        if newest is None and evidence.now - evidence.started_at <= self.stale_after:
            return None
        if newest is None:
            raise EvidenceUnavailable("no sample has been taken since the rollout began: see `rollout sample`")
        if newest.value is None:
            raise EvidenceUnavailable(f"no value: {newest.problem}")
        if abs(evidence.now - newest.taken_at) > self.stale_after:  # or from the future
            raise EvidenceUnavailable(f"the newest sample is of {newest.taken_at:%Y-%m-%d %H:%M:%S} UTC")
        return newest

    def _is_outside(self, value: float) -> bool:
        return (self.minimum is not None and value < self.minimum) or (
            self.maximum is not None and value > self.maximum
        )

    @property
    def bounds(self) -> str:
        """The allowed values, in words."""
        if self.minimum is None:
            return f"at most {self.maximum:g}"
        return f"at least {self.minimum:g}" if self.maximum is None else f"{self.minimum:g} to {self.maximum:g}"

    def _against_bounds(self, value: float) -> str:
        return f"{value:.6g}, allowed {self.bounds}"

    def _finding(self, verdict: Verdict, reason: str, values: Sequence[float]) -> Finding:
        """Return the finding on the newest of *values*, at least one. Its limit is the nearest bound."""
        bounds = [bound for bound in (self.minimum, self.maximum) if bound is not None]
        nearest = min(bounds, key=lambda bound: abs(bound - values[-1]))
        return self.found(verdict, reason, value=values[-1], limit=nearest, n=len(values))


def _newest_run(outside: Sequence[bool]) -> int:
    run = 0
    for each in reversed(outside):
        if not each:
            break
        run += 1
    return run


def _label_value(name: str) -> str:
    """Escape *name* for a PromQL string with either quote, so that it cannot end the string."""
    return "".join(char if _PLAIN.match(char) else f"\\U{ord(char):08x}" for char in name)
