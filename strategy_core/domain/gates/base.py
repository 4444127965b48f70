"""Verdicts, findings, the base of all gates, the gates on freshness, errors, validity and silence, and duration fields.

A gate is data, frozen with the plan, and one pure function. To add a gate, write a class in this package and add it to
`plan.AnyGate`.
"""

import re
from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema

from strategy_core.domain.errors import EvidenceUnavailable
from strategy_core.domain.evidence import Evidence, Record
from strategy_core.domain.pair_noise import History

DAYS_A_YEAR = 365


class Verdict(StrEnum):
    """Declared from worst to best. The worst verdict of the armed gates decides."""

    BREACH = "breach"  # a hard limit is exceeded: roll back at once
    FAIL = "fail"  # harm is proven: roll back
    BLIND = "blind"  # the evidence is missing, stale or unreadable: hold, alert, roll back after the blind limit
    INCONCLUSIVE = "inconclusive"  # enough evidence, but no answer: hold, ask an owner after the maximum time
    INSUFFICIENT = "insufficient"  # not enough evidence yet: hold
    PASS = "pass"  # noqa: S105  a verdict, not a password


SEVERITY = {verdict: rank for rank, verdict in enumerate(Verdict)}


class Margins(BaseModel):
    """How much worse than the active version still counts as not worse, at one stage."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    pnl_r: float = Field(gt=0, le=1, description="R per slot")
    pnl_r_per_year: float = Field(
        default=0, ge=0, le=1_000, description="R a year, if that is more: what strategies with few signals need"
    )
    win: float | None = Field(
        default=None, gt=0, le=0.5, description="share of slots won. Not judged by default: money is, not wins"
    )
    pnl_of_edge: float = Field(
        default=0, ge=0, lt=1, description="share of the active version's mean R per slot, if that is more"
    )

    def pnl(self, history: History) -> float:
        """Return the PnL margin in R per slot, for a pair with that history."""
        a_year = DAYS_A_YEAR * history.slots_per_day
        yearly = min(1.0, self.pnl_r_per_year / a_year) if a_year > 0 else 0.0
        return max(self.pnl_r, yearly, self.pnl_of_edge * history.edge)


class Finding(BaseModel):
    """What one gate found. The verdict would change at `limit`. `low` and `high` are an interval of the value."""

    model_config = ConfigDict(frozen=True)

    gate: str
    verdict: Verdict
    reason: str
    value: float | None = None
    limit: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    armed: bool = True


class Gate(BaseModel):
    """Settings and `judge`. With `dry_run` the findings are recorded but have no vote."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    warns: ClassVar[bool] = False  # whether `inconclusive` is a sign of harm: alert an owner at once
    title: ClassVar[str] = ""  # the gate's name for owners
    help: ClassVar[str] = ""  # what it looks for, in one line for owners

    kind: str
    dry_run: bool = False

    @property
    def name(self) -> str:
        """The name in findings. A kind that a plan may contain several times gives each gate a separate name."""
        return self.kind

    def judge(self, evidence: Evidence, margins: Margins) -> Finding:
        """Return the finding. Raise EvidenceUnavailable if the evidence cannot be read."""
        raise NotImplementedError

    def nothing_yet(self, what: str) -> Finding:
        """Return the finding without any evidence: `insufficient`, since no evidence must not pass."""
        return self.found(Verdict.INSUFFICIENT, f"no {what} yet", value=0, n=0)

    def found(self, verdict: Verdict, reason: str, **facts: float | None) -> Finding:
        return Finding.model_validate(
            {"gate": self.name, "verdict": verdict, "reason": reason, "armed": not self.dry_run, **facts}
        )


NOT_DECIDED = " is due, but "  # a candle that no version has decided on


class Freshness(Gate):
    """Blind when a due candle has not been decided, or a trade that should have closed has no outcome.

    Insufficient until the first decision at this stage, because earlier evidence is not about it. Every rollout has
    this gate. The plan's `late_candles` sets how late a candle or an outcome may be.
    """

    title: ClassVar[str] = "up to date"
    help: ClassVar[str] = "Every candle has been decided in time, and every closed trade has a result."

    kind: Literal["freshness"] = "freshness"

    def judge(self, evidence: Evidence, margins: Margins) -> Finding:
        if evidence.feed_problem or evidence.overdue:
            raise EvidenceUnavailable(evidence.feed_problem or evidence.overdue)
        due, newest = evidence.due_candle, evidence.newest_candle
        seen = "none has been decided" if newest is None else f"the newest decided is {newest:%Y-%m-%d %H:%M}"
        if due is not None and due >= evidence.started_at and (newest is None or newest < due):
            return self.found(Verdict.BLIND, f"candle {due:%Y-%m-%d %H:%M} UTC{NOT_DECIDED}{seen}")
        if newest is None or newest < evidence.stage_entered_at:
            return self.found(Verdict.INSUFFICIENT, f"no candle has been decided at this stage yet: {seen}")
        return self.found(Verdict.PASS, f"decided up to candle {newest:%Y-%m-%d %H:%M} UTC")


class Errors(Gate):
    """Breach on errors in a row, or on their share of the decisions once there are enough.

    Blind on as many errors in a row if the host is at fault for some of them.
    """

    title: ClassVar[str] = "errors"
    help: ClassVar[str] = "The new version raises errors, or takes too long to decide."

    kind: Literal["errors"] = "errors"
    in_a_row: int = Field(default=3, ge=1)
    share: float = Field(default=0.05, gt=0, le=1)
    minimum_decisions: int = Field(default=50, ge=1)

    def judge(self, evidence: Evidence, margins: Margins) -> Finding:
        record = evidence.canary
        n = record.decided
        if record.errors_in_a_row >= self.in_a_row:
            reason = f"{record.errors_in_a_row} errors in a row (limit {self.in_a_row}): {record.last_error}"
            return self.found(Verdict.BREACH, reason, value=record.errors_in_a_row, limit=self.in_a_row, n=n)
        share = record.errors / n if n else 0.0
        if n >= self.minimum_decisions and share >= self.share:
            reason = f"{record.errors:,} of {n:,} decisions are errors (limit {self.share:.0%}): {record.last_error}"
            return self.found(Verdict.BREACH, reason, value=share, limit=self.share, n=n)
        if record.host_errors_in_a_row >= self.in_a_row:
            raise EvidenceUnavailable(f"{record.host_errors_in_a_row} errors in a row, {_host(record)}")
        if n == 0:
            return self.nothing_yet("decision")
        return self.found(
            Verdict.PASS, f"{record.errors:,} errors in {n:,} decisions", value=share, limit=self.share, n=n
        )


class InvalidDecisions(Gate):
    """Breach on any answer that is not a valid decision, and on any isolation breach."""

    title: ClassVar[str] = "invalid decisions"
    help: ClassVar[str] = "An answer is not a valid decision, or the new version tries to reach outside its process."

    kind: Literal["invalid_decisions"] = "invalid_decisions"

    def judge(self, evidence: Evidence, margins: Margins) -> Finding:
        record = evidence.canary
        count = record.invalid + record.breaches
        if count:
            reason = f"{record.invalid} invalid decisions, {record.breaches} isolation breaches: {record.last_error}"
            return self.found(Verdict.BREACH, reason, value=count, limit=1, n=record.decided)
        if record.decided == 0:
            return self.nothing_yet("decision")
        return self.found(Verdict.PASS, "all decisions are valid", value=0, limit=1, n=record.decided)


class Silence(Gate):
    """Breach when the canary has no decision on candles that the active version decided.

    Blind on as many candles if the host is at fault for some of them.
    """

    title: ClassVar[str] = "silence"
    help: ClassVar[str] = "The new version does not decide on candles on which the active version did."

    kind: Literal["silence"] = "silence"
    candles: int = Field(default=3, ge=1)

    def judge(self, evidence: Evidence, margins: Margins) -> Finding:
        silent = evidence.canary.silent_candles
        facts = {"value": silent, "limit": self.candles, "n": evidence.active.decided}
        if silent >= self.candles:
            reason = f"no decision on {silent} candles that the active version decided (limit {self.candles})"
            return self.found(Verdict.BREACH, reason, **facts)
        if evidence.canary.host_silent_candles >= self.candles:
            many = evidence.canary.host_silent_candles
            raise EvidenceUnavailable(f"no decision on {many} candles, {_host(evidence.canary)}")
        if evidence.active.decided == 0:
            return self.nothing_yet("decision of the active version")
        return self.found(Verdict.PASS, f"silent on {silent} candles", **facts)


def _host(record: Record) -> str:
    return f"but the host is at fault: {record.host_fault}"


_UNITS = {"w": "weeks", "d": "days", "h": "hours", "m": "minutes", "s": "seconds"}
_WORDS = re.compile(r"(?:\d+(?:\.\d+)?[wdhms])+")


def _in_words(value: object) -> object:
    """Read a text such as `3d`, `12h` or `1d12h`. Leave anything else to pydantic."""
    if not isinstance(value, str) or not _WORDS.fullmatch(value):
        return value
    parts = re.findall(r"([\d.]+)([wdhms])", value)
    try:
        return sum((timedelta(**{_UNITS[unit]: float(count)}) for count, unit in parts), timedelta(0))
    except OverflowError:
        return value


Duration = Annotated[
    timedelta,
    Field(gt=timedelta(0)),  # before the validator: only then pydantic names the limit in words
    BeforeValidator(_in_words),
    PlainSerializer(lambda span: span.total_seconds(), float, "json"),
    WithJsonSchema({"type": "number", "exclusiveMinimum": 0, "description": "seconds"}),
]


def duration_field(span: timedelta, what: str | None = None) -> Any:
    """Return a field with the default *span*, in seconds also in the JSON schema, where pydantic writes ISO 8601.

    Args:
        span: the default.
        what: describes the field.
    """
    described = None if what is None else f"seconds; {what}"
    return Field(default=span, description=described, json_schema_extra={"default": span.total_seconds()})


def format_duration(span: timedelta) -> str:
    """Format *span* for people in its largest unit: 45 s, 90 min, 36 h, 3.5 days or 3,018 days."""
    seconds = max(0.0, span.total_seconds())
    if seconds < 2 * 3_600:
        return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
    size, unit = (86_400, "days") if seconds >= 2 * 86_400 else (3_600, "h")
    number = seconds / size
    return f"{number:,.{0 if number >= 100 else 1}f}".removesuffix(".0") + f" {unit}"


def format_r(value: float) -> str:
    """Format R for people, with its sign: +1,204.50 R."""
    return f"{value:+,.2f} R"


def format_evidence(log10: float) -> str:
    """Format an e-value for people, given its logarithm: 0.32, 12.3, 1,290 or 10^7.5."""
    if log10 >= 6:
        return f"10^{log10:.1f}"
    e = 10**log10
    return f"{e:,.0f}" if e >= 100 else f"{e:.3g}"
