"""The one tree of errors: each carries its facts as attributes and says what would be allowed.

RolloutError
├── NotFound            what was named does not exist            (API 404, exit code 4)
│   ├── UnknownStrategy, UnknownVersion, UnknownRollout, UnknownSymbol, NoActiveVersion, NoCanary, NothingRecorded,
│   │   UnknownAlert, UnknownChannel
├── Refused             it exists, but this is not allowed now   (API 409, exit code 5)
│   ├── IllegalTransition, DuplicateVersion, DuplicateFingerprint, Quarantined, RolloutOpen, LostRace, NotAwaiting,
│   │   UnarmedPlan, GateRefused, NothingToRollBack, AlreadyDone, Incomparable, InvariantRefused, RetiredVersion,
│   │   SchemaOutdated, Unconfirmed, FixedForLife, Contradicted, RouterClosed, BackupRefused
├── Invalid             the input itself is wrong                (API 422, exit code 2)
│   ├── InvalidPercent, InvalidConfig, InvalidPlan, InvalidTimeframe, InvalidEntryPoint, InvalidDecision,
│   │   InvalidRow (InvalidCandles, InvalidReport, InvalidExport), InvalidName, InvalidSetting, InvalidPeriod,
│   │   NaiveTime, TimeOutOfRange, MissingExtra
├── Denied              whoever asks may not                     (API 403, exit code 3)
│   ├── InvalidToken (401), Forbidden, FourEyes, TooManyFailures (429)
├── Untrusted           a version's code may not run             (exit code 6)
│   ├── FingerprintMismatch, IsolationBreach, StrategyFailed
├── RoutingUnavailable  a router cannot read who is routed where
├── EvidenceUnavailable the facts a verdict needs cannot be had: blind, never a pass nor a failure
│   ├── FeedUnavailable
├── KeysUnavailable     who asks cannot be known now             (API 503)
└── Unsettled           whether a change was kept is not known   (API 503)
"""

from collections.abc import Iterable
from datetime import datetime


class RolloutError(Exception):
    """Anything this software refuses; its text is one line that an owner understands."""

    exit_code = 1


class NotFound(RolloutError):
    exit_code = 4


class UnknownStrategy(NotFound):
    def __init__(self, strategy_name: str, known: Iterable[str] = ()) -> None:
        self.strategy_name = strategy_name
        self.known = sorted(known)
        super().__init__(f"no strategy {strategy_name!r}; {_known('strategies', self.known)}")


class UnknownVersion(NotFound):
    def __init__(self, strategy_name: str, version: str, known: Iterable[str] = ()) -> None:
        self.strategy_name = strategy_name
        self.version = version
        self.known = sorted(known)
        super().__init__(f"no version {version!r} of {strategy_name!r}; {_known('versions', self.known)}")


class UnknownRollout(NotFound):
    def __init__(self, wanted: str) -> None:
        self.wanted = wanted
        super().__init__(f"no rollout {wanted}")


class NothingRecorded(NotFound):
    def __init__(self, strategy_name: str, moment: datetime) -> None:
        self.strategy_name = strategy_name
        self.moment = moment
        super().__init__(f"the audit trail tells nothing of {strategy_name!r} at {moment:%Y-%m-%d %H:%M} UTC or before")


class UnknownSymbol(NotFound):
    def __init__(self, symbol: str, known: Iterable[str] = ()) -> None:
        self.symbol = symbol
        self.known = sorted(known)
        super().__init__(f"no candles of {symbol!r}; {_known('symbols', self.known)}")


class NoActiveVersion(NotFound):
    def __init__(self, strategy_name: str) -> None:
        self.strategy_name = strategy_name
        super().__init__(f"{strategy_name!r} has no active version; activate one first")


class NoCanary(NotFound):
    def __init__(self, strategy_name: str) -> None:
        self.strategy_name = strategy_name
        super().__init__(f"{strategy_name!r} has no canary; activate one first")


class UnknownAlert(NotFound):
    def __init__(self, alert_id: int) -> None:
        self.alert_id = alert_id
        super().__init__(f"no alert {alert_id}; see: rollout alerts list")


class UnknownChannel(NotFound):
    """*channel* is what was named, None for whichever there is."""

    def __init__(self, channel: str | None, known: Iterable[str] = ()) -> None:
        self.channel = channel
        self.known = sorted(known)
        wanted = f"no alert channel {channel!r}" if channel else "no alert channel"
        super().__init__(f"{wanted}; {_known('channels', self.known) if self.known else 'set ROLLOUT_ALERT_URLS'}")


class Refused(RolloutError):
    exit_code = 5


class IllegalTransition(Refused):
    def __init__(self, current: str, target: str, allowed: Iterable[str], because: str = "") -> None:
        self.current = current
        self.target = target
        self.allowed = sorted(allowed)
        why = f" ({because})" if because else ""
        super().__init__(f"cannot move {current} -> {target}{why}; allowed: {', '.join(self.allowed) or 'nothing'}")


class DuplicateVersion(Refused):
    def __init__(self, strategy_name: str, version: str) -> None:
        self.strategy_name = strategy_name
        self.version = version
        super().__init__(
            f"{strategy_name!r} already has a version {version!r}; versions are never edited: choose another name"
        )


class DuplicateFingerprint(Refused):
    def __init__(self, strategy_name: str, version: str, existing: str, fingerprint: str) -> None:
        self.strategy_name = strategy_name
        self.version = version
        self.existing = existing
        self.fingerprint = fingerprint
        super().__init__(
            f"{version!r} is the same build as {strategy_name!r} {existing!r} ({fingerprint[:12]}); "
            "change its code, config, symbols or timeframe"
        )


class Quarantined(Refused):
    def __init__(self, strategy_name: str, version: str, quarantined_at: datetime) -> None:
        self.strategy_name = strategy_name
        self.version = version
        self.quarantined_at = quarantined_at
        super().__init__(
            f"{strategy_name!r} {version!r} was rolled back at {quarantined_at:%Y-%m-%d %H:%M} UTC and is quarantined; "
            "give an override reason to ramp it again"
        )


class RolloutOpen(Refused):
    def __init__(self, strategy_name: str, version: str, state: str, allowed: str) -> None:
        self.strategy_name = strategy_name
        self.version = version
        self.state = state
        super().__init__(f"a rollout of {strategy_name!r} {version!r} is {state}; {allowed}")


class LostRace(Refused):
    def __init__(self, what: str, expected: int, found: int | None) -> None:
        self.what = what
        self.expected = expected
        self.found = found
        super().__init__(f"{what} changed meanwhile (generation {expected} -> {found}); read it again, then decide")


class NotAwaiting(Refused):
    def __init__(self, what: str, state: str, allowed: Iterable[str]) -> None:
        self.state = state
        self.allowed = sorted(allowed)
        super().__init__(f"cannot {what}: the rollout is {state}; allowed when {' or '.join(self.allowed)}")


class AlreadyDone(Refused):
    """A wish that came again under its idempotency key; what it wished was done the first time."""

    def __init__(self, actor: str, idempotency_key: str) -> None:
        self.actor = actor
        self.idempotency_key = idempotency_key
        super().__init__(
            f"{actor!r} was heard under idempotency key {idempotency_key!r} already, and it was done then; "
            "read how it stands now, or give another key"
        )


class UnarmedPlan(Refused):
    def __init__(self) -> None:
        super().__init__("no armed gate: every gate of the plan is dry_run; arm at least one")


class FixedForLife(Refused):
    def __init__(self, strategy_name: str, field: str, fixed: object, asked: object) -> None:
        self.strategy_name = strategy_name
        self.field = field
        self.fixed = fixed
        self.asked = asked
        super().__init__(f"the {field} of {strategy_name!r} is fixed for life: it is {fixed!r}, asked was {asked!r}")


class Contradicted(Refused):
    """The platform reports a trade otherwise than it has reported it before."""

    def __init__(self, trade_id: str, field: str, known: object, reported: object) -> None:
        self.trade_id = trade_id
        self.field = field
        self.known = known
        self.reported = reported
        super().__init__(
            f"trade {trade_id!r} was reported with {field} {known}, now with {reported}; a report is never changed, "
            "and nothing of this batch was taken in"
        )


class GateRefused(Refused):
    """The registration gate found the version unfit; *failures* says in what, and on how many candles."""

    def __init__(self, strategy_name: str, version: str, failures: Iterable[str]) -> None:
        self.strategy_name = strategy_name
        self.version = version
        self.failures = list(failures)
        super().__init__(f"{strategy_name!r} {version!r} is refused: {'; '.join(self.failures)}")


class NothingToRollBack(Refused):
    """*version* is what was named, None for whatever is on its way; *active* is what serves now."""

    def __init__(self, strategy_name: str, version: str | None, active: str | None) -> None:
        self.strategy_name = strategy_name
        self.version = version
        self.active = active
        if version is not None and version == active:
            super().__init__(f"{version!r} cannot be undone: nothing was active before it; activate another version")
            return
        found = f"{version!r} cannot be undone" if version else f"{strategy_name!r} has no canary and no rollout"
        super().__init__(f"{found}; to undo an activation, name the active version ({active or 'there is none'})")


class Incomparable(Refused):
    """Two versions that never, or hardly ever, decide on the same candles give no evidence about each other."""

    def __init__(self, strategy_name: str, version: str, active: str, difference: str) -> None:
        self.strategy_name = strategy_name
        self.version = version
        self.active = active
        super().__init__(f"{strategy_name!r} {version!r} cannot be measured against active {active!r}: {difference}")


class InvariantRefused(Refused):
    """The database itself refused: a constraint or trigger that holds whatever the code does."""

    def __init__(self, constraint: str) -> None:
        self.constraint = constraint
        super().__init__(f"the database refuses this: {constraint}")


class RetiredVersion(Refused):
    def __init__(self, strategy_name: str, version: str) -> None:
        self.strategy_name = strategy_name
        self.version = version
        super().__init__(f"{strategy_name!r} {version!r} is retired and decides nothing; activate it, or register anew")


class SchemaOutdated(Refused):
    """*found*: the revision that the database stands at, None when it is empty or not there."""

    def __init__(self, database: str, found: str | None, needed: str, *, ahead: bool = False) -> None:
        self.database = database
        self.found = found
        self.needed = needed
        self.ahead = ahead
        state = f"is at schema {found}" if found else "has no schema"
        do = "install the release that made it, or a newer one" if ahead else "run: rollout db upgrade"
        super().__init__(f"database {database} {state}, needed is {needed}; {do}")


class BackupRefused(Refused):
    def __init__(self, what: str, why: str) -> None:
        self.what = what
        self.why = why
        super().__init__(f"{what}: {why}")


class Unconfirmed(Refused):
    def __init__(self, question: str) -> None:
        self.question = question
        super().__init__(f"not confirmed, nothing was changed: {question}; --yes goes on without asking")


class RouterClosed(Refused):
    def __init__(self) -> None:
        super().__init__("this router is closed and knows of no change any more; open another")


class Invalid(RolloutError):
    exit_code = 2


class InvalidPercent(Invalid):
    def __init__(self, percent: object) -> None:
        self.percent = percent
        super().__init__(f"{percent!r} is not a rollout percent; allowed: 0.00 to 100.00, two decimals at most")


class InvalidConfig(Invalid):
    """*problems*: one line per field, each naming it."""

    def __init__(self, entry_point: str, problems: Iterable[str]) -> None:
        self.entry_point = entry_point
        self.problems = list(problems)
        super().__init__(f"config of {entry_point} is not valid: {'; '.join(self.problems)}")


class InvalidPlan(Invalid):
    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        super().__init__(f"plan is not valid: {'; '.join(self.problems)}")


class InvalidTimeframe(Invalid):
    def __init__(self, timeframe: str, allowed: Iterable[str]) -> None:
        self.timeframe = timeframe
        self.allowed = list(allowed)
        super().__init__(f"{timeframe!r} is not a timeframe; allowed: {', '.join(self.allowed)}")


class InvalidEntryPoint(Invalid):
    def __init__(self, entry_point: str, why: str) -> None:
        self.entry_point = entry_point
        self.why = why
        super().__init__(f"cannot load strategy {entry_point!r}: {why}")


class InvalidDecision(Invalid):
    """What a version returned is not a decision (NaN, confidence outside 0..1, wrong type)."""


class InvalidRow(Invalid):
    """One problem of one source; *row* counts from 1 and includes a header line where there is one."""

    def __init__(self, source: str, problem: str, row: int | None = None) -> None:
        self.source = source
        self.problem = " ".join(problem.split())  # a line, whatever it quotes
        self.row = row
        super().__init__(f"{source}{f', row {row}' if row is not None else ''}: {self.problem}")


class InvalidCandles(InvalidRow):
    """A source of candles that cannot be read, or holds what no candle can be."""


class InvalidReport(InvalidRow):
    """What the platform reports of its trades or users is not what a report can be; the problem names the field."""


class InvalidExport(InvalidRow):
    """A line that is no event of an exported audit trail, or no more the one that was exported."""


class InvalidName(Invalid):
    def __init__(self, what: str, name: object, allowed: str) -> None:
        self.what = what
        self.name = name
        super().__init__(f"{name!r} is not a {what}; allowed: {allowed}")


class InvalidSetting(Invalid):
    def __init__(self, setting: str, value: object, allowed: str) -> None:
        self.setting = setting
        self.value = value
        super().__init__(f"{setting} = {value!r} is not valid; allowed: {allowed}")


class NaiveTime(Invalid):
    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(f"{what} has no time zone; give an aware time (UTC)")


class TimeOutOfRange(Invalid):
    def __init__(self, what: str, moment: datetime, years: tuple[int, int]) -> None:
        self.what = what
        self.moment = moment
        super().__init__(f"{what} {moment.isoformat()} is out of range; allowed: the years {years[0]} to {years[1]}")


class InvalidPeriod(Invalid):
    def __init__(self, start: datetime, end: datetime) -> None:
        self.start = start
        self.end = end
        super().__init__(f"the period {start.isoformat()} to {end.isoformat()} is empty; allowed: start before end")


class MissingExtra(Invalid):
    def __init__(self, what: str, extra: str) -> None:
        self.extra = extra
        super().__init__(f"{what} needs an optional dependency: pip install 'strategy-rollout[{extra}]'")


class Denied(RolloutError):
    exit_code = 3


class InvalidToken(Denied):
    def __init__(self, why: str) -> None:
        self.why = why  # never quotes the token
        super().__init__(f"the token is not accepted: {why}")


class Forbidden(Denied):
    def __init__(self, name: str, why: str) -> None:
        self.name = name
        super().__init__(f"{name!r} may not: {why}")


class FourEyes(Denied):
    def __init__(self, strategy_name: str, version: str, name: str) -> None:
        self.strategy_name = strategy_name
        self.version = version
        self.name = name
        super().__init__(
            f"{name!r} started the rollout of {strategy_name!r} {version!r}: another owner must say this; "
            "to pause it or to roll it back needs nobody else"
        )


class TooManyFailures(Denied):
    def __init__(self, retry_after_s: int) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(f"too many tokens were not accepted; try again in {retry_after_s} s, or with a valid one now")


class Untrusted(RolloutError):
    exit_code = 6


class FingerprintMismatch(Untrusted):
    """*changed*: the parts that differ from what was registered (`source`, `numpy`, ...)."""

    def __init__(self, strategy_name: str, version: str, changed: Iterable[str]) -> None:
        self.strategy_name = strategy_name
        self.version = version
        self.changed = sorted(changed)
        super().__init__(
            f"{strategy_name!r} {version!r} is not the build that was registered "
            f"(changed: {', '.join(self.changed)}); register it as a new version"
        )


class IsolationBreach(Untrusted):
    """*tried*: the audit event and its target, such as `open for writing: out.txt`."""

    def __init__(self, tried: str) -> None:
        self.tried = tried
        super().__init__(f"a version may not touch the outside: {tried}")


class StrategyFailed(Untrusted):
    """A version's own code raised or its process died; *what* is the exception in a line."""

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(what)


class RoutingUnavailable(RolloutError):
    """*source*: the address, without a secret; *cause*: what it said, in a line."""

    def __init__(self, source: str, cause: str) -> None:
        self.source = source
        self.cause = cause
        super().__init__(f"routing cannot be read from {source}: {cause}")


class EvidenceUnavailable(RolloutError):
    """A gate's facts cannot be had now; *cause* says which and why."""

    def __init__(self, cause: str) -> None:
        self.cause = cause
        super().__init__(cause)


class FeedUnavailable(EvidenceUnavailable):
    """The server of a feed answers nothing that can be used, whichever symbol it is asked for."""


class KeysUnavailable(RolloutError):
    """No key is known that could verify a token, and none can be fetched now; *cause* says why."""

    def __init__(self, cause: str) -> None:
        self.cause = cause
        super().__init__(f"no token can be verified now: {cause}")


class Unsettled(RolloutError):
    def __init__(self, cause: str) -> None:
        self.cause = cause
        super().__init__(f"this may be done or not ({cause}); read how it stands before you wish it again")


def _known(what: str, names: list[str]) -> str:
    return f"known {what}: {', '.join(names)}" if names else f"there are no {what} yet"
