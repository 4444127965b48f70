"""All errors of this software: one tree, in which each class declares its fields and its message.

| family                | meaning                                               | API status     | CLI exit code |
|-----------------------|-------------------------------------------------------|----------------|---------------|
| `NotFound`            | the named thing does not exist                        | 404            | 4             |
| `Refused`             | it exists, but this is not allowed now                | 409            | 5             |
| `Invalid`             | the input itself is wrong                             | 422            | 2             |
| `Denied`              | the caller has no permission                          | 403 (401, 429) | 3             |
| `Untrusted`           | a version's code may not run                          | 409, 422       | 6             |
| `EvidenceUnavailable` | the facts for a verdict cannot be read: gates go blind | 503            | 1             |
| `RoutingUnavailable`, `SignalsUnavailable`, `KeysUnavailable`, `RevocationsUnavailable`: none | 503 | 1 |
| `DatabaseLocked`, `Unsettled`: none | 503 | 1 |
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from inspect import cleandoc
from string import Formatter
from typing import Annotated, Any, ClassVar, dataclass_transform

Lines = Annotated[Iterable[str], list]  # stored as a list, in the order given
Names = Annotated[Iterable[str], sorted]  # stored as a sorted list
OneLine = Annotated[str, lambda text: " ".join(text.split())]


@dataclass_transform(eq_default=False, field_specifiers=(field,))
class RolloutError(Exception):
    """Declare an error: annotated names are its fields and its arguments, in order.

    The first paragraph of a subclass's docstring is the template of its message: what was refused, and what would be
    allowed. The message is one line, in which semicolons join the sentences, each in lower case at its start.
    A subclass without a docstring keeps the message of its parent.
    """

    exit_code: ClassVar[int] = 1
    _template: ClassVar[str]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        own = cls.__doc__  # read now, since `dataclass` fills an empty one
        dataclass(eq=False, repr=False)(cls)
        if own is None and hasattr(cls, "_template"):
            return
        first = cleandoc(own or cls.__name__).split("\n\n")[0].replace("\n", " ")
        cls._template = "; ".join(each[0].lower() + each[1:] for each in first.removesuffix(".").split(". "))

    def __post_init__(self) -> None:
        for each in fields(self):  # type: ignore[arg-type]  # every subclass is a dataclass
            for convert in getattr(each.type, "__metadata__", ()):
                setattr(self, each.name, convert(getattr(self, each.name)))
        super().__init__(self._message())

    def _message(self) -> str:
        return _Template().vformat(self._template, (), vars(self))

    def __reduce__(self) -> tuple[Callable[..., "RolloutError"], tuple[Any, ...]]:
        """Pickle the fields: Exception would call the class with its message as the only argument."""
        return _restore, (type(self), self.args, vars(self))


def _restore(kind: type[RolloutError], args: tuple[Any, ...], facts: Mapping[str, Any]) -> RolloutError:
    error = kind.__new__(kind)
    error.args = args
    vars(error).update(facts)
    return error


def reason_of(error: BaseException) -> str:
    """Return the error's text as one printable line, or the name of its type if it has no text."""
    text = "".join(char if char.isprintable() else " " for char in str(error))
    return " ".join(text.split()) or type(error).__name__


class _Template(Formatter):
    """Show a list as `a, b`, with another separator as in `{names: or }`, and a time as ISO 8601."""

    def format_field(self, value: Any, format_spec: str) -> str:
        if isinstance(value, list):
            return (format_spec or ", ").join(str(each) for each in value) or "none"
        if isinstance(value, datetime) and not format_spec:
            return value.isoformat()
        return str(super().format_field(value, format_spec))


class NotFound(RolloutError):
    """The named thing does not exist."""

    exit_code = 4


class UnknownStrategy(NotFound):
    """No strategy {strategy_name!r}. Known strategies: {known}."""

    strategy_name: str
    known: Names = ()


class UnknownVersion(NotFound):
    """No version {version!r} of {strategy_name!r}. Known versions: {known}."""

    strategy_name: str
    version: str
    known: Names = ()


class UnknownRollout(NotFound):
    """No rollout {wanted}."""

    wanted: str


class NothingRecorded(NotFound):
    """The audit trail has no entry for {strategy_name!r} at {moment:%Y-%m-%d %H:%M} UTC or earlier."""

    strategy_name: str
    moment: datetime


class UnknownSymbol(NotFound):
    """No candles of {symbol!r}. Known symbols: {known}."""

    symbol: str
    known: Names = ()


class NoActiveVersion(NotFound):
    """{strategy_name!r} is closed: no version is active, so its users get none. Activate one first."""

    strategy_name: str


class NoCanary(NotFound):
    """{strategy_name!r} has no canary. Activate one first."""

    strategy_name: str


class UnknownPlan(NotFound):
    """No plan {name!r} of {strategy_name!r}. Known plans: {known}."""

    strategy_name: str
    name: str
    known: Names = ()


class UnknownProposal(NotFound):
    """No proposal {proposal_id!r}. See: rollout proposals."""

    proposal_id: str


class UnknownAlert(NotFound):
    """No alert {alert_id}. See: rollout alerts list."""

    alert_id: int


class UnknownReport(NotFound):
    """No report or comparison {wanted}. See: rollout reports, rollout comparisons STRATEGY."""

    wanted: str


class UnknownToken(NotFound):
    """No service token {token_id!r}. See: rollout token --list."""

    token_id: str


class UnknownFreeze(NotFound):
    """No freeze {freeze_id}. To list them: rollout freezes --all."""

    freeze_id: int


class UnknownStart(NotFound):
    """No scheduled start {wanted}."""

    wanted: str


class UnknownRace(NotFound):
    """No race {race_id!r}. To list them: rollout race status --all."""

    race_id: str


class NoRace(NotFound):
    """{strategy_name!r} has no open race. To start one: rollout race start {strategy_name} VERSION VERSION."""

    strategy_name: str


class UnknownToggle(NotFound):
    """No toggle {toggle!r} of {strategy_name!r}. Declared toggles: {known}. To change decisions, register a version."""

    strategy_name: str
    toggle: str
    known: Names = ()


class UnknownRule(NotFound):
    """No rule {number} of the toggle {toggle!r} of {strategy_name!r}. Rules: 1 to {rules}."""

    strategy_name: str
    toggle: str
    number: int
    rules: int


class UnknownSegment(NotFound):
    """No segment {segment!r}. Known segments: {known}."""

    segment: str
    known: Names = ()


class UnknownChannel(NotFound):
    """No alert channel {channel!r}. Known channels: {known}."""

    channel: str | None  # no name means any channel
    known: Names = ()

    def _message(self) -> str:
        if self.known:
            return super()._message()
        return f"no alert channel{f' {self.channel!r}' if self.channel else ''}; set ROLLOUT_ALERT_URLS"


class Refused(RolloutError):
    """The state does not allow this now."""

    exit_code = 5


class IllegalTransition(Refused):
    """Cannot move {current} -> {target}. Allowed: {allowed}."""

    current: str
    target: str
    allowed: Names
    because: str = ""

    def _message(self) -> str:
        why = f" ({self.because});" if self.because else ";"
        return super()._message().replace(";", why, 1)


class DuplicateVersion(Refused):
    """{strategy_name!r} already has a version {version!r}. Versions are never edited: choose another name."""

    strategy_name: str
    version: str


class DuplicateFingerprint(Refused):
    """{version!r} is the same build as {strategy_name!r} {existing!r} ({fingerprint:.12}).
    Change its code, config, symbols or timeframe.
    """

    strategy_name: str
    version: str
    existing: str
    fingerprint: str


class Quarantined(Refused):
    """{strategy_name!r} {version!r} was rolled back at {quarantined_at:%Y-%m-%d %H:%M} UTC and is quarantined.
    Give an override reason to ramp it again.
    """

    strategy_name: str
    version: str
    quarantined_at: datetime


class HarmfulInShadow(Refused):
    """{strategy_name!r} {version!r} has done harm in shadow already: {reason}.
    Register a better version, or give an override reason to start its rollout all the same.
    """

    strategy_name: str
    version: str
    reason: OneLine


class RolloutOpen(Refused):
    """A rollout of {strategy_name!r} {version!r} is {state}. {instead}."""

    strategy_name: str
    version: str
    state: str
    instead: str


class StartScheduled(Refused):
    """{strategy_name!r} {version!r} is scheduled to start at {start_at:%Y-%m-%d %H:%M} UTC. Cancel that start first."""

    strategy_name: str
    version: str
    start_at: datetime


class RaceOpen(Refused):
    """{strategy_name!r} has an open race since {started_at:%Y-%m-%d}. Enter the versions into it, or close it."""

    strategy_name: str
    started_at: datetime


class RaceClosed(Refused):
    """The race of {strategy_name!r} was closed at {closed_at:%Y-%m-%d %H:%M} UTC. Start another one."""

    strategy_name: str
    closed_at: datetime


class CannotRace(Refused):
    """{strategy_name!r} {version!r} cannot be in the race: {problem}."""

    strategy_name: str
    version: str
    problem: OneLine


class ReleaseClosed(Refused):
    """Cannot {what} {strategy_name!r}: {reason}. Wait until then, or {instead}."""

    what: str
    strategy_name: str
    reason: OneLine
    instead: str


class StillDeciding(Refused):
    """{strategy_name!r} cannot be closed while other versions decide: {versions}. Retire them first."""

    strategy_name: str
    versions: Names


class PositionsOpen(Refused):
    """{strategy_name!r} {version!r} manages {number} open positions.
    Let them drain, hand them over, or name with a reason where they go: a version, or flatten.
    """

    strategy_name: str
    version: str
    number: int


class NoPositions(Refused):
    """{strategy_name!r} {version!r} manages no open positions that this would change.
    To see them: rollout positions {strategy_name}.
    """

    strategy_name: str
    version: str


class HandOverRefused(Refused):
    """Cannot hand positions of {strategy_name!r} {version!r} over to {to_version}: {problem}. Allowed: {allowed}."""

    strategy_name: str
    version: str
    to_version: str
    problem: OneLine
    allowed: Lines


class LostRace(Refused):
    """{what} changed meanwhile (generation {expected} -> {found}). Read it again, then decide."""

    what: str
    expected: int
    found: int | None


class NotReplayed(Refused):
    """{strategy_name!r} {version!r} and the active version are not both replayed in this period. Run: {advice}."""

    strategy_name: str
    version: str
    advice: str  # the command that replays them


class NotAwaiting(Refused):
    """Cannot {what}: the rollout is {state}. Allowed when {allowed: or }."""

    what: str
    state: str
    allowed: Names


class CannotExclude(Refused):
    """Cannot exclude {symbol} from the canary of {strategy_name!r}: {problem}. Allowed: {allowed}."""

    strategy_name: str
    symbol: str
    problem: str
    allowed: Names


class AlreadyDone(Refused):
    """{actor!r} has used idempotency key {idempotency_key!r} for a change that is done.
    Read the current state, or use another key.
    """

    actor: str
    idempotency_key: str


class UnarmedPlan(Refused):
    """No armed gate: every gate of the plan is dry_run. Arm at least one."""


class PlanNotAllowed(Refused):
    """The policy of {strategy_name!r} allows these plans only: {allowed}.
    Use one of them, or give an override reason.
    """

    strategy_name: str
    allowed: Names


class DeclarationRefused(Refused):
    """Nothing was applied: {problems:; }."""

    problems: Lines  # each names an object of the file


class ProposalDecided(Refused):
    """Proposal {proposal_id} was {decision} by {by} at {at:%Y-%m-%d %H:%M} UTC. Ask for a new proposal."""

    proposal_id: str
    decision: str
    by: str
    at: datetime


class TooManyProposals(Refused):
    """{waiting} proposals for {strategy_name!r} wait for a person already. Have one of them decided first."""

    strategy_name: str
    waiting: int


class FixedForLife(Refused):
    """The {field} of {strategy_name!r} cannot be changed: it is {fixed!r}, requested was {asked!r}."""

    strategy_name: str
    field: str
    fixed: object
    asked: object


class Contradicted(Refused):
    """Trade {trade_id!r} was reported with {field} {known}, now with {reported}.
    A report cannot be changed, so the whole batch was rejected.
    """

    trade_id: str
    field: str
    known: object
    reported: object


class GateRefused(Refused):
    """{strategy_name!r} {version!r} is refused: {failures:; }."""

    strategy_name: str
    version: str
    failures: Lines  # of the registration gate: each names the check and the number of candles


class NothingToRollBack(Refused):
    """{strategy_name!r} has no canary and no rollout. To undo an activation, name the active version ({active})."""

    strategy_name: str
    version: str | None  # no name means the one on its way
    active: str | None

    def _message(self) -> str:
        if self.version is None:
            found = f"{self.strategy_name!r} has no canary and no rollout"
        elif self.version == self.active:
            return f"{self.version!r} cannot be undone: nothing was active before it; activate another version"
        else:
            found = f"{self.version!r} cannot be undone"
        return f"{found}; to undo an activation, name the active version ({self.active or 'there is none'})"


class AlreadyRolledBack(NothingToRollBack):
    """{done!r} was rolled back already, at {at} by {by}: no user gets it. The active version is {active}."""

    done: str
    at: datetime
    by: str

    def _message(self) -> str:
        when = f"{self.at:%Y-%m-%d %H:%M} UTC by {self.by}"
        stays = f"the active version is {self.active or 'none'}"
        return f"{self.strategy_name} {self.done} was rolled back already, at {when}: no user gets it; {stays}"


class Incomparable(Refused):
    """{strategy_name!r} {version!r} cannot be measured against active {active!r}: {difference}."""

    strategy_name: str
    version: str
    active: str
    difference: str  # two versions that share hardly any candle give no evidence about each other


class InvariantRefused(Refused):
    """The database refuses this: {constraint}."""

    constraint: str  # or trigger


class RetiredVersion(Refused):
    """{strategy_name!r} {version!r} is retired and makes no decisions. Activate it, or register a new version."""

    strategy_name: str
    version: str


class SchemaOutdated(Refused):
    """Database {database} is at schema {found}, needed is {needed}. Run: rollout db upgrade."""

    database: str
    found: str | None  # missing for an empty database
    needed: str
    ahead: bool = field(default=False, kw_only=True)  # the schema is of a newer release

    def _message(self) -> str:
        state = f"is at schema {self.found}" if self.found else "has no schema"
        do = "install the release that made it, or a newer one" if self.ahead else "run: rollout db upgrade"
        return f"database {self.database} {state}, needed is {self.needed}; {do}"


class BackupRefused(Refused):
    """{what}: {why}."""

    what: str
    why: str


class Unconfirmed(Refused):
    """Not confirmed, nothing was changed: {question}. --yes skips the question."""

    question: str


class RouterClosed(Refused):
    """This router is closed and no longer follows changes. Open another."""


class SignalCursorLost(Refused):
    """Cannot continue after signal {cursor}: {why}. Start without a cursor, and enter only on signals still valid.

    The reader may have missed signals. Its open positions need a look before it goes on.
    """

    cursor: str
    why: str


class ExitsLost(Refused):
    """Cannot continue after exit {since}: the newest is {newest}. Start at 0 and pass over what you have closed.

    The database was restored from a backup. It announces exits again that the reader has seen, and others under ids
    that the reader has passed.
    """

    since: int
    newest: int


class SignalFeedClosed(Refused):
    """This signal feed is closed. Open a new one."""


class Invalid(RolloutError):
    """The input itself is wrong."""

    exit_code = 2


class InvalidPercent(Invalid):
    """{percent!r} is not a rollout percent. Allowed: 0.00 to 100.00, two decimals at most."""

    percent: object


class InvalidConfig(Invalid):
    """Config of {entry_point} is not valid: {problems:; }."""

    entry_point: str
    problems: Lines  # each names its field


class InvalidPlan(Invalid):
    """Plan is not valid: {problems:; }."""

    problems: Lines


class InvalidDeclaration(Invalid):
    """{source} is not valid: {problems:; }."""

    source: str
    problems: Lines  # each names its line and field


class InvalidToggles(Invalid):
    """The toggles of {entry_point!r} are refused: {problems:; }."""

    entry_point: str
    problems: Lines


class InvalidToggle(Invalid):
    """Toggle {toggle!r}: {problem}."""

    toggle: str
    problem: str


class NothingToReplay(Invalid):
    """No candle that {version!r} can be replayed on opened from {start} to {end}. {feed}."""

    version: str
    start: datetime
    end: datetime
    feed: str  # which candles the feed has, or how many the version needs before its first decision


class InvalidTimeframe(Invalid):
    """{timeframe!r} is not a timeframe. Allowed: {allowed}."""

    timeframe: str
    allowed: Lines


class InvalidEntryPoint(Invalid):
    """Cannot load strategy {entry_point!r}: {why}."""

    entry_point: str
    why: str


class InvalidDecision(Invalid):
    """{why}."""

    why: str  # the version's answer is not a decision: NaN, a confidence outside 0..1, a wrong type


class InvalidRow(Invalid):
    """{source}, row {row}: {problem}."""

    source: str
    problem: OneLine
    row: int | None = None  # counts from 1, a header line included

    def _message(self) -> str:
        return f"{self.source}{f', row {self.row}' if self.row is not None else ''}: {self.problem}"


class InvalidCandles(InvalidRow):
    """A source of candles cannot be read, or holds impossible candles."""


class InvalidReport(InvalidRow):
    """The platform reports impossible trades or users. The problem names the field."""


class InvalidExport(InvalidRow):
    """A line is not an event of an exported audit trail, or was changed after the export."""


class InvalidName(Invalid):
    """{name!r} is not a {what}. Allowed: {allowed}."""

    what: str
    name: object
    allowed: str


class InvalidSetting(Invalid):
    """{setting} = {value!r} is not valid. Allowed: {allowed}."""

    setting: str
    value: object
    allowed: str


class NaiveTime(Invalid):
    """{what} has no time zone. Give one, as in 2026-01-31T12:00Z."""

    what: str


class TimeOutOfRange(Invalid):
    """{what} {moment} is out of range. Allowed: the years {years[0]} to {years[1]}."""

    what: str
    moment: datetime
    years: tuple[int, int]


class InvalidPeriod(Invalid):
    """The period {start} to {end} is empty. Allowed: start before end."""

    start: datetime
    end: datetime


class CapitalUnknown(Refused):
    """Cannot add users to a canary of {strategy_name!r}: {problem}, or give an override reason."""

    strategy_name: str
    problem: str


class InvalidFreeze(Invalid):
    """A freeze from {start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC is refused: {problem}."""

    start: datetime
    end: datetime
    problem: str


class InvalidRace(Invalid):
    """A race is refused: {problem}."""

    problem: str


class InvalidExclusion(Invalid):
    """A change of users' exclusions is refused: {problem}. Allowed: {allowed}."""

    problem: str
    allowed: str


class InvalidStartTime(Invalid):
    """A rollout cannot start at {start_at:%Y-%m-%d %H:%M} UTC: it is {now:%Y-%m-%d %H:%M} UTC now.
    Allowed: a time within the next {days} days.
    """

    start_at: datetime
    now: datetime
    days: int


class MissingReason(Invalid):
    """Cannot {what} {strategy_name!r} {version!r} without a reason: all users get it.
    Say in a few words why it is good enough for them.
    """

    what: str
    strategy_name: str
    version: str


class MissingExtra(Invalid):
    """{what} needs an optional dependency: pip install 'strategy-rollout[{extra}]'."""

    what: str
    extra: str


class Denied(RolloutError):
    """The caller has no permission."""

    exit_code = 3


class InvalidToken(Denied):
    """The token is not accepted: {why}."""

    why: str  # must not quote the token


class Forbidden(Denied):
    """{name!r} may not: {why}."""

    name: str
    why: str


class FourEyes(Denied):
    """{name!r} started the rollout of {strategy_name!r} {version!r}: another owner must do this.
    Pausing and rolling back need no second owner.
    """

    strategy_name: str
    version: str
    name: str


class OwnProposal(Denied):
    """{name!r} proposed this: another person must approve it. Rejecting it needs nobody else."""

    name: str


class TokenNeeded(Denied):
    """An assistant without a token may only read. Set ROLLOUT_MCP_TOKEN to an owner's token."""


class TooManyCalls(Denied):
    """An assistant may ask {limit} times a minute. Try again in {retry_after_s} s. Rollbacks are not limited."""

    limit: int
    retry_after_s: int


class TooManyFailures(Denied):
    """Too many invalid tokens. Try again in {retry_after_s} s, or now with a valid one."""

    retry_after_s: int


class Untrusted(RolloutError):
    """A version's code may not run."""

    exit_code = 6


class FingerprintMismatch(Untrusted):
    """{strategy_name!r} {version!r} is not the build that was registered (changed: {changed}).
    Register it as a new version.
    """

    strategy_name: str
    version: str
    changed: Names  # parts of the fingerprint, such as `source` or `numpy`


class AnswersMismatch(Untrusted):
    """{strategy_name!r} {version!r} may not run: not the same answers on this machine (first on {window}).
    Run it on a machine like the one that registered it, or register it as a new version.
    """

    strategy_name: str
    version: str
    window: str  # symbol, candle and both answers


class IsolationBreach(Untrusted):
    """Blocked by isolation: {tried}."""

    tried: str  # the audit event and its target, such as `open for writing: out.txt`


class IsolationUnavailable(Untrusted):
    """Versions may only run isolated by {required}, and this machine has: {available}.
    See SECURITY.md, or change ROLLOUT_ISOLATION_REQUIRED.
    """

    required: str
    available: str  # the level, with the reason for each missing layer


class StrategyFailed(Untrusted):
    """{what}."""

    what: str  # in one line, the exception of the version's own code, or how its process died


class NotTrainable(Refused):
    """{strategy_name!r} has no version that can be trained again. Allowed: a strategy with a version of {allowed}."""

    strategy_name: str
    allowed: str  # the entry point that our training knows


class TrainingFailed(Refused):
    """No model was trained: {why}. Allowed: other candles, another end of training, or another seed."""

    why: str


class StrategyOverdue(StrategyFailed):
    """{what}.

    Its worker was not ready in time. The version may be at fault, or a host that is too slow.
    """


class RoutingUnavailable(RolloutError):
    """Routing cannot be read from {source}: {cause}."""

    source: str  # the address without secrets
    cause: str


class SignalsUnavailable(RolloutError):
    """Signals cannot be read from {source}: {cause}."""

    source: str  # the address without secrets
    cause: str


class EvidenceUnavailable(RolloutError):
    """{cause}."""

    cause: str  # why the facts for a gate cannot be read now: neither a pass nor a failure


class FeedUnavailable(EvidenceUnavailable):
    """{cause}.

    The server of a feed gives no usable answer for any symbol.
    """


class KeysUnavailable(RolloutError):
    """No token can be verified now: {cause}."""

    cause: str  # why the keys are unknown and cannot be fetched


class RevocationsUnavailable(RolloutError):
    """The list of revoked tokens does not answer, so this service token can only roll back now. Try again."""


class DatabaseLocked(RolloutError):
    """The database is locked by {holders: and }. End it, or wait until it is done, and repeat."""

    holders: Lines  # process id, command line and user of each
    pids: Annotated[Iterable[int], list] = ()

    def _message(self) -> str:
        if self.holders:
            return super()._message()
        return "the database is locked by a process that cannot be seen from here; find it, for example with: lsof FILE"


class Unsettled(RolloutError):
    """The change may or may not have been saved ({cause}). Read the current state before you repeat it."""

    cause: str
