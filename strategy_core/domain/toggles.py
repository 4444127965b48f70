"""Delivery toggles: values that a version declares and an owner sets for some users, applied after the decision.

A toggle changes how a decision reaches a user, not the decision. Its value is not given to the version's code, so all
users of a version share its signals, and gates may compare versions.
"""

import json
import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import zip_longest
from typing import Annotated, Any, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    StringConstraints,
    ValidationError,
    model_validator,
)

from strategy_core.domain.audit import values_digest
from strategy_core.domain.errors import InvalidPercent, InvalidToggle, InvalidToggles, UnknownToggle
from strategy_core.domain.parsing import Name, NewUserId
from strategy_core.domain.routing import BUCKETS, SaltedBuckets, as_percent, basis_points, bucket_of, refused_user

Value: TypeAlias = bool | int | float | str
MOST_TOGGLES = 50  # of a version
MOST_RULES = 50  # of a toggle
MOST_USERS = 10_000  # named by a rule
MOST_CHOICES = 50
_SHOWN_USERS = 3
_LONGEST = 64  # characters of a name, a text value and a segment
_EXACT = 2**53  # larger whole numbers may not be exact as floats
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
ToggleName: TypeAlias = Annotated[str, StringConstraints(pattern=rf"^{_NAME.pattern}$", max_length=_LONGEST)]
_NAMES = "a letter, then letters, digits and _, at most 64"
ALLOWED = "bool, Literal of texts or of whole numbers, and int or float with ge and le, each with a default"
_NO_SEGMENTS: frozenset[str] = frozenset()


class Kind(StrEnum):
    """The type of a toggle's values, as in JSON Schema."""

    BOOLEAN = "boolean"
    INTEGER = "integer"
    NUMBER = "number"
    TEXT = "string"


@dataclass(frozen=True, slots=True)
class Toggle:
    """A toggle as a version declares it.

    Attributes:
        default: the value of users without a rule.
        choices: all values of a Literal, else empty.
        minimum, maximum: bounds of an int or a float, inclusive. None for other toggles.
    """

    name: str
    kind: Kind
    default: Value
    choices: tuple[int | str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None

    def checked(self, value: object) -> Value:
        """Return *value* if users may have it, a whole number of a float toggle as a float.

        Raises:
            InvalidToggle
        """
        found = _as_kind(value, self.kind)
        if found is None or (self.choices and found not in self.choices) or not self._within(found):
            raise InvalidToggle(self.name, f"{_shown(value)} is not allowed; allowed: {self.allowed}")
        return found

    @property
    def allowed(self) -> str:
        """All values, in words."""
        if self.choices:
            return ", ".join(json.dumps(each) for each in self.choices)
        if self.kind is Kind.BOOLEAN:
            return "true, false"
        number = "a whole number" if self.kind is Kind.INTEGER else "a number"
        return f"{number} from {self.minimum:g} to {self.maximum:g}"

    def schema(self) -> dict[str, Any]:
        """Return the toggle as JSON Schema."""
        bounds = {} if self.minimum is None else {"minimum": self.minimum, "maximum": self.maximum}
        choices = {"enum": list(self.choices)} if self.choices else {}
        return {"type": self.kind.value, **choices, **bounds, "default": self.default}

    def _within(self, value: Value) -> bool:
        if self.minimum is None or self.maximum is None or isinstance(value, str):
            return True
        return self.minimum <= value <= self.maximum


def _as_kind(value: object, kind: Kind) -> Value | None:
    """Return *value* as a value of this kind, or None if it is none."""
    if kind is Kind.BOOLEAN or isinstance(value, bool):
        return value if kind is Kind.BOOLEAN and isinstance(value, bool) else None
    if kind is Kind.TEXT:
        return value if isinstance(value, str) and 0 < len(value) <= _LONGEST and value.isprintable() else None
    if isinstance(value, int) and abs(value) <= _EXACT:
        return value if kind is Kind.INTEGER else float(value)
    return value if kind is Kind.NUMBER and isinstance(value, float) and math.isfinite(value) else None


def _shown(value: object) -> str:
    text = json.dumps(value) if isinstance(value, bool) else repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


# Names with a meaning. Any other name means what the platform makes of it.
_MEANINGS: Mapping[str, tuple[Kind, float | None, float | None]] = {
    "risk_scale": (Kind.NUMBER, 0.25, 1.0),  # factor of the size
    "notify_only": (Kind.BOOLEAN, None, None),  # signals are shown and not traded
    "buy": (Kind.BOOLEAN, None, None),  # whether buys are copied
    "sell": (Kind.BOOLEAN, None, None),
    "entry_delay": (Kind.INTEGER, 0, 100),  # candles
}
_PER_SYMBOL = "symbol_"  # whether trades in that symbol are copied


def _meaning_problem(toggle: Toggle) -> str:
    kind, low, high = _MEANINGS.get(toggle.name, (toggle.kind, None, None))
    if toggle.name.startswith(_PER_SYMBOL):
        kind = Kind.BOOLEAN
    if toggle.kind is not kind:
        return f"has a fixed meaning and must be a {kind}"
    if low is not None and high is not None:
        values = [toggle.minimum, toggle.maximum, *toggle.choices]
        if any(not isinstance(each, str) and each is not None and not low <= each <= high for each in values):
            return f"has a fixed meaning and must stay within {low:g} to {high:g}"
    return ""


def read_declaration(properties: object, entry_point: str) -> dict[str, Toggle]:
    """Return toggles by name from the `properties` of a JSON Schema. A version's code may have written them.

    Raises:
        InvalidToggles: one line per problem.
    """
    if not isinstance(properties, Mapping):
        raise InvalidToggles(entry_point, [f"the declaration is {type(properties).__name__}, not a model"])
    if len(properties) > MOST_TOGGLES:
        raise InvalidToggles(entry_point, [f"{len(properties)} toggles; allowed: {MOST_TOGGLES}"])
    found: dict[str, Toggle] = {}
    problems: list[str] = []
    for name, field in properties.items():
        toggle = _toggle_in(name, field)
        if isinstance(toggle, Toggle):
            problem = _meaning_problem(toggle)
            found[toggle.name] = toggle
        else:
            problem = toggle
        if problem:
            problems.append(f"{_shown(name)[1:-1]} {problem}")
    if problems:
        raise InvalidToggles(entry_point, problems)
    return found


_DESCRIBING = {"title", "description", "default", "type"}
_MORE = {
    Kind.BOOLEAN: set[str](),
    Kind.INTEGER: {"enum", "const", "minimum", "maximum"},
    Kind.NUMBER: {"minimum", "maximum"},
    Kind.TEXT: {"enum", "const"},
}


def _toggle_in(name: object, field: object) -> Toggle | str:
    """Return a declared toggle, or the problem with it."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return f"is no name for a toggle: {_NAMES}"
    if not isinstance(field, Mapping) or field.get("type") not in list(Kind):
        return f"has another type; allowed: {ALLOWED}"
    kind = Kind(field["type"])
    if other := sorted(str(key) for key in field.keys() - _DESCRIBING - _MORE[kind]):
        return f"has {', '.join(other)[:_LONGEST]}; allowed: {ALLOWED}"
    given = [field["const"]] if "const" in field else field.get("enum", [])
    if not isinstance(given, list) or len(given) > MOST_CHOICES:
        return f"has more than {MOST_CHOICES} choices"
    choices = [_as_kind(each, kind) for each in given]
    low, high = (None if key not in field else _as_kind(field[key], kind) for key in ("minimum", "maximum"))
    if None in choices or (kind is Kind.TEXT and not choices):
        return f"has no choices, or other ones than texts of at most {_LONGEST} characters; allowed: {ALLOWED}"
    if kind in (Kind.INTEGER, Kind.NUMBER) and not choices and not _ordered(low, high):
        return f"has no bounds; allowed: {ALLOWED}"
    toggle = Toggle(name, kind, "", tuple(choices), low, high)  # type: ignore[arg-type]  # of its kind, as checked
    try:
        default = toggle.checked(field.get("default"))
    except InvalidToggle:
        return f"has the default {_shown(field.get('default'))}; allowed: {toggle.allowed}"
    return Toggle(name, kind, default, toggle.choices, toggle.minimum, toggle.maximum)


def _ordered(low: Value | None, high: Value | None) -> bool:
    return isinstance(low, int | float) and isinstance(high, int | float) and low <= high


def declaration_text(toggles: Mapping[str, Toggle]) -> str:
    """Return a declaration as stored and fingerprinted, or an empty text. The format must not change."""
    if not toggles:
        return ""
    schemas = {name: toggle.schema() for name, toggle in toggles.items()}
    return json.dumps(schemas, sort_keys=True, separators=(",", ":"))


def stored_toggles(text: str | None) -> dict[str, Toggle]:
    """Return the toggles of a stored declaration, by name."""
    return read_declaration(json.loads(text), "a stored version") if text else {}


# Rules


def _user_ids(given: frozenset[str]) -> frozenset[str]:
    for user_id in given:
        if refused := refused_user(user_id):
            raise ValueError(str(refused))
    return given


def _percent(given: float) -> float:
    try:
        return as_percent(basis_points(given))
    except InvalidPercent as refused:
        raise ValueError(str(refused)) from None


def _as_set(given: object) -> object:
    return frozenset(given) if isinstance(given, list) and all(isinstance(each, str) for each in given) else given


class When(BaseModel):
    """The users of a rule: those who meet all of its conditions. Without any, all users.

    Attributes:
        user_ids: one of these users.
        segment: a member of this segment.
        capital_at_least, capital_at_most: the user list has a capital within these bounds.
        percent: this share of users, by the toggle's own bucketing.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    user_ids: (
        Annotated[
            frozenset[Annotated[str, Field(max_length=200)]],
            BeforeValidator(_as_set),
            AfterValidator(_user_ids),
            PlainSerializer(sorted, return_type=list[str]),
        ]
        | None
    ) = Field(default=None, min_length=1, max_length=MOST_USERS)
    segment: Name | None = Field(default=None, max_length=_LONGEST)
    capital_at_least: float | None = Field(default=None, ge=0)
    capital_at_most: float | None = Field(default=None, ge=0)
    percent: Annotated[float, AfterValidator(_percent)] | None = None

    @model_validator(mode="after")
    def _check_order(self) -> "When":
        least, most = self.capital_at_least, self.capital_at_most
        if least is not None and most is not None and least > most:
            raise ValueError("capital_at_least is more than capital_at_most")
        return self

    @property
    def shown(self) -> str:
        """The conditions in words, without the bucket and without user ids: the reason of one user names no others."""
        users = self.user_ids
        return self._shown("" if users is None else "one user" if len(users) == 1 else f"one of {len(users):,} users")

    @property
    def shown_with_ids(self) -> str:
        """The conditions in words, with the first user ids."""
        users = sorted(self.user_ids or ())
        more = f" and {len(users) - _SHOWN_USERS:,} more" if len(users) > _SHOWN_USERS else ""
        ids = ", ".join(users[:_SHOWN_USERS])
        return self._shown(f"{'user' if len(users) == 1 else 'users'} {ids}{more}" if users else "")

    def _shown(self, users: str) -> str:
        parts = [
            users,
            "" if self.segment is None else f"segment {self.segment}",
            "" if self.capital_at_least is None else f"capital >= {self.capital_at_least:g}",
            "" if self.capital_at_most is None else f"capital <= {self.capital_at_most:g}",
            "" if self.percent is None else f"{self.percent:g} % of users",
        ]
        return ", ".join(part for part in parts if part) or "all users"


class Rule(BaseModel):
    """A rule of a toggle: users *when* get *value*."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    when: When = When()
    value: StrictBool | StrictInt | StrictFloat | StrictStr

    @property
    def shown(self) -> str:
        """The rule in words."""
        return f"{self.when.shown}: {json.dumps(self.value, ensure_ascii=False)}"

    def stored(self) -> dict[str, Any]:
        """Return the conditions that the rule has, as JSON."""
        return self.when.model_dump(mode="json", exclude_none=True)


def parse_value(text: str) -> Value:
    """Return the value that an owner has typed: true, false, a number, or any other text."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return found if isinstance(found, bool | int | float | str) else text


def read_rule(when: object, value: object, name: str, number: int) -> Rule:
    """Return a rule.

    Raises:
        InvalidToggle: with the number of the rule and the field.
    """
    try:
        return Rule.model_validate({"when": when, "value": value})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"] if part != "when")
        place = f"rule {number}, {field}" if field else f"rule {number}"
        raise InvalidToggle(name, f"{place}: {first['msg'].removeprefix('Value error, ')}") from None


def toggle_salt(strategy_name: str, name: str) -> str:
    """Return the salt of a toggle's buckets. They are independent of the canary's, and of other toggles'."""
    # Do not change it: it decides which users a percentage reaches. Names have no colon.
    return f"toggle:{strategy_name}:{name}:"


@dataclass(frozen=True, slots=True)
class Resolved:
    """The value of a toggle for one user, and why.

    Attributes:
        rule: number of the rule that decided, from 1. None: no rule concerns the user.
        split: whether that rule has a percentage.
    """

    value: Value
    why: str
    rule: int | None = None
    split: bool = False


_MOST_PLANS = 10_000
_Kind: TypeAlias = tuple[frozenset[str], int, int]  # segments, place of the capital, rules that name the user
_Split: TypeAlias = tuple[str, SaltedBuckets, tuple[int, ...], tuple[Value, ...]]  # toggle, buckets, edges, values


@dataclass(frozen=True, slots=True)
class _Plan:
    """The values of all users of one kind, who differ in nothing but their buckets.

    Attributes:
        values: of each toggle by name, with the default of those that a percentage splits.
        splits: for each of these, values by bucket: the first up to the first edge, exclusive, and so on.
    """

    values: dict[str, Value]
    splits: tuple[_Split, ...]


class Resolver:
    """The toggles and rules of one version, compiled for many users.

    A rule whose value the version does not allow gives the version's default: another version may allow it.

    Args:
        declared: the version's toggles by name.
        rules: of the strategy, by toggle. Toggles that the version does not declare are ignored.
    """

    __slots__ = ("_buckets", "_capitals", "_named", "_plans", "_rules", "_strategy_name", "declared", "defaults")

    def __init__(self, strategy_name: str, declared: Mapping[str, Toggle], rules: Mapping[str, Sequence[Rule]]) -> None:
        self.declared = declared
        self.defaults = {name: toggle.default for name, toggle in declared.items()}
        self._strategy_name = strategy_name
        self._rules = {name: tuple(rules[name]) for name in declared if rules.get(name)}
        self._buckets = {name: SaltedBuckets(toggle_salt(strategy_name, name)) for name in self._rules}
        every = [rule.when for of in self._rules.values() for rule in of]
        bounds = {bound for when in every for bound in (when.capital_at_least, when.capital_at_most)}
        self._capitals = sorted(bound for bound in bounds if bound is not None)
        self._named: dict[str, int] = {}
        for number, when in enumerate(every):
            for user_id in when.user_ids or ():
                self._named[user_id] = self._named.get(user_id, 0) | 1 << number
        self._plans: dict[_Kind, _Plan] = {}

    def values(self, user_id: str, segments: frozenset[str], capital: float | None) -> dict[str, Value]:
        """Return the value of each toggle by name. The first rule that concerns the user decides, else the default."""
        found: dict[str, Value] = {}
        self.put_values(found, user_id, segments, capital)
        return found

    def put_values(
        self, found: dict[str, Value], user_id: str, segments: frozenset[str], capital: float | None
    ) -> None:
        """Put what `values` returns into *found*."""
        place = -1
        if capital is not None:  # even between two bounds, odd on one
            place = bisect_left(self._capitals, capital) + bisect_right(self._capitals, capital)
        kind = (segments, place, self._named.get(user_id, 0))
        plan = self._plans.get(kind) or self._add_plan(kind, user_id, segments, capital)
        found.update(plan.values)
        if plan.splits:
            encoded = user_id.encode()
            for name, buckets, edges, values in plan.splits:
                found[name] = values[bisect_right(edges, buckets.bucket_of(encoded))]

    def _add_plan(self, kind: _Kind, user_id: str, segments: frozenset[str], capital: float | None) -> _Plan:
        """Return the plan of a user, which is that of all users of the same kind."""
        fixed = self.defaults.copy()
        splits: list[_Split] = []
        for name, rules in self._rules.items():
            edges: list[int] = []
            values: list[Value] = []
            for rule in rules:
                percent = rule.when.percent
                below = BUCKETS if percent is None else basis_points(percent)
                reached = edges[-1] if edges else 0  # an earlier rule decides for these buckets
                if below > reached and _concerns(rule.when, user_id, segments, capital):
                    edges.append(below)
                    values.append(self._value(name, rule)[0])
            if edges and edges[0] == BUCKETS:
                fixed[name] = values[0]
            elif edges:
                splits.append((name, self._buckets[name], tuple(edges), (*values, fixed[name])))
        if len(self._plans) >= _MOST_PLANS:  # such kinds of users are not worth their memory
            self._plans.clear()
        plan = self._plans[kind] = _Plan(fixed, tuple(splits))
        return plan

    def explain(self, user_id: str, segments: frozenset[str], capital: float | None) -> dict[str, Resolved]:
        """Return `values` with the reason of each, by name."""
        return {name: self.explain_one(name, user_id, segments, capital) for name in self.declared}

    def explain_one(self, name: str, user_id: str, segments: frozenset[str], capital: float | None) -> Resolved:
        """Return the value of one toggle, with the reason. Raise UnknownToggle if it is not declared."""
        known_toggle(self.declared, self._strategy_name, name)
        bucket = bucket_of(user_id, toggle_salt(self._strategy_name, name))
        tried = ""
        for number, rule in enumerate(self._rules.get(name, ()), 1):
            when = rule.when
            if not _concerns(when, user_id, segments, capital):
                continue
            if when.percent is not None:
                tried = f", bucket {bucket / 100:.2f}"
                if bucket >= basis_points(when.percent):
                    continue
            limit = "" if when.percent is None else f"{tried} < {when.percent:.2f}"
            value, refused = self._value(name, rule)
            but = f", but default: {refused}" if refused else ""
            return Resolved(value, f"rule {number}: {when.shown}{limit}{but}", number, split=when.percent is not None)
        why = f"no rule concerns the user{tried}" if name in self._rules else "it has no rule"
        return Resolved(self.defaults[name], f"default: {why}")

    def _value(self, name: str, rule: Rule) -> tuple[Value, str]:
        """Return the value of a rule, or the default and why this version does not allow that."""
        try:
            return self.declared[name].checked(rule.value), ""
        except InvalidToggle as error:
            return self.defaults[name], error.problem


def _concerns(when: When, user_id: str, segments: frozenset[str], capital: float | None) -> bool:
    """Return whether all conditions hold but the percentage."""
    if when.user_ids is not None and user_id not in when.user_ids:
        return False
    if when.segment is not None and when.segment not in segments:
        return False
    if when.capital_at_least is not None and (capital is None or capital < when.capital_at_least):
        return False
    return when.capital_at_most is None or (capital is not None and capital <= when.capital_at_most)


def resolve(
    strategy_name: str,
    declared: Mapping[str, Toggle],
    rules: Mapping[str, Sequence[Rule]],
    *,
    user_id: str,
    segments: frozenset[str] = _NO_SEGMENTS,
    capital: float | None = None,
) -> dict[str, Resolved]:
    """Return the value of each toggle for one user, with the reason, by name."""
    return Resolver(strategy_name, declared, rules).explain(user_id, segments, capital)


def rule_differences(old: Sequence[Rule], new: Sequence[Rule]) -> list[str]:
    """Return where the rules of a toggle differ, a line for each number."""
    lines = []
    for number, (one, other) in enumerate(zip_longest(old, new), 1):
        if one is None:
            lines.append(f"rule {number} is added: {other.shown}")
        elif other is None:
            lines.append(f"rule {number} is removed: {one.shown}")
        elif rule_facts([one]) != rule_facts([other]):
            users = " (other users)" if one.shown == other.shown else ""
            lines.append(f"rule {number} is {one.shown}, declared {other.shown}{users}")
    return lines


def rule_facts(rules: Sequence[Rule]) -> list[dict[str, Any]]:
    """Return what an audit event shows of rules. Users are shown by their number and digest."""
    return [{"when": _conditions(rule), "value": rule.value, "type": type(rule.value).__name__} for rule in rules]


def _conditions(rule: Rule) -> dict[str, Any]:
    when = rule.stored()
    if "user_ids" in when:
        when["user_ids"] = {"users": len(when["user_ids"]), "digest": values_digest(when["user_ids"])}
    return when


def known_toggle(declared: Mapping[str, Toggle], strategy_name: str, name: str) -> Toggle:
    """Return a toggle by name. Raise UnknownToggle if it is not declared."""
    if name not in declared:
        raise UnknownToggle(strategy_name, name, declared)
    return declared[name]


@dataclass(frozen=True, slots=True)
class AllToggles:
    """All that resolves toggles in memory.

    Attributes:
        declared: strategy -> version -> toggles by name, of versions that declare any.
        rules: strategy -> toggle -> its rules in order.
        segments: user -> segments that a rule names.
        capital: user -> capital, if a rule asks for it.
    """

    declared: Mapping[str, Mapping[str, Mapping[str, Toggle]]]
    rules: Mapping[str, Mapping[str, Sequence[Rule]]]
    segments: Mapping[str, frozenset[str]]
    capital: Mapping[str, float]


class Member(BaseModel):
    """A row of the segments' file: a user is a member of a segment."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    user_id: NewUserId
    segment: Annotated[Name, Field(max_length=_LONGEST)]
