"""A version's config against its strategy's own model; never what the values mean."""

import math
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import AliasChoices, AliasPath, BaseModel, ValidationError

from strategy_core.domain.errors import InvalidConfig, StrategyFailed

MAX_WARMUP_BARS = 100_000


def validated(params_model: type[BaseModel], config: Mapping[str, Any], entry_point: str) -> BaseModel:
    """Return *config* as an instance of *params_model*, its defaults filled.

    Raises:
        InvalidConfig: a key the model does not have (refused whatever the model's own `extra` says), a value it does
            not take, or a number that is not finite; one line per field.
    """
    fields = _keys(params_model)
    problems = [_unknown(key, fields) for key in config if key not in fields]
    problems += [f"{name}: {value} is not a finite number" for name, value in _not_finite(config)]
    if problems:
        raise InvalidConfig(entry_point, problems)
    try:
        return params_model.model_validate(dict(config))
    except ValidationError as refused:
        raise InvalidConfig(entry_point, [_problem(dict(error)) for error in refused.errors()]) from None


def canonical(params: BaseModel) -> dict[str, Any]:
    """Return the config as it is stored and fingerprinted: JSON values, every default filled."""
    return params.model_dump(mode="json")


def warmup_of(owner: Any, params: BaseModel) -> int:
    """Return `warmup_bars` of a strategy, an engine or its params, be it a number or a method of params."""
    bars = getattr(owner, "warmup_bars", None)
    if callable(bars):
        bars = bars(params)
    if not isinstance(bars, int) or isinstance(bars, bool) or not 1 <= bars <= MAX_WARMUP_BARS:
        raise StrategyFailed(
            f"{type(owner).__name__}.warmup_bars is {bars!r}; "
            f"allowed: 1 to {MAX_WARMUP_BARS} candles, as an int or as a method of params"
        )
    return bars


def _keys(params_model: type[BaseModel]) -> list[str]:
    """Return the keys the model reads; a field with an alias is read by its alias, which hides its name."""
    settings = params_model.model_config
    by_name = settings.get("populate_by_name") or settings.get("validate_by_name")
    keys: list[str] = []
    for name, field in params_model.model_fields.items():
        alias = field.validation_alias
        aliases = alias.choices if isinstance(alias, AliasChoices) else [alias]
        firsts = [one.path[0] if isinstance(one, AliasPath) else one for one in aliases]
        keys += [str(first) for first in firsts if first is not None]
        keys += [name] if by_name or alias is None else []
    return keys


def _unknown(key: str, fields: list[str]) -> str:
    close = get_close_matches(key, fields, n=1)
    return f"{key}: no such key; " + (
        f"did you mean {close[0]}?" if close else f"allowed: {', '.join(fields) or 'none'}"
    )


def _not_finite(value: object, name: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(value, float) and not math.isfinite(value):
        yield name, value
    items: Iterator[tuple[object, object]] = iter(())
    if isinstance(value, Mapping):
        items = iter(value.items())
    elif isinstance(value, list | tuple):
        items = iter(enumerate(value))
    for key, inner in items:
        yield from _not_finite(inner, f"{name}.{key}" if name else str(key))


def _problem(error: dict[str, Any]) -> str:
    where = ".".join(str(part) for part in error["loc"])
    what = error["msg"].removeprefix("Value error, ")
    return f"{where}: {what} (given {error['input']!r:.60})" if where else what
