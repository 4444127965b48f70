"""One database for many examples, which all must leave it as it was; made anew by those that may change it."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import Engine

from strategy_core.store.engine import open_database
from tests.api.asking import World, put_world
from tests.pictures import Picture, picture


@dataclass
class Kept:
    """A database with two strategies, and the file that it is put back from."""

    engine: Engine
    file: Path
    world: World
    was: Picture

    @property
    def url(self) -> str:
        return f"sqlite:///{self.file}"

    @property
    def unchanged(self) -> bool:
        return picture(self.engine) == self.was

    def put_back(self) -> None:
        self.engine.dispose()
        for each in self.file.parent.glob(f"{self.file.name}-*"):
            each.unlink()
        shutil.copy(self.file.with_suffix(".kept"), self.file)


@pytest.fixture(scope="module")
def kept(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    file = tmp_path_factory.mktemp("fuzzed") / "rollout.db"
    shutil.copy(sqlite_template, file)
    engine = open_database(f"sqlite:///{file}")
    world = put_world(engine)
    was = picture(engine)
    engine.dispose()  # the last connection that closes takes the journal into the file
    shutil.copy(file, file.with_suffix(".kept"))
    yield Kept(engine, file, world, was)
    engine.dispose()
