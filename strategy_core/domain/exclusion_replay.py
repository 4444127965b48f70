"""Exclusions of users that follow from audit events, and where the stored rows differ from them."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from strategy_core.domain.audit import shown_actor
from strategy_core.domain.user_exclusions import ExclusionKind

_LARGE = ExclusionKind.LARGE_ACCOUNT.value
_ENDS = "end_exclusions"
_RELEASES = ("start_rollout", "activate_canary")  # they end what an earlier rollout has kept of large accounts


class StoredExclusion(Protocol):
    """A row of `canary_exclusion`."""

    id: int | None
    user_id: str
    kind: str
    valid_from: datetime
    valid_to: datetime | None
    until: datetime | None
    reason: str
    actor: str


@dataclass(frozen=True, slots=True)
class UsersChanged:
    """What an event shows of a change of users' exclusions.

    Attributes:
        for_all: the exclusions are of all strategies.
    """

    kinds: tuple[str, ...]
    ids: tuple[str, ...]
    for_all: bool
    until: datetime | None

    @classmethod
    def of(cls, after: Any) -> "UsersChanged | None":
        """Return the change, or None if the event shows none. A forged event may hold anything."""
        users = after.get("users") if isinstance(after, Mapping) else None
        if not isinstance(users, Mapping):
            return None
        until = users.get("until")
        return cls(
            kinds=tuple(map(str, users.get("kinds", ()))),
            ids=tuple(map(str, users.get("ids", ()))),
            for_all=users.get("strategies") == "all",
            until=None if until is None else datetime.fromisoformat(until),
        )


@dataclass(slots=True)
class _Expected:
    """An exclusion that an event has set.

    Attributes:
        reason: None if the event's reason is another one.
        ends: when it may have been ended before it ran out. Mostly one, and None if it was not.
    """

    since: datetime
    until: datetime | None
    actor: str
    reason: str | None
    ends: set[datetime | None] = field(default_factory=lambda: {None})

    def end_at(self, at: datetime) -> datetime | None:
        return _before(max(at, self.since), self.until)

    def problem(self, row: StoredExclusion) -> str:
        """Return how the row differs, or an empty text."""
        if row.valid_from != self.since:
            return f"has valid_from {_shown(row.valid_from)}, but its audit events leave {_shown(self.since)}"
        if row.until != self.until:
            return f"has until {_shown(row.until)}, but its audit events leave {_shown(self.until)}"
        if _before(row.valid_to, row.until) not in self.ends:
            ends = " or ".join(sorted(map(_shown, self.ends)))
            return f"has valid_to {_shown(row.valid_to)}, but its audit events leave {ends}"
        if row.actor != self.actor:
            return f"has actor {row.actor!r}, but its audit events leave {self.actor!r}"
        if self.reason not in (None, row.reason):
            return f"has reason {row.reason!r}, but its audit events leave {self.reason!r}"
        return ""


@dataclass(slots=True)
class ExclusionReplay:
    """The exclusions of one strategy, or those of all strategies, that follow from events. Its memory grows with them.

    Earlier releases kept large accounts at a resumed stage without showing it in the event, so that these rows are
    passed over.
    """

    _open: dict[tuple[str, str], _Expected] = field(default_factory=dict)  # by kind and user
    _ended: dict[tuple[str, str], list[_Expected]] = field(default_factory=dict)
    _resumed: set[datetime] = field(default_factory=set)

    def follow(self, facts: Mapping[str, Any], *, enters_last: bool = False) -> UsersChanged | None:
        """Apply the next event of a strategy, and return its change if that is of all strategies.

        Args:
            enters_last: whether the rollout of the event is at a stage of 100 % after it.
        """
        action, at = facts["action"], facts["at"]
        if action in _RELEASES or (action == "advance" and enters_last):
            for key in [key for key in self._open if key[0] == _LARGE]:
                self._end(key, at)
        if action == "resume":
            self._resumed.add(at)
            for key, one in self._open.items():
                if enters_last and key[0] == _LARGE:  # if its cap could be computed
                    one.ends.add(one.end_at(at))
        change = UsersChanged.of(facts["after"])
        if change is not None and not change.for_all:
            self.apply(change, facts)
        return change if change is not None and change.for_all else None

    def apply(self, change: UsersChanged, facts: Mapping[str, Any]) -> None:
        """Apply a change, which may be of all strategies."""
        at, ends = facts["at"], facts["action"] == _ENDS
        for kind in change.kinds:
            for user in change.ids:
                self._end((kind, user), at)
                if not ends:
                    actor = shown_actor(facts["actor"], facts["source"])
                    reason = None if kind == _LARGE else facts["reason"]
                    self._open[kind, user] = _Expected(at, change.until, actor, reason)

    def differences(self, rows: Iterable[StoredExclusion]) -> Iterator[tuple[str, str]]:
        """Yield (row, problem) for each row that does not follow from the events, and for each that is missing."""
        expected: dict[tuple[str, str], list[_Expected]] = {key: list(each) for key, each in self._ended.items()}
        for key, one in self._open.items():
            expected.setdefault(key, []).append(one)
        others: list[StoredExclusion] = []
        for row in rows:
            left = expected.get((row.kind, row.user_id), [])
            same = next((one for one in left if not one.problem(row)), None)
            if same is None:
                others.append(row)
            else:
                left.remove(same)
        for row in others:
            left = expected.get((row.kind, row.user_id), [])
            name = f"{row.id} ({row.kind} of {row.user_id})"
            if left:
                yield name, left.pop(0).problem(row)
            elif row.kind != _LARGE or row.valid_from not in self._resumed:
                yield name, "has no audit event that set it"
        for (kind, user), left in expected.items():
            yield from ((f"({kind} of {user})", "is missing: an audit event set it") for _ in left)

    def _end(self, key: tuple[str, str], at: datetime) -> None:
        one = self._open.pop(key, None)
        if one is not None:
            one.ends = (one.ends - {None}) | {one.end_at(at)}
            self._ended.setdefault(key, []).append(one)


def last_stages(plan: Any) -> Collection[int]:
    """Return the indexes of a stored plan's stages that serve all users."""
    stages = plan.get("stages") if isinstance(plan, Mapping) else None
    return [
        index
        for index, stage in enumerate(stages if isinstance(stages, list) else ())
        if isinstance(stage, Mapping) and stage.get("percent") == 100
    ]


def _before(end: datetime | None, until: datetime | None) -> datetime | None:
    """Return when an exclusion was ended, or None if it was not before it ran out."""
    return None if end is None or (until is not None and until <= end) else end


def _shown(at: datetime | None) -> str:
    return "None" if at is None else at.isoformat()
