"""Copies of a prepared database, one per fault, on SQLite and PostgreSQL."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from sqlalchemy import Engine, text

from strategy_core.store.engine import open_database
from tests.lending import address

Prepare = Callable[[Engine], None]


@dataclass(frozen=True)
class Copy:
    """A copy of the prepared database, with one engine for the killed operation and one for the time after.

    Every copy has the address of the one before it, and their engines are those: to compile each statement anew would
    take most of a fault's time. No connection goes from one copy to the next.
    """

    url: str
    dying: Engine
    living: Engine

    def hang_up(self) -> None:
        self.dying.dispose()
        self.living.dispose()


class SqliteCopies:
    database = "SQLite"

    def __init__(self, empty: Path, folder: Path) -> None:
        self._empty, self._folder = empty, folder
        self._file = folder / "copy.db"
        self._copy = _engines(f"sqlite:///{self._file}")
        self._prepared: dict[Prepare, Path] = {}

    @contextmanager
    def copy(self, prepare: Prepare) -> Iterator[Copy]:
        if prepare not in self._prepared:
            template = self._folder / f"{prepare.__name__}.db"
            shutil.copy(self._empty, template)
            _prepare(f"sqlite:///{template}", prepare)
            self._prepared[prepare] = template
        shutil.copy(self._prepared[prepare], self._file)
        try:
            yield self._copy
        finally:
            self._copy.hang_up()
            for left in self._folder.glob(f"{self._file.name}*"):
                left.unlink()


class PostgresqlCopies:
    database = "PostgreSQL"

    def __init__(self, admin: Engine, *, dies: bool = False) -> None:
        """*dies*: whether the server will be killed. Its sequences could then repeat numbers, see `_create`."""
        self._admin, self._dies = admin, dies
        self._name = f"faults_{uuid4().hex}"
        self._copy = _engines(self._address(self._name))
        self._prepared: dict[Prepare, str] = {}

    @contextmanager
    def copy(self, prepare: Prepare) -> Iterator[Copy]:
        if prepare not in self._prepared:
            template = f"faults_{uuid4().hex}"
            self._create(template, "template")
            _prepare(self._address(template), prepare)
            self._prepared[prepare] = template
        self._create(self._name, self._prepared[prepare])
        try:
            yield self._copy
        finally:
            self._copy.hang_up()
            self._drop(self._name)

    def close(self) -> None:
        for name in self._prepared.values():
            self._drop(name)

    def _create(self, name: str, template: str) -> None:
        with self._admin.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {template}"))
            if self._dies:  # a copied sequence has numbers in reserve that only the template's journal knows of
                connection.execute(text("CHECKPOINT"))

    def _drop(self, name: str) -> None:
        with self._admin.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))

    def _address(self, name: str) -> str:
        return address(self._admin.url.set(database=name))


Copies = SqliteCopies | PostgresqlCopies


def _engines(url: str) -> Copy:
    return Copy(url, open_database(url), open_database(url))


def _prepare(url: str, prepare: Prepare) -> None:
    engine = open_database(url)
    prepare(engine)
    engine.dispose()
