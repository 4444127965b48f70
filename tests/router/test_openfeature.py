"""Versions and toggles as flags, asked for by OpenFeature's own client."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from openfeature import api
from openfeature.client import OpenFeatureClient
from openfeature.evaluation_context import EvaluationContext
from openfeature.event import EventDetails, ProviderEvent
from openfeature.exception import ErrorCode
from openfeature.flag_evaluation import FlagEvaluationDetails, Reason
from openfeature.hook import Hook, HookContext, HookHints
from openfeature.provider import ProviderStatus
from sqlalchemy import Engine

from strategy_core import Router
from strategy_core.domain.audit import Command
from strategy_core.domain.errors import InvalidSetting
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.toggles import read_rule
from strategy_core.router.openfeature import RolloutProvider
from strategy_core.services.canary import activate_canary
from strategy_core.services.toggles import load_segments, set_rules
from strategy_core.store import rollouts
from strategy_core.store.engine import transaction
from tests.builders import MONDAY, OWNER, put_version
from tests.router.conftest import USERS, Clock, until

NOW = Command(OWNER, MONDAY)
DECLARED = {
    "risk_scale": {"type": "number", "minimum": 0.25, "maximum": 1, "default": 1},
    "notify_only": {"type": "boolean", "default": False},
    "entry_delay": {"type": "integer", "minimum": 0, "maximum": 5, "default": 2},
    "tone": {"type": "string", "enum": ["short", "long"], "default": "short"},
}


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    return sqlite_url


@pytest.fixture
def flags(engine: Engine) -> Engine:
    """Version 1 serves and the canary 2 a quarter; `new` users risk half; some of the others get long texts."""
    for version, status in (("1", Status.ACTIVE), ("2", Status.SHADOW)):
        put_version(engine, version, status, toggles=json.dumps(DECLARED))
        put_version(engine, version, status, strategy_name="a.b", toggles=json.dumps(DECLARED))
    put_version(engine, "7", Status.ACTIVE, strategy_name="a", toggles=json.dumps(DECLARED))
    put_version(engine, "9", Status.SHADOW, strategy_name="closed")
    activate_canary(engine, NOW, strategy_name="fib_rsi", version="2", rollout_percent=25)
    load_segments(engine, NOW, [("user_1", "new")])
    for name, value, when in (("risk_scale", 0.5, {"segment": "new"}), ("tone", "long", {"percent": 100})):
        rules = [read_rule(when, value, name, 1)]
        set_rules(engine, NOW, strategy_name="fib_rsi", name=name, rules=rules)
    return engine


@pytest.fixture
def router(flags: Engine, database_url: str, clock: Clock) -> Iterator[Router]:
    with Router(database_url, toggles=True, clock=clock) as router:
        yield router


@pytest.fixture
def client(router: Router) -> Iterator[OpenFeatureClient]:
    api.set_provider(RolloutProvider(router))
    yield api.get_client()
    api.shutdown()
    api.clear_providers()


def user(user_id: str | None = "user_1", **attributes: Any) -> EvaluationContext:
    return EvaluationContext(targeting_key=user_id, attributes=attributes)


def test_a_toggle_is_a_flag_of_its_type(client: OpenFeatureClient) -> None:
    assert client.get_float_value("fib_rsi.risk_scale", 0.9, user()) == 0.5
    assert client.get_boolean_value("fib_rsi.notify_only", True, user()) is False
    assert client.get_integer_value("fib_rsi.entry_delay", 9, user()) == 2
    assert client.get_string_value("fib_rsi.tone", "none", user()) == "long"


@pytest.mark.parametrize(
    ("key", "ask", "reason", "variant"),
    [
        ("fib_rsi.risk_scale", "float", Reason.TARGETING_MATCH, "rule 1"),
        ("fib_rsi.tone", "string", Reason.SPLIT, "rule 1"),
        ("fib_rsi.notify_only", "boolean", Reason.DEFAULT, "default"),
    ],
)
def test_the_details_of_a_toggle_say_why(
    client: OpenFeatureClient, key: str, ask: str, reason: Reason, variant: str
) -> None:
    defaults: dict[str, Any] = {"float": 0.9, "string": "none", "boolean": True}
    details = getattr(client, f"get_{ask}_details")(key, defaults[ask], user())

    assert (details.reason, details.variant, details.error_code) == (reason, variant, None)
    assert details.flag_metadata["why"]


def test_a_strategy_is_a_flag_whose_variant_is_the_version(client: OpenFeatureClient, router: Router) -> None:
    found = {each: client.get_string_details("fib_rsi", "none", user(each)) for each in USERS}

    assert {each: details.value for each, details in found.items()} == {
        each: router.version_for(each, "fib_rsi") for each in USERS
    }
    assert {(details.variant, details.reason) for details in found.values()} == {("1", "SPLIT"), ("2", "SPLIT")}
    assert "canary percent 25.00" in str(found["user_1"].flag_metadata["why"])
    assert client.get_string_details("a", "none", user()).reason == Reason.DEFAULT


def test_an_excluded_symbol_is_a_match(flags: Engine, database_url: str) -> None:
    with transaction(flags) as session:
        rollouts.set_excluded(session, "fib_rsi", {"SILVER": MONDAY})
    with Router(database_url, toggles=True) as router:
        provider = RolloutProvider(router)

        found = {provider.resolve_string_details("fib_rsi", "", user(each, symbol="SILVER")).value for each in USERS}
        details = provider.resolve_string_details("fib_rsi", "", user(symbol="SILVER"))

    assert found == {"1"}
    assert details.reason == Reason.TARGETING_MATCH


def test_a_strategy_with_a_point_in_its_name_comes_before_a_toggle(client: OpenFeatureClient) -> None:
    assert client.get_string_value("a.b", "none", user()) == "1"
    assert client.get_float_value("a.b.risk_scale", 0.9, user()) == 1.0
    assert client.get_float_value("a.risk_scale", 0.9, user()) == 1.0


@pytest.mark.parametrize(
    ("key", "context", "code"),
    [
        ("fib_rsi.leverage", user(), ErrorCode.FLAG_NOT_FOUND),
        ("nobodys.risk_scale", user(), ErrorCode.FLAG_NOT_FOUND),
        ("nobodys", user(), ErrorCode.FLAG_NOT_FOUND),
        ("", user(), ErrorCode.FLAG_NOT_FOUND),
        (".", user(), ErrorCode.FLAG_NOT_FOUND),
        ("fib_rsi.", user(), ErrorCode.FLAG_NOT_FOUND),
        ("fib_rsi.notify_only", user(), ErrorCode.TYPE_MISMATCH),
        ("fib_rsi.entry_delay", user(), ErrorCode.TYPE_MISMATCH),
        ("fib_rsi", user(), ErrorCode.TYPE_MISMATCH),
        ("fib_rsi.risk_scale", user(None), ErrorCode.TARGETING_KEY_MISSING),
        ("fib_rsi.risk_scale", user(""), ErrorCode.TARGETING_KEY_MISSING),
        ("fib_rsi.risk_scale", None, ErrorCode.TARGETING_KEY_MISSING),
        ("fib_rsi.risk_scale", user("\ud800"), ErrorCode.INVALID_CONTEXT),
        ("fib_rsi.risk_scale", user(symbol=7), ErrorCode.INVALID_CONTEXT),
        ("closed.risk_scale", user(), ErrorCode.GENERAL),
        ("closed", user(), ErrorCode.GENERAL),
    ],
)
def test_what_cannot_be_answered_gives_the_callers_default_and_the_code(
    client: OpenFeatureClient, key: str, context: EvaluationContext | None, code: ErrorCode
) -> None:
    details = client.get_float_details(key, 0.9, context)

    assert (details.value, details.reason, details.error_code) == (0.9, Reason.ERROR, code)
    assert details.error_message


def test_a_boolean_is_no_integer_and_no_flag_is_an_object(client: OpenFeatureClient) -> None:
    assert client.get_integer_details("fib_rsi.notify_only", 7, user()).error_code == ErrorCode.TYPE_MISMATCH
    assert client.get_object_details("fib_rsi", {}, user()).error_code == ErrorCode.TYPE_MISMATCH


def test_a_stale_router_answers_stale(client: OpenFeatureClient, router: Router, clock: Clock) -> None:
    router._feed.close()
    assert router._toggle_feed is not None
    router._toggle_feed.close()
    clock.seconds += 61

    toggle = client.get_float_details("fib_rsi.risk_scale", 0.9, user())
    version = client.get_string_details("fib_rsi", "none", user())

    assert (toggle.value, toggle.reason) == (0.5, Reason.STALE)
    assert (version.value, version.reason) == ("1", Reason.STALE)


def test_a_closed_router_is_not_ready(client: OpenFeatureClient, router: Router) -> None:
    router.close()

    details = client.get_float_details("fib_rsi.risk_scale", 0.9, user())

    assert (details.value, details.error_code) == (0.9, ErrorCode.PROVIDER_NOT_READY)


async def _asked(client: OpenFeatureClient) -> Any:
    return await client.get_float_details_async("fib_rsi.risk_scale", 0.9, user())


def test_an_event_loop_gets_the_same(client: OpenFeatureClient) -> None:
    import asyncio

    assert asyncio.run(_asked(client)).value == 0.5


def test_a_router_without_toggles_is_refused(flags: Engine, database_url: str) -> None:
    with Router(database_url) as router, pytest.raises(InvalidSetting, match="toggles"):
        RolloutProvider(router)


def test_the_provider_has_a_name(client: OpenFeatureClient) -> None:
    assert client.get_metadata().name is None
    assert api.get_provider_metadata().name == "strategy-rollout"


# What the client does around a provider: types, events, contexts and hooks

FLAGS: dict[str, tuple[str, Any]] = {  # key -> its type, its value for `user_1`
    "fib_rsi.risk_scale": ("float", 0.5),
    "fib_rsi.entry_delay": ("integer", 2),
    "fib_rsi.notify_only": ("boolean", False),
    "fib_rsi.tone": ("string", "long"),
    "fib_rsi": ("string", "1"),
}
ANOTHER: dict[str, Any] = {"float": 0.1, "integer": 7, "boolean": True, "string": "fallback", "object": {"a": 1}}


@pytest.mark.parametrize("key", FLAGS)
@pytest.mark.parametrize("asked", ANOTHER)
def test_a_flag_is_given_as_its_own_type_only(client: OpenFeatureClient, key: str, asked: str) -> None:
    kind, value = FLAGS[key]

    details = getattr(client, f"get_{asked}_details")(key, ANOTHER[asked], user())
    plain = getattr(client, f"get_{asked}_value")(key, ANOTHER[asked], user())

    if asked == kind:
        assert (details.value, type(details.value), details.error_code, details.error_message) == (
            value,
            type(value),
            None,
            None,
        )
    else:
        assert (details.value, details.reason, details.error_code) == (
            ANOTHER[asked],
            Reason.ERROR,
            ErrorCode.TYPE_MISMATCH,
        )
    assert plain == details.value


@pytest.mark.parametrize("asked", ANOTHER)
def test_an_unknown_flag_gives_the_default_of_each_type(client: OpenFeatureClient, asked: str) -> None:
    details = getattr(client, f"get_{asked}_details")("nobodys.flag", ANOTHER[asked], user())

    code = ErrorCode.TYPE_MISMATCH if asked == "object" else ErrorCode.FLAG_NOT_FOUND
    assert (details.value, details.reason, details.error_code) == (ANOTHER[asked], Reason.ERROR, code)


def test_the_provider_is_ready_at_once_and_its_shutdown_leaves_the_router_open(router: Router) -> None:
    told: list[EventDetails] = []
    api.set_provider(RolloutProvider(router), "trades")
    client = api.get_client("trades")

    client.add_handler(ProviderEvent.PROVIDER_READY, told.append)
    until(lambda: told)

    assert client.get_provider_status() == ProviderStatus.READY
    assert client.get_string_value("fib_rsi", "none", user()) == "1"
    api.shutdown()
    api.clear_providers()
    assert router.version_for("user_1", "fib_rsi") == "1"


def test_the_user_may_come_from_the_context_of_the_application(client: OpenFeatureClient) -> None:
    api.set_evaluation_context(user("user_2", symbol="GOLD"))
    try:
        assert client.get_float_value("fib_rsi.risk_scale", 0.9) == 1.0
        client.context = user("user_1")
        assert client.get_float_value("fib_rsi.risk_scale", 0.9) == 0.5
        assert client.get_float_value("fib_rsi.risk_scale", 0.9, user("user_2")) == 1.0
    finally:
        api.set_evaluation_context(EvaluationContext())


class Watching(Hook):
    """Sets the user before a flag is asked for, and keeps what it sees."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, object]] = []

    def before(self, hook_context: HookContext, hints: HookHints) -> EvaluationContext:
        return user("user_1")

    def after(self, hook_context: HookContext, details: FlagEvaluationDetails[Any], hints: HookHints) -> None:
        self.seen.append((hook_context.flag_key, details.reason))

    def error(self, hook_context: HookContext, exception: Exception, hints: HookHints) -> None:
        self.seen.append((hook_context.flag_key, type(exception).__name__))

    def finally_after(self, hook_context: HookContext, details: FlagEvaluationDetails[Any], hints: HookHints) -> None:
        self.seen.append((hook_context.flag_key, details.value))


def test_hooks_see_reasons_and_errors_and_may_set_the_user(client: OpenFeatureClient) -> None:
    watching = Watching()
    client.add_hooks([watching])

    assert client.get_float_value("fib_rsi.risk_scale", 0.9) == 0.5
    assert client.get_integer_value("fib_rsi.risk_scale", 9) == 9

    assert watching.seen == [
        ("fib_rsi.risk_scale", Reason.TARGETING_MATCH),
        ("fib_rsi.risk_scale", 0.5),
        ("fib_rsi.risk_scale", "TypeMismatchError"),
        ("fib_rsi.risk_scale", 9),
    ]


def test_a_rule_that_changes_reaches_the_client(client: OpenFeatureClient, flags: Engine) -> None:
    set_rules(
        flags,
        NOW,
        strategy_name="fib_rsi",
        name="risk_scale",
        rules=[read_rule({"percent": 100}, 0.25, "risk_scale", 1)],
    )

    until(lambda: client.get_float_value("fib_rsi.risk_scale", 0.9, user()) == 0.25)
    assert client.get_float_details("fib_rsi.risk_scale", 0.9, user()).reason == Reason.SPLIT
