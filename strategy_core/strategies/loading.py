"""From an entry point to a strategy in code; never from a file path, and never outside the worker in production."""

import re
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any, cast

from pydantic import BaseModel

from strategy_core.domain.errors import InvalidEntryPoint
from strategy_core.domain.strategy import Strategy
from strategy_core.strategies.adapter import Adapted

GROUP = "strategy_core.strategies"
OBJECT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def known() -> list[str]:
    """Return the names of the entry points installed here, sorted."""
    return sorted({point.name for point in entry_points(group=GROUP)})


def resolve(entry_point: str) -> str:
    """Return *entry_point*, a known name or `package.module:Class`, as `package.module:Class`; import nothing.

    Raises:
        InvalidEntryPoint: neither a known name nor of that form, such as a file path.
    """
    if OBJECT_PATH.fullmatch(entry_point):
        return entry_point
    for point in entry_points(group=GROUP, name=entry_point):
        return point.value.replace(" ", "")
    names = known()
    close = get_close_matches(entry_point, names, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known names: {', '.join(names) or 'none'}"
    raise InvalidEntryPoint(entry_point, f"neither package.module:Class nor a known name; {hint}")


def load(entry_point: str) -> Strategy:
    """Import and make the strategy; a `generate_signal` engine comes adapted.

    Raises:
        InvalidEntryPoint: there is no such module or class, or it is no strategy. What its own code raises comes
            through as it is.
    """
    module_name, _, class_name = resolve(entry_point).partition(":")
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as missing:
        raise InvalidEntryPoint(entry_point, f"no module named {missing.name!r}") from None
    found = getattr(module, class_name, None)
    if found is None:
        raise InvalidEntryPoint(entry_point, _no_such_class(module, class_name))
    if not isinstance(found, type):
        raise InvalidEntryPoint(entry_point, f"{class_name} is not a class")
    return as_strategy(found, entry_point)


def as_strategy(found: Any, entry_point: str) -> Strategy:
    """Return a class, or a ready engine, as a strategy.

    Raises:
        InvalidEntryPoint: it has neither `decide` nor `generate_signal`, or decides without `Params` or `warmup_bars`.
    """
    if callable(getattr(found, "decide", None)):
        strategy = found() if isinstance(found, type) else found
        params_model = getattr(strategy, "Params", None)
        if not isinstance(params_model, type) or not issubclass(params_model, BaseModel):
            raise InvalidEntryPoint(entry_point, "it has no Params, the pydantic model of its config")
        if not hasattr(strategy, "warmup_bars"):
            raise InvalidEntryPoint(entry_point, "it has no warmup_bars, an int or a method of params")
        return cast(Strategy, strategy)
    if callable(getattr(found, "generate_signal", None)):
        return Adapted(found, entry_point)
    raise InvalidEntryPoint(
        entry_point, "it has neither decide(candles, params, context) nor generate_signal(df, symbol, timestamp)"
    )


def _no_such_class(module: ModuleType, class_name: str) -> str:
    classes = [name for name, value in vars(module).items() if isinstance(value, type) and not name.startswith("_")]
    close = get_close_matches(class_name, classes, n=1)
    hint = f"did you mean {close[0]}?" if close else f"its classes: {', '.join(sorted(classes)) or 'none'}"
    return f"module {module.__name__} has no {class_name}; {hint}"
