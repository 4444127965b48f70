"""A YAML file that declares strategies, versions, plans, policies and rules of toggles. Live state is no part of it."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from math import inf
from typing import Annotated, Any, Literal, NoReturn, Self, TypeAlias

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from strategy_core.domain.audit import UNSTORABLE
from strategy_core.domain.candles import TIMEFRAMES
from strategy_core.domain.errors import InvalidDeclaration
from strategy_core.domain.parsing import each_name_once
from strategy_core.domain.plan import Percent, Plan
from strategy_core.domain.policy import LossLimit, Policy
from strategy_core.domain.scoring import ScoringRule
from strategy_core.domain.toggles import MOST_RULES, MOST_TOGGLES, Rule, ToggleName

MOST_BYTES = 1_000_000
DEEPEST = 50  # levels of nesting
_LIVE = {  # state that owners and rollouts set, with the command that shows or sets it
    **dict.fromkeys(("percent", "rollout_percent", "rollout_bp", "canary"), "rollout canary"),
    **dict.fromkeys(("stage", "stage_index", "approved_stage", "state", "rollout", "started_at"), "rollout status"),
    **dict.fromkeys(("pause", "paused"), "rollout pause"),
    **dict.fromkeys(("status", "active", "active_version", "activated_at"), "rollout activate"),
    **dict.fromkeys(("quarantined", "quarantined_at"), "rollout rollback"),
    **dict.fromkeys(("retired", "retired_at"), "rollout retire"),
    **dict.fromkeys(("excluded", "excluded_symbols"), "rollout exclude"),
    **dict.fromkeys(("frozen", "freeze", "freezes"), "rollout freeze"),
    **dict.fromkeys(("segments", "members"), "rollout toggle segments"),
    **dict.fromkeys(("exclusions", "opt_outs"), "rollout exclusions"),
}
_SCHEMA = "https://json-schema.org/draft/2020-12/schema"
_WORDS = {"type": "string", "pattern": r"^(\d+(\.\d+)?[wdhms])+$"}

Place: TypeAlias = tuple[str | int, ...]
_Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$")]
_Rules = Annotated[
    list[Rule], Field(max_length=MOST_RULES, description="in order: the first that concerns a user decides")
]


class DeclaredModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DeclaredStrategy(DeclaredModel):
    """What is set once, with the first version of a strategy."""

    salt: str | None = Field(default=None, max_length=64, description="salt of user bucketing. Default: empty")
    scoring: ScoringRule | None = Field(default=None, description="how decisions become trades. Default: the standard")


class DeclaredVersion(DeclaredModel):
    """A version, as `rollout register` takes it."""

    strategy: _Name
    version: _Name
    entry_point: str | None = Field(default=None, description="known name, or package.module:Class. Default: strategy")
    config: dict[str, Any] = Field(default={}, description="parameters. The strategy's own defaults fill the rest")
    symbols: list[_Name] | None = Field(default=None, min_length=1, description="default: all symbols of the feed")
    timeframe: Literal[*TIMEFRAMES] | None = Field(default=None, description="default: the feed's timeframe")  # type: ignore[valid-type]

    @property
    def loaded_from(self) -> str:
        return self.entry_point or self.strategy


class DeclaredPolicy(DeclaredModel):
    """Rules for the rollouts of a strategy."""

    plans: list[_Name] = Field(default=[], description="plans that a rollout must use, by name. None: every plan")
    four_eyes: bool = Field(default=False, description="another owner than the one who started it must approve")
    holdout_percent: Percent = Field(
        default=0.0, le=50, description="share of users that no canary reaches before it is promoted"
    )
    max_canaries_per_user: int | None = Field(
        default=None, ge=1, le=100, description="hold while so many older canaries have the same salt. Empty: no limit"
    )
    loss_limit: LossLimit | None = Field(
        default=None, description="loss of one user at which the user opens no new position. Empty: no limit"
    )


class Declaration(DeclaredModel):
    """The content of a file for `rollout apply`."""

    strategies: dict[_Name, DeclaredStrategy] = {}
    versions: list[DeclaredVersion] = []
    plans: dict[_Name, Plan] = Field(default={}, description="rollout plans by name. Times as 3d, 12h or 30m")
    policies: dict[_Name, DeclaredPolicy] = Field(default={}, description="by strategy")
    toggles: dict[_Name, Annotated[dict[ToggleName, _Rules], Field(max_length=MOST_TOGGLES)]] = Field(
        default={}, description="rules by strategy and toggle, which replace all that the toggle has"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [(each.strategy, each.version) for each in self.versions]
        if twice := next((name for name, times in Counter(names).items() if times > 1), None):
            raise ValueError(f"version {' '.join(twice)} is declared twice")
        for strategy, policy in self.policies.items():
            if unknown := sorted(set(policy.plans) - self.plans.keys()):
                known = ", ".join(sorted(self.plans)) or "none"
                raise ValueError(f"the policy of {strategy} names plan {unknown[0]}; declared plans: {known}")
        unused = self.plans.keys() - {name for policy in self.policies.values() for name in policy.plans}
        if unused:
            raise ValueError(f"plan {min(unused)} is in no policy, so that no strategy would know it")
        return self

    def policy_of(self, strategy_name: str) -> Policy:
        """Return the declared policy of a strategy, with the content of its plans."""
        declared = self.policies[strategy_name]
        return Policy(
            plans={name: self.plans[name] for name in declared.plans},
            **{name: getattr(declared, name) for name in DeclaredPolicy.model_fields if name != "plans"},
        )


def read_declaration(data: bytes, source: str) -> Declaration:
    """Parse and validate a file.

    Args:
        data: YAML 1.2 in UTF-8, of at most MOST_BYTES, without anchors, aliases and tags.
        source: named in errors.

    Raises:
        InvalidDeclaration: names the line and the field of each problem.
    """
    if len(data) > MOST_BYTES:
        raise InvalidDeclaration(source, [f"it is larger than {MOST_BYTES:,} bytes"])
    lines: dict[Place, int] = {(): 1}
    try:
        node = _Loader(data.decode("utf-8-sig")).get_single_node()
        found = {} if node is None else _plain(node, (), lines)
        return Declaration.model_validate(found)
    except UnicodeDecodeError:
        problems = ["it is not UTF-8"]
    except RecursionError:
        problems = ["it is nested too deeply"]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problems = [f"line {mark.line + 1}: {error.problem}"]
    except yaml.YAMLError as error:
        problems = [" ".join(str(error).split())]
    except ValidationError as error:
        problems = [_problem(dict(each), lines) for each in error.errors()]
    raise InvalidDeclaration(source, problems) from None


def declaration_schema() -> dict[str, Any]:
    """Return the JSON Schema of a file, for editors."""
    schema = Declaration.model_json_schema()
    return {"$schema": _SCHEMA, **{name: _with_words(part) for name, part in schema.items()}, "title": "rollout.yaml"}


def _with_words(schema: Any) -> Any:
    """Allow texts such as `3d` where a plan has a duration, which programs give as a number of seconds."""
    if isinstance(schema, list):
        return [_with_words(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    is_duration = schema.get("exclusiveMinimum") == 0 and str(schema.get("description")).startswith("seconds")
    if is_duration:
        number = {name: schema[name] for name in ("type", "exclusiveMinimum")}
        others = {name: value for name, value in schema.items() if name not in number}
        return {**others, "anyOf": [_WORDS, number]}
    return {name: _with_words(value) for name, value in schema.items()}


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """Scalars as in YAML 1.2: `no`, `on`, `1:30` and dates are texts."""

    yaml_implicit_resolvers: dict[str, Any] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases are not allowed", self.peek_event().start_mark)
        return super().compose_node(parent, index)


def _add_scalars(kinds: Mapping[str, tuple[str, str]]) -> None:
    for kind, (pattern, first) in kinds.items():
        _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(rf"(?:{pattern})\Z"), list(first))


_add_scalars(
    {
        "bool": ("true|True|TRUE|false|False|FALSE", "tTfF"),
        "int": (r"[-+]?\d+", "-+0123456789"),
        "float": (r"[-+]?(?:\.\d+|\d+(?:\.\d*)?)(?:[eE][-+]?\d+)?", "-+.0123456789"),
    }
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"(?:null|Null|NULL|~|)\Z"), ["n", "N", "~", ""])
_SCALARS: Mapping[str, Callable[[str], Any]] = {
    "str": str,
    "bool": lambda text: text.lower() == "true",
    "int": int,
    "float": float,
    "null": lambda _: None,
}


def _plain(node: Any, path: Place, lines: dict[Place, int]) -> Any:
    """Return the JSON value of a YAML node, and note the line of each of its parts."""
    lines.setdefault(path, node.start_mark.line + 1)
    if len(path) > DEEPEST:
        _refuse(f"it is nested too deeply, more than {DEEPEST} levels", node)
    kind = node.tag.removeprefix("tag:yaml.org,2002:")
    if kind == "map":
        return _each_key_once(list(_pairs(node, path, lines)), node)
    if kind == "seq":
        return [_plain(each, (*path, number), lines) for number, each in enumerate(node.value)]
    if kind not in _SCALARS:
        _refuse(f"tag {node.tag} is not allowed", node)
    _check_text(node)
    try:
        found = _SCALARS[kind](node.value)
    except ValueError:  # thousands of digits, or a text with the tag of a number
        found = inf
    if found in (inf, -inf):
        _refuse(f"{node.value[:40]!r} is not a number", node)
    return found


def _pairs(node: Any, path: Place, lines: dict[Place, int]) -> Iterator[tuple[str, Any]]:
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            _refuse("a name must be a text", key)
        _check_text(key)
        lines[(*path, key.value)] = key.start_mark.line + 1
        yield key.value, _plain(value, (*path, key.value), lines)


def _check_text(node: Any) -> None:
    if UNSTORABLE.search(node.value):
        _refuse("a text has NUL or half a surrogate pair, which cannot be stored", node)


def _each_key_once(pairs: list[tuple[str, Any]], node: Any) -> dict[str, Any]:
    try:
        return each_name_once(pairs)
    except ValueError as error:
        _refuse(str(error), node)


def _refuse(why: str, node: Any) -> NoReturn:
    raise yaml.constructor.ConstructorError(None, None, why, node.start_mark)


def _problem(error: dict[str, Any], lines: Mapping[Place, int]) -> str:
    place: Place = ()
    for part in error["loc"]:  # names of a union's members and of patterns are no parts of the file
        if (*place, part) in lines:
            place = (*place, part)
    where = f"line {lines[place]}" + (f", {'.'.join(map(str, place))}" if place else "")
    if error["type"] == "extra_forbidden":
        return f"{where}: {_unknown(str(error['loc'][-1]))}"
    if error["type"] == "missing":
        return f"{where}: {error['loc'][-1]} is missing"
    if error["type"] == "string_type":
        return f'{where}: a text is needed, in quotes: "{error["input"]}"'
    if error["type"] == "time_delta_parsing":
        return f"{where}: a time is needed, as 3d, 12h, 30m or 90s, or a number of seconds"
    return f"{where}: {str(error['msg']).removeprefix('Value error, ')}"


def _unknown(name: str) -> str:
    if name in _LIVE:
        return (
            f"{name} is live state and cannot be declared, because a file would undo what an owner did in an "
            f"incident (use: {_LIVE[name]})"
        )
    return "no such field"
