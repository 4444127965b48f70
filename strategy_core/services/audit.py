"""Queries on the audit trail: events, the state at a moment, rollout timelines, verification and signed export."""

import json
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from sqlalchemy import Engine
from sqlmodel import Session

from strategy_core.domain import audit as audit_domain
from strategy_core.domain.alerts import AUDIT_BROKEN, Severity
from strategy_core.domain.audit import Chain, ChainBreak, Columns, Replay, values_digest
from strategy_core.domain.errors import (
    InvalidEntryPoint,
    InvalidExport,
    InvalidSetting,
    InvalidToggle,
    NothingRecorded,
    RolloutError,
    UnknownStrategy,
)
from strategy_core.domain.exclusion_replay import ExclusionReplay, UsersChanged, last_stages
from strategy_core.domain.lifecycle import utc
from strategy_core.domain.release_times import ALL_STRATEGIES
from strategy_core.domain.toggles import rule_facts
from strategy_core.isolation.fingerprint import digest_of
from strategy_core.services.evidence import in_a_line
from strategy_core.store import audit, rollouts, toggles, user_exclusions, versions
from strategy_core.store.alerts import find_alerts, raise_alert
from strategy_core.store.audit import EventFilter
from strategy_core.store.engine import reading, snapshot, transaction
from strategy_core.store.tables import AlertOutbox, AuditEvent, GateVerdict, Rollout, StrategyRow
from strategy_core.strategies.loading import resolve

if TYPE_CHECKING:  # a tenth of a second, which every command would wait for
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_FACTS = ("active", "canary", "percent", "rollout", "excluded")


class ExportFormat(StrEnum):
    JSONL = "jsonl"  # exact: can be verified without the database
    CSV = "csv"  # for people and their spreadsheets


@dataclass(frozen=True, slots=True)
class StateAt:
    """The versions that served users at a moment, as the trail records it.

    Attributes:
        rollout: the open rollout's state and stage index.
        excluded: symbols that the canary did not serve.
        event: the newest change at that moment.
        made_by: by fact (active, canary, percent, rollout, excluded), the change that set it, if the trail has one.
    """

    strategy_name: str
    at: datetime
    active: str | None
    canary: str | None
    percent: float
    rollout: Mapping[str, Any] | None
    excluded: Sequence[str]
    event: AuditEvent
    made_by: Mapping[str, AuditEvent]


@dataclass(frozen=True, slots=True)
class TimelineEntry:
    """One entry of a rollout's timeline: a gate verdict that changed, a change, or an alert."""

    at: datetime
    told: GateVerdict | AuditEvent | AlertOutbox


_NEXT_FOR_EVENTS = "Restore a backup, or compare with an earlier export: rollout audit verify --export FILE"
_NEXT_FOR_A_ROW = "Compare it with a backup, and find out who wrote to the database"
_NEXT_FOR_A_BUILD = "Take it out of use, and register it again as a new version"
_KEY_SETTING = "ROLLOUT_AUDIT_KEY_FILE"
_BATCH = 500  # verdicts that one query looks for
_MOST_ROWS = 20  # exclusions that are named one by one
_EXPORT = "audit-"  # how the names of nightly exports begin
_SIGNATURE = '{"signature":'
_PURPOSE = b"strategy-rollout audit export, version 1\n"  # no signature for another purpose is valid here
_UNREADABLE = (ValueError, TypeError, AttributeError, ArithmeticError, RecursionError)  # other software wrote it


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A row that does not follow from the audit events, and what to do about it.

    Attributes:
        row: the version, the rollout id, or the strategy.
        problem: continues a sentence that begins with table and row.
    """

    table: str
    row: str
    problem: str
    next_step: str = _NEXT_FOR_A_ROW


@dataclass(frozen=True, slots=True)
class Trail:
    """One strategy's chain of audit events: their number, the hash of the newest, and what does not hold.

    Attributes:
        breaks: events that do not follow from the ones before them.
        mismatches: rows that do not follow from the events.
    """

    strategy_name: str
    count: int
    head: str
    breaks: Sequence[ChainBreak]
    mismatches: Sequence[Mismatch] = ()

    @property
    def holds(self) -> bool:
        return not self.breaks and not self.mismatches

    def problems(self) -> Iterator[str]:
        """Yield one line for each problem: what is wrong, where, and what to do next."""
        for each in self.breaks:
            yield f"{self.strategy_name}: event {each.position} {each.problem}. {_NEXT_FOR_EVENTS}"
        for row in self.mismatches:
            yield f"{self.strategy_name}: {row.table} {row.row} {row.problem}. {row.next_step}"


@dataclass(frozen=True, slots=True)
class Verification:
    """The result of `verify_trail`.

    Attributes:
        missing: known hashes that are no longer in any chain.
        for_all: exclusions of all strategies that do not follow from the events of any. Empty for one strategy.
    """

    trails: Sequence[Trail]
    missing: Sequence[str]
    for_all: Sequence[Mismatch] = ()

    @property
    def holds(self) -> bool:
        return not self.missing and not self.for_all and all(each.holds for each in self.trails)

    def problems(self) -> Iterator[str]:
        """Yield one line for each problem: what is wrong, where, and what to do next."""
        for trail in self.trails:
            yield from trail.problems()
        for row in self.for_all:
            yield f"all strategies: {row.table} {row.row} {row.problem}. {row.next_step}"
        for head in self.missing:
            yield f"{head} was noted earlier and is in no chain now: the trail was rewritten. {_NEXT_FOR_A_ROW}"


def read_audit(engine: Engine, strategy_name: str | None = None, *, limit: int | None = None) -> Sequence[AuditEvent]:
    """Return audit events, oldest first. With *limit*, only the newest.

    Raises:
        UnknownStrategy
    """
    return read_events(engine, strategy_name, limit=limit, newest=True)


def read_events(
    engine: Engine,
    strategy_name: str | None = None,
    *,
    rollout_id: UUID | None = None,
    actor: str | None = None,
    action: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    after_id: int | None = None,
    before_id: int | None = None,
    strategies: Collection[str] | None = None,
    limit: int | None = None,
    newest: bool = False,
) -> Sequence[AuditEvent]:
    """Return the matching events, oldest first.

    Args:
        since, until: limits of the event times, [since, until).
        after_id: cursor: the id of the last event on the previous page. Within one strategy ids follow commit order.
            Across strategies an event with a lower id may be committed later.
        before_id: the same for pages from new to old: the id of the first event on the previous page.
        strategies: only events of these strategies.
        limit: at most this many: the first ones, or with *newest* the last ones.

    Raises:
        UnknownStrategy, UnknownRollout
    """
    wanted = _event_filter(strategy_name, rollout_id, actor, action, since, until, after_id)
    wanted |= {"strategies": strategies, "before_id": before_id}
    with reading(engine) as session:
        _check_known(session, wanted)
        return audit.find_events(session, limit=limit, newest=newest, **wanted)


def state_at(engine: Engine, strategy_name: str, at: datetime) -> StateAt:
    """Return the state of a strategy at a moment, and the changes that led to it.

    Raises:
        UnknownStrategy
        NothingRecorded: the strategy's first event is later.
    """
    at = utc(at, "at")
    with snapshot(engine) as session:
        versions.get_strategy(session, strategy_name)
        event = audit.newest_at(session, strategy_name, at)
        if event is None:
            raise NothingRecorded(strategy_name, at)
        return StateAt(
            strategy_name=strategy_name,
            at=at,
            active=event.after.get("active"),
            canary=event.after.get("canary"),
            percent=event.after.get("percent", 0.0),
            rollout=event.after.get("rollout"),
            excluded=event.after.get("excluded", []),
            event=event,
            made_by={fact: made for fact in _FACTS if (made := audit.newest_change(session, event, fact))},
        )


def about_rollout(engine: Engine, rollout_id: UUID) -> tuple[Rollout, list[TimelineEntry]]:
    """Return a rollout and its timeline, oldest first. Verdicts come before the changes they led to.

    Raises:
        UnknownRollout
    """
    with snapshot(engine) as session:
        rollout = rollouts.get_rollout(session, rollout_id)
        verdicts = _changed_verdicts(rollouts.verdict_history(session, rollout_id))
        changes = audit.find_events(session, limit=None, newest=False, rollout_id=rollout_id)
        alerts = find_alerts(session, rollout.strategy_name, rollout_id=rollout_id)
    entries = [
        *(TimelineEntry(verdict.ticked_at, verdict) for verdict in verdicts),
        *(TimelineEntry(change.at, change) for change in changes),
        *(TimelineEntry(alert.at, alert) for alert in alerts),
    ]
    return rollout, sorted(entries, key=lambda entry: entry.at)


def verify_trail(engine: Engine, strategy_name: str | None = None, known_heads: Iterable[str] = ()) -> Verification:
    """Recompute every hash of the trail, and hold versions, rollouts, canaries and exclusions against its events.

    Whoever rewrites a whole chain and all rows that follow from it remains undetected. Only a hash that was kept
    elsewhere reveals it. Events are read in batches from one snapshot, so later changes are not seen and not delayed.

    Args:
        known_heads: hashes kept earlier, from an export or a log. Each must still be in a chain.

    Raises:
        UnknownStrategy
    """
    missing = dict.fromkeys(head.strip().lower() for head in known_heads)
    with snapshot(engine) as session:
        known = set(versions.strategy_names(session))
        if strategy_name is None:
            names = sorted(known | {*audit.strategies_with_events(session), *audit.strategies_with_versions(session)})
        elif strategy_name in known:
            names = [strategy_name]
        else:
            raise UnknownStrategy(strategy_name, known)
        of_all = _ChangesOfAll()
        trails = [_verify_strategy(session, name, missing, of_all, is_known=name in known) for name in names]
        for_all = tuple(of_all.mismatches(session)) if strategy_name is None else ()
    return Verification(trails, tuple(missing), for_all)


def export(
    engine: Engine,
    form: ExportFormat = ExportFormat.JSONL,
    strategy_name: str | None = None,
    *,
    rollout_id: UUID | None = None,
    actor: str | None = None,
    action: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> Generator[str]:
    """Yield the matching events as lines with every column, oldest first, from one snapshot.

    Raises:
        UnknownStrategy, UnknownRollout: when the first line is requested.
    """
    wanted = _event_filter(strategy_name, rollout_id, actor, action, since, until, None)
    with snapshot(engine) as session:
        _check_known(session, wanted)
        if form is ExportFormat.CSV:
            yield audit_domain.as_csv(AuditEvent.model_fields)
        for row in audit.stream_events(session, **wanted):
            yield audit_domain.as_csv(row) if form is ExportFormat.CSV else audit_domain.as_json(row._asdict())


def verify_export(lines: Iterable[str], public_key: "Ed25519PublicKey | None" = None) -> list[Trail]:
    """Verify a JSON export without its database: its chains, and its signature if *public_key* is given.

    Filtered exports do not verify.

    Raises:
        InvalidExport: a line is not an event, or the export is not signed by the key.
    """
    chains = audit_domain.follow(signed_events(lines, public_key))
    return [Trail(name, chain.count, chain.head, chain.breaks) for name, chain in sorted(chains.items())]


# Signed exports


def read_signing_key(file: Path) -> "Ed25519PrivateKey":
    """Return the key that signs exports.

    Raises:
        InvalidSetting: it is not an Ed25519 private key, or others can read the file.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    wanted = "an Ed25519 private key as PEM without a password, in a file that only its owner can read (chmod 600)"
    try:
        if file.stat().st_mode & 0o077:
            raise InvalidSetting(_KEY_SETTING, str(file), wanted)
        key = load_pem_private_key(file.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm):
        raise InvalidSetting(_KEY_SETTING, str(file), wanted) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise InvalidSetting(_KEY_SETTING, str(file), wanted)
    return key


def read_public_key(file: Path) -> "Ed25519PublicKey":
    """Return the key that verifies signed exports.

    Raises:
        InvalidSetting: it is not an Ed25519 public key.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(file.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise InvalidSetting("--public-key", str(file), "an Ed25519 public key as PEM")
    return key


def signed(lines: Iterable[str], key: "Ed25519PrivateKey", *, now: datetime) -> Generator[str]:
    """Yield the lines of a JSON export and, as the last one, the signature of all of them."""
    digest, count = sha256(), 0
    for line in lines:
        digest.update(line.encode())
        count += 1
        yield line
    statement = {"events": count, "sha256": digest.hexdigest(), "signed_at": utc(now, "now").isoformat()}
    signature = b64encode(key.sign(_signed_bytes(statement))).decode()
    yield json.dumps({"signature": signature, "statement": statement}, separators=(",", ":")) + "\n"


def signed_events(lines: Iterable[str], key: "Ed25519PublicKey | None") -> Iterator[str]:
    """Yield the lines of an export without its signature, and check the signature after the last one.

    Args:
        lines: with their line breaks as they are in the file.
        key: None skips the check.

    Raises:
        InvalidExport: the export is not signed by the key, was changed after it was signed, or was cut short.
    """
    digest, number, is_signed = sha256(), 0, False
    for number, line in enumerate(lines, 1):
        if is_signed:
            raise InvalidExport("the export", "goes on after its signature", number)
        if line.startswith(_SIGNATURE):
            is_signed = True
            if key is not None:
                _check_signature(line, key, digest.hexdigest(), number)
        else:
            digest.update(line.encode())
            yield line
    if key is not None and not is_signed:
        raise InvalidExport(
            "the export", "is where the signature should be: it is not signed, or was cut short", number
        )


def _check_signature(line: str, key: "Ed25519PublicKey", digest: str, number: int) -> None:
    from cryptography.exceptions import InvalidSignature

    try:
        found = json.loads(line)
        statement = found["statement"]
        key.verify(b64decode(found["signature"], validate=True), _signed_bytes(statement))
        is_of_these = statement["sha256"] == digest
    except (ValueError, KeyError, TypeError, RecursionError, InvalidSignature):
        raise InvalidExport("the export", "is not a signature by this key", number) from None
    if not is_of_these:
        raise InvalidExport("the export", "is the signature of other events: the export was changed", number)


def _signed_bytes(statement: Mapping[str, Any]) -> bytes:
    return _PURPOSE + json.dumps(statement, sort_keys=True, separators=(",", ":")).encode()


def anchor_trail(engine: Engine, *, now: datetime, key_file: Path | None, folder: Path | None) -> str:
    """Verify the trail against the newest export in *folder*, write the next signed export, and return what was done.

    While the trail does not hold, each run raises a critical alert per finding, once, and writes no export: the newest
    export stays the one that it held against.

    Raises:
        RolloutError: the trail does not hold.
        InvalidSetting: the key is unusable, or the folder does not exist.
        InvalidExport: the newest export was changed, or signed by another key.
    """
    key = None if key_file is None else read_signing_key(key_file)
    heads: list[str] = []
    if key is not None and folder is not None:
        if not folder.is_dir():
            raise InvalidSetting("ROLLOUT_AUDIT_FOLDER", str(folder), "a folder that exists")
        for file in sorted(folder.glob(f"{_EXPORT}*.jsonl"))[-1:]:
            heads = noted_in(file, key.public_key())
    found = verify_trail(engine, known_heads=heads)
    if not found.holds:
        _alert_broken(engine, found, now)
        raise RolloutError("; ".join(found.problems()))
    events = sum(trail.count for trail in found.trails)
    if key is None or folder is None:
        return f"{events} events verified; not exported: set ROLLOUT_AUDIT_KEY_FILE and ROLLOUT_AUDIT_FOLDER"
    output = folder / f"{_EXPORT}{utc(now, 'now'):%Y%m%dT%H%M%SZ}.jsonl"
    write_whole(output, signed(export(engine), key, now=now))
    return f"{events} events verified, exported to {output}"


def noted_in(file: Path, public_key: "Ed25519PublicKey | None", strategy_name: str | None = None) -> list[str]:
    """Return the hashes of an export that verify all others of it, see `domain.audit.noted_heads`.

    Raises:
        InvalidExport: a line is not an event, or the export is not signed by the key, if one is given.
    """
    with file.open(encoding="utf-8", errors="replace", newline="") as lines:  # an export is pure ASCII
        return list(audit_domain.noted_heads(signed_events(lines, public_key), strategy_name))


def write_whole(output: Path, lines: Iterable[str]) -> None:
    """Write to a temporary name first, so that *output* is complete or unchanged."""
    part = output.with_name(f"{output.name}.part")
    try:
        with part.open("w", encoding="utf-8", newline="") as file:
            file.writelines(lines)
        part.replace(output)
    finally:
        part.unlink(missing_ok=True)


def _alert_broken(engine: Engine, found: Verification, now: datetime) -> None:
    """Raise one critical alert for each strategy whose trail does not hold, and one for the rest."""
    lines = {trail.strategy_name: list(trail.problems()) for trail in found.trails if not trail.holds}
    if found.missing or found.for_all:
        lines[""] = list(Verification((), found.missing, found.for_all).problems())
    with transaction(engine) as session:
        for name, problems in lines.items():
            more = f" ({len(problems) - 1} more problems)" if len(problems) > 1 else ""
            raise_alert(
                session,
                AUDIT_BROKEN,
                f"{problems[0]}{more}",
                severity=Severity.CRITICAL.value,
                strategy_name=name,
                dedupe_key=f"{name} {AUDIT_BROKEN} {sha256(repr(problems).encode()).hexdigest()}",
                facts={"problems": problems[:20]},
                now=now,
            )


@dataclass(slots=True)
class _ChangesOfAll:
    """The changes of exclusions of all strategies. Each is in the trails of several strategies."""

    _first: dict[tuple[Any, ...], tuple[int, UsersChanged, Mapping[str, Any]]] = field(default_factory=dict)
    _times: Counter[tuple[Any, ...]] = field(default_factory=Counter)

    def add(self, event: Any, facts: Mapping[str, Any], change: UsersChanged) -> None:
        """Note a change in one trail. The same change in another trail counts once."""
        about = [facts[name] for name in ("at", "actor", "source", "action", "request_id", "reason")]
        key = (*about, values_digest([change.kinds, change.ids, str(change.until)]))
        self._times[event.strategy_name, *key] += 1  # with a clock that stands, a change may come again
        key = (*key, self._times[event.strategy_name, *key])
        if key not in self._first or event.id < self._first[key][0]:
            small = {name: facts[name] for name in ("at", "actor", "source", "action", "reason")}
            self._first[key] = (event.id, change, small)

    def mismatches(self, session: Session) -> Iterator[Mismatch]:
        replay = ExclusionReplay()
        for _, change, facts in sorted(self._first.values(), key=lambda each: each[0]):
            replay.apply(change, facts)
        yield from _exclusion_mismatches(session, ALL_STRATEGIES, replay)


def _verify_strategy(
    session: Session, strategy_name: str, missing: dict[str, None], of_all: _ChangesOfAll, *, is_known: bool
) -> Trail:
    """Verify one strategy's chain and rows, and remove the hashes that the chain contains from *missing*."""
    chain, replay, excluded = Chain(), Replay(), ExclusionReplay()
    mismatches: list[Mismatch] = []
    rests_on: dict[str, int] = {}  # verdict id -> position of the newest event that rests on it
    last = _last_stages(session, strategy_name)
    try:
        for event in audit.stream_events(session, strategy_name=strategy_name):
            link = audit.link_of(event)
            chain.follow(link)
            replay.follow(link.facts)
            change = excluded.follow(link.facts, enters_last=_stage_after(event) in last.get(event.rollout_id, ()))
            if change is not None:
                of_all.add(event, link.facts, change)
            missing.pop(chain.head, None)
            rests_on |= dict.fromkeys(map(str, event.evidence), link.position)
            if len(rests_on) >= _BATCH:
                mismatches += _lost_evidence(session, rests_on)
                rests_on.clear()
        mismatches += _lost_evidence(session, rests_on)
    except _UNREADABLE as error:
        broken = ChainBreak(chain.position + 1, f"or a later one cannot be read: {in_a_line(error)}")
        return Trail(strategy_name, chain.count, chain.head, [*chain.breaks, broken])
    if not is_known:
        unknown = ChainBreak(chain.position, "no such strategy is known")
        return Trail(strategy_name, chain.count, chain.head, [*chain.breaks, unknown])
    try:
        row = versions.get_strategy(session, strategy_name)
        mismatches += _mismatches(session, row, replay)
        mismatches += _exclusion_mismatches(session, strategy_name, excluded)
    except _UNREADABLE as error:
        unreadable = Mismatch("strategy", strategy_name, f"cannot be read: {in_a_line(error)}")
        return Trail(strategy_name, chain.count, chain.head, chain.breaks, [*mismatches, unreadable])
    breaks = chain.end(generation=row.generation, head=row.audit_head)
    return Trail(strategy_name, chain.count, chain.head, breaks, mismatches)


def _lost_evidence(session: Session, rests_on: Mapping[str, int]) -> Iterator[Mismatch]:
    """Yield the verdicts that events rest on and that are no longer there."""
    there = audit.known_verdicts(session, rests_on)
    for verdict_id, position in rests_on.items():
        if verdict_id not in there:
            yield Mismatch("gate_verdict", verdict_id, f"is missing: event {position} rests on it")


def _mismatches(session: Session, strategy: StrategyRow, replay: Replay) -> Iterator[Mismatch]:
    """Yield the rows of a strategy that do not follow from its events."""
    name = strategy.name
    yield from _compared("strategy", name, strategy, replay.strategy)
    for table, rows, key, expected in (
        ("strategy_version", audit.stream_versions(session, name), "version", replay.versions),
        ("rollout", audit.stream_rollouts(session, name), "id", replay.rollouts),
    ):
        left: dict[Any, Columns] = dict(expected)
        try:
            for row in rows:
                found = getattr(row, key)
                follows = left.pop(found, None)
                if follows is None:
                    yield Mismatch(table, str(found), "has no audit event that created it")
                else:
                    yield from _compared(table, str(found), row, follows)
                if table == "strategy_version":
                    yield from _build_mismatches(row)
        except _UNREADABLE as error:
            yield Mismatch(table, f"of {name}", f"cannot be read: {in_a_line(error)}")
        else:
            yield from (Mismatch(table, str(each), "is missing: an audit event created it") for each in left)
    yield from _policy_mismatches(session, name, replay)
    yield from _toggle_mismatches(session, name, replay)
    canaries = audit.canary_rows(session, name)
    columns = replay.canary | ({"salt": frozenset({strategy.salt})} if replay.canary else {})
    if not columns and canaries:
        yield Mismatch("canary_config", name, "has no audit event that created it")
    elif columns and len(canaries) != 1:
        yield Mismatch("canary_config", name, f"has {len(canaries)} rows, but its audit events leave one")
    elif columns:
        yield from _compared("canary_config", name, canaries[0], columns)


def _exclusion_mismatches(session: Session, strategy_name: str, replay: ExclusionReplay) -> Iterator[Mismatch]:
    found = list(replay.differences(user_exclusions.stream_of(session, strategy_name)))
    for row, problem in found[:_MOST_ROWS]:
        yield Mismatch("canary_exclusion", row, problem)
    if len(found) > _MOST_ROWS:
        more = f"and {len(found) - _MOST_ROWS:,} more do not follow from its audit events"
        yield Mismatch("canary_exclusion", f"of {strategy_name}", more)


def _last_stages(session: Session, strategy_name: str) -> dict[UUID, Collection[int]]:
    """Return by rollout the stages that serve all users. What cannot be read is reported with the rollouts."""
    try:
        return {row.id: last_stages(row.plan) for row in audit.stream_rollouts(session, strategy_name)}
    except _UNREADABLE:
        return {}


def _stage_after(event: Any) -> Any:
    rollout = event.after.get("rollout") if isinstance(event.after, Mapping) else None
    return rollout.get("stage") if isinstance(rollout, Mapping) else None


def _policy_mismatches(session: Session, name: str, replay: Replay) -> Iterator[Mismatch]:
    policy = versions.find_policy(session, name)
    if policy is None and replay.policy:
        yield Mismatch("strategy_policy", name, "is missing: an audit event created it")
    elif policy is not None and not replay.policy:
        yield Mismatch("strategy_policy", name, "has no audit event that created it")
    elif policy is not None:
        yield from _compared("strategy_policy", name, policy, replay.policy)


def _toggle_mismatches(session: Session, name: str, replay: Replay) -> Iterator[Mismatch]:
    try:
        rules = toggles.rules_of(toggles.rows_in_force(session, name))
    except (InvalidToggle, *_UNREADABLE) as error:
        yield Mismatch("toggle_rule", f"of {name}", f"cannot be read: {in_a_line(error)}")
        return
    found = {toggle: values_digest(rule_facts(each)) for toggle, each in rules.items()}
    for toggle in sorted(found.keys() | replay.toggles.keys()):
        if found.get(toggle) != replay.toggles.get(toggle):
            yield Mismatch("toggle_rule", f"{name} {toggle}", "has other rules than its audit events leave")


def _compared(table: str, key: str, row: Any, columns: Columns) -> Iterator[Mismatch]:
    for name, allowed in columns.items():
        value = getattr(row, name)
        if name in ("plan", "scoring", "policy", "excluded_symbols"):
            value = values_digest(value)
        if value not in allowed:
            expected = " or ".join(sorted(_shown(each) for each in allowed))
            yield Mismatch(table, key, f"has {name} {_shown(value)}, but its audit events leave {expected}")


def _shown(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else repr(value)


def _build_mismatches(row: Any) -> Iterator[Mismatch]:
    """Yield where a version's columns differ from the parts of its fingerprint. Earlier releases have fewer parts."""
    parts = row.fingerprint_parts
    if not isinstance(parts, Mapping) or digest_of(parts) != row.fingerprint:
        problem = "has a fingerprint that is not the digest of its fingerprint_parts"
        yield Mismatch("strategy_version", row.version, problem, _NEXT_FOR_A_BUILD)
        return
    changed = [name for name, agrees in _COLUMN_OF_PART.items() if name in parts and not agrees(row, parts[name])]
    if changed:
        problem = f"has another {', '.join(changed)} than its fingerprint was made of"
        yield Mismatch("strategy_version", row.version, problem, _NEXT_FOR_A_BUILD)


_COLUMN_OF_PART: Mapping[str, Callable[[Any, str], bool]] = {
    "config": lambda row, part: values_digest(row.config) == values_digest(json.loads(part)),
    "symbols": lambda row, part: ",".join(sorted(row.symbols)) == part,
    "timeframe": lambda row, part: bool(row.timeframe == part),
    "warmup_bars": lambda row, part: str(row.warmup_bars) == part,
    "entry_point": lambda row, part: _class_path(row.entry_point) in (None, part),
}


def _class_path(entry_point: str) -> str | None:
    """Return the class path of an entry point, or None for a name that is not installed on this machine."""
    try:
        return resolve(entry_point)
    except InvalidEntryPoint:
        return None


def _changed_verdicts(verdicts: Iterable[GateVerdict]) -> Iterator[GateVerdict]:
    """Yield the verdicts that differ from the previous verdict of their gate."""
    last: dict[str, str] = {}
    for verdict in verdicts:
        if last.get(verdict.gate) != verdict.verdict:
            yield verdict
        last[verdict.gate] = verdict.verdict


def _event_filter(
    strategy_name: str | None,
    rollout_id: UUID | None,
    actor: str | None,
    action: str | None,
    since: datetime | None,
    until: datetime | None,
    after_id: int | None,
) -> EventFilter:
    return {
        "strategy_name": strategy_name,
        "rollout_id": rollout_id,
        "actor": actor,
        "action": action,
        "since": None if since is None else utc(since, "since"),
        "until": None if until is None else utc(until, "until"),
        "after_id": after_id,
    }


def _check_known(session: Session, wanted: EventFilter) -> None:
    strategy_name, rollout_id = wanted.get("strategy_name"), wanted.get("rollout_id")
    if strategy_name is not None:
        versions.get_strategy(session, strategy_name)
    if rollout_id is not None:
        rollouts.get_rollout(session, rollout_id)
