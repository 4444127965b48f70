"""Toggles: set, list and resolve the rules of a strategy, and load segments of users.

No rule reaches a worker, and no decision depends on one.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Engine
from sqlmodel import Session

from strategy_core.domain.audit import TOGGLE, Command, values_digest
from strategy_core.domain.errors import InvalidReport, InvalidToggle, UnknownRule, UnknownSegment, UnknownToggle
from strategy_core.domain.lifecycle import Status, utc
from strategy_core.domain.parsing import PADDED, checked_rows, is_padded
from strategy_core.domain.toggles import MOST_RULES, AllToggles, Member, Resolved, Rule, Toggle, resolve, rule_facts
from strategy_core.services.live_trades import FIRST_ROW, read_csv
from strategy_core.services.queries import route_user
from strategy_core.services.transitions import recorded_change
from strategy_core.services.users import Confirm, confirm_removal
from strategy_core.store import toggles as store
from strategy_core.store import versions
from strategy_core.store.engine import reading, retry_transient, transaction

SET_TOGGLE, LOAD_SEGMENT = "set_toggle", "load_segment"
_MAY_SERVE = [status.value for status in Status if status is not Status.RETIRED]
Edit = Callable[[list[Rule]], list[Rule]]


@dataclass(frozen=True, slots=True)
class ToggleState:
    """A toggle of a strategy.

    Attributes:
        declared: by version, oldest first, without retired versions. Empty if only retired ones declare it.
        rules: in their order. The first that concerns a user decides.
    """

    strategy_name: str
    name: str
    declared: Mapping[str, Toggle]
    rules: Sequence[Rule]


@dataclass(frozen=True, slots=True)
class StrategyToggles:
    """The toggles of a strategy by name, with its generation."""

    strategy_name: str
    generation: int
    toggles: Sequence[ToggleState]


@dataclass(frozen=True, slots=True)
class UserToggles:
    """The toggles of the version that a user gets, by name."""

    user_id: str
    strategy_name: str
    version: str
    toggles: Mapping[str, Resolved]


@dataclass(frozen=True, slots=True)
class RulePreview:
    """What `set_rule` would do.

    Attributes:
        generation: of the strategy now.
        rules: as they would be.
        number: of the rule among them, from 1.
        replaced: the rule with the same conditions, which it replaces.
        user: what one user has, and would have.
    """

    generation: int
    rules: Sequence[Rule]
    number: int
    replaced: Rule | None
    user: "UserPreview | None"


@dataclass(frozen=True, slots=True)
class UserPreview:
    """The value of a toggle for one user before and after a change. None: the user's version does not declare it."""

    user_id: str
    version: str
    before: Resolved | None
    after: Resolved | None


@dataclass(frozen=True, slots=True)
class LoadedSegments:
    """The result of a load: segments and members now, and how many memberships were added or removed."""

    segments: int
    members: int
    added: int
    removed: int


def set_rules(engine: Engine, command: Command, *, strategy_name: str, name: str, rules: Sequence[Rule]) -> ToggleState:
    """Replace the rules of a toggle. The same rules again change nothing and are not recorded. No version changes.

    Raises:
        UnknownStrategy
        UnknownToggle: no version that may serve users declares it. Rules may be removed all the same.
        UnknownSegment: a rule names a segment that was not loaded.
        InvalidToggle: too many rules, or a version that declares the toggle does not allow the value of one.
        LostRace: the command's generation is outdated.
    """
    return _edit(engine, command, strategy_name, name, lambda _: list(rules))[0]


def declare_rules(engine: Engine, command: Command, *, strategy_name: str, name: str, rules: Sequence[Rule]) -> bool:
    """Replace the rules of a toggle as `set_rules` does. Return whether they were others."""
    return _edit(engine, command, strategy_name, name, lambda _: list(rules))[1]


def check_rules(
    session: Session,
    strategy_name: str,
    name: str,
    before: Sequence[Rule],
    rules: Sequence[Rule],
    *,
    declares_later: bool = False,
) -> Mapping[str, Toggle]:
    """Raise if *rules* cannot replace those of *before*. Return what versions declare, by version.

    Args:
        declares_later: a version that may declare the toggle is still to be registered.

    Raises:
        UnknownToggle, UnknownSegment, InvalidToggle: see `set_rules`.
    """
    declared = _declared(session, strategy_name)
    own = {version: toggles[name] for version, toggles in declared.items() if name in toggles}
    known = rule_facts(before)
    added = [rule for rule, fact in zip(rules, rule_facts(rules), strict=True) if fact not in known]
    if not own and not declares_later and (added or not before):
        raise UnknownToggle(strategy_name, name, {each for toggles in declared.values() for each in toggles})
    if len(rules) > MOST_RULES:
        raise InvalidToggle(name, f"{len(rules)} rules; allowed: {MOST_RULES}")
    _check(session, name, own, added)
    return own


def set_rule(
    engine: Engine, command: Command, *, strategy_name: str, name: str, rule: Rule, position: int | None = None
) -> ToggleState:
    """Add a rule to a toggle. A rule with the same conditions is replaced.

    Args:
        position: in the order of the rules, from 1. Default: that of the replaced rule, else after all others.

    Raises:
        UnknownRule: *position* is beyond the rules.
        UnknownStrategy, UnknownToggle, UnknownSegment, InvalidToggle, LostRace: see `set_rules`.
    """

    def edit(rules: list[Rule]) -> list[Rule]:
        return _with_rule(strategy_name, name, rules, rule, position)[0]

    return _edit(engine, command, strategy_name, name, edit)[0]


def preview_rule(
    engine: Engine,
    *,
    strategy_name: str,
    name: str,
    rule: Rule,
    now: datetime,
    position: int | None = None,
    user_id: str | None = None,
) -> RulePreview:
    """Return what `set_rule` would do, and what *user_id* would have. Nothing changes.

    Raises:
        InvalidName, NoActiveVersion: of the user's route, see `route_user`.
        UnknownRule, UnknownStrategy, UnknownToggle, UnknownSegment, InvalidToggle: see `set_rule`.
    """
    with reading(engine) as session:
        generation = versions.get_strategy(session, strategy_name).generation
        before = store.rules_of(store.rows_in_force(session, strategy_name, name)).get(name, [])
        check_rules(session, strategy_name, name, before, [rule])
        after, number, replaced = _with_rule(strategy_name, name, before, rule, position)
        check_rules(session, strategy_name, name, before, after)
    user = None
    if user_id is not None:
        route = route_user(engine, user_id=user_id, strategy_name=strategy_name, now=now)
        with reading(engine) as session:
            declared = store.declared_by(session, [strategy_name]).get(strategy_name, {}).get(route.version, {})
            segments, capital = store.user_facts(session, user_id)
        old, new = (
            resolve(strategy_name, declared, {name: rules}, user_id=user_id, segments=segments, capital=capital)
            for rules in (before, after)
        )
        user = UserPreview(user_id, route.version, old.get(name), new.get(name))
    return RulePreview(generation, after, number, replaced, user)


def _with_rule(
    strategy_name: str, name: str, rules: Sequence[Rule], rule: Rule, position: int | None
) -> tuple[list[Rule], int, Rule | None]:
    """Return the rules with *rule*, its number, and the rule with the same conditions that it replaces."""
    same = next((at for at, each in enumerate(rules) if each.when == rule.when), None)
    replaced = None if same is None else rules[same]
    rest = [each for each in rules if each.when != rule.when]
    place = len(rest) if position is None else position - 1
    if same is not None and position is None:
        place = same
    if not 0 <= place <= len(rest):
        raise UnknownRule(strategy_name, name, place + 1, len(rest) + 1)
    return [*rest[:place], rule, *rest[place:]], place + 1, replaced


def remove_rules(
    engine: Engine, command: Command, *, strategy_name: str, name: str, number: int | None = None
) -> ToggleState:
    """Remove one rule of a toggle by its number from 1, or all of them. Users then get what the other rules say.

    Raises:
        UnknownRule: there is no rule of that number.
        UnknownStrategy, UnknownToggle, LostRace: see `set_rules`.
    """

    def edit(rules: list[Rule]) -> list[Rule]:
        if number is None:
            return []
        if not 1 <= number <= len(rules):
            raise UnknownRule(strategy_name, name, number, len(rules))
        return [each for at, each in enumerate(rules, 1) if at != number]

    return _edit(engine, command, strategy_name, name, edit)[0]


def list_toggles(engine: Engine, strategy_name: str) -> StrategyToggles:
    """Return the toggles of a strategy by name: all that a version declares which may serve users, or that have rules.

    Raises:
        UnknownStrategy
    """
    with reading(engine) as session:
        generation = versions.get_strategy(session, strategy_name).generation
        return StrategyToggles(strategy_name, generation, _states(session, strategy_name))


def resolve_toggles(
    engine: Engine, *, user_id: str, strategy_name: str, now: datetime, symbol: str | None = None
) -> UserToggles:
    """Return the toggles of the version that *user_id* gets now, with the reason of each.

    Args:
        symbol: of the trade, since an owner may have excluded it from the canary.

    Raises:
        InvalidName, UnknownStrategy, NoActiveVersion: see `route_user`.
    """
    route = route_user(engine, user_id=user_id, strategy_name=strategy_name, now=now, symbol=symbol)
    with reading(engine) as session:
        declared = store.declared_by(session, [strategy_name]).get(strategy_name, {}).get(route.version, {})
        rules = store.rules_of(store.rows_in_force(session, strategy_name))
        segments, capital = store.user_facts(session, user_id)
    found = resolve(strategy_name, declared, rules, user_id=user_id, segments=segments, capital=capital)
    return UserToggles(user_id, strategy_name, route.version, found)


def toggles_revision(engine: Engine) -> str:
    """Return the revision of all that resolves toggles."""
    with reading(engine) as session:
        return store.revision(session)


def read_toggles(engine: Engine, strategies: Iterable[str] | None = None) -> AllToggles:
    """Return all that resolves the toggles of all strategies, or of these, in memory."""
    with reading(engine) as session:
        return store.all_toggles(session, strategies)


def load_segments_csv(
    engine: Engine, command: Command, path: Path, *, confirm: Confirm | None = None
) -> LoadedSegments:
    """Load a CSV file with the columns `user_id` and `segment`, as `load_segments` does.

    Args:
        confirm: asked before a load that removes more than half of the memberships, and more than 100. It raises to
            stop.
    """
    return _load(engine, command, read_csv(path, Member), source=str(path), first_row=FIRST_ROW, confirm=confirm)


def load_segments(engine: Engine, command: Command, members: Iterable[tuple[str, str]]) -> LoadedSegments:
    """Replace all segments with *members*: pairs of a user id and a segment. A user may be in several.

    Every strategy with a rule on a segment that changed gets an audit event, each in a transaction of its own: one for
    all would hold the locks of all, which rollbacks wait for.

    Raises:
        InvalidReport: with the row and the problem. An empty list is refused, and so is one without a segment that a
            rule names.
    """
    rows = ({"user_id": user_id, "segment": segment} for user_id, segment in members)
    return _load(engine, command, rows, source="segments", first_row=1)


@retry_transient()
def _edit(engine: Engine, command: Command, strategy_name: str, name: str, edit: Edit) -> tuple[ToggleState, bool]:
    """Replace the rules of a toggle. Return it, and whether its rules have changed."""
    with transaction(engine) as session:
        versions.lock_strategy(session, strategy_name, command.if_generation)
        before = store.rules_of(store.rows_in_force(session, strategy_name, name)).get(name, [])
        if not before:
            check_rules(session, strategy_name, name, [], [])  # an unknown toggle comes before an unknown rule
        rules = edit(list(before))
        own = check_rules(session, strategy_name, name, before, rules)
        facts, known = rule_facts(rules), rule_facts(before)
        if facts != known:
            with recorded_change(session, command, SET_TOGGLE, strategy_name) as change:
                change.before[f"{TOGGLE}{name}"] = known
                store.replace_rules(session, strategy_name, name, rules, by=command.actor.shown, now=command.now)
                change.after[f"{TOGGLE}{name}"] = facts
        return ToggleState(strategy_name, name, own, rules), facts != known


def _check(session: Session, name: str, own: Mapping[str, Toggle], added: Sequence[Rule]) -> None:
    known = {segment.name for segment in store.list_segments(session)}
    for rule in added:
        if padded := min(filter(is_padded, rule.when.user_ids or ()), default=None):
            raise InvalidToggle(name, f"{padded[:40]!r} {PADDED}")
        if rule.when.segment is not None and rule.when.segment not in known:
            raise UnknownSegment(rule.when.segment, known)
        for version, toggle in own.items():
            try:
                toggle.checked(rule.value)
            except InvalidToggle as refused:
                raise InvalidToggle(name, f"{refused.problem} (by version {version})") from None


def _declared(session: Session, strategy_name: str) -> Mapping[str, Mapping[str, Toggle]]:
    return store.declared_by(session, [strategy_name], statuses=_MAY_SERVE).get(strategy_name, {})


def _states(session: Session, strategy_name: str) -> list[ToggleState]:
    declared = _declared(session, strategy_name)
    rules = store.rules_of(store.rows_in_force(session, strategy_name))
    names = {name for toggles in declared.values() for name in toggles} | rules.keys()
    return [
        ToggleState(
            strategy_name,
            name,
            {version: toggles[name] for version, toggles in declared.items() if name in toggles},
            rules.get(name, []),
        )
        for name in sorted(names)
    ]


def _load(
    engine: Engine,
    command: Command,
    rows: Iterable[Mapping[str, Any]],
    *,
    source: str,
    first_row: int,
    confirm: Confirm | None = None,
) -> LoadedSegments:
    command = replace(command, now=utc(command.now, "now"))
    wanted: dict[str, set[str]] = defaultdict(set)
    for member in checked_rows(Member, rows, source=source, first_row=first_row):
        wanted[member.segment].add(member.user_id)
    if not wanted:
        raise InvalidReport(source, "holds no members, and each load replaces all segments")
    if confirm is not None:
        with reading(engine) as session:
            known = store.members(session)
        removed = sum(len(users - wanted.get(name, set())) for name, users in known.items())
        confirm_removal(removed, sum(map(len, known.values())), confirm)
    loaded, changed = _replace(engine, wanted, source, now=command.now)
    for strategy_name, segments in _concerned(engine, changed).items():
        _record(engine, command, strategy_name, segments)
        command = replace(command, actor=replace(command.actor, idempotency_key=None))
    return loaded


@retry_transient()
def _replace(
    engine: Engine, wanted: Mapping[str, set[str]], source: str, *, now: datetime
) -> tuple[LoadedSegments, dict[str, dict[str, Any]]]:
    """Replace all segments. Return the result, and the facts of each segment that changed."""
    changed: dict[str, dict[str, Any]] = {}
    added = removed = 0
    with transaction(engine) as session:
        store.hold_segments(session)
        known = store.members(session)
        for row in store.rows_in_force(session):
            segment = row.conditions.get("segment")
            if segment is not None and segment not in wanted:
                rule = f"rule {row.position} of the toggle {row.toggle} of {row.strategy_name}"
                raise InvalidReport(source, f"lacks the segment {segment!r}, which {rule} names: remove that first")
        for name in sorted(known.keys() | wanted.keys()):
            old, new = known.get(name, set()), wanted.get(name, set())
            joined, left = new - old, old - new
            added, removed = added + len(joined), removed + len(left)
            if not new:
                store.remove_segment(session, name)
            elif joined or left:
                store.remove_members(session, name, left)
                store.put_segment(session, name, added=joined, users=len(new), now=now)
                digest = values_digest(sorted(new))
                changed[name] = {"users": len(new), "added": len(joined), "removed": len(left), "digest": digest}
        if added or removed:
            store.touch(session)
    return LoadedSegments(len(wanted), sum(map(len, wanted.values())), added, removed), changed


def _concerned(engine: Engine, changed: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return strategy -> the facts of the changed segments that its rules name."""
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    with reading(engine) as session:
        for row in store.rows_in_force(session):
            segment = row.conditions.get("segment")
            if segment is not None and segment in changed:
                found[row.strategy_name][f"segment {segment}"] = changed[segment]
    return dict(found)


@retry_transient()
def _record(engine: Engine, command: Command, strategy_name: str, segments: Mapping[str, Any]) -> None:
    with transaction(engine) as session:
        versions.lock_strategy(session, strategy_name)
        with recorded_change(session, command, LOAD_SEGMENT, strategy_name) as change:
            change.after |= segments
