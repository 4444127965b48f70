"""Owners and ticks in any order: all comes as the model of the rules has it, and what is refused changes nothing."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.lending import Databases
from tests.services.random_owners import Owners

MORE = int(os.environ.get("ROLLOUT_RANDOM_OWNERS", "150"))  # examples of the long run
Open = Callable[[], AbstractContextManager[str]]


def drive(opened: Open, *, examples: int, steps: int, repeated: bool) -> None:
    class Driven(Owners):
        database = staticmethod(opened)

    run_state_machine_as_test(
        Driven,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            derandomize=repeated,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.fixture
def sqlite(sqlite_template: Path, tmp_path: Path) -> Open:
    @contextmanager
    def opened() -> Iterator[str]:
        file = tmp_path / "owners.db"
        shutil.copy(sqlite_template, file)
        yield f"sqlite:///{file}"
        for each in tmp_path.glob("owners.db*"):
            each.unlink()

    return opened


@pytest.fixture
def on_postgresql(postgresql_databases: Databases) -> Open:
    @contextmanager
    def opened() -> Iterator[str]:
        yield postgresql_databases.lend()
        postgresql_databases.take_back()

    return opened


def test_random_owners_get_what_the_rules_say(sqlite: Open) -> None:
    drive(sqlite, examples=12, steps=30, repeated=True)


@pytest.mark.machine_suite
@pytest.mark.parametrize("database", ["sqlite", "on_postgresql"])
def test_many_random_owners_get_what_the_rules_say(database: str, request: pytest.FixtureRequest) -> None:
    opened: Open = request.getfixturevalue(database)

    drive(opened, examples=MORE, steps=50, repeated=False)
