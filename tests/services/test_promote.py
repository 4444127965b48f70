import pytest
from sqlalchemy import Engine

from strategy_core.domain.audit import Command
from strategy_core.domain.errors import (
    IllegalTransition,
    NoActiveVersion,
    Quarantined,
    RolloutOpen,
    StillDeciding,
    UnknownStrategy,
    UnknownVersion,
)
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan
from strategy_core.router.router import Router
from strategy_core.services.alerts import alert_message
from strategy_core.services.audit import verify_trail
from strategy_core.services.canary import activate_canary
from strategy_core.services.queries import route_user
from strategy_core.services.rollouts import start_rollout
from strategy_core.services.versions import activate_version, retire_version
from strategy_core.store import audit, rollouts, versions
from strategy_core.store.engine import reading
from tests.builders import DAY, MONDAY, OWNER, put_version
from tests.router.conftest import until
from tests.services.outbox import outbox


def statuses(engine: Engine) -> dict[str, str]:
    with reading(engine) as session:
        return {version.version: version.status for version in versions.list_versions(session)}


def test_activation_retires_the_predecessor_and_leaves_one_audit_event(engine: Engine) -> None:
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2")

    activate_version(engine, Command(OWNER, MONDAY, "proven in shadow"), strategy_name="fib_rsi", version="2")

    assert statuses(engine) == {"1": "retired", "2": "active"}
    with reading(engine) as session:
        (event,) = audit.events(session)
        retired = versions.get_version(session, "fib_rsi", "1")
    assert retired.retired_at == MONDAY
    assert (event.actor, event.role, event.source, event.action) == ("ana", "owner", "sdk", "activate_version")
    assert (event.before["active"], event.after["active"], event.reason) == ("1", "2", "proven in shadow")


def test_reactivating_a_retired_version_is_the_owners_rollback(engine: Engine) -> None:
    put_version(engine, "1", Status.RETIRED)
    put_version(engine, "2", Status.ACTIVE)

    activate_version(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="1")

    assert statuses(engine) == {"1": "active", "2": "retired"}


def test_the_first_activation_needs_no_predecessor(engine: Engine) -> None:
    put_version(engine, "1")

    activate_version(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="1")

    assert statuses(engine) == {"1": "active"}


def test_what_is_active_cannot_be_activated_again(engine: Engine) -> None:
    put_version(engine, "1", Status.ACTIVE)

    with pytest.raises(IllegalTransition, match="cannot move active -> active; allowed: retired, shadow"):
        activate_version(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="1")


def test_unknown_names_are_refused_with_what_is_known(engine: Engine) -> None:
    put_version(engine, "1")

    with pytest.raises(UnknownStrategy, match="known strategies: fib_rsi"):
        activate_version(engine, Command(OWNER, MONDAY), strategy_name="fib_rsy", version="1")
    with pytest.raises(UnknownVersion, match="known versions: 1"):
        activate_version(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2")


def test_a_quarantined_version_needs_a_reason(engine: Engine) -> None:
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2", quarantined_at=MONDAY - DAY)

    with pytest.raises(Quarantined, match="give an override reason"):
        activate_version(
            engine, Command(OWNER, MONDAY, "I like it", override_reason=" "), strategy_name="fib_rsi", version="2"
        )
    activate_version(
        engine,
        Command(OWNER, MONDAY, override_reason="the feed was wrong, not the version"),
        strategy_name="fib_rsi",
        version="2",
    )

    with reading(engine) as session:
        assert versions.get_version(session, "fib_rsi", "2").quarantined_at is None
        assert audit.events(session)[0].reason == "the feed was wrong, not the version"


def test_activating_the_canary_completes_its_rollout(engine: Engine) -> None:
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2")
    rollout = start_rollout(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", plan=Plan())

    activate_version(engine, Command(OWNER, MONDAY, "earnings week"), strategy_name="fib_rsi", version="2")

    assert statuses(engine) == {"1": "retired", "2": "active"}
    with reading(engine) as session:
        ended = rollouts.get_rollout(session, rollout.id)
        assert rollouts.get_canary(session, "fib_rsi").rollout_percent == 0.0
    assert (ended.state, ended.reason) == ("completed", "2 activated by ana: earnings week")


def test_activating_another_version_aborts_the_rollout_and_withdraws_its_canary(engine: Engine) -> None:
    """What the canary was measured against is active no more: its evidence would compare nothing."""
    put_version(engine, "0", Status.RETIRED)
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2")
    rollout = start_rollout(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", plan=Plan())

    activate_version(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="0")

    assert statuses(engine) == {"0": "active", "1": "retired", "2": "shadow"}
    with reading(engine) as session:
        assert rollouts.get_rollout(session, rollout.id).state == "aborted"
        assert rollouts.get_canary(session, "fib_rsi").rollout_percent == 0.0
        assert versions.get_version(session, "fib_rsi", "2").quarantined_at is None


@pytest.mark.parametrize("status", [Status.SHADOW, Status.CANARY])
def test_what_serves_nobody_alone_may_retire(engine: Engine, status: Status) -> None:
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2")
    if status is Status.CANARY:
        activate_canary(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", rollout_percent=5)

    retire_version(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2")

    assert statuses(engine)["2"] == "retired"


def test_the_active_version_may_not_retire_alone(engine: Engine) -> None:
    put_version(engine, "1", Status.ACTIVE)

    with pytest.raises(IllegalTransition, match="activate another version"):
        retire_version(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="1")


def test_a_strategy_is_closed_by_the_retirement_of_its_last_version_and_opened_by_an_activation(
    engine: Engine, database_url: str
) -> None:
    put_version(engine, "1", Status.ACTIVE, recorded=True)
    with Router(database_url) as router:
        before = router.version_for("u1", "fib_rsi")
        retire_version(
            engine, Command(OWNER, MONDAY, "no users left"), strategy_name="fib_rsi", version="1", close=True
        )

        with pytest.raises(NoActiveVersion, match="'fib_rsi' is closed: no version is active, so its users get none"):
            route_user(engine, user_id="u1", strategy_name="fib_rsi", now=MONDAY)
        until(lambda: answer(router) == "NoActiveVersion")
        shut = verify_trail(engine).holds
        activate_version(engine, Command(OWNER, MONDAY + DAY), strategy_name="fib_rsi", version="1")
        until(lambda: answer(router) == "1")

    assert (before, shut, verify_trail(engine).holds) == ("1", True, True)
    (alert,) = (each for each in outbox(engine) if each.kind == "strategy.closed")
    assert alert.text == "fib_rsi was closed by ana: no users left; 1 was its last version"
    assert "to reopen: rollout activate fib_rsi 1" in alert_message(alert).body


def answer(router: Router) -> str:
    try:
        return router.version_for("u1", "fib_rsi")
    except NoActiveVersion as error:
        return type(error).__name__


@pytest.mark.parametrize("status", [Status.SHADOW, Status.CANARY])
def test_a_strategy_is_not_closed_while_another_version_decides(engine: Engine, status: Status) -> None:
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2", status)

    with pytest.raises(StillDeciding, match="while other versions decide: 2; retire them first"):
        retire_version(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="1", close=True)

    assert statuses(engine)["1"] == "active"


@pytest.mark.parametrize("version", ["2"])
def test_a_version_in_a_rollout_may_not_retire(engine: Engine, version: str) -> None:
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2")
    start_rollout(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", plan=Plan())

    with pytest.raises(RolloutOpen, match="roll it back or let it end first"):
        retire_version(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version=version)
