"""Use cases: what flows, API, command line and SDK call. Each change of a strategy is one transaction."""

import sys
import warnings
from importlib import import_module
from types import ModuleType
from typing import Any

_MOVED = {"live": "live_trades", "directory": "users"}  # public modules of 0.2.0, importable for one more release


class _MovedModule(ModuleType):
    """The old name of a module. Its names are those of the new module."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        new = _MOVED[self.__name__.rpartition(".")[2]]
        warnings.warn(f"{self.__name__} is now {__name__}.{new}", DeprecationWarning, stacklevel=2)
        return getattr(import_module(f"{__name__}.{new}"), name)


sys.modules |= {f"{__name__}.{old}": _MovedModule(f"{__name__}.{old}") for old in _MOVED}
