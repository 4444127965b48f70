"""A gate on any metric that a Prometheus can tell: thresholds on its newest samples, never how they are fetched."""

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
    """Fail when an external metric lies outside its bounds so many samples in a row; pass while it lies inside.

    One sample outside already holds the ramp. A sample without a value is neither inside nor outside: when it is the
    newest, or when none has come for `stale_after`, the gate is blind; it breaks no row of samples that were outside.
    A sample inside ends that row: blips that are hours apart never add up.

    Attributes:
        metric: what findings call it, after "metric:".
        query: PromQL that answers with one number. `$strategy`, `$canary` and `$active` stand for the rollout's names
            in label values: `slippage{version="$canary"}`.
        minimum, maximum: the bounds, which are inside.
        minimum_samples: with a value, since the rollout began, before anything is judged.
        consecutive_limit: samples in a row outside, to fail.
        stale_after: how old the newest sample may be.
    """

    warns: ClassVar[bool] = True

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
        """Anywhere else a name could change what the query asks: in a regular expression, or as a name of a metric."""
        used = _PLACEHOLDER.findall(query)
        if strangers := sorted(set(used) - set(PLACEHOLDERS)):
            known = ", ".join(f"${name}" for name in PLACEHOLDERS)
            raise ValueError(f"${strangers[0]} stands for nothing; known are {known}")
        values = [text for matcher, text in _STRINGS.findall(query) if matcher == "=" and not text.startswith("`")]
        if len(used) != sum(len(_PLACEHOLDER.findall(text)) for text in values):
            raise ValueError('placeholders stand in quoted label values alone, as in {version="$canary"}')
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
        """How many of the newest samples with a value it looks at."""
        return max(self.minimum_samples, self.consecutive_limit)

    def filled(self, names: Mapping[str, str]) -> str:
        """Return the query with each of `PLACEHOLDERS` replaced by its name in *names*, whatever that contains."""
        return _PLACEHOLDER.sub(lambda found: _label_value(names[found[1]]), self.query)

    def judge(self, evidence: Evidence, margins: Margins) -> Finding:
        if evidence.platform_problem:
            raise EvidenceUnavailable(evidence.platform_problem)
        samples = evidence.samples.get(self.name, ())
        values = [sample.value for sample in samples if sample.value is not None]
        streak = _newest_run([self._is_outside(value) for value in values])
        if len(values) >= self.minimum_samples and streak >= self.consecutive_limit:
            reason = f"{streak} samples in a row outside (limit {self.consecutive_limit})"
            return self._told(Verdict.FAIL, f"{self._against_bounds(values[-1])}; {reason}", values)
        newest = self._sighted(samples, evidence)
        if newest is None:
            return self.nothing_yet("sample")
        if len(values) < self.minimum_samples:
            reason = f"{len(values)} of {self.minimum_samples} samples"
            return self._told(Verdict.INSUFFICIENT, reason, values)
        if newest.taken_at < evidence.stage_entered_at:
            return self._told(Verdict.INSUFFICIENT, "no sample at this stage yet", values)
        if streak:
            reason = f"{streak} of {self.consecutive_limit} samples in a row outside"
            return self._told(Verdict.INCONCLUSIVE, f"{self._against_bounds(values[-1])}; {reason}", values)
        return self._told(Verdict.PASS, self._against_bounds(values[-1]), values)

    def _sighted(self, samples: Sequence[Sample], evidence: Evidence) -> Sample | None:
        """Return the newest sample, None while none need have come yet; raise EvidenceUnavailable when it is no use."""
        newest = samples[-1] if samples else None
        if newest is None and evidence.now - evidence.started_at <= self.stale_after:
            return None
        if newest is None:
            raise EvidenceUnavailable("no sample has been taken since the rollout began: see `rollout sample`")
        if newest.value is None:
            raise EvidenceUnavailable(f"no value: {newest.problem}")
        if abs(evidence.now - newest.taken_at) > self.stale_after:  # nor does one of a future time tell of now
            raise EvidenceUnavailable(f"the newest sample is of {newest.taken_at:%Y-%m-%d %H:%M:%S} UTC")
        return newest

    def _is_outside(self, value: float) -> bool:
        return (self.minimum is not None and value < self.minimum) or (
            self.maximum is not None and value > self.maximum
        )

    def _against_bounds(self, value: float) -> str:
        if self.minimum is None:
            bounds = f"at most {self.maximum:g}"
        else:
            bounds = f"at least {self.minimum:g}" if self.maximum is None else f"{self.minimum:g} to {self.maximum:g}"
        return f"{value:.6g}, allowed {bounds}"

    def _told(self, verdict: Verdict, reason: str, values: Sequence[float]) -> Finding:
        """Return the finding on the newest of *values*, which are some; its limit is the bound that lies nearest."""
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
    """Return *name* as the inside of a PromQL string, of either quote: what could end the string is written as code."""
    return "".join(char if _PLAIN.match(char) else f"\\U{ord(char):08x}" for char in name)
