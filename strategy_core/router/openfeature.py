"""OpenFeature provider: versions and toggles as feature flags, answered from a Router's memory.

It needs the extra `openfeature`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from strategy_core.domain.errors import (
    InvalidName,
    MissingExtra,
    NotFound,
    RouterClosed,
    UnknownStrategy,
    UnknownToggle,
)
from strategy_core.router.router import Router

try:
    from openfeature.evaluation_context import EvaluationContext
    from openfeature.exception import (
        FlagNotFoundError,
        GeneralError,
        InvalidContextError,
        ProviderNotReadyError,
        TargetingKeyMissingError,
        TypeMismatchError,
    )
    from openfeature.flag_evaluation import FlagResolutionDetails, FlagValueType, Reason
    from openfeature.provider import AbstractProvider, Metadata
except ImportError:
    raise MissingExtra("the OpenFeature provider", "openfeature") from None

Flag = TypeVar("Flag", bound=bool | int | float | str)


class RolloutProvider(AbstractProvider):
    """Answers two kinds of flags for the user whose id is the context's targeting key.

    `STRATEGY` is the name of the version that the user gets, as a string. `STRATEGY.TOGGLE` is the value of a toggle of
    that version, by its type. A strategy of the whole key's name comes first. The attribute `symbol` of the context is
    the symbol of the trade.

    The reason is SPLIT for a percentage, TARGETING_MATCH for another rule, DEFAULT without one, and STALE if the router
    has lost its source. The metadata `why` names the rule and the bucket.

    Args:
        router: made with `toggles=True`. Its owner closes it.
    """

    def __init__(self, router: Router) -> None:
        super().__init__()
        self._router = router
        _ = router.toggles_stale  # raises InvalidSetting if the router keeps no toggles

    def get_metadata(self) -> Metadata:
        return Metadata("strategy-rollout")

    def resolve_boolean_details(
        self, flag_key: str, default_value: bool, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[bool]:
        return self._resolve(flag_key, bool, evaluation_context)

    def resolve_string_details(
        self, flag_key: str, default_value: str, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[str]:
        return self._resolve(flag_key, str, evaluation_context)

    def resolve_integer_details(
        self, flag_key: str, default_value: int, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[int]:
        return self._resolve(flag_key, int, evaluation_context)

    def resolve_float_details(
        self, flag_key: str, default_value: float, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[float]:
        return self._resolve(flag_key, float, evaluation_context)

    def resolve_object_details(
        self,
        flag_key: str,
        default_value: Sequence[FlagValueType] | Mapping[str, FlagValueType],
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[Sequence[FlagValueType] | Mapping[str, FlagValueType]]:
        raise TypeMismatchError(f"{flag_key} is no object: versions are strings, and toggles have one value each")

    def _resolve(
        self, flag_key: str, kind: type[Flag], context: EvaluationContext | None
    ) -> FlagResolutionDetails[Flag]:
        user_id = None if context is None else context.targeting_key
        if not user_id:
            raise TargetingKeyMissingError("the targeting key is the id of the user")
        symbol = None if context is None else context.attributes.get("symbol")
        found = _translated(lambda: self._answer(flag_key, user_id, symbol))
        if type(found.value) is not kind:  # a bool is an int too
            raise TypeMismatchError(f"{flag_key} is {type(found.value).__name__}, not {kind.__name__}")
        return found

    def _answer(self, flag_key: str, user_id: str, symbol: Any) -> FlagResolutionDetails[Any]:
        try:
            return self._version(flag_key, user_id, symbol)
        except UnknownStrategy:
            strategy_name, dot, toggle = flag_key.rpartition(".")
            if not dot:
                raise
        found = self._router.explain_toggle(user_id, strategy_name, toggle, symbol)
        reason = Reason.SPLIT if found.split else Reason.TARGETING_MATCH
        if found.rule is None:
            reason = Reason.DEFAULT
        if self._router.toggles_stale or self._router.stale:
            reason = Reason.STALE
        variant = "default" if found.rule is None else f"rule {found.rule}"
        return FlagResolutionDetails(found.value, reason=reason, variant=variant, flag_metadata={"why": found.why})

    def _version(self, strategy_name: str, user_id: str, symbol: Any) -> FlagResolutionDetails[Any]:
        version = self._router.version_for(user_id, strategy_name, symbol)
        route = self._router.explain(user_id, strategy_name, symbol)
        reason = Reason.SPLIT if route.percent else Reason.DEFAULT
        if route.excluded is not None:
            reason = Reason.TARGETING_MATCH
        if self._router.stale:
            reason = Reason.STALE
        metadata: dict[str, bool | int | float | str] = {"why": route.why, "generation": route.generation}
        return FlagResolutionDetails(version, reason=reason, variant=version, flag_metadata=metadata)


def _translated(answer: Callable[[], FlagResolutionDetails[Any]]) -> FlagResolutionDetails[Any]:
    """Return the answer, or raise the error that OpenFeature has for a refusal."""
    try:
        return answer()
    except (UnknownStrategy, UnknownToggle) as unknown:
        raise FlagNotFoundError(str(unknown)) from None
    except InvalidName as refused:
        raise InvalidContextError(str(refused)) from None
    except RouterClosed as closed:
        raise ProviderNotReadyError(str(closed)) from None
    except NotFound as closed_strategy:
        raise GeneralError(str(closed_strategy)) from None
