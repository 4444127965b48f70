"""Owners and ticks in any order: all comes as the model of the rules has it, and what is refused changes nothing."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from tests.fuzz.damage import rules
from tests.lending import Databases
from tests.services.random_owners import Owners

Open = Callable[[], AbstractContextManager[str]]


def drive(opened: Open) -> None:
    class Driven(Owners):
        database = staticmethod(opened)

    run_state_machine_as_test(Driven, settings=settings(rules(20), stateful_step_count=30))


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


@pytest.mark.drawn
@pytest.mark.full
@pytest.mark.parametrize("database", ["sqlite", "on_postgresql"])
def test_random_owners_get_what_the_rules_say(database: str, request: pytest.FixtureRequest) -> None:
    drive(request.getfixturevalue(database))
