"""The flows that activate, retire and roll back, on both databases."""

from dataclasses import replace

import pytest
from prefect.exceptions import ParameterTypeError
from sqlalchemy import Engine

from flows.ramp import decide, start_canary
from flows.rollback import activate, retire, rollback
from flows.runtime import unattended
from strategy_core.domain.audit import RAMP
from strategy_core.domain.lifecycle import Status
from strategy_core.store import audit, versions
from strategy_core.store.engine import reading
from tests.builders import put_version
from tests.flows.conftest import Clock


@pytest.fixture
def two(engine: Engine, at: Clock) -> Engine:
    put_version(engine, "v1", Status.ACTIVE)
    put_version(engine, "v2")
    return engine


def test_a_promotion_retires_the_predecessor_and_keeps_who_and_why(two: Engine) -> None:
    state = activate.fn("fib_rsi", "v2", owner="ana", reason="agreed on Friday")

    assert state.message == "fib_rsi v2 is active"
    assert statuses(two) == {"v1": "retired", "v2": "active"}
    with reading(two) as session:
        event = audit.events(session)[-1]
    assert (event.actor, event.role, event.source, event.reason) == (
        "ana",
        "owner",
        "form, unverified",
        "agreed on Friday",
    )


def test_an_event_names_the_run_that_its_logs_are_kept_under(two: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect passes the run id in the environment. Outside a run it is empty."""
    activate.fn("fib_rsi", "v2", owner="ana", reason="agreed on Friday")
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", "0a1b2c3d-0000-4000-8000-000000000001")

    rollback.fn("fib_rsi", owner="ana", reason="users complain", version="v2")

    with reading(two) as session:
        assert [event.request_id for event in audit.events(session)] == ["", "0a1b2c3d-0000-4000-8000-000000000001"]
    assert unattended() == replace(RAMP, request_id="0a1b2c3d-0000-4000-8000-000000000001")


def test_a_rollback_undoes_the_promotion_and_quarantines(two: Engine) -> None:
    activate.fn("fib_rsi", "v2", owner="ana", reason="agreed on Friday")

    state = rollback.fn("fib_rsi", owner="ana", reason="users complain", version="v2")

    assert state.message == "fib_rsi v2 is rolled back, no user gets it"
    assert statuses(two) == {"v1": "active", "v2": "shadow"}
    refused = activate.fn("fib_rsi", "v2", owner="ana", reason="once more")
    assert refused.is_failed()
    assert "is quarantined; give an override reason" in (refused.message or "")


def test_a_version_that_is_no_longer_wanted_is_retired_and_the_active_one_is_not(two: Engine) -> None:
    assert retire.fn("fib_rsi", "v2", owner="ana").message == "fib_rsi v2 is retired"

    refused = retire.fn("fib_rsi", "v1", owner="ana", reason="tired of it")

    closed = retire.fn("fib_rsi", "v1", owner="ana", reason="tired of it", close=True)
    assert refused.is_failed()
    assert "activate another version" in (refused.message or "")
    assert closed.message == "fib_rsi v1 is retired"
    assert statuses(two) == {"v1": "retired", "v2": "retired"}


def test_nothing_to_roll_back_is_said_in_a_line(two: Engine) -> None:
    state = rollback.fn("fib_rsi", owner="ana", reason="users complain")

    assert state.is_failed()
    assert "no canary and no rollout; to undo an activation, name the active version (v1)" in (state.message or "")


@pytest.mark.parametrize("blank", [" ", "\n", "\t \u00a0"])
def test_a_blank_reason_is_none(blank: str) -> None:
    named = {"strategy_name": "fib_rsi", "owner": "ana", "reason": "once more"}

    assert activate.validate_parameters(named | {"version": "v2", "override_reason": ""})
    with pytest.raises(ParameterTypeError, match="override_reason"):
        activate.validate_parameters(named | {"version": "v2", "override_reason": blank})
    with pytest.raises(ParameterTypeError, match="override_reason"):
        start_canary.validate_parameters(named | {"version": "v2", "override_reason": blank})
    for flow, more in ((rollback, {}), (decide, {"choice": "extend"})):
        with pytest.raises(ParameterTypeError, match="reason"):
            flow.validate_parameters(named | more | {"reason": blank})


def statuses(engine: Engine) -> dict[str, str]:
    with reading(engine) as session:
        return {version.version: version.status for version in versions.list_versions(session)}
