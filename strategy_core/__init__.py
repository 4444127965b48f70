"""The public names of this package, imported on first use because some are slow to import."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from strategy_core.domain.errors import RolloutError
    from strategy_core.domain.lifecycle import Status
    from strategy_core.domain.plan import Plan
    from strategy_core.domain.scoring import ScoringRule
    from strategy_core.domain.strategy import Action, Context, Decision, Intent, Strategy
    from strategy_core.registry import VersionRegistry
    from strategy_core.router.router import Router
    from strategy_core.router.signal_feed import SignalFeed
    from strategy_core.shadow_executor import ShadowExecutor

__all__ = [
    "Action",
    "Context",
    "Decision",
    "Intent",
    "Plan",
    "RolloutError",
    "Router",
    "ScoringRule",
    "ShadowExecutor",
    "SignalFeed",
    "Status",
    "Strategy",
    "VersionRegistry",
]

_MODULES = {
    "Action": "domain.strategy",
    "Context": "domain.strategy",
    "Decision": "domain.strategy",
    "Intent": "domain.strategy",
    "Plan": "domain.plan",
    "RolloutError": "domain.errors",
    "Router": "router.router",
    "ScoringRule": "domain.scoring",
    "ShadowExecutor": "shadow_executor",
    "SignalFeed": "router.signal_feed",
    "Status": "domain.lifecycle",
    "Strategy": "domain.strategy",
    "VersionRegistry": "registry",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
