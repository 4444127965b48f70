"""Show that a version cannot reach outside, and what it has tried; the version is loaded, never asked."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Engine

from strategy_core.domain.errors import IsolationBreach
from strategy_core.isolation.proof import Attempt, prove_isolation
from strategy_core.services.workers import Workers
from strategy_core.store import decisions, versions
from strategy_core.store.engine import reading
from strategy_core.store.tables import ShadowDecisionLog


@dataclass(frozen=True, slots=True)
class Isolation:
    """What the walls hold, and what the version did to them.

    Attributes:
        tried: every reach for the outside from a worker such as the version gets.
        breaches: decisions in which the version itself tried one, oldest first.
        loading: what it tried while it was loaded just now; "" when nothing.
    """

    tried: Sequence[Attempt]
    breaches: Sequence[ShadowDecisionLog]
    loading: str

    @property
    def isolated(self) -> bool:
        """Whether every try was refused: then no version reaches outside, whatever it tries."""
        return all(each.refused for each in self.tried)


def check_isolation(engine: Engine, workers: Workers, *, strategy_name: str, version: str) -> Isolation:
    """Try the walls around a version, load it behind them, and read from the log what it has tried before.

    Raises:
        UnknownStrategy, UnknownVersion
        FingerprintMismatch, InvalidEntryPoint, InvalidConfig, StrategyFailed: it cannot be loaded any more.
    """
    with reading(engine) as session:
        checked = versions.get_version(session, strategy_name, version)
        breaches = decisions.find_breaches(session, strategy_name, version)
    try:
        loading = "; ".join(workers.of(checked).breaches)
    except IsolationBreach as breach:
        loading = breach.tried
    return Isolation(prove_isolation(), breaches, loading)
