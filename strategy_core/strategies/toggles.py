"""Read the toggles that a strategy's class declares, and refuse those that would change its decisions.

This runs in the worker: what it returns may have been written by the version's code.
"""

from collections.abc import Iterator, Mapping
from types import CodeType
from typing import Any

from pydantic import BaseModel

from strategy_core.domain.strategy import Strategy
from strategy_core.domain.toggles import ALLOWED
from strategy_core.strategies.loading import Adapted, config_keys

ATTRIBUTE = "Toggles"
INSTEAD = "a value that changes decisions is config: register a version with it, and roll that out"


def declared_toggles(strategy: Strategy) -> tuple[Mapping[str, Any], list[str]]:
    """Return the `properties` of the schema of a strategy's `Toggles`, and the problems with it. Both may be empty.

    Refused are a toggle that is a field of `Params` too, and methods of the strategy that name `Toggles`. Not detected
    are functions outside the class that read it, and names that are put together at run time. They would read the
    defaults, the same for all users: the values of users are not given to a worker.
    """
    owner = strategy.source if isinstance(strategy, Adapted) else strategy
    model = getattr(owner, ATTRIBUTE, None)
    if model is None:
        return {}, []
    if not isinstance(model, type) or not issubclass(model, BaseModel):
        return {}, [f"{ATTRIBUTE} is no pydantic model; allowed: a model with {ALLOWED}"]
    problems = [f"{name} is a field of the config too; {INSTEAD}" for name in _shared(strategy, model)]
    problems += [f"{method} reads {ATTRIBUTE}; {INSTEAD}" for method in _readers(owner, {ATTRIBUTE, model.__name__})]
    if _validates(model):
        problems.append(f"{ATTRIBUTE} has validators, which rules could not follow; allowed: {ALLOWED}")
    schema = model.model_json_schema(by_alias=False)
    missing = set(schema.get("required", ()))
    problems += [f"{name} has no default" for name in sorted(missing)]
    return {name: field for name, field in schema.get("properties", {}).items() if name not in missing}, problems


def _shared(strategy: Strategy, model: type[BaseModel]) -> list[str]:
    taken = {*strategy.Params.model_fields, *config_keys(strategy.Params)}
    return sorted(taken.intersection(model.model_fields))


def _validates(model: type[BaseModel]) -> bool:
    decorators = model.__pydantic_decorators__
    return bool(decorators.field_validators or decorators.model_validators or decorators.validators)


def _readers(owner: object, names: set[str]) -> list[str]:
    """Return the methods of the owner's class whose code names one of *names*."""
    kind = owner if isinstance(owner, type) else type(owner)
    found = set()
    for each in kind.__mro__:
        for name, member in vars(each).items():
            function = getattr(member, "__func__", getattr(member, "fget", member))
            code = getattr(function, "__code__", None)
            if isinstance(code, CodeType) and names.intersection(_named(code)):
                found.add(f"{each.__name__}.{name}")
    return sorted(found)


def _named(code: CodeType) -> Iterator[str]:
    yield from (*code.co_names, *code.co_freevars)
    for constant in code.co_consts:
        if isinstance(constant, str):
            yield constant
        elif isinstance(constant, CodeType):
            yield from _named(constant)
