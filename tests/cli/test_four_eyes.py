"""Four-eyes mode: exit code 3 for the person who started a rollout, and a rollback that needs no second person."""

import pytest
from sqlalchemy import Engine

from strategy_core.domain.lifecycle import Status
from strategy_core.store import rollouts
from strategy_core.store.engine import reading, transaction
from tests.builders import put_version
from tests.cli.conftest import Rollout


@pytest.fixture
def started(database: Engine, rollout: Rollout, monkeypatch: pytest.MonkeyPatch) -> Engine:
    monkeypatch.setenv("ROLLOUT_FOUR_EYES", "1")
    put_version(database, "1", Status.ACTIVE)
    put_version(database, "2")
    assert rollout("start", "fib_rsi", "2", "--yes", "--actor", "ana").code == 0
    return database


@pytest.mark.parametrize(
    ("state", "command"),
    [
        ("awaiting_approval", "approve fib_rsi"),
        ("awaiting_decision", "decide fib_rsi advance --reason enough"),
        ("paused", "percent fib_rsi 50 --yes"),
        ("running", "activate fib_rsi 2 --yes"),
    ],
)
def test_who_started_a_rollout_needs_another_owner(rollout: Rollout, started: Engine, state: str, command: str) -> None:
    with transaction(started) as session:
        rollouts.change_rollout(session, rollouts.list_rollouts(session)[0], state=state)

    refused = rollout(*command.split(" "), "--actor", "ana")

    assert (refused.code, refused.out) == (3, "")
    assert refused.err == (
        "error: 'ana' started the rollout of 'fib_rsi' '2': another owner must do this; "
        "pausing and rolling back need no second owner\n"
    )
    said = rollout(*command.split(" "), "--actor", "bob")
    assert said.code == 0, said.err


def test_who_started_a_rollout_takes_users_off_it(rollout: Rollout, started: Engine) -> None:
    said = rollout("rollback", "fib_rsi", "--reason", "odd fills", "--actor", "ana")

    assert said.code == 0, said.err
    with reading(started) as session:
        assert rollouts.get_canary(session, "fib_rsi").rollout_bp == 0
